"""
Waiting on the reactor: run one operation of the try layer until it is done.

`drive` is for what happens to a descriptor before and after its life as a
socket or transport: connecting, handshakes, TLS shutdown. Sockets and
transports keep their own two directions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from .interfaces import Reactor
from .poller import Slots, Want

__all__ = ["drive"]

T = TypeVar("T")


def drive(
    reactor: Reactor,
    watch: Slots,
    attempt: Callable[[], T | Want],
    *,
    timeout: float | None = None,
    timed_out: Callable[[], Exception] | None = None,
    first: Want | None = None,
) -> Deferred[T]:
    """
    Try *attempt* until it returns something other than a `Want`.

    Args:
        reactor: For the timeout.
        watch: The descriptor's watch, for nothing else meanwhile.
        attempt: Called at once, and again whenever the descriptor is what it
            wanted.
        timeout: Seconds until the Deferred fails with what *timed_out* makes.
        timed_out: Makes the timeout's error.
        first: What to wait for before the first attempt.

    Returns:
        What *attempt* returns, when it does; fails with what it raises, and
        with the reason when the poller ends.

    Cancelling:
        Fails with `CancelledError` and waits no more; descriptor and watch stay
        open, and are the caller's to close.
    """
    if first is None:
        try:
            result = attempt()
        except BaseException:  # noqa: BLE001 - the caller gets it
            return fail()
        if not isinstance(result, Want):
            return succeed(result)
        first = result
    return _Drive(reactor, watch, attempt, timed_out).start(timeout, first)


class _Drive(Generic[T]):
    """One running `drive`: the owner of the watch for that time."""

    __slots__ = ("_attempt", "_deferred", "_reactor", "_timed_out", "_timer", "_watch")

    def __init__(
        self,
        reactor: Reactor,
        watch: Slots,
        attempt: Callable[[], T | Want],
        timed_out: Callable[[], Exception] | None,
    ) -> None:
        self._reactor = reactor
        self._watch = watch
        self._attempt = attempt
        self._timed_out = timed_out
        self._timer: IDelayedCall | None = None
        self._deferred: Deferred[T] = Deferred(self._cancel)

    def start(self, timeout: float | None, first: Want) -> Deferred[T]:
        deferred = self._deferred
        self._watch.owner = self
        # One attempt needs one slot; the other may still be its last owner's.
        self._watch.stop_send()
        self._wait(first)
        if timeout is not None and not deferred.called:
            self._timer = self._reactor.callLater(max(0.0, timeout), self._expire)
        return deferred

    def _wait(self, want: Want) -> None:
        try:
            self._watch.want_receive(want)
        except OSError as error:
            self._finish(Failure(error))

    def _try(self) -> None:
        result: T | Want | Failure
        try:
            result = self._attempt()
        except BaseException:  # noqa: BLE001 - the caller gets it
            result = Failure()
        if self._deferred.called:
            # Cancelled by what the attempt called, a verifier say: there is no more to do.
            pass
        elif isinstance(result, Want):
            self._wait(result)
        else:
            self._finish(result)
        # The traceback of a failure has this frame. If the frame had the failure as well, the
        # connection with OpenSSL's memory would stay until the garbage collector finds them.
        del result

    def _finish(self, result: T | Failure) -> None:
        self._stop()
        self._deferred.callback(result)

    def _stop(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        watch = self._watch
        watch.stop_receive()
        watch.owner = None

    def _cancel(self, _: object) -> None:
        self._stop()

    def _expire(self) -> None:
        self._timer = None
        assert self._timed_out is not None
        self._finish(Failure(self._timed_out()))

    def on_receive_ready(self) -> None:
        self._try()

    def on_send_ready(self) -> None:
        """Do nothing: a single attempt waits in the other slot."""

    def on_poller_lost(self, reason: Exception) -> None:
        self._finish(Failure(reason))

    def on_fork(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
