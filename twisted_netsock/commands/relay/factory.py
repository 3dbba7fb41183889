"""
The relay's inner works: two connections, and what arrives on one passed on to the other.

Here they are transports, and it is written against Twisted's transport interface
alone. Where a transport is of this package, what arrives is passed on as a view of
the shared buffer, from descriptor to descriptor without a copy. Where both ends
are of this package, links do without: see `twisted_netsock.commands.relay.link`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IAddress,
    IHalfCloseableProtocol,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure
from zope.interface import implementer

from ..._endpoints.client import ClientEndpoint
from ..._endpoints.listening_port import IConnectionFactory
from ..._endpoints.transport import IViewProtocol, Transport
from ..._io.interfaces import current_reactor
from ..._net.happy_eyeballs import Established
from ..._proxy_protocol.header import ProxyHeader
from ...addresses import SocketAddress
from .._common.service import end_stream
from .access import Access
from .accounting import Ledger, Session, TLSAccount
from .client import EARLY_LIMIT, Client, Relay, serve_client
from .limits import ConnectionLimits, Limits
from .routes import Routes, as_routes
from .splice import Pipes

__all__ = ["RelayFactory"]


@implementer(IHalfCloseableProtocol, IViewProtocol)
class _Side(Protocol):
    """One of the two connections of a relay: passes on to the other what arrives."""

    def __init__(self, sides: set[_Side], session: Session | None = None) -> None:
        self.count = 0
        self.session = session
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
        self.count += len(view)
        if self._write is not None:
            self._write(view if self._takes_views else bytes(view))

    def dataReceived(self, data: bytes) -> None:
        self.count += len(data)
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

    def abort(self) -> None:
        """End the connection at once, by a reset, and with it the other one."""
        transport: Any = self.transport
        transport.abortConnection()

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        self.lost = True
        self._sides.discard(self)
        if self.session is not None:
            in_order = reason.check(ConnectionDone) is not None
            self.session.lost(self, None if in_order else reason.value)
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


class _Front(_Side, Client):
    """The connection of a client, whose first words wait until a backend is connected."""

    def __init__(self, relay: Relay) -> None:
        super().__init__(relay.sides)
        self.on_gone: Callable[[], None] | None = None
        self._relay = relay
        self._early: list[bytes] = []
        self._early_left = EARLY_LIMIT

    def connectionMade(self) -> None:
        super().connectionMade()
        transport = self._own
        self._write = self._keep
        if isinstance(transport, Transport):
            transport.read_at_most(EARLY_LIMIT)
        self._header = getattr(transport, "proxy_header", None)
        self.enter(transport.getPeer(), transport.getHost(), TLSAccount.of(transport))

    @property
    def _own(self) -> Any:
        """The client's transport."""
        return self.transport

    def dial(self, backend: IStreamClientEndpoint, session: Session) -> Deferred[Any]:
        """Connect to *backend*."""
        return backend.connect(_BackFactory(self._sides, session))

    def _keep(self, data: bytes | memoryview) -> None:
        """Keep what the client sends, within bounds: reading detects that it goes away."""
        self._early.append(bytes(data))
        self._early_left -= len(data)
        own = self._own
        if self._early_left <= 0:
            own.pauseProducing()
        elif isinstance(own, Transport):
            # Twisted's own transports have no limit for one delivery: of theirs one read,
            # 64 KiB, may come in excess. Not to read on would hide that the client goes away.
            own.read_at_most(self._early_left)

    def reached(self, back: Any, session: Session) -> None:
        """Join this side with *back*, what early words there are first."""
        session.joined(back, back.transport.getPeer())
        self.join(back)
        back.join(self)
        early, self._early = self._early, []
        if isinstance(self._own, Transport):
            self._own.read_at_most(None)
        self._own.resumeProducing()
        if early:
            back.transport.write(b"".join(early))
        if self.ended:
            end_stream(back.transport)

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        session = self.session
        super().connectionLost(reason)
        if session is not None:
            self.leave(session)
        if self.on_gone is not None:
            self.on_gone()


class _BackFactory(Factory):
    """Builds the protocol of one connection to the backend."""

    noisy = False

    def __init__(self, sides: set[_Side], session: Session) -> None:
        self._sides = sides
        self._session = session

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        """Return the other side of a client's connection."""
        return _Side(self._sides, self._session)


def _is_bare(endpoint: IStreamClientEndpoint) -> bool:
    return isinstance(endpoint, ClientEndpoint) and endpoint.is_bare


@implementer(IConnectionFactory)
class RelayFactory(Factory):
    """
    Relays each connection that it is given to another endpoint.

    Attributes:
        routes: Where to.
        access: The access rules.
        ledger: The accounts of the connections.
        connection_limits: Counts them.
        sides: The connections of both kinds.
        pipes: What bulk passes through.
        takes_connections: All backends can do without a transport, and clients' connections
            with them.
    """

    noisy = False

    def __init__(
        self,
        backend: IStreamClientEndpoint | Routes,
        name: str | None = None,
        *,
        reactor: object = None,
        access: Access | None = None,
        limits: Limits | None = None,
    ) -> None:
        """
        Relay to *backend*, called *name* in the log.

        Args:
            backend: An endpoint, or several by name and in turn.
            name: Of the one endpoint.
            reactor: For the time; the installed one if `None`.
            access: Rules for certificates; none if `None`.
            limits: No limits if `None`.
        """
        self.routes = as_routes(backend, name)
        self.access = Access() if access is None else access
        limits = Limits() if limits is None else limits
        self.ledger = Ledger(current_reactor(reactor), limits)
        self.connection_limits = ConnectionLimits(current_reactor(reactor), limits)
        self.sides: set[Any] = set()
        self.pipes = Pipes()
        self.takes_connections = all(_is_bare(target.endpoint) for target in self.routes)

    def __repr__(self) -> str:
        return f"<relay to {self.routes}>"

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return sum(isinstance(side, Client) for side in self.sides)

    @property
    def idle(self) -> bool:
        """Whether nobody is connected, neither a client nor to the backend."""
        return not self.sides

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        """Return the protocol of one client, which the port has admitted."""
        return _Front(self)

    def take_connection(
        self,
        established: Established,
        peer: SocketAddress,
        host: SocketAddress,
        header: ProxyHeader | None,
        gone: Callable[[], None],
    ) -> None:
        """Relay a bare connection; see `IConnectionFactory` of the ports."""
        serve_client(self, established, peer, host, header, gone)

    def abort(self) -> None:
        """End every connection at once, by a reset."""
        self.ledger.attribute_all("stopped")
        for side in list(self.sides):
            side.abort()


class ForeignFactory(Factory):
    """
    Counts the connections of a port that is not ours, and knows no `AdmissionLimit`.

    Attributes:
        pauses: The port can be paused at the limit; of others, connections beyond
            it are closed.
    """

    noisy = False

    def __init__(self, relay: RelayFactory) -> None:
        self.pauses = False
        self._relay = relay

    def __repr__(self) -> str:
        return repr(self._relay)

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        """Return the protocol of one client, or `None` if there are too many, or of it."""
        connection_limits = self._relay.connection_limits
        if (connection_limits.full and not self.pauses) or not connection_limits.admits(addr):
            return None
        connection_limits.entered()
        front = _Front(self._relay)
        front.on_gone = partial(connection_limits.left, addr)
        return front
