"""
Waiting in a thread: poll(2) on a descriptor and on what wakes the thread.

Each thread that waits has one `Waiter`. What wants it to look again (a socket
that is closed, the reactor that stops) calls `Waiter.wake`, from any thread.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from typing import Final

from twisted.python import threadable

from .._io.forks import notice_fork
from .._io.interfaces import Reactor
from .._io.native import are_greenlets, new_lock, original, poll_class
from .._io.poller import WANT_READ, Want
from ..errors import SocketConnectionLostError, SocketError

__all__ = ["Waiter", "check_thread", "current_waiter", "end_others", "new_event", "stop_all"]

_LONGEST: Final = 86400.0
"""Seconds of one poll(2), which counts milliseconds in a C int."""

_RETRY_SECONDS: Final = 0.05
"""Between two looks at a descriptor whose error stays: a late datagram waits so long at most."""

READ: Final = select.POLLIN
WRITE: Final = select.POLLOUT


class _Alarm:
    """
    What wakes a thread that waits with poll(2), from any other.

    Attributes:
        reading: The descriptor that can be read while this rings.
    """

    __slots__ = ("_writing", "reading")

    # gevent's needs its hub, which goes before what is left at the end.
    _close = staticmethod(original(os, "close"))

    def __init__(self) -> None:
        # There may be no descriptor left.
        self.reading = self._writing = -1
        self.reading, self._writing = self._open()

    @staticmethod
    def _open() -> tuple[int, int]:
        """Return a descriptor to read and one to write; the same where that can be."""
        if hasattr(os, "eventfd"):
            number = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            return number, number
        reading, writing = os.pipe()  # pragma: no cover: Linux has eventfd
        for number in (reading, writing):  # pragma: no cover
            os.set_blocking(number, False)
        return reading, writing  # pragma: no cover

    def ring(self) -> None:
        """Begin to ring, until `silence`."""
        try:
            os.write(self._writing, b"\1\0\0\0\0\0\0\0")
        except BlockingIOError:
            # It rings loudly enough.
            pass

    def silence(self) -> None:
        """Ring no more."""
        try:
            os.read(self.reading, 8 if self.reading == self._writing else 4096)
        except BlockingIOError:
            pass

    def renew(self) -> None:
        """Ring for this process alone: in a forked child the alarm is its parent's, too."""
        new = _Alarm()
        for mine, other in {(self.reading, new.reading), (self._writing, new._writing)}:
            os.dup2(other, mine, inheritable=False)

    def __del__(self) -> None:
        for number in {self.reading, self._writing} - {-1}:
            self._close(number)


class _Event(threading.Event):
    """An event that crochet can ask under the name it uses."""

    isSet = threading.Event.is_set  # noqa: N815 - crochet's spelling


class _GreenEvent:
    """
    An event that greenlets wait for with their own poll(2), whatever thread sets it.

    One of gevent's wakes those of other threads through their hub, which may be gone by then.
    """

    def __init__(self) -> None:
        self._set = False
        self._alarm = _Alarm()

    def is_set(self) -> bool:
        """Return whether it is set."""
        return self._set

    isSet = is_set  # noqa: N815 - as above

    def set(self) -> None:
        """Set it, and wake all that wait."""
        self._set = True
        self._alarm.ring()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until it is set, for at most *seconds*; return whether it is."""
        poll = poll_class()()
        poll.register(self._alarm.reading, READ)
        poll.poll(None if seconds is None else min(seconds, _LONGEST) * 1000)
        return self._set


def new_event() -> _Event | _GreenEvent:
    """Return an event for what waits in this process now: threads, or greenlets."""
    return _GreenEvent() if are_greenlets() else _Event()


class Waiter:
    """What one thread waits with, and what wakes it."""

    __slots__ = (
        "__weakref__",
        "_alarm",
        "_failed",
        "_poll_class",
        "_prepared",
        "ended",
        "ident",
        "limit",
    )

    def __init__(self) -> None:
        self.ident = threading.get_ident()
        try:
            self._alarm = _Alarm()
        except OSError as error:
            raise SocketError(errno=error.errno, strerror=error.strerror) from None
        self._poll_class = poll_class()
        self._prepared = (-1, 0, self._poll_class())
        self._failed = -1
        """The descriptor that was reported last for an error alone."""
        self.ended = False
        """The program has ended but for its daemon threads, of which this is one."""
        self.limit: Countdown | None = None
        """When the call that is under way gives up, whatever its socket says."""
        with _state.lock:
            _state.waiters.add(self)

    @property
    def stopped(self) -> bool:
        """Whether this thread may not wait any more: the reactor has stopped, or the program."""
        return self.ended or _state.stopped

    def wake(self) -> None:
        """Have this thread look again at what it waits for, now or when it next waits."""
        self._alarm.ring()

    def wait(self, fd: int, events: int, seconds: float | None) -> bool:
        """
        Wait until *fd* has one of *events*, for at most *seconds*.

        Returns:
            Whether it has. Else the thread was woken, or the time is over.
        """
        known, known_events, poll = self._prepared
        if known != fd or known_events != events:
            poll = self._poll_class()
            poll.register(self._alarm.reading, READ)
            poll.register(fd, events)
            self._prepared = (fd, events, poll)
        found = poll.poll() if seconds is None else poll.poll(min(seconds, _LONGEST) * 1000)
        if len(found) == 1 and found[0][0] == fd:
            if not found[0][1] & events:
                self._wait_longer(fd, seconds)
            else:
                self._failed = -1
            return True
        self._settle(found)
        return any(number == fd for number, _ in found)

    def _wait_longer(self, fd: int, seconds: float | None) -> None:
        """
        Wait a while, if *fd* is reported for an error alone, as it was before.

        Some errors no receive takes away: those in the queue of ``IP_RECVERR``. Poll(2)
        reports them for as long as they stand, and would keep the processor busy.
        """
        if fd == self._failed:
            self.pause(_RETRY_SECONDS if seconds is None else min(seconds, _RETRY_SECONDS))
        self._failed = fd

    def wait_any(self, wanted: Iterable[tuple[int, int]], seconds: float | None) -> set[int]:
        """Wait until one of several descriptors has its events; return those that have."""
        poll = self._poll_class()
        poll.register(self._alarm.reading, READ)
        for fd, events in wanted:
            poll.register(fd, events)
        milliseconds = None if seconds is None else min(seconds, _LONGEST) * 1000
        found = poll.poll(milliseconds)
        self._settle(found)
        return {number for number, _ in found} - {self._alarm.reading}

    def pause(self, seconds: float | None) -> None:
        """Wait until this thread is woken, for at most *seconds*."""
        self.wait_any((), seconds)

    def _settle(self, found: list[tuple[int, int]]) -> None:
        """Silence the alarm if it rang."""
        for number, _ in found:
            if number == self._alarm.reading:
                self._alarm.silence()

    def after_fork(self) -> None:
        """End in a forked child: its thread is not here, or it is a greenlet, which gives up."""
        self.ended = True
        with contextlib.suppress(OSError):
            self._alarm.renew()
            self.wake()


class MultiWaiter(Waiter):
    """What a thread waits with that waits for many descriptors, over and over."""

    __slots__ = ("_many", "registered")

    def __init__(self) -> None:
        super().__init__()
        self._many = self._poll_class()
        self._many.register(self._alarm.reading, READ)
        self.registered: dict[int, object] = {}
        """What is called for each descriptor."""

    def register(self, fd: int, owner: object) -> None:
        """Have `wait_many` report when *fd* can be read."""
        self.registered[fd] = owner
        self._many.register(fd, READ)

    def unregister(self, fd: int, owner: object) -> None:
        """Report *fd* no more, if it is *owner* that wanted it."""
        if self.registered.get(fd) is owner:
            del self.registered[fd]
            self._many.unregister(fd)

    def wait_many(self, seconds: float | None) -> list[int]:
        """Wait until a descriptor can be read, or this is woken; return those that can be."""
        found = self._many.poll(None if seconds is None else min(seconds, _LONGEST) * 1000)
        self._settle(found)
        return [number for number, _ in found if number != self._alarm.reading]


class _State:
    """What concerns all threads that wait."""

    def __init__(self) -> None:
        self.lock = new_lock()
        self.threads = threading.local()
        self.waiters: weakref.WeakSet[Waiter] = weakref.WeakSet()
        self.stopped = False
        self.reactor: object = None


_state = _State()


def current_waiter() -> Waiter:
    """
    Return the waiter of this thread.

    Raises:
        RuntimeError: This is the reactor's thread, which must never block.
        SocketError: There is no descriptor left for what wakes the thread.
    """
    try:
        if type(_state.threads) is not threading.local:
            # gevent has come since: what was one thread is many greenlets.
            _state.threads = threading.local()
        waiter: Waiter = _state.threads.waiter
    except AttributeError:
        waiter = _state.threads.waiter = Waiter()
    if waiter.ident == threadable.ioThread:
        check_thread()
    return waiter


def check_thread() -> None:
    """
    Refuse to block the reactor.

    Raises:
        RuntimeError: This is the reactor's thread.
    """
    notice_fork()
    if threadable.ioThread == threading.get_ident() and _reactor_runs():
        raise RuntimeError(
            "twisted_netsock.blocking was called in the reactor's thread, which must not block: "
            "use the same name of twisted_netsock, which returns a Deferred, or "
            "twisted.internet.threads.deferToThread"
        )


def _reactor_runs() -> bool:
    reactor = _state.reactor or sys.modules.get("twisted.internet.reactor")
    return bool(getattr(reactor, "running", False))


def use_reactor(reactor: Reactor) -> None:
    """Remember whose thread must not block."""
    _state.reactor = reactor


def stop_all() -> None:
    """Wake every thread that waits; none may wait any more."""
    _state.stopped = True
    for waiter in _all_waiters():
        waiter.wake()


def end_others() -> None:
    """Wake the other threads that wait, which may not any more: the program ends."""
    for waiter in _all_waiters():
        if waiter.ident != threading.get_ident():
            waiter.ended = True
            waiter.wake()


def _all_waiters() -> list[Waiter]:
    with _state.lock:
        return list(_state.waiters)


def reactor_stopped() -> SocketConnectionLostError:
    """Return the error of what waits when the reactor stops."""
    return SocketConnectionLostError(strerror="The reactor was shut down")


def events_of(want: Want) -> int:
    """Return what poll(2) calls *want*."""
    return READ if want is WANT_READ else WRITE


class Expired(Exception):  # noqa: N818 - it never leaves this package
    """The `Waiter.limit` of a call has passed."""


class Countdown:
    """A moment that begins to approach at the first wait."""

    __slots__ = ("_end", "seconds")

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._end: float | None = None

    def remaining(self) -> float | None:
        """Return the seconds left, at least 0; `None` for no end."""
        if self.seconds is None:
            return None
        now = time.monotonic()
        if self._end is None:
            self._end = now + self.seconds
        return max(0.0, self._end - now)

    def renew(self) -> None:
        """Begin anew, at the next wait."""
        self._end = None


@contextlib.contextmanager
def limited(limit: Countdown) -> Iterator[None]:
    """Have the waits of this thread end at *limit* within this context, by `Expired`."""
    waiter = current_waiter()
    before, waiter.limit = waiter.limit, limit
    try:
        yield
    finally:
        waiter.limit = before


def after_fork() -> None:
    """Start afresh in a forked child: its threads and their alarms are not here."""
    global _state  # noqa: PLW0603 - one state for the process
    for waiter in list(_state.waiters):
        waiter.after_fork()
    _state = _State()
