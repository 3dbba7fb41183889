"""
The relay's inner works: two connections, and what arrives on one passed on to the other.

It is written against Twisted's transport interface alone. Where a transport is
of this package, what arrives is passed on as a view of the shared buffer, from
descriptor to descriptor without a copy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IAddress,
    IHalfCloseableProtocol,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ..client_endpoints import ClientEndpoint
from ..proxy_headers import ProxyHeader
from ..proxy_tlvs import ProxyTLS, ProxyTLV
from ..transports import IViewProtocol, Transport
from .access import Access, common_name
from .accounting import Ledger, Session, TLSAccount
from .limits import OUT_OF_DESCRIPTORS, Gatekeeper, Limits
from .routing import Routes, Target, as_routes
from .serving import end_stream, written

__all__ = ["RelayFactory"]

_EARLY_LIMIT: Final = 64 * 1024
"""Bytes of a client that wait for its backend to be connected."""

_log = Logger()


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

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        self.lost = True
        self._sides.discard(self)
        if self.session is not None:
            self.session.lost(self, reason)
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


def _told(header: ProxyHeader, tls: TLSAccount) -> ProxyHeader:
    """Return *header* with what the relay itself knows of the client's TLS."""
    about: list[tuple[int, bytes]] = []
    name = None if tls.certificate is None else common_name(tls.certificate)
    for kind, text in (
        (ProxyTLV.SSL_VERSION, tls.version),
        (ProxyTLV.SSL_CN, name if tls.verified else None),
        (ProxyTLV.SSL_CIPHER, tls.cipher),
    ):
        if text is not None:
            about.append((kind, text.encode()))
    shown = ProxyTLS.CERT_CONN | ProxyTLS.CERT_SESS if tls.certificate is not None else 0
    secured = ProxyTLS(client=ProxyTLS.SSL | shown, verify=0 if tls.verified else 1, tlvs=about)
    ours: list[tuple[int, bytes]] = [(ProxyTLV.SSL, secured.encode())]
    if tls.alpn is not None:
        ours.append((ProxyTLV.ALPN, tls.alpn.encode()))
    if tls.server_name is not None:
        ours.append((ProxyTLV.AUTHORITY, tls.server_name.encode()))
    # What another proxy tells of TLS is about a connection that ends here.
    about_tls = (ProxyTLV.SSL, ProxyTLV.ALPN, ProxyTLV.AUTHORITY)
    others = [tlv for tlv in header.tlvs if tlv[0] not in about_tls]
    return attrs.evolve(header, tlvs=[*others, *ours])


def _on_behalf_of(
    backend: IStreamClientEndpoint, transport: Any, tls: TLSAccount | None
) -> IStreamClientEndpoint:
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
    if backend.options.proxy_protocol == "v1":
        header = attrs.evolve(header, tlvs=(), checksum=False)
    elif tls is not None and not header.local:
        header = _told(header, tls)
    return backend.on_behalf_of(header)


def _lacks_descriptors(error: BaseException | None) -> bool:
    """Tell whether a backend could not be connected for lack of descriptors or memory."""
    tried = [why for _, why in getattr(error, "attempts", ())]
    return any(getattr(each, "errno", None) in OUT_OF_DESCRIPTORS for each in (error, *tried))


class _Front(_Side):
    """The connection of a client, whose first words wait until a backend is connected."""

    def __init__(self, relay: RelayFactory) -> None:
        super().__init__(relay.sides)
        self.on_gone: Callable[[], None] | None = None
        self._relay = relay
        self._targets: list[Target] = []
        self._connecting: Deferred[Any] | None = None
        self._timer: Any = None
        self._late = False
        self._early: list[bytes] = []
        self._early_size = 0

    def connectionMade(self) -> None:
        super().connectionMade()
        relay, transport = self._relay, self._own
        relay.gatekeeper.serve(transport.getPeer())
        session = self.session = relay.ledger.open(self, transport)
        self._write = self._keep
        tls = session.tls
        if not relay.access.allows(None if tls is None else tls.certificate):
            self._turn_away("denied")
            return
        self._targets = list(relay.routes.choose(None if tls is None else tls.server_name))
        if self._targets:
            self._try_next(session)
        else:
            self._turn_away("no-route")

    @property
    def _own(self) -> Any:
        """The client's transport."""
        return self.transport

    def _turn_away(self, reason: str) -> None:
        assert self.session is not None
        self.session.blame(reason)
        self._own.abortConnection()

    def _try_next(self, session: Session) -> None:
        target = self._targets.pop(0)
        session.target = target.name
        backend = _on_behalf_of(target.endpoint, self.transport, session.tls)
        self._late = False
        limit = self._relay.ledger.limits.connect
        if limit is not None:
            self._timer = self._relay.ledger.reactor.callLater(limit, self._give_up)
        self._connecting = connecting = backend.connect(_BackFactory(self._sides, session))
        connecting.addCallbacks(
            self._connected,
            self._refused,
            callbackArgs=(session, target),
            errbackArgs=(session, target),
        )

    def _give_up(self) -> None:
        self._timer = None
        self._late = True
        if self._connecting is not None:
            self._connecting.cancel()

    def _keep(self, data: bytes | memoryview) -> None:
        """Keep what the client says, within bounds: reading tells when it goes away."""
        self._early.append(bytes(data))
        self._early_size += len(data)
        if self._early_size >= _EARLY_LIMIT:
            self._own.pauseProducing()

    def _stop_timer(self) -> None:
        self._connecting = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _connected(self, back: _Side, session: Session, target: Target) -> None:
        self._stop_timer()
        self._relay.ledger.connected(target.name)
        session.joined(back, back.transport)
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

    def _refused(self, failure: Failure, session: Session, target: Target) -> None:
        self._stop_timer()
        if self.lost:
            return
        cancelled = failure.check(CancelledError) is not None
        error = str(failure.value)
        if cancelled and self._late:
            error = f"it was not connected within {self._relay.ledger.limits.connect:g} s"
        if self._late or not cancelled:
            self._relay.ledger.failed[target.name] += 1
            _log.error(
                "cannot connect {client} to {backend}: {error}",
                client=written(self._own.getPeer()),
                backend=target.name,
                error=error,
            )
        if _lacks_descriptors(failure.value):
            # Those that there are go on; each that came now would fare no better.
            self._relay.gatekeeper.rest()
        elif self._targets:
            self._try_next(session)
            return
        session.blame("unreachable", error)
        self._own.abortConnection()

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        super().connectionLost(reason)
        self._relay.gatekeeper.served(self._own.getPeer())
        if self._connecting is not None:
            connecting = self._connecting
            self._stop_timer()
            connecting.cancel()
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


class RelayFactory(Factory):
    """
    Relays each connection that it is given to another endpoint.

    Attributes:
        routes: Where to.
        access: Who may.
        ledger: The accounts of the connections.
        gatekeeper: Counts them.
        sides: The connections of both kinds.
    """

    noisy = False

    def __init__(
        self,
        backend: IStreamClientEndpoint | Routes,
        name: str | None = None,
        *,
        reactor: Any = None,
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
        if reactor is None:
            from twisted.internet import reactor
        self.routes = as_routes(backend, name)
        self.access = Access() if access is None else access
        limits = Limits() if limits is None else limits
        self.ledger = Ledger(reactor, limits)
        self.gatekeeper = Gatekeeper(reactor, limits)
        self.sides: set[_Side] = set()

    def __repr__(self) -> str:
        return f"<relay to {self.routes}>"

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return sum(isinstance(side, _Front) for side in self.sides)

    @property
    def idle(self) -> bool:
        """Whether nobody is connected, neither a client nor to the backend."""
        return not self.sides

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        """Return the protocol of one client, or `None` if its address has too many."""
        return _Front(self) if self.gatekeeper.admits_address(addr) else None

    def abort(self) -> None:
        """End every connection at once, by a reset."""
        self.ledger.blame_all("stopped")
        for side in list(self.sides):
            transport: Any = side.transport
            transport.abortConnection()


class ForeignFactory(Factory):
    """
    Counts the connections of a port that is not ours, and knows no `Gate`.

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
        """Return the protocol of one client; see `RelayFactory.buildProtocol`."""
        if self._relay.gatekeeper.full and not self.pauses:
            return None
        front = self._relay.buildProtocol(addr)
        if isinstance(front, _Front):
            self._relay.gatekeeper.entered()
            front.on_gone = self._relay.gatekeeper.left
        return front
