"""`BlockingSocket`: the BSD calls for threads, without Deferreds."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import socket as _socket
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple, Self, TypeVar, cast

from twisted.internet.defer import Deferred, fail
from twisted.python import threadable
from twisted.python.failure import Failure

from .. import _validation as check
from .._io.descriptor import Connect, Descriptor, adopt, byte_view, writable_view
from .._io.interfaces import Reactor
from .._io.poller import Want, poller_for
from .._proxy_protocol.header import ProxyHeader
from .._public import public_in
from .._sockets.attempts import FLUSH_LIMIT, Attempt, Attempts
from .._sockets.info import SocketInfo
from .._sockets.sendfile import FileSource
from .._sockets.socket import Socket
from .._validation import byte_count, in_seconds
from ..addresses import Address, SocketAddress
from ..errors import (
    SocketBusyError,
    SocketClosedError,
    SocketConnectionLostError,
    SocketError,
    SocketPortError,
)
from ..options import SocketOptions
from ._bridge import in_reactor, run, use
from ._operation import BlockingOperating
from ._ports import RawPort, drop, has_failed, held_by, open_input_port, open_output_port
from ._serve import Service
from ._waiting import Countdown, Expired, check_thread, current_waiter, limited

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["BlockingSocket", "Taken", "take"]

T = TypeVar("T")

_MODES: Final = frozenset("rwb")

_LONGEST_CLOSING: Final = 1.0
"""Seconds that closing waits for the reactor, which goes on with it by itself."""


class Taken(NamedTuple):
    """What a socket on the reactor has handed over."""

    descriptor: Descriptor
    node: str | None
    service: str | int | None
    options: SocketOptions
    proxy_header: ProxyHeader | None

    def close(self) -> None:
        """Close what nobody wants."""
        self.descriptor.close()


def take(socket: Socket) -> Taken:
    """Take the descriptor of *socket* over, which is spent; in the reactor's thread."""
    return Taken(
        socket._hand_over(), socket.node, socket.service, socket._options, socket.proxy_header
    )


@public_in("twisted_netsock.blocking")
class BlockingSocket(BlockingOperating, SocketInfo, Attempts):
    """
    A blocking socket, for threads.

    Made by the functions of `twisted_netsock.blocking`, or around an existing
    descriptor by `from_socket`. ``with`` closes it at the end; ``for`` accepts. It
    has the methods of `twisted_netsock.Socket`, without the Deferreds, and enough
    of those of `socket.socket` to stand in for one.

    Several threads may use it: one receives while another sends, and any may
    close it, which wakes them. A second receive, or a second send, at a time
    fails with `SocketBusyError`. No method but `abort` may be called in the
    reactor's thread: it is a `RuntimeError`.

    Ctrl-C ends a call at once, and the socket stays usable. What a receive had
    just consumed, and how much a `sendall` had sent, is lost then; over TLS, an
    exception in the very middle of a send fails every later one. A signal handler
    may close, abort or shut down the socket whose call it interrupts.

    Attributes:
        node: The host, address or path that it was made for, or `None`.
        service: The service that it was made for, or `None`.
        proxy_header: The PROXY header that an accepted connection began with, or
            `None`; *node* and *service* are its source then.
    """

    _blocks = True
    _takes_before_it_sends = False
    """A send that timed out may have taken bytes, which TLS keeps."""
    _input: io.BufferedReader | None = None
    _output: io.BufferedWriter | None = None
    _counterpart: Socket | None = None
    """A listening socket on the reactor, which accepts for this one."""

    def __init__(
        self,
        descriptor: Descriptor,
        *,
        node: str | None = None,
        service: str | int | None = None,
        options: SocketOptions | None = None,
    ) -> None:
        """Take *descriptor* over; see `from_socket` for the public way."""
        self.node = node
        self.service = service
        self._accept_seconds: float | None = None
        self._files = 0
        """Objects of `makefile` that are open."""
        self._buffered: weakref.WeakKeyDictionary[Any, RawPort] = weakref.WeakKeyDictionary()
        """Those of them that have a buffer, and what is beneath it."""
        self._given_away: tuple[int, int] | None = None
        """What the descriptor was when `detach` had refused it: its number may be another's."""
        self._aborted = False
        self._dropped = False
        """The collector found it, and nothing may wait any more."""
        self._cut = False
        """Not all was sent that should have been: the peer must notice."""
        self._unowned: deque[Taken] = deque()
        self._successor: BlockingSocket | None = None
        """The socket that has the connection now: by `start_tls`, which spent this one."""
        super().__init__(descriptor, options or SocketOptions())

    @classmethod
    def from_socket(cls, sock: _socket.socket | int, *, reactor: object = None) -> Self:
        """
        Adopt a socket of the standard library, or a descriptor.

        The new socket owns it from then on: a *sock* object is detached and
        spent, a number is closed when the new socket is. It is made
        non-blocking, and ``TCP_NODELAY`` is set where it is TCP.

        Args:
            sock: What to adopt.
            reactor: The one in use, or `None`.

        Raises:
            OSError: *sock* is no open socket.
            TypeError: *sock* speaks TLS.
        """
        use(reactor)
        return cls(adopt(sock))

    @classmethod
    def _around(cls, taken: Taken) -> Self:
        made = cls(taken.descriptor, node=taken.node, service=taken.service, options=taken.options)
        made.proxy_header = taken.proxy_header
        return made

    def detach(self) -> int:
        """
        Give the descriptor away, and close this socket without it.

        Returns:
            The descriptor, non-blocking, which is the caller's to close.

        Objects of `makefile` that are open are of no more use: reading them is a
        `SocketClosedError`. What they hold to be sent is sent before.

        Raises:
            SocketClosedError: The socket is closed.
            SocketBusyError: A call is under way in another thread.
            SocketPortError: `input_port`, or an object of `makefile`, holds unread bytes.
            SocketError: This is TLS, whose state would be lost, or it has accepted.
        """
        try:
            self._check_kernels()
            return self._surrender().sock.detach()
        except SocketError:
            # The standard library's ssl makes a socket of the number first, and closes that when
            # it cannot have ours: closing ours, later, would close what has the number then.
            with contextlib.suppress(OSError):
                found = os.fstat(self.fileno())
                self._given_away = found.st_dev, found.st_ino
            raise

    def _surrender(self) -> Descriptor:
        """Close this socket without its descriptor, which is the caller's from now on."""
        check_thread()
        self._check_open()
        files = [(file, raw) for file, raw in self._buffered.items() if not file.closed]
        try:
            for port in (self._output, *(file for file, _ in files if file.writable())):
                if port is not None and not port.closed:
                    port.flush()
        except RuntimeError:
            # This is a signal handler that has interrupted the port itself.
            raise SocketBusyError(self) from None
        with self._lock:
            self._check_open()
            if self._reader is not None or self._writer is not None:
                raise SocketBusyError(self)
            for file, raw in files:
                if file.readable() and raw.count_held(file):
                    raise SocketPortError(
                        file, socket=self, strerror="An object of makefile holds unread bytes"
                    )
            if self._counterpart is not None:
                raise SocketError(self, strerror="A socket that accepts cannot be given away")
            if self._input is not None and held_by(self._input):
                raise SocketPortError(
                    self._input, socket=self, strerror="input_port holds unread bytes"
                )
            self._closed = self._ending = self._gone = True
        self._drop_ports()
        descriptor: Descriptor = self._descriptor
        return descriptor

    # Connecting

    def connect(self, address: Address) -> None:
        """
        Connect to *address*.

        Args:
            address: Numeric: no call looks a name up behind its caller's back.

        Raises:
            ValueError: *address* is a name, or of another family.
            SocketConnectionRefusedError: The peer refused.
            SocketConnectionTimeoutError: The kernel gave up.
            SocketConnectionError: Anything else that went wrong.
            SocketWriteTimeoutError: `write_timeout` passed; the socket is good for
                nothing but closing.
            SocketBusyError: Another thread is sending or connecting.
            SocketClosedError: The socket is closed, or was while this waited.
        """
        self._write(Connect(self._descriptor.sock, self._native(address)))

    def connect_ex(self, address: Address) -> int:
        """
        Connect to *address*, as `connect`.

        Returns:
            The number of the error, as in the module ``errno``, or 0.

        Raises:
            ValueError: *address* is a name, or of another family.
        """
        try:
            self.connect(address)
        except OSError as error:
            return error.errno or errno.EIO
        return 0

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
        """Run a receive whose count does not show whether there is more."""
        self._drained = False
        return self._read(attempt)

    def _is_drained(self, count: int, wanted: int) -> bool:
        """Return whether a receive of *count* bytes has left nothing in the kernel, probably."""
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
        Receive one datagram of up to *n* bytes, and return its sender, too.

        A longer one is cut; `recvmsg` reports that by ``MSG_TRUNC``.

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
        Fill *buffer* with one datagram, and return its sender, too.

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

    def recvmsg_into(
        self, buffers: Iterable[Buffer], ancillary_size: int = 0, flags: int = 0
    ) -> tuple[int, list[tuple[int, int, bytes]], int, SocketAddress]:
        """
        Receive as `recvmsg` does, and fill *buffers*, one after the other.

        Returns:
            How many bytes came, and what else `recvmsg` returns.

        Raises:
            TypeError: One of *buffers* cannot be written.
            SocketReadTimeoutError, SocketConnectionLostError, SocketBusyError,
            SocketClosedError, SocketPortError: As `recv`.
        """
        views = [writable_view(buffer, 0) for buffer in buffers]
        size = sum(map(len, views))
        data, ancillary, flags, address = self.recvmsg(size, ancillary_size, flags)
        rest = memoryview(data)
        for view in views:
            piece, rest = rest[: len(view)], rest[len(view) :]
            view[: len(piece)] = piece
        return len(data), ancillary, flags, address

    def _before_read(self) -> None:
        if self._input is not None and held_by(self._input):
            raise SocketPortError(
                self._input,
                socket=self,
                strerror="input_port holds unread bytes: read them there first",
            )

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

    def sendall(self, data: Buffer, flags: int = 0) -> None:
        """
        Send all of *data*, after what `output_port` holds.

        Args:
            data: What to send; all of it is with the kernel on return.
            flags: Those of `send`, for each of the sends that it takes.

        Raises:
            SocketWriteTimeoutError: Nothing more was taken for as long as
                `write_timeout`. A part may have been sent.
            SocketConnectionLostError, SocketBusyError, SocketClosedError: As
                `send`.
        """
        view = data if isinstance(data, bytes) else byte_view(data)
        offset = 0
        size = len(view)
        if flags:
            while offset < size:
                offset += self.send(memoryview(view)[offset:], flags)
            return
        descriptor = self._descriptor
        deadline = Countdown(self._write_seconds)

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
            SocketClosedError: As `sendall`; the position of *file* shows how much was sent.
        """
        source = FileSource(file, offset, count, self._descriptor, self._others_turn)
        deadline = Countdown(self._write_seconds)
        try:
            return self._write(lambda: source.attempt(deadline.renew), deadline=deadline)
        finally:
            source.conclude()

    def _others_turn(self) -> AbstractContextManager[object]:
        """Return a time within an attempt in which other threads may go on with theirs."""
        return nullcontext()

    def sendto(self, data: Buffer, address: Address | int, flags: int | Address = 0) -> int:
        """
        Send *data* as one datagram to *address*.

        The arguments are those of `Socket.sendto`; as `socket.socket.sendto`, this also
        takes the flags before the address.

        Returns:
            How many bytes the kernel has taken: all, of a datagram.

        Raises:
            ValueError: *address* is a name, or of another family.
            SocketWriteTimeoutError, SocketConnectionLostError, SocketBusyError,
            SocketClosedError: As `send`.
        """
        if isinstance(address, int):
            address, flags = cast("Address", flags), address
        return self._write(self._sendto_attempt(data, address, cast("int", flags)))

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
        timeout or Ctrl-C too, loses what it had gathered, and the port is unusable
        from then on (`SocketPortError`); a program that wants to go on uses `recv`.
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
    ) -> object:
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
        self._buffered[buffered] = raw
        if binary:
            return buffered
        text = io.TextIOWrapper(buffered, encoding, errors, newline)
        # As the standard library does, for programs that look.
        text.mode = mode  # type: ignore[misc]
        return text

    # Accepting

    def accept(self) -> Self:
        """
        Take the next connection.

        Returns:
            Its socket, which is the caller's to close. `read_timeout` and
            `write_timeout` of this socket's options hold for it; neither holds for
            this call, which `settimeout` limits.

        Raises:
            SocketReadTimeoutError: The time of `settimeout` passed.
            SocketBusyError: Another accept is waiting.
            SocketClosedError: The socket is closed, or was while this waited.
            SocketConnectionLostError: The reactor was shut down.
            SocketError: The socket does not listen.
        """
        return self._around(self._next_connection())

    def _next_connection(self) -> Taken:
        """Have the reactor accept; what comes too late is for the next call."""
        if not self._closed:
            # Looking before would not do: another thread may take the last one meanwhile.
            with contextlib.suppress(IndexError):
                return self._unowned.popleft()
        return self._bridge(
            self._accept_there, seconds=self._accept_seconds, discard=self._keep_unowned
        )

    def _keep_unowned(self, taken: Taken) -> None:
        if self._closed:
            taken.close()
        else:
            self._unowned.append(taken)

    def _accept_there(self, reactor: Reactor) -> Deferred[Taken]:
        """Accept a connection, in the reactor's thread."""
        accepting = self._counterpart_on(reactor).accept()
        if not self._waits and not accepting.called:
            accepting.addErrback(lambda _: None)
            accepting.cancel()
            return fail(Failure(BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))))
        return accepting.addCallback(take)

    def _has_input(self) -> bool:
        if self._counterpart is not None and self._counterpart._has_ready:
            return True
        if self._unowned or self._descriptor.buffered or self._descriptor.finished:
            return True
        return self._input is not None and held_by(self._input) > 0

    @property
    def failed_handshakes(self) -> int:
        """How many connections failed before `accept`, by their PROXY header or handshake."""
        return 0 if self._counterpart is None else self._counterpart.failed_handshakes

    def _counterpart_on(self, reactor: Reactor) -> Socket:
        """Return the listening socket on the reactor, in its thread."""
        if self._counterpart is None:
            self._counterpart = self._make_counterpart(reactor)
        return self._counterpart

    def _make_counterpart(self, reactor: Reactor) -> Socket:
        return Socket(
            reactor,
            poller_for(reactor).watch(self._number),
            self._descriptor,
            options=self._options,
        )

    def __iter__(self) -> Iterator[Self]:
        """
        Accept connections until this socket is closed on this side.

        One that does not listen yields itself and the peer's address: what `accept` of the
        standard library returns, so that ``connection, address = listener.accept()`` works.
        """
        if self._closed or self._listens():
            return self._connections()
        # Type checkers need not know: new programs take what accept returns.
        return iter(cast("tuple[Self, Self]", (self, self._peer_address())))

    def _listens(self) -> bool:
        return bool(self._descriptor.sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ACCEPTCONN))

    def _peer_address(self) -> object:
        try:
            return self.getpeername()
        except SocketError:
            # The peer has gone already.
            return self.node or "", self.service or 0

    def _connections(self) -> Iterator[Self]:
        while not self._closed:
            try:
                connection = self.accept()
            except (SocketClosedError, SocketConnectionLostError):
                # Closed here, or with the reactor.
                return
            yield connection

    def serve(self, handler: Callable[[Self], object], *, limit: int | None = None) -> None:
        """
        Accept connections, and call *handler* with each, in a thread of its own.

        Each connection is closed when its handler returns, also if it has been given
        to `start_tls`. Whatever a handler raises, `SystemExit` included, is logged, and
        ends its own connection only. So does a thread that cannot be started: its
        connection is closed, and the next one is accepted.

        Args:
            handler: Called in a daemon thread.
            limit: How many handlers may run at a time: while as many do, no
                connection is accepted. `None`: no limit.

        Returns:
            When this socket is closed on this side, and the handlers have returned.

        Raises:
            TypeError, ValueError: *limit* is no number of threads.
            SocketBusyError: Another thread accepts.
            SocketError: The socket does not listen.
        """
        if not callable(handler):
            raise TypeError(f"handler={handler!r} must be callable with a connection")
        if limit is not None:
            check.positive(limit, "limit")
        Service(self, handler, limit).run()

    # Closing

    def close(self) -> None:
        """
        Close the socket, at once.

        Whatever waits on it in other threads fails with `SocketClosedError`.
        What `output_port` holds is sent first, within `write_timeout` or else 5
        seconds. The descriptor is gone on return, with three exceptions: while
        an object of `makefile` is open, while another thread is just leaving,
        and during TLS shutdown, which goes on after this call within
        `close_timeout`. May be called again.

        Raises:
            RuntimeError: This is the reactor's thread.
        """
        check_thread()
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._wake_users()
        self._when_free(self._finish_closing)

    def _when_free(self, function: Callable[[], object]) -> None:
        """Call *function* now, or when the attempt that this thread has interrupted is over."""
        function()

    def _finish_closing(self) -> None:
        try:
            if not self._close_ports():
                self._cut = True
                self._reset()
        finally:
            if not self._files:
                self._end()

    def abort(self) -> None:
        """Close at once and reset the connection; may be called again, and after `close`."""
        with self._lock:
            if self._aborted:
                return
            self._aborted = self._closed = True
        self._reset()
        self._end()
        self._close_ports()

    def _reset(self) -> None:
        """Have the end of the connection be a reset: it must not look complete."""
        with self._lock:
            if not self._gone:
                self._descriptor.reset_on_close()

    def _close_ports(self) -> bool:
        """Send what the output port holds, close both, and return whether all was sent."""
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
        self._waits = True
        try:
            with limited(Countdown(FLUSH_LIMIT.total_seconds() if seconds is None else seconds)):
                self._flush_output(port)
        except (OSError, Expired):
            return False
        finally:
            self._writer = None
        return not has_failed(port)

    def _dispose(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._unowned.popleft().close()
        counterpart = self._counterpart
        if counterpart is None:
            if self._given_away is not None and not self._has_its_number():
                self._descriptor.sock.detach()
            super()._dispose()
            return
        try:
            if self._dropped or threadable.isInIOThread():
                there = in_reactor(lambda _: counterpart.close())
            else:
                # A signal handler may have interrupted what the reactor waits for.
                run(lambda _: counterpart.close(), seconds=_LONGEST_CLOSING)
                there = True
        except TimeoutError:
            there = True
        except (RuntimeError, SocketConnectionLostError):
            there = False
        if not there:
            # The reactor has ended, and nothing goes on there.
            counterpart._closed = True
            super()._dispose()

    def _has_its_number(self) -> bool:
        """Return whether its number is still that of the descriptor that `detach` refused."""
        try:
            found = os.fstat(self._number)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._given_away

    def _file_opened(self) -> None:
        with self._lock:
            if self._closed:
                raise SocketClosedError(self)
            self._files += 1

    def _file_closed(self) -> None:
        with self._lock:
            self._files -= 1
            last = self._closed and not self._files
        if last:
            self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_gone", True):
            return
        if not self._closed:
            warnings.warn(f"{self!r} was never closed", ResourceWarning, stacklevel=2, source=self)
        self._closed = self._ending = self._gone = self._dropped = True
        self._dispose()

    def _after_fork(self) -> None:
        counterpart, self._counterpart = self._counterpart, None
        if counterpart is not None:
            # It is the parent's; the child makes another if it accepts.
            counterpart._closed = True
        super()._after_fork()

    # Timeouts

    @property
    def read_timeout(self) -> timedelta | None:
        """How long a receive waits for its first byte; `None`: no limit."""
        return None if self._read_seconds is None else timedelta(seconds=self._read_seconds)

    @read_timeout.setter
    def read_timeout(self, value: timedelta | None) -> None:
        self._read_seconds = in_seconds(check.optional_duration(value, "read_timeout"))

    @property
    def write_timeout(self) -> timedelta | None:
        """How long a send waits until the kernel takes another byte; `None`: no limit."""
        return None if self._write_seconds is None else timedelta(seconds=self._write_seconds)

    @write_timeout.setter
    def write_timeout(self, value: timedelta | None) -> None:
        self._write_seconds = in_seconds(check.optional_duration(value, "write_timeout"))

    def _may_wait(self) -> bool:
        return self._waits

    def settimeout(self, value: float | timedelta | None) -> None:
        """
        Set both timeouts, and that of `accept`, as `socket.socket.settimeout`.

        Args:
            value: Seconds, or a `timedelta`; `None`: no limit; 0: no call waits,
                those that would raise `BlockingIOError`.

        Raises:
            TypeError: *value* is of another type.
            ValueError: *value* is negative, no number, or over a year.
        """
        seconds: float | None = None
        if value is not None:
            given = value if isinstance(value, timedelta) else _interval(value)
            if given < timedelta():
                raise ValueError(f"value={value!r} must not be negative")
            if given:
                seconds = check.duration(given, "value").total_seconds()
            elif value:
                # Less than a microsecond is not nothing.
                seconds = 1e-6
            else:
                self._waits = False
                return
        self._waits = True
        self._read_seconds = self._write_seconds = self._accept_seconds = seconds

    def gettimeout(self) -> float | None:
        """Return the seconds of `read_timeout`, as `socket.socket.gettimeout`; 0 if none waits."""
        return self._read_seconds if self._waits else 0.0

    def setblocking(self, flag: bool) -> None:
        """Have calls wait, without a limit, or not at all, as `socket.socket.setblocking`."""
        self.settimeout(None if flag else 0)

    def getblocking(self) -> bool:
        """Return whether calls wait."""
        return self._waits

    @property
    def timeout(self) -> float | None:
        """What `gettimeout` returns."""
        return self.gettimeout()

    # Looking at it

    @property
    def type(self) -> _socket.SocketKind:
        """``SOCK_STREAM``, ``SOCK_DGRAM`` or ``SOCK_RAW``."""
        return _socket.SocketKind(self._descriptor.sock.type)

    @property
    def proto(self) -> int:
        """The protocol's number."""
        number: int = self._descriptor.sock.proto
        return number


def _interval(value: object) -> timedelta:
    """Return a number of seconds as a `timedelta`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"value must be seconds, a timedelta or None, not {value!r}")
    try:
        return timedelta(seconds=value)
    except (ValueError, OverflowError):
        raise ValueError(f"value={value!r} must be a number of seconds, up to a year") from None
