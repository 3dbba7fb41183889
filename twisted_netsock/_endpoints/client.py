"""
The client endpoint of Twisted over the sockets of this package.

Its transports perform the handshake before ``connectionMade``, and all their waits have limits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.error import NoProtocol
from twisted.internet.interfaces import IProtocol, IStreamClientEndpoint
from twisted.python.failure import Failure
from zope.interface import implementer

from .._certificates.expiry import Validity
from .._certificates.reload import FileWatch, Reloader, watch_files
from .._hostnames import numeric_service
from .._io.interfaces import Reactor, current_reactor
from .._io.poller import poller_for
from .._net.connect import connect, connect_over
from .._net.happy_eyeballs import Established
from .._net.inner import address_of
from .._net.open_socket import check_target
from .._proxy_protocol.header import ProxyHeader
from .._proxy_protocol.wire import check_header
from .._public import public_in
from .._tls.client import client_context_factory
from .._tls.context import negotiated_protocols
from ..addresses import SocketAddress, to_twisted_address
from ..errors import SocketConnectionLostError
from ..options import (
    ServerTLSSocketOptions,
    SocketOptions,
    TLSSocketOptions,
    require_client_flags,
    require_reactor_mode,
    require_record,
    require_stream,
)
from .factory import ProtocolFactory, log_prefix, place_of, start_factory, stop_factory
from .inner_port import check_inner_client
from .listening_port import make_transport
from .transport import Transport

__all__ = ["ClientEndpoint", "client_endpoint"]


@public_in("twisted_netsock")
@implementer(IStreamClientEndpoint)
class ClientEndpoint:
    """Where to connect to, and how. Made by `client_endpoint`."""

    def __init__(
        self,
        reactor: Reactor,
        node: str,
        service: str | int | None,
        options: SocketOptions,
        inner: IStreamClientEndpoint | None = None,
    ) -> None:
        self._reactor = reactor
        self._inner = inner
        self._node = node
        self._service = service
        port = None if service is None else numeric_service(service)
        self._service_or_port = service if port is None else port
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

    def validity(self) -> Iterator[Validity]:
        """Yield from when to when the certificates in use are valid; nothing without TLS."""
        return iter(()) if self._context_factory is None else self._context_factory.validity()

    @property
    def place(self) -> str:
        """Node and service, for log lines."""
        return place_of(self._node, self._service, self._inner)

    def watch_files(self, seconds: float) -> FileWatch | None:
        """Do as `ServerEndpoint.watch_files`."""
        return watch_files(self._reactor, self._reloader, seconds, self.place)

    def on_behalf_of(self, header: ProxyHeader) -> ClientEndpoint:
        """
        Return an endpoint that connects as this one does, and sends *header* first.

        For a proxy, which names with it whose connection it passes on: an endpoint
        for each. Without it, the PROXY header has the connection's own addresses.

        Raises:
            TypeError: *header* is no `ProxyHeader`.
            ValueError: The options have no `proxy_protocol`, or that version
                cannot hold what is in *header*.
        """
        check_header(self._options, header)
        other = copy(self)
        other._header = header
        return other

    def connect(self, protocolFactory: ProtocolFactory) -> Deferred[IProtocol]:
        """
        Connect, and build a protocol when the connection stands.

        Args:
            protocolFactory: Builds the protocol. If it negotiates protocols
                (``IProtocolNegotiationFactory``), they are offered through ALPN.

        Returns:
            The protocol, connected; on TLS after the verified handshake. As Twisted's
            endpoints do, it fires in a later iteration of the reactor, whatever happens
            at once.

        Errors:
            NoProtocol: The factory built none; the connection is closed.
            HostNotFoundError, SocketConnectionError, TLSHandshakeError,
            CertificateVerificationError: As `make_client_tls_socket`.
            Anything that the inner endpoint fails with, if there is one.

        Cancelling:
            Fails with `CancelledError` at every stage, and leaves nothing behind.
        """
        factory = protocolFactory
        in_use = True

        def stop() -> None:
            nonlocal in_use
            if in_use:
                in_use = False
                stop_factory(factory)

        def cancel(_: object) -> None:
            connecting.cancel()
            stop()

        def connected(established: Established) -> None:
            # The factory, or the protocol within `connectionMade`, may cancel all of it.
            transport, protocol = self._build(established, factory, result)
            transport.attach(protocol, stop)
            if result.called:
                transport.abortConnection()
            else:
                result.callback(protocol)

        def proceed() -> None:
            connecting.addCallback(connected).addErrback(failed)

        def failed(failure: Failure) -> None:
            stop()
            if not result.called:
                result.errback(failure)

        protocols = negotiated_protocols(factory)
        start_factory(factory)
        result: Deferred[IProtocol] = Deferred(cancel)
        connecting = (
            self._connect(protocols, at_once=False)
            if self._inner is None
            else self._connect_over(self._inner, factory, protocols)
        )
        # Callers of a Twisted endpoint rely on an iteration in between: they keep what `connect`
        # returns, and have a callback forget it.
        if connecting.called:
            self._reactor.callLater(0, proceed)
        else:
            proceed()
        return result

    def _connect_over(
        self, inner: IStreamClientEndpoint, factory: object, protocols: Sequence[bytes]
    ) -> Deferred[Established]:
        assert self._context_factory is not None
        prefix = f"{log_prefix(factory)} (TLS)"
        return Deferred.fromCoroutine(
            connect_over(self._reactor, inner, factory, self._context_factory, protocols, prefix)
        )

    def _connect(
        self, protocols: Sequence[bytes] = (), *, at_once: bool = True
    ) -> Deferred[Established]:
        return connect(
            self._reactor,
            self._node,
            self._service_or_port,
            self._options,
            self._context_factory,
            protocols,
            self._header,
            at_once=at_once,
        )

    def establish(self) -> Deferred[Established]:
        """
        Connect, for callers that use neither protocol nor transport.

        Returns:
            The connection, with the peer's address; it is the caller's to close.
            Unlike that of `connect` the Deferred may have fired already.

        Errors:
            As `connect`.

        Cancelling:
            As `connect`.
        """
        connecting = (
            self._connect() if self._inner is None else self._connect_over(self._inner, self, ())
        )
        return connecting.addCallback(_with_peer)

    def _build(
        self, established: Established, factory: ProtocolFactory, result: Deferred[IProtocol]
    ) -> tuple[Transport, IProtocol]:
        """Return a transport on *established* and its protocol, unless *result* is cancelled."""
        try:
            if result.called:
                raise CancelledError  # noqa: TRY301 - the clean-up below is for it, too
            inner = established.inner
            peer = inner.getPeer() if inner else to_twisted_address(_peer_of(established))
            protocol = factory.buildProtocol(peer)
            if result.called:
                raise CancelledError  # noqa: TRY301 - likewise, by the factory
            if protocol is None:
                raise NoProtocol  # noqa: TRY301 - likewise
            transport = make_transport(
                self._reactor, established, self._options, peer, is_client=True
            )
        except BaseException:
            established.close()
            raise
        return transport, protocol

    def __repr__(self) -> str:
        where = place_of(self._node, self._service, self._inner)
        on_behalf = "" if self._header is None else f" on behalf of {self._header.source}"
        return f"<ClientEndpoint {where}{on_behalf} {self._options!r}>"


def _peer_of(established: Established) -> SocketAddress:
    """
    Return the address of the peer.

    Raises:
        SocketError: It has reset the connection already, as a TLS 1.3 server may that
            misses a certificate: the client's handshake is over when it finds out. The
            error is what it has said, if it has.
    """
    if established.peer is not None:
        return established.peer
    if established.inner is not None:
        return address_of(established.inner.getPeer())
    try:
        return SocketAddress.named(established.descriptor.sock.getpeername())
    except OSError:
        # Raises what the peer has said; whatever else there is to read is lost.
        established.descriptor.try_recv(1)
        raise SocketConnectionLostError from None


def _with_peer(established: Established) -> Established:
    try:
        established.peer = _peer_of(established)
    except BaseException:
        established.close()
        raise
    return established


def client_endpoint(
    reactor: object,
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
        return ClientEndpoint(current_reactor(reactor), node, None, record, endpoint)
    check_target(node, service, record)
    require_stream(record, "endpoints are")
    poller_for(reactor)
    return ClientEndpoint(current_reactor(reactor), node, service, record)
