"""
Certificates that are read again while connections go on.

A whole new context is built, in another thread, before it replaces the old
one; if anything is wrong with a file, the old one stays.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure

from .._io.interfaces import Reactor

__all__ = ["FileWatch", "Reloadable", "Reloader", "watch_files"]

Built = TypeVar("Built")

_log = Logger()


class Reloadable(Protocol[Built]):
    """A context factory, which can be given new contexts."""

    @property
    def signature(self) -> tuple[object, ...]:
        """What the files were like when the contexts in use were read from them."""

    def current_signature(self) -> tuple[object, ...]:
        """Return the present signature of the files."""

    def build(self) -> Built:
        """Read the files and return new contexts; runs in any thread, changes nothing."""

    def swap(self, built: Built) -> None:
        """Use new contexts for the connections to come."""


class Reloader:
    """Reloads one context factory, one reload at a time."""

    def __init__(self, reactor: Reactor, factory: Reloadable[Any]) -> None:
        self._reactor = reactor
        self._lock = DeferredLock()
        self.factory = factory

    def reload(self) -> Deferred[None]:
        """
        Read all files again, and use what they hold for connections to come.

        Returns:
            `None`, when it is in use.

        Errors:
            ValueError: A file cannot be used; everything stays as it was.

        Cancelling:
            Fails with `CancelledError`; everything stays as it was.
        """

        def build() -> Deferred[None]:
            return deferToThreadPool(
                self._reactor, self._reactor.getThreadPool(), self.factory.build
            ).addCallback(self.factory.swap)

        return self._lock.run(build)


class FileWatch:
    """Checks the files of a reloader periodically, and reloads when they have changed."""

    def __init__(self, reactor: Reactor, reloader: Reloader, seconds: float, where: str) -> None:
        """
        Check every *seconds*, until `stop`.

        Args:
            reactor: For the time.
            reloader: What to reload.
            seconds: Between two checks.
            where: Names the server in log lines.
        """
        self._reactor = reactor
        self._reloader = reloader
        self._seconds = seconds
        self._where = where
        self._seen = reloader.factory.signature
        self._error: str | None = None
        self._reloading = False
        self._timer = reactor.callLater(seconds, self._check)

    def _check(self) -> None:
        self._timer = self._reactor.callLater(self._seconds, self._check)
        now = self._reloader.factory.current_signature()
        # What could not be read is tried again, though nothing about it may change: the process
        # may have had no descriptor left.
        if self._reloading or (now == self._seen and self._error is None):
            return
        self._seen = now
        self._reloading = True
        self._reloader.reload().addCallbacks(self._succeeded, self._failed).addBoth(self._end)

    def _end(self, _: object) -> None:
        self._reloading = False

    def _succeeded(self, _: object) -> None:
        self._error = None
        _log.info("{where} has new certificates", where=self._where)

    def _failed(self, failure: Failure) -> None:
        error = str(failure.value)
        if error != self._error:
            # Once, not at each look.
            self._error = error
            _log.error("{where} keeps its certificates: {error}", where=self._where, error=error)

    def stop(self) -> None:
        """Stop checking; may be called again."""
        if self._timer.active():
            self._timer.cancel()


def watch_files(
    reactor: Reactor, reloader: Reloader | None, seconds: float, where: str
) -> FileWatch | None:
    """Return a watch on the files of *reloader*, or `None` where there are none."""
    return None if reloader is None else FileWatch(reactor, reloader, seconds, where)
