"""
What the commands share that listen: a service, ends of streams, endpoints that users write.

A command that cannot listen ends with exit status 1 and one line that says why.
"""

from __future__ import annotations

import atexit
import errno
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, gatherResults, maybeDeferred
from twisted.internet.interfaces import IListeningPort, ISSLTransport, IStreamServerEndpoint
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python import usage
from twisted.python.failure import Failure

from ..._endpoints.strings import endpoint_from
from ..._endpoints.transport import Transport
from ..._hostnames import host_and_port
from ..._io.interfaces import Reactor
from ..._proxies import without_credentials
from ..._text import printable
from ...addresses import SocketAddress, to_twisted_address
from .holders import holder_of
from .one_shot import say

__all__ = ["ListeningService", "end_stream", "endpoint_option", "fail_at_exit", "written"]

_STOP_TURNS: Final = 16

T = TypeVar("T")

_log = Logger()


class ConnectionsFactory(Protocol):
    """A factory that knows its connections."""

    @property
    def idle(self) -> bool:
        """Whether there is no connection."""

    def abort(self) -> None:
        """End every connection at once, by a reset."""


class ListeningService(Service):
    """Listens while it runs, and ends the connections when it stops."""

    def __init__(
        self,
        reactor: Reactor,
        endpoints: Iterable[IStreamServerEndpoint],
        factory: ConnectionsFactory,
        *,
        what: str,
        started: Callable[[object], None] | None = None,
        failed: Callable[[], None] | None = None,
    ) -> None:
        """
        Serve *factory* on each of *endpoints*.

        Args:
            reactor: Stopped if it is impossible to listen.
            endpoints: Where clients come from.
            factory: Builds the protocols.
            what: The service, as the log calls it.
            started: Called with each port's address.
            failed: Called if it is impossible to listen, before the reactor stops.
        """
        self._reactor = reactor
        self._endpoints = tuple(endpoints)
        self._factory: Any = factory
        self._what = what
        self._started = started
        self._failed = failed
        self._listening: list[Deferred[Any]] = []
        self._ports: list[IListeningPort] = []

    def startService(self) -> None:
        """Begin to listen."""
        super().startService()
        for endpoint in self._endpoints:
            factory = self.factory_for(endpoint)
            listening: Deferred[Any] = endpoint.listen(factory)
            self._listening.append(listening)
            listening.addCallback(self.on_port, factory)
            if isinstance(getattr(listening, "result", None), Failure) and not (
                self._reactor.running
            ):
                # The command ends here, and its exit status says so.
                failures: list[Failure] = []
                listening.addErrback(failures.append)
                say(f"--listen: {_explained(failures[0].value)}")
                raise SystemExit(1)
            listening.addErrback(self._on_failure)

    def factory_for(self, endpoint: IStreamServerEndpoint) -> Any:
        """Return what *endpoint* listens with; for callers that need to know its kind."""
        return self._factory

    def on_port(self, port: IListeningPort, factory: object) -> None:
        """Note that *port* is there, which *factory* listens with."""
        self._ports.append(port)
        self.announce(port.getHost())
        if self._started is not None:
            self._started(port.getHost())

    def announce(self, host: object) -> None:
        """Log that *host* is listened on."""
        _log.info("{what} listening on {host}", what=self._what, host=written(host))

    def _on_failure(self, failure: Failure) -> None:
        if failure.check(CancelledError) is not None:
            return
        _log.critical(
            "cannot listen, so the {what} ends: {error}",
            what=self._what,
            error=_explained(failure.value),
        )
        if self._failed is not None:
            self._failed()
        self._reactor.callWhenRunning(self._reactor.stop)

    def stopService(self) -> Deferred[None]:
        """Stop listening, and end the connections that there are."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    def _stop_waiting(self) -> None:
        listening, self._listening = self._listening, []
        for each in listening:
            each.cancel()

    async def _stop(self) -> None:
        self._stop_waiting()
        ports, self._ports = self._ports, []
        await gatherResults([maybeDeferred(port.stopListening) for port in ports])
        # Until they are gone: a process that ends before would close them in order, and
        # half of something would look like the whole.
        for _ in range(_STOP_TURNS):
            if self._factory.idle:
                return
            self._factory.abort()
            await deferLater(self._reactor, 0)


_ADVICE: Final = {
    errno.EADDRINUSE: "`ss -ltnp` shows which process has it",
    errno.EACCES: "below port 1024: use a socket of systemd's (systemd=) or CAP_NET_BIND_SERVICE",
}


def _explained(error: BaseException | None) -> str:
    """Return why it is impossible to listen, and what to do."""
    number = getattr(error, "errno", None) or 0
    # An error that says more knows better.
    says_all = getattr(error, "strerror", None) != os.strerror(number)
    advice = None if says_all else _ADVICE.get(number)
    port = getattr(error, "port", None)
    if advice and number == errno.EADDRINUSE and isinstance(port, int):
        holder = holder_of(port)
        advice = f"{holder} has it" if holder else advice
    return f"{error}; {advice}" if advice else str(error)


def written(address: Any) -> str:
    """Return an address as people write it, escaped: a path is what a peer calls itself."""
    if isinstance(address, SocketAddress):
        if len(address) > 1:
            return str(address)
        address = to_twisted_address(address)
    host = getattr(address, "host", None)
    if host is None:
        return printable(str(address))
    return host_and_port(host, address.port)


def end_stream(transport: Any) -> None:
    """Half-close *transport* when everything is sent, or close it where that is impossible."""
    transport.unregisterProducer()
    if ISSLTransport.providedBy(transport) and not isinstance(transport, Transport):
        # Twisted's own TLS has no half-close: beneath it, the plain connection's would
        # cut the TLS stream off.
        transport.loseConnection()
    else:
        transport.loseWriteConnection()


def endpoint_option(make: Callable[[Any, str], T], reactor: object, option: str, text: str) -> T:
    """
    Make an endpoint of what the user wrote behind an option.

    Raises:
        UsageError: It is wrong; one line that says how.
    """
    try:
        return endpoint_from(make, reactor, text)
    except Exception as error:  # noqa: BLE001 - parsers of others raise what they like
        shown = without_credentials(text)
        raise usage.UsageError(f"--{option} {shown}: {error}") from None


def fail_at_exit() -> None:
    """Have the process end with status 1: ``twist`` itself ends with 0 when the reactor stops."""
    atexit.register(_exit_with_failure)


def _exit_with_failure() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
