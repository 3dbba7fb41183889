"""
How a coroutine goes on that awaits an operation.

Twisted keeps a chain of callbacks for all that wait for a Deferred, and a coroutine
is one of them. Alone it needs no chain, and to build and run one for each wait, and
come back through Twisted's loop over all that a coroutine may await, would cost an
echo server an eighth of its time. What is done at once needs no waiting at all.

This is the one module that knows inner parts of Twisted's Deferreds. Each is looked
for when it is imported; where one is missing, everything goes along the chain.
"""

from __future__ import annotations

from collections.abc import Generator
from inspect import iscoroutine, isgenerator
from types import CoroutineType
from typing import Any, Final, TypeVar

from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

__all__ = ["Done", "Resumable"]

T = TypeVar("T")


def _find_resume() -> Any:
    """Return what Twisted adds to a Deferred that a coroutine awaits, or `None`."""
    made: Deferred[None] = Deferred()
    resume: Any = getattr(defer, "_gotResultInlineCallbacks", None)
    status: Any = getattr(defer, "_CancellationStatus", None)
    parts = ("_callbacks", "_canceller", "_runningCallbacks")
    if not all(hasattr(made, part) for part in parts):
        return None
    try:
        takes = resume.__code__.co_varnames[: resume.__code__.co_argcount]
        known = takes == ("r", "waiting", "gen", "status", "context")
        return resume if known and hasattr(status(made), "waitingOn") else None
    except (AttributeError, TypeError):
        # It is gone, or something else.
        return None


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
    """A Deferred that calls the one coroutine which awaits it; for all others as any."""

    _coroutine: tuple[Any, ...] | None = None
    """The coroutine's arguments for `_RESUME`, beside the result."""

    def __await__(self) -> Generator[Any, Any, T]:
        """Wait for the result, which is sent into the coroutine when it is resumed."""
        if self.called:
            result = yield from super().__await__()
        else:
            result = yield self
        return result

    def finish(self, result: T | Failure) -> None:
        """Fire with *result*."""
        coroutine = self._coroutine
        if coroutine is None or self.paused or isinstance(result, Failure):
            self.callback(result)
            return
        self._coroutine = None
        self._canceller = None
        # Callbacks that are added by what runs now come after it.
        self.called = self._runningCallbacks = True
        self.result = result
        # What the coroutine's callback leaves for the next one.
        try:
            _go_on(coroutine, result)
            self.result = None
        except BaseException:  # noqa: BLE001 - as of any callback
            # The coroutine's own Deferred has been fired already, say.
            self.result = Failure()
        self._runningCallbacks = False
        if self.result is not None or self._callbacks:
            self.pause()
            self.unpause()

    def _take(self, coroutine: tuple[Any, ...]) -> bool:
        """Have *coroutine* called, unless somebody else waits already, and say so."""
        if self.called or self._coroutine or self._callbacks:
            return False
        self._coroutine = coroutine
        return True

    def addBoth(self, callback: Any, *args: Any, **kwargs: Any) -> Deferred[Any]:
        """Add a callback for result and failure alike."""
        # Compared first: what else is looked at may be gone where `_RESUME` is `None`.
        if callback is _RESUME and self._take(args):
            return self
        self._chain()
        return super().addBoth(callback, *args, **kwargs)

    def addCallbacks(self, *args: Any, **kwargs: Any) -> Deferred[Any]:
        """Add a callback and an errback."""
        self._chain()
        return super().addCallbacks(*args, **kwargs)

    def addCallback(self, callback: Any, *args: Any, **kwargs: Any) -> Deferred[Any]:
        """Add a callback."""
        self._chain()
        return super().addCallback(callback, *args, **kwargs)

    def addErrback(self, errback: Any, *args: Any, **kwargs: Any) -> Deferred[Any]:
        """Add an errback."""
        self._chain()
        return super().addErrback(errback, *args, **kwargs)

    def callback(self, result: T | Failure) -> None:
        """Fire, along the chain."""
        self._chain()
        super().callback(result)

    def errback(self, fail: Failure | BaseException | None = None) -> None:
        """Fail, along the chain."""
        self._chain()
        super().errback(fail)

    def _chain(self) -> None:
        """Put the coroutine into the chain, before the callback that is added now."""
        coroutine, self._coroutine = self._coroutine, None
        if coroutine is not None:
            # Twisted chains a Deferred that a callback returns without asking it.
            chained, self._callbacks = self._callbacks, []
            super().addBoth(_RESUME, *coroutine)
            self._callbacks.extend(chained)


def _go_on(coroutine: tuple[Any, ...], result: object) -> None:
    """Give *coroutine* the *result* that it awaits, and have it called with the next one."""
    _, generator, status, context = coroutine
    if generator.__class__ is not CoroutineType:
        # A generator of inlineCallbacks, which has more ways to end.
        _RESUME(result, *coroutine)
        return
    try:
        awaited = context.run(generator.send, result)
    except StopIteration as stop:
        returned = stop.value
    except BaseException:  # noqa: BLE001 - the coroutine's Deferred fails with it
        status.deferred.errback()
        return
    else:
        _wait_for(awaited, coroutine)
        return
    status.deferred.callback(returned)


def _wait_for(awaited: Any, coroutine: tuple[Any, ...]) -> None:
    """Have *coroutine* called with the result of *awaited*, which it has just yielded."""
    _, generator, status, context = coroutine
    # Not isinstance: of Deferreds, which are of an abstract class, that takes its time.
    take = getattr(awaited, "_take", None)
    if take is not None and take(coroutine):
        status.waitingOn = awaited
        return
    if not isinstance(awaited, Deferred):
        if not (iscoroutine(awaited) or isgenerator(awaited)):
            # Something of another library, which Twisted sends back.
            _RESUME(awaited, [False, None], generator, status, context)
            return
        # One that was yielded instead of awaited, which Twisted runs.
        yielded: Any = awaited
        awaited = Deferred.fromCoroutine(yielded)
    status.waitingOn = awaited
    awaited.addBoth(_RESUME, [False, None], generator, status, context)
