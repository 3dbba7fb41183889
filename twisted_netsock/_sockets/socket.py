"""
`Socket`: the BSD calls as Deferreds.

Each call tries the operation at once, through the try layer, and returns a
Deferred that has fired already if that was enough; else the operation is parked
until the poller reports the descriptor.
"""

from __future__ import annotations

import socket as _socket
import warnings
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import timedelta
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Final, Self, TypeVar, cast

from twisted.internet.defer import Deferred, succeed
from twisted.python import threadable
from twisted.python.failure import Failure

from .. import _validation as check
from .._io.descriptor import (
    Connect,
    Descriptor,
    PlainDescriptor,
    adopt,
    byte_view,
    from_os_error,
)
from .._io.drive import drive
from .._io.fairness import BYTES, BYTES_OF_ONE
from .._io.fast_await import Done
from .._io.interfaces import Reactor, current_reactor
from .._io.operation import Operating, Operation, Receiving
from .._io.poller import WANT_READ, WANT_WRITE, Want, Watch, poller_for
from .._net.accept import Acceptor
from .._net.incoming import IncomingConnection, IncomingConnections
from .._public import public_in
from .._validation import byte_count
from ..addresses import Address, SocketAddress
from ..errors import (
    SocketBusyError,
    SocketClosedError,
    SocketConnectionLostError,
    SocketError,
    SocketPortError,
    SocketWriteTimeoutError,
)
from ..options import SocketOptions
from .attempts import FLUSH_LIMIT, UNIX_DATAGRAM_PACE, Attempts
from .info import SocketInfo
from .ports import InputPort, OutputPort
from .sendfile import FileSource
from .serve import serve

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Socket"]

T = TypeVar("T")

_SKIPPED: Final = 8
"""Receives that wait without an attempt, after one that had to wait."""


def _until_delivered() -> Want:
    """Try nothing: what this operation waits for is brought to it."""
    return WANT_READ


@public_in("twisted_netsock")
class Socket(SocketInfo, Attempts, Operating):
    """
    A socket on the reactor.

    Made by `make_client_socket` and its kin, by `chibi.socket`, or around an
    existing descriptor by `Socket.from_socket`. To be used from the reactor's
    thread alone. ``async with`` closes it at the end; ``async for`` accepts.

    One operation at a time may wait in each direction: a second fails with
    `SocketBusyError`.

    Attributes:
        node: The host, address or path that it was made for, or `None`.
        service: The service that it was made for, or `None`.
        proxy_header: The PROXY header that an accepted connection began with, or
            `None`; *node* and *service* are its source then.
    """

    # What an idle connection has no use for stands here, and takes memory only once it is set.
    _gone = False
    _aborted = False
    _ending: Deferred[None] | None = None
    _shutdowns: list[Deferred[None]] | None = None
    _successor: Socket | None = None
    """The socket that has the connection now: by `start_tls`, which spent this one."""
    _input: InputPort | None = None
    _output: OutputPort | None = None
    _acceptor: Acceptor | None = None
    _incoming: IncomingConnections | None = None
    _ready: deque[Any] | None = None

    def __init__(
        self,
        reactor: Reactor,
        watch: Watch,
        descriptor: Descriptor,
        *,
        node: str | None = None,
        service: str | int | None = None,
        options: SocketOptions | None = None,
    ) -> None:
        """Take *watch* and *descriptor* over."""
        super().__init__(reactor, watch, descriptor, options or SocketOptions())
        self.node = node
        self.service = service

    @classmethod
    def from_socket(cls, sock: _socket.socket | int, *, reactor: object = None) -> Self:
        """
        Adopt a socket of the standard library, or a descriptor.

        The new socket owns it from then on: a *sock* object is detached and
        spent, a number is closed when the new socket is. It is made
        non-blocking, and ``TCP_NODELAY`` is set where it is TCP.

        Raises:
            OSError: *sock* is no open socket.
            TypeError: *reactor* cannot wait for sockets, or *sock* speaks TLS.
        """
        reactor = current_reactor(reactor)
        poller = poller_for(reactor)
        descriptor = adopt(sock)
        return cls(reactor, poller.watch(descriptor.sock.fileno()), descriptor)

    def detach(self) -> int:
        """
        Give the descriptor away, and close this socket without it.

        Returns:
            The descriptor, non-blocking, which is the caller's to close.

        Raises:
            SocketClosedError: The socket is closed.
            SocketBusyError: An operation is waiting.
            SocketPortError: A port holds bytes.
            SocketError: This is TLS, whose state would be lost.
        """
        self._check_open()
        if self._output is not None and self._output.pending:
            raise SocketPortError(self._output, socket=self, strerror="output_port holds bytes")
        self._check_kernels()
        descriptor, _ = self._spend()
        self._watch.close()
        return descriptor.sock.detach()

    def _spend(self) -> tuple[Descriptor, Operation[object] | None]:
        """
        Close this object, and leave its descriptor and watch to the caller.

        Returns:
            The descriptor, and the operation of the output port that is not
            done: the caller does it, and fires its Deferred.

        Raises:
            SocketClosedError: The socket is closed.
            SocketBusyError: An operation waits that is not the output port's.
            SocketPortError: The input port holds bytes, or the output port failed.
        """
        self._check_open()
        sending = self._writer if self._output is not None and self._output.sending else None
        if self._reader is not None or self._writer is not sending:
            raise SocketBusyError(self)
        if self._input is not None and self._input.pending:
            raise SocketPortError(
                self._input, socket=self, strerror="input_port holds unread bytes"
            )
        if sending is not None:
            self._drop(sending)
        self._closed = True
        self._watch.owner = None
        self._close_ports()
        self._on_gone(None)
        return self._descriptor, sending

    def _hand_over(self) -> Descriptor:
        """Close this socket without its descriptor, which is the caller's from now on."""
        self._closed = True
        self._watch.close()
        self._close_ports()
        self._on_gone(None)
        return self._descriptor

    # Connecting

    def connect(self, address: Address) -> Deferred[None]:
        """
        Connect to *address*.

        Args:
            address: Numeric: no call looks a name up behind its caller's back.

        Returns:
            `None`, when the connection stands.

        Raises:
            ValueError: *address* is a name, or of another family.

        Errors:
            SocketConnectionRefusedError: The peer refused.
            SocketConnectionTimeoutError: The kernel gave up.
            SocketConnectionError: Anything else that went wrong.
            SocketBusyError: Another send or connect is waiting.
            SocketClosedError: The socket is closed, or was while this waited.

        Cancelling:
            Fails with `CancelledError`; the socket stays open, and the
            attempt goes on in the kernel: good for nothing but closing.
        """
        native = self._native(address)
        may_go_on = poller_for(self._reactor).may_go_on
        return self._write(Connect(self._descriptor.sock, native, may_go_on))

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
            wait for its peer before, it may fire in the reactor's next iteration.

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
            return self._receive(self._recv_attempt(n, flags))
        # The way of most receives, written out: no closure unless it has to wait.
        descriptor = self._descriptor
        if self._closed or self._reader is not None or self._input is not None:
            return self._receive(lambda: descriptor.try_recv(n))
        want = WANT_READ
        if self._skips and n and descriptor.seen_by_poller:
            # The last one found nothing: an attempt that fails costs more than the wait.
            self._skips -= 1
        elif self._may_go_on():
            try:
                # Any: mypy narrows no `__class__`, and isinstance asks an enum's metaclass.
                result: Any = descriptor.try_recv(n)
            except SocketError as error:
                return self._failed(error)
            if result.__class__ is not Want:
                self._in_a_row += len(result) // BYTES_OF_ONE
                return Done(result)
            if descriptor.seen_by_poller:
                self._skips = _SKIPPED
            want = result
        operation = self._reader = Receiving(self._drop, descriptor, n, want)
        return self._park(operation, self._read_timeout)

    def recv_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> Deferred[int]:
        """
        Fill *buffer* with what has arrived.

        Args:
            buffer: Written from its start; bytes past the count stay untouched.
                Stays the caller's, and must not be changed until the Deferred fires.
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
        return self._receive(self._recv_into_attempt(buffer, nbytes, flags))

    def recvfrom(self, n: int, flags: int = 0) -> Deferred[tuple[bytes, SocketAddress]]:
        """
        Receive one datagram of up to *n* bytes, and return its sender, too.

        A longer one is cut; `recvmsg` reports that by ``MSG_TRUNC``.

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
        return self._receive(self._recvfrom_attempt(n, flags))

    def recvfrom_into(
        self, buffer: Buffer, nbytes: int = 0, flags: int = 0
    ) -> Deferred[tuple[int, SocketAddress]]:
        """
        Fill *buffer* with one datagram, and return its sender, too.

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
        return self._receive(self._recvfrom_into_attempt(buffer, nbytes, flags))

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
        return self._receive(self._recvmsg_attempt(n, ancillary_size, flags))

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
        if self._ready or (self._input is not None and self._input.pending):
            return None
        return super()._try_readable()

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
        return self._write(self._send_attempt(data, flags))

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
            # A callback run by the attempt closed this socket.
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
            file: Open for reading in binary mode; its owner's, and not to be used until
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
            As `sendall`; the position of *file* shows how much was sent.
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
        sending = self._write(self._sendto_attempt(data, address, flags))
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
            address: The numeric address to send to; the peer if `None`.

        Returns:
            How many bytes the kernel has taken.

        Raises:
            ValueError: *address* is a name, or of another family.

        Errors:
            As `send`.

        Cancelling:
            Fails with `CancelledError`; nothing has been sent, the socket stays open.
        """
        sending = self._write(self._sendmsg_attempt(buffers, ancillary, flags, address))
        self._pace_unix_datagrams()
        return sending

    def _pace_unix_datagrams(self) -> None:
        """Keep a send to a UNIX socket whose queue is full from spinning."""
        if self._writer is not None and self._family == _socket.AF_UNIX:
            self._writer.pace = UNIX_DATAGRAM_PACE

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

    # Accepting

    def accept(self) -> Deferred[Self]:
        """
        Take the next connection.

        Where the options have `proxy_protocol`, one whose PROXY header has come.
        A connection without a good one, within 10 seconds, is closed, counted
        (`failed_handshakes`) and logged, and never fails this call.

        Returns:
            Its socket, which is the caller's to close. `read_timeout` and
            `write_timeout` of this socket hold for it; neither holds for this call.

        Errors:
            SocketBusyError: Another accept is waiting.
            SocketClosedError: The socket is closed, or was while this waited.
            SocketError: The socket does not listen.

        Cancelling:
            Fails with `CancelledError` and takes nothing: the next accept gets
            the connection.
        """
        if self._closed or self._reader is not None:
            return self._refuse()
        if self._ready:
            return succeed(self._ready.popleft())
        acceptor = self._acceptor or self._make_acceptor()
        if self._incoming is not None:
            return self._park_accept(None if self._incoming.full else acceptor)
        try:
            taken = acceptor.take() if self._may_go_on() else None
        except SocketError as error:
            return self._failed(error)
        if taken is not None:
            return succeed(self._accepted(*taken))
        return self._park_accept(acceptor)

    def serve(
        self, handler: Callable[[Self], object], *, limit: int | None = None
    ) -> Deferred[None]:
        """
        Accept connections, and hand each to *handler* at once, until this is closed.

        Args:
            handler: Called with a connection; a coroutine function, or what
                returns a Deferred or anything else. When it is done, or fails, the
                connection is closed, also if it has been given to `start_tls`.
                What it raises is logged and touches no other connection: in a
                line if it is an error of the connection's own, else with its
                traceback.
            limit: The most connections at a time, until they are closed; more
                wait in the kernel's queue. `None`: no limit.

        Returns:
            `None`, when this socket is closed on this side and every handler
            is done.

        Raises:
            TypeError: *handler* cannot be called, or *limit* is no number.
            ValueError: *limit* is below 1.

        Errors:
            SocketBusyError: An accept is waiting.
            SocketError: The socket does not listen.

        Cancelling:
            Fails with `CancelledError`. The handlers that run are cancelled and
            their connections closed; this socket stays open.
        """
        if not callable(handler):
            raise TypeError(f"handler={handler!r} must be callable with a connection")
        if limit is not None:
            check.positive(limit, "limit")
        return serve(self._reactor, self.accept, handler, limit)

    def _park_accept(self, acceptor: Acceptor | None) -> Deferred[Any]:
        """Wait in the receiving direction for a connection, which *acceptor* takes if given."""
        operation: Operation[Any]
        operation = Operation(lambda _: self._stop_accepting(), _until_delivered, WANT_READ)
        self._reader = operation
        if acceptor is not None:
            try:
                acceptor.start()
            except OSError as error:
                self._reader = None
                return self._failed(from_os_error(error))
        return operation

    @property
    def _waiting_accept(self) -> Operation[object] | None:
        """The accept that waits for a connection, if one does."""
        operation = self._reader
        return operation if operation and operation.trying is _until_delivered else None

    def _make_acceptor(self) -> Acceptor:
        if self._incoming is None and self._options.proxy_protocol is not None:
            self._incoming = IncomingConnections(
                self._reactor, self._options, self._on_incoming, self._on_room
            )
        self._acceptor = Acceptor(
            self._reactor,
            self._watch,
            self._descriptor.sock,
            self._on_connection,
            self._on_acceptor_lost,
        )
        return self._acceptor

    def on_fork(self) -> None:
        """Become unusable in a forked child; for the poller."""
        super().on_fork()
        if self._acceptor is not None:
            self._acceptor.on_fork()

    def _stop_accepting(self) -> None:
        self._reader = None
        self._pause_acceptor()

    def _on_connection(self, connection: _socket.socket, peer: SocketAddress) -> None:
        if self._incoming is not None:
            self._incoming.begin(connection, peer)
            if self._incoming.full:
                self._pause_acceptor()
            return
        operation = self._waiting_accept
        self._stop_accepting()
        assert operation is not None
        operation.finish(self._accepted(connection, peer))

    def _pause_acceptor(self) -> None:
        if self._acceptor is not None:
            self._acceptor.stop()

    def _on_room(self) -> None:
        if self._waiting_accept is not None and self._acceptor is not None:
            self._acceptor.start()

    def _on_incoming(self, incoming: IncomingConnection, descriptor: Descriptor) -> None:
        connection = type(self)(
            self._reactor,
            incoming.watch,
            descriptor,
            node=incoming.peer.host,
            service=incoming.peer.port or None,
            options=self._options,
        )
        connection.proxy_header = incoming.header
        operation = self._waiting_accept
        if operation is None:
            if self._ready is None:
                self._ready = deque()
            self._ready.append(connection)
            if self._reader is not None:
                # It waits to learn of this.
                self._retry(self._reader)
            return
        self._stop_accepting()
        operation.finish(connection)

    @property
    def _has_ready(self) -> bool:
        """Whether connections wait for the next `accept` that the kernel knows nothing of."""
        return bool(self._ready)

    @property
    def failed_handshakes(self) -> int:
        """How many connections failed before `accept`, by their PROXY header or handshake."""
        return 0 if self._incoming is None else self._incoming.failed

    def _on_acceptor_lost(self, reason: Exception) -> None:
        operation, self._reader = self._reader, None
        if operation is not None:
            operation.finish(Failure(reason))

    def _accepted(self, connection: _socket.socket, peer: SocketAddress) -> Any:
        watch = poller_for(self._reactor).watch(connection.fileno())
        return Socket(
            self._reactor,
            watch,
            PlainDescriptor(connection),
            node=peer.host,
            service=peer.port or None,
            options=self._options,
        )

    async def __aiter__(self) -> AsyncIterator[Self]:
        """Accept connections until this socket is closed on this side."""
        while not self._closed:
            try:
                connection = await self.accept()
            except (SocketClosedError, SocketConnectionLostError):
                # Closed here, or with the reactor.
                return
            yield connection

    # Closing

    def shutdown(self, how: int) -> Deferred[None]:
        """
        Shut down one direction or both.

        Args:
            how: ``SHUT_RD``, ``SHUT_WR`` (the peer reads the end of the stream)
                or ``SHUT_RDWR``.

        Returns:
            `None`, when it is done: at once on plain sockets, on TLS when
            close_notify has been sent.

        Errors:
            SocketClosedError: The socket is closed.
            SocketBusyError: A send is waiting.
            SocketConnectionLostError: There is no connection, or none any more.

        Cancelling:
            Fails with `CancelledError`; may be called again.
        """
        return self._write(self._shutdown_attempt(how))

    def close(self) -> Deferred[None]:
        """
        Close the socket, at once.

        On return `closed` is true, and whatever waited has failed with
        `SocketClosedError`. May be called again.

        Returns:
            `None`, when the descriptor is gone: already on plain sockets, on
            TLS after TLS shutdown, within `close_timeout`. Never fails, and
            may be ignored.

        Cancelling:
            Changes nothing about the closing.
        """
        if not self._closed:
            self._closed = True
            self._release(abort=False)
        if self._gone:
            return succeed(None)
        shutdowns = self._shutdowns = self._shutdowns or []
        shutdown: Deferred[None] = Deferred(shutdowns.remove)
        shutdowns.append(shutdown)
        return shutdown

    def abort(self) -> None:
        """Close at once and reset the connection; may be called again, and after `close`."""
        if self._gone or self._aborted:
            return
        self._aborted = True
        self._descriptor.reset_on_close()
        if not self._closed:
            self._closed = True
            self._release(abort=True)
        elif self._ending is not None:
            self._ending.cancel()

    def _release(self, *, abort: bool) -> None:
        """Let go of the descriptor, then fail what waited."""
        self._stop_helpers()
        if self._reader is None and self._writer is None:
            self._dispose(abort=abort)
            return
        # A handshake takes both directions.
        waiting = [
            parked for parked in dict.fromkeys((self._reader, self._writer)) if parked is not None
        ]
        for operation in waiting:
            self._drop(operation)
        self._dispose(abort=abort)
        for operation in waiting:
            # The callback of one may have cancelled another.
            if not operation.called:
                operation.finish(Failure(SocketClosedError(self)))

    def _stop_helpers(self) -> None:
        """Stop what acts on behalf of a parked operation."""
        self._pause_acceptor()

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
            self._descriptor.reset_on_close()
        self._let_go(abort=failed or self._aborted)

    def _let_go(self, *, abort: bool) -> None:
        """Close the descriptor, now that nothing waits to be sent, and call `_on_gone` then."""
        if self._incoming is not None:
            self._incoming.close()
            while self._ready:
                self._ready.popleft().close()
        self._watch.close()
        self._descriptor.close()
        self._on_gone(None)

    def _on_gone(self, _: object) -> None:
        self._gone = True
        shutdowns, self._shutdowns = self._shutdowns, None
        for shutdown in shutdowns or ():
            shutdown.callback(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        if getattr(self, "_closed", True):
            return
        warnings.warn(f"{self!r} was never closed", ResourceWarning, stacklevel=2, source=self)
        self._closed = True
        if threadable.ioThread is None or threadable.isInIOThread():
            self._drop_all()
        else:
            # The collector runs in any thread, and a reactor belongs to one. This object
            # lives on until then; the standard library's would complain of itself.
            self._descriptor.sock.close()
            self._reactor.callFromThread(self._drop_all)

    def _drop_all(self) -> None:
        self._stop_helpers()
        self._watch.close()
        self._descriptor.close()

    # Looking at it

    @property
    def read_timeout(self) -> timedelta | None:
        """How long a receive waits for its first byte; `None`: no limit."""
        return self._read_timeout

    @read_timeout.setter
    def read_timeout(self, value: timedelta | None) -> None:
        self._read_timeout = check.optional_duration(value, "read_timeout")

    @property
    def write_timeout(self) -> timedelta | None:
        """How long a send waits until the kernel takes another byte; `None`: no limit."""
        return self._write_timeout

    @write_timeout.setter
    def write_timeout(self, value: timedelta | None) -> None:
        self._write_timeout = check.optional_duration(value, "write_timeout")
