"""
How a coroutine goes on that awaits an operation.

Twisted keeps a chain of callbacks for whoever waits for a Deferred, and a coroutine
is one of them. Alone it needs no chain, and to build and run one for each wait
would cost an echo server a twelfth of its time.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

__all__ = ["Resumable"]

T = TypeVar("T")


def _find_resume() -> Any:
    """Return what Twisted adds to a Deferred that a coroutine awaits, or `None`."""
    made = Deferred[None]()
    parts = ("_callbacks", "_canceller", "_runningCallbacks")
    if not all(hasattr(made, part) for part in parts):
        return None
    return getattr(defer, "_gotResultInlineCallbacks", None)


_RESUME: Final = _find_resume()
"""`None`, if this Twisted has not the parts that are used here; then all go along the chain."""


class Resumable(Deferred[T]):
    """A Deferred that calls the one coroutine which awaits it; for all others as any."""

    _coroutine: tuple[Any, ...] | None = None
    """The coroutine's arguments for `_RESUME`, beside the result."""

    def finish(self, result: T | Failure) -> None:
        """Fire with *result*."""
        coroutine = self._coroutine
        if coroutine is None or self.paused or isinstance(result, Failure):
            self.callback(result)
            return
        self._coroutine = None
        self._canceller = None
        # Who is added by what goes on now comes after it.
        self.called = self._runningCallbacks = True
        self.result = result
        _RESUME(result, *coroutine)
        # What the coroutine's callback leaves for the next one.
        self.result = None
        self._runningCallbacks = False
        if self._callbacks:
            self.pause()
            self.unpause()

    def addBoth(self, callback: Any, *args: Any, **kwargs: Any) -> Deferred[Any]:
        """Add a callback for result and failure alike."""
        # Compared first: what else is looked at may be gone where `_RESUME` is `None`.
        if callback is _RESUME and not (self._callbacks or self._coroutine or self.called):
            self._coroutine = args
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
        """Put the coroutine into the chain, before who is added now."""
        coroutine, self._coroutine = self._coroutine, None
        if coroutine is not None:
            super().addBoth(_RESUME, *coroutine)
