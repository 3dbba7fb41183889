"""``twist netsock relay``: connections from any server endpoints to any client endpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.interfaces import (
    IListeningPort,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..._certificates.reload import FileWatch
from ..._endpoints.client import ClientEndpoint
from ..._endpoints.inner_port import PortOverEndpoint
from ..._endpoints.listening_port import ListeningPort
from ..._endpoints.server import ServerEndpoint
from ..._io.interfaces import Reactor
from .._common.expiry import expiry_problems, expiry_values
from .._common.service import ListeningService, written
from .access import Access
from .factory import ForeignFactory, RelayFactory
from .limits import ClosingLimit, Limits
from .routes import Routes

__all__ = ["RelayFactory", "RelayService"]

_DRAIN_LOOK_SECONDS: Final = 0.05

_log = Logger()


class RelayService(ListeningService):
    """Listens while it runs, and relays."""

    def __init__(
        self,
        reactor: Reactor,
        listen: IStreamServerEndpoint | Sequence[IStreamServerEndpoint],
        to: IStreamClientEndpoint | Routes,
        started: Callable[[object], None] | None = None,
        *,
        name: str | None = None,
        failed: Callable[[], None] | None = None,
        access: Access | None = None,
        limits: Limits | None = None,
        reload_every: float | None = None,
        expect_expiry: float | None = None,
        ready: Callable[[], None] | None = None,
    ) -> None:
        """
        Relay from *listen* to *to*.

        Args:
            reactor: Stopped if it is impossible to listen.
            listen: Where clients come from.
            to: Where each of them is connected to.
            started: Called with the address of each port.
            name: What *to* is called in the log, if it is an endpoint.
            failed: Called if it is impossible to listen, before the reactor stops.
            access: Rules for the certificates of clients.
            limits: No limits if `None`.
            reload_every: Seconds between two looks for changed files.
            expect_expiry: Seconds for which certificates are to be valid still; logs nothing
                of that if `None`.
            ready: Called when all of *listen* do.
        """
        super().__init__(
            reactor,
            listen if isinstance(listen, Sequence) else [listen],
            RelayFactory(to, name, reactor=reactor, access=access, limits=limits),
            what="relay",
            started=started,
            failed=failed,
        )
        self._limits = self._factory.ledger.limits
        self._ready = ready
        self._reload_every = reload_every
        self._expect_expiry = expect_expiry
        self._watches: list[FileWatch] = []
        self._began = reactor.seconds()
        self.state = "starting"

    def startService(self) -> None:
        """Begin to listen."""
        self.state = "starting"
        super().startService()
        self._warn_of_expiry()
        if self._reload_every is not None:
            watches = [endpoint.watch_files(self._reload_every) for endpoint in self._reloadable]
            self._watches = [watch for watch in watches if watch is not None]

    def factory_for(self, endpoint: IStreamServerEndpoint) -> object:
        """Return the relay's factory, with what counts where the port does not."""
        if isinstance(endpoint, ServerEndpoint):
            return self._factory
        return ForeignFactory(self._factory)

    def on_port(self, port: IListeningPort, factory: Any) -> None:
        """Have the limits hold on one more port."""
        connection_limits = self._factory.connection_limits
        if isinstance(port, ListeningPort):
            port.guard(connection_limits, self._limits.handshakes)
            connection_limits.add_listener(port.pause_accepting, port.resume_accepting)
        elif isinstance(port, PortOverEndpoint):
            port.guard(ClosingLimit(connection_limits))
        elif hasattr(port, "stopReading") and hasattr(port, "startReading"):
            factory.pauses = True
            connection_limits.add_listener(port.stopReading, port.startReading)
        super().on_port(port, factory)
        if len(self._ports) == len(self._endpoints):
            self.state = "running"
            if self._ready is not None:
                self._ready()

    def announce(self, host: Any) -> None:
        """Log where connections come from and go to."""
        _log.info("relaying from {host} to {to}", host=written(host), to=str(self._factory.routes))

    # Certificates

    def _warn_of_expiry(self) -> None:
        """Log which certificates are not valid, or not for long."""
        if self._expect_expiry is not None:
            for endpoint in self._reloadable:
                for _, why in expiry_problems(endpoint, self._expect_expiry):
                    _log.warn("{endpoint}: {why}", endpoint=endpoint.place, why=why)

    @property
    def _reloadable(self) -> list[ClientEndpoint | ServerEndpoint]:
        """Every endpoint that may have read files, once."""
        found: list[ClientEndpoint | ServerEndpoint] = [
            endpoint for endpoint in self._endpoints if isinstance(endpoint, ServerEndpoint)
        ]
        backends = (target.endpoint for target in self._factory.routes)
        return [*found, *(each for each in backends if isinstance(each, ClientEndpoint))]

    def reload(self) -> Deferred[list[str]]:
        """
        Read certificates, keys and trusted certificates again, for connections to come.

        Returns:
            What went wrong, a line for each endpoint that keeps what it had; it is
            logged as well.
        """

        def failed(failure: Failure, endpoint: ClientEndpoint | ServerEndpoint) -> str:
            _log.error(
                "{endpoint} keeps its certificates: {error}",
                endpoint=endpoint.place,
                error=str(failure.value),
            )
            return f"{endpoint.place}: {failure.value}"

        def done(results: list[str | None]) -> list[str]:
            wrong = [each for each in results if each is not None]
            self._warn_of_expiry()
            if not wrong:
                _log.info("certificates and keys have been read again")
            return wrong

        return gatherResults(
            [endpoint.reload().addErrback(failed, endpoint) for endpoint in self._reloadable]
        ).addCallback(done)

    # The end

    def drain(self) -> Deferred[None]:
        """
        Stop accepting, let connections finish, and end what is left after ``limits.drain``.

        Returns:
            `None`, when nobody is connected.
        """
        self.state = "draining"
        return Deferred.fromCoroutine(self._drain())

    async def _drain(self) -> None:
        _log.info(
            "no more connections are taken; {count} may go on for {seconds:g} s"
            if self._factory.connections
            else "no more connections are taken, and there are none",
            count=self._factory.connections,
            seconds=self._limits.drain,
        )
        self._stop_waiting()
        for port in self._ports:
            if isinstance(port, ListeningPort):
                port.stop_accepting()
            else:
                await maybeDeferred(port.stopListening)
        end = self._reactor.seconds() + self._limits.drain
        busy = self._factory.connection_limits
        while (busy.entered_now or not self._factory.idle) and self._reactor.seconds() < end:
            await deferLater(self._reactor, _DRAIN_LOOK_SECONDS)
        left = self._factory.connections
        if left:
            _log.warn("{count} connections did not finish in time, and are cut off", count=left)
        self._factory.ledger.cut_all("drained")
        await self._stop()

    def stopService(self) -> Deferred[None]:
        """Stop listening, and end the connections that there are."""
        self.state = "stopped"
        return super().stopService()

    def _stop_waiting(self) -> None:
        for watch in self._watches:
            watch.stop()
        self._watches = []
        super()._stop_waiting()

    async def _stop(self) -> None:
        self._factory.connection_limits.remove_listeners()
        await super()._stop()

    # Telling

    def snapshot(self) -> dict[str, object]:
        """Return how it is, as values of JSON; see `twisted_netsock.commands.relay.status`."""
        connection_limits = self._factory.connection_limits
        names = list(dict.fromkeys(target.name for target in self._factory.routes))
        state = "paused" if self.state == "running" and connection_limits.paused else self.state
        snapshot = self._factory.ledger.snapshot(names)
        snapshot["connections"] |= {
            "limit": self._limits.connections or 0,
            "entered": connection_limits.entered_now,
            "turned_away": connection_limits.turned_away,
        }
        ours = [port for port in self._ports if isinstance(port, ListeningPort)]
        return {
            "state": state,
            "uptime": round(self._reactor.seconds() - self._began, 3),
            "listening": [written(port.getHost()) for port in self._ports],
            "failed_handshakes": sum(port.failed_incoming for port in ours),
            "rests": connection_limits.rests,
            "certificates": expiry_values(self._reloadable),
            **snapshot,
        }
