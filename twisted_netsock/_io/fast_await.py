"""
How a coroutine goes on that awaits an operation.

Twisted keeps a chain of callbacks for all that wait for a Deferred, and a coroutine
is one of them. Where it is the only one, its entry is taken out of the chain when the
operation ends, the coroutine is resumed, and the entry goes to the operation that it
awaits next. Without this an echo server on 100 connections takes 1.12 times the
processor time, which goes to building and running a chain for each wait, and to
Twisted's loop over all that a coroutine may await. What is done at once needs no
waiting at all.

This is the one module that knows inner parts of Twisted's Deferreds. Each is looked
for when it is imported; where one is missing, everything goes along the chain.
"""

from __future__ import annotations

from collections.abc import Generator
from types import CoroutineType
from typing import Any, Final, TypeVar

from twisted.internet import defer
from twisted.internet.defer import Deferred, NotACoroutineError, ensureDeferred
from twisted.python.failure import Failure

__all__ = ["Done", "Resumable"]

T = TypeVar("T")


def _find_resume() -> Any:
    """Return what Twisted adds to a Deferred that a coroutine awaits, or `None`."""
    try:
        resume: Any = defer._gotResultInlineCallbacks
        made: Any = Deferred().addBoth(resume, None)
        takes = resume.__code__.co_varnames[: resume.__code__.co_argcount]
        parts = made._callbacks, made._canceller, made._runningCallbacks
        known = (
            takes == ("r", "waiting", "gen", "status", "context")
            and parts == ([((resume, (None,), {}),) * 2], None, False)
            and hasattr(defer._CancellationStatus(made), "waitingOn")
        )
    except (AttributeError, TypeError):
        # It is gone, or something else.
        return None
    return resume if known else None


_RESUME: Final = _find_resume()
"""`None`, if this Twisted has not the parts that are used here; then all go along the chain."""


class Done(Deferred[T]):
    """A Deferred that has fired already; it is awaited in fewer steps than Twisted's."""

    called = True

    def __init__(self, result: T) -> None:
        """Be what `twisted.internet.defer.succeed` makes of *result*."""
        super().__init__()
        self.result: Any = result

    def __await__(self) -> Generator[Any, Any, T]:
        """Return the result, at once unless callbacks that were added have changed it."""
        result = self.result
        if self.paused or isinstance(result, Failure):
            result = yield from super().__await__()
        return result  # type: ignore[no-any-return]

    def __str__(self) -> str:
        """Leave out the result, which may be anybody's secret."""
        return "<Done>"

    __repr__ = __str__


class Resumable(Deferred[T]):
    """A Deferred that resumes the coroutine by itself, if nothing else waits for it."""

    _resumable = True

    def __await__(self) -> Generator[Any, Any, T]:
        """Wait for the result, which is sent into the coroutine when it is resumed."""
        if self.called:
            result = yield from super().__await__()
        else:
            result = yield self
        return result

    def finish(self, result: T | Failure) -> None:
        """Fire with *result*."""
        # `_RESUME` is compared first: where it is `None`, the other parts may be gone.
        if (
            _RESUME is None
            or len(waiting := self._callbacks) != 1
            or waiting[0][0][0] is not _RESUME
            or self.paused
            or isinstance(result, Failure)
        ):
            self.callback(result)
            return
        self._canceller = None
        # Callbacks that are added by what runs now come after it.
        self.called = self._runningCallbacks = True
        self.result = result
        # What the coroutine's callback leaves for the next one.
        try:
            _go_on(waiting.pop(), result)
            self.result = None
        except BaseException:  # noqa: BLE001 - as of any callback
            # The coroutine's own Deferred has been fired already, say.
            self.result = Failure()
        self._runningCallbacks = False
        if waiting or self.result is not None:
            self.pause()
            self.unpause()


def _go_on(callback: Any, result: object) -> None:
    """Give the coroutine of *callback* the *result*, and add *callback* to what it awaits next."""
    arguments = callback[0][1]
    _, generator, status, context = arguments
    if generator.__class__ is not CoroutineType:
        # A generator of inlineCallbacks, which has more ways to end.
        _RESUME(result, *arguments)
        return
    try:
        awaited = context.run(generator.send, result)
    except StopIteration as stop:
        returned = stop.value
    except BaseException:  # noqa: BLE001 - the coroutine's Deferred fails with it
        status.deferred.errback()
        return
    else:
        # Not isinstance: of Deferreds, which are of an abstract class, that takes its time.
        if getattr(awaited, "_resumable", False) and not awaited.called:
            # The entry moves on, where `addBoth` would build another.
            status.waitingOn = awaited
            awaited._callbacks.append(callback)
        else:
            _wait_for(awaited, arguments)
        return
    status.deferred.callback(returned)


def _wait_for(awaited: Any, arguments: Any) -> None:
    """Have `_RESUME` called with the result of *awaited*, which the coroutine has yielded."""
    status = arguments[2]
    try:
        # A coroutine that was yielded instead of awaited is run, as Twisted does.
        waiting = ensureDeferred(awaited)
    except NotACoroutineError:
        waiting = None
    if waiting is None:
        # Something of another library, which Twisted sends back.
        _RESUME(awaited, *arguments)
        return
    status.waitingOn = waiting
    waiting.addBoth(_RESUME, *arguments)
