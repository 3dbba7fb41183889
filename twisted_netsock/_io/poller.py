"""
The poller: reports when a descriptor is readable or writable.

One epoll object per reactor holds every descriptor of this package and is
itself the single reader that the reactor sees. Its events go to their owners
directly, which saves two ``epoll_ctl`` and the reactor's own bookkeeping for
each wait, and makes all reactors behave alike. Where there is no epoll, the
reactor's ``addReader`` and ``addWriter`` serve.

This is the only module that calls those.
"""

from __future__ import annotations

import select
import sys
import weakref
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Final, Protocol

from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IReactorCore,
    IReactorFDSet,
    IReadDescriptor,
    IReadWriteDescriptor,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ..errors import SocketConnectionLostError, SocketError, opened_before_fork
from .describe import describe
from .fairness import CONNECTS, EVENTS
from .forks import after_fork
from .interfaces import Reactor, current_reactor
from .native import native_poll, original

__all__ = ["WANT_READ", "WANT_WRITE", "Poller", "Want", "Watch", "has_event", "poller_for"]

_NAMED: Final = 10
"""Descriptors that the text form of a poller describes: a server has thousands."""

_ONLY_READABLE: Final = select.POLLIN
"""What epoll reports most: there is something to read, and nothing else."""

_EDGE: Final = getattr(select, "EPOLLET", 0)
"""Only changes are reported; see `EpollPoller._settle`."""

_UNASKED: Final = select.POLLERR | select.POLLHUP
"""What the kernel reports whether it was asked for or not."""

_RAISED: Final = "the handler of a socket raised an exception"

_READ_OR_EDGE: Final = select.POLLIN | _EDGE
"""To see with one comparison that reading is asked for, and level-triggered."""

_log = Logger()


class Want(Enum):
    """What a descriptor must be before an operation is tried again."""

    READ = "readable"
    WRITE = "writable"


WANT_READ: Final = Want.READ
WANT_WRITE: Final = Want.WRITE


class Owner(Protocol):
    """What a `Watch` reports to. A descriptor that failed or was hung up is ready, too."""

    def on_receive_ready(self) -> None:
        """Try again what receives: the descriptor is what that waited for."""

    def on_send_ready(self) -> None:
        """Try again what sends: the descriptor is what that waited for."""

    def on_poller_lost(self, reason: Exception) -> None:
        """Handle the end of all reports: nothing comes after this."""

    def on_fork(self) -> None:
        """
        Become unusable, in a forked child: the parent has the connection.

        No code of the program may be called, and nothing done to the connection.
        """


class Slots:
    """
    What the two directions of a connection wait for, and the owner that may go on then.

    Over TLS a receive may wait until the descriptor is writable, and a send until it is
    readable. The owner is called by the direction that may go on, and needs to know
    nothing of that crossing.

    Attributes:
        owner: What is called.
        receive: What a receive waits for now; `None`: none does.
        send: What a send waits for now; `None`: none does.
        fd: The kernel's descriptor; -1: there is none.
    """

    __slots__ = ("fd", "owner", "receive", "send")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.owner: Owner | None = None
        self.receive: Want | None = None
        self.send: Want | None = None

    def want_receive(self, want: Want = WANT_READ) -> None:
        """Call `Owner.on_receive_ready` whenever the descriptor is as wanted."""
        self.receive = want
        self._ask(want)

    def want_send(self, want: Want = WANT_WRITE) -> None:
        """Call `Owner.on_send_ready` whenever the descriptor is as wanted."""
        self.send = want
        self._ask(want)

    def _ask(self, want: Want) -> None:
        """Have *want* reported, also if the connection is that already."""
        raise NotImplementedError

    def stop_receive(self) -> None:
        """Call `Owner.on_receive_ready` no more."""
        self.receive = None

    def stop_send(self) -> None:
        """Call `Owner.on_send_ready` no more."""
        self.send = None

    def end_receive(self) -> None:
        """Do as `stop_receive`, for good: there is nothing to be received any more."""
        self.receive = None

    def keep(self) -> None:
        """Have the owner held until `close`, whether it waits or not."""
        raise NotImplementedError

    def close(self) -> None:
        """Report nothing any more; to be called before the descriptor is closed."""
        raise NotImplementedError

    @property
    def wanted(self) -> int:
        """What the slots wait for, as a mask of poll(2)."""
        receive, send = self.receive, self.send
        return (select.POLLIN if receive is WANT_READ or send is WANT_READ else 0) | (
            select.POLLOUT if receive is WANT_WRITE or send is WANT_WRITE else 0
        )

    def report(self, events: int) -> bool:
        """
        Call the owner for each slot whose wait *events* end.

        Returns:
            Whether the kernel reports what no slot waits for. Room to send beside something
            to receive does not count: it is mostly waited for again soon.
        """
        wanted = self.wanted
        readable, writable = events & ~select.POLLOUT, events & ~select.POLLIN
        # One event may end both waits. Receiving goes first, unless it is sending that waits
        # for what is received: the other direction's call would take that.
        crossed = self.send is WANT_READ
        for receives in (not crossed, crossed):
            want = self.receive if receives else self.send
            owner = self.owner
            if owner is None or not (readable if want is WANT_READ else want and writable):
                continue
            if receives:
                owner.on_receive_ready()
            else:
                owner.on_send_ready()
        return not events & wanted or bool(events & select.POLLIN & ~wanted)


class Watch(Slots):
    """
    The interest in one descriptor; level-triggered.

    What the kernel was asked for may be more than the slots say: an interest that goes
    away is forgotten at the first report that no slot waits for. The poller holds on to
    the owner of a watch that waits; an owner that may be dropped while idle takes itself
    off the watch (``watch.owner = None``) whenever it stops waiting.
    """

    __slots__ = ("_adapter", "_mask", "_poller")

    def __init__(self, poller: Poller, fd: int) -> None:
        super().__init__(fd)
        self._poller = poller
        self._mask = 0
        self._adapter: _Adapter | None = None

    def _ask(self, want: Want) -> None:
        poller = self._poller
        if want is WANT_WRITE:
            poller.park(self, select.POLLOUT)
        elif poller.reporting and self._mask & _READ_OR_EDGE == select.POLLIN:
            # It is asked for already, and `doRead` sees to the rest.
            poller.parked = True
        else:
            poller.park(self, select.POLLIN)

    def end_receive(self) -> None:
        """Do as `stop_receive`, for good: there is nothing to be received any more."""
        self.receive = None
        if self._mask:
            self._poller.shrink(self)

    def keep(self) -> None:
        """
        Have the poller hold the owner until `close`.

        The end of the poller is then reported to the owner whether it waits or not.
        """
        self._poller.kept.add(self)

    def remember(self, owner: Owner) -> None:
        """Report a fork to *owner*, without a reference that keeps it alive."""
        self._poller.remembered.add(owner)

    def close(self) -> None:
        """Leave the poller; to be called before the descriptor is closed."""
        self.receive = self.send = None
        self.owner = None
        poller = self._poller
        poller.forget(self)
        poller.kept.discard(self)


class Poller:
    """
    What the two kinds of poller share: the set of watches, and their end.

    Use `poller_for` to get one, and `watch` to have a descriptor watched.
    """

    def __init__(self, reactor: Reactor) -> None:
        # The reactor holds its poller (as a reader, and by the shutdown trigger), and
        # the table of pollers must not hold the reactor.
        self._reactor_ref = weakref.ref(reactor)
        self._registered: dict[int, Watch] = {}
        self.kept: set[Watch] = set()
        """Those whose owners are held whether they wait or not."""
        self.remembered: weakref.WeakSet[Owner] = weakref.WeakSet()
        """Owners that are held by nothing here; a fork is reported to them."""
        self._dead: Callable[[], Exception] | None = None
        self._inherited: list[object] = []
        self.reporting = False
        """The reactor has called, so this is one of its readers, and stays that meanwhile."""
        self.parked = False
        """Something was waited for since the reactor called, and is to be reported."""
        self.at_once = 0
        """Connections since the reactor called, or since one of them waited for it."""
        if IReactorCore.providedBy(reactor):
            reactor.addSystemEventTrigger("during", "shutdown", self.lose_all)

    @property
    def _reactor(self) -> Reactor:
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
        Return whether a connection that stands at once may be returned in this reactor iteration.

        On loopback all do. A caller that makes one after the other would never give way.
        """
        self.at_once += 1
        if self.at_once < CONNECTS:
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
        """Report to every owner that its connection is lost: the reactor shuts down."""
        self.lose(SocketConnectionLostError(strerror="The reactor was shut down"))

    def forked(self) -> None:
        """
        Report nothing any more: this is a forked child, and the connections are its parent's.

        The owners are held from now on: what waits for them is the program's, and to drop
        a coroutine would run its ``finally``.
        """
        if self._dead is not None:
            # A child's child: what is held stays so.
            return
        self._dead = opened_before_fork
        watches = self.kept.union(self._registered.values())
        self.kept.clear()
        self._registered.clear()
        owners = {*self.remembered}
        for watch in watches:
            watch.receive = watch.send = None
            if watch.owner is not None:
                owners.add(watch.owner)
        self._inherited = [*watches, *owners]
        for owner in owners:
            owner.on_fork()

    def _lose_registered(self) -> None:
        reason = SocketConnectionLostError(strerror="The reactor dropped its descriptors")
        self.lose(reason, self._registered.values())

    def lose(self, reason: Exception, watches: Iterable[Watch] | None = None) -> None:
        """Forget *watches*, all if `None`, and then report that to their owners."""
        lost = list(self.kept.union(self._registered.values()) if watches is None else watches)
        for watch in lost:
            self.forget(watch)
            self.kept.discard(watch)
        for watch in lost:
            watch.receive = watch.send = None
            owner, watch.owner = watch.owner, None
            if owner is not None:
                try:
                    owner.on_poller_lost(reason)
                except BaseException:  # noqa: BLE001 - the others must be reported to as well
                    _log.failure(_RAISED)


def contain(error: BaseException, what: str) -> None:
    """
    Log *what* an exception of the program's did; it costs its own connection alone.

    Args:
        error: Anything: an `argparse` that is fed with a peer's words raises `SystemExit`.
            A `KeyboardInterrupt` is raised again. It is the user's, and only happened to
            come while this connection was served: the reactor does with it what it always
            does, which is to end `run` on asyncio, and to log it elsewhere.
        what: What has happened to the connection.
    """
    if isinstance(error, KeyboardInterrupt):
        raise error
    _log.failure("{what}", Failure(error), what=what)


def _call(method: Callable[..., object], *args: object) -> None:
    """Call an owner; see `contain`."""
    try:
        method(*args)
    except BaseException as error:  # noqa: BLE001 - one owner's mistake must not reach the others
        contain(error, _RAISED)


@implementer(IReadDescriptor)
class EpollPoller(Poller):
    """All watches in one epoll object, which is in the reactor while it holds any."""

    def __init__(self, reactor: Reactor) -> None:
        super().__init__(reactor)
        self._epoll: select.epoll = original(select, "epoll")()

    def park(self, watch: Watch, event: int) -> None:
        if self._dead is not None:
            raise self._dead()
        # While the reactor calls, this is one of its readers, and `doRead` sees to the rest.
        reactor = None if self.reporting else self._reactor
        mask = watch._mask
        if not mask:
            if reactor is not None and self._registered and self not in reactor.getReaders():
                # reactor.removeAll() was called, by trial's clean-up say.
                self._lose_registered()
            try:
                self._epoll.register(watch.fd, event)
            except FileExistsError:
                # The number was closed behind our back while something kept it open.
                self._epoll.modify(watch.fd, event)
            self._registered[watch.fd] = watch
            watch._mask = event
        elif not mask & event or mask & _EDGE:
            mask = (mask | event) & ~_EDGE
            self._epoll.modify(watch.fd, mask)
            watch._mask = mask
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
        interrupt: KeyboardInterrupt | None = None
        self.reporting = True
        self.at_once = 0
        try:
            for fd, events in self._epoll.poll(0, EVENTS):
                watch = registered.get(fd)
                if watch is None:
                    continue
                owner = watch.owner
                try:
                    if (
                        events == _ONLY_READABLE
                        and watch.receive is WANT_READ
                        and watch.send is not WANT_READ
                        and owner is not None
                        and watch._mask < _EDGE
                    ):
                        owner.on_receive_ready()
                    else:
                        self._report(watch, events)
                except KeyboardInterrupt as error:
                    # Not before the others have had their reports.
                    interrupt = error
                except BaseException as error:  # noqa: BLE001 - see _call
                    contain(error, _RAISED)
        finally:
            self.reporting = False
            if self.parked or not registered:
                self.parked = False
                self._come_or_go()
        if interrupt is not None:
            raise interrupt

    def _come_or_go(self) -> None:
        """Be one of the reactor's readers while anything is registered, and not otherwise."""
        reactor = self._reactor_ref()
        if reactor is None or self._dead is not None:
            return
        if self._registered:
            reactor.addReader(self)
        else:
            reactor.removeReader(self)

    def _report(self, watch: Watch, events: int) -> None:
        """Report *events* to the owner, and unregister those that nothing waits for."""
        if watch.report(events) and watch._mask:
            self.shrink(watch)
        if watch._mask and (events & _UNASKED or watch._mask & _EDGE):
            self._settle(watch)

    def _settle(self, watch: Watch) -> None:
        """
        Have only changes reported of *watch* while there is nothing that it waits for.

        The kernel reports an error for as long as one stands, and some no receive or send
        takes away: those in the queue of ``IP_RECVERR`` and of ``SO_TIMESTAMPING``. Reported
        level-triggered, they would keep the processor busy for nothing.
        """
        mask = watch._mask & ~_EDGE
        poll = native_poll()
        poll.register(watch.fd, mask)
        found = poll.poll(0)
        if not (found and found[0][1] & mask):
            mask |= _EDGE
        if mask != watch._mask:
            self._epoll.modify(watch.fd, mask)
            watch._mask = mask

    def shrink(self, watch: Watch) -> None:
        mask = watch.wanted
        if not mask:
            # Never an empty mask: a hang-up is reported for that too, and would spin.
            self.forget(watch)
        elif mask != watch._mask & ~_EDGE:
            self._epoll.modify(watch.fd, mask)
            watch._mask = mask

    def fileno(self) -> int:
        """Return the epoll object's descriptor."""
        return self._epoll.fileno()

    def logPrefix(self) -> str:
        """Name the poller in log lines."""
        return "netsock"

    def connectionLost(self, reason: Failure) -> None:
        """
        Lose every watch if the reactor disconnects all that it holds, and go on otherwise.

        A reactor lets go of a reader that raised, too, which `doRead` does for an interrupt
        alone: *reason* has that then.
        """
        if reason.check(ConnectionLost) is not None:
            self.lose_all()
        else:
            self._come_or_go()

    def __repr__(self) -> str:
        numbers = sorted(self._registered)
        names = [f"{fd} ({describe(fd)})" for fd in numbers[:_NAMED]]
        more = [f"{len(numbers) - _NAMED} more"] if len(numbers) > _NAMED else []
        return f"<twisted_netsock poller of {', '.join(names + more) or 'nothing'}>"


def has_event(fd: int, event: int) -> bool:
    """Return whether *event* can be reported of *fd* now, or that it was hung up or failed."""
    poll = native_poll()
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
        self._report(select.POLLIN)

    def doWrite(self) -> None:
        self._report(select.POLLOUT)

    def _report(self, event: int) -> None:
        watch = self._watch
        if watch.wanted & event:
            _call(watch.report, event)
        else:
            self._poller.shrink(watch)

    def fileno(self) -> int:
        return self._fd

    def logPrefix(self) -> str:
        return "netsock"

    def connectionLost(self, reason: Failure) -> None:
        watch = self._watch
        if reason.check(ConnectionDone, ConnectionLost) is None:
            # An interrupt came while the owner ran: the reactor has let go of this alone.
            self._poller.rejoin(watch)
            return
        if not has_event(self._fd, select.POLLIN):
            lost = SocketConnectionLostError(strerror="The reactor disconnects all")
            self._poller.lose(lost, [watch])
            return
        self._poller.forget(watch)
        # Some reactors report a hang-up in this way: the owner finds out by trying.
        _call(watch.report, select.POLLIN | select.POLLOUT)

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

    def rejoin(self, watch: Watch) -> None:
        """Have what the owner waits for reported again, after the reactor let go of it."""
        assert watch._adapter is not None
        if watch.wanted & select.POLLIN:
            self._reactor.addReader(watch._adapter)
        if watch.wanted & select.POLLOUT:
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
        if not watch.wanted & select.POLLIN:
            self._reactor.removeReader(watch._adapter)
        if not watch.wanted & select.POLLOUT:
            self._reactor.removeWriter(watch._adapter)

    def _was_dropped(self) -> bool:
        """Return whether ``reactor.removeAll()`` was called: one that waits is not there."""
        readers = set(self._reactor.getReaders())
        writers = set(self._reactor.getWriters())
        return any(
            (watch.wanted & select.POLLIN and watch._adapter not in readers)
            or (watch.wanted & select.POLLOUT and watch._adapter not in writers)
            for watch in self._registered.values()
        )


def _is_in_memory(reactor: object) -> bool:
    """Return whether this is Twisted's reactor for tests, which notes readers and does nothing."""
    testing = sys.modules.get("twisted.internet.testing")
    return testing is not None and isinstance(reactor, testing.MemoryReactor)


_pollers: weakref.WeakKeyDictionary[object, Poller] = weakref.WeakKeyDictionary()


def poller_for(reactor: object) -> Poller:
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
        kind = EpollPoller if original(select, "epoll") else ReactorPoller
        poller = _pollers[reactor] = kind(current_reactor(reactor))
    return poller


_inherited: Final[list[Poller]] = []
"""A child's, of its parent: they hold what must not be collected."""


def _forked() -> None:
    _inherited.extend(_pollers.values())
    _pollers.clear()
    for poller in _inherited:
        poller.forked()


after_fork(_forked)
