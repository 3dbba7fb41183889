"""
`BaseSocket`: what a socket on the reactor is, whatever it is used for.

Its life (closing, in order or at once) and what can be asked about it.
"""

from __future__ import annotations

import socket as _socket
import warnings
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from twisted.internet.defer import Deferred, succeed
from twisted.python import threadable
from twisted.python.failure import Failure

from .. import _validation as check
from .._io.descriptor import Descriptor, set_linger_reset
from .._io.operation import Operating
from .._io.poller import Watch
from ..errors import SocketClosedError
from ..options import SocketOptions
from .info import SocketFacts

__all__ = ["BaseSocket"]


class BaseSocket(SocketFacts, Operating):
    """The life of a socket on the reactor, and what it tells about itself."""

    # What an idle connection has no use for stands here, and takes memory only once it is set.
    _gone = False
    _aborted = False
    _ending: Deferred[None] | None = None
    _farewells: list[Deferred[None]] | None = None
    _successor: BaseSocket | None = None
    """The socket that has the connection now: by `start_tls`, which spent this one."""

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
        farewells = self._farewells = self._farewells or []
        farewell: Deferred[None] = Deferred(farewells.remove)
        farewells.append(farewell)
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
            # One who hears of it may have cancelled another.
            if not operation.called:
                operation.finish(Failure(SocketClosedError(self)))

    def _stop_helpers(self) -> None:
        """Stop what acts on behalf of a parked operation."""

    def _dispose(self, *, abort: bool) -> None:
        """Close the descriptor, now or in order, and call `_on_gone` then."""
        self._watch.close()
        self._descriptor.close()
        self._on_gone(None)

    def _on_gone(self, _: object) -> None:
        self._gone = True
        farewells, self._farewells = self._farewells, None
        for farewell in farewells or ():
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

    def fileno(self) -> int:
        """Return the descriptor, which stays this socket's; -1 once closed."""
        return -1 if self._closed else self._number
