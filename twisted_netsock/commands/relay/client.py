"""
How a client of the relay gets its backend: access rules, choice of a backend, connecting.

Every kind of connection goes this way, whether it is a transport's or a bare
descriptor's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IStreamClientEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..._endpoints.client import ClientEndpoint
from ..._endpoints.transport import SCRATCH
from ..._net.happy_eyeballs import Established
from ..._proxy_protocol.header import ProxyHeader
from ..._proxy_protocol.tlv import ProxyTLS, ProxyTLV
from ..._text import printable
from ..._tls.descriptor import TLSDescriptor
from ...addresses import SocketAddress
from .._common.service import written
from .access import Access, common_name
from .accounting import Session, TLSAccount
from .limits import OUT_OF_DESCRIPTORS, ConnectionLimits
from .link import Link, Links, TLSLink, link_for
from .routes import Routes, Target

__all__ = ["EARLY_LIMIT", "Client", "Relay", "serve_client"]

EARLY_LIMIT: Final = 64 * 1024
"""Bytes of a client that wait for its backend to be connected."""

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
    The side of a client; mixed into what has its connection.

    Attributes:
        session: Its account, from `enter` on.
        lost: The connection is gone.
    """

    session: Session | None
    lost: bool

    _relay: Relay
    _header: ProxyHeader | None = None
    _targets: Sequence[Target] = ()
    _connecting: Deferred[object] | None = None
    _timer: IDelayedCall | None = None
    _late = False

    def enter(self, client: Any, listener: object, tls: TLSAccount | None = None) -> None:
        """Open the account, and connect a backend if the client may come in."""
        relay = self._relay
        session = self.session = relay.ledger.open(self, client, listener, tls)
        if not relay.access.allows(tls.certificate if tls is not None and tls.verified else None):
            self._turn_away(session, "denied")
            return
        self._targets = relay.routes.choose(None if tls is None else tls.server_name)
        if self._targets:
            self._try_next(session)
        else:
            self._turn_away(session, "no-route")

    def dial(self, backend: IStreamClientEndpoint, session: Session) -> Deferred[Any]:
        """Connect to *backend*; what the Deferred fires with is passed to `reached`."""
        raise NotImplementedError

    def reached(self, back: Any, session: Session) -> None:
        """Join this side with *back*, and note it in *session*."""
        raise NotImplementedError

    def abort(self) -> None:
        """End the client's connection by a reset."""
        raise NotImplementedError

    def leave(self, session: Session) -> None:
        """Note that the connection is lost; a backend is waited for no more."""
        if self._connecting is not None:
            connecting = self._connecting
            self._stop_waiting()
            connecting.cancel()

    def _turn_away(self, session: Session, reason: str, error: str | None = None) -> None:
        session.attribute(reason, error)
        self.abort()

    def _try_next(self, session: Session) -> None:
        target, *self._targets = self._targets
        session.target = target.name
        backend = _on_behalf_of(target.endpoint, self._header, session)
        self._late = False
        connecting = self._connecting = self.dial(backend, session)
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

    def _connected(self, back: Any, session: Session, target: Target) -> None:
        self._stop_waiting()
        self._relay.ledger.connected(target.name)
        self.reached(back, session)

    def _refused(self, failure: Failure, session: Session, target: Target) -> None:
        self._stop_waiting()
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


class _Early:
    """Stands for the other connection until there is one, and keeps what is to go there."""

    spliceable = False

    def __init__(self, link: Link) -> None:
        self._link = link
        self._left = EARLY_LIMIT
        self.pieces: list[bytes] = []
        link.read_at_most(EARLY_LIMIT)

    def pass_on(self, data: memoryview) -> None:
        """Keep *data*, within bounds: reading detects that the client goes away."""
        self.pieces.append(bytes(data))
        self._left -= len(data)
        if self._left:
            self._link.read_at_most(self._left)
        else:
            self._link.pause()

    def finish(self) -> None:
        """Do nothing: the link itself remembers."""

    def let_go(self) -> None:
        """Do nothing: what was kept goes with the link."""

    def abort(self) -> None:
        """Do nothing: there is no connection."""


class _LinkedClient(Link, Client):
    """The connection of a client, whose first words wait until a backend is connected."""

    _relay: Relay

    def begin(
        self,
        client: SocketAddress,
        listener: SocketAddress,
        header: ProxyHeader | None,
        gone: Callable[[], None],
    ) -> None:
        """Connect a backend; see `serve_client`."""
        self.other = _Early(self)
        self._header = header
        self._gone = gone
        self.on_lost = self._left
        descriptor = self._descriptor
        is_tls = isinstance(descriptor, TLSDescriptor)
        self.enter(client, listener, TLSAccount.of_descriptor(descriptor) if is_tls else None)
        if self._connecting is not None:
            self.resume()

    def _left(self, session: Session | None) -> None:
        if session is not None:
            self.leave(session)
        self._gone()

    def dial(self, backend: Any, session: Session) -> Deferred[Established]:
        """Connect to *backend*, an endpoint of ours."""
        endpoint: ClientEndpoint = backend
        return endpoint.establish()

    def reached(self, back: Established, session: Session) -> None:
        """Join this connection with that of the backend."""
        early: _Early = self.other
        self.other = link = link_for(self._relay, back, session)
        link.other = self
        self.read_at_most(len(SCRATCH))
        session.joined(link, back.peer)
        link.resume()
        self.resume()
        if early.pieces:
            link.pass_on(memoryview(b"".join(early.pieces)))
        if self.ended and not self.lost:
            link.finish()


class _TLSLinkedClient(TLSLink, _LinkedClient):
    """The same over TLS."""

    _relay: Relay


def serve_client(
    relay: Relay,
    established: Established,
    client: SocketAddress,
    listener: SocketAddress,
    header: ProxyHeader | None,
    gone: Callable[[], None],
) -> None:
    """
    Relay the connection of a client, for which a link is made.

    Args:
        relay: What it is part of.
        established: The connection, taken over.
        client: Where it comes from.
        listener: Where it came to.
        header: The PROXY header that it began with.
        gone: Called when it is lost.
    """
    is_tls = isinstance(established.descriptor, TLSDescriptor)
    link = (_TLSLinkedClient if is_tls else _LinkedClient)(relay, established)
    try:
        link.begin(client, listener, header, gone)
    except BaseException as error:  # noqa: BLE001 - it costs this connection and no other
        _log.failure("a new connection could not be relayed")
        link.lose(error)
