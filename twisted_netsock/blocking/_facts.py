"""`BlockingFacts`: what blocking sockets tell about themselves, and their time-outs."""

from __future__ import annotations

import socket as _socket
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from .. import _validation as check
from .._sockets.info import SocketFacts
from ..addresses import Address, SocketAddress

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["BlockingFacts", "in_seconds"]


class BlockingFacts(SocketFacts):
    """Time-outs, and the calls that never wait, each under the lock of the socket."""

    _lock: threading.RLock
    _waits: bool
    """Whether a call waits at all."""
    _accept_seconds: float | None
    _read_seconds: float | None
    _write_seconds: float | None

    # Time

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

    def settimeout(self, value: float | timedelta | None) -> None:
        """
        Set both time-outs, and that of `accept`, as `socket.socket.settimeout`.

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
        """Tell whether calls wait."""
        return self._waits

    @property
    def timeout(self) -> float | None:
        """What `gettimeout` returns."""
        return self.gettimeout()

    # Looking at it

    @property
    def closed(self) -> bool:
        """Whether it was closed on this side (``socket-closed?``)."""
        return self._closed

    @property
    def type(self) -> _socket.SocketKind:
        """``SOCK_STREAM``, ``SOCK_DGRAM`` or ``SOCK_RAW``."""
        return _socket.SocketKind(self._descriptor.sock.type)

    @property
    def proto(self) -> int:
        """The protocol's number."""
        number: int = self._descriptor.sock.proto
        return number

    def fileno(self) -> int:
        """Return the descriptor, which stays this socket's; -1 once closed."""
        return -1 if self._closed else self._number

    def getsockname(self) -> SocketAddress:
        with self._lock:
            return super().getsockname()

    def getpeername(self) -> SocketAddress:
        with self._lock:
            return super().getpeername()

    def getsockopt(self, level: int, name: int, size: int | None = None) -> Any:
        with self._lock:
            return super().getsockopt(level, name, size)

    def setsockopt(self, level: int, name: int, value: int | Buffer) -> None:
        with self._lock:
            super().setsockopt(level, name, value)

    def bind(self, address: Address) -> None:
        with self._lock:
            super().bind(address)

    def listen(self, backlog: int = 128) -> None:
        with self._lock:
            super().listen(backlog)


def in_seconds(duration: timedelta | None) -> float | None:
    """Return the seconds of a `timedelta`, or `None`."""
    return None if duration is None else duration.total_seconds()


def _interval(value: Any) -> timedelta:
    """Return a number of seconds as a `timedelta`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"value must be seconds, a timedelta or None, not {value!r}")
    try:
        return timedelta(seconds=value)
    except (ValueError, OverflowError):
        raise ValueError(f"value={value!r} must be a number of seconds, up to a year") from None
