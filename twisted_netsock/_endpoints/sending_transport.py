"""
How a transport sends, and how its connection ends.

A write goes to the kernel at once where it can; what does not fit is queued, and
every wait that is the library's own has a limit.
"""

from __future__ import annotations

import socket as _socket
from collections.abc import Iterable
from typing import Any, Final

from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.python.failure import Failure

from .._io.descriptor import byte_view, set_linger_reset
from .._io.fairness import BYTES
from .._io.poller import WANT_WRITE, Want
from .._tls.descriptor import TLSDescriptor
from .._tls.handshake import tls_shutdown
from ..errors import SocketError, SocketWriteTimeoutError, unraised
from .base_transport import BaseTransport

__all__ = ["SendingTransport", "check_bytes", "joined"]

_BUFFER_FULL: Final = 64 * 1024
"""Queued bytes above which a streaming producer is paused, as in Twisted."""

_BYTES: Final = (bytes, bytearray, memoryview)

_JOIN_LIMIT: Final = 256 * 1024
"""Queued chunks are sent together up to this many bytes."""


def check_bytes(data: object) -> None:
    """Raise `TypeError` if *data* is nothing that `write` takes."""
    if not isinstance(data, _BYTES):
        raise TypeError(f"data must be bytes, not {type(data).__name__}")


def joined(data: Iterable[bytes | bytearray | memoryview]) -> bytes:
    """Return what ``writeSequence`` was given in one piece, of what `check_bytes` lets pass."""
    parts = tuple(data)
    for part in parts:
        check_bytes(part)
    return b"".join(byte_view(part) if isinstance(part, memoryview) else part for part in parts)


class SendingTransport(BaseTransport):
    """A `BaseTransport` that sends, takes producers, and closes."""

    # Writing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """
        Send *data*, in order and reliably; what does not fit now is queued.

        Args:
            data: May be changed by its owner as soon as this returns.

        Raises:
            TypeError: *data* is no bytes.
        """
        check_bytes(data)
        if not self.connected or self._write_closed or self._aborting or self._goodbye is not None:
            return
        data = byte_view(data) if isinstance(data, memoryview) else data
        if self._queue or self._shaking is not None or self._descriptor.unflushed:
            self._enqueue(data)
            return
        size = len(data)
        sent = 0
        try:
            while sent < size:
                count = self._descriptor.try_send(memoryview(data)[sent:] if sent else data)
                if count.__class__ is Want:
                    self._wait_to_send(count)
                    break
                sent += count
                if sent < size and not self._is_tls:
                    # The kernel's buffer is full: the rest waits.
                    break
        except SocketError as error:
            self._lose_soon(unraised(error))
            return
        if sent < size:
            self._enqueue(memoryview(data)[sent:])
        elif self._descriptor.unflushed or (
            self.producer is not None and not self.streamingProducer
        ):
            self._want_flush()

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """
        Send each of *data*, in order; see `write`.

        Raises:
            TypeError: One of *data* is no bytes; nothing is sent then.
        """
        self.write(joined(data))

    def _enqueue(self, data: bytes | bytearray | memoryview) -> None:
        if not len(data):
            return
        if self._shaking is not None:
            self._behind_handshake.append(bytes(data))
        else:
            self._queue.append(bytes(data))
        self._queued += len(data)
        self._want_flush()
        if (
            self._queued > _BUFFER_FULL
            and self.producer is not None
            and self.streamingProducer
            and not self.producerPaused
        ):
            self.producerPaused = True
            self.producer.pauseProducing()

    def _want_flush(self) -> None:
        """Have `_flush` called when the descriptor can be written."""
        if self._handshake is not None or self._goodbye is not None:
            return
        if self._shaking is not None and not self._queue:
            return
        if self._watch.send is None:
            self._watch.want_send()
        if self._write_limit is not None and self._write_timer is None:
            self._last_write = self.reactor.seconds()
            self._write_timer = self.reactor.callLater(self._write_limit, self._check_writing)

    def _flush(self) -> None:
        descriptor = self._descriptor
        budget = BYTES
        try:
            while self._queue and budget > 0:
                chunk = self._next_chunk()
                count = descriptor.try_send(chunk)
                if count.__class__ is Want:
                    self._wait_to_send(count)
                    return
                budget -= count
                self._queued -= count
                self._last_write = self.reactor.seconds() if self._write_limit else 0.0
                if count < len(chunk):
                    self._queue[0] = memoryview(chunk)[count:]
                else:
                    self._queue.popleft()
            if self._queue:
                self._wait_to_send(WANT_WRITE)
                return
            want = descriptor.try_flush()
        except SocketError as error:
            self._lose(Failure(unraised(error)))
            return
        if want is not None:
            self._wait_to_send(want)
            return
        self._drained()

    def _next_chunk(self) -> bytes | memoryview:
        """Return the head of the queue, small chunks joined: one system call for many writes."""
        queue = self._queue
        if len(queue) > 1 and len(queue[0]) + len(queue[1]) <= _JOIN_LIMIT:
            size = 0
            parts = []
            while queue and size + len(queue[0]) <= _JOIN_LIMIT:
                part = queue.popleft()
                size += len(part)
                parts.append(part)
            queue.appendleft(b"".join(parts))
        return queue[0]

    def _wait_to_send(self, want: Want) -> None:
        if self._watch.send is not want:
            self._watch.want_send(want)

    def _drained(self) -> None:
        """Everything is with the kernel: go on with what waited for that."""
        self._watch.stop_send()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        self._go_on()

    def _go_on(self) -> None:
        if self.producer is not None and (not self.streamingProducer or self.producerPaused):
            self.producerPaused = False
            if not self.streamingProducer:
                self._want_flush()
            try:
                self.producer.resumeProducing()
            except BaseException:  # noqa: BLE001 - see _protocol_failed
                self._protocol_failed()
        elif self.producer is not None:
            return
        elif self.disconnecting:
            self._finish()
        elif self._write_closing and not self._write_closed:
            self._close_write()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """
        Let *producer* fill the queue, paused while more than 64 KiB wait.

        Raises:
            RuntimeError: Another producer is registered.
        """
        if self.producer is not None:
            raise RuntimeError(
                f"Cannot register producer {producer}, because producer {self.producer} "
                "was never unregistered."
            )
        if self.disconnected:
            producer.stopProducing()
            return
        self.producer = producer
        self.streamingProducer = streaming
        self.producerPaused = False
        if not streaming:
            self._want_flush()
            producer.resumeProducing()

    def stopConsuming(self) -> None:
        """Let go of the producer, and lose the connection."""
        self.unregisterProducer()
        self.loseConnection()

    def unregisterProducer(self) -> None:
        """Let go of the producer; a close that waited for it goes on."""
        self.producer = None
        if self.connected and (self.disconnecting or self._write_closing):
            self._want_flush()

    # The end

    def loseConnection(self) -> None:
        """Close the connection when all that was written is sent, and the producer is done."""
        if not self.connected or self.disconnecting:
            return
        self.disconnecting = True
        self._update_reading()
        if self._write_closed:
            self._call_soon(self._finish)
        else:
            self._want_flush()

    def loseWriteConnection(self) -> None:
        """Close the writing half when all that was written is sent; on TLS by close_notify."""
        if self.connected and not self._write_closing:
            self._write_closing = True
            self._want_flush()

    def _close_write(self) -> None:
        try:
            want = self._descriptor.try_shutdown(_socket.SHUT_WR)
        except SocketError as error:
            self._lose(Failure(unraised(error)))
            return
        if want is not None:
            self._wait_to_send(want)
            return
        self._write_closed = True
        try:
            listener = IHalfCloseableProtocol(self.protocol, None)
            if listener is not None:
                listener.writeConnectionLost()
        except BaseException:  # noqa: BLE001 - see _protocol_failed
            self._protocol_failed()
            return
        if self._read_closed and self.connected:
            self._finish()

    def _finish(self) -> None:
        """End in order: on TLS with a goodbye, which its options limit."""
        if self._goodbye is not None or self.disconnected:
            return
        if not isinstance(self._descriptor, TLSDescriptor):
            self._lose(Failure(ConnectionDone()))
            return
        self.disconnecting = True
        for timer in (self._read_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._read_timer = self._write_timer = None
        self._goodbye = tls_shutdown(self.reactor, self._watch, self._descriptor)
        self._goodbye.addBoth(self._after_goodbye)

    def _after_goodbye(self, _: object) -> None:
        if not self._aborting:
            self._lose(Failure(ConnectionDone()))

    def abortConnection(self) -> None:
        """Close at once and reset the connection; may be called again, and after loss."""
        if self.disconnected or self._aborting:
            return
        self._aborting = self.disconnecting = True
        if self._goodbye is not None:
            self._goodbye.cancel()
        else:
            handshaking, self._handshake = self._handshake, None
            if handshaking is not None:
                handshaking.cancel()
            self._watch.stop_receive()
            self._watch.stop_send()
            set_linger_reset(self._descriptor.sock)
        self._call_soon(self._lose, Failure(ConnectionAborted()))

    def _check_writing(self) -> None:
        assert self._write_limit is not None
        self._write_timer = None
        left = self._last_write + self._write_limit - self.reactor.seconds()
        if left > 0:
            self._write_timer = self.reactor.callLater(left, self._check_writing)
        else:
            self._lose(Failure(SocketWriteTimeoutError()))
