"""
The relay as a process: its services, signals, and notifications to systemd (sd_notify(3)).

SIGHUP has files read again, SIGTERM drains, a second SIGTERM ends at once, and so
does SIGINT. The reactor handles the last two: its exit status has the signal.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from twisted.application.service import IService, MultiService
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.stdio import StandardIO
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..._io.interfaces import Reactor
from .._common.service import fail_at_exit
from .limits import raise_descriptor_limit
from .options import Settings
from .service import RelayService
from .supervisor import Supervisor
from .worker import FROM_PARENT, HELD_SIGNALS, TO_PARENT, Channel

__all__ = ["Notifier", "Operation", "make_relay"]

_NOTIFY_SOCKET: Final = "NOTIFY_SOCKET"

_log = Logger()


class Notifier:
    """Sends states to the supervisor, if there is one."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """Take the supervisor's socket from *environment*."""
        self._address = environment.get(_NOTIFY_SOCKET, "")
        self._complained = False

    def ready(self, status: str) -> None:
        """Report that connections are accepted, for the first time or after a reload."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Report that files are read again; `ready` reports when that is done."""
        # Which one of several reloads it is, systemd learns from the time.
        moment = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={moment}")

    def stopping(self, status: str) -> None:
        """Report that the shutdown has begun."""
        self._send("STOPPING=1", f"STATUS={status}")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        # A leading @ stands for the NUL byte of an abstract name.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        message = "\n".join(line.replace("\n", " ") for line in lines)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.sendto(message.encode(), address)
        except OSError as error:
            if not self._complained:
                self._complained = True
                _log.warn("cannot notify the supervisor: {error}", error=str(error))


class Operation(MultiService):
    """Runs a relay: alone, as a worker, or as the parent of workers."""

    def __init__(self, reactor: Reactor, settings: Settings, failed: Callable[[], None]) -> None:
        """
        Run a relay.

        Args:
            reactor: Is stopped when the relay has drained.
            settings: What it is to do.
            failed: Called if it cannot listen, before the reactor stops.
        """
        super().__init__()
        self._reactor = reactor
        self._settings = settings
        self._listening = False
        self._ending = False
        self._reloading: Deferred[object] | None = None
        self._again = False
        self._before: Any = None
        self._notifier: Notifier | Channel = Notifier()
        self._main: Any = self._make_main(failed)
        self._main.setServiceParent(self)
        if settings.status is not None and settings.worker is None:
            from .status import StatusService

            StatusService(reactor, settings.status, self._main.snapshot, failed).setServiceParent(
                self
            )

    def _make_main(self, failed: Callable[[], None]) -> Any:
        settings = self._settings
        if settings.workers > 1 and settings.worker is None:
            return Supervisor(self._reactor, settings, failed=failed, ready=self._on_ready)
        listen = settings.listen
        return RelayService(
            self._reactor,
            listen if settings.worker is None else settings.worker.place(listen),
            settings.routes,
            failed=failed,
            access=settings.access,
            limits=settings.limits,
            reload_every=settings.reload_every,
            # One of the workers speaks for all.
            expect_expiry=settings.expect_expiry
            if settings.worker is None or settings.worker.number == 1
            else None,
            ready=self._on_ready,
        )

    def startService(self) -> None:
        """Begin, and take signals over when the reactor has."""
        connections = self._settings.limits.connections
        if connections is not None:
            raise_descriptor_limit(connections)
        if self._settings.worker is not None:
            self._notifier = Channel(self._main.snapshot, self._reload, self._orphaned)
            # mypy looks at the one of Windows.
            connect: Any = StandardIO
            connect(self._notifier, stdin=FROM_PARENT, stdout=TO_PARENT, reactor=self._reactor)
        super().startService()
        self._reactor.callWhenRunning(self._take_signals)

    def _take_signals(self) -> None:
        self._before = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGHUP, self._on_signal)
        signal.signal(signal.SIGTERM, self._on_signal)
        if self._settings.worker is not None:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_SIGNALS)

    def _on_signal(self, number: int, frame: object) -> None:
        # Between two instructions of whatever runs: what is to be done waits for its turn.
        if number == signal.SIGHUP:
            self._reactor.callFromThread(self._reload)
        elif not self._ending:
            self._ending = True
            self._reactor.callFromThread(self._drain)
        else:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            self._before(number, frame)

    # Notifications

    @property
    def _status_text(self) -> str:
        count = len(self._settings.listen)
        return f"relaying from {count} endpoint{'' if count == 1 else 's'}"

    def _on_ready(self) -> None:
        self._listening = True
        self._reactor.callWhenRunning(self._tell_ready, "")

    def _tell_ready(self, wrong: str) -> None:
        if self._ending or not self._listening:
            # What is read again before there are connections makes none welcome.
            return
        if isinstance(self._notifier, Channel):
            # The parent makes one status of what its workers report.
            self._notifier.ready(wrong)
        else:
            self._notifier.ready(
                f"{self._status_text}; reload failed: {wrong}" if wrong else self._status_text
            )

    def _reload(self) -> None:
        if self._ending:
            return
        if self._reloading is not None:
            # What is being read may be older than this signal.
            self._again = True
            return
        if self._listening:
            self._notifier.reloading()
        _log.info("SIGHUP: reading certificates and keys again")

        def done(result: Any) -> None:
            self._reloading = None
            wrong = [str(result.value)] if isinstance(result, Failure) else result
            self._tell_ready("; ".join(wrong))
            again, self._again = self._again, False
            if again:
                self._reload()

        self._reloading = reloading = self._main.reload()
        reloading.addBoth(done)

    # The end

    def _drain(self) -> None:
        self._notifier.stopping("waiting for connections to finish")
        draining: Deferred[Any] = maybeDeferred(self._main.drain)
        draining.addErrback(lambda f: _log.failure("draining failed", f))
        draining.addCallback(lambda _: self._stop())

    def _stop(self) -> None:
        if self._reactor.running and not getattr(self._reactor, "_stopped", False):
            self._reactor.stop()

    def _orphaned(self) -> None:
        """Stop: no parent is left that could ask this worker to."""
        if not self._ending and self.running:
            self._ending = True
            _log.error("the parent is gone, so this worker ends")
            self._drain()

    def stopService(self) -> Any:
        """End at once."""
        self._ending = True
        return super().stopService()


def make_relay(options: Any, reactor: Reactor) -> IService:
    """Return the relay's service, or the demonstration's without endpoints."""
    if not options["listen"]:
        from .demo import make_demonstration

        return make_demonstration(reactor, sys.stdout)
    return Operation(reactor, options.settings, fail_at_exit)
