"""
Standard input and output beside the reactor, a thread for each.

What they are is the user's choice: a terminal, a pipe, a file, a socket. epoll
takes no files, and making a terminal or a pipe non-blocking does so for every
other process that has it. A thread that blocks serves all of them alike. Both
are daemons, so that one which hangs does not hold up the end of the process.
"""

from __future__ import annotations

import errno
import os
import queue
import select
import threading
from collections.abc import Callable
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from ..._io.interfaces import Reactor

__all__ = ["Input", "Output"]

_CHUNK: Final = 64 * 1024


def _wait(fd: int, event: int) -> None:
    """Wait until *fd*, which somebody has made non-blocking, is ready."""
    poll = select.poll()
    poll.register(fd, event)
    poll.poll()


def _read(fd: int) -> bytes:
    while True:
        try:
            return os.read(fd, _CHUNK)
        except BlockingIOError:
            _wait(fd, select.POLLIN)
        except OSError as error:
            if error.errno == errno.EIO:
                # The terminal is gone.
                return b""
            raise


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            _wait(fd, select.POLLOUT)


@implementer(IPushProducer)
class Input:
    """
    Reads a descriptor, one chunk at a time and only while it is not paused.

    At most one chunk is under way, 64 KiB, whatever happens.
    """

    def __init__(
        self,
        reactor: Reactor,
        fd: int,
        deliver: Callable[[bytes], None],
        failed: Callable[[OSError], None],
    ) -> None:
        """
        Read *fd*.

        Args:
            reactor: In whose thread the callables are called.
            fd: Stays open.
            deliver: Called with each chunk, at the end with ``b""``.
            failed: Called instead if reading fails.
        """
        self._reactor = reactor
        self._fd = fd
        self._deliver = deliver
        self._failed = failed
        self._wanted = threading.Semaphore(0)
        self._reading = False
        self._paused = False
        self._stopped = False

    @property
    def waiting(self) -> bool:
        """Whether it is up to the input alone that nothing comes."""
        return self._reading and not self._paused

    def start(self) -> None:
        """Begin to read."""
        threading.Thread(target=self._work, name="netsock-input", daemon=True).start()
        self._next()

    def _next(self) -> None:
        if not (self._reading or self._paused or self._stopped):
            self._reading = True
            self._wanted.release()

    def _work(self) -> None:
        while True:
            self._wanted.acquire()
            try:
                data = _read(self._fd)
            except OSError as error:
                self._reactor.callFromThread(self._arrived, b"", error)
                return
            self._reactor.callFromThread(self._arrived, data)
            if not data:
                return

    def _arrived(self, data: bytes, error: OSError | None = None) -> None:
        self._reading = False
        if self._stopped:
            return
        if error is not None or not data:
            self._stopped = True
        if error is not None:
            self._failed(error)
            return
        self._deliver(data)
        self._next()

    def pauseProducing(self) -> None:
        """Read no more after the chunk that may be under way."""
        self._paused = True

    def resumeProducing(self) -> None:
        """Read on."""
        self._paused = False
        self._next()

    def stopProducing(self) -> None:
        """Deliver nothing any more."""
        self._stopped = True


class Output:
    """
    Writes to a descriptor, in order.

    Attributes:
        pending: Bytes that have been taken and not written yet.
    """

    def __init__(
        self, reactor: Reactor, fd: int, failed: Callable[[OSError], None] | None = None
    ) -> None:
        """Write to *fd*, which stays open; call *failed* as soon as that fails."""
        self._reactor = reactor
        self._fd = fd
        self._failed = failed
        self._queue: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._started = False
        self._error: OSError | None = None
        self._waiting: list[tuple[int, Deferred[None]]] = []
        self.pending = 0

    def write(self, data: bytes) -> None:
        """Take *data*; nothing is written any more after a failure."""
        if self._error is not None or not data:
            return
        if not self._started:
            self._started = True
            threading.Thread(target=self._work, name="netsock-output", daemon=True).start()
        self.pending += len(data)
        self._queue.put(data)

    def below(self, size: int) -> Deferred[None]:
        """
        Wait until not more than *size* bytes are pending.

        Errors:
            OSError: Writing failed.

        Cancelling:
            Fails with `CancelledError`; what was taken is written nevertheless.
        """
        done: Deferred[None] = Deferred(
            lambda it: self._waiting.remove(next(each for each in self._waiting if each[1] is it))
        )
        self._waiting.append((size, done))
        self._report()
        return done

    def _work(self) -> None:
        while True:
            data = self._queue.get()
            try:
                _write(self._fd, data)
            except OSError as error:
                self._reactor.callFromThread(self._wrote, 0, error)
                return
            self._reactor.callFromThread(self._wrote, len(data))

    def _wrote(self, count: int, error: OSError | None = None) -> None:
        self.pending -= count
        if error is not None:
            self._error = error
            if self._failed is not None:
                self._failed(error)
        self._report()

    def _report(self) -> None:
        for each in list(self._waiting):
            size, done = each
            if self._error is None and self.pending > size:
                continue
            self._waiting.remove(each)
            if self._error is None:
                done.callback(None)
            else:
                done.errback(Failure(self._error))
