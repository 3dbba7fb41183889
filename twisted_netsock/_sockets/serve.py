"""The accept loop of `Socket.serve`: bounded, and untouched by what one connection does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from twisted.internet.defer import CancelledError, Deferred, gatherResults, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from .._text import Clock, FailureLog, printable
from ..errors import SocketClosedError, SocketConnectionLostError, SocketError

__all__ = ["HandlerLog", "Served", "serve"]

_log = Logger()


class Served(Protocol):
    """What serving needs of a connection, whose class itself imports this."""

    node: str | None
    service: str | int | None

    @property
    def _successor(self) -> Served | None: ...
    def close(self) -> Deferred[None]: ...


S = TypeVar("S", bound=Served)


class HandlerLog:
    """Logs what handlers raise: the doing of a peer in a line, a mistake with its traceback."""

    def __init__(self, clock: Clock) -> None:
        self._failures = FailureLog(clock, _log)

    def report(self, failure: Failure, connection: Served) -> None:
        """Log what the handler of *connection* has raised."""
        error = failure.value
        # What a peer calls itself may be a path of any bytes.
        node = printable(str(connection.node))
        if isinstance(error, SocketError) and error.socket in _ends(connection):
            self._failures.note(
                "serving {node} {service} ended: {error}",
                node=node,
                service=connection.service,
                error=error,
            )
        else:
            _log.failure("serving {node} failed", failure, node=node)

    def end(self) -> None:
        """Log how many failures had no line of their own."""
        self._failures.end()


def serve(
    clock: Clock,
    accept: Callable[[], Deferred[S]],
    handler: Callable[[S], object],
    limit: int | None,
) -> Deferred[None]:
    """Hand each connection that *accept* gives to *handler*; see `Socket.serve`."""
    return Deferred.fromCoroutine(_Serving(clock, handler, limit).run(accept))


class _Serving(Generic[S]):
    """One running `serve`. A connection counts until it is closed, TLS shutdown included."""

    def __init__(self, clock: Clock, handler: Callable[[S], object], limit: int | None) -> None:
        self._handler = handler
        self._limit = limit
        self._cancelled = False
        self._running: dict[S, Deferred[object]] = {}
        self._one_less: Deferred[None] | None = None
        self._log = HandlerLog(clock)
        # One callback, and one method object, for what follows each handler: they take
        # memory for as long as it runs.
        self._then = self._ended

    async def run(self, accept: Callable[[], Deferred[S]]) -> None:
        try:
            while True:
                while self._limit is not None and len(self._running) >= self._limit:
                    await self._wait_for_one_less()
                try:
                    connection = await accept()
                except (SocketClosedError, SocketConnectionLostError):
                    # Closed here, or with the reactor.
                    break
                self._begin(connection)
            while self._running:
                await self._wait_for_one_less()
        except BaseException:
            self._end_all()
            raise
        finally:
            self._log.end()

    def _wait_for_one_less(self) -> Deferred[None]:
        self._one_less = Deferred()
        return self._one_less

    def _begin(self, connection: S) -> None:
        handling: Deferred[object] = maybeDeferred(self._handler, connection)
        self._running[connection] = handling
        handling.addBoth(self._then, connection)

    def _ended(self, result: object, connection: S) -> None:
        if isinstance(result, Failure) and not (
            self._cancelled and result.check(CancelledError) is not None
        ):
            self._log.report(result, connection)
        _close(connection).addBoth(self._finish, connection)

    def _finish(self, _: object, connection: S) -> None:
        del self._running[connection]
        waiting, self._one_less = self._one_less, None
        if waiting is not None and not waiting.called:
            waiting.callback(None)

    def _end_all(self) -> None:
        self._cancelled = True
        for connection, handling in list(self._running.items()):
            handling.cancel()
            _close(connection)


def _ends(connection: Served) -> list[Served]:
    """Return *connection*, and the socket that it has become in its handler."""
    return [end for end in (connection, connection._successor) if end is not None]


def _close(connection: Served) -> Deferred[None] | Deferred[list[None]]:
    if connection._successor is None:
        return connection.close()
    return gatherResults([end.close() for end in _ends(connection)])
