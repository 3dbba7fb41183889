"""`BlockingData`: receiving and sending, of streams, datagrams and messages, and ports."""

from __future__ import annotations

import io
import socket as _socket
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import IO, TYPE_CHECKING, Any, Final, TypeVar

from .._io.descriptor import (
    byte_view,
    writable_view,
)
from .._io.poller import Want
from .._sockets.attempts import FLUSH_LIMIT, Attempt, Attempts
from .._sockets.sendfile import FileSource
from .._validation import byte_count
from ..addresses import Address, SocketAddress
from ..errors import SocketBusyError, SocketClosedError, SocketPortError
from ._base import BlockingBase
from ._ports import RawPort, drop, has_failed, held_by, open_input_port, open_output_port
from ._waiting import Deadline, Expired, current_waiter

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["BlockingData"]

T = TypeVar("T")

_MODES: Final = frozenset("rwb")


class BlockingData(Attempts, BlockingBase):
    """The data calls of a blocking socket, and the ports over them."""

    _input: io.BufferedReader | None = None
    _output: io.BufferedWriter | None = None
    _blocks = True
    _takes_before_it_sends = False

    # Receiving

    def recv(self, n: int, flags: int = 0) -> bytes:
        """
        Receive up to *n* bytes.

        The arguments are those of `Socket.recv`.

        Returns:
            What has arrived, as soon as there is something; ``b""`` once the
            peer has finished sending (a datagram may be empty, too).

        Raises:
            SocketReadTimeoutError: `read_timeout` passed without a byte.
            SocketConnectionLostError: The peer or the network broke the
                connection, or the reactor was shut down.
            SocketBusyError: Another thread is receiving on this socket.
            SocketClosedError: The socket is closed, or was while this waited.
            SocketPortError: `input_port` holds unread bytes.
        """
        byte_count(n, "n")
        if flags:
            return self._receive(self._recv_attempt(n, flags))
        descriptor = self._descriptor
        if not n:
            # Nothing is wanted, and so nothing waited for.
            self._drained = False

        def attempt() -> bytes | Want:
            data: bytes | Want = descriptor.try_recv(n)
            if type(data) is bytes:
                self._drained = self._is_drained(len(data), n)
            return data

        return self._read(attempt)

    def _receive(self, attempt: Attempt[T]) -> T:
        """Run a receive whose count does not tell whether there is more."""
        self._drained = False
        return self._read(attempt)

    def _is_drained(self, count: int, wanted: int) -> bool:
        """Tell whether a receive of *count* bytes has left nothing in the kernel, probably."""
        return 0 < count < wanted

    def recv_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> int:
        """
        Fill *buffer* with what has arrived.

        The arguments are those of `Socket.recv_into`.

        Returns:
            The number of bytes, as soon as there is one; 0 once the peer has
            finished sending.

        Raises:
            TypeError: *buffer* cannot be written, or an argument is no number.
            ValueError: *nbytes* is negative or more than *buffer* has room for; or
                *flags* has one that is not honoured.
            SocketReadTimeoutError, SocketConnectionLostError, SocketBusyError,
            SocketClosedError, SocketPortError: As `recv`.
        """
        if flags:
            return self._receive(self._recv_into_attempt(buffer, nbytes, flags))
        return self._read(self._filling(writable_view(buffer, nbytes)))

    def _filling(self, view: memoryview) -> Callable[[], int | Want]:
        descriptor = self._descriptor
        size = len(view)
        if not size:
            self._drained = False

        def attempt() -> int | Want:
            count: int | Want = descriptor.try_recv_into(view)
            if type(count) is int:
                self._drained = self._is_drained(count, size)
            return count

        return attempt

    def _recv_into_port(self, buffer: memoryview, by: int) -> int:
        return self._read(self._filling(buffer), by)

    def recvfrom(self, n: int, flags: int = 0) -> tuple[bytes, SocketAddress]:
        """
        Receive one datagram of up to *n* bytes, and learn who sent it.

        A longer one is cut; `recvmsg` tells so by ``MSG_TRUNC``.

        The arguments are those of `Socket.recvfrom`.

        Returns:
            The data and the sender's address; ``b""`` is an empty datagram.

        Raises:
            SocketReadTimeoutError, SocketConnectionLostError, SocketBusyError,
            SocketClosedError, SocketPortError: As `recv`.
        """
        return self._receive(self._recvfrom_attempt(n, flags))

    def recvfrom_into(
        self, buffer: Buffer, nbytes: int = 0, flags: int = 0
    ) -> tuple[int, SocketAddress]:
        """
        Fill *buffer* with one datagram, and learn who sent it.

        The arguments are those of `Socket.recvfrom_into`.

        Returns:
            The number of bytes and the sender's address.

        Raises:
            TypeError, ValueError: As `recv_into`.
            SocketReadTimeoutError, SocketConnectionLostError, SocketBusyError,
            SocketClosedError, SocketPortError: As `recv`.
        """
        return self._receive(self._recvfrom_into_attempt(buffer, nbytes, flags))

    def recvmsg(
        self, n: int, ancillary_size: int = 0, flags: int = 0
    ) -> tuple[bytes, list[tuple[int, int, bytes]], int, SocketAddress]:
        """
        Receive data and ancillary data, as `socket.socket.recvmsg`.

        The arguments are those of `Socket.recvmsg`.

        Returns:
            Data, ancillary data, flags (``MSG_TRUNC``: the datagram was cut;
            ``MSG_CTRUNC``: the ancillary data was) and the sender's address.
            Descriptors among the ancillary data are the caller's to close.

        Raises:
            SocketReadTimeoutError, SocketConnectionLostError, SocketBusyError,
            SocketClosedError, SocketPortError: As `recv`.
        """
        return self._receive(self._recvmsg_attempt(n, ancillary_size, flags))

    def _before_read(self) -> None:
        if self._input is not None and held_by(self._input):
            raise SocketPortError(
                self._input,
                socket=self,
                strerror="input_port holds unread bytes: read them there first",
            )

    def _has_input(self) -> bool:
        return self._input is not None and held_by(self._input) > 0

    # Sending

    def send(self, data: Buffer, flags: int = 0) -> int:
        """
        Send some of *data*, after what `output_port` holds.

        The arguments are those of `Socket.send`.

        Returns:
            How many bytes, from the start, the kernel has taken: at least one
            if there is one.

        Raises:
            SocketWriteTimeoutError: `write_timeout` passed, nothing was sent. On
                TLS up to 16 KiB of it may still go out, with the next call.
            SocketConnectionLostError: The peer or the network broke the
                connection, or the reactor was shut down.
            SocketBusyError: Another thread is sending on this socket.
            SocketClosedError: The socket is closed or shut down for writing.
        """
        return self._write(self._send_attempt(data, flags))

    def _send_from_port(self, data: memoryview, by: int) -> int:
        return self._write(self._send_once(data.cast("B"), 0), by)

    def sendall(self, data: Buffer) -> None:
        """
        Send all of *data*, after what `output_port` holds.

        Args:
            data: What to send; all of it is with the kernel on return.

        Raises:
            SocketWriteTimeoutError: Nothing more was taken for as long as
                `write_timeout`. A part may have been sent.
            SocketConnectionLostError, SocketBusyError, SocketClosedError: As
                `send`.
        """
        view = data if isinstance(data, bytes) else byte_view(data)
        descriptor = self._descriptor
        deadline = Deadline(self._write_seconds)
        offset = 0
        size = len(view)

        def attempt() -> Want | None:
            nonlocal offset, view
            while offset < size:
                if self._closed:
                    # By another thread or a signal handler, while the peer takes all there is.
                    raise SocketClosedError
                count: int | Want = descriptor.try_send(
                    memoryview(view)[offset:] if offset else view
                )
                if isinstance(count, Want):
                    return count
                offset += count
                deadline.renew()
            want: Want | None = descriptor.try_flush()
            return want

        self._write(attempt, deadline=deadline)

    def sendfile(self, file: IO[bytes], offset: int = 0, count: int | None = None) -> int:
        """
        Send a file, as `socket.socket.sendfile`, after what `output_port` holds.

        The arguments are those of `Socket.sendfile`.

        Returns:
            How many bytes were sent; all of them are with the kernel on return.

        Raises:
            SocketError: The file cannot be read. A part may have been sent.
            SocketWriteTimeoutError, SocketConnectionLostError, SocketBusyError,
            SocketClosedError: As `sendall`; the position of *file* tells how much was sent.
        """
        source = FileSource(file, offset, count, self._descriptor, self._others_turn)
        deadline = Deadline(self._write_seconds)
        try:
            return self._write(lambda: source.attempt(deadline.renew), deadline=deadline)
        finally:
            source.conclude()

    def _others_turn(self) -> AbstractContextManager[object]:
        """Return a time within an attempt in which other threads may go on with theirs."""
        return nullcontext()

    def sendto(self, data: Buffer, address: Address, flags: int = 0) -> int:
        """
        Send *data* as one datagram to *address*.

        The arguments are those of `Socket.sendto`.

        Returns:
            How many bytes the kernel has taken: all, of a datagram.

        Raises:
            ValueError: *address* is a name, or of another family.
            SocketWriteTimeoutError, SocketConnectionLostError, SocketBusyError,
            SocketClosedError: As `send`.
        """
        return self._write(self._sendto_attempt(data, address, flags))

    def sendmsg(
        self,
        buffers: Iterable[Buffer],
        ancillary: Iterable[tuple[int, int, Buffer]] = (),
        flags: int = 0,
        address: Address | None = None,
    ) -> int:
        """
        Send *buffers*, joined, with ancillary data, as `socket.socket.sendmsg`.

        The arguments are those of `Socket.sendmsg`.

        Returns:
            How many bytes the kernel has taken.

        Raises:
            ValueError: *address* is a name, or of another family.
            SocketWriteTimeoutError, SocketConnectionLostError, SocketBusyError,
            SocketClosedError: As `send`.
        """
        return self._write(self._sendmsg_attempt(buffers, ancillary, flags, address))

    def _before_write(self) -> None:
        if self._output is not None:
            self._flush_output(self._output)

    def _flush_output(self, port: io.BufferedWriter) -> None:
        """Send what the output port holds; the sending direction is taken."""
        self._flushing = True
        try:
            if not port.closed:
                port.flush()
        except RuntimeError:
            # This is a signal handler that has interrupted the port itself.
            raise SocketBusyError(self) from None
        finally:
            self._flushing = False

    def shutdown(self, how: int) -> None:
        """
        Shut down one direction or both, after sending what `output_port` holds.

        In a signal handler that has interrupted a send it waits for nothing: that send
        fails with `SocketClosedError`, and what the port holds is dropped.

        The arguments are those of `Socket.shutdown`.

        Raises:
            ValueError: *how* is none of them.
            SocketBusyError: Another thread is sending.
            SocketClosedError: The socket is closed.
            SocketConnectionLostError: There is no connection, or none any more.
        """
        attempt = self._shutdown_attempt(how)
        waiter = current_waiter()
        if self._writer is not waiter:
            self._write(attempt)
            return
        # A signal handler: what it has interrupted would have to go on first.
        self._check_open()
        self._attempt(attempt)
        if how != _socket.SHUT_RD:
            self._cut_send = True
            waiter.wake()

    # Ports

    @property
    def input_port(self) -> io.BufferedReader:
        """
        The buffered reader of this stream; always the same object.

        Closing or dropping it leaves the socket open. A read that fails, by
        time-out or Ctrl-C too, loses what it had gathered, and the port is unusable
        from then on (`SocketPortError`); who wants to go on uses `recv`.
        """
        with self._lock:
            if self._input is None:
                self._check_open()
                self._input = open_input_port(self)
                if self._closed:
                    # By a signal handler, meanwhile.
                    drop(self._input)
            return self._input

    @property
    def output_port(self) -> io.BufferedWriter:
        """
        The buffered writer of this stream; always the same object.

        Sends when its buffer of 64 KiB is full, when it is flushed, and before any other
        send. Closing or dropping it sends what it holds, and leaves the socket open.
        """
        with self._lock:
            if self._output is None:
                self._check_open()
                self._output = open_output_port(self)
                if self._closed:
                    drop(self._output)
            return self._output

    def makefile(
        self,
        mode: str = "r",
        buffering: int | None = None,
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> Any:
        """
        Return a file over this stream, as `socket.socket.makefile`.

        Each call makes another, with a buffer of its own. The descriptor stays
        open until the socket and all of them are closed.

        Args:
            mode: ``"r"``, ``"w"`` or both, and ``"b"`` for bytes.
            buffering: The bytes of the buffer; 0: none, of bytes alone.
            encoding: Of text, as for `open`.
            errors: Of text, as for `open`.
            newline: Of text, as for `open`.

        Raises:
            ValueError: *mode* is another, or text has no buffer.
            SocketClosedError: The socket is closed.
        """
        if not set(mode) <= _MODES or not set(mode) & {"r", "w"}:
            raise ValueError(f"mode={mode!r} must be made of r, w and b")
        binary = "b" in mode
        size = io.DEFAULT_BUFFER_SIZE if buffering is None or buffering < 0 else buffering
        if not size and not binary:
            raise ValueError("buffering=0 must come with a mode of bytes")
        reads, writes = "r" in mode, "w" in mode
        raw = RawPort(self, "rw" if reads and writes else "r" if reads else "w", is_file=True)
        if not size:
            return raw
        buffered: Any
        if reads and writes:
            buffered = io.BufferedRWPair(raw, raw, size)
        elif reads:
            buffered = io.BufferedReader(raw, size)
        else:
            buffered = io.BufferedWriter(raw, size)
        if binary:
            return buffered
        text = io.TextIOWrapper(buffered, encoding, errors, newline)
        # As the standard library does, for those who look.
        text.mode = mode  # type: ignore[misc]
        return text

    def _close_ports(self) -> bool:
        complete = True
        try:
            if self._output is not None and not self._aborted:
                complete = self._flush_last(self._output)
        finally:
            self._drop_ports()
        return complete

    def _drop_ports(self) -> None:
        for port in (self._input, self._output):
            if port is not None:
                drop(port)

    def _flush_last(self, port: io.BufferedWriter) -> bool:
        """Send what the port holds when the socket is closed, within a limit."""
        if port.closed:
            return True
        waiter = current_waiter()
        with self._lock:
            if self._writer is not None:
                # Another thread was cut short in the middle of what it sent.
                return False
            self._writer = waiter
        seconds = self._write_seconds
        before = waiter.limit
        waiter.limit = Deadline(FLUSH_LIMIT.total_seconds() if seconds is None else seconds)
        self._waits = True
        try:
            self._flush_output(port)
        except (OSError, Expired):
            return False
        finally:
            waiter.limit = before
            self._writer = None
        return not has_failed(port)
