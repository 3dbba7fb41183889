"""Commands that do one thing and end, by themselves or under ``twist``."""

from __future__ import annotations

import atexit
import getopt
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ReactorNotRunning
from twisted.logger import Logger
from twisted.python import usage
from twisted.python.failure import Failure

from ..._io.interfaces import Reactor
from .outcomes import Outcome
from .text import encoded, printable

__all__ = ["OneShot", "OneShotOptions", "exit_process_with", "run_alone", "say"]

_STDERR = 2

_log = Logger()


def say(line: str) -> None:
    """Write *line* to standard error, whatever it holds; nothing happens if that is closed."""
    try:
        os.write(_STDERR, encoded(f"netsock: {printable(line, 1000)}\n"))
    except OSError:
        # Nobody is there to read it.
        pass


class OneShotOptions(usage.Options):
    """The options of a command that ends by itself; a subclass runs it."""

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Parse options before and after the arguments, as people write them."""
        assert options is not None
        try:
            found, arguments = getopt.gnu_getopt(list(options), self.shortOpt, self.longOpt)
        except getopt.error as error:
            raise usage.UsageError(str(error)) from None
        ordered: list[str] = []
        for name, value in found:
            takes_value = f"{name[2:]}=" in self.longOpt or f"{name[1:]}:" in self.shortOpt
            ordered += [name, value] if takes_value else [name]
        super().parseOptions([*ordered, "--", *arguments])

    def postOptions(self) -> None:
        """Keep the log of ``twist`` off standard output, which is this command's."""
        top: Any = self
        while top.parent is not None:
            top = top.parent
        if top.get("logFile") is sys.stdout:
            top["logFile"] = sys.stderr

    async def run(self, reactor: Reactor) -> Outcome:
        """Do it, and return how it ended; cancelling leaves nothing behind."""
        raise NotImplementedError


class OneShot(Service):
    """Runs a command when the reactor runs, and stops the reactor when it has ended."""

    def __init__(
        self, reactor: Reactor, options: OneShotOptions, ended: Callable[[Outcome], None]
    ) -> None:
        """Run *options* on *reactor*, and call *ended* with what came of it."""
        self._reactor = reactor
        self._options = options
        self._ended = ended
        self._running: Deferred[object] | None = None
        self._stopped = False

    def startService(self) -> None:
        """Begin as soon as the reactor runs."""
        super().startService()
        self._reactor.callWhenRunning(self._begin)

    def _begin(self) -> None:
        if self._stopped:
            return
        self._running = Deferred.fromCoroutine(self._options.run(self._reactor))
        self._running.addCallbacks(self._ended, self._failed)
        self._running.addBoth(self._stop_reactor)

    def _failed(self, failure: Failure) -> None:
        if self._stopped and failure.check(CancelledError) is not None:
            return
        _log.failure("the command is at fault", failure)
        say(f"this should not happen: {type(failure.value).__name__}: {failure.value}")
        self._ended(Outcome.FAILED)

    def _stop_reactor(self, _: object) -> None:
        self._running = None
        if not self._stopped:
            _stop(self._reactor)

    def stopService(self) -> Deferred[object] | None:
        """Cancel the command if it runs; done when it has cleaned up."""
        super().stopService()
        self._stopped = True
        running = self._running
        if running is not None:
            running.cancel()
        return running


def _stop(reactor: Reactor) -> None:
    # A signal may come in the reactor iteration in which the command ends by itself.
    with suppress(ReactorNotRunning):
        reactor.stop()


def exit_process_with(outcome: Outcome) -> None:
    """Have the process end with *outcome*: ``twist`` itself always says 0."""
    if outcome != Outcome.OK:
        atexit.register(_exit, outcome)


def _exit(outcome: Outcome) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(outcome)


_SIGNALS = {
    signal.SIGHUP: Outcome.HUNG_UP,
    signal.SIGINT: Outcome.INTERRUPTED,
    signal.SIGTERM: Outcome.TERMINATED,
}


def run_alone(reactor: Reactor, options: OneShotOptions) -> Outcome:
    """
    Run a command on a reactor of its own, and return its exit status.

    SIGHUP, SIGINT and SIGTERM cancel it; it ends when it has cleaned up. A signal that was
    ignored before, as nohup(1) does with SIGHUP, stays so.
    """
    outcomes: list[Outcome] = []
    service = OneShot(reactor, options, outcomes.append)

    def on_signal(number: int, _frame: object) -> None:
        outcomes.insert(0, _SIGNALS[signal.Signals(number)])
        reactor.callFromThread(stop)

    def stop() -> None:
        if not stopping:
            stopping.append(True)
            _stop(reactor)

    stopping: list[bool] = []
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, on_signal)
    reactor.addSystemEventTrigger("before", "shutdown", lambda: stopping.append(True))
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    service.startService()
    # All of Twisted's have the argument, and the interface does not.
    run: Callable[..., None] = reactor.run
    run(installSignalHandlers=False)
    return outcomes[0] if outcomes else Outcome.FAILED
