"""The makers of ``(net socket)``: from a node, a service and options to a socket."""

from __future__ import annotations

import socket as _socket
from collections.abc import Iterable
from datetime import timedelta
from typing import Final, cast

from twisted.internet.defer import Deferred

from .._io.descriptor import PlainDescriptor
from .._io.interfaces import current_reactor
from .._io.poller import poller_for
from .._net.connect import connect
from .._net.listen import listen
from .._net.open_socket import check_listening, check_target
from .._proxy_protocol.header import ProxyHeader
from .._proxy_protocol.wire import check_header
from .._tls.client import ClientContextFactory
from .._tls.server import ServerContextFactory, server_records
from .._validation import optional_duration
from ..options import (
    ServerTLSSocketOptions,
    SocketOptions,
    TLSSocketOptions,
    require_client_flags,
    require_reactor_mode,
    require_record,
    require_stream,
)
from .socket import Socket
from .tls_socket import TLSSocket

__all__ = [
    "make_client_socket",
    "make_client_tls_socket",
    "make_server_socket",
    "make_server_tls_socket",
    "socket_options_to_client_socket",
]

_PLAIN: Final = SocketOptions()
_TLS: Final = TLSSocketOptions()


def make_client_socket(
    node: str,
    service: str | int | None,
    options: SocketOptions | None = None,
    *,
    reactor: object = None,
    proxy_header: ProxyHeader | None = None,
) -> Deferred[Socket]:
    """
    Connect to *node* and *service* (``make-client-socket``).

    Args:
        node: A host name, a numeric address, or (``AF_UNIX``) a path.
        service: A service's name or a port; `None` with ``AF_UNIX``.
        options: A plain `SocketOptions`; its defaults if `None`.
        reactor: The installed one if `None`.
        proxy_header: The PROXY header to send, where *options* have
            `proxy_protocol`; the connection's own addresses if `None`.

    Returns:
        The connected socket, which is the caller's to close.

    Raises:
        TypeError: *options* is a record for TLS, or no record.
        ValueError: *node* or *service* is none; ``AI_PASSIVE`` is set;
            *non_blocking* is `False`; *proxy_protocol* is ``"any"``; or it cannot
            express *proxy_header*.

    Errors:
        HostNotFoundError: There is no such node or service.
        SocketConnectionRefusedError: Every address reached refused.
        SocketConnectionTimeoutError: `connection_timeout` passed.
        SocketConnectionError: No address could be connected to.
        ProxyError: There is no connection through *proxy*; its kin say why.

    Cancelling:
        Fails with `CancelledError` at every stage, and leaves nothing behind.
    """
    checked = require_record(
        _PLAIN if options is None else options,
        SocketOptions,
        TLSSocketOptions,
        "use make_client_tls_socket",
    )
    _check_client(node, service, checked, proxy_header)
    reactor = current_reactor(reactor)
    return connect(reactor, node, service, checked, header=proxy_header).addCallback(
        lambda made: Socket(
            reactor, made.watch, made.descriptor, node=node, service=service, options=checked
        )
    )


def _check_client(
    node: str, service: str | int | None, options: SocketOptions, header: ProxyHeader | None
) -> None:
    require_reactor_mode(options)
    require_client_flags(options)
    check_target(node, service, options)
    if header is not None:
        check_header(options, header)


def make_client_tls_socket(
    node: str,
    service: str | int | None,
    options: SocketOptions | None = None,
    *,
    reactor: object = None,
    proxy_header: ProxyHeader | None = None,
) -> Deferred[TLSSocket]:
    """
    Connect to *node* and *service*, and speak TLS (``make-client-tls-socket``).

    Args:
        node: A host name, a numeric address, or (``AF_UNIX``) a path. What is
            verified, unless the options have `sni`.
        service: A service's name or a port; `None` with ``AF_UNIX``.
        options: A `TLSSocketOptions`, or a plain record, whose connection then
            has the defaults of TLS.
        reactor: The installed one if `None`.
        proxy_header: The PROXY header to send, where *options* have
            `proxy_protocol`; the connection's own addresses if `None`.

    Returns:
        The connected socket, after the handshake and the verification of the
        server, unless the options say ``handshake=False``. The caller's to close.

    Raises:
        TypeError: *options* is a server's record, or no record.
        ValueError: As `make_client_socket`; or a certificate or key cannot be used;
            or *ai_socktype* is not ``SOCK_STREAM``.

    Errors:
        As `make_client_socket`, and
        CertificateVerificationError: The server's certificate is not good.
        TLSHandshakeError: Anything else that TLS did not like.

    Cancelling:
        Fails with `CancelledError` at every stage, and leaves nothing behind.
    """
    record = require_record(
        _TLS if options is None else options,
        SocketOptions,
        ServerTLSSocketOptions,
        "for a server use make_server_tls_socket",
    )
    checked = (
        record if isinstance(record, TLSSocketOptions) else TLSSocketOptions.from_options(record)
    )
    require_stream(checked, "TLS is")
    _check_client(node, service, checked, proxy_header)
    reactor = current_reactor(reactor)
    factory = ClientContextFactory(checked, node)
    return connect(reactor, node, service, checked, factory, (), proxy_header).addCallback(
        lambda made: TLSSocket(
            reactor, made.watch, made.descriptor, node=node, service=service, options=checked
        )
    )


def make_server_socket(
    node: str | None,
    service: str | int | None,
    options: SocketOptions | None = None,
    *,
    reactor: object = None,
) -> Deferred[Socket]:
    """
    Listen on *node* and *service* (``make-server-socket``).

    Args:
        node: A name (its first address is bound), a numeric address, a path, or
            `None` for every interface, IPv4 and IPv6.
        service: A service's name or a port; 0 lets the kernel choose.
        options: A plain `SocketOptions`; its defaults if `None`.
        reactor: The installed one if `None`.

    Returns:
        The listening socket (of datagrams: the bound one), the caller's to close.

    Raises:
        TypeError: *options* is a record for TLS, or no record.
        ValueError: *node* or *service* is none, or *non_blocking* is `False`.

    Errors:
        HostNotFoundError: There is no such node or service.
        SocketBindError: The address is taken, or not ours to bind.

    Cancelling:
        Fails with `CancelledError`; nothing is bound.
    """
    checked = require_record(
        _PLAIN if options is None else options,
        SocketOptions,
        TLSSocketOptions,
        "use make_server_tls_socket",
    )
    require_reactor_mode(checked)
    check_listening(node, service, checked)
    reactor = current_reactor(reactor)
    poller = poller_for(reactor)
    return listen(reactor, node, service, checked).addCallback(
        lambda made: Socket(
            reactor,
            poller.watch(made[0].fileno()),
            PlainDescriptor(made[0]),
            node=node,
            service=service,
            options=checked,
        )
    )


def make_server_tls_socket(
    node: str | None,
    service: str | int | None,
    options: ServerTLSSocketOptions | Iterable[ServerTLSSocketOptions],
    *,
    reactor: object = None,
    reload_every: timedelta | None = None,
) -> Deferred[TLSSocket]:
    """
    Listen on *node* and *service* for TLS (``make-server-tls-socket``).

    Args:
        node: As `make_server_socket`.
        service: As `make_server_socket`.
        options: One `ServerTLSSocketOptions`, or several, chosen by the name
            that a client asks for. The socket's own options are the first's.
        reactor: The installed one if `None`.
        reload_every: How often to look whether the files of the records have
            changed, and to `TLSSocket.reload` them then; never if `None`.

    Returns:
        The listening socket, the caller's to close; its `accept` fires after the handshake.

    Raises:
        TypeError: A record is no server's.
        ValueError: As `make_server_socket`; or there is no certificate or key,
            or it cannot be used; or the records cannot be served together;
            or *ai_socktype* is not ``SOCK_STREAM``.

    Errors:
        As `make_server_socket`.

    Cancelling:
        Fails with `CancelledError`; nothing is bound.
    """
    records = server_records(options)
    first = records[0]
    require_stream(first, "TLS is")
    require_reactor_mode(first)
    check_listening(node, service, first)
    interval = optional_duration(reload_every, "reload_every")
    factory = ServerContextFactory(records)
    reactor = current_reactor(reactor)
    poller = poller_for(reactor)

    def bound(made: list[_socket.socket]) -> TLSSocket:
        listening = TLSSocket(
            reactor,
            poller.watch(made[0].fileno()),
            PlainDescriptor(made[0]),
            node=node,
            service=service,
            options=first,
            factory=factory,
        )
        if interval is not None:
            listening._watch_files(interval.total_seconds())
        return listening

    return listen(reactor, node, service, first).addCallback(bound)


def socket_options_to_client_socket(
    options: SocketOptions,
    node: str,
    service: str | int | None,
    *,
    reactor: object = None,
    proxy_header: ProxyHeader | None = None,
) -> Deferred[Socket]:
    """
    Connect as the class of *options* says (``socket-options->client-socket``).

    A `TLSSocketOptions` makes a `TLSSocket`, a plain record a `Socket`; see
    `make_client_tls_socket` and `make_client_socket` for everything else.

    Raises:
        TypeError: *options* is a server's record, or no record.
    """
    if isinstance(options, TLSSocketOptions):
        made = make_client_tls_socket(
            node, service, options, reactor=reactor, proxy_header=proxy_header
        )
        return cast("Deferred[Socket]", made)
    require_record(options, SocketOptions, None, "give an option record")
    return make_client_socket(node, service, options, reactor=reactor, proxy_header=proxy_header)
