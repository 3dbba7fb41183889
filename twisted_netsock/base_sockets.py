"""
`BaseSocket`: what a socket on the reactor is, whatever it is used for.

Its life (closing, in order or at once) and what can be asked about it.
"""

from __future__ import annotations

import socket as _socket
import warnings
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from . import _validation as check
from .addresses import SocketAddress
from .descriptors import Descriptor, set_linger_reset
from .errors import SocketClosedError, SocketError
from .operations import Operating
from .options import SocketOptions
from .proxy_headers import ProxyHeader
from .readiness import Watch

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["BaseSocket"]


class BaseSocket(Operating):
    """The life of a socket on the reactor, and what it tells about itself."""

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
        """Take *watch* and *descriptor* over."""
        super().__init__(reactor, watch, descriptor, options or SocketOptions())
        self.node = node
        self.service = service
        self.proxy_header: ProxyHeader | None = None
        self._gone = False
        self._aborted = False
        self._ending: Deferred[None] | None = None
        self._farewells: list[Deferred[None]] = []
        self._successor: BaseSocket | None = None
        """The socket that has the connection now: by `start_tls`, which spent this one."""

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
        if self._gone or self._aborted:
            return
        self._aborted = True
        set_linger_reset(self._descriptor.sock)
        if not self._closed:
            self._closed = True
            self._release(abort=True)
        elif self._ending is not None:
            self._ending.cancel()

    def _release(self, *, abort: bool) -> None:
        """Let go of the descriptor, then tell whoever waited."""
        # A handshake takes both directions.
        waiting = [
            parked for parked in dict.fromkeys((self._reader, self._writer)) if parked is not None
        ]
        self._stop_helpers()
        for operation in waiting:
            self._drop(operation)
        self._dispose(abort=abort)
        for operation in waiting:
            # One who hears of it may have cancelled another.
            if not operation.deferred.called:
                operation.deferred.errback(Failure(SocketClosedError(self)))

    def _stop_helpers(self) -> None:
        """Stop what acts on behalf of a parked operation."""

    def _dispose(self, *, abort: bool) -> None:
        """Close the descriptor, now or in order, and call `_on_gone` then."""
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
        self._stop_helpers()
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

    def _local_end(self) -> str:
        try:
            return f"at {SocketAddress.of(self._family, self._descriptor.sock.getsockname())}"
        except OSError:
            # The collector has closed the descriptor before it came to this.
            return "lost"

    def __repr__(self) -> str:
        if self._closed:
            return f"<{type(self).__name__} closed>"
        sock = self._descriptor.sock
        try:
            ends = f"from {SocketAddress.of(self._family, sock.getsockname())}"
            ends += f" to {SocketAddress.of(self._family, sock.getpeername())}"
        except OSError:
            # Not bound, or not connected.
            ends = self._local_end()
        return f"<{type(self).__name__} descriptor {self._watch.fd} {ends}>"
