"""The accept loop of `BlockingSocket.serve`, and its threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from twisted.logger import Logger
from twisted.python.failure import Failure

from .._sockets.serve import HandlerLog
from ..errors import SocketClosedError
from ._waiting import Waiter, current_waiter

__all__ = ["Service"]

_log = Logger()


class _Listener(Protocol):
    """What this needs of a listening socket, whose class imports this."""

    @property
    def _closed(self) -> bool: ...
    def __iter__(self) -> Iterator[object]: ...
    def _enter(self, user: Waiter) -> None: ...
    def _leave(self, user: Waiter) -> None: ...


class _Monotonic:
    """The time in any thread: the reactor's is for its own."""

    def seconds(self) -> float:
        return time.monotonic()


class Service:
    """The loop of `BlockingSocket.serve`, and its threads."""

    def __init__(
        self, listener: _Listener, handler: Callable[[Any], object], limit: int | None
    ) -> None:
        self._listener = listener
        self._handler = handler
        self._limit = limit
        self._lock = threading.Lock()
        self._running = 0
        self._waiter = current_waiter()
        self._log = HandlerLog(_Monotonic())
        self._logging = threading.Lock()
        """Of the threads that use `_log`. Not `_lock`: to write a line may take long."""

    def run(self) -> None:
        """Accept and serve, until the listener is closed and all handlers have returned."""
        try:
            self._accept_all()
        finally:
            with self._logging:
                self._log.end()

    def _accept_all(self) -> None:
        for connection in self._listener:
            with self._lock:
                self._running += 1
            try:
                self._start(connection)
            except RuntimeError as error:
                # Too many threads, or the interpreter is about to end.
                _log.error("{socket} is closed: {error}", socket=connection, error=error)
                self._ended(connection)
            except BaseException:
                self._ended(connection)
                raise
            self._wait_until(lambda: self._limit is None or self._running < self._limit)
        self._wait_until(lambda: not self._running, closed=True)

    def _start(self, connection: object) -> None:
        threading.Thread(
            target=self._handle, args=(connection,), name="netsock-connection", daemon=True
        ).start()

    def _handle(self, connection: Any) -> None:
        for step in (self._handler, self._ended):
            try:
                step(connection)
            except BaseException:  # noqa: BLE001 - SystemExit, too, ends its own connection only
                with self._logging:
                    self._log.report(Failure(), connection)

    def _ended(self, connection: Any) -> None:
        try:
            connection.close()
            if connection._successor is not None:
                connection._successor.close()
        finally:
            with self._lock:
                self._running -= 1
            self._waiter.wake()

    def _wait_until(self, ready: Callable[[], bool], *, closed: bool = False) -> None:
        """Wait for the threads, until *ready* or, unless it is already, the listener is closed."""
        listener = self._listener
        if closed:
            while not ready() and not self._waiter.stopped:
                self._waiter.pause(None)
            return
        if ready():
            return
        try:
            listener._enter(self._waiter)
            while not ready() and not listener._closed and not self._waiter.stopped:
                self._waiter.pause(None)
        except SocketClosedError:
            return
        finally:
            listener._leave(self._waiter)
