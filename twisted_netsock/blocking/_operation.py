"""
`BlockingOperating`: how threads run operations on one descriptor, and close it.

The counterpart of `Operating`, which does it on the reactor.

Several threads may use one socket: one in each direction, and any to close it.
An operation enters under the lock, which makes its thread's waiter the user of
that direction, and leaves by taking it back. Closing only marks the socket and
wakes its users; the last to leave closes the descriptor, so no thread
ever waits for, or uses, a number that has become another's.

A signal handler runs in the main thread between two steps of whatever that thread is
doing, and may call any method of the socket. So each lock is reentrant, a direction is
taken before the socket is looked at, and nothing waits for a lock that the thread which
runs the handler keeps others from giving back.
"""

from __future__ import annotations

import errno
import os
import socket as _socket
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final, Protocol, TypeVar, cast

from twisted.internet.defer import CancelledError, Deferred

from .._io.descriptor import Descriptor
from .._io.forks import after_fork
from .._io.interfaces import Reactor
from .._io.native import new_lock
from .._io.poller import WANT_READ, Want
from .._sockets.attempts import UNIX_DATAGRAM_PACE
from .._validation import in_seconds
from ..errors import (
    SocketBusyError,
    SocketClosedError,
    SocketError,
    SocketReadTimeoutError,
    SocketWriteTimeoutError,
)
from ..options import SocketOptions
from ._bridge import Call
from ._waiting import (
    Countdown,
    Expired,
    Waiter,
    current_waiter,
    events_of,
    reactor_stopped,
)

__all__ = ["BlockingOperating"]

T = TypeVar("T")

DIRECT: Final = 0
"""An operation that a method of the socket runs."""
PORT: Final = 1
"""One that `input_port` or `output_port` runs."""
FILE: Final = 2
"""One for an object of `makefile`, which outlives the closing of the socket."""

_sockets: weakref.WeakSet[BlockingOperating] = weakref.WeakSet()


class User(Protocol):
    """The user of a direction of a socket, which can be woken to look at it again."""

    def wake(self) -> None:
        """Have it look again, from any thread."""


class BlockingOperating:
    """A descriptor that threads share, with at most one of them in each direction."""

    def __init__(self, descriptor: Descriptor, options: SocketOptions) -> None:
        self._descriptor = descriptor
        self._number = descriptor.sock.fileno()
        self._options = options
        self._lock: AbstractContextManager[object] = new_lock()
        self._reader: User | None = None
        self._writer: User | None = None
        self._drained = False
        """The last receive took all there was: the next one waits before it tries."""
        self._flushing = False
        """The output port sends, on behalf of the operation that has that direction."""
        self._cut_send = False
        """A signal handler has shut down the direction in which its thread was sending."""
        self._closed = False
        self._ending = False
        """Nobody gets in any more: the last user closes the descriptor."""
        self._gone = False
        self._waits = True
        self._read_seconds = in_seconds(options.read_timeout)
        self._write_seconds = in_seconds(options.write_timeout)
        _sockets.add(self)

    # Running operations

    def _read(self, attempt: Callable[[], T | Want], by: int = DIRECT) -> T:
        """Run an operation in the receiving direction."""
        waiter = current_waiter()
        entered = False
        try:
            with self._lock:
                user = self._reader
                if user is None:
                    self._reader = waiter
                    entered = True
                if self._closed or user is not None:
                    self._refuse(user, by)
            if by == DIRECT:
                self._before_read()
            return self._go(waiter, attempt, by, reading=True)
        finally:
            if entered:
                self._reader = None
                if self._ending:
                    self._settle()

    def _write(
        self, attempt: Callable[[], T | Want], by: int = DIRECT, deadline: Countdown | None = None
    ) -> T:
        """Run an operation in the sending direction."""
        waiter = current_waiter()
        if by == PORT and self._flushing and self._writer is waiter:
            # On behalf of one that has the direction already.
            return self._go(waiter, attempt, FILE, reading=False)
        entered = False
        try:
            with self._lock:
                user = self._writer
                if user is None:
                    self._writer = waiter
                    entered = True
                if self._closed or user is not None:
                    self._refuse(user, by)
            if by == DIRECT:
                self._before_write()
            return self._go(waiter, attempt, by, reading=False, deadline=deadline)
        finally:
            if entered:
                self._cut_send = False
                self._writer = None
                if self._ending:
                    self._settle()

    def _before_read(self) -> None:
        """Do what comes before a receive that is no port's; the direction is taken."""

    def _before_write(self) -> None:
        """Do what comes before a send that is no port's; the direction is taken."""

    def _refuse(self, user: User | None, by: int) -> None:
        if self._ending or (self._closed and by != FILE):
            raise SocketClosedError(self)
        if user is not None:
            raise SocketBusyError(self)

    def _go(
        self,
        waiter: Waiter,
        attempt: Callable[[], T | Want],
        by: int,
        *,
        reading: bool,
        deadline: Countdown | None = None,
    ) -> T:
        """Try *attempt*, and wait, until it is done."""
        result: T | Want
        if reading and self._drained and self._waits and waiter.limit is None:
            result = WANT_READ
        else:
            result = self._attempt(attempt)
        if type(result) is not Want:
            return cast("T", result)
        if deadline is None:
            deadline = Countdown(self._read_seconds if reading else self._write_seconds)
        while True:
            self._wait(waiter, result, deadline, by, reading=reading)
            result = self._attempt(attempt)
            if type(result) is not Want:
                return cast("T", result)

    def _attempt(self, attempt: Callable[[], T | Want]) -> T | Want:
        """Try once."""
        try:
            return attempt()
        except SocketError as error:
            error.socket = self
            raise

    def _wait(
        self, waiter: Waiter, want: Want, deadline: Countdown, by: int, *, reading: bool
    ) -> None:
        """Wait for *want*, or until this thread is woken."""
        if not self._waits:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        self._check_waiting(waiter, by, reading=reading)
        seconds = deadline.remaining()
        if seconds == 0:
            raise (SocketReadTimeoutError if reading else SocketWriteTimeoutError)(self)
        if waiter.limit is not None:
            left = waiter.limit.remaining()
            if left == 0:
                raise Expired
            seconds = left if seconds is None else min(left or 0, seconds)
        if not reading and self._is_unix_datagram():
            waiter.pause(min(seconds or UNIX_DATAGRAM_PACE, UNIX_DATAGRAM_PACE))
        else:
            waiter.wait(self._number, events_of(want), seconds)
        self._check_waiting(waiter, by, reading=reading)

    def _check_waiting(self, waiter: Waiter, by: int, *, reading: bool) -> None:
        if self._ending or (self._closed and by != FILE):
            raise SocketClosedError(self)
        if self._cut_send and not reading:
            raise SocketClosedError(self, errno.EPIPE, "This side has been shut down for writing")
        if waiter.stopped:
            error = reactor_stopped()
            error.socket = self
            raise error

    def _is_unix_datagram(self) -> bool:
        sock = self._descriptor.sock
        return sock.family == _socket.AF_UNIX and sock.type == _socket.SOCK_DGRAM

    def _bridge(
        self,
        function: Callable[[Reactor], Deferred[T]],
        *,
        writing: bool = False,
        seconds: float | None = None,
        timed_out: Callable[[], SocketError] = SocketReadTimeoutError,
        discard: Callable[[T], object] | None = None,
    ) -> T:
        """Run *function* on the reactor, which has the receiving or both directions meanwhile."""
        call = Call(function, discard=discard, released=lambda: self._leave(call))
        try:
            self._enter(call, writing=writing)
            return call.result(seconds, timed_out)
        except CancelledError:
            raise SocketClosedError(self) from None
        except SocketError as error:
            error.socket = self
            raise
        finally:
            if not call.begun:
                # Refused, or cut short in between.
                self._leave(call)

    def _enter(self, user: User, *, reading: bool = True, writing: bool = False) -> None:
        """Make *user* the one that receives, sends, or does both, until it leaves."""
        with self._lock:
            other = (self._reader if reading else None) or (self._writer if writing else None)
            if other is None:
                self._reader = user if reading else self._reader
                self._writer = user if writing else self._writer
        if self._closed or other is not None:
            if other is None:
                self._leave(user, reading=reading, writing=writing)
            self._refuse(other, DIRECT)

    def _can_receive(self) -> bool:
        """Return whether a receive would give something: poll(2) reports the descriptor."""
        return True

    def _has_input(self) -> bool:
        """Return whether something can be read that poll(2) does not see."""
        return False

    def _leave(self, user: User, *, reading: bool = True, writing: bool = True) -> None:
        """Give back what *user* has taken; nothing of it goes on any more."""
        if writing and self._writer is user:
            self._writer = None
        if reading and self._reader is user:
            self._reader = None
        if self._ending:
            self._settle()

    # The end

    def _end(self) -> None:
        """Let nobody in any more, and close the descriptor as soon as nobody uses it."""
        with self._lock:
            self._ending = True
        self._wake_users()
        self._settle()

    def _wake_users(self) -> None:
        for user in (self._reader, self._writer):
            if user is not None:
                user.wake()

    def _settle(self) -> None:
        """Close the descriptor if the socket has ended and this was its last user."""
        with self._lock:
            if (
                not self._ending
                or self._gone
                or self._reader is not None
                or self._writer is not None
            ):
                return
            self._gone = True
        self._dispose()

    def _dispose(self) -> None:
        """Close the descriptor; called once."""
        self._descriptor.close()

    def _after_fork(self) -> None:
        """Make it usable in a forked child, where none of its users is."""
        self._lock = new_lock()
        self._reader = self._writer = None
        self._flushing = self._cut_send = False
        if self._ending:
            self._settle()


def _after_fork() -> None:
    for socket in list(_sockets):
        socket._after_fork()


after_fork(_after_fork)
