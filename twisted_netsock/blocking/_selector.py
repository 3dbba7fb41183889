"""
Waiting for several sockets: `wait_readable`, `wait_writable` and `SocketSelector`.

They take a direction of each socket while they wait, like a call that waits: so
another thread's receive fails with `SocketBusyError`, and no number is ever
waited for that has become another socket's.
"""

from __future__ import annotations

import heapq
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import Final, Self, TypeVar

from twisted.logger import Logger

from .. import _validation as check
from .._io.native import new_lock
from .._net.resolver import DaemonThreads
from .._public import public_in
from ..errors import NetsockError, SocketClosedError, SocketError, SocketReadTimeoutError
from ._bridge import use
from ._socket import BlockingSocket
from ._waiting import (
    READ,
    WRITE,
    Countdown,
    MultiWaiter,
    Waiter,
    check_thread,
    current_waiter,
    reactor_stopped,
)

__all__ = ["SocketSelector", "wait_readable", "wait_writable"]

_MOST_THREADS: Final = 128
"""How many calls of `on_read` run at a time."""

_IDLE_SECONDS: Final = 0.2
"""How long a thread waits for the next call, with the descriptor that wakes it."""

_MOST_OVER: Final = 64
"""How many ends are kept of waits that are over, beyond as many as there are waits."""

OnRead = Callable[[BlockingSocket, NetsockError | None, Callable[..., None]], object]

S = TypeVar("S", bound=BlockingSocket)

_log = Logger()


def _wait_seconds(timeout: timedelta | None) -> float | None:
    """Return *timeout* in seconds; unlike that of an option record it may be 0."""
    if timeout is None:
        return None
    if isinstance(timeout, timedelta) and not timeout:
        return 0.0
    return check.duration(timeout, "timeout").total_seconds()


def _require_socket(socket: object) -> None:
    if not isinstance(socket, BlockingSocket):
        raise TypeError(f"socket must be a BlockingSocket, not {socket!r}")


def wait_readable(*sockets: S, timeout: timedelta | None = None) -> list[S]:
    """
    Wait until one of *sockets* can be read (``socket-read-select``).

    One that has failed, whose peer has finished, or that is closed meanwhile, can
    be read, too: a receive shows at once. On TLS decrypted data counts, and not
    what only looks like it from outside.

    Args:
        sockets: What to wait for; at least one.
        timeout: How long, or `None` for no limit; 0 looks once.

    Returns:
        Those that can be read, in the order given; none after the timeout.

    Raises:
        TypeError: One is no `BlockingSocket`, or *timeout* no timedelta.
        ValueError: There is none; or *timeout* is negative, or over a year.
        SocketBusyError: Another thread receives on one of them.
        SocketClosedError: One is closed already.
        SocketConnectionLostError: The reactor was shut down.
    """
    return _wait_any(sockets, timeout, READ)


def wait_writable(*sockets: S, timeout: timedelta | None = None) -> list[S]:
    """
    Wait until one of *sockets* can be written (``socket-write-select``).

    Args:
        sockets: What to wait for; at least one.
        timeout: How long, or `None` for no limit; 0 looks once.

    Returns:
        Those that can be written, in the order given; none after the timeout.

    Raises:
        TypeError, ValueError, SocketClosedError, SocketConnectionLostError: As
            `wait_readable`.
        SocketBusyError: Another thread sends on one of them.
    """
    return _wait_any(sockets, timeout, WRITE)


def _wait_any(sockets: tuple[S, ...], timeout: timedelta | None, events: int) -> list[S]:
    if not sockets:
        raise ValueError("sockets: give at least one to wait for")
    for socket in sockets:
        _require_socket(socket)
    waiter = current_waiter()
    deadline = Countdown(_wait_seconds(timeout))
    taken: list[S] = []
    try:
        for socket in dict.fromkeys(sockets):
            # First, for Ctrl-C: `_leave` gives nothing back that is not this thread's.
            taken.append(socket)
            try:
                socket._enter(waiter, reading=events == READ, writing=events == WRITE)
            except SocketError:
                taken.pop()
                raise
        ready = [each for each in taken if events == READ and each._has_input()]
        numbers = [(socket._number, events) for socket in taken]
        while not ready:
            if waiter.stopped:
                raise reactor_stopped()
            seconds = deadline.remaining()
            found = waiter.wait_any(numbers, seconds)
            ready = [
                socket
                for socket in taken
                if socket._closed
                or (socket._number in found and (events == WRITE or socket._can_receive()))
            ]
            if not ready and seconds == 0:
                break
        return ready
    finally:
        try:
            _give_back(taken, waiter, events)
        except BaseException:
            # Ctrl-C in the middle of it.
            _give_back(taken, waiter, events)
            raise


def _give_back(taken: list[S], waiter: Waiter, events: int) -> None:
    """Leave the direction of those that *waiter* has taken it of."""
    for socket in taken:
        socket._leave(waiter, reading=events == READ, writing=events == WRITE)


class _Registration:
    """One wait of a selector for one socket."""

    def __init__(
        self,
        selector: SocketSelector,
        socket: BlockingSocket,
        on_read: OnRead,
        seconds: float | None,
    ) -> None:
        self.selector = selector
        self.socket = socket
        self.on_read = on_read
        self.number = socket._number
        self.seconds = seconds
        self.end: float | None = None

    def wake(self) -> None:
        """Have the selector look at the socket: it is closed."""
        self.selector._look_at(self)

    def call(self, error: NetsockError | None) -> None:
        """Call the handler; in a thread of the selector's."""
        try:
            self.on_read(self.socket, error, self._again)
        except BaseException:  # noqa: BLE001 - SystemExit, too, must not reach the others
            _log.failure("the handler of a selector failed")

    def _again(self, timeout: timedelta | None = None) -> None:
        self.selector._again(self, timeout)


@public_in("twisted_netsock.blocking")
class SocketSelector:
    """
    Waits for many sockets, and calls a function for each that can be read.

    The ``make-socket-selector`` of ``(net socket)``. It has a thread that waits, and
    up to 128 that call.
    """

    def __init__(self, timeout: timedelta | None = None, *, reactor: object = None) -> None:
        """
        Make a selector; its threads start with the first socket.

        Args:
            timeout: How long each `add` waits that says nothing else, or `None`
                for no limit; 0 looks once.
            reactor: The one in use, or `None`.

        Raises:
            TypeError: *timeout* is no timedelta.
            ValueError: *timeout* is negative or over a year; or *reactor* is not
                the one in use.
        """
        self._seconds = _wait_seconds(timeout)
        use(reactor)
        self._lock = new_lock()
        self._waiting: dict[int, _Registration] = {}
        self._added: deque[_Registration] = deque()
        self._look: deque[_Registration] = deque()
        self._ends: list[tuple[float, int, _Registration]] = []
        self._order = itertools.count()
        self._closed = False
        self._waiter: MultiWaiter | None = None
        self._process = os.getpid()
        self._handlers = DaemonThreads(
            _MOST_THREADS, _IDLE_SECONDS, "netsock-selector-call", native=False
        )

    def add(
        self, socket: BlockingSocket, on_read: OnRead, timeout: timedelta | None = None
    ) -> None:
        """
        Wait once until *socket* can be read, and call *on_read* then.

        While it is waited for, the socket's receives fail with `SocketBusyError`.

        Args:
            socket: What to wait for; closing it calls *on_read*, too.
            on_read: Called with the socket, an error, and a function, in a thread
                of the selector's; it may block. The error is `None` when there
                is something to read; a `SocketReadTimeoutError` after the
                timeout; a `SocketClosedError` when the socket was closed here; a
                `SocketConnectionLostError` when the reactor was shut down. The
                function waits anew, as long as before or with a timeout that it is
                given; once the selector is closed it does nothing.
                What *on_read* raises, `SystemExit` included, is logged.
            timeout: How long to wait; the selector's if `None`; 0 looks once.

        Raises:
            RuntimeError: The selector was made before the process forked.
            SocketBusyError: Another thread receives on the socket, or it is waited
                for already.
            SocketClosedError: The socket is closed, or this selector is.
            TypeError: *socket* is no `BlockingSocket`, or *timeout* no timedelta.
        """
        self._add(socket, on_read, timeout, self._seconds)

    def _add(
        self,
        socket: BlockingSocket,
        on_read: OnRead,
        timeout: timedelta | None,
        otherwise: float | None,
    ) -> None:
        check_thread()
        _require_socket(socket)
        if not callable(on_read):
            raise TypeError(f"on_read must be callable, not {on_read!r}")
        if self._process != os.getpid():
            raise RuntimeError("this selector was made before the process forked: make another")
        seconds = otherwise if timeout is None else _wait_seconds(timeout)
        registration = _Registration(self, socket, on_read, seconds)
        with self._lock:
            if self._closed:
                raise SocketClosedError(strerror="The selector is closed")
            try:
                socket._enter(registration)
                self._start()
                self._waiting[id(registration)] = registration
            except BaseException:
                socket._leave(registration)
                raise
            self._added.append(registration)
        self._wake()

    def _start(self) -> None:
        if self._waiter is not None:
            return
        waiter = MultiWaiter()
        # Again: a signal handler may have come in between, and have added a socket of its own.
        if self._waiter is not None:
            return
        self._waiter = waiter
        try:
            threading.Thread(
                target=self._work, args=(waiter,), name="netsock-selector", daemon=True
            ).start()
        except BaseException:
            self._waiter = None
            raise

    def _wake(self) -> None:
        if self._waiter is not None:
            self._waiter.wake()

    def _again(self, registration: _Registration, timeout: timedelta | None) -> None:
        if not self._closed:
            self._add(registration.socket, registration.on_read, timeout, registration.seconds)

    def _look_at(self, registration: _Registration) -> None:
        self._look.append(registration)
        self._wake()

    def close(self) -> None:
        """Wait for nothing any more; no function is called that is not already. Again is fine."""
        with self._lock:
            self._closed = True
        self._wake()

    def __len__(self) -> int:
        """Return how many sockets are waited for."""
        return len(self._waiting)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # In the thread that waits

    def _work(self, waiter: MultiWaiter) -> None:
        while not self._closed and not waiter.stopped:
            self._take_added(waiter)
            self._drop_closed(waiter)
            found = waiter.wait_many(self._seconds_to_next())
            for number in found:
                self._end(waiter, waiter.registered.get(number), None)
            now = time.monotonic()
            while self._ends and self._ends[0][0] <= now:
                late = heapq.heappop(self._ends)[2]
                if id(late) in self._waiting:
                    self._end(waiter, late, SocketReadTimeoutError(late.socket))
        self._finish(waiter)

    def _take_added(self, waiter: MultiWaiter) -> None:
        while self._added:
            registration = self._added.popleft()
            if id(registration) not in self._waiting:
                # Its socket was closed, and its function called, before this came to it.
                continue
            if registration.socket._has_input():
                self._end(waiter, registration, None)
                continue
            waiter.register(registration.number, registration)
            if registration.seconds is not None:
                end = time.monotonic() + registration.seconds
                heapq.heappush(self._ends, (end, next(self._order), registration))

    def _drop_closed(self, waiter: MultiWaiter) -> None:
        while self._look:
            registration = self._look.popleft()
            if id(registration) in self._waiting and registration.socket._closed:
                self._end(waiter, registration, SocketClosedError(registration.socket))

    def _seconds_to_next(self) -> float | None:
        if len(self._ends) > 2 * len(self._waiting) + _MOST_OVER:
            # They keep their sockets, and behind an end that is still to come there may be many.
            self._ends = [each for each in self._ends if id(each[2]) in self._waiting]
            heapq.heapify(self._ends)
        while self._ends and id(self._ends[0][2]) not in self._waiting:
            heapq.heappop(self._ends)
        return max(0.0, self._ends[0][0] - time.monotonic()) if self._ends else None

    def _end(self, waiter: MultiWaiter, registration: object, error: SocketError | None) -> None:
        """Wait for one socket no more, and have its function called."""
        if not isinstance(registration, _Registration):
            return
        self._forget(waiter, registration)
        try:
            self._handlers.submit(lambda: registration.call(error))
        except RuntimeError:
            # No thread can be started, and none is there: better late for the others than never.
            registration.call(error)

    def _forget(self, waiter: MultiWaiter, registration: _Registration) -> None:
        waiter.unregister(registration.number, registration)
        with self._lock:
            del self._waiting[id(registration)]
        registration.socket._leave(registration)

    def _finish(self, waiter: MultiWaiter) -> None:
        with self._lock:
            self._closed = True
            left = list(self._waiting.values())
        for registration in left:
            if waiter.stopped:
                self._end(waiter, registration, reactor_stopped())
            else:
                self._forget(waiter, registration)
