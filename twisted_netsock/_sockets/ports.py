"""
Ports: buffered reading and writing on a connected socket, as Deferreds.

`Socket.input_port` and `Socket.output_port` give them. They run their
operations through the socket, one at a time in each direction.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Final, TypeVar

from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure

from .._io.descriptor import RECEIVE_LIMIT
from .._io.fairness import BYTES
from .._io.operation import Operating
from .._io.poller import WANT_READ, Want
from .._io.send_queue import SendQueue
from .._public import public_in
from ..errors import (
    SocketClosedError,
    SocketError,
    SocketIncompleteReadError,
    SocketPortError,
    SocketWriteTimeoutError,
    unraised,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["InputPort", "OutputPort"]

T = TypeVar("T")

LINE_LIMIT: Final = 65536
"""Bytes of a line, as in asyncio: without a limit a peer could fill the memory with one."""

_QUEUE_FULL: Final = 65536
"""Queued bytes from which a write waits, as a transport pauses its producer."""


@public_in("twisted_netsock")
class InputPort:
    """
    A buffered reader of a stream; ``async for`` gives its lines.

    What a read had received when it timed out or was cancelled stays in the
    buffer, for the next one. Closing the port, or dropping it, leaves the socket
    open.
    """

    def __init__(self, socket: Operating) -> None:
        self._socket = socket
        self._buffer = bytearray()
        self._scanned = 0
        self._ended = False
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether the port, or its socket, was closed on this side."""
        return self._closed

    @property
    def pending(self) -> int:
        """How many bytes have been received and not read."""
        return len(self._buffer)

    def read(self, n: int) -> Deferred[bytes]:
        """
        Read up to *n* bytes.

        Returns:
            At least one byte, as soon as there is one; ``b""`` at the end of the
            stream.

        Raises:
            ValueError: *n* is not positive.

        Errors:
            SocketPortError: The port is closed.
            SocketReadTimeoutError, SocketConnectionLostError, SocketBusyError,
            SocketClosedError: As `Socket.recv`.

        Cancelling:
            Fails with `CancelledError`; nothing is lost.
        """
        _check_count(n)
        return self._run(lambda: self._take(n) if self._buffer else b"" if self._ended else None)

    def readline(self, limit: int = LINE_LIMIT) -> Deferred[bytes]:
        """
        Read a line, with its newline.

        Args:
            limit: The most bytes that a line may have.

        Returns:
            The line; at the end of the stream what is left, at last ``b""``.

        Raises:
            ValueError: *limit* is not positive.

        Errors:
            SocketPortError: The line is longer than *limit* (it stays in the
                buffer, to be read otherwise); or the port is closed.
            SocketReadTimeoutError, SocketConnectionLostError, SocketBusyError,
            SocketClosedError: As `Socket.recv`.

        Cancelling:
            Fails with `CancelledError`; nothing is lost.
        """
        _check_count(limit)

        def line() -> bytes | None:
            found = self._buffer.find(b"\n", self._scanned, limit)
            if found >= 0:
                return self._take(found + 1)
            if len(self._buffer) > limit:
                raise SocketPortError(
                    self, strerror=f"The line is longer than the limit of {limit} bytes"
                )
            self._scanned = len(self._buffer)
            return self._take(len(self._buffer)) if self._ended else None

        # An earlier call may have looked with another limit.
        self._scanned = 0
        return self._run(line)

    def read_exactly(self, n: int) -> Deferred[bytes]:
        """
        Read *n* bytes.

        Returns:
            Exactly *n* bytes, when they have arrived.

        Raises:
            ValueError: *n* is negative.

        Errors:
            SocketIncompleteReadError: The stream ended before; its `partial`
                has what there was.
            SocketPortError, SocketReadTimeoutError, SocketConnectionLostError,
            SocketBusyError, SocketClosedError: As `read`.

        Cancelling:
            Fails with `CancelledError`; nothing is lost.
        """
        _check_count(n, least=0)

        def exactly() -> bytes | None:
            if len(self._buffer) >= n:
                return self._take(n)
            if self._ended:
                raise SocketIncompleteReadError(
                    self._take(len(self._buffer)), n, port=self, socket=self._socket
                )
            return None

        return self._run(exactly)

    def read_all(self, limit: int | None = None) -> Deferred[bytes]:
        """
        Read everything up to the end of the stream.

        Args:
            limit: The most bytes to gather, or `None` for no limit: then it is
                the peer that decides how much memory this takes.

        Returns:
            What there was, when the stream has ended.

        Errors:
            SocketPortError: There is more than *limit* (what has arrived stays
                in the buffer); or the port is closed.
            SocketReadTimeoutError, SocketConnectionLostError, SocketBusyError,
            SocketClosedError: As `read`.

        Cancelling:
            Fails with `CancelledError`; nothing is lost.
        """

        def everything() -> bytes | None:
            if limit is not None and len(self._buffer) > limit:
                raise SocketPortError(
                    self, strerror=f"The stream is longer than the limit of {limit} bytes"
                )
            return self._take(len(self._buffer)) if self._ended else None

        return self._run(everything)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Give the lines, to the end of the stream."""
        while line := await self.readline():
            yield line

    def close(self) -> Deferred[None]:
        """
        Close the port and drop what it holds; the socket stays open.

        Returns:
            `None`, already.
        """
        self._closed = True
        self._buffer.clear()
        return succeed(None)

    def _run(self, ready: Callable[[], T | None]) -> Deferred[T]:
        """Receive until *ready* returns something."""
        if self._closed:
            return fail(Failure(SocketPortError(self, strerror="The port is closed")))
        descriptor = self._socket._descriptor

        def attempt() -> T | Want:
            received = 0
            while True:
                result = ready()
                if result is not None:
                    return result
                if received >= BYTES and not descriptor.buffered:
                    return WANT_READ
                data = descriptor.try_recv(RECEIVE_LIMIT)
                if isinstance(data, Want):
                    return data
                received += len(data)
                self._socket._received_some()
                self._ended = not data
                self._buffer += data

        return self._socket._read(attempt, held=bool(self._buffer) or self._ended)

    def _take(self, n: int) -> bytes:
        taken = bytes(memoryview(self._buffer)[:n])
        del self._buffer[:n]
        self._scanned = 0
        return taken


@public_in("twisted_netsock")
class OutputPort:
    """
    A buffered writer of a stream, which sends by itself.

    Closing the port, or dropping it, leaves the socket open. While it sends,
    `Socket.send` and its kin fail with `SocketBusyError`.
    """

    def __init__(self, socket: Operating) -> None:
        self._socket = socket
        self._queue = SendQueue()
        self._dropped = 0
        """Bytes that were queued when a send failed; they are never sent."""
        self._sending = False
        self._closed = False
        self._error: BaseException | None = None
        """What a send has failed with, as it was never raised."""
        self._closing = False
        self._waiting: list[tuple[int, Deferred[None]]] = []

    @property
    def closed(self) -> bool:
        """Whether the port, or its socket, was closed on this side."""
        return self._closed

    @property
    def pending(self) -> int:
        """How many bytes were written and are not with the kernel."""
        return self._queue.size + self._dropped

    @property
    def sending(self) -> bool:
        """Whether what was written waits for the kernel to take more."""
        return self._sending

    def write(self, data: Buffer) -> Deferred[None]:
        """
        Queue *data*, and send it as the peer takes it.

        Args:
            data: May be changed by its owner as soon as this returns.

        Returns:
            `None`, as soon as less than 64 KiB are queued: a writer that waits for it does
            not outrun the peer.

        Errors:
            SocketPortError: The port is closed.
            SocketBusyError: A `Socket.send` or its kin is waiting; nothing is queued.
            SocketWriteTimeoutError, SocketConnectionLostError, SocketClosedError:
                As `Socket.sendall`, also if it was an earlier write that failed.

        Cancelling:
            Fails with `CancelledError`, and changes nothing: *data* is sent.
        """
        copy = bytes(memoryview(data))
        if self._closed:
            return fail(Failure(SocketPortError(self, strerror="The port is closed")))
        if copy and self._error is None:
            if not self._sending and self._socket._writer is not None:
                return self._socket._refuse()
            self._queue.append(copy)
            self._start()
        return self._wait(_QUEUE_FULL)

    def flush(self) -> Deferred[None]:
        """
        Wait until everything is sent.

        Returns:
            `None`, when the kernel has every byte that was written.

        Errors:
            As `write`.

        Cancelling:
            Fails with `CancelledError`, and changes nothing.
        """
        return self._wait(1)

    def close(self) -> Deferred[None]:
        """
        Take no more, and send what is queued; the socket stays open.

        Returns:
            `None`, when the kernel has every byte that was written.

        Errors:
            As `write`.
        """
        self._closed = True
        return self.flush()

    def _wait(self, below: int) -> Deferred[None]:
        """Return a Deferred that fires when fewer than *below* bytes are queued."""
        if self._error is not None:
            return fail(self._failed_before())
        if self._queue.size < below and not (below == 1 and self._sending):
            return succeed(None)
        waiting: Deferred[None] = Deferred(self._forget)
        self._waiting.append((below, waiting))
        return waiting

    def _forget(self, cancelled: Deferred[None]) -> None:
        self._waiting = [each for each in self._waiting if each[1] is not cancelled]

    def _start(self) -> None:
        if not self._sending:
            self._sending = True
            self._socket._write(self._send_queue).addCallbacks(self._sent, self._failed)

    def _send_queue(self) -> Want | None:
        """Send what is queued; an operation of the socket's."""
        descriptor = self._socket._descriptor
        queue = self._queue
        while queue.size:
            count = descriptor.try_send(queue.head())
            if isinstance(count, Want):
                return count
            self._socket._sent_some()
            queue.sent(count)
            self._release_writers()
            if self._socket._closed and not self._closing:
                # A callback closed the socket; what is left goes out with the closing.
                return None
        want: Want | None = descriptor.try_flush()
        return want

    def _send_rest(self) -> Want | None:
        """Send what is queued when the socket is closed; for the socket."""
        if self._dropped:
            # It was dropped, and the stream must not look complete.
            raise self._failed_before()
        self._closing = True
        return self._send_queue()

    def _release_writers(self) -> None:
        """Fire for those that waited for no less than this."""
        waiting, self._waiting = self._waiting, []
        for below, deferred in waiting:
            if self._queue.size < below and below > 1:
                deferred.callback(None)
            else:
                self._waiting.append((below, deferred))

    def _sent(self, _: object) -> None:
        self._sending = False
        if self._queue.size:
            # Written by a callback, after the queue had run empty.
            self._start()
            return
        waiting, self._waiting = self._waiting, []
        for _below, deferred in waiting:
            deferred.callback(None)

    def _failed_before(self) -> BaseException:
        """Return the error that a send has failed with."""
        assert self._error is not None
        error = unraised(self._error)
        if isinstance(error, SocketError):
            error.socket = self._socket
        return error

    def _failed(self, failure: Failure) -> None:
        self._sending = False
        error = failure.value
        assert error is not None
        self._error = unraised(error)
        if not isinstance(error, SocketWriteTimeoutError | SocketClosedError):
            # After those what is left goes out when the socket is closed.
            self._dropped = self._queue.size
            self._queue.clear()
        waiting, self._waiting = self._waiting, []
        for _below, deferred in waiting:
            deferred.errback(self._failed_before())


def _check_count(n: object, least: int = 1) -> None:
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"n must be a number of bytes, not {n!r}")
    if n < least:
        raise ValueError(f"n={n} must be at least {least}")
