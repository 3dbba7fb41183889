"""
`Socket`: the BSD calls as Deferreds.

Each call tries the operation at once, through the try layer, and returns a
Deferred that has fired already if that was enough; else the operation is parked
until the poller reports the descriptor.
"""

from __future__ import annotations

import socket as _socket
import warnings
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure

from . import _validation as check
from .accepting import Acceptor
from .addresses import Address, SocketAddress, as_socket_address
from .descriptors import (
    WANT_READ,
    WANT_WRITE,
    Connect,
    Descriptor,
    PlainDescriptor,
    Want,
    from_os_error,
    set_linger_reset,
)
from .errors import (
    SocketBindError,
    SocketBusyError,
    SocketClosedError,
    SocketError,
    SocketReadTimeoutError,
    SocketWriteTimeoutError,
)
from .options import SocketOptions
from .readiness import Watch, poller_for

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Socket"]

T = TypeVar("T")


def current_reactor(reactor: Any) -> Any:
    """Return *reactor*, or the one that is installed if it is `None`."""
    if reactor is None:
        from twisted.internet import reactor as installed

        return installed
    return reactor


class _Operation(Generic[T]):
    """One operation that waits: what to try, for what it waits, and who wants to know."""

    __slots__ = ("attempt", "deferred", "moved", "socket", "timed_out", "timer", "want")

    def __init__(self, socket: Socket, attempt: Callable[[], T | Want], want: Want) -> None:
        self.socket = socket
        self.attempt = attempt
        self.want = want
        self.deferred: Deferred[T] = Deferred(self.cancelled)
        self.timer: Any = None
        self.timed_out: Callable[[], SocketError] = SocketReadTimeoutError
        self.moved = False
        """Part of the operation was done since its time-out began."""

    def cancelled(self, _: Deferred[T]) -> None:
        self.socket._drop(self)


def byte_view(data: Buffer) -> memoryview:
    """Return *data* as a view of its bytes, without a copy."""
    view = memoryview(data)
    if view.format == "B" and view.ndim == 1 and view.c_contiguous:
        return view
    return view.cast("B")


def writable_view(buffer: Buffer) -> memoryview:
    """
    Return *buffer* as a view of its bytes, to be written.

    Raises:
        TypeError: It cannot be written.
    """
    view = byte_view(buffer)
    if view.readonly:
        raise TypeError(f"buffer must be writable, not {type(buffer).__name__}")
    return view


class Socket:
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
    """

    def __init__(
        self,
        reactor: Any,
        watch: Watch,
        descriptor: Descriptor,
        *,
        node: str | None = None,
        service: str | int | None = None,
        options: SocketOptions | None = None,
    ) -> None:
        """Take *watch* and *descriptor* over; see `from_socket` for the public way."""
        options = options or SocketOptions()
        self.node = node
        self.service = service
        self._reactor = reactor
        self._watch = watch
        self._descriptor: Any = descriptor
        self._family = descriptor.sock.family
        self._options = options
        self._read_timeout = options.read_timeout
        self._write_timeout = options.write_timeout
        self._reader: _Operation[Any] | None = None
        self._writer: _Operation[Any] | None = None
        self._acceptor: Acceptor | None = None
        self._closed = False
        self._gone = False
        self._farewells: list[Deferred[None]] = []

    @classmethod
    def from_socket(cls, sock: _socket.socket | int, *, reactor: Any = None) -> Self:
        """
        Adopt a socket of the standard library, or a descriptor.

        The new socket owns it from then on: a *sock* object is detached and
        spent, a number is closed when the new socket is. It is made
        non-blocking.

        Raises:
            OSError: *sock* is no open socket.
            TypeError: *reactor* cannot wait for sockets.
        """
        reactor = current_reactor(reactor)
        poller = poller_for(reactor)
        number = sock if isinstance(sock, int) else sock.fileno()
        adopted = _socket.socket(fileno=number)
        if not isinstance(sock, int):
            sock.detach()
        adopted.setblocking(False)
        return cls(reactor, poller.watch(number), PlainDescriptor(adopted))

    # Running operations

    def _check_open(self) -> None:
        if self._closed:
            raise SocketClosedError(self)

    def _failed(self, error: BaseException) -> Deferred[Any]:
        if isinstance(error, SocketError):
            error.socket = self
        return fail(Failure(error))

    def _read(self, attempt: Callable[[], T | Want]) -> Deferred[T]:
        """Run a receiving operation."""
        if self._closed or self._reader is not None:
            return self._refuse()
        try:
            result = attempt()
        except SocketError as error:
            return self._failed(error)
        if isinstance(result, Want):
            operation = self._reader = _Operation(self, attempt, result)
            return self._park(operation, self._read_timeout)
        return succeed(result)

    def _write(self, attempt: Callable[[], T | Want]) -> Deferred[T]:
        """Run a sending operation."""
        if self._closed or self._writer is not None:
            return self._refuse()
        try:
            result = attempt()
        except SocketError as error:
            return self._failed(error)
        if isinstance(result, Want):
            operation = self._writer = _Operation(self, attempt, result)
            operation.timed_out = SocketWriteTimeoutError
            return self._park(operation, self._write_timeout)
        return succeed(result)

    def _refuse(self) -> Deferred[Any]:
        return self._failed(SocketClosedError() if self._closed else SocketBusyError())

    def _park(self, operation: _Operation[T], timeout: timedelta | None) -> Deferred[T]:
        deferred = operation.deferred
        if timeout is not None:
            self._arm(operation, timeout.total_seconds())
        try:
            self._watch.owner = self
            if operation.want is WANT_READ:
                self._watch.want_read()
            else:
                self._watch.want_write()
        except OSError as error:
            self._complete(operation, Failure(from_os_error(error)))
        return deferred

    def _arm(self, operation: _Operation[Any], seconds: float) -> None:
        """Fail *operation* when *seconds* have passed in which nothing moved."""

        def expire() -> None:
            operation.timer = None
            if operation.moved:
                operation.moved = False
                self._arm(operation, seconds)
            else:
                error = operation.timed_out()
                error.socket = self
                self._complete(operation, Failure(error))

        operation.timer = self._reactor.callLater(seconds, expire)

    def _retry(self, operation: _Operation[Any]) -> None:
        try:
            result = operation.attempt()
        except Exception as error:  # noqa: BLE001 - whoever waits hears of it
            if isinstance(error, SocketError):
                error.socket = self
            self._complete(operation, Failure(error))
            return
        if isinstance(result, Want):
            if result is not operation.want:
                operation.want = result
                self._adjust()
        else:
            self._complete(operation, result)

    def _complete(self, operation: _Operation[Any], result: object) -> None:
        self._drop(operation)
        operation.deferred.callback(result)

    def _drop(self, operation: _Operation[Any]) -> None:
        """Wait for *operation* no more."""
        if operation.timer is not None:
            operation.timer.cancel()
            operation.timer = None
        if self._reader is operation:
            self._reader = None
        elif self._writer is operation:
            self._writer = None
        else:
            return
        self._adjust()

    def _adjust(self) -> None:
        """Wait for exactly what the parked operations want."""
        watch = self._watch
        wants = {parked.want for parked in (self._reader, self._writer) if parked is not None}
        if not wants:
            watch.reading = watch.writing = False
            watch.owner = None
            return
        if WANT_READ not in wants:
            watch.stop_read()
        elif not watch.reading:
            watch.want_read()
        if WANT_WRITE not in wants:
            watch.stop_write()
        elif not watch.writing:
            watch.want_write()

    def on_readable(self) -> None:
        """Go on with what waited for the descriptor to be readable; for the poller."""
        for operation in (self._reader, self._writer):
            if operation is not None and operation.want is WANT_READ and not self._closed:
                self._retry(operation)

    def on_writable(self) -> None:
        """Go on with what waited for the descriptor to be writable; for the poller."""
        for operation in (self._writer, self._reader):
            if operation is not None and operation.want is WANT_WRITE and not self._closed:
                self._retry(operation)

    def on_poller_lost(self, reason: Exception) -> None:
        """Fail what waits; for the poller."""
        self._fail_waiting(reason)

    def _fail_waiting(self, reason: Exception) -> None:
        for operation in (self._reader, self._writer):
            if operation is not None:
                self._complete(operation, Failure(reason))

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
            peer has finished sending (a datagram may be empty, too).

        Errors:
            SocketReadTimeoutError: `read_timeout` passed without a byte.
            SocketConnectionLostError: The peer or the network broke the connection.
            SocketBusyError: Another receive is waiting on this socket.
            SocketClosedError: The socket is closed, or was while this waited.

        Cancelling:
            Fails with `CancelledError`, consumes nothing, keeps the socket open.
        """
        _check_size(n)
        if flags:
            self._check_flags(flags)
            return self._read(lambda: self._descriptor.try_recv(n, flags))
        # The way of most receives, written out: no closure unless it has to wait.
        if self._closed or self._reader is not None:
            return self._refuse()
        descriptor = self._descriptor
        try:
            result: bytes | Want = descriptor.try_recv(n)
        except SocketError as error:
            return self._failed(error)
        if isinstance(result, Want):
            operation: _Operation[bytes]
            operation = self._reader = _Operation(self, lambda: descriptor.try_recv(n), result)
            return self._park(operation, self._read_timeout)
        return succeed(result)

    def recv_into(self, buffer: Buffer, flags: int = 0) -> Deferred[int]:
        """
        Fill *buffer* with what has arrived.

        Args:
            buffer: Written from its start; bytes past the count stay untouched.
                Stays its caller's, who leaves it alone until the Deferred fires.
            flags: ``MSG_…`` flags.

        Returns:
            The number of bytes, as soon as there is one; 0 once the peer has
            finished sending.

        Raises:
            TypeError: *buffer* cannot be written.

        Errors:
            As `recv`.

        Cancelling:
            Fails with `CancelledError`, consumes nothing, keeps the socket open.
        """
        view = writable_view(buffer)
        if flags:
            self._check_flags(flags)
        return self._read(lambda: self._descriptor.try_recv_into(view, flags))

    def _check_flags(self, flags: int) -> None:
        """Let any flags pass; TLS has none."""

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
            self._check_flags(flags)
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
        return self._write(self._send_everything(byte_view(data)))

    def _send_everything(self, view: memoryview) -> Callable[[], Want | None]:
        descriptor = self._descriptor
        offset = 0
        size = len(view)

        def attempt() -> Want | None:
            nonlocal offset
            while offset < size:
                count: int | Want = descriptor.try_send(view[offset:] if offset else view)
                if isinstance(count, Want):
                    return count
                offset += count
                if self._writer is not None:
                    self._writer.moved = True
            want: Want | None = descriptor.try_flush()
            return want

        return attempt

    # Connecting and listening

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
        native = as_socket_address(address).native(self._family)
        return self._write(Connect(self._descriptor.sock, native))

    def bind(self, address: Address) -> None:
        """
        Bind to *address*, which must be numeric.

        Raises:
            SocketBindError: The address is taken, or not ours to bind.
            SocketClosedError: The socket is closed.
            ValueError: *address* is a name, or of another family.
        """
        self._check_open()
        target = as_socket_address(address)
        try:
            self._descriptor.sock.bind(target.native(self._family))
        except OSError as error:
            port = None if self._family == _socket.AF_UNIX else target.port
            raise SocketBindError(target.host, port, socket=self, cause=error) from None

    def listen(self, backlog: int = 128) -> None:
        """
        Accept connections into a queue of the kernel's.

        Args:
            backlog: The length of the queue.

        Raises:
            SocketError: This kind of socket cannot listen.
            SocketClosedError: The socket is closed.
        """
        self._check_open()
        try:
            self._descriptor.sock.listen(backlog)
        except OSError as error:
            raise SocketError(self, error.errno, error.strerror) from None

    def accept(self) -> Deferred[Socket]:
        """
        Take the next connection.

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
        acceptor = self._acceptor or self._make_acceptor()
        try:
            taken = acceptor.take()
        except SocketError as error:
            return self._failed(error)
        if taken is not None:
            return succeed(self._accepted(*taken))
        operation: _Operation[Socket] = _Operation(self, lambda: WANT_READ, WANT_READ)
        operation.deferred = Deferred(lambda _: self._stop_accepting())
        self._reader = operation
        try:
            acceptor.start()
        except OSError as error:
            self._reader = None
            return self._failed(from_os_error(error))
        return operation.deferred

    def _make_acceptor(self) -> Acceptor:
        self._acceptor = Acceptor(
            self._reactor,
            self._watch,
            self._descriptor.sock,
            self._on_connection,
            self._on_acceptor_lost,
        )
        return self._acceptor

    def _stop_accepting(self) -> None:
        self._reader = None
        if self._acceptor is not None:
            self._acceptor.stop()

    def _on_connection(self, connection: _socket.socket, peer: SocketAddress) -> None:
        operation = self._reader
        self._stop_accepting()
        assert operation is not None
        operation.deferred.callback(self._accepted(connection, peer))

    def _on_acceptor_lost(self, reason: Exception) -> None:
        operation, self._reader = self._reader, None
        if operation is not None:
            operation.deferred.errback(Failure(reason))

    def _accepted(self, connection: _socket.socket, peer: SocketAddress) -> Socket:
        watch = poller_for(self._reactor).watch(connection.fileno())
        return Socket(
            self._reactor,
            watch,
            PlainDescriptor(connection),
            node=peer.host,
            service=peer.port or None,
            options=self._options,
        )

    async def __aiter__(self) -> AsyncIterator[Socket]:
        """Accept connections until this socket is closed on this side."""
        while not self._closed:
            try:
                connection = await self.accept()
            except SocketClosedError:
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
            SocketError: The socket is not connected.

        Cancelling:
            Fails with `CancelledError`; may be called again.
        """
        if how not in (_socket.SHUT_RD, _socket.SHUT_WR, _socket.SHUT_RDWR):
            raise ValueError(f"how={how!r} must be SHUT_RD, SHUT_WR or SHUT_RDWR")
        return self._write(lambda: self._descriptor.try_shutdown(how))

    def close(self) -> Deferred[None]:
        """
        Close the socket, at once.

        On return `closed` is true, and whatever waited has failed with
        `SocketClosedError`. May be called again.

        Returns:
            `None`, when the descriptor is gone: already on plain sockets, on
            TLS after the goodbye, within `close_timeout`. Never fails, and
            may be ignored.

        Cancelling:
            Changes nothing about the closing.
        """
        if not self._closed:
            self._closed = True
            self._release(abort=False)
        if self._gone:
            return succeed(None)
        farewell: Deferred[None] = Deferred(self._farewells.remove)
        self._farewells.append(farewell)
        return farewell

    def abort(self) -> None:
        """Close at once and reset the connection; may be called again, and after `close`."""
        if not self._closed:
            self._closed = True
            set_linger_reset(self._descriptor.sock)
            self._release(abort=True)

    def _release(self, *, abort: bool) -> None:
        """Let go of the descriptor, then tell whoever waited."""
        waiting = [parked for parked in (self._reader, self._writer) if parked is not None]
        if self._acceptor is not None:
            self._acceptor.stop()
            self._reader = None
        for operation in waiting:
            self._drop(operation)
        self._dispose(abort=abort)
        for operation in waiting:
            operation.deferred.errback(Failure(SocketClosedError(self)))

    def _dispose(self, *, abort: bool) -> None:
        self._watch.close()
        self._descriptor.close()
        self._on_gone(None)

    def _on_gone(self, _: object) -> None:
        self._gone = True
        farewells, self._farewells = self._farewells, []
        for farewell in farewells:
            farewell.callback(None)

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
        self._watch.close()
        self._descriptor.close()

    # Looking at it

    @property
    def closed(self) -> bool:
        """Whether it was closed on this side (``socket-closed?``)."""
        return self._closed

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

    @property
    def family(self) -> _socket.AddressFamily:
        """``AF_INET``, ``AF_INET6`` or ``AF_UNIX``."""
        return _socket.AddressFamily(self._family)

    def fileno(self) -> int:
        """Return the descriptor, which stays this socket's; -1 once closed."""
        return -1 if self._closed else self._watch.fd

    def getsockname(self) -> SocketAddress:
        """
        Return the address on this side.

        Raises:
            SocketClosedError: The socket is closed.
        """
        self._check_open()
        return SocketAddress.of(self._family, self._descriptor.sock.getsockname())

    def getpeername(self) -> SocketAddress:
        """
        Return the address of the peer.

        Raises:
            SocketError: There is no peer.
            SocketClosedError: The socket is closed.
        """
        self._check_open()
        try:
            return SocketAddress.of(self._family, self._descriptor.sock.getpeername())
        except OSError as error:
            raise SocketError(self, error.errno, error.strerror) from None

    def getsockopt(self, level: int, name: int, size: int | None = None) -> Any:
        """
        Return an option: an `int`, or `bytes` of at most *size* if that is given.

        Raises:
            SocketError: There is no such option.
            SocketClosedError: The socket is closed.
        """
        self._check_open()
        try:
            if size is None:
                return self._descriptor.sock.getsockopt(level, name)
            return self._descriptor.sock.getsockopt(level, name, size)
        except OSError as error:
            raise SocketError(self, error.errno, error.strerror) from None

    def setsockopt(self, level: int, name: int, value: int | Buffer) -> None:
        """
        Set an option.

        Raises:
            SocketError: There is no such option, or it refuses the value.
            SocketClosedError: The socket is closed.
        """
        self._check_open()
        try:
            self._descriptor.sock.setsockopt(level, name, value)
        except OSError as error:
            raise SocketError(self, error.errno, error.strerror) from None

    def __repr__(self) -> str:
        if self._closed:
            return f"<{type(self).__name__} closed>"
        sock = self._descriptor.sock
        try:
            ends = f"from {SocketAddress.of(self._family, sock.getsockname())}"
            ends += f" to {SocketAddress.of(self._family, sock.getpeername())}"
        except OSError:
            # Not bound, or not connected.
            ends = f"at {SocketAddress.of(self._family, sock.getsockname())}"
        return f"<{type(self).__name__} descriptor {self._watch.fd} {ends}>"


def _check_size(n: int) -> None:
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"n must be a number of bytes, not {n!r}")
    if n < 0:
        raise ValueError(f"n={n} must not be negative")
