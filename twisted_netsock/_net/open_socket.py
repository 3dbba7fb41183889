"""What connect and listen have in common: checks, look-up, new sockets and their options."""

from __future__ import annotations

import socket as _socket
from collections.abc import Sequence
from socket import AF_INET, AF_INET6, AF_UNIX, SOCK_STREAM, SOL_SOCKET
from typing import Final
from weakref import WeakKeyDictionary

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorCore
from twisted.python.failure import Failure

from .._hostnames import host_to_look_up, is_ip_address, numeric_service
from .._io.interfaces import Reactor
from .._io.native import NativeSocket
from ..addresses import AddressInfo, SocketAddress
from ..errors import HostNotFoundError, SocketError
from ..options import SocketOptions
from .resolver import Hints, look_up, look_up_numeric

__all__ = [
    "apply_options",
    "check_listening",
    "check_target",
    "look_up_known_place",
    "look_up_place",
    "open_socket",
    "unix_info",
    "until_shutdown",
]

_NON_BLOCKING: Final[int] = getattr(_socket, "SOCK_NONBLOCK", 0)
"""Makes the new socket non-blocking in the same system call, where the kernel knows it."""

_under_way: WeakKeyDictionary[IReactorCore, set[Deferred[list[AddressInfo]]]] = WeakKeyDictionary()
"""The look-ups of each reactor, which are cancelled when it stops."""


def apply_options(sock: _socket.socket, family: int, kind: int, options: SocketOptions) -> None:
    """
    Set what *options* asks for on *sock*, of *family* and *kind*, before connect or bind.

    Raises:
        SocketError: The kernel refuses an option; it is named as it was given.
    """
    if kind == SOCK_STREAM and family in (AF_INET, AF_INET6):
        _set_option(sock, _socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
    for level, name, value in options.socket_options:
        _set_option(sock, level, name, value)
    if options.reuse_port:
        _set_option(sock, SOL_SOCKET, _socket.SO_REUSEPORT, 1, "reuse_port=True")


def _set_option(
    sock: _socket.socket, level: int, name: int, value: int | bytes, given: str | None = None
) -> None:
    """Set one option, *given* as that, or among `socket_options` if `None`."""
    try:
        sock.setsockopt(level, name, value)
    except OSError as error:
        given = given or f"socket_options=({level}, {name}, {value!r}){_called(level, name)}"
        raise SocketError(errno=error.errno, strerror=f"{given}: {error.strerror}") from None


def _called(level: int, name: int) -> str:
    """Return what C calls a socket option, in parentheses, for who has written that."""
    prefix = {
        SOL_SOCKET: "SO_",
        _socket.IPPROTO_TCP: "TCP_",
        _socket.IPPROTO_IP: "IP_",
        _socket.IPPROTO_IPV6: "IPV6_",
    }.get(level)
    found = [each for each in dir(_socket) if prefix and each.startswith(prefix)]
    names = [each for each in found if getattr(_socket, each) == name]
    return f" ({', '.join(names)})" if names else ""


def open_socket(family: int, kind: int, protocol: int) -> _socket.socket:
    """
    Return a new non-blocking socket.

    Raises:
        SocketError: The kernel refuses.
    """
    try:
        sock = NativeSocket(family, kind | _NON_BLOCKING, protocol)
    except OSError as error:
        raise SocketError(errno=error.errno, strerror=error.strerror) from None
    if not _NON_BLOCKING:
        sock.setblocking(False)
    return sock


def unix_info(path: str, options: SocketOptions) -> AddressInfo:
    """Return the way to the UNIX socket at *path*."""
    return AddressInfo(AF_UNIX, options.ai_socktype, options.ai_protocol, SocketAddress((path,)))


def check_target(node: str | None, service: str | int | None, options: SocketOptions) -> None:
    """
    Refuse a node and a service that cannot be connected to.

    Raises:
        TypeError: One is of another type.
        ValueError: One is missing, superfluous, or no name, path or port.
    """
    if options.proxy is not None:
        _check_behind_proxy(node)
    _check_node(node, service, options)
    if options.ai_family == AF_UNIX:
        return
    if service is None or (numeric_service(service) == 0 and options.ai_socktype == SOCK_STREAM):
        raise ValueError(f"service={service!r} must be a name or a port to connect to")


def check_listening(node: str | None, service: str | int | None, options: SocketOptions) -> None:
    """
    Refuse a node and a service that cannot be listened on.

    Raises:
        TypeError: One is of another type.
        ValueError: One is missing, superfluous, or no name, path or port.
    """
    if options.proxy is not None:
        raise ValueError("proxy is for clients: a server is not reached through one")
    if node is not None or options.ai_family == AF_UNIX:
        _check_node(node, service, options)
    if options.ai_family == AF_UNIX:
        return
    if service is None:
        raise ValueError("service=None must be a name or a port to listen on")
    numeric_service(service)


def _check_behind_proxy(node: str | None) -> None:
    if node is None:
        raise ValueError("node=None: a proxy needs a host to connect to")
    if isinstance(node, str) and is_ip_address(node) and "%" in node:
        raise ValueError(f"node={node!r}: its zone means nothing to a proxy")


def _check_node(node: str | None, service: str | int | None, options: SocketOptions) -> None:
    if not isinstance(node, str):
        raise TypeError(f"node must be a host name, an address or a path, not {node!r}")
    if options.ai_family == AF_UNIX:
        if service is not None:
            raise ValueError(f"service={service!r} must be None with ai_family=AF_UNIX")
        if not node:
            raise ValueError("node='' must be a path")
    else:
        host_to_look_up(node)


def look_up_place(
    reactor: Reactor,
    node: str | None,
    service: str | int | None,
    options: SocketOptions,
    flags: int = 0,
) -> Deferred[list[AddressInfo]]:
    """Look *node* and *service* up as *options* say, with *flags* beside theirs; see `look_up`."""
    looking = look_up(reactor, node, service, _hints(options, flags))
    return until_shutdown(reactor, looking, node, service)


def until_shutdown(
    reactor: Reactor,
    looking: Deferred[list[AddressInfo]],
    node: str | None,
    service: str | int | None,
) -> Deferred[list[AddressInfo]]:
    """
    Have a look-up of *node* and *service* end when the reactor stops.

    A stopped reactor delivers no answer: the look-up fails with `HostNotFoundError` then.
    """
    if looking.called or not IReactorCore.providedBy(reactor):
        return looking
    under_way = _under_way.get(reactor)
    if under_way is None:
        # One trigger for all look-ups: some reactors for tests cannot remove a trigger.
        under_way = _under_way[reactor] = set()
        reactor.addSystemEventTrigger("during", "shutdown", _end_look_ups, under_way)
    under_way.add(looking)

    def ended(result: list[AddressInfo] | Failure) -> list[AddressInfo] | Failure:
        if looking in under_way:
            under_way.remove(looking)
            return result
        stopped = "The reactor was shut down"
        return Failure(HostNotFoundError(node, service, errno=_socket.EAI_AGAIN, strerror=stopped))

    return looking.addBoth(ended)


def _end_look_ups(under_way: set[Deferred[list[AddressInfo]]]) -> None:
    while under_way:
        under_way.pop().cancel()


def look_up_known_place(
    node: str | None, service: str | int | None, options: SocketOptions
) -> Sequence[AddressInfo] | None:
    """Do as `look_up_place`, at once, or return `None`; see `look_up_numeric`."""
    return look_up_numeric(node, service, _hints(options))


def _hints(options: SocketOptions, flags: int = 0) -> Hints:
    return Hints(
        options.ai_family, options.ai_socktype, options.ai_protocol, options.ai_flags | flags
    )
