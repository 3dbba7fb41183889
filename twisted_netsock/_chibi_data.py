"""The sending and receiving procedures of ``(chibi net)``; public in `twisted_netsock.chibi`."""

from __future__ import annotations

import math
import socket as _socket
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from ._sockets.info import SocketInfo
from ._sockets.socket import Socket
from .addresses import Address, AddressInfo, as_socket_address

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "check_family",
    "check_timeout",
    "receive",
    "receive_into",
    "receive_into_non_blocking",
    "receive_non_blocking",
    "send",
    "send_non_blocking",
]

T = TypeVar("T")

_FOREVER: Final = 1e18


def send(
    socket: Socket, data: Buffer, flags: int = 0, addrinfo: Address | None = None
) -> Deferred[int]:
    """
    Send *data* (``send``).

    Args:
        socket: Connected, unless there is an *addrinfo*.
        data: Left alone by its owner until the Deferred fires.
        flags: ``MSG_…`` flags.
        addrinfo: Whom to send to; the peer if `None`.

    Returns:
        How many bytes were sent; of a stream possibly not all.

    Errors:
        SocketWriteTimeoutError, SocketConnectionLostError, SocketBusyError,
        SocketClosedError: As `Socket.send`.

    Cancelling:
        As `Socket.send`: nothing has been sent.
    """
    if addrinfo is None:
        return socket.send(data, flags)
    return socket.sendto(data, addrinfo, flags)


def send_non_blocking(
    socket: Socket,
    data: Buffer,
    timeout: float | timedelta,
    flags: int = 0,
    addrinfo: Address | None = None,
) -> Deferred[int | None]:
    """
    Send, but give up after *timeout* seconds (``send/non-blocking``).

    Args:
        socket: Connected, unless there is an *addrinfo*.
        data: Left alone by its owner until the Deferred fires.
        timeout: Seconds, or a `timedelta`; 0 tries once.
        flags: ``MSG_…`` flags.
        addrinfo: Whom to send to; the peer if `None`.

    Returns:
        How many bytes were sent; `None` after the time-out, when none were. On
        TLS a time-out may leave up to 16 KiB that still go out.

    Raises:
        TypeError: *timeout* is of another type.
        ValueError: *timeout* is negative or no number.

    Errors:
        As `send`.

    Cancelling:
        As `send`.
    """
    seconds = check_timeout(timeout)
    return _within(socket, seconds, lambda: send(socket, data, flags, addrinfo))


def receive_into(
    socket: Socket, buffer: Buffer, flags: int = 0, addrinfo: Address | None = None
) -> Deferred[int]:
    """
    Fill *buffer* with what has arrived (``receive!``).

    Args:
        socket: Connected, or bound for datagrams.
        buffer: Written from its start; bytes past the count stay untouched.
        flags: ``MSG_…`` flags.
        addrinfo: Of the family that datagrams are expected from.

    Returns:
        The number of bytes, as soon as there is one; of a stream 0 once the
        peer has finished sending.

    Raises:
        TypeError: *buffer* cannot be written.
        ValueError: *addrinfo* is of another family than the socket.

    Errors:
        SocketReadTimeoutError, SocketConnectionLostError, SocketBusyError,
        SocketClosedError: As `Socket.recv_into`.

    Cancelling:
        Fails with `CancelledError`, consumes nothing, keeps the socket open.
    """
    check_family(socket, addrinfo)
    return socket.recv_into(buffer, 0, flags)


def receive_into_non_blocking(
    socket: Socket,
    buffer: Buffer,
    timeout: float | timedelta,
    flags: int = 0,
    addrinfo: Address | None = None,
) -> Deferred[int | None]:
    """
    Receive into *buffer*, but give up after *timeout* seconds (``receive!/non-blocking``).

    Args:
        socket: Connected, or bound for datagrams.
        buffer: Written from its start; bytes past the count stay untouched.
        timeout: Seconds, or a `timedelta`; 0 tries once.
        flags: ``MSG_…`` flags.
        addrinfo: Of the family that datagrams are expected from.

    Returns:
        The number of bytes (of a stream 0 at the end); `None` after the
        time-out, when nothing was consumed.

    Raises:
        TypeError: *buffer* cannot be written, or *timeout* is of another type.
        ValueError: *addrinfo* is of another family, or *timeout* negative or no number.

    Errors:
        As `receive_into`.

    Cancelling:
        As `receive_into`.
    """
    seconds = check_timeout(timeout)
    return _within(socket, seconds, lambda: receive_into(socket, buffer, flags, addrinfo))


def receive(
    socket: Socket, n: int, flags: int = 0, addrinfo: Address | None = None
) -> Deferred[bytes]:
    """
    Receive up to *n* bytes (``receive``).

    Args:
        socket: Connected, or bound for datagrams.
        n: The most bytes wanted.
        flags: ``MSG_…`` flags.
        addrinfo: Of the family that datagrams are expected from.

    Returns:
        What has arrived; of a stream ``b""`` once the peer has finished sending.

    Raises:
        ValueError: *addrinfo* is of another family than the socket.

    Errors:
        SocketReadTimeoutError, SocketConnectionLostError, SocketBusyError,
        SocketClosedError: As `Socket.recv`.

    Cancelling:
        Fails with `CancelledError`, consumes nothing, keeps the socket open.
    """
    check_family(socket, addrinfo)
    return socket.recv(n, flags)


def receive_non_blocking(
    socket: Socket,
    n: int,
    timeout: float | timedelta,
    flags: int = 0,
    addrinfo: Address | None = None,
) -> Deferred[bytes | None]:
    """
    Receive, but give up after *timeout* seconds; ``b""`` is the end, `None` the time-out.

    The ``receive/non-blocking`` of ``(chibi net)``.

    Args:
        socket: Connected, or bound for datagrams.
        n: The most bytes wanted.
        timeout: Seconds, or a `timedelta`; 0 tries once.
        flags: ``MSG_…`` flags.
        addrinfo: Of the family that datagrams are expected from.

    Returns:
        What has arrived; `None` after the time-out, when nothing was consumed.

    Raises:
        TypeError: *timeout* is of another type.
        ValueError: *addrinfo* is of another family, or *timeout* negative or no number.

    Errors:
        As `receive`.

    Cancelling:
        As `receive`.
    """
    seconds = check_timeout(timeout)
    return _within(socket, seconds, lambda: receive(socket, n, flags, addrinfo))


def check_timeout(timeout: float | timedelta) -> float:
    """Return *timeout* in seconds."""
    if isinstance(timeout, timedelta):
        seconds = timeout.total_seconds()
    elif isinstance(timeout, int | float) and not isinstance(timeout, bool):
        # A number too large for a float is no time either.
        seconds = float(timeout) if abs(timeout) < _FOREVER else math.inf
    else:
        raise TypeError(f"timeout must be seconds or a timedelta, not {timeout!r}")
    if not 0 <= seconds < math.inf:
        raise ValueError(f"timeout={timeout!r} must be 0 or more seconds")
    return seconds


def check_family(socket: SocketInfo, addrinfo: Address | None) -> None:
    """Refuse an *addrinfo* of another family than the socket's."""
    if addrinfo is None:
        return
    family = (
        addrinfo.family
        if isinstance(addrinfo, AddressInfo)
        else as_socket_address(addrinfo).family
    )
    if family not in (_socket.AF_UNSPEC, socket.family):
        raise ValueError(
            f"addrinfo={addrinfo!r} is of {family.name}, the socket of {socket.family.name}"
        )


def _within(
    socket: Socket, seconds: float, operation: Callable[[], Deferred[T]]
) -> Deferred[T | None]:
    """Give *operation* that many seconds, then cancel it and fire with `None`."""
    if not seconds:
        # One try must be a try, however many went before it in this turn.
        socket._in_a_row = socket._doomed = 0
    answer: Deferred[Any] = operation()
    if answer.called:
        return answer
    if seconds:
        return answer.addTimeout(seconds, socket._reactor, lambda _result, _seconds: None)
    answer.addErrback(_only_cancelled)
    answer.cancel()
    return answer


def _only_cancelled(failure: Failure) -> None:
    failure.trap(CancelledError)
