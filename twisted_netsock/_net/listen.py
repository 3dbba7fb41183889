"""Binding and listening: on one address, on all of a name, on both families at once."""

from __future__ import annotations

import errno
import socket as _socket
from socket import (
    AF_INET,
    AF_INET6,
    AF_UNIX,
    AF_UNSPEC,
    AI_PASSIVE,
    SOCK_STREAM,
    SOL_SOCKET,
    AddressFamily,
)
from typing import Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from .._hostnames import is_ip_address
from .._io.interfaces import Reactor
from ..addresses import AddressInfo, SocketAddress
from ..errors import SocketBindError, SocketError
from ..options import SocketOptions
from .open_socket import apply_options, look_up_place, open_socket, unix_info
from .unix_paths import free_path

__all__ = ["listen"]

_NOT_HERE: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
"""Errors of an address that is not this machine's, or of a family that its kernel has not."""

_log = Logger()

_PORT_CHOICES: Final = 8
"""
Attempts to find a port that is free on every address of a name. Each lets the kernel choose
anew, so one that fails says little about the next.
"""


def listen(
    reactor: Reactor,
    node: str | None,
    service: str | int | None,
    options: SocketOptions,
    *,
    every_address: bool = False,
) -> Deferred[list[_socket.socket]]:
    """
    Bind *node* and *service*, and listen if it is a stream.

    Args:
        reactor: For the look-up.
        node: A name, an address, a path, or `None` for every interface: IPv4 and
            IPv6 through one descriptor, unless the options say otherwise.
        service: A name or a port; 0 lets the kernel choose.
        options: Everything else.
        every_address: Bind each address of a name, all on one port, instead of
            the first.

    Returns:
        The non-blocking sockets, at least one; the caller's to close.

    Errors:
        HostNotFoundError: There is no such node or service.
        SocketBindError: An address cannot be bound; none stays bound then.

    Cancelling:
        Fails with `CancelledError`; nothing is bound.
    """
    return Deferred.fromCoroutine(_listen(reactor, node, service, options, every_address))


async def _listen(
    reactor: Reactor,
    node: str | None,
    service: str | int | None,
    options: SocketOptions,
    every_address: bool,
) -> list[_socket.socket]:
    if options.ai_family == AF_UNIX:
        assert node is not None
        return [_bound(unix_info(node, options), options, node, None)]
    if node is None and options.ai_family == AF_UNSPEC:
        dual = _dual_stack_family()
        infos = await look_up_place(
            reactor, None, service, options.replace(ai_family=dual), AI_PASSIVE
        )
    else:
        infos = await look_up_place(reactor, node, service, options, AI_PASSIVE)
    most = None if every_address else 1
    for _ in range(_PORT_CHOICES):
        try:
            return _bind_all(infos, options, node, most)
        except SocketBindError as error:
            chosen_here = len(infos) > 1 and infos[0].address and infos[0].address.port == 0
            if not chosen_here or error.errno != errno.EADDRINUSE:
                raise
            # The port that the kernel chose for the first address is taken on another.
    return _bind_all(infos, options, node, most)


def _bind_all(
    infos: list[AddressInfo], options: SocketOptions, node: str | None, most: int | None
) -> list[_socket.socket]:
    """
    Bind every address, or the first *most*, all on one port.

    Those that this machine does not have are left out, if there is another: containers
    have a hosts file that gives ``localhost`` the address ``::1``, and no IPv6.
    """
    listening: list[_socket.socket] = []
    missing: list[SocketError] = []
    try:
        for info in infos:
            assert info.address is not None
            port = listening[0].getsockname()[1] if listening else info.address.port
            try:
                listening.append(_bound(_at_port(info, port), options, node, port))
            except SocketError as error:
                if error.errno not in _NOT_HERE:
                    raise
                missing.append(error)
            if len(listening) == most:
                break
    except BaseException:
        for sock in listening:
            sock.close()
        raise
    if not listening:
        raise missing[0]
    for each in missing:
        _log.warn("{error}; listening on the other addresses", error=each)
    return listening


def _dual_stack_family() -> AddressFamily:
    """Return ``AF_INET6``, or ``AF_INET`` where the kernel has no IPv6."""
    if _socket.has_ipv6:
        try:
            _socket.socket(AF_INET6, SOCK_STREAM).close()
        except OSError:
            return AF_INET
        return AF_INET6
    return AF_INET


def _at_port(info: AddressInfo, port: int) -> AddressInfo:
    assert info.address is not None
    host, _, *rest = info.address
    return AddressInfo(
        info.family, info.socket_type, info.protocol, SocketAddress((host, port, *rest))
    )


def _bound(
    info: AddressInfo, options: SocketOptions, node: str | None, port: int | None
) -> _socket.socket:
    """Return a socket bound to *info*, listening if it is a stream."""
    assert info.address is not None
    try:
        sock = open_socket(info.family, info.socket_type, info.protocol)
    except SocketError as error:
        raise _bind_error(node, port, info, error) from None
    try:
        if info.family != AF_UNIX and info.socket_type == SOCK_STREAM:
            # Else connections in TIME_WAIT keep a restarted server from its port.
            sock.setsockopt(SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        if info.family == AF_INET6:
            # Set either way, because the system's default (net.ipv6.bindv6only) may be either:
            # IPv4 is served only where every interface was asked for.
            dual = node is None and options.ai_family == AF_UNSPEC and not options.v6_only
            sock.setsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, 0 if dual else 1)
        apply_options(sock, info.family, info.socket_type, options)
        with free_path(info.family, info.socket_type, info.address.host):
            sock.bind(info.address.native(info.family))
            if info.socket_type == SOCK_STREAM:
                sock.listen(options.backlog)
    except SocketError:
        sock.close()
        raise
    except OSError as error:
        sock.close()
        raise _bind_error(node, port, info, error) from None
    return sock


def _bind_error(
    node: str | None, port: int | None, info: AddressInfo, error: OSError
) -> SocketBindError:
    """Return the error of an address, which is named if *node* is a name: it may have others."""
    strerror = None
    if node is not None and info.family != AF_UNIX and not is_ip_address(node):
        assert info.address is not None
        strerror = f"{error.strerror or error} ({info.address.host})"
    return SocketBindError(node, port, cause=error, strerror=strerror)
