"""
What a relay listens with: each connection that it is given is relayed to another endpoint.

Whatever listens and whatever connects, `twisted_netsock._net.inner` makes an established
connection of it, and links pass on between those: see `twisted_netsock.commands.relay.link`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ..._endpoints.listening_port import IConnectionFactory
from ..._io.interfaces import current_reactor
from ..._net.happy_eyeballs import Established
from ..._net.inner import InnerFactory
from ...options import SocketOptions
from .access import Access
from .accounting import Ledger
from .client import FOREIGN, serve_client
from .limits import ConnectionLimits, Limits
from .link import Link
from .routes import Routes, as_routes
from .splice import Pipes

__all__ = ["RelayFactory"]

_log = Logger()


@implementer(IConnectionFactory)
class RelayFactory(InnerFactory):
    """
    Relays each connection that it is given to another endpoint.

    Attributes:
        routes: Where to.
        access: The access rules.
        ledger: The accounts of the connections.
        connection_limits: Counts them.
        sides: The connections of both kinds.
        pipes: What bulk passes through.
    """

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
        ours = current_reactor(reactor)
        super().__init__(ours, None, FOREIGN, "RelayFactory", self.take_foreign)
        self.routes = as_routes(backend, name)
        self.access = Access() if access is None else access
        limits = Limits() if limits is None else limits
        self.ledger = Ledger(ours, limits)
        self.connection_limits = ConnectionLimits(ours, limits)
        self.sides: set[Link] = set()
        self.pipes = Pipes()

    def __repr__(self) -> str:
        return f"<relay to {self.routes}>"

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return sum(link.on_lost is not None for link in self.sides)

    @property
    def idle(self) -> bool:
        """Whether nobody is connected, neither a client nor to the backend."""
        return not self.sides

    def take_connection(
        self,
        established: Established,
        peer: object,
        host: object,
        options: SocketOptions,
        gone: Callable[[], None],
    ) -> None:
        """Relay a connection; see `IConnectionFactory` of the ports."""
        serve_client(self, established, peer, host, options, gone)

    def take_foreign(
        self, established: Established | Failure, gone: Callable[[], None] = lambda: None
    ) -> None:
        """Relay a connection of a port that is not ours."""
        if isinstance(established, Failure):
            _log.failure("a new connection could not be relayed", established)
            gone()
            return
        inner: Any = established.inner
        if established.header is None:
            # One of ours may stand behind a wrapper.
            established.header = getattr(inner, "proxy_header", None)
        self.take_connection(established, inner.getPeer(), inner.getHost(), FOREIGN, gone)

    def abort(self) -> None:
        """End every connection at once, by a reset."""
        self.ledger.attribute_all("stopped")
        for side in list(self.sides):
            side.abort()


class ForeignFactory(InnerFactory):
    """
    Counts the connections of a port that is not ours, and knows no `AdmissionLimit`.

    Attributes:
        pauses: The port can be paused at the limit; of others, connections beyond
            it are closed.
    """

    def __init__(self, relay: RelayFactory) -> None:
        super().__init__(relay.reactor, None, FOREIGN, relay.logPrefix(), self._made)
        self.pauses = False
        self._relay = relay

    def __repr__(self) -> str:
        return repr(self._relay)

    def _made(self, established: Established | Failure) -> None:
        """Relay a connection, unless there are too many, or of its peer."""
        if isinstance(established, Failure):
            self._relay.take_foreign(established)
            return
        inner: Any = established.inner
        peer = inner.getPeer()
        limits = self._relay.connection_limits
        if (limits.full and not self.pauses) or not limits.admits(peer):
            established.close()
            return
        limits.entered()
        self._relay.take_foreign(established, partial(limits.left, peer))
