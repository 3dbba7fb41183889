"""
Waiting until sockets are readable or writable, without receiving or sending.

`wait_readable` and `wait_writable` wait for the first of several sockets;
`SocketSelector` calls back for each of many.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from .. import _validation as check
from .._io.interfaces import current_reactor
from .._public import public_in
from ..errors import SocketBusyError, SocketClosedError, SocketError
from .socket import Socket

__all__ = ["Again", "OnRead", "SocketSelector", "wait_readable", "wait_writable"]

S = TypeVar("S", bound=Socket)

Again = Callable[..., None]
OnRead = Callable[[S, SocketError | None, Again], object]

_log = Logger()


def wait_readable(*sockets: S, timeout: timedelta | None = None) -> Deferred[list[S]]:
    """
    Wait until there is something to receive or to accept (``socket-read-select``).

    A socket is readable, too, at the end of its stream, and when it has failed
    or is closed meanwhile: the next receive raises or returns the end. On TLS decrypted
    data counts, and not what only looks like it from outside.

    Args:
        sockets: At least one. Nobody else may receive from them meanwhile.
        timeout: How long to wait; no time at all is one look; `None`: no limit.

    Returns:
        The sockets that are readable, in their order; none if *timeout* passed.

    Raises:
        TypeError: One is no `Socket`, or *timeout* is no `timedelta`.
        ValueError: There is none, or *timeout* is negative.

    Errors:
        SocketBusyError: Something waits to receive from one of them.
        SocketClosedError: One is closed already.

    Cancelling:
        Fails with `CancelledError` and consumes nothing.
    """
    return _Wait(sockets, check.wait(timeout, "timeout"), Socket._until_readable).run()


def wait_writable(*sockets: S, timeout: timedelta | None = None) -> Deferred[list[S]]:
    """
    Wait until the kernel takes something to send (``socket-write-select``).

    For everything else see `wait_readable`, with sending for receiving.
    """
    return _Wait(sockets, check.wait(timeout, "timeout"), Socket._until_writable).run()


class _Wait(Generic[S]):
    """One running `wait_readable` or `wait_writable`."""

    def __init__(
        self,
        sockets: tuple[S, ...],
        timeout: timedelta | None,
        begin: Callable[[Socket], Deferred[None]],
    ) -> None:
        if not sockets:
            raise ValueError("sockets: give at least one to wait for")
        for socket in sockets:
            _require_socket(socket)
        # One that is given twice is waited for once.
        self._sockets = tuple(dict.fromkeys(sockets))
        self._timeout = timeout
        self._begin = begin
        self._waiting: dict[S, Deferred[None]] = {}
        self._ready: set[S] = set()
        self._timer: IDelayedCall | None = None
        self._result: Deferred[list[S]] = Deferred(self._cancel)

    def run(self) -> Deferred[list[S]]:
        for socket in self._sockets:
            waiting = self._begin(socket)
            if not waiting.called:
                self._waiting[socket] = waiting
            elif isinstance(waiting.result, Failure):
                self._stop()
                # It fails with this: it cannot even be waited for.
                failed: Deferred[Any] = waiting
                return failed
            else:
                self._ready.add(socket)
        if self._ready or not (self._timeout is None or self._timeout):
            return succeed(self._finish())
        for socket, waiting in list(self._waiting.items()):
            waiting.addBoth(self._on_ready, socket)
        if self._timeout is not None:
            reactor = self._sockets[0]._reactor
            self._timer = reactor.callLater(self._timeout.total_seconds(), self._report)
        return self._result

    def _on_ready(self, result: Failure | None, socket: S) -> None:
        if self._waiting.pop(socket, None) is None:
            # Cancelled by us.
            return
        self._ready.add(socket)
        self._report()

    def _report(self) -> None:
        self._result.callback(self._finish())

    def _finish(self) -> list[S]:
        """Wait no more, and return those that are ready by now."""
        waiting = self._stop()
        # Those that have become ready since the first report.
        self._ready.update(socket for socket in waiting if self._is_ready(socket))
        return [socket for socket in self._sockets if socket in self._ready]

    def _is_ready(self, socket: S) -> bool:
        looking = self._begin(socket)
        looking.addErrback(lambda _: None)
        if looking.called:
            return True
        looking.cancel()
        return False

    def _cancel(self, _: object) -> None:
        self._stop()

    def _stop(self) -> list[S]:
        """Wait no more; return the sockets that were waited for."""
        waiting, self._waiting = self._waiting, {}
        for deferred in waiting.values():
            deferred.addErrback(lambda _: None)
            deferred.cancel()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        return list(waiting)


def _require_socket(socket: object) -> None:
    if not isinstance(socket, Socket):
        raise TypeError(f"socket={socket!r} must be a twisted_netsock.Socket")


@public_in("twisted_netsock")
class SocketSelector:
    """
    Calls back when one of many sockets is readable (``make-socket-selector``).

    ``len()`` is how many are waited for.
    """

    def __init__(self, timeout: timedelta | None = None, *, reactor: object = None) -> None:
        """
        Wait for no socket yet.

        Args:
            timeout: How long to wait for a socket that has no timeout of its own;
                `None`: no limit.
            reactor: The installed one if `None`.

        Raises:
            TypeError: *timeout* is no `timedelta`.
            ValueError: *timeout* is negative.
        """
        self._timeout = check.wait(timeout, "timeout")
        self._reactor = current_reactor(reactor)
        self._waiting: dict[Socket, Deferred[None]] = {}
        self._closed = False

    def add(self, socket: S, on_read: OnRead[S], timeout: timedelta | None = None) -> None:
        """
        Call *on_read* once, when there is something to read from *socket*.

        Args:
            socket: Stays its caller's. Nobody else may receive from it until
                *on_read* is called. What is readable is as for `wait_readable`.
            on_read: Called in a later reactor iteration as
                ``on_read(socket, error, again)``. *error* is `None`, or a
                `SocketReadTimeoutError` when the time is over, or what the
                socket failed with: a `SocketClosedError` if it was closed here.
                ``again(timeout=None)`` waits anew, as this call, and with its
                timeout if it is given none; once the selector is closed it does
                nothing. May be a coroutine function.
                What it raises is logged, and touches no other socket.
            timeout: How long to wait; no time at all is one look; the selector's
                if `None`.

        Raises:
            TypeError: *socket* is no `Socket`, *on_read* cannot be called, or
                *timeout* is no `timedelta`.
            ValueError: *timeout* is negative.
            SocketBusyError: Something waits to receive from *socket*.
            SocketClosedError: *socket* is closed, or this selector is.
        """
        _require_socket(socket)
        if not callable(on_read):
            raise TypeError(f"on_read={on_read!r} must be callable")
        limit = check.wait(timeout, "timeout")
        if self._closed:
            raise SocketClosedError(strerror="The selector is closed")
        if socket in self._waiting:
            # It may be readable already, and nothing waits beneath.
            raise SocketBusyError(socket)
        waiting = socket._until_readable(self._timeout if limit is None else limit)
        if waiting.called:
            failures: list[Failure | None] = []
            waiting.addBoth(failures.append)
            if isinstance(failures[0], Failure):
                failures[0].raiseException()
            # Not before this call has returned.
            waiting = self._next_turn()
        self._waiting[socket] = waiting
        waiting.addBoth(self._call, socket, on_read, limit)

    def _next_turn(self) -> Deferred[None]:
        later: Deferred[None] = Deferred(lambda _: call.cancel())
        call = self._reactor.callLater(0, later.callback, None)
        return later

    def _call(
        self,
        result: Failure | None,
        socket: S,
        on_read: OnRead[S],
        limit: timedelta | None,
    ) -> None:
        if self._waiting.pop(socket, None) is None:
            # The selector was closed meanwhile.
            return
        error = result.value if isinstance(result, Failure) else None
        if error is None and socket.closed:
            # It was readable, and closed before its turn came.
            error = SocketClosedError(socket)

        def again(timeout: timedelta | None = None) -> None:
            if not self._closed:
                self.add(socket, on_read, limit if timeout is None else timeout)

        call: Callable[..., object] = on_read
        running: Deferred[object] = maybeDeferred(call, socket, error, again)
        running.addErrback(
            lambda failure: _log.failure("on_read of a socket selector failed", failure)
        )

    def close(self) -> None:
        """
        Wait for nothing more, and call nobody; may be called again.

        The sockets stay open.
        """
        self._closed = True
        waiting, self._waiting = self._waiting, {}
        for deferred in waiting.values():
            deferred.cancel()

    def __len__(self) -> int:
        return len(self._waiting)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"of {len(self)} sockets"
        return f"<SocketSelector {state}>"
