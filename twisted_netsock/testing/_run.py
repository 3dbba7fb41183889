"""A coroutine on the reactor, to its end, and where it waits."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from .._io.interfaces import Reactor

__all__ = ["current_coroutine", "run_on_reactor", "start", "waiting_at"]

Make = Callable[[], Coroutine[Any, Any, object]]

_current: list[object] = []


def current_coroutine() -> object:
    """Return the coroutine that `start` has begun and that has not ended, or `None`."""
    return _current[-1] if _current else None


def waiting_at(coroutine: object) -> Iterator[tuple[str, int, str]]:
    """Give file, line and function where *coroutine* waits, and where what it waits for does."""
    while inspect.iscoroutine(coroutine) and coroutine.cr_frame is not None:
        code = coroutine.cr_frame.f_code
        yield code.co_filename, coroutine.cr_frame.f_lineno, code.co_name
        coroutine = coroutine.cr_await


def start(reactor: Reactor, make: Make, seconds: float) -> Deferred[object]:
    """
    Begin what *make* returns in the next reactor iteration, and cancel it after *seconds*.

    Errors:
        AssertionError: The time was over; it says where the coroutine waited.
        Exception: What it has raised.
    """

    def begin() -> Deferred[object]:
        coroutine = make()
        _current.append(coroutine)
        places: list[str] = []
        running = Deferred.fromCoroutine(coroutine)

        def give_up() -> None:
            places.extend(
                f"  {name}:{number} in {function}"
                for name, number, function in waiting_at(coroutine)
            )
            running.cancel()

        timer = reactor.callLater(seconds, give_up)

        def end(result: object) -> object:
            _current.remove(coroutine)
            if timer.active():
                timer.cancel()
            if places and isinstance(result, Failure) and result.check(CancelledError):
                lines = "\n".join([f"after {seconds:g} s the test waits at", *places])
                return Failure(AssertionError(lines))
            return result

        return running.addBoth(end)

    return deferLater(reactor, 0, begin)


def run_on_reactor(reactor: Reactor, make: Make, seconds: float) -> object:
    """
    Run the reactor until the coroutine that *make* returns has ended, and return its result.

    Raises:
        KeyboardInterrupt: Ctrl-C has stopped the reactor.
    """
    results: list[object] = []
    running = start(reactor, make, seconds)
    running.addBoth(results.append)
    running.addBoth(lambda _: reactor.callLater(0, reactor.crash))
    run: Callable[..., None] = reactor.run
    run(installSignalHandlers=threading.current_thread() is threading.main_thread())
    if not results:
        running.cancel()
        raise KeyboardInterrupt
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return results[0]
