"""
The parent of a relay with workers: starts them, replaces them, and asks how they are.

Workers are fresh processes with the parent's own command line. They share each
port with ``SO_REUSEPORT``; the parent binds, so that it knows the port, takes no
connection itself, and holds the port while a worker is replaced.
"""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Callable
from operator import itemgetter
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..._endpoints.server import ServerEndpoint
from ..._io.interfaces import Reactor
from ..._net.unix_paths import BoundPath, bound_path
from ...addresses import SocketAddress
from .options import Settings
from .worker import FIRST_SOCKET, FROM_PARENT, HELD_SIGNALS, TO_PARENT, Lines, WorkerPlace

__all__ = ["Supervisor"]

_SHORTEST_LIFE_SECONDS: Final = 10.0
"""A worker that ends sooner is replaced after a pause, which doubles each time."""

_FIRST_PAUSE_SECONDS: Final = 0.5
_LONGEST_PAUSE_SECONDS: Final = 30.0
_ANSWER_SECONDS: Final = 2.0
_RELOAD_SECONDS: Final = 30.0
_MARGIN_SECONDS: Final = 5.0
"""What workers get to end, beyond what their connections get."""

_LOOK_SECONDS: Final = 0.05

_log = Logger()


class _Worker(ProcessProtocol):
    """One worker process."""

    def __init__(self, supervisor: Supervisor, number: int) -> None:
        self.number = number
        self.began = supervisor.reactor.seconds()
        self.ready = False
        self.stale = False
        self._askers: list[Deferred[dict[str, object]]] = []
        self._asked = False
        """A question is on its way, or its answer."""
        self._reloads: dict[int, Deferred[str]] = {}
        self._supervisor = supervisor
        self._lines = Lines(self._on_message)

    def childDataReceived(self, childFD: int, data: bytes) -> None:  # noqa: N802, N803
        """Handle a message of the worker."""
        self._lines.feed(data)

    def _on_message(self, message: dict[str, Any]) -> None:
        if "answer" in message:
            self._asked = False
            askers, self._askers = self._askers, []
            for asker in askers:
                asker.callback(message["status"])
            return
        self.ready = True
        if self.stale:
            # It may have read its files before they changed.
            self.stale = False
            self.reload(self._supervisor.reloads)
        # It may have begun with this one before it got the next.
        for number in [each for each in self._reloads if each <= message["reload"]]:
            self._reloads.pop(number).callback(message["ready"])
        self._supervisor.on_ready(self)

    def ask(self) -> Deferred[dict[str, Any]]:
        """Ask for a snapshot; callers that ask before there is an answer share it."""
        answer: Deferred[dict[str, Any]] = Deferred(self._forget)
        self._askers.append(answer)
        if not self._asked:
            # One that hangs must not find thousands when it goes on.
            self._asked = True
            self._send({"ask": "status"})
        return answer

    def _forget(self, answer: Deferred[dict[str, object]]) -> None:
        self._askers.remove(answer)

    def reload(self, number: int) -> Deferred[str]:
        """Have files read again, for the reload with this number; gives what went wrong."""
        answer: Deferred[str] = Deferred(lambda _: self._reloads.__delitem__(number))
        self._reloads[number] = answer
        self._send({"reload": number})
        return answer.addTimeout(_RELOAD_SECONDS, self._supervisor.reactor).addErrback(
            lambda _: f"worker {self.number} does not answer"
        )

    def _send(self, message: dict[str, object]) -> None:
        transport: Any = self.transport
        try:
            transport.writeToChild(FROM_PARENT, Lines.encode(message))
        except KeyError:
            # The pipe is gone, and `processEnded` about to come.
            pass

    def signal(self, name: str) -> None:
        """Send a signal, if there is still somebody to take it."""
        transport: Any = self.transport
        try:
            transport.signalProcess(name)
        except ProcessExitedAlready:
            pass

    def processEnded(self, reason: Failure) -> None:  # noqa: N802 - Twisted's name
        """Resume the callers that wait, and have the worker replaced."""
        waiting: list[Deferred[Any]] = [*self._askers, *self._reloads.values()]
        for each in waiting:
            each.cancel()
        self._supervisor.on_ended(self, reason)


class Supervisor(Service):
    """
    Runs the workers of a relay.

    Attributes:
        reactor: Where it happens.
        state: As that of `RelayService`.
        reloads: How many there have been.
    """

    def __init__(
        self,
        reactor: Reactor,
        settings: Settings,
        *,
        failed: Callable[[], None],
        ready: Callable[[], None],
    ) -> None:
        """
        Run workers as *settings* say.

        Args:
            reactor: Stopped if the ports cannot be bound.
            settings: Of the relay.
            failed: Called if the ports cannot be bound, before the reactor stops.
            ready: Called when all workers take connections for the first time.
        """
        self.reactor = reactor
        self.state = "starting"
        self.reloads = 0
        self._settings = settings
        self._failed = failed
        self._ready = ready
        self._began = reactor.seconds()
        self._workers: dict[int, _Worker] = {}
        self._pauses: dict[int, float] = {}
        self._waiting: dict[int, Any] = {}
        self._held: list[socket.socket] = []
        self._shared: dict[ServerEndpoint, list[socket.socket]] = {}
        self._paths: dict[ServerEndpoint, BoundPath | None] = {}
        self._ports: dict[ServerEndpoint, int] = {}
        self._hosts: list[str] = []
        self._restarts = 0
        self._reported_ready = False
        self._starting: Deferred[None] | None = None

    # Starting

    def startService(self) -> None:
        """Bind the ports, and start the workers when the reactor runs."""
        super().startService()
        self.reactor.callWhenRunning(self._begin)

    def _begin(self) -> None:
        if self.running:
            self._starting = Deferred.fromCoroutine(self._start())
            self._starting.addErrback(self._on_failure)

    async def _start(self) -> None:
        for endpoint in self._settings.listen:
            await self._hold(endpoint)
        for number in range(1, self._settings.workers + 1):
            await self._spawn(number)
        self._starting = None

    async def _hold(self, endpoint: ServerEndpoint) -> None:
        """Bind what an endpoint listens on, once, so that nobody else takes it."""
        own = endpoint.adopted is None and endpoint.options.ai_family != socket.AF_UNIX
        sockets = await endpoint.bind(shared=own)
        place = SocketAddress.of(sockets[0].family, sockets[0].getsockname())
        self._hosts.append(str(place))
        _log.info(
            "{count} workers relay from {host} to {to}",
            count=self._settings.workers,
            host=str(place),
            to=str(self._settings.routes),
        )
        if not own:
            # One queue for all: such sockets cannot be shared in another way.
            self._shared[endpoint] = sockets
            if endpoint.adopted is None:
                self._paths[endpoint] = bound_path(sockets[0])
            return
        self._ports[endpoint] = place.port
        for sock in sockets:
            self._held.append(_reserve(sock))
            sock.close()

    def _on_failure(self, failure: Failure) -> None:
        if failure.check(CancelledError) is not None:
            return
        _log.critical("cannot listen, so the relay ends: {error}", error=str(failure.value))
        self._failed()
        self.reactor.stop()

    @property
    def _wants_workers(self) -> bool:
        """Whether one that ends is replaced: not all of them were asked to stop."""
        return self.state in {"starting", "running"}

    async def _spawn(self, number: int) -> None:
        """Start a worker on sockets of its own."""
        groups: list[list[socket.socket]] = []
        own: list[socket.socket] = []
        try:
            for endpoint in self._settings.listen:
                sockets = self._shared.get(endpoint)
                if sockets is None:
                    sockets = await endpoint.bind(self._ports[endpoint], shared=True)
                    own += sockets
                groups.append(sockets)
            if self._wants_workers:
                self._run(number, groups)
        finally:
            for sock in own:
                sock.close()

    def _run(self, number: int, groups: list[list[socket.socket]]) -> None:
        child: dict[int, Any] = {0: 0, 1: 1, 2: 2, FROM_PARENT: "w", TO_PARENT: "r"}
        places: list[tuple[int, ...]] = []
        following = FIRST_SOCKET
        for sockets in groups:
            places.append(tuple(range(following, following + len(sockets))))
            for sock in sockets:
                child[following] = sock.fileno()
                following += 1
        worker = _Worker(self, number)
        place = WorkerPlace(number, tuple(places))
        # Until the worker handles them, these wait: Ctrl-C at a terminal reaches it, too.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
        try:
            self.reactor.spawnProcess(
                worker,
                sys.executable,
                [sys.executable, *sys.orig_argv[1:]],
                env=place.environment(),
                childFDs=child,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._workers[number] = worker

    def on_ready(self, worker: _Worker) -> None:
        """Note that a worker takes connections; for workers."""
        if self._reported_ready or self.state != "starting":
            return
        if sum(each.ready for each in self._workers.values()) == self._settings.workers:
            self._reported_ready = True
            self.state = "running"
            self._ready()

    def on_ended(self, worker: _Worker, reason: Failure) -> None:
        """Replace a worker, unless all are to end; for workers."""
        number = worker.number
        if self._workers.get(number) is worker:
            del self._workers[number]
        if not self._wants_workers:
            return
        lived = self.reactor.seconds() - worker.began
        pause = self._pauses.get(number, 0.0) if lived < _SHORTEST_LIFE_SECONDS else 0.0
        self._pauses[number] = min(max(pause * 2, _FIRST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS)
        self._restarts += 1
        _log.error(
            "worker {number} has ended after {lived:.1f} s ({reason}) and is replaced in "
            "{pause:g} s",
            number=number,
            lived=lived,
            reason=reason.getErrorMessage(),
            pause=pause,
        )
        self._waiting[number] = self.reactor.callLater(pause, self._replace, number)

    def _replace(self, number: int) -> None:
        self._waiting.pop(number, None)
        starting = Deferred.fromCoroutine(self._spawn(number))
        starting.addErrback(self._not_replaced, number)

    def _not_replaced(self, failure: Failure, number: int) -> None:
        if not self._wants_workers:
            return
        _log.error(
            "worker {number} cannot be replaced yet: {error}",
            number=number,
            error=str(failure.value),
        )
        self._waiting[number] = self.reactor.callLater(self._pauses[number], self._replace, number)

    # While it runs

    def reload(self) -> Deferred[list[str]]:
        """
        Have every worker read its files again.

        Returns:
            What went wrong, a line for each worker that keeps something, or does
            not answer.
        """
        self.reloads += 1
        for worker in self._workers.values():
            # A worker that is not ready may be reading its files just now: it is asked afterwards.
            worker.stale = not worker.ready
        ready = [worker for worker in self._workers.values() if worker.ready]
        return gatherResults([worker.reload(self.reloads) for worker in ready]).addCallback(
            lambda errors: list(dict.fromkeys(each for each in errors if each))
        )

    async def snapshot(self) -> dict[str, Any]:
        """Return the sums over all workers, as values of JSON."""
        ready = [worker for worker in self._workers.values() if worker.ready]
        asked = [
            worker.ask().addTimeout(_ANSWER_SECONDS, self.reactor).addErrback(lambda _: None)
            for worker in ready
        ]
        answers = [each for each in await gatherResults(asked) if each is not None]
        sums: dict[str, Any] = {}
        for each in answers:
            sums = _added(sums, each | {"certificates": [], "errors": []})
        states = {each["state"] for each in answers}
        state = "paused" if self.state == "running" and states == {"paused"} else self.state
        return {
            **sums,
            # They are the same in all.
            "certificates": answers[0].get("certificates") if answers else [],
            "errors": sorted(
                (error for each in answers for error in each.get("errors", ())),
                key=itemgetter("time"),
            )[-10:],
            "state": state,
            "uptime": round(self.reactor.seconds() - self._began, 3),
            "listening": self._hosts,
            "workers": {
                "wanted": self._settings.workers,
                "running": len(ready),
                "answering": len(answers),
                "restarts": self._restarts,
            },
        }

    # The end

    def _let_go(self) -> None:
        for call in self._waiting.values():
            call.cancel()
        self._waiting.clear()
        if self._starting is not None:
            self._starting.cancel()
        for endpoint, sockets in self._shared.items():
            path = self._paths.get(endpoint)
            if path is not None:
                path.unlink()
            for sock in sockets:
                sock.close()
        for sock in self._held:
            sock.close()
        self._shared.clear()
        self._held.clear()

    def drain(self) -> Deferred[None]:
        """Have every worker drain, and wait for all of them."""
        self.state = "draining"
        return Deferred.fromCoroutine(
            self._end("TERM", self._settings.limits.drain + _MARGIN_SECONDS)
        )

    def stopService(self) -> Deferred[None]:
        """End every worker at once."""
        super().stopService()
        self.state = "stopped"
        return Deferred.fromCoroutine(self._end("INT", _MARGIN_SECONDS))

    async def _end(self, name: str, seconds: float) -> None:
        self._let_go()
        for worker in list(self._workers.values()):
            # One that is still starting holds nothing, and would not handle a signal.
            worker.signal(name if worker.ready else "KILL")
        end = self.reactor.seconds() + seconds
        while self._workers and self.reactor.seconds() < end:
            await deferLater(self.reactor, _LOOK_SECONDS)
        for worker in list(self._workers.values()):
            _log.error(
                "worker {number} did not stop within {seconds:g} s; sending SIGKILL",
                number=worker.number,
                seconds=seconds,
            )
            worker.signal("KILL")
        while self._workers:
            await deferLater(self.reactor, _LOOK_SECONDS)


def _reserve(bound: socket.socket) -> socket.socket:
    """Return a socket on the address of *bound* that holds it, and takes no connections."""
    sock = socket.socket(bound.family, bound.type, bound.proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if bound.family == socket.AF_INET6:
            only = bound.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        sock.bind(bound.getsockname())
    except OSError:
        sock.close()
        raise
    return sock


def _added(first: dict[str, Any], second: dict[str, object]) -> dict[str, object]:
    """Return two snapshots as one: numbers are added, what is in both is of the same form."""
    result: dict[str, object] = dict(first)
    for key, value in second.items():
        before = first.get(key)
        if before is None or isinstance(value, str):
            result[key] = value
        elif isinstance(value, dict):
            result[key] = _added(before, value)
        elif isinstance(value, list):
            pairs = zip(before, value, strict=False)
            result[key] = [_added(a, b) if isinstance(b, dict) else b for a, b in pairs]
        else:
            result[key] = before + value
    return result
