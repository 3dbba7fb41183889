"""
``twist netsock relay``: connections from any server endpoint to any client endpoint.

The relay is written against Twisted's transport interface alone. Where a
transport is of this package, what arrives is passed on as a view of the shared
buffer, from descriptor to descriptor without a copy.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, ClassVar, Final

import attrs
from twisted.application.service import IService
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IAddress,
    IHalfCloseableProtocol,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger
from twisted.python import usage
from twisted.python.failure import Failure
from zope.interface import implementer

from ..endpoints import ClientEndpoint
from ..proxy_headers import ProxyHeader
from ..transports import IViewProtocol, Transport
from .serving import ListeningService, end_stream, endpoint_option, fail_at_exit, written

__all__ = ["RelayFactory", "RelayOptions", "RelayService", "make_relay"]

_EARLY_LIMIT: Final = 64 * 1024
"""Bytes of a client that wait for its backend to be connected."""

_log = Logger()


@implementer(IHalfCloseableProtocol, IViewProtocol)
class _Side(Protocol):
    """One of the two connections of a relay: passes on to the other what arrives."""

    def __init__(self, sides: set[_Side]) -> None:
        self.other: _Side | None = None
        self.lost = False
        self.ended = False
        self._write_ended = False
        self._sides = sides
        self._write: Callable[[Any], None] | None = None
        self._takes_views = False

    def connectionMade(self) -> None:
        self._sides.add(self)

    def join(self, other: _Side) -> None:
        """Pass on to *other*, whose queue paces this side."""
        self.other = other
        transport: Any = other.transport
        self._write = transport.write
        self._takes_views = isinstance(transport, Transport)
        # IPushProducer is what every stream transport of Twisted provides.
        transport.registerProducer(self.transport, True)

    def view_received(self, view: memoryview) -> None:
        """Pass a view of the shared buffer on: Twisted's own transports need a copy."""
        if self._write is not None:
            self._write(view if self._takes_views else bytes(view))

    def dataReceived(self, data: bytes) -> None:
        if self._write is not None:
            self._write(data)

    def readConnectionLost(self) -> None:
        """Pass the end of this stream on, and go on with the other direction."""
        self.ended = True
        other = self.other
        if other is not None and not other.lost:
            end_stream(other.transport)
        self._close_if_over()

    def writeConnectionLost(self) -> None:
        """Go on with the other direction, if there still is one."""
        self._write_ended = True
        self._close_if_over()

    def _close_if_over(self) -> None:
        """Close the connection after both directions: Twisted's own transports stay open."""
        if self.ended and self._write_ended:
            transport: Any = self.transport
            transport.loseConnection()

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        self.lost = True
        self._sides.discard(self)
        other = self.other
        self.other = self._write = None
        if other is None or other.lost:
            return
        transport: Any = other.transport
        transport.unregisterProducer()
        if self.ended or reason.check(ConnectionDone) is not None:
            transport.loseConnection()
        else:
            # A stream that was cut off must not look complete at the other end.
            transport.abortConnection()


def _on_behalf_of(backend: IStreamClientEndpoint, transport: Any) -> IStreamClientEndpoint:
    """Return *backend*; if it sends a PROXY header, one that tells of *transport*'s client."""
    if not isinstance(backend, ClientEndpoint) or backend.options.proxy_protocol is None:
        return backend
    header: ProxyHeader | None = getattr(transport, "proxy_header", None)
    if header is None:
        try:
            header = ProxyHeader(transport.getPeer(), transport.getHost())
        except (TypeError, ValueError):
            # Twisted has endpoints whose addresses are no sockets'.
            header = ProxyHeader()
    elif backend.options.proxy_protocol == "v1":
        header = attrs.evolve(header, tlvs=(), checksum=False)
    return backend.on_behalf_of(header)


class _Front(_Side):
    """The connection of a client, whose first words wait until the backend is connected."""

    def __init__(self, backend: IStreamClientEndpoint, name: str, sides: set[_Side]) -> None:
        super().__init__(sides)
        self._backend = backend
        self._name = name
        self._connecting: Deferred[Any] | None = None
        self._early: list[bytes] = []
        self._early_size = 0

    def connectionMade(self) -> None:
        super().connectionMade()
        self._write = self._keep
        factory = _BackFactory(self._sides)
        backend = _on_behalf_of(self._backend, self.transport)
        self._connecting = backend.connect(factory)
        self._connecting.addCallbacks(self._connected, self._refused)

    def _keep(self, data: bytes | memoryview) -> None:
        """Keep what the client says, within bounds: reading tells when it goes away."""
        self._early.append(bytes(data))
        self._early_size += len(data)
        if self._early_size >= _EARLY_LIMIT:
            transport: Any = self.transport
            transport.pauseProducing()

    def _connected(self, back: _Side) -> None:
        self._connecting = None
        transport: Any = self.transport
        self.join(back)
        back.join(self)
        early, self._early = self._early, []
        transport.resumeProducing()
        if early:
            back_transport: Any = back.transport
            back_transport.write(b"".join(early))
        if self.ended:
            end_stream(back.transport)

    def _refused(self, failure: Failure) -> None:
        self._connecting = None
        if self.lost:
            return
        transport: Any = self.transport
        if failure.check(CancelledError) is None:
            _log.error(
                "cannot connect {client} to {backend}: {error}",
                client=written(transport.getPeer()),
                backend=self._name,
                error=str(failure.value),
            )
        transport.abortConnection()

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        super().connectionLost(reason)
        if self._connecting is not None:
            self._connecting.cancel()


class _BackFactory(Factory):
    """Builds the protocol of one connection to the backend."""

    noisy = False

    def __init__(self, sides: set[_Side]) -> None:
        self._sides = sides

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        """Return the other side of a client's connection."""
        return _Side(self._sides)


class RelayFactory(Factory):
    """Relays each connection that it is given to another endpoint."""

    noisy = False

    def __init__(self, backend: IStreamClientEndpoint, name: str | None = None) -> None:
        """Relay to *backend*, called *name* in the log."""
        self._backend = backend
        self._name = repr(backend) if name is None else name
        self._sides: set[_Side] = set()

    def __repr__(self) -> str:
        return f"<relay to {self._name}>"

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return sum(isinstance(side, _Front) for side in self._sides)

    @property
    def idle(self) -> bool:
        """Whether nobody is connected, neither a client nor to the backend."""
        return not self._sides

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        """Return the protocol of one client."""
        return _Front(self._backend, self._name, self._sides)

    def abort(self) -> None:
        """End every connection at once, by a reset."""
        for side in list(self._sides):
            transport: Any = side.transport
            transport.abortConnection()


class RelayService(ListeningService):
    """Listens while it runs, and relays."""

    def __init__(
        self,
        reactor: Any,
        listen: IStreamServerEndpoint,
        to: IStreamClientEndpoint,
        started: Callable[[Any], None] | None = None,
        *,
        name: str | None = None,
        failed: Callable[[], None] | None = None,
    ) -> None:
        """
        Relay from *listen* to *to*.

        Args:
            reactor: Stopped if it is impossible to listen.
            listen: Where clients come from.
            to: Where each of them is connected to.
            started: Called with the port's address.
            name: What *to* is called in the log.
            failed: Called if it is impossible to listen, before the reactor stops.
        """
        super().__init__(
            reactor,
            [listen],
            RelayFactory(to, name),
            what="relay",
            started=started,
            failed=failed,
        )
        self._to = repr(to) if name is None else name

    def announce(self, host: Any) -> None:
        """Tell the log where from and where to."""
        _log.info("relaying from {host} to {to}", host=written(host), to=self._to)


class RelayOptions(usage.Options):
    """The options of ``twist netsock relay``."""

    synopsis = "[--listen ENDPOINT --to ENDPOINT]"
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
            self["name"] = self["to"]
            self["listen"] = endpoint_option(serverFromString, reactor, "listen", self["listen"])
            self["to"] = endpoint_option(clientFromString, reactor, "to", self["to"])


def make_relay(options: Any, reactor: Any) -> IService:
    """Return the relay's service, or the demonstration's without endpoints."""
    if options["listen"] is None:
        from .demo import make_demonstration

        return make_demonstration(reactor, sys.stdout)
    return RelayService(
        reactor,
        options["listen"],
        options["to"],
        name=options["name"],
        failed=fail_at_exit,
    )
