"""
Twisted endpoints over the sockets of this package.

`client_endpoint` and `server_endpoint` take a node, a service and an option
record, whose class chooses plain or TLS. Their transports shake hands before
``connectionMade``, and all their waits have limits.
"""

from __future__ import annotations

import socket as _socket
from collections.abc import Callable, Iterable
from copy import copy
from datetime import timedelta
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.error import NoProtocol
from twisted.internet.interfaces import (
    IListeningPort,
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from ._validation import optional_duration
from .addresses import SocketAddress, to_twisted_address
from .binding import listen
from .client_contexts import client_context_factory
from .connecting import connect
from .contexts import negotiated_protocols
from .errors import SocketConnectionLostError
from .factories import start_factory, stop_factory
from .layered_endpoints import (
    check_inner_client,
    check_inner_server,
    connect_over,
    listen_over,
)
from .listening_ports import ListeningPort, make_transport
from .opening import check_listening, check_target
from .options import (
    ServerTLSSocketOptions,
    SocketOptions,
    TLSSocketOptions,
    require_client_flags,
    require_reactor_mode,
    require_record,
    require_stream,
)
from .proxy_headers import ProxyHeader
from .proxying import check_header
from .racing import Established
from .readiness import poller_for
from .reloading import FileWatch, Reloader
from .server_contexts import ServerContextFactory, server_context_factory

__all__ = ["ClientEndpoint", "ServerEndpoint", "client_endpoint", "server_endpoint"]


@implementer(IStreamClientEndpoint)
class ClientEndpoint:
    """Where to connect to, and how. Made by `client_endpoint`."""

    def __init__(
        self,
        reactor: Any,
        node: str,
        service: str | int | None,
        options: SocketOptions,
        inner: IStreamClientEndpoint | None = None,
    ) -> None:
        self._reactor = reactor
        self._inner = inner
        self._node = node
        self._service = service
        self._options = options
        self._header: ProxyHeader | None = None
        self._context_factory = (
            client_context_factory(options, node)
            if isinstance(options, TLSSocketOptions)
            else None
        )
        self._reloader = (
            None if self._context_factory is None else Reloader(reactor, self._context_factory)
        )

    def reload(self) -> Deferred[None]:
        """
        Read certificates, keys and trusted certificates again, for connections to come.

        Everything else is as for `ServerEndpoint.reload`.
        """
        return succeed(None) if self._reloader is None else self._reloader.reload()

    @property
    def options(self) -> SocketOptions:
        """The record that it was made with."""
        return self._options

    @property
    def node(self) -> str:
        """What it connects to: a name, an address or a path."""
        return self._node

    @property
    def place(self) -> str:
        """Node and service, for log lines."""
        return _where(self._node, self._service, self._inner)

    def watch_files(self, seconds: float) -> FileWatch | None:
        """Do as `ServerEndpoint.watch_files`."""
        return _watch(self._reactor, self._reloader, seconds, self.place)

    def on_behalf_of(self, header: ProxyHeader) -> ClientEndpoint:
        """
        Return an endpoint that connects as this one does, and sends *header* first.

        For a proxy, which tells with it whose connection it passes on: an endpoint
        for each. Without it, the PROXY header has the connection's own addresses.

        Raises:
            TypeError: *header* is no `ProxyHeader`.
            ValueError: The options have no `proxy_protocol`, or that version
                cannot tell what is in *header*.
        """
        check_header(self._options, header)
        other = copy(self)
        other._header = header
        return other

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """
        Connect, and build a protocol when the connection stands.

        Args:
            protocolFactory: Builds the protocol. If it negotiates protocols
                (``IProtocolNegotiationFactory``), they are offered through ALPN.

        Returns:
            The protocol, connected; on TLS after the verified handshake.

        Errors:
            NoProtocol: The factory built none; the connection is closed.
            HostNotFoundError, SocketConnectionError, TLSHandshakeError,
            CertificateVerificationError: As `make_client_tls_socket`.
            Anything that the inner endpoint fails with, if there is one.

        Cancelling:
            Fails with `CancelledError` at every stage, and leaves nothing behind.
        """
        if self._inner is not None:
            assert isinstance(self._options, TLSSocketOptions)
            assert self._context_factory is not None
            return connect_over(
                self._reactor, self._inner, protocolFactory, self._options, self._context_factory
            )
        factory: Any = protocolFactory
        protocols = negotiated_protocols(factory)
        start_factory(factory)

        def connected(established: Established) -> Any:
            return self._attach(established, factory)

        def failed(failure: Failure) -> Failure:
            stop_factory(factory)
            return failure

        return connect(
            self._reactor,
            self._node,
            self._service,
            self._options,
            self._context_factory,
            protocols,
            self._header,
        ).addCallbacks(connected, failed)

    def _attach(self, established: Established, factory: Any) -> Any:
        sock = established.descriptor.sock
        try:
            peer = to_twisted_address(SocketAddress.of(sock.family, _peer_name(established)))
            protocol = factory.buildProtocol(peer)
            if protocol is None:
                raise NoProtocol  # noqa: TRY301 - the clean-up below is for it, too
            transport = make_transport(
                self._reactor, established, self._options, peer, is_client=True
            )
        except BaseException:
            established.close()
            stop_factory(factory)
            raise
        transport.attach(protocol, lambda: stop_factory(factory))
        return protocol

    def __repr__(self) -> str:
        where = _where(self._node, self._service, self._inner)
        told = "" if self._header is None else f" on behalf of {self._header.source}"
        return f"<ClientEndpoint {where}{told} {self._options!r}>"


def _peer_name(established: Established) -> Any:
    """
    Return the native address of the peer.

    Raises:
        SocketError: It has reset the connection already, as a TLS 1.3 server may that
            misses a certificate: the client's handshake is over when it finds out. The
            error is what it has said, if it has.
    """
    try:
        return established.descriptor.sock.getpeername()
    except OSError:
        # Raises what the peer has said; whatever else there is to read is lost.
        established.descriptor.try_recv(1)
        raise SocketConnectionLostError from None


def _watch(
    reactor: Any, reloader: Reloader | None, seconds: float, where: str
) -> FileWatch | None:
    return None if reloader is None else FileWatch(reactor, reloader, seconds, where)


def _where(node: str | None, service: str | int | None, inner: object) -> str:
    if inner is not None:
        return f"over {inner!r}" if node is None else f"{node!r} over {inner!r}"
    host = "*" if node is None else repr(node)
    return host if service is None else f"{host} {service!r}"


@implementer(IStreamServerEndpoint)
class ServerEndpoint:
    """Where to listen, and how. Made by `server_endpoint`."""

    def __init__(
        self,
        reactor: Any,
        node: str | None,
        service: str | int | None,
        options: SocketOptions | tuple[ServerTLSSocketOptions, ...],
        reload_every: timedelta | None = None,
        inner: IStreamServerEndpoint | None = None,
    ) -> None:
        self._reactor = reactor
        self._inner = inner
        self._node = node
        self._service = service
        self._reload_every = reload_every
        self._context_factory: ServerContextFactory | None = None
        self._reloader: Reloader | None = None
        self._adopt: Callable[[], list[_socket.socket]] | None = None
        if isinstance(options, SocketOptions):
            self._options = options
        else:
            self._context_factory = server_context_factory(options)
            self._reloader = Reloader(reactor, self._context_factory)
            self._options = options[0]

    @property
    def options(self) -> SocketOptions:
        """The record that it was made with; of several, the first."""
        return self._options

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        """
        Listen, and build a protocol for each connection.

        Args:
            protocolFactory: Builds the protocols; one that builds `None` drops
                the connection. If it negotiates protocols
                (``IProtocolNegotiationFactory``), ALPN chooses among them.

        Returns:
            An ``IListeningPort``.

        Errors:
            HostNotFoundError: There is no such node or service.
            SocketBindError: The address is taken, or not ours to bind.
            Anything that the inner endpoint fails with, if there is one.

        Cancelling:
            Fails with `CancelledError`; nothing is bound. With an inner endpoint,
            as that one.
        """
        if self._inner is not None:
            assert isinstance(self._options, TLSSocketOptions)
            assert self._context_factory is not None
            return listen_over(
                self._reactor, self._inner, protocolFactory, self._options, self._context_factory
            ).addCallback(self._watched)

        def bound(sockets: list[_socket.socket]) -> Any:
            port = ListeningPort(
                self._reactor,
                sockets,
                protocolFactory,
                self._options,
                self._context_factory,
                adopted=self._adopt is not None,
            )
            port.startListening()
            return self._watched(port)

        return self.bind().addCallback(bound)

    def bind(
        self, service: str | int | None = None, *, shared: bool = False
    ) -> Deferred[list[_socket.socket]]:
        """
        Listen without taking connections, for `adopting` elsewhere.

        Args:
            service: Instead of the endpoint's own: the port that another call has got.
            shared: Set ``SO_REUSEPORT``, so that several can be bound to one port.

        Returns:
            The non-blocking, listening sockets, at least one; the caller's to close.

        Errors:
            HostNotFoundError: There is no such node or service.
            SocketBindError: The address is taken, or not ours to bind.

        Raises:
            ValueError: There is an inner endpoint, which has sockets of its own.

        Cancelling:
            Fails with `CancelledError`; nothing is bound.
        """
        if self._inner is not None:
            raise ValueError(f"endpoint={self._inner!r} listens by itself")
        if self._adopt is not None:
            return maybeDeferred(self._adopt)
        return listen(
            self._reactor,
            self._node,
            self._service if service is None else service,
            self._options.replace(reuse_port=True) if shared else self._options,
            every_address=True,
        )

    def adopting(self, sockets: Callable[[], list[_socket.socket]]) -> ServerEndpoint:
        """
        Return an endpoint that listens as this does, on sockets that are there already.

        It neither binds anything nor removes a path, and shares certificates and
        their reload with this one.

        Args:
            sockets: Called by `listen`, and returns non-blocking, listening stream
                sockets, which the port owns then.
        """
        other = copy(self)
        other._adopt = sockets
        return other

    @property
    def layered(self) -> bool:
        """Whether it listens with an inner endpoint, on no socket of its own."""
        return self._inner is not None

    @property
    def adopted(self) -> Callable[[], list[_socket.socket]] | None:
        """What gives the sockets to `adopting`, or `None` where it binds its own."""
        return self._adopt

    @property
    def node(self) -> str | None:
        """What it binds; `None` for every interface."""
        return self._node

    @property
    def place(self) -> str:
        """Node and service, for log lines."""
        return _where(self._node, self._service, self._inner)

    def watch_files(self, seconds: float) -> FileWatch | None:
        """
        Look every *seconds* whether files have changed, and `reload` them then.

        Returns:
            What goes on until it is stopped, or `None`: a plain endpoint has no files.
        """
        return _watch(self._reactor, self._reloader, seconds, self.place)

    def _watched(self, port: Any) -> Any:
        if self._reload_every is not None and self._reloader is not None:
            port.watch_files(self._reloader, self._reload_every.total_seconds())
        return port

    def reload(self) -> Deferred[None]:
        """
        Read certificates, keys and trusted certificates again, for connections to come.

        A whole new context is built, in another thread, before it replaces the
        old one; connections that there are go on. Plain endpoints have nothing
        to read.

        Returns:
            `None`, when the new certificates are in use.

        Errors:
            ValueError: A file cannot be used; the old certificates stay.

        Cancelling:
            Fails with `CancelledError`; the old certificates stay.
        """
        return succeed(None) if self._reloader is None else self._reloader.reload()

    def __repr__(self) -> str:
        several = self._context_factory.records if self._context_factory else (self._options,)
        shown = ", ".join(repr(record) for record in several)
        where = _where(self._node, self._service, self._inner)
        return f"<ServerEndpoint {where} {shown}>"


def client_endpoint(
    reactor: Any,
    node: str,
    service: str | int | None,
    options: SocketOptions | None = None,
    *,
    endpoint: IStreamClientEndpoint | None = None,
) -> ClientEndpoint:
    """
    Make a client endpoint, plain or TLS by the class of *options*.

    Args:
        reactor: Provides ``IReactorFDSet``, unless there is an *endpoint*.
        node: A host name, a numeric address, or (``AF_UNIX``) a path.
        service: A service's name or a port; `None` with ``AF_UNIX``.
        options: A `SocketOptions` or `TLSSocketOptions`, whose files are read now;
            plain defaults if `None`.
        endpoint: Makes the connections that TLS is spoken on. *node* is the name
            to verify then, *service* is `None`, and *options* are a
            `TLSSocketOptions` that says nothing of sockets and addresses.

    Returns:
        An ``IStreamClientEndpoint``, for any number of connections.

    Raises:
        TypeError: *options* is a server's record, or no record; or *reactor*
            cannot wait for sockets; or *endpoint* is none, or *options* are
            plain with it.
        ValueError: *node* or *service* is none; ``AI_PASSIVE`` is set;
            *service* or an option contradicts *endpoint*; *non_blocking* or
            *handshake* is `False`; *proxy_protocol* is ``"any"``; or a
            certificate, key or name cannot be used.
    """
    record = require_record(
        SocketOptions() if options is None else options,
        SocketOptions,
        ServerTLSSocketOptions,
        "for a server use server_endpoint",
    )
    require_reactor_mode(record)
    require_client_flags(record)
    if endpoint is not None:
        check_inner_client(endpoint, node, service, record)
        return ClientEndpoint(reactor, node, None, record, endpoint)
    check_target(node, service, record)
    require_stream(record, "endpoints are")
    poller_for(reactor)
    return ClientEndpoint(reactor, node, service, record)


def server_endpoint(
    reactor: Any,
    node: str | None,
    service: str | int | None,
    options: SocketOptions | Iterable[ServerTLSSocketOptions] | None = None,
    *,
    reload_every: timedelta | None = None,
    endpoint: IStreamServerEndpoint | None = None,
) -> ServerEndpoint:
    """
    Make a server endpoint, plain or TLS by the class of *options*.

    Args:
        reactor: Provides ``IReactorFDSet``, unless there is an *endpoint*.
        node: A name (all its addresses are bound, on one port), a numeric
            address, a path, or `None` for every interface, IPv4 and IPv6.
        service: A service's name or a port; 0 lets the kernel choose.
        options: A `SocketOptions`, a `ServerTLSSocketOptions`, or several of
            those, chosen by the name that a client asks for. Their files are
            read now. Plain defaults if `None`.
        reload_every: How often to look whether those files have changed, and to
            `ServerEndpoint.reload` them then; never if `None`.
        endpoint: Listens for the connections that TLS is spoken on. *node* and
            *service* are `None` then, and *options* are TLS records that say
            nothing of sockets and addresses.

    Returns:
        An ``IStreamServerEndpoint``.

    Raises:
        TypeError: *options* is a TLS client's record, or no record; or *reactor*
            cannot wait for sockets; or *endpoint* is none, or *options* are
            plain with it.
        ValueError: *node* or *service* is none; *non_blocking* or *handshake* is
            `False`; there is no certificate or key, or it cannot be used; the
            records cannot be served together; or *node*, *service* or an option
            contradicts *endpoint*.
    """
    use = "for a client use client_endpoint"
    records: SocketOptions | tuple[ServerTLSSocketOptions, ...]
    if options is None or isinstance(options, SocketOptions):
        plain = SocketOptions() if options is None else options
        records = plain
        if isinstance(plain, TLSSocketOptions):
            records = (require_record(plain, ServerTLSSocketOptions, None, use),)
    else:
        records = tuple(
            require_record(record, ServerTLSSocketOptions, None, use) for record in options
        )
        if not records:
            raise ValueError("options must hold at least one record")
    first = records if isinstance(records, SocketOptions) else records[0]
    require_reactor_mode(first)
    interval = optional_duration(reload_every, "reload_every")
    if interval is not None and isinstance(records, SocketOptions):
        raise ValueError(f"reload_every={reload_every!r} needs TLS: a plain server has no files")
    if endpoint is not None:
        check_inner_server(endpoint, node, service, first)
        return ServerEndpoint(reactor, None, None, records, interval, endpoint)
    check_listening(node, service, first)
    require_stream(first, "endpoints are")
    poller_for(reactor)
    return ServerEndpoint(reactor, node, service, records, interval)
