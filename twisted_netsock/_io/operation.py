"""
Running operations of the try layer on the reactor, one in each direction.

`Operating` is what every socket on the reactor is underneath: it tries an
operation at once, parks it in the poller if it has to wait, and tries again.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from copy import copy
from datetime import timedelta
from typing import Any, TypeVar, cast

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from ..errors import (
    SocketBusyError,
    SocketClosedError,
    SocketError,
    SocketReadTimeoutError,
    SocketWriteTimeoutError,
)
from ..options import SocketOptions
from .descriptor import Descriptor, from_os_error
from .fairness import BYTES_OF_ONE, OPERATIONS
from .fast_await import Done, Resumable
from .interfaces import Reactor
from .poller import WANT_READ, WANT_WRITE, Want, Watch, has_event

__all__ = ["Operating", "Operation", "Receiving"]

T = TypeVar("T")


class Operation(Resumable[T]):
    """One operation that waits, and the Deferred of its result."""

    # Most operations leave these as they are, and so keep nothing for them.
    timer: IDelayedCall | None = None
    timed_out: type[SocketError] = SocketReadTimeoutError
    pace: float | None = None
    """Seconds between two tries, where the kernel's reports cannot be trusted."""
    rest: IDelayedCall | None = None
    trying: Callable[[], T | Want] | None = None
    moved = False
    """Part of the operation was done since its timeout began."""

    def __init__(
        self,
        canceller: Callable[[Operation[T]], None],
        trying: Callable[[], T | Want] | None,
        want: Want,
    ) -> None:
        super().__init__(canceller)  # type: ignore[arg-type]
        self.trying = trying
        self.want = want

    def __str__(self) -> str:
        """Leave out the result, which Twisted's would show: it may be anybody's secret."""
        state = "done" if self.called else f"until {self.want.value}"
        return f"<{type(self).__name__} {state}>"

    __repr__ = __str__

    def attempt(self) -> T | Want:
        """Try to get it done."""
        assert self.trying is not None
        return self.trying()

    def finish(self, result: T | Failure) -> None:
        """Fire with *result*; a reference to the Deferred keeps no socket alive by it."""
        if self.trying is not None:
            self.trying = None
        super().finish(result)

    def errback(self, fail: Failure | BaseException | None = None) -> None:
        """Fail, which cancelling does without `finish`."""
        if self.trying is not None:
            self.trying = None
        super().errback(fail)


class Receiving(Operation[bytes]):
    """A `recv` that waits: without a closure, for there is one for each idle connection."""

    def __init__(
        self,
        canceller: Callable[[Operation[bytes]], None],
        descriptor: Descriptor,
        size: int,
        want: Want,
    ) -> None:
        # Past the other one's: there is one of these for most waits.
        Deferred.__init__(self, canceller)  # type: ignore[arg-type]
        self.want = want
        self.descriptor = descriptor
        self.size = size

    finish = Resumable.finish

    def attempt(self) -> bytes | Want:
        """Try to get it done."""
        return self.descriptor.try_recv(self.size)


class Operating:
    """A descriptor on the reactor, with at most one operation waiting in each direction."""

    _left_waiting: tuple[Operation[object] | None, ...] = ()

    def __init__(
        self, reactor: Reactor, watch: Watch, descriptor: Descriptor, options: SocketOptions
    ) -> None:
        self._reactor = reactor
        self._watch = watch
        self._descriptor = descriptor
        self._number = watch.fd
        self._options = options
        self._read_timeout = options.read_timeout
        self._write_timeout = options.write_timeout
        self._reader: Operation[Any] | None = None
        self._writer: Operation[Any] | None = None
        self._in_a_row = 0
        self._skips = 0
        """How many receives are to wait without an attempt, which would find nothing."""
        self._closed = False
        watch.remember(self)

    def _failed(self, error: BaseException) -> Deferred[Any]:
        if isinstance(error, SocketError):
            error.socket = self
        if self._descriptor.failed:
            self._fail_on_kept_error()
        return fail(Failure(error))

    def _read(self, attempt: Callable[[], T | Want], *, held: bool = False) -> Deferred[T]:
        """
        Run an operation in the receiving direction.

        What it needs may be *held* here already, where no poller sees it: then one that has
        to give way is tried again in the next reactor iteration.
        """
        if self._closed or self._reader is not None:
            return self._refuse()
        goes_on = self._may_go_on()
        try:
            result = attempt() if goes_on else WANT_READ
        except Exception as error:  # noqa: BLE001 - the caller gets it, as from one that waits
            return self._failed(error)
        if isinstance(result, Want):
            operation = self._reader = Operation(self._drop, attempt, result)
            if held and not goes_on:
                self._retry_after(operation, 0)
            return self._park(operation, self._read_timeout)
        if result.__class__ is int:
            self._in_a_row += cast(int, result) // BYTES_OF_ONE
        return Done(result)

    def _write(self, attempt: Callable[[], T | Want]) -> Deferred[T]:
        """Run an operation in the sending direction."""
        if self._closed or self._writer is not None:
            return self._refuse()
        try:
            result = attempt() if self._may_go_on() else WANT_WRITE
        except Exception as error:  # noqa: BLE001 - the caller gets it, as from one that waits
            return self._failed(error)
        if self._closed:
            # A callback run by the attempt closed this socket.
            return self._refuse()
        if isinstance(result, Want):
            return self._park_write(attempt, result, self._write_timeout)
        if result.__class__ is int:
            self._in_a_row += cast(int, result) // BYTES_OF_ONE
        return Done(result)

    def _park_write(
        self, attempt: Callable[[], T | Want], want: Want, timeout: timedelta | None
    ) -> Deferred[T]:
        operation: Operation[T]
        operation = self._writer = Operation(self._drop, attempt, want)
        operation.timed_out = SocketWriteTimeoutError
        return self._park(operation, timeout)

    def _until_readable(self, timeout: timedelta | None = None) -> Deferred[None]:
        """Wait in the receiving direction, and receive nothing."""
        if self._closed or self._reader is not None:
            return self._refuse()
        want = self._try_readable()
        if want is None:
            return Done(None)
        operation: Operation[None]
        operation = self._reader = Operation(self._drop, self._try_readable, want)
        return self._park(operation, timeout)

    def _until_writable(self, timeout: timedelta | None = None) -> Deferred[None]:
        """Wait in the sending direction, and send nothing."""
        if self._closed or self._writer is not None:
            return self._refuse()
        want = self._try_writable()
        if want is None:
            return Done(None)
        return self._park_write(self._try_writable, want, timeout)

    def _try_readable(self) -> Want | None:
        """Return `None` if a receive or an accept would not wait; never raises."""
        if self._descriptor.buffered or self._descriptor.finished:
            return None
        return None if has_event(self._watch.fd, select.POLLIN) else WANT_READ

    def _try_writable(self) -> Want | None:
        """Return `None` if a send would not wait; never raises."""
        try:
            want: Want | None = self._descriptor.try_flush()
        except SocketError:
            # Kept, and the next send gets it: which does not wait either.
            return None
        if want is not None:
            return want
        return None if has_event(self._watch.fd, select.POLLOUT) else WANT_WRITE

    def _may_go_on(self) -> bool:
        """
        Return whether an operation may be tried at once, and count it.

        A caller that always finds data, or room, would otherwise keep the reactor to
        itself: after so many in a row the next one waits for the poller. What OpenSSL has
        decrypted already, or the end that it has seen, cannot wait for that.
        """
        self._in_a_row += 1
        descriptor = self._descriptor
        if self._in_a_row <= OPERATIONS or descriptor.buffered or descriptor.finished:
            return True
        self._in_a_row = 0
        return False

    def _refuse(self) -> Deferred[Any]:
        return self._failed(SocketClosedError() if self._closed else SocketBusyError())

    def _park(self, operation: Operation[T], timeout: timedelta | None) -> Deferred[T]:
        if timeout is not None:
            self._arm(operation, timeout.total_seconds())
        try:
            self._watch.owner = self
            if operation is self._reader:
                self._watch.want_receive(operation.want)
            else:
                self._watch.want_send(operation.want)
        except OSError as error:
            self._complete(operation, Failure(from_os_error(error)))
        return operation

    def _arm(self, operation: Operation[T], seconds: float) -> None:
        """Fail *operation* when *seconds* have passed in which nothing moved."""

        def expire() -> None:
            operation.timer = None
            if operation.moved:
                operation.moved = False
                self._arm(operation, seconds)
            else:
                error = operation.timed_out()
                error.socket = self
                self._complete(operation, Failure(error))

        operation.timer = self._reactor.callLater(seconds, expire)

    def _retry(self, operation: Operation[T]) -> None:
        if not self._is_parked(operation):
            # It ended in a callback of the other direction's.
            return
        try:
            result = operation.attempt()
        except BaseException as error:  # noqa: BLE001 - the caller that waits gets it
            self._attempt_failed(operation, error)
            return
        if not self._is_parked(operation):
            # A callback run by the attempt closed this socket.
            return
        if isinstance(result, Want):
            if operation.pace is not None:
                self._rest(operation, operation.pace)
            elif result is not operation.want:
                operation.want = result
                self._adjust()
        else:
            self._complete(operation, result)

    def _attempt_failed(self, operation: Operation[T], error: BaseException) -> None:
        if isinstance(error, SocketError):
            error.socket = self
        self._complete(operation, Failure(error))
        if self._descriptor.failed:
            self._fail_on_kept_error()

    def _fail_on_kept_error(self) -> None:
        """Fail what waits: the descriptor has failed, and the kernel would not report that."""
        for operation in (self._reader, self._writer):
            if operation is not None:
                self._retry(operation)

    def _rest(self, operation: Operation[T], seconds: float) -> None:
        """Try again after a while instead of at the next report."""
        self._watch.stop_send()
        self._retry_after(operation, seconds)

    def _retry_after(self, operation: Operation[T], seconds: float) -> None:
        def wake() -> None:
            operation.rest = None
            self._retry(operation)

        operation.rest = self._reactor.callLater(seconds, wake)

    def _complete(self, operation: Operation[T], result: T | Failure) -> None:
        if self._is_parked(operation):
            self._drop(operation)
            operation.finish(result)

    def _drop(self, operation: Operation[T]) -> None:
        """Wait for *operation* no more."""
        if operation.timer is not None:
            operation.timer.cancel()
            operation.timer = None
        if operation.rest is not None:
            operation.rest.cancel()
            operation.rest = None
        if not self._is_parked(operation):
            return
        if self._reader is operation:
            self._reader = None
            self._skips = 0
        if self._writer is operation:
            self._writer = None
        self._adjust()

    def _is_parked(self, operation: Operation[T]) -> bool:
        return operation is self._reader or operation is self._writer

    def _adjust(self) -> None:
        """Wait for exactly what the parked operations want."""
        watch = self._watch
        receive = None if self._reader is None else self._reader.want
        send = None if self._writer is None else self._writer.want
        if send is None and self._descriptor.unflushed and not self._closed:
            # What an abandoned send has left goes out by itself.
            send = watch.send or WANT_WRITE
        if receive is None and send is None:
            watch.receive = watch.send = None
            watch.owner = None
            return
        if receive is None:
            watch.stop_receive()
        elif watch.receive is not receive:
            watch.want_receive(receive)
        if send is None:
            watch.stop_send()
        elif watch.send is not send:
            watch.want_send(send)

    def on_receive_ready(self) -> None:
        """Go on with what receives; for the poller."""
        self._in_a_row = 0
        reader = self._reader
        if reader is None:
            return
        if self._writer is not None or self._descriptor.unflushed or reader.rest is not None:
            self._retry(reader)
            return
        # As `_retry`, on the way of most receives: nothing else is under way.
        try:
            result = reader.attempt()
        except BaseException as error:  # noqa: BLE001 - the caller that waits gets it
            self._attempt_failed(reader, error)
            return
        if self._reader is not reader:
            # A callback run by the attempt closed this socket.
            return
        if result.__class__ is Want:
            if result is not reader.want:
                reader.want = result
                self._adjust()
            return
        self._reader = None
        if reader.timer is not None:
            reader.timer.cancel()
            reader.timer = None
        self._watch.receive = None
        self._watch.owner = None
        reader.finish(result)

    def on_send_ready(self) -> None:
        """Go on with what sends; for the poller."""
        self._in_a_row = 0
        if self._writer is not None:
            self._retry(self._writer)
        elif self._descriptor.unflushed:
            self._flush_abandoned()

    def _flush_abandoned(self) -> None:
        try:
            self._watch.send = self._descriptor.try_flush()
        except SocketError:
            # The descriptor keeps the error, and the next send or receive raises it.
            self._watch.stop_send()
        self._adjust()

    def on_poller_lost(self, reason: Exception) -> None:
        """Fail what waits; for the poller."""
        self._fail_waiting(reason)

    def on_fork(self) -> None:
        """Become unusable in a forked child, where what waits never ends; for the poller."""
        self._descriptor.on_fork()
        # Held: to drop a coroutine that waits would run its ``finally``.
        self._left_waiting = (self._reader, self._writer)
        for operation in self._left_waiting:
            for call in (operation.timer, operation.rest) if operation is not None else ():
                if call is not None:
                    call.cancel()
        self._reader = self._writer = None

    def _received_some(self) -> None:
        """Note that part of what receives was done: its timeout begins anew."""
        if self._reader is not None:
            self._reader.moved = True

    def _sent_some(self) -> None:
        """Note that part of what sends was done: its timeout begins anew."""
        if self._writer is not None:
            self._writer.moved = True

    def _fail_waiting(self, reason: Exception) -> None:
        for operation in (self._reader, self._writer):
            if operation is not None and self._is_parked(operation):
                # The reason is the same for all sockets; each error names its own.
                error = copy(reason)
                if isinstance(error, SocketError):
                    error.socket = self
                self._complete(operation, Failure(error))
