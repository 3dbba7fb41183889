"""
The try layer: one attempt at an operation on a non-blocking descriptor.

A ``try_…`` method makes the system call and returns its result, or a `Want`
that says what to wait for before trying again. It knows no reactor, no Deferred
and no thread: the caller does the waiting. `PlainDescriptor` is defined
here, its counterpart for TLS in `twisted_netsock._tls.descriptor`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket as _socket
import ssl
import sys
import termios
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVarTuple, Unpack

from .._validation import byte_count
from ..addresses import NativeAddress, SocketAddress
from ..errors import (
    SocketClosedError,
    SocketConnectionError,
    SocketConnectionLostError,
    SocketConnectionRefusedError,
    SocketConnectionTimeoutError,
    SocketError,
    opened_before_fork,
)
from .native import NativeSocket, native_poll
from .poller import WANT_READ, WANT_WRITE, Want

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from typing_extensions import Buffer

__all__ = ["Descriptor", "PlainDescriptor", "from_os_error"]

Ts = TypeVarTuple("Ts")

_NO_SENDER: Final = SocketAddress.of(_socket.AF_UNSPEC, None)
"""The sender of the end of a datagram socket, which is no datagram."""

_READ_SHUT: Final = getattr(select, "POLLRDHUP", 0)
"""Linux alone tells it apart from data; other kernels give the end to any receive."""

RECEIVE_LIMIT: Final = 65536
"""The most bytes that one receive allocates; larger blocks cost an mmap each."""

_LOST: Final = frozenset(
    {
        errno.ECONNRESET,
        errno.EPIPE,
        errno.ECONNABORTED,
        errno.ENETRESET,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.ETIMEDOUT,
    }
)
"""
What ends an established connection. When the peer does not answer, TCP gives up with ETIMEDOUT or
with the last error that it has received (tcp(7)): no route and no host are losses then, too.
"""


def from_os_error(error: OSError) -> SocketError:
    """Return *error*, which an established socket gave, as one of ours."""
    if isinstance(error, SocketError):
        return error
    if error.errno in _LOST:
        return SocketConnectionLostError(errno=error.errno, strerror=error.strerror)
    if error.errno == errno.ECONNREFUSED:
        return SocketConnectionRefusedError(errno=error.errno, strerror=error.strerror)
    if error.errno == errno.EBADF:
        return SocketClosedError(errno=error.errno)
    return SocketError(errno=error.errno, strerror=error.strerror or str(error))


def byte_view(data: Buffer) -> memoryview:
    """Return *data* as a view of its bytes, without a copy."""
    view = memoryview(data)
    if view.format == "B" and view.ndim == 1 and view.c_contiguous:
        return view
    return view.cast("B")


def writable_view(buffer: Buffer, nbytes: int = 0) -> memoryview:
    """
    Return *buffer* as a view of its first *nbytes* bytes, to be written; 0: of all.

    Raises:
        TypeError: It cannot be written, or *nbytes* is no number.
        ValueError: *nbytes* is negative, or more than there is room for.
    """
    view = byte_view(buffer)
    if view.readonly:
        raise TypeError(f"buffer must be writable, not {type(buffer).__name__}")
    if nbytes:
        byte_count(nbytes, "nbytes")
        if nbytes > len(view):
            raise ValueError(f"nbytes={nbytes} must be at most the {len(view)} bytes of buffer")
        view = view[:nbytes]
    return view


_RECEIVING: Final = frozenset({"MSG_PEEK", "MSG_TRUNC", "MSG_ERRQUEUE", "MSG_CMSG_CLOEXEC"})
_SENDING: Final = frozenset(
    {"MSG_CONFIRM", "MSG_DONTROUTE", "MSG_EOR", "MSG_FASTOPEN", "MSG_MORE", "MSG_NOSIGNAL"}
)
"""Flags that one direction has and the other would ignore. Others are left to the kernel."""

# Not on every platform; 0 is in no flags.
_DONTWAIT: Final = getattr(_socket, "MSG_DONTWAIT", 0)
_ERRQUEUE: Final = getattr(_socket, "MSG_ERRQUEUE", 0)


def _known(names: Iterable[str]) -> dict[str, int]:
    return {name: int(getattr(_socket, name)) for name in names if hasattr(_socket, name)}


def _refusals(theirs: frozenset[str], where: str, wait_all: str) -> dict[int, str]:
    found = {flag: f"{name} means nothing in a {where}" for name, flag in _known(theirs).items()}
    return found | dict.fromkeys(_known({"MSG_WAITALL"}).values(), wait_all)


_NOT_RECEIVING: Final = _refusals(
    _SENDING, "receive", "MSG_WAITALL waits for nothing here: use input_port"
)
_NOT_SENDING: Final = _refusals(_RECEIVING, "send", "MSG_WAITALL means nothing in a send")
_ON_THE_REACTOR: Final = dict.fromkeys(
    _known({"MSG_DONTWAIT"}).values(),
    "MSG_DONTWAIT means nothing on the reactor, where no call blocks: cancel the Deferred",
)


def check_flags(flags: int, *, sending: bool, waits: bool, buffer: bool = True) -> None:
    """
    Refuse flags that would be ignored, or do something else than they say.

    Args:
        flags: The argument of that name.
        sending: Of a send, else of a receive.
        waits: There is a call to keep from waiting.
        buffer: The room is the caller's: with ``MSG_TRUNC`` the kernel counts more bytes
            than fit, which only that survives.

    Raises:
        TypeError: *flags* is no int.
        ValueError: One of them is refused.
    """
    if not isinstance(flags, int):
        raise TypeError(f"flags must be MSG_… flags, not {flags!r}")
    refused = _NOT_SENDING if sending else _NOT_RECEIVING
    if not waits:
        refused = refused | _ON_THE_REACTOR
    for flag, reason in refused.items():
        if flags & flag:
            raise ValueError(f"flags={flags}: {reason}")
    if not buffer and flags & _socket.MSG_TRUNC:
        raise ValueError(
            f"flags={flags}: MSG_TRUNC needs a buffer: use recv_into, recvfrom_into or recvmsg"
        )


def may_not_wait(flags: int) -> bool:
    """Return whether a call with these flags returns at once, whatever there is."""
    # The queue of errors is never waited for, also where the socket blocks.
    return bool(flags & (_DONTWAIT | _ERRQUEUE))


class Descriptor(Protocol):
    """What the layers that wait need of a descriptor, plain or TLS."""

    @property
    def unflushed(self) -> bool:
        """Bytes that were taken are not with the kernel yet; see `try_flush`."""

    @property
    def sock(self) -> _socket.socket:
        """The socket beneath, for its options and addresses."""

    @property
    def failed(self) -> bool:
        """Every attempt fails, in both directions, and the kernel may not report that."""

    @property
    def seen_by_poller(self) -> bool:
        """The poller reports whatever a receive would give at once, again and again."""

    @property
    def buffered(self) -> bool:
        """Bytes are here that the poller cannot see."""

    @property
    def finished(self) -> bool:
        """A receive returns the end, or raises, at once; the poller may not report that."""

    def try_recv(self, n: int, flags: int = 0) -> bytes | Want:
        """Return up to *n* bytes; ``b""`` is the end of the stream."""

    def try_recv_into(self, view: memoryview, flags: int = 0) -> int | Want:
        """Fill *view* from its start and return the count; 0 is the end of the stream."""

    def try_send(self, view: Buffer, flags: int = 0) -> int | Want:
        """Take some of *view* and return how many bytes."""

    def try_flush(self) -> Want | None:
        """Hand to the kernel what was taken and is not there yet."""

    def try_shutdown(self, how: int) -> Want | None:
        """Shut down one direction or both."""

    def reset_on_close(self) -> None:
        """Make `close` reset the connection instead of ending it in order."""

    def in_flight(self) -> int:
        """Return how many bytes the kernel has to send, or sent and not acknowledged by TCP."""

    def close(self) -> None:
        """Close the descriptor, whatever state it is in."""

    def gone(self) -> Deferred[None] | None:
        """Return what fires when a closed descriptor is gone; `None`: it is with its close."""

    def on_fork(self) -> None:
        """Become unusable: this is a forked child, and the connection is its parent's."""


class InheritedSocket(NativeSocket):
    """
    A forked child's copy of its parent's socket: it can be closed, and nothing else.

    What a child sends, receives or sets, it sends, receives and sets for its parent.
    """

    __slots__ = ()

    def _refuse_all(self, *_args: object, **_kwargs: object) -> object:
        raise opened_before_fork()

    _refuse: Any = _refuse_all
    accept = bind = connect = connect_ex = listen = setsockopt = shutdown = _refuse
    recv = recv_into = recvfrom = recvfrom_into = recvmsg = recvmsg_into = _refuse
    send = sendall = sendmsg = sendto = sendfile = _refuse


def inherit(sock: _socket.socket) -> None:
    """Make *sock* an `InheritedSocket`, wherever there are references to it."""
    sock.__class__ = InheritedSocket


class PlainDescriptor:
    """
    A non-blocking socket without TLS; owns it.

    Every method raises what `from_os_error` makes of an error.
    """

    __slots__ = ("_is_stream", "_write_shut", "sock")

    failed = False
    unflushed = False
    buffered = False
    finished = False
    seen_by_poller = True

    def __init__(self, sock: _socket.socket) -> None:
        self.sock = sock
        self._write_shut = False
        self._is_stream: bool | None = None
        """Looked at when it matters: to ask a socket for its type takes its time."""

    def try_recv(self, n: int, flags: int = 0) -> bytes | Want:
        """Return up to *n* bytes; of a stream at most 64 KiB are allocated."""
        if n > RECEIVE_LIMIT and self.sock.type == _socket.SOCK_STREAM:
            # A datagram comes whole or cut, so there what was asked for is asked for.
            n = RECEIVE_LIMIT
        try:
            return self.sock.recv(n, flags)
        except BlockingIOError:
            return b"" if self._has_ended() else WANT_READ
        except OSError as error:
            raise from_os_error(error) from None

    def try_recv_into(self, view: memoryview | bytearray, flags: int = 0) -> int | Want:
        """Fill *view* from its start and return the count."""
        try:
            return self.sock.recv_into(view, 0, flags)
        except BlockingIOError:
            return 0 if self._has_ended() else WANT_READ
        except OSError as error:
            raise from_os_error(error) from None

    def try_recvfrom(self, n: int, flags: int = 0) -> tuple[bytes, SocketAddress] | Want:
        """Return one datagram and its sender."""
        try:
            data, sender = self.sock.recvfrom(n, flags)
        except BlockingIOError:
            return (b"", _NO_SENDER) if self._has_ended() else WANT_READ
        except OSError as error:
            raise from_os_error(error) from None
        return data, SocketAddress.of(self.sock.family, sender)

    def try_recvfrom_into(
        self, view: memoryview | bytearray, flags: int = 0
    ) -> tuple[int, SocketAddress] | Want:
        """Fill *view* with one datagram; return its count and its sender."""
        try:
            count, sender = self.sock.recvfrom_into(view, 0, flags)
        except BlockingIOError:
            return (0, _NO_SENDER) if self._has_ended() else WANT_READ
        except OSError as error:
            raise from_os_error(error) from None
        return count, SocketAddress.of(self.sock.family, sender)

    def try_recvmsg(
        self, n: int, ancillary_size: int = 0, flags: int = 0
    ) -> tuple[bytes, list[tuple[int, int, bytes]], int, SocketAddress] | Want:
        """Return data, ancillary data, flags and the sender."""
        try:
            data, ancillary, flags_seen, sender = self.sock.recvmsg(n, ancillary_size, flags)
        except BlockingIOError:
            return (b"", [], 0, _NO_SENDER) if self._has_ended() else WANT_READ
        except OSError as error:
            raise from_os_error(error) from None
        return data, ancillary, flags_seen, SocketAddress.of(self.sock.family, sender)

    def _has_ended(self) -> bool:
        """
        Return whether reading was shut down, of a socket that has nothing to be received.

        On a stream the kernel returns the end itself. On datagrams it gives EAGAIN,
        and yet reports the socket as readable; only a blocking receive gets the end.
        """
        if self._is_stream is None:
            self._is_stream = self.sock.type == _socket.SOCK_STREAM
        if self._is_stream:
            return False
        poll = native_poll()
        poll.register(self.sock, _READ_SHUT)
        return any(events & _READ_SHUT for _, events in poll.poll(0))

    def try_send(self, view: Buffer, flags: int = 0) -> int | Want:
        """Send some of *view* and return how many bytes."""
        try:
            return self.sock.send(view, flags)
        except BlockingIOError:
            return WANT_WRITE
        except OSError as error:
            raise self._send_error(error) from None

    def try_sendto(self, view: Buffer, flags: int, address: NativeAddress) -> int | Want:
        """Send *view* as one datagram."""
        return self._try_sending(self.sock.sendto, view, flags, address)

    def try_sendmsg(
        self,
        buffers: Iterable[Buffer],
        ancillary: Iterable[tuple[int, int, Buffer]],
        flags: int,
        address: NativeAddress | None,
    ) -> int | Want:
        """Send *buffers*, joined, with ancillary data."""
        return self._try_sending(self.sock.sendmsg, buffers, ancillary, flags, address)

    def try_sendfile(self, file: int, offset: int, n: int) -> int | Want:
        """Send up to *n* bytes of the regular *file* from *offset* on; 0 is its end."""
        if isinstance(self.sock, InheritedSocket):
            raise opened_before_fork()
        return self._try_sending(os.sendfile, self.sock.fileno(), file, offset, n)

    def _try_sending(self, send: Callable[[Unpack[Ts]], int], *args: *Ts) -> int | Want:
        """Return what *send* does."""
        try:
            return send(*args)
        except BlockingIOError:
            return WANT_WRITE
        except OSError as error:
            raise self._send_error(error) from None

    def try_flush(self) -> None:
        """Return at once: the kernel has everything."""

    def try_shutdown(self, how: int) -> None:
        """Shut down one direction or both."""
        try:
            self.sock.shutdown(how)
        except OSError as error:
            if error.errno == errno.ENOTCONN:
                # ENOTCONN also means that there never was one; in most cases it was reset.
                raise SocketConnectionLostError(
                    errno=error.errno, strerror="There is no connection, or none any more"
                ) from None
            raise from_os_error(error) from None
        if how != _socket.SHUT_RD:
            self._write_shut = True

    def reset_on_close(self) -> None:
        """Make `close` reset the connection; see `Descriptor`."""
        set_linger_reset(self.sock)

    def in_flight(self) -> int:
        """Return how many bytes TCP has to send; see `Descriptor`."""
        return in_flight(self.sock.family, self.sock.fileno())

    def close(self) -> None:
        """Close the descriptor."""
        self.sock.close()

    def gone(self) -> None:
        """Return `None`: the kernel goes on with what is to be sent."""

    def on_fork(self) -> None:
        """Become unusable; see `Descriptor`."""
        inherit(self.sock)

    def _send_error(self, error: OSError) -> SocketError:
        if error.errno == errno.EPIPE and self._write_shut:
            return SocketClosedError(
                errno=errno.EPIPE, strerror="This side has been shut down for writing"
            )
        return from_os_error(error)


def adopt(sock: _socket.socket | int) -> PlainDescriptor:
    """
    Take over a socket of the standard library, which is spent then, or a descriptor.

    It is made non-blocking, and ``TCP_NODELAY`` is set where it is TCP.

    Raises:
        OSError: *sock* is no open socket.
        TypeError: *sock* speaks TLS.
    """
    if isinstance(sock, ssl.SSLSocket):
        raise TypeError("sock speaks TLS, and its state cannot be adopted")
    number = sock if isinstance(sock, int) else sock.fileno()
    if number < 0:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    adopted = NativeSocket(fileno=number)
    if not isinstance(sock, int):
        sock.detach()
    adopted.setblocking(False)
    if adopted.family in (_socket.AF_INET, _socket.AF_INET6):
        # On by default everywhere here; what is no TCP refuses, and needs it not.
        with contextlib.suppress(OSError):
            adopted.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
    return PlainDescriptor(adopted)


def in_flight(family: int, number: int) -> int:
    """
    Return how many bytes TCP has to send, or sent and not acknowledged yet; 0 of other sockets.

    What is sent on a UNIX socket has arrived. Of what is shut down, the FIN counts as a byte.
    """
    if family == _socket.AF_UNIX:
        return 0
    try:
        # It is SIOCOUTQ on Linux (tcp(7)), which takes 1.1 µs; TCP_INFO counts segments.
        return int.from_bytes(fcntl.ioctl(number, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except (OSError, ValueError):
        # It is closed, or no socket.
        return 0


def set_linger_reset(sock: _socket.socket) -> None:
    """Make the close of *sock* reset the connection instead of ending it in order."""
    try:
        sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    except OSError:
        # The peer was faster: there is nothing left to reset.
        pass


def connect_error(number: int) -> SocketError:
    """Return the error of a failed connect, by its error number."""
    if number == errno.ECONNREFUSED:
        return SocketConnectionRefusedError(errno=number, strerror=os.strerror(number))
    if number == errno.ETIMEDOUT:
        return SocketConnectionTimeoutError("connect", strerror=os.strerror(number))
    if number == errno.EBADF:
        return SocketClosedError()
    return SocketConnectionError(errno=number)


class Connect:
    """
    An attempt to connect *sock* to a native address, to be called until it is done.

    Where nobody listens on a port that the kernel also gives to clients, it may give this
    very port to *sock*, which is connected with itself then (RFC 9293, section 3.5). That is
    a refusal here, unless a local port was asked for.

    Attributes:
        peer: The native address that it was connected to, where the kernel was asked.
        with_itself: It was refused for that, and may be tried again with another socket.
    """

    __slots__ = (
        "_address",
        "_begun",
        "_bound",
        "_may_go_on",
        "_sock",
        "_stands",
        "peer",
        "with_itself",
    )

    def __init__(
        self,
        sock: _socket.socket,
        address: NativeAddress,
        may_go_on: Callable[[], bool] = lambda: True,
        *,
        bound: bool | None = None,
    ) -> None:
        """
        Prepare an attempt.

        Args:
            sock: To be connected.
            address: Where to.
            may_go_on: Asked, if the connection stands at once, whether to say so without a wait.
            bound: *sock* has a local port that was asked for; looked at if `None`.
        """
        self._bound = bound
        self.with_itself = False
        self._sock = sock
        self._address = address
        self._may_go_on = may_go_on
        self._begun = False
        self._stands = False
        self.peer: NativeAddress | None = None

    def __call__(self) -> Want | None:
        """Begin, or look whether it is done; raises `SocketConnectionError` and kin."""
        if self._stands:
            return None
        if not self._begun:
            self._begun = True
            want = self._begin()
            if want is None:
                self._stands = True
                self._check_other_end()
            return want if want is not None or self._may_go_on() else WANT_WRITE
        number = self._sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
        if number:
            raise connect_error(number)
        try:
            self.peer = self._sock.getpeername()
        except OSError as error:
            if error.errno == errno.ENOTCONN:
                # A report that was meant for an earlier descriptor of this number.
                return WANT_WRITE
            raise connect_error(error.errno or 0) from None
        self._check_other_end()
        return None

    def _check_other_end(self) -> None:
        """Refuse a connection with itself."""
        address = self._address
        if self._bound or isinstance(address, str):
            return
        try:
            local = self._sock.getsockname()
            if local[1] != address[1] or self._sock.type != _socket.SOCK_STREAM:
                return
            other = self._sock.getpeername()
        except OSError:
            # It is lost already: the next operation finds that out.
            return
        if local[:2] == other[:2]:
            self.with_itself = True
            # The pair would stay in TIME_WAIT, and keep a server from the port.
            set_linger_reset(self._sock)
            raise SocketConnectionRefusedError(
                errno=errno.ECONNREFUSED,
                strerror="Connection refused: nobody listens, and it was connected with itself",
            )

    def _begin(self) -> Want | None:
        try:
            if self._bound is None:
                name = self._sock.getsockname()
                self._bound = isinstance(name, tuple) and name[1] != 0
            number = self._sock.connect_ex(self._address)
        except OSError as error:
            # A path that is too long, say: the kernel was not even asked.
            raise SocketConnectionError(strerror=str(error)) from None
        if number == errno.EINPROGRESS:
            return self._look()
        if number:
            # EAGAIN, too: a UNIX socket whose listener's queue is full, where nothing
            # would report when there is room.
            raise connect_error(number)
        return None

    def _look(self) -> Want | None:
        """Look whether it is done already, as it is within one machine."""
        try:
            self.peer = self._sock.getpeername()
        except OSError:
            return WANT_WRITE
        return None
