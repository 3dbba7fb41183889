"""
The poller: "tell me when this descriptor is readable or writable".

One epoll object per reactor holds every descriptor of this package and is
itself the single reader that the reactor sees. Its events go to their owners
directly, which saves two ``epoll_ctl`` and the reactor's own bookkeeping for
each wait, and makes all reactors behave alike. Where there is no epoll, the
reactor's ``addReader`` and ``addWriter`` serve.

This is the only module that calls those.
"""

from __future__ import annotations

import os
import select
import sys
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

from twisted.internet.interfaces import (
    IReactorCore,
    IReactorFDSet,
    IReadDescriptor,
    IReadWriteDescriptor,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from .errors import SocketConnectionLostError, SocketError, opened_before_fork

__all__ = ["Poller", "Watch", "has_event", "poller_for"]

_MOST_EVENTS: Final = 128
"""Events handled between two turns of the reactor, so that timers and others get theirs."""

_MOST_AT_ONCE: Final = 64
"""Connections that are made between two turns of the reactor without waiting for one."""

HANDSHAKE: Final = 8
"""For how many of those a TLS handshake counts, by the time that it takes."""

_ONLY_READABLE: Final = select.POLLIN
"""What epoll reports most: there is something to read, and nothing else."""

_log = Logger()


class Owner(Protocol):
    """What a `Watch` reports to."""

    def on_readable(self) -> None:
        """Handle a readable descriptor (or one that failed or was hung up)."""

    def on_writable(self) -> None:
        """Handle a writable descriptor (or one that failed or was hung up)."""

    def on_poller_lost(self, reason: Exception) -> None:
        """Handle the end of all reports: nothing comes after this."""


class Watch:
    """
    The interest in one descriptor; level-triggered.

    `reading` and `writing` say what the owner waits for now. What the kernel
    was asked for may be more: an interest that goes away is forgotten at the
    first report that nobody waits for. The poller holds on to the owner of a
    watch that waits; an owner that may be dropped while idle takes itself off
    the watch (``watch.owner = None``) whenever it stops waiting.
    """

    __slots__ = ("_adapter", "_mask", "_poller", "fd", "owner", "reading", "writing")

    def __init__(self, poller: Poller, fd: int) -> None:
        self._poller = poller
        self._mask = 0
        self._adapter: Any = None
        self.fd = fd
        self.owner: Owner | None = None
        self.reading = False
        self.writing = False

    def want_read(self) -> None:
        """Report when the descriptor is readable, until `stop_read`."""
        self.reading = True
        poller = self._poller
        if poller.reporting and self._mask & select.POLLIN:
            # It is asked for already, and `doRead` sees to the rest.
            poller.parked = True
        else:
            poller.park(self, select.POLLIN)

    def want_write(self) -> None:
        """Report when the descriptor is writable, until `stop_write`."""
        self.writing = True
        self._poller.park(self, select.POLLOUT)

    def stop_read(self) -> None:
        """Report no more that the descriptor is readable."""
        self.reading = False

    def end_read(self) -> None:
        """Do as `stop_read`, for good: there is nothing to be read any more."""
        self.reading = False
        if self._mask:
            self._poller.shrink(self)

    def stop_write(self) -> None:
        """Report no more that the descriptor is writable."""
        self.writing = False

    def keep(self) -> None:
        """
        Have the poller hold the owner until `close`.

        The owner then hears of the poller's end whether it waits or not.
        """
        self._poller.kept.add(self)

    def close(self) -> None:
        """Leave the poller; to be called before the descriptor is closed."""
        self.reading = self.writing = False
        self.owner = None
        poller = self._poller
        poller.forget(self)
        poller.kept.discard(self)


class Poller:
    """
    What the two kinds of poller share: the set of watches, and their end.

    Use `poller_for` to get one, and `watch` to have a descriptor watched.
    """

    def __init__(self, reactor: Any) -> None:
        # The reactor holds its poller (as a reader, and by the shutdown trigger), and
        # the table of pollers must not hold the reactor.
        self._reactor_ref = weakref.ref(reactor)
        self._registered: dict[int, Watch] = {}
        self.kept: set[Watch] = set()
        """Those whose owners are held whether they wait or not."""
        self._dead: Callable[[], Exception] | None = None
        self.reporting = False
        """The reactor has called, so this is one of its readers, and stays that meanwhile."""
        self.parked = False
        """Something was waited for since the reactor called, and is to be reported."""
        self.at_once = 0
        """Connections since the reactor called, or since one of them waited for it."""
        if IReactorCore.providedBy(reactor):
            reactor.addSystemEventTrigger("during", "shutdown", self.lose_all)

    @property
    def _reactor(self) -> Any:
        reactor = self._reactor_ref()
        if reactor is None:
            raise SocketError(strerror="The reactor of this socket is gone")
        return reactor

    def watch(self, fd: int) -> Watch:
        """Return a watch on *fd*, without an owner yet."""
        if self._dead is not None:
            raise self._dead()
        return Watch(self, fd)

    def may_go_on(self) -> bool:
        """
        Tell whether a connection that stands at once is to be had without a turn of the reactor.

        Within one machine all do. Who makes one after the other would never give way.
        """
        self.at_once += 1
        if self.at_once < _MOST_AT_ONCE:
            return True
        self.at_once = 0
        return False

    def park(self, watch: Watch, event: int) -> None:
        """Have *event* of *watch* reported."""
        raise NotImplementedError

    def forget(self, watch: Watch) -> None:
        """Report nothing about *watch* any more."""
        raise NotImplementedError

    def shrink(self, watch: Watch) -> None:
        """Have nothing reported of *watch* that its owner does not wait for."""
        raise NotImplementedError

    def lose_all(self) -> None:
        """Tell every owner that its connection is lost: the reactor shuts down."""
        self.lose(SocketConnectionLostError(strerror="The reactor was shut down"))

    def forked(self) -> None:
        """Give everything up in a forked child, which must not disturb its parent."""
        self._dead = opened_before_fork
        self.lose(opened_before_fork())

    def _lose_registered(self) -> None:
        reason = SocketConnectionLostError(strerror="The reactor dropped its descriptors")
        self.lose(reason, self._registered.values())

    def lose(self, reason: Exception, watches: Iterable[Watch] | None = None) -> None:
        """Forget *watches*, all that there are if `None`, and tell their owners then."""
        lost = list(self.kept.union(self._registered.values()) if watches is None else watches)
        for watch in lost:
            self.forget(watch)
            self.kept.discard(watch)
        for watch in lost:
            watch.reading = watch.writing = False
            owner, watch.owner = watch.owner, None
            if owner is not None:
                _call(owner.on_poller_lost, reason)


def _call(method: Callable[..., None], *args: object) -> None:
    """Call an owner; what it raises is logged and touches nobody else."""
    try:
        method(*args)
    except Exception:  # noqa: BLE001 - one owner's mistake must not reach the others
        _log.failure("a socket's handler failed")


@implementer(IReadDescriptor)
class EpollPoller(Poller):
    """All watches in one epoll object, which is in the reactor while it holds any."""

    def __init__(self, reactor: Any) -> None:
        super().__init__(reactor)
        self._epoll = select.epoll()

    def park(self, watch: Watch, event: int) -> None:
        if self._dead is not None:
            raise self._dead()
        # While the reactor calls, this is one of its readers, and `doRead` sees to the rest.
        reactor = None if self.reporting else self._reactor
        mask = watch._mask
        if not mask:
            if reactor is not None and self._registered and self not in reactor.getReaders():
                # Somebody, trial's clean-up say, called reactor.removeAll().
                self._lose_registered()
            try:
                self._epoll.register(watch.fd, event)
            except FileExistsError:
                # The number was closed behind our back while something kept it open.
                self._epoll.modify(watch.fd, event)
            self._registered[watch.fd] = watch
            watch._mask = event
        elif not mask & event:
            self._epoll.modify(watch.fd, mask | event)
            watch._mask = mask | event
        if reactor is None:
            self.parked = True
        else:
            reactor.addReader(self)

    def forget(self, watch: Watch) -> None:
        if not watch._mask:
            return
        watch._mask = 0
        if self._registered.get(watch.fd) is watch:
            del self._registered[watch.fd]
            if self._dead is None:
                try:
                    self._epoll.unregister(watch.fd)
                except OSError:
                    # It was closed behind our back: the kernel has forgotten it already.
                    pass
        if not self._registered and not self.reporting:
            self._come_or_go()

    def doRead(self) -> None:
        """Hand what epoll reports to the owners."""
        registered = self._registered
        self.reporting = True
        self.at_once = 0
        try:
            for fd, events in self._epoll.poll(0, _MOST_EVENTS):
                watch = registered.get(fd)
                if watch is None:
                    continue
                owner = watch.owner
                try:
                    if events == _ONLY_READABLE and watch.reading and owner is not None:
                        owner.on_readable()
                    else:
                        self._report(watch, events)
                except Exception:  # noqa: BLE001 - see _call
                    _log.failure("a socket's handler failed")
        finally:
            self.reporting = False
            if self.parked or not registered:
                self.parked = False
                self._come_or_go()

    def _come_or_go(self) -> None:
        """Be one of the reactor's readers, whoever has just removed them all, or no more."""
        reactor = self._reactor_ref()
        if reactor is None or self._dead is not None:
            return
        if self._registered:
            reactor.addReader(self)
        else:
            reactor.removeReader(self)

    def _report(self, watch: Watch, events: int) -> None:
        """Tell the owner what it waits for, and the kernel what nobody waits for."""
        unwanted = False
        if events & ~select.EPOLLOUT:
            if watch.reading and watch.owner is not None:
                watch.owner.on_readable()
            else:
                unwanted = True
        if events & ~select.EPOLLIN:
            if watch.writing and watch.owner is not None:
                watch.owner.on_writable()
            elif not watch.reading or events == select.EPOLLOUT:
                unwanted = True
        if unwanted and watch._mask:
            self.shrink(watch)

    def shrink(self, watch: Watch) -> None:
        mask = (select.EPOLLIN if watch.reading else 0) | (select.EPOLLOUT if watch.writing else 0)
        if not mask:
            # Never an empty mask: a hang-up is reported for that too, and would spin.
            self.forget(watch)
        elif mask != watch._mask:
            self._epoll.modify(watch.fd, mask)
            watch._mask = mask

    def fileno(self) -> int:
        """Return the epoll object's descriptor."""
        return self._epoll.fileno()

    def logPrefix(self) -> str:
        """Name the poller in log lines."""
        return "netsock"

    def connectionLost(self, reason: Failure) -> None:
        """Lose every watch: the reactor disconnects all that it holds."""
        self.lose_all()

    def __repr__(self) -> str:
        return f"<twisted_netsock poller of descriptors {sorted(self._registered)}>"


def has_event(fd: int, event: int) -> bool:
    """Tell whether *event* can be reported of *fd* now, or that it was hung up or failed."""
    poll = select.poll()
    poll.register(fd, event)
    return bool(poll.poll(0))


@implementer(IReadWriteDescriptor)
class _Adapter:
    """One watch as a reader and writer of the reactor, where there is no epoll."""

    def __init__(self, poller: ReactorPoller, watch: Watch) -> None:
        self._poller = poller
        self._watch = watch
        self._fd = watch.fd

    def doRead(self) -> None:
        if self._watch.reading and self._watch.owner is not None:
            _call(self._watch.owner.on_readable)
        else:
            self._poller.shrink(self._watch)

    def doWrite(self) -> None:
        if self._watch.writing and self._watch.owner is not None:
            _call(self._watch.owner.on_writable)
        else:
            self._poller.shrink(self._watch)

    def fileno(self) -> int:
        return self._fd

    def logPrefix(self) -> str:
        return "netsock"

    def connectionLost(self, reason: Failure) -> None:
        watch = self._watch
        if not has_event(self._fd, select.POLLIN):
            lost = SocketConnectionLostError(strerror="The reactor disconnects all")
            self._poller.lose(lost, [watch])
            return
        self._poller.forget(watch)
        # This is how some reactors tell of a hang-up: the owner finds out by trying.
        if watch.owner is not None and watch.reading:
            _call(watch.owner.on_readable)
        if watch.owner is not None and watch.writing:
            _call(watch.owner.on_writable)

    def __repr__(self) -> str:
        return f"<twisted_netsock descriptor {self._fd}>"


class ReactorPoller(Poller):
    """Each watch as a reader and a writer of the reactor."""

    def park(self, watch: Watch, event: int) -> None:
        if self._dead is not None:
            raise self._dead()
        if watch._adapter is None:
            if self._was_dropped():
                self._lose_registered()
            watch._adapter = _Adapter(self, watch)
            self._registered[watch.fd] = watch
        watch._mask |= event
        if event == select.POLLIN:
            self._reactor.addReader(watch._adapter)
        else:
            self._reactor.addWriter(watch._adapter)

    def forget(self, watch: Watch) -> None:
        if watch._adapter is None:
            return
        adapter, watch._adapter = watch._adapter, None
        watch._mask = 0
        if self._registered.get(watch.fd) is watch:
            del self._registered[watch.fd]
        reactor = self._reactor_ref()
        if reactor is not None and self._dead is None:
            reactor.removeReader(adapter)
            reactor.removeWriter(adapter)

    def shrink(self, watch: Watch) -> None:
        if watch._adapter is None:
            return
        if not watch.reading:
            self._reactor.removeReader(watch._adapter)
        if not watch.writing:
            self._reactor.removeWriter(watch._adapter)

    def _was_dropped(self) -> bool:
        """Tell whether somebody called ``reactor.removeAll()``: one that waits is not there."""
        readers = set(self._reactor.getReaders())
        writers = set(self._reactor.getWriters())
        return any(
            (watch.reading and watch._adapter not in readers)
            or (watch.writing and watch._adapter not in writers)
            for watch in self._registered.values()
        )


def _is_in_memory(reactor: Any) -> bool:
    """Tell whether this is Twisted's reactor for tests, which notes readers and does nothing."""
    testing = sys.modules.get("twisted.internet.testing")
    return testing is not None and isinstance(reactor, testing.MemoryReactor)


_pollers: weakref.WeakKeyDictionary[Any, Poller] = weakref.WeakKeyDictionary()


def poller_for(reactor: Any) -> Poller:
    """
    Return the poller of *reactor*, which is made at the first call.

    Raises:
        TypeError: *reactor* does not provide ``IReactorFDSet``.
    """
    poller = _pollers.get(reactor)
    if poller is None:
        if not IReactorFDSet.providedBy(reactor) or _is_in_memory(reactor):
            lacks = "notes" if _is_in_memory(reactor) else "does not provide IReactorFDSet for"
            raise TypeError(
                f"reactor={reactor!r} {lacks} descriptors, and cannot wait for them; "
                "in tests use a real reactor with twisted_netsock.testing.connected_pair"
            )
        kind = EpollPoller if hasattr(select, "epoll") else ReactorPoller
        poller = _pollers[reactor] = kind(reactor)
    return poller


def _forked() -> None:
    for poller in list(_pollers.values()):
        poller.forked()
    _pollers.clear()


os.register_at_fork(after_in_child=_forked)
