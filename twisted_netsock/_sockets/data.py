"""`DataSocket`: receiving and sending, of streams, datagrams and messages, and ports."""

from __future__ import annotations

import errno
import socket as _socket
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import IO, TYPE_CHECKING, Final, TypeVar, cast

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from .._io.descriptor import (
    PlainDescriptor,
    byte_view,
    check_flags,
    set_linger_reset,
    writable_view,
)
from .._io.drive import drive
from .._io.fairness import BYTES, BYTES_OF_ONE
from .._io.fast_await import Done
from .._io.operation import Receiving
from .._io.poller import WANT_READ, WANT_WRITE, Want
from .._validation import byte_count
from ..addresses import Address, SocketAddress, as_socket_address
from ..errors import SocketError, SocketPortError, SocketWriteTimeoutError
from .base import BaseSocket
from .ports import InputPort, OutputPort
from .sendfile import FileSource

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["DataSocket"]

T = TypeVar("T")

_SKIPPED: Final = 8
"""Receives that wait without an attempt, after one that had to wait."""

_UNIX_DATAGRAM_PACE: Final = 0.01
"""Seconds between two tries to send to a UNIX socket whose queue is full."""

FLUSH_LIMIT: Final = timedelta(seconds=5)
"""How long `Socket.close` goes on sending what the output port holds."""


class DataSocket(BaseSocket):
    """The data calls of a socket, and the ports over them."""

    _input: InputPort | None = None
    _output: OutputPort | None = None

    # Receiving

    def recv(self, n: int, flags: int = 0) -> Deferred[bytes]:
        """
        Receive up to *n* bytes.

        Args:
            n: The most bytes wanted; more than 64 KiB never come at once, except
                of a datagram (for bulk use `recv_into`).
            flags: ``MSG_…`` flags.

        Returns:
            What has arrived, as soon as there is something; ``b""`` once the
            peer has finished sending (a datagram may be empty, too). Mostly the
            Deferred has fired already if it is there; on a socket that had to
            wait for its peer before, it may fire in the reactor's next turn.

        Errors:
            SocketReadTimeoutError: `read_timeout` passed without a byte.
            SocketConnectionLostError: The peer or the network broke the connection.
            SocketBusyError: Another receive is waiting on this socket.
            SocketClosedError: The socket is closed, or was while this waited.

        Cancelling:
            Fails with `CancelledError`, consumes nothing, keeps the socket open.
        """
        if n.__class__ is not int or n < 0:
            byte_count(n, "n")
        if flags:
            self._check_flags(flags, buffer=False)
            return self._receive(lambda: self._descriptor.try_recv(n, flags))
        # The way of most receives, written out: no closure unless it has to wait.
        descriptor = self._descriptor
        if self._closed or self._reader is not None or self._input is not None:
            return self._receive(lambda: descriptor.try_recv(n))
        want = WANT_READ
        if self._doomed and n and descriptor.seen_by_poller:
            # The last one found nothing: an attempt that fails costs more than the wait.
            self._doomed -= 1
        elif self._may_go_on():
            try:
                result = descriptor.try_recv(n)
            except SocketError as error:
                return self._failed(error)
            if result.__class__ is not Want:
                self._in_a_row += len(result) // BYTES_OF_ONE
                return Done(result)
            if descriptor.seen_by_poller:
                self._doomed = _SKIPPED
            want = result
        operation = self._reader = Receiving(self._drop, descriptor, n, want)
        return self._park(operation, self._read_timeout)

    def recv_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> Deferred[int]:
        """
        Fill *buffer* with what has arrived.

        Args:
            buffer: Written from its start; bytes past the count stay untouched.
                Stays its caller's, who leaves it alone until the Deferred fires.
            nbytes: The most bytes wanted; as many as *buffer* has room for if 0.
            flags: ``MSG_…`` flags, as for `recv`, and ``MSG_TRUNC``.

        Returns:
            The number of bytes, as soon as there is one; 0 once the peer has
            finished sending.

        Raises:
            TypeError: *buffer* cannot be written, or an argument is no number.
            ValueError: *nbytes* is negative or more than *buffer* has room for; or
                *flags* has one that is not honoured.

        Errors:
            As `recv`.

        Cancelling:
            Fails with `CancelledError`, consumes nothing, keeps the socket open.
        """
        view = writable_view(buffer, nbytes)
        if flags:
            self._check_flags(flags)
        return self._receive(lambda: self._descriptor.try_recv_into(view, flags))

    def recvfrom(self, n: int, flags: int = 0) -> Deferred[tuple[bytes, SocketAddress]]:
        """
        Receive one datagram of up to *n* bytes, and learn who sent it.

        A longer one is cut; `recvmsg` tells so by ``MSG_TRUNC``.

        Args:
            n: The most bytes wanted.
            flags: ``MSG_…`` flags.

        Returns:
            The data and the sender's address; ``b""`` is an empty datagram.

        Errors:
            As `recv`.

        Cancelling:
            Fails with `CancelledError`, consumes nothing, keeps the socket open.
        """
        byte_count(n, "n")
        self._check_flags(flags, buffer=False)
        return self._receive(lambda: self._datagrams().try_recvfrom(n, flags))

    def recvfrom_into(
        self, buffer: Buffer, nbytes: int = 0, flags: int = 0
    ) -> Deferred[tuple[int, SocketAddress]]:
        """
        Fill *buffer* with one datagram, and learn who sent it.

        Args:
            buffer: As for `recv_into`.
            nbytes: As for `recv_into`.
            flags: ``MSG_…`` flags; with ``MSG_TRUNC`` the count is the datagram's.

        Returns:
            The number of bytes and the sender's address.

        Raises:
            TypeError, ValueError: As `recv_into`.

        Errors:
            As `recv`.

        Cancelling:
            Fails with `CancelledError`, consumes nothing, keeps the socket open.
        """
        view = writable_view(buffer, nbytes)
        self._check_flags(flags)
        return self._receive(lambda: self._datagrams().try_recvfrom_into(view, flags))

    def recvmsg(
        self, n: int, ancillary_size: int = 0, flags: int = 0
    ) -> Deferred[tuple[bytes, list[tuple[int, int, bytes]], int, SocketAddress]]:
        """
        Receive data and ancillary data, as `socket.socket.recvmsg`.

        Args:
            n: The most bytes wanted.
            ancillary_size: The most bytes of ancillary data wanted
                (`socket.CMSG_SPACE`).
            flags: ``MSG_…`` flags.

        Returns:
            Data, ancillary data, flags (``MSG_TRUNC``: the datagram was cut;
            ``MSG_CTRUNC``: the ancillary data was) and the sender's address.
            Descriptors among the ancillary data are the caller's to close.

        Errors:
            As `recv`.

        Cancelling:
            Fails with `CancelledError`, consumes nothing, keeps the socket open.
        """
        byte_count(n, "n")
        byte_count(ancillary_size, "ancillary_size")
        self._check_flags(flags)
        return self._receive(lambda: self._datagrams().try_recvmsg(n, ancillary_size, flags))

    def _receive(self, attempt: Callable[[], T | Want]) -> Deferred[T]:
        """Run a receive, unless it would overtake what the input port holds."""
        if self._input is not None and self._input.pending:
            return self._failed(
                SocketPortError(
                    self._input,
                    strerror="input_port holds unread bytes: read them there first",
                )
            )
        return self._read(attempt)

    def _try_readable(self) -> Want | None:
        if self._input is not None and self._input.pending:
            return None
        return super()._try_readable()

    def _datagrams(self) -> PlainDescriptor:
        """Return the descriptor for what TLS does not have."""
        if not isinstance(self._descriptor, PlainDescriptor):
            raise SocketError(errno=errno.EOPNOTSUPP, strerror="TLS has no datagrams or messages")
        return self._descriptor

    def _check_flags(self, flags: int, *, sending: bool = False, buffer: bool = True) -> None:
        """Refuse flags that are not honoured."""
        check_flags(flags, sending=sending, waits=False, buffer=buffer)

    # Sending

    def send(self, data: Buffer, flags: int = 0) -> Deferred[int]:
        """
        Send some of *data*.

        Args:
            data: Left alone by its owner until the Deferred fires.
            flags: ``MSG_…`` flags.

        Returns:
            How many bytes, from the start, the kernel has taken: at least one
            if there is one.

        Errors:
            SocketWriteTimeoutError: `write_timeout` passed, nothing was sent.
            SocketConnectionLostError: The peer or the network broke the connection.
            SocketBusyError: Another send is waiting on this socket.
            SocketClosedError: The socket is closed or shut down for writing.

        Cancelling:
            Fails with `CancelledError`; nothing has been sent, the socket stays
            open. On TLS up to 16 KiB of it may still go out.
        """
        view = byte_view(data)
        if flags:
            self._check_flags(flags, sending=True)
        return self._write(self._send_once(view, flags))

    def _send_once(self, view: memoryview, flags: int) -> Callable[[], int | Want]:
        return lambda: self._descriptor.try_send(view, flags)

    def sendall(self, data: Buffer) -> Deferred[None]:
        """
        Send all of *data*.

        Args:
            data: Left alone by its owner until the Deferred fires.

        Returns:
            `None`, when the kernel has taken every byte.

        Errors:
            As `send`; a `SocketWriteTimeoutError` when nothing more was taken for
            as long as `write_timeout`. A part may have been sent.

        Cancelling:
            Fails with `CancelledError`; a part may have been sent, the socket
            stays open. On TLS up to 16 KiB more may still go out.
        """
        # The way of most sends, written out: no closure unless it has to wait.
        view = data if data.__class__ is bytes else byte_view(data)
        if self._closed or self._writer is not None:
            return self._refuse()
        if not self._may_go_on():
            everything = self._send_everything(byte_view(view), 0)
            return self._park_write(everything, WANT_WRITE, self._write_timeout)
        try:
            sent = self._descriptor.try_send(view)
        except SocketError as error:
            return self._failed(error)
        if self._closed:
            # By whom the attempt itself called.
            return self._refuse()
        if sent == len(view) and not self._descriptor.unflushed:
            self._in_a_row += sent // BYTES_OF_ONE
            return Done(None)
        done = 0 if sent.__class__ is Want else cast(int, sent)
        return self._write(self._send_everything(byte_view(view), done))

    def _send_everything(self, view: memoryview, offset: int) -> Callable[[], Want | None]:
        descriptor = self._descriptor
        size = len(view)

        def attempt() -> Want | None:
            nonlocal offset
            end = offset + BYTES
            while offset < size:
                if offset >= end:
                    return WANT_WRITE
                count: int | Want = descriptor.try_send(view[offset:] if offset else view)
                if isinstance(count, Want):
                    return count
                offset += count
                self._sent_some()
            want: Want | None = descriptor.try_flush()
            return want

        return attempt

    def sendfile(
        self, file: IO[bytes], offset: int = 0, count: int | None = None
    ) -> Deferred[int]:
        """
        Send a file, as `socket.socket.sendfile`: on a plain socket the kernel does it alone.

        Args:
            file: Open for reading in binary mode; its owner's, who leaves it alone until
                the Deferred fires. Reading holds the reactor up, for as long as its disk
                or its ``read`` takes. Its position ends up behind what was sent.
            offset: Where to begin, in bytes.
            count: The most bytes to send; up to the end of the file if `None`.

        Returns:
            How many bytes were sent, when the kernel has taken them all.

        Raises:
            TypeError: *file* is none, or *offset* or *count* no number.
            ValueError: *file* is open for text or for writing alone, or has no *offset* to
                begin at; *offset* or *count* is negative; or this is no stream.

        Errors:
            SocketError: The file cannot be read. A part may have been sent.
            SocketWriteTimeoutError, SocketConnectionLostError, SocketBusyError,
            SocketClosedError: As `sendall`.

        Cancelling:
            As `sendall`; the position of *file* tells how much was sent.
        """
        source = FileSource(file, offset, count, self._descriptor)

        def conclude(result: int | Failure) -> int | Failure:
            source.conclude()
            return result

        return self._write(lambda: source.attempt(self._sent_some)).addBoth(conclude)

    def sendto(self, data: Buffer, address: Address, flags: int = 0) -> Deferred[int]:
        """
        Send *data* as one datagram to *address*.

        Args:
            data: Left alone by its owner until the Deferred fires.
            address: Numeric: no call looks a name up behind its caller's back.
            flags: ``MSG_…`` flags.

        Returns:
            How many bytes the kernel has taken: all, of a datagram.

        Raises:
            ValueError: *address* is a name, or of another family.

        Errors:
            As `send`.

        Cancelling:
            Fails with `CancelledError`; nothing has been sent, the socket stays open.
        """
        self._check_flags(flags, sending=True)
        native = as_socket_address(address).native(self._family)
        view = byte_view(data)
        sending = self._write(lambda: self._datagrams().try_sendto(view, flags, native))
        self._pace_unix_datagrams()
        return sending

    def sendmsg(
        self,
        buffers: Iterable[Buffer],
        ancillary: Iterable[tuple[int, int, Buffer]] = (),
        flags: int = 0,
        address: Address | None = None,
    ) -> Deferred[int]:
        """
        Send *buffers*, joined, with ancillary data, as `socket.socket.sendmsg`.

        Args:
            buffers: Left alone by their owner until the Deferred fires.
            ancillary: Level, type and data of each; descriptors to pass
                (``SCM_RIGHTS``) stay open here.
            flags: ``MSG_…`` flags.
            address: Whom to send to, numeric; the peer if `None`.

        Returns:
            How many bytes the kernel has taken.

        Raises:
            ValueError: *address* is a name, or of another family.

        Errors:
            As `send`.

        Cancelling:
            Fails with `CancelledError`; nothing has been sent, the socket stays open.
        """
        native = None if address is None else as_socket_address(address).native(self._family)
        views = [byte_view(buffer) for buffer in buffers]
        items = list(ancillary)
        self._check_flags(flags, sending=True)
        sending = self._write(lambda: self._datagrams().try_sendmsg(views, items, flags, native))
        self._pace_unix_datagrams()
        return sending

    def _pace_unix_datagrams(self) -> None:
        """
        Keep a send to a UNIX socket whose queue is full from spinning.

        The kernel calls a datagram socket writable as long as its own buffer has
        room, whatever the queue of the receiver that is not its peer.
        """
        if self._writer is not None and self._family == _socket.AF_UNIX:
            self._writer.pace = _UNIX_DATAGRAM_PACE

    # Ports

    @property
    def input_port(self) -> InputPort:
        """The buffered reader of this stream; always the same object."""
        if self._input is None:
            self._check_open()
            self._input = InputPort(self)
        return self._input

    @property
    def output_port(self) -> OutputPort:
        """The buffered writer of this stream; always the same object."""
        if self._output is None:
            self._check_open()
            self._output = OutputPort(self)
        return self._output

    def _close_ports(self) -> None:
        for port in (self._input, self._output):
            if port is not None:
                port._closed = True

    def _dispose(self, *, abort: bool) -> None:
        self._close_ports()
        if self._output is not None and self._output.pending and not abort:
            self._flush_then_dispose(self._output)
        else:
            self._let_go(abort=abort)

    def _flush_then_dispose(self, port: OutputPort) -> None:
        """Send what the port holds, within a limit, and close then."""
        limit = self._write_timeout or FLUSH_LIMIT
        flushing = self._ending = drive(
            self._reactor,
            self._watch,
            port._send_rest,
            timeout=limit.total_seconds(),
            timed_out=SocketWriteTimeoutError,
        )
        flushing.addBoth(self._flushed)

    def _flushed(self, result: Failure | None) -> None:
        failed = isinstance(result, Failure)
        if failed:
            # A stream that was cut off must not look complete to the peer.
            set_linger_reset(self._descriptor.sock)
        self._let_go(abort=failed or self._aborted)

    def _let_go(self, *, abort: bool) -> None:
        """Close the descriptor, now that nothing waits to be sent."""
        super()._dispose(abort=abort)
