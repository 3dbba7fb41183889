"""
TLS over the connections of any other endpoint, on both sides.

`connect_over` and `listen_over` do what an endpoint's ``connect`` and ``listen``
do; each connection is a `twisted_netsock._endpoints.inner_connection.InnerConnection`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.error import (
    ConnectionAborted,
    ConnectionDone,
    ConnectionLost,
    NoProtocol,
)
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IListeningPort,
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from .._io.interfaces import Reactor
from .._text import FailureLog
from .._tls.client import ClientContextFactory
from .._tls.reload import FileWatch, Reloader
from .._tls.server import ServerContextFactory
from ..addresses import network_of
from ..errors import (
    SocketConnectionError,
    SocketConnectionLostError,
    SocketConnectionTimeoutError,
    SocketError,
)
from ..options import OF_SOCKETS, SocketOptions, TLSSocketOptions
from .factory import seconds, start_factory, stop_factory
from .inner_connection import InnerConnection, InnerConnectionFactory
from .listening_port import AdmissionLimit

__all__ = [
    "PortOverEndpoint",
    "check_inner_client",
    "check_inner_server",
    "connect_over",
    "listen_over",
]

_log = Logger()

MOST_HANDSHAKES: Final = 1024
"""
Handshakes at once. What an inner port has accepted cannot wait in the kernel, so more are
refused; mute peers hold a place for the whole `handshake_timeout`, so there are many.
"""

_LOST: Final = (ConnectionDone, ConnectionLost, ConnectionAborted)


def _check_options(options: SocketOptions) -> None:
    if not isinstance(options, TLSSocketOptions):
        raise TypeError(
            f"options={options!r}: endpoint is for TLS over another endpoint, and takes a TLS "
            "record; without TLS use that endpoint itself"
        )
    defaults = type(options)()
    for name in OF_SOCKETS:
        if getattr(options, name) != getattr(defaults, name):
            raise ValueError(
                f"{name}={getattr(options, name)!r} contradicts endpoint: "
                "that makes the connections"
            )


def check_inner_client(
    endpoint: object, node: str, service: str | int | None, options: SocketOptions
) -> None:
    """
    Refuse what cannot be a TLS client over *endpoint*.

    Raises:
        TypeError: *endpoint* is no client endpoint, *node* no name, or *options*
            no TLS record.
        ValueError: *service* or an option says how to connect, too.
    """
    if not IStreamClientEndpoint.providedBy(endpoint):
        raise TypeError(
            f"endpoint={endpoint!r} must provide IStreamClientEndpoint; "
            "of a string clientFromString makes one"
        )
    if not isinstance(node, str) or not node:
        raise TypeError(f"node={node!r} must be the name or address to verify")
    if service is not None:
        raise ValueError(f"service={service!r} contradicts endpoint: that makes the connections")
    _check_options(options)


def check_inner_server(
    endpoint: object,
    node: str | None,
    service: str | int | None,
    options: SocketOptions,
) -> None:
    """
    Refuse what cannot be a TLS server over *endpoint*.

    Raises:
        TypeError: *endpoint* is no server endpoint, or *options* no TLS record.
        ValueError: *node*, *service* or an option says where to listen, too.
    """
    if not IStreamServerEndpoint.providedBy(endpoint):
        raise TypeError(
            f"endpoint={endpoint!r} must provide IStreamServerEndpoint; "
            "of a string serverFromString makes one"
        )
    for name, value in (("node", node), ("service", service)):
        if value is not None:
            raise ValueError(f"{name}={value!r} contradicts endpoint: that listens")
    _check_options(options)


# Clients


class _ClientOverEndpoint(InnerConnectionFactory):
    """One attempt to connect through an inner endpoint."""

    is_client = True
    _connection: InnerConnection | None = None
    _inner: Deferred[IProtocol] | None = None
    _timer: IDelayedCall | None = None
    _over = False
    _stopped = False
    _result: Deferred[IProtocol]

    def connect(self, endpoint: IStreamClientEndpoint) -> Deferred[IProtocol]:
        """Connect through *endpoint*; see `connect_over`."""
        self._result = Deferred(self._cancel)
        start_factory(self.factory)
        limit = seconds(self.options.connection_timeout)
        if limit is not None:
            self._timer = self.reactor.callLater(limit, self._expire)
        ours: Any = self
        self._inner = maybeDeferred(endpoint.connect, ours)
        self._inner.addCallbacks(self._inner_connected, self._inner_failed)
        return self._result

    def _inner_connected(self, _: object) -> None:
        if self._connection is None and not self._over:
            why = "The inner endpoint connected, and built no protocol"
            self._end(Failure(SocketConnectionError(strerror=why)))

    def _inner_failed(self, error: Failure) -> None:
        if self._connection is None and not self._over:
            self._end(error)

    def _end(self, result: IProtocol | Failure) -> None:
        """Fire with *result*, a protocol or a failure."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if isinstance(result, Failure):
            self.gone(None)
        self._result.callback(result)

    def _give_up(self, error: Exception) -> None:
        """End what is under way; whatever comes of that is no result any more."""
        self._over = True
        if self._connection is not None:
            self._connection.end(error)
        elif self._inner is not None:
            self._inner.cancel()

    def _cancel(self, deferred: Deferred[IProtocol]) -> None:
        self._give_up(CancelledError())
        self._end(Failure(CancelledError()))

    def _expire(self) -> None:
        self._timer = None
        stage = "connect" if self._connection is None else "handshake"
        error = SocketConnectionTimeoutError(stage)
        if self._connection is None:
            self._give_up(error)
            self._end(Failure(error))
        else:
            self._connection.end(error)

    def doStart(self) -> None:
        """Do nothing: `connect` starts the factory behind."""

    def doStop(self) -> None:
        """Do nothing; see `gone`."""

    def began(self, connection: InnerConnection) -> bool:
        """Begin, unless it is too late."""
        if self._over or self._connection is not None:
            return False
        self._connection = connection
        return True

    def succeeded(self, connection: InnerConnection, protocol: Any) -> None:
        """Fire with the protocol, unless it has had this given up."""
        if not self._over:
            self._end(protocol)

    def failed(self, connection: InnerConnection, error: Failure) -> None:
        """Fail, unless that has happened."""
        if connection is self._connection and not self._over:
            self._end(_in_our_terms(error))

    def gone(self, connection: InnerConnection | None) -> None:
        """Stop the factory behind, once."""
        if not self._stopped:
            self._stopped = True
            stop_factory(self.factory)


def _in_our_terms(error: Failure) -> Failure:
    """Return the failure of a connection that was lost before its handshake was done."""
    if error.check(SocketError, NoProtocol) is None and error.check(*_LOST) is not None:
        why = "The connection was lost during the TLS handshake"
        return Failure(SocketConnectionLostError(strerror=why))
    return error


def connect_over(
    reactor: Reactor,
    endpoint: IStreamClientEndpoint,
    protocol_factory: IProtocolFactory,
    options: TLSSocketOptions,
    context_factory: ClientContextFactory,
) -> Deferred[IProtocol]:
    """
    Connect through *endpoint*, perform the handshake, and connect a protocol.

    Args:
        reactor: For the timeouts.
        endpoint: Makes the connection.
        protocol_factory: Builds the protocol, when the handshake is done.
        options: Everything else.
        context_factory: Makes the TLS connection.

    Returns:
        The protocol, connected to a verified peer.

    Errors:
        SocketConnectionTimeoutError: It took too long; its stage is
            ``"connect"`` or ``"handshake"``.
        CertificateVerificationError, TLSHandshakeError: TLS failed.
        SocketConnectionLostError: The peer went away during the handshake.
        NoProtocol: The factory built none.
        Anything that *endpoint* fails with.

    Cancelling:
        Fails with `CancelledError`, and ends what was under way.
    """
    attempt = _ClientOverEndpoint(reactor, protocol_factory, options, context_factory)
    return attempt.connect(endpoint)


# Servers


class _ServerOverEndpoint(InnerConnectionFactory):
    """Performs the handshakes with the clients of a port, a bounded number at a time."""

    is_client = False

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.admission: AdmissionLimit | None = None
        self._failures = FailureLog(self.reactor, _log)
        self._running: set[InnerConnection] = set()
        self._of_network: Counter[str | None] = Counter()
        self._admitted: dict[InnerConnection, IAddress] = {}
        self._closed = False
        self._full = False

    def doStart(self) -> None:
        """Start the factory behind."""
        start_factory(self.factory)

    def doStop(self) -> None:
        """Stop the factory behind."""
        stop_factory(self.factory)

    def began(self, connection: InnerConnection) -> bool:
        """Begin, unless the port has stopped or too many are under way."""
        if self._closed:
            return False
        network = network_of(getattr(connection.peer, "host", None))
        # What has come cannot be left to wait, so half is for other addresses than one.
        has_share = network is not None and self._of_network[network] >= max(
            1, MOST_HANDSHAKES // 2
        )
        if has_share or len(self._running) >= MOST_HANDSHAKES:
            if not self._full:
                self._full = True
                _log.warn(
                    "{count} handshakes are under way ({most} at most, and half of them of one "
                    "address): more are refused",
                    count=len(self._running),
                    most=MOST_HANDSHAKES,
                )
            return False
        if self.admission is not None:
            self.admission.entered()
            if not self.admission.admits(connection.peer):
                self.admission.left(None)
                return False
            self._admitted[connection] = connection.peer
        self._running.add(connection)
        self._of_network[network] += 1
        return True

    def succeeded(self, connection: InnerConnection, protocol: Any) -> None:
        """Make room for another handshake."""
        self._leave_handshake(connection)

    def failed(self, connection: InnerConnection, error: Failure) -> None:
        """Make room for another handshake, and say why this one failed."""
        if connection not in self._running:
            return
        self._leave_handshake(connection)
        self.gone(connection)
        if error.check(SocketError, *_LOST) is not None:
            self._failures.note(
                "TLS handshake with {peer} failed: {error}",
                peer=_shown(connection.peer),
                error=error.value,
            )
        elif error.check(NoProtocol) is None and not self._closed:
            _log.failure("a new connection could not be served", error)

    def _leave_handshake(self, connection: InnerConnection) -> None:
        network = network_of(getattr(connection.peer, "host", None))
        self._running.discard(connection)
        self._of_network[network] -= 1
        if not self._of_network[network]:
            del self._of_network[network]
        self._full = False

    def gone(self, connection: InnerConnection | None) -> None:
        """Report it to the admission limit; the factory behind lives as long as the port."""
        if self.admission is not None and connection in self._admitted:
            self.admission.left(self._admitted.pop(connection))

    def close(self) -> None:
        """End every connection whose handshake is not done."""
        self._closed = True
        for connection in list(self._running):
            connection.end(CancelledError())
        self._failures.end()


@implementer(IListeningPort)
class PortOverEndpoint:
    """The port of an inner endpoint, and the handshakes with its clients."""

    def __init__(self, port: IListeningPort, factory: _ServerOverEndpoint) -> None:
        self._port = port
        self._factory = factory
        self._file_watch: FileWatch | None = None

    def guard(self, admission: AdmissionLimit) -> None:
        """Have every connection to come reported to *admission*; see `ListeningPort.guard`."""
        self._factory.admission = admission

    def watch_files(self, reloader: Reloader, seconds: float) -> None:
        """Look every *seconds* whether the files of *reloader* have changed, while listening."""
        reactor = self._factory.reactor
        self._file_watch = FileWatch(reactor, reloader, seconds, str(self.getHost()))

    def startListening(self) -> None:
        """Do as the inner port."""
        self._port.startListening()

    def stopListening(self) -> Deferred[None]:
        """
        Take no more connections; those that there are live on.

        Returns:
            `None`, when the inner port has stopped.
        """
        self._factory.close()
        watch, self._file_watch = self._file_watch, None
        if watch is not None:
            watch.stop()
        stop: Callable[[], Any] = self._port.stopListening
        stopped: Deferred[None] = maybeDeferred(stop)
        return stopped

    def getHost(self) -> Any:
        """Return the address that is listened on."""
        return self._port.getHost()

    def __repr__(self) -> str:
        return f"<TLS over {self._port!r}>"


def _shown(address: IAddress) -> str:
    """Return an address as log lines have it."""
    if isinstance(address, IPv4Address | IPv6Address):
        host = f"[{address.host}]" if ":" in address.host else address.host
        return f"{host}:{address.port}"
    return str(address)


def listen_over(
    reactor: Reactor,
    endpoint: IStreamServerEndpoint,
    protocol_factory: IProtocolFactory,
    options: TLSSocketOptions,
    context_factory: ServerContextFactory,
) -> Deferred[IListeningPort]:
    """
    Listen with *endpoint*, and perform the handshake on each of its connections.

    Args:
        reactor: For the timeouts.
        endpoint: Listens.
        protocol_factory: Builds the protocols, each when its handshake is done.
        options: Everything else.
        context_factory: Makes the TLS connections.

    Returns:
        An ``IListeningPort``.

    Errors:
        Anything that *endpoint* fails with.

    Cancelling:
        As *endpoint* does.
    """
    factory = _ServerOverEndpoint(reactor, protocol_factory, options, context_factory)
    ours: Any = factory
    return maybeDeferred(endpoint.listen, ours).addCallback(
        lambda port: PortOverEndpoint(port, factory)
    )
