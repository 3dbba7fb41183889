"""`Deadline`: an end that several stages of one connection share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from .._io.interfaces import Reactor
from ..addresses import SocketAddress
from ..errors import SocketConnectionTimeoutError

__all__ = ["Deadline"]

T = TypeVar("T")


class Deadline:
    """A moment of the reactor's, or none."""

    __slots__ = ("_end", "_reactor")

    def __init__(self, reactor: Reactor, seconds: float | None) -> None:
        """End in *seconds* from now; `None`: never."""
        self._reactor = reactor
        self._end = None if seconds is None else reactor.seconds() + seconds

    def remaining(self, limit: float | None = None) -> float | None:
        """Return the seconds left, at most *limit*; `None` for no end."""
        if self._end is None:
            return limit
        left = max(0.0, self._end - self._reactor.seconds())
        return left if limit is None else min(left, limit)

    def bound(
        self,
        deferred: Deferred[T],
        stage: str,
        attempts: Callable[[], list[tuple[SocketAddress, Exception]]] = list,
    ) -> Deferred[T]:
        """
        Cancel *deferred* when the time is over, and fail with `SocketConnectionTimeoutError`.

        Its *attempts* are those at that time: once cancelled, there are none under way.
        """
        left = self.remaining()
        if left is None or deferred.called:
            return deferred
        tried: list[tuple[SocketAddress, Exception]] = []

        def expire() -> None:
            tried.extend(attempts())
            expired.append(True)
            deferred.cancel()

        def done(result: T | Failure) -> T | Failure:
            if timer.active():
                timer.cancel()
            if expired and isinstance(result, Failure) and result.check(CancelledError):
                return Failure(SocketConnectionTimeoutError(stage, attempts=tried))
            return result

        expired: list[bool] = []
        timer = self._reactor.callLater(left, expire)
        return deferred.addBoth(done)
