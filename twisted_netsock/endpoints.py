"""
Twisted endpoints over the sockets of this package.

`client_endpoint` and `server_endpoint` take a node, a service and an option
record, whose class chooses plain or TLS. Their transports shake hands before
``connectionMade``, and all their waits have limits.
"""

from __future__ import annotations

import contextlib
import os
import socket as _socket
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, Final

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import NoProtocol
from twisted.internet.interfaces import (
    IAddress,
    IListeningPort,
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ._validation import optional_duration
from .accepting import Acceptor
from .addresses import SocketAddress, to_twisted_address
from .client_contexts import client_context_factory
from .connecting import Established, check_listening, check_target, connect, listen
from .contexts import negotiated_protocols
from .descriptors import Descriptor, PlainDescriptor
from .errors import SocketClosedError
from .handshakes import ServerHandshakes
from .options import (
    ServerTLSSocketOptions,
    SocketOptions,
    TLSSocketOptions,
    require_client_flags,
    require_reactor_mode,
    require_record,
    require_stream,
)
from .readiness import Watch, poller_for
from .reloading import FileWatch, Reloader
from .server_contexts import ServerContextFactory, server_context_factory
from .tls import TLSDescriptor, say_goodbye
from .transports import TLSTransport, Transport

__all__ = ["ClientEndpoint", "ServerEndpoint", "client_endpoint", "server_endpoint"]

_MOST_HANDSHAKES: Final = 1024

_log = Logger()


def _transport(
    reactor: Any,
    watch: Watch,
    descriptor: Descriptor,
    options: SocketOptions,
    peer: IAddress,
    *,
    is_client: bool,
) -> Transport:
    """Return a transport on *descriptor* that the poller keeps until it is lost."""
    sock = descriptor.sock
    host = to_twisted_address(SocketAddress.of(sock.family, sock.getsockname()))
    kind = TLSTransport if isinstance(descriptor, TLSDescriptor) else Transport
    watch.keep()
    return kind(reactor, watch, descriptor, options, host, peer, is_client=is_client)


@implementer(IStreamClientEndpoint)
class ClientEndpoint:
    """Where to connect to, and how. Made by `client_endpoint`."""

    def __init__(
        self, reactor: Any, node: str, service: str | int | None, options: SocketOptions
    ) -> None:
        self._reactor = reactor
        self._node = node
        self._service = service
        self._options = options
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

        Cancelling:
            Fails with `CancelledError` at every stage, and leaves nothing behind.
        """
        factory: Any = protocolFactory
        protocols = negotiated_protocols(factory)
        _start(factory)

        def connected(established: Established) -> Any:
            return self._attach(established, factory)

        def failed(failure: Failure) -> Failure:
            _stop(factory)
            return failure

        return connect(
            self._reactor,
            self._node,
            self._service,
            self._options,
            self._context_factory,
            protocols,
        ).addCallbacks(connected, failed)

    def _attach(self, established: Established, factory: Any) -> Any:
        sock = established.descriptor.sock
        try:
            peer = to_twisted_address(SocketAddress.of(sock.family, sock.getpeername()))
            protocol = factory.buildProtocol(peer)
            if protocol is None:
                raise NoProtocol  # noqa: TRY301 - the clean-up below is for it, too
            transport = _transport(
                self._reactor,
                established.watch,
                established.descriptor,
                self._options,
                peer,
                is_client=True,
            )
        except BaseException:
            established.close()
            _stop(factory)
            raise
        transport.attach(protocol, lambda: _stop(factory))
        return protocol

    def __repr__(self) -> str:
        return f"<ClientEndpoint {_where(self._node, self._service)} {self._options!r}>"


def _where(node: str | None, service: str | int | None) -> str:
    host = "*" if node is None else repr(node)
    return host if service is None else f"{host} {service!r}"


def _start(factory: Any) -> None:
    start = getattr(factory, "doStart", None)
    if start is not None:
        start()


def _stop(factory: Any) -> None:
    stop = getattr(factory, "doStop", None)
    if stop is not None:
        stop()


@implementer(IListeningPort)
class _Port:
    """What a server endpoint listens on: one descriptor, or one for each address."""

    def __init__(
        self,
        reactor: Any,
        sockets: list[_socket.socket],
        factory: Any,
        options: SocketOptions,
        context_factory: ServerContextFactory | None,
    ) -> None:
        self._reactor = reactor
        self._sockets = sockets
        self._factory = factory
        self._options = options
        self._protocols = negotiated_protocols(factory)
        self._handshakes = (
            None
            if context_factory is None
            else ServerHandshakes(
                reactor, context_factory, self._on_handshake, self._on_room, _MOST_HANDSHAKES
            )
        )
        self._host = SocketAddress.of(sockets[0].family, sockets[0].getsockname())
        self._listening = False
        self._watches: list[Watch] = []
        self._acceptors: list[Acceptor] = []
        self._file_watch: FileWatch | None = None

    def startListening(self) -> None:
        """Take connections; done by the endpoint already."""
        if self._listening:
            return
        if not self._sockets:
            raise SocketClosedError(strerror="A port that has stopped cannot start again")
        poller = poller_for(self._reactor)
        for sock in self._sockets:
            watch = poller.watch(sock.fileno())
            watch.keep()
            acceptor = Acceptor(
                self._reactor, watch, sock, self._on_connection, self._on_acceptor_lost
            )
            self._watches.append(watch)
            self._acceptors.append(acceptor)
        self._listening = True
        _start(self._factory)
        _log.info(
            "{factory} listening on {address}", factory=self._factory, address=str(self._host)
        )
        for acceptor in self._acceptors:
            acceptor.start()

    def _on_connection(self, connection: _socket.socket, peer: SocketAddress) -> None:
        if self._handshakes is None:
            watch = poller_for(self._reactor).watch(connection.fileno())
            self._serve(PlainDescriptor(connection), watch, peer)
            return
        try:
            self._handshakes.begin(connection, peer, self._protocols)
        except Exception:  # noqa: BLE001 - it costs this connection and no other
            _log.failure("a new connection could not be served")
        if self._handshakes.full:
            for acceptor in self._acceptors:
                acceptor.stop()

    def _on_room(self) -> None:
        for acceptor in self._acceptors:
            acceptor.start()

    def _on_handshake(self, descriptor: TLSDescriptor, watch: Watch, peer: SocketAddress) -> None:
        self._serve(descriptor, watch, peer)

    def _serve(self, descriptor: Descriptor, watch: Watch, peer: SocketAddress) -> None:
        """Build a protocol for a connection, or drop the connection."""
        established = Established(descriptor, watch)
        address = to_twisted_address(peer)
        try:
            protocol = self._factory.buildProtocol(address)
            if protocol is None:
                if isinstance(descriptor, TLSDescriptor):
                    say_goodbye(self._reactor, watch, descriptor)
                else:
                    established.close()
                return
            transport = _transport(
                self._reactor, watch, descriptor, self._options, address, is_client=False
            )
        except Exception:  # noqa: BLE001 - it costs this connection and no other
            _log.failure("a new connection could not be served")
            established.close()
            return
        transport.attach(protocol)

    def watch_files(self, reloader: Reloader, seconds: float) -> None:
        """Look every *seconds* whether the files of *reloader* have changed, while listening."""
        self._file_watch = FileWatch(self._reactor, reloader, seconds, str(self._host))

    def _on_acceptor_lost(self, reason: Exception) -> None:
        if self._listening:
            _log.info("{address} listens no more: {reason}", address=self._host, reason=reason)
            self.stopListening()

    def stopListening(self) -> Deferred[None]:
        """
        Take no more connections; those that there are live on.

        Returns:
            `None`, already: the port is free.
        """
        if not self._listening:
            return succeed(None)
        self._listening = False
        for acceptor, watch, sock in zip(
            self._acceptors, self._watches, self._sockets, strict=True
        ):
            acceptor.stop()
            watch.close()
            sock.close()
        self._sockets = []
        self._acceptors = []
        self._watches = []
        if self._file_watch is not None:
            self._file_watch.stop()
        if self._handshakes is not None:
            self._handshakes.close()
        path = self._host.host
        if self._host.family == _socket.AF_UNIX and path and not path.startswith("\0"):
            with contextlib.suppress(OSError):
                os.unlink(path)
        _stop(self._factory)
        return succeed(None)

    def loseConnection(self) -> None:
        """Do as `stopListening`."""
        self.stopListening()

    def getHost(self) -> Any:
        """Return the address that is listened on, of several the first."""
        return to_twisted_address(self._host)

    def __repr__(self) -> str:
        state = "listening on" if self._listening else "stopped, was on"
        return f"<port {state} {self._host} for {self._factory!r}>"


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
    ) -> None:
        self._reactor = reactor
        self._node = node
        self._service = service
        self._reload_every = reload_every
        self._context_factory: ServerContextFactory | None = None
        self._reloader: Reloader | None = None
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

        Cancelling:
            Fails with `CancelledError`; nothing is bound.
        """

        def bound(sockets: list[_socket.socket]) -> Any:
            port = _Port(
                self._reactor, sockets, protocolFactory, self._options, self._context_factory
            )
            port.startListening()
            if self._reload_every is not None and self._reloader is not None:
                port.watch_files(self._reloader, self._reload_every.total_seconds())
            return port

        return listen(
            self._reactor, self._node, self._service, self._options, every_address=True
        ).addCallback(bound)

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
        return f"<ServerEndpoint {_where(self._node, self._service)} {shown}>"


def client_endpoint(
    reactor: Any, node: str, service: str | int | None, options: SocketOptions | None = None
) -> ClientEndpoint:
    """
    Make a client endpoint, plain or TLS by the class of *options*.

    Args:
        reactor: Provides ``IReactorFDSet``.
        node: A host name, a numeric address, or (``AF_UNIX``) a path.
        service: A service's name or a port; `None` with ``AF_UNIX``.
        options: A `SocketOptions` or `TLSSocketOptions`, whose files are read now;
            plain defaults if `None`.

    Returns:
        An ``IStreamClientEndpoint``, for any number of connections.

    Raises:
        TypeError: *options* is a server's record, or no record; or *reactor*
            cannot wait for sockets.
        ValueError: *node* or *service* is none; ``AI_PASSIVE`` is set;
            *non_blocking* or *handshake* is `False`; or a certificate, key or
            name cannot be used.
    """
    record = require_record(
        SocketOptions() if options is None else options,
        SocketOptions,
        ServerTLSSocketOptions,
        "for a server use server_endpoint",
    )
    require_reactor_mode(record)
    require_client_flags(record)
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
) -> ServerEndpoint:
    """
    Make a server endpoint, plain or TLS by the class of *options*.

    Args:
        reactor: Provides ``IReactorFDSet``.
        node: A name (all its addresses are bound, on one port), a numeric
            address, a path, or `None` for every interface, IPv4 and IPv6.
        service: A service's name or a port; 0 lets the kernel choose.
        options: A `SocketOptions`, a `ServerTLSSocketOptions`, or several of
            those, chosen by the name that a client asks for. Their files are
            read now. Plain defaults if `None`.
        reload_every: How often to look whether those files have changed, and to
            `ServerEndpoint.reload` them then; never if `None`.

    Returns:
        An ``IStreamServerEndpoint``.

    Raises:
        TypeError: *options* is a TLS client's record, or no record; or *reactor*
            cannot wait for sockets.
        ValueError: *node* or *service* is none; *non_blocking* or *handshake* is
            `False`; there is no certificate or key, or it cannot be used; or the
            records cannot be served together.
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
    check_listening(node, service, first)
    require_stream(first, "endpoints are")
    interval = optional_duration(reload_every, "reload_every")
    if interval is not None and isinstance(records, SocketOptions):
        raise ValueError(f"reload_every={reload_every!r} needs TLS: a plain server has no files")
    poller_for(reactor)
    return ServerEndpoint(reactor, node, service, records, interval)
