"""
``twist netsock relay``: connections from any server endpoint to any client endpoint.

The relay is written against Twisted's transport interface alone. Where a
transport is of this package, what arrives is passed on as a view of the shared
buffer, from descriptor to descriptor without a copy.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, ClassVar

from twisted.application.service import IService, Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IAddress,
    IHalfCloseableProtocol,
    IListeningPort,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger
from twisted.python import usage
from twisted.python.failure import Failure
from zope.interface import implementer

from ..transports import IViewProtocol, Transport

__all__ = ["RelayFactory", "RelayOptions", "RelayService", "make_relay"]

_log = Logger()


@implementer(IHalfCloseableProtocol, IViewProtocol)
class _Side(Protocol):
    """One of the two connections of a relay: passes on to the other what arrives."""

    def __init__(self) -> None:
        self.other: _Side | None = None
        self.lost = False
        self._write: Callable[[Any], None] | None = None
        self._views = False

    def join(self, other: _Side) -> None:
        """Pass on to *other*, whose queue paces this side."""
        self.other = other
        transport: Any = other.transport
        self._write = transport.write
        self._views = isinstance(transport, Transport)
        # IPushProducer is what every stream transport of Twisted provides.
        transport.registerProducer(self.transport, True)

    def view_received(self, view: memoryview) -> None:
        """Pass a view of the shared buffer on: Twisted's own transports need a copy."""
        if self._write is not None:
            self._write(view if self._views else bytes(view))

    def dataReceived(self, data: bytes) -> None:
        if self._write is not None:
            self._write(data)

    def readConnectionLost(self) -> None:
        """Pass the end of this stream on, and go on with the other direction."""
        other = self.other
        if other is None or other.lost:
            return
        transport: Any = other.transport
        transport.unregisterProducer()
        # TLS through Twisted's own transport cannot be half-closed.
        half_close = getattr(transport, "loseWriteConnection", None) or transport.loseConnection
        half_close()

    def writeConnectionLost(self) -> None:
        """Do nothing: the other direction goes on."""

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        self.lost = True
        other = self.other
        self.other = self._write = None
        if other is None or other.lost:
            return
        transport: Any = other.transport
        transport.unregisterProducer()
        if reason.check(ConnectionDone) is not None:
            transport.loseConnection()
        else:
            # A stream that was cut off must not look complete at the other end.
            transport.abortConnection()


class _Back(_Side):
    """The connection to the backend."""


class _Front(_Side):
    """The connection of a client, which waits until the backend is connected."""

    def __init__(self, backend: IStreamClientEndpoint, connections: set[_Front]) -> None:
        super().__init__()
        self._backend = backend
        self._connections = connections
        self._connecting: Deferred[Any] | None = None

    def connectionMade(self) -> None:
        self._connections.add(self)
        transport: Any = self.transport
        transport.pauseProducing()
        factory = Factory.forProtocol(_Back)
        factory.noisy = False
        self._connecting = self._backend.connect(factory)
        self._connecting.addCallbacks(self._connected, self._refused)

    def _connected(self, back: _Side) -> None:
        self._connecting = None
        transport: Any = self.transport
        self.join(back)
        back.join(self)
        transport.resumeProducing()

    def _refused(self, failure: Failure) -> None:
        self._connecting = None
        if self.lost:
            return
        transport: Any = self.transport
        if failure.check(CancelledError) is None:
            _log.error(
                "cannot connect {client} to {backend}: {error}",
                client=transport.getPeer(),
                backend=self._backend,
                error=str(failure.value),
            )
        transport.abortConnection()

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        self._connections.discard(self)
        super().connectionLost(reason)
        if self._connecting is not None:
            self._connecting.cancel()


class RelayFactory(Factory):
    """
    Relays each connection that it is given to *backend*.

    Attributes:
        connections: The clients' connections, now.
    """

    noisy = False

    def __init__(self, backend: IStreamClientEndpoint) -> None:
        self._backend = backend
        self.connections: set[_Front] = set()

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        """Return the protocol of one client."""
        return _Front(self._backend, self.connections)

    def abort(self) -> None:
        """End every connection at once."""
        for front in list(self.connections):
            transport: Any = front.transport
            transport.abortConnection()


class RelayService(Service):
    """Listens while it runs, and relays."""

    def __init__(
        self,
        reactor: Any,
        listen: IStreamServerEndpoint,
        to: IStreamClientEndpoint,
        started: Callable[[Any], None] | None = None,
    ) -> None:
        """
        Relay from *listen* to *to*.

        Args:
            reactor: Stopped if it is impossible to listen.
            listen: Where clients come from.
            to: Where each of them is connected to.
            started: Called with the port's address.
        """
        self._reactor = reactor
        self._endpoint = listen
        self._factory = RelayFactory(to)
        self._to = to
        self._started = started
        self._listening: Deferred[Any] | None = None
        self._port: IListeningPort | None = None

    def startService(self) -> None:
        """Begin to listen."""
        super().startService()
        self._listening = self._endpoint.listen(self._factory)
        self._listening.addCallbacks(self._on_port, self._on_failure)

    def _on_port(self, port: IListeningPort) -> None:
        self._listening = None
        self._port = port
        _log.info("relaying from {host} to {to}", host=port.getHost(), to=self._to)
        if self._started is not None:
            self._started(port.getHost())

    def _on_failure(self, failure: Failure) -> None:
        self._listening = None
        if failure.check(CancelledError) is None:
            _log.critical("cannot listen: {error}", error=str(failure.value))
            self._reactor.callWhenRunning(self._reactor.stop)

    def stopService(self) -> Any:
        """Stop listening, and end the connections that there are."""
        super().stopService()
        if self._listening is not None:
            self._listening.cancel()
        port, self._port = self._port, None
        self._factory.abort()
        return None if port is None else port.stopListening()


class RelayOptions(usage.Options):
    """The options of ``twist netsock relay``."""

    synopsis = "Usage: twist netsock relay [--listen ENDPOINT --to ENDPOINT]"
    longdesc = (
        "Relay every connection from one endpoint to another, both ways. Any endpoint strings "
        "will do: netsock-tls:8443:certificates=both.pem terminates TLS, "
        "netsock-tls:example.com:443 originates it. Without options, a demonstration: TLS on "
        "loopback with a certificate made in memory, in front of a small web server."
    )
    optParameters: ClassVar[Any] = [
        ["listen", None, None, "The server endpoint that clients connect to."],
        ["to", None, None, "The client endpoint that each of them is relayed to."],
    ]

    def postOptions(self) -> None:
        """Make the endpoints, so that a mistake is told before anything runs."""
        from twisted.internet import reactor

        if (self["listen"] is None) is not (self["to"] is None):
            missing = "listen" if self["listen"] is None else "to"
            raise usage.UsageError(f"--{missing} is missing; give both, or neither to try it out")
        if self["listen"] is not None:
            self["listen"] = _endpoint(serverFromString, reactor, "listen", self["listen"])
            self["to"] = _endpoint(clientFromString, reactor, "to", self["to"])


def _endpoint(make: Any, reactor: Any, option: str, text: str) -> Any:
    """Make an endpoint of what the user wrote, or say what is wrong with it."""
    try:
        return make(reactor, text)
    except Exception as error:  # noqa: BLE001 - parsers of others raise what they like
        raise usage.UsageError(f"--{option} {text}: {error}") from None


def make_relay(options: Any, reactor: Any) -> IService:
    """Return the relay's service, or the demonstration's without endpoints."""
    if options["listen"] is None:
        from .demo import make_demonstration

        return make_demonstration(reactor, sys.stdout)
    return RelayService(reactor, options["listen"], options["to"])
