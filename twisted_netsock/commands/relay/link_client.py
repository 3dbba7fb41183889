"""Clients of the relay whose connections are links; see `twisted_netsock.commands.relay.link`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from ..._endpoints.client import ClientEndpoint
from ..._endpoints.transport import SCRATCH
from ..._net.happy_eyeballs import Established
from ..._proxy_protocol.header import ProxyHeader
from ..._tls.descriptor import TLSDescriptor
from ...addresses import SocketAddress
from .accounting import Session, TLSAccount
from .client import Client, Relay
from .link import Link, TLSLink, link_for

__all__ = ["EARLY_LIMIT", "serve_client"]

_log = Logger()

EARLY_LIMIT: Final = 64 * 1024
"""Bytes of a client that wait for its backend to be connected."""


class _Early:
    """Stands for the other connection until there is one, and keeps what is to go there."""

    spliceable = False

    def __init__(self, link: Link) -> None:
        self._link = link
        self._left = EARLY_LIMIT
        self.pieces: list[bytes] = []
        link.read_at_most(EARLY_LIMIT)

    def pass_on(self, data: memoryview) -> None:
        """Keep *data*, within bounds: reading tells when the client goes away."""
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


def serve_client(
    relay: Relay,
    established: Established,
    client: SocketAddress,
    listener: SocketAddress,
    header: ProxyHeader | None,
    gone: Callable[[], None],
) -> None:
    """
    Relay the connection of a client, whom a link is made for.

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
