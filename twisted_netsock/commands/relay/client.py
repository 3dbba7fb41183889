"""
How a client of the relay gets its backend: access rules, choice of a backend, connecting.

Every kind of connection goes this way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Final, Protocol

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IStreamClientEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..._endpoints.client import ClientEndpoint
from ..._endpoints.transport import SCRATCH
from ..._net.happy_eyeballs import Established
from ..._net.inner import inner_connection
from ..._proxy_protocol.header import ProxyHeader
from ..._proxy_protocol.tlv import ProxyTLS, ProxyTLV
from ..._text import printable
from ...options import SocketOptions, TLSSocketOptions
from .._common.service import written
from .access import Access, common_name
from .accounting import Session, TLSAccount
from .limits import OUT_OF_DESCRIPTORS, ConnectionLimits
from .link import Link, Links, Nowhere, link_for
from .routes import Routes, Target

__all__ = ["FOREIGN", "Client", "Relay", "serve_client"]

EARLY_LIMIT: Final = 64 * 1024
"""Bytes of a client that wait for its backend to be connected."""

FOREIGN: Final = TLSSocketOptions(close_timeout=timedelta(seconds=30))
"""
What holds for connections of other endpoints: Twisted's transports have no limit for their end.
"""

_LONGEST_ERROR: Final = 1000

_log = Logger()


class Relay(Links, Protocol):
    """What clients have in common; see `twisted_netsock.commands.relay.factory.RelayFactory`."""

    routes: Routes
    access: Access
    connection_limits: ConnectionLimits


def _with_tls(header: ProxyHeader, tls: TLSAccount) -> ProxyHeader:
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
    # What another proxy says of TLS is about a connection that ends here.
    about_tls = (ProxyTLV.SSL, ProxyTLV.ALPN, ProxyTLV.AUTHORITY)
    others = [tlv for tlv in header.tlvs if tlv[0] not in about_tls]
    return attrs.evolve(header, tlvs=[*others, *ours])


def _on_behalf_of(
    backend: IStreamClientEndpoint, header: ProxyHeader | None, session: Session
) -> IStreamClientEndpoint:
    """
    Return *backend*; if it sends a PROXY header, one with the client of *session*.

    Args:
        backend: Where to.
        header: What the client began with, if it is a proxy itself.
        session: Has the client's addresses.
    """
    if not isinstance(backend, ClientEndpoint) or backend.options.proxy_protocol is None:
        return backend
    if header is None:
        try:
            header = ProxyHeader(session.client, session.listener)
        except (TypeError, ValueError):
            # Twisted has endpoints whose addresses are no sockets'.
            header = ProxyHeader()
    tls = session.tls
    if backend.options.proxy_protocol == "v1":
        header = attrs.evolve(header, tlvs=(), checksum=False)
    elif tls is not None and not header.local:
        header = _with_tls(header, tls)
    return backend.on_behalf_of(header)


def _lacks_descriptors(error: BaseException | None) -> bool:
    """Return whether a backend could not be connected for lack of descriptors or memory."""
    tried = [why for _, why in getattr(error, "attempts", ())]
    return any(getattr(each, "errno", None) in OUT_OF_DESCRIPTORS for each in (error, *tried))


class Client:
    """
    A client: gets its connection a backend, and keeps what it sends until then.

    Attributes:
        link: Its connection.
    """

    def __init__(self, relay: Relay, established: Established, gone: Callable[[], None]) -> None:
        self.link = link = link_for(relay, established)
        link.other = self._early = _Early(link)
        link.on_lost = self._left
        self._relay = relay
        self._header = established.header
        self._gone = gone
        self._targets: Sequence[Target] = ()
        self._connecting: Deferred[Established] | None = None
        self._timer: IDelayedCall | None = None
        self._late = False

    def begin(self, client: object, listener: object, tls: TLSAccount | None) -> None:
        """Open the account, and connect a backend if the client may come in."""
        relay = self._relay
        session = self.link.session = relay.ledger.open(self.link, client, listener, tls)
        if not relay.access.allows(tls.certificate if tls is not None and tls.verified else None):
            self._turn_away(session, "denied")
            return
        self._targets = relay.routes.choose(None if tls is None else tls.server_name)
        if not self._targets:
            self._turn_away(session, "no-route")
            return
        # Health checks connect, shake hands where that is asked for, and go: mostly before this
        # process has got so far. They are to cost no connection of a backend. This costs 2 µs.
        self.link.on_receive_ready()
        if self.link.lost or (self.link.ended and not self._early.pieces):
            self._turn_away(session, "health-check")
            return
        self._try_next(session)
        if self._connecting is not None and self._early.has_room:
            self.link.resume()

    def _left(self, session: Session | None) -> None:
        """Report that the connection is lost; a backend is waited for no more."""
        if self._connecting is not None:
            connecting = self._connecting
            self._stop_waiting()
            connecting.cancel()
        self._gone()

    def _turn_away(self, session: Session, reason: str, error: str | None = None) -> None:
        session.attribute(reason, error)
        self.link.abort()

    def _try_next(self, session: Session) -> None:
        target, *self._targets = self._targets
        session.target = target.name
        backend = _on_behalf_of(target.endpoint, self._header, session)
        self._late = False
        connecting = self._connecting = self._dial(backend)
        connecting.addCallbacks(
            self._connected,
            self._refused,
            callbackArgs=(session, target),
            errbackArgs=(session, target),
        )
        limit = self._relay.ledger.limits.connect
        if limit is not None and self._connecting is connecting:
            self._timer = self._relay.ledger.reactor.callLater(limit, self._give_up)

    def _give_up(self) -> None:
        self._timer = None
        self._late = True
        if self._connecting is not None:
            self._connecting.cancel()

    def _stop_waiting(self) -> None:
        self._connecting = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _dial(self, backend: IStreamClientEndpoint) -> Deferred[Established]:
        """Connect to *backend*, whatever kind of endpoint it is."""
        if isinstance(backend, ClientEndpoint):
            return backend.establish()
        reactor = self._relay.ledger.reactor
        return inner_connection(reactor, backend, None, FOREIGN, "relay")

    def _connected(self, back: Established, session: Session, target: Target) -> None:
        """Join this connection with that of the backend, what early data there is first."""
        self._stop_waiting()
        self._relay.ledger.connected(target.name)
        link, endpoint = self.link, target.endpoint
        other = link_for(self._relay, back, session)
        link.other, other.other = other, link
        link.read_at_most(len(SCRATCH))
        session.joined(other, back.peer if back.inner is None else back.inner.getPeer())
        if isinstance(endpoint, ClientEndpoint):
            other.limit(endpoint.options)
        other.resume()
        link.resume()
        if self._early.pieces:
            other.pass_on(memoryview(b"".join(self._early.pieces)))
        if link.ended and not link.lost:
            other.finish()

    def _refused(self, failure: Failure, session: Session, target: Target) -> None:
        self._stop_waiting()
        if self.link.lost:
            return
        cancelled = failure.check(CancelledError) is not None
        error = str(failure.value)
        if cancelled and self._late:
            error = f"it was not connected within {self._relay.ledger.limits.connect:g} s"
        if self._late or not cancelled:
            self._relay.ledger.not_connected(target.name, printable(error, _LONGEST_ERROR))
            _log.error(
                "cannot connect {client} to {backend}: {error}",
                client=written(session.client),
                backend=target.name,
                error=printable(error, _LONGEST_ERROR),
            )
        if _lacks_descriptors(failure.value):
            # Those that there are go on; each that came now would fare no better.
            self._relay.connection_limits.rest()
        elif self._targets:
            self._try_next(session)
            return
        self._turn_away(session, "unreachable", error)


class _Early(Nowhere):
    """Stands for the other connection until there is one, and keeps what is to go there."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._left = EARLY_LIMIT
        self.pieces: list[bytes] = []
        link.read_at_most(EARLY_LIMIT)

    @property
    def has_room(self) -> bool:
        """Whether more may come."""
        return self._left > 0

    @property
    def holds_early_data(self) -> bool:
        """Whether there is something to be passed on."""
        return bool(self.pieces)

    def pass_on(self, data: memoryview) -> None:
        """Keep *data*, within bounds: reading detects that the client goes away."""
        self.pieces.append(bytes(data))
        self._left -= len(data)
        if self._left:
            self._link.read_at_most(self._left)
        else:
            self._link.pause()


def serve_client(
    relay: Relay,
    established: Established,
    client: object,
    listener: object,
    options: SocketOptions,
    gone: Callable[[], None],
) -> None:
    """
    Relay the connection of a client.

    Args:
        relay: What it is part of.
        established: The connection, taken over.
        client: Where it comes from.
        listener: Where it came to.
        options: Has its time limits.
        gone: Called when it is lost.
    """
    served = Client(relay, established, gone)
    try:
        served.link.limit(options)
        served.begin(client, listener, TLSAccount.of(established))
    except BaseException as error:  # noqa: BLE001 - it costs this connection and no other
        _log.failure("a new connection could not be relayed")
        served.link.lose(error)
