"""
The way to the reactor and back, over crochet, which only this file knows.

The reactor is the one that the application runs in another thread; else one is
started in a daemon thread, at the first call that needs it. A `Call` runs a
function there and waits for what it returns.

What crochet leaves to be done here: a wait that ends early cancels the
operation, whatever it still brings is disposed of, and nothing is logged; its
timeout is no `TimeoutError`; it asks ``Event.isSet``, which warns; and a forked
child has no reactor.
"""

from __future__ import annotations

import atexit
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import Any, Final, Generic, TypeVar

import crochet
from twisted.application.reactors import getReactorTypes, installReactor
from twisted.internet.defer import AlreadyCalledError, Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorCore, IReactorFDSet
from twisted.internet.main import installReactor as installReactorObject
from twisted.python import threadable
from twisted.python.failure import Failure

from .._io.forks import after_fork, notice_fork
from .._io.interfaces import Reactor
from .._io.native import are_greenlets, native_select, new_lock, start_thread
from . import _waiting
from ._waiting import check_thread, new_event, reactor_stopped

__all__ = ["Call", "in_reactor", "run", "setup", "use"]

T = TypeVar("T")

_START_SECONDS: Final = 30.0
"""How long a reactor may take to start."""

_LET_GO_SECONDS: Final = 1.0
"""How long a call that was cut short waits for the reactor to let go of what it has."""


class _Answer(crochet.EventualResult):  # type: ignore[misc]
    """One result that a thread waits for; it needs nothing that is crochet's own."""

    def __init__(self, reactor: Reactor) -> None:
        self._outcome: Deferred[object] = Deferred()
        super().__init__(self._outcome, reactor)
        # A crochet that calls it otherwise does not ask it by the name that warns.
        self._result_set = new_event()

    def follow(self, deferred: Deferred[object]) -> None:
        """Have what *deferred* gives; in the reactor's thread."""
        deferred.addBoth(self.fire)

    def fire(self, result: object) -> None:
        """Have *result*, unless there is one already; in any thread."""
        with suppress(AlreadyCalledError):
            self._outcome.callback(result)

    def __del__(self) -> None:
        """Log nothing: `Call` sees to results that nobody waits for."""


class _Link:
    """A running reactor, and the calls that wait for something there."""

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self.stopped = False
        self._answers: set[_Answer] = set()
        """Without a lock: a signal handler may add one while its thread adds another."""

    def watch_reactor(self) -> None:
        """Learn of the reactor's end; in its thread."""
        self.reactor.addSystemEventTrigger("before", "shutdown", self._on_stop)

    def _on_stop(self) -> None:
        self.stopped = True
        self.let_go()
        _waiting.stop_all()

    def let_go(self) -> None:
        """Fail the calls that wait."""
        for answer in list(self._answers):
            answer.fire(Failure(crochet.ReactorStopped()))

    def submit(self, answer: _Answer, function: Callable[[], Deferred[Any]]) -> None:
        """Call *function* in the reactor's thread; *answer* gets what its Deferred does."""
        self._answers.add(answer)
        # In this order: `_on_stop` may come in between.
        if self.stopped:
            raise crochet.ReactorStopped
        self.reactor.callFromThread(lambda: answer.follow(function()))

    def forget(self, answer: _Answer) -> None:
        """Know that nobody waits for *answer* any more."""
        self._answers.discard(answer)


class _Start:
    """What is known about the reactor before there is a link, and how to get one."""

    def __init__(self) -> None:
        self.lock = new_lock()
        self.link: _Link | None = None
        self.chosen: Any = None
        self.forked_from: Any = None
        self.started = False
        self.running = new_event()
        self.failure: BaseException | None = None


_start = _Start()


def setup(*, reactor: object = None) -> None:
    """
    Choose the reactor, before anything else of this module is used.

    Without it the reactor is the one that the application runs in another
    thread, or else Twisted's default, in a daemon thread of its own. Nothing is
    started before the first call that needs it.

    Args:
        reactor: A reactor's name as ``twist --reactor`` knows it (``"epoll"``,
            ``"asyncio"``), or a running reactor, or `None` for no choice.

    Raises:
        RuntimeError: A reactor is in use already, or another one is installed.
        TypeError: *reactor* is neither, or cannot wait for sockets.
        ValueError: There is no reactor of this name, or *reactor* does not run.
    """
    notice_fork()
    with _start.lock:
        if _start.link is not None:
            raise RuntimeError("setup() must be called before the first use: a reactor is in use")
        if isinstance(reactor, str):
            _check_name(reactor)
        elif reactor is not None:
            _check_reactor(reactor)
        _start.chosen = reactor


def _check_name(name: str) -> None:
    names = sorted(kind.shortName for kind in getReactorTypes())
    if name not in names:
        raise ValueError(f"reactor={name!r} must be one of {', '.join(names)}")
    installed = _installed()
    if installed is not None and name not in ("default", _name_of(installed)):
        raise RuntimeError(f"reactor={name!r}: {installed!r} is installed already")


def _name_of(reactor: object) -> str:
    """Return the name by which a reactor of this kind is chosen."""
    return type(reactor).__module__.rpartition(".")[2].removesuffix("reactor")


def _check_reactor(reactor: object) -> None:
    running = IReactorCore.providedBy(reactor) and reactor.running
    if not IReactorFDSet.providedBy(reactor):
        raise TypeError(f"reactor={reactor!r} must be a reactor's name or one that has sockets")
    if not running:
        raise ValueError(f"reactor={reactor!r} must be running, in another thread")


def _installed() -> Any:
    """Return the reactor that is installed, of this process, or `None`."""
    reactor = sys.modules.get("twisted.internet.reactor")
    return None if reactor is _start.forked_from else reactor


def _current_link() -> _Link:
    """Return the link to the reactor, which is started if none runs."""
    link = _start.link
    if link is not None:
        return link
    with _start.lock:
        if _start.link is None:
            link = _make_link()
            # A signal handler may have come before.
            _start.link = _start.link or link
        return _start.link


def _make_link() -> _Link:
    reactor = _start.chosen
    if reactor is None or isinstance(reactor, str):
        reactor = _installed()
        if are_greenlets() and not getattr(reactor, "running", False):
            # Kept: another greenlet may come in while this waits for the start.
            reactor = _start.chosen = _beside_gevent(reactor, _start.chosen)
        elif reactor is None:
            reactor = _install(_start.chosen)
    check_thread()
    if not reactor.running or _start.failure is not None:
        _run_in_thread(reactor)
    link = _Link(reactor)
    watching = new_event()

    def watch() -> None:
        link.watch_reactor()
        watching.set()

    reactor.callFromThread(watch)
    if not watching.wait(_START_SECONDS):
        raise RuntimeError(f"{reactor!r} does not run")
    _waiting.use_reactor(reactor)
    return link


def _install(name: str | None) -> Any:
    """Install a reactor and return it: of that name, the parent's kind, or the default."""
    stale, _start.forked_from = _start.forked_from, None
    if stale is not None:
        # The parent's, whose thread is not here.
        del sys.modules["twisted.internet.reactor"]
        name = name or _name_of(stale)
    if name is None or name == "default":
        # Importing it installs it; the package may still have the parent's as an attribute.
        import_module("twisted.internet.reactor")
    elif name == "asyncio":
        # By itself it would take the event loop of this thread, which may be in use.
        from asyncio import new_event_loop

        from twisted.internet.asyncioreactor import AsyncioSelectorReactor

        installReactorObject(AsyncioSelectorReactor(new_event_loop()))
    else:
        installReactor(name)
    return sys.modules["twisted.internet.reactor"]


def _beside_gevent(installed: object, name: str | None) -> Any:
    """
    Return *installed* if it can run in a real thread, else a reactor that can.

    Those made with gevent's poll(2) belong to the hub of the thread that made them.
    """
    if name not in (None, "default", "epoll"):
        raise RuntimeError(f"reactor={name!r}: beside gevent it must be 'epoll'")
    with native_select():
        from twisted.internet.epollreactor import EPollReactor
    if installed is None:
        return _install("epoll")
    return installed if isinstance(installed, EPollReactor) else EPollReactor()


def _run_in_thread(reactor: Reactor) -> None:
    """Run *reactor* in a daemon thread, and return when it runs."""
    start = _start

    def work() -> None:
        # All of Twisted's have the argument, and the interface does not.
        run: Callable[..., None] = reactor.run
        try:
            run(installSignalHandlers=False)
        except BaseException as error:  # noqa: BLE001 - the thread that waits for the start raises it
            start.failure = error
        finally:
            start.running.set()

    if not start.started:
        # Else an earlier call began this, and was interrupted.
        reactor.callWhenRunning(start.running.set)
        # Idle ones that are no daemons would keep the interpreter from ending.
        reactor.getThreadPool().threadFactory = partial(  # type: ignore[assignment]
            threading.Thread, daemon=True
        )
        start.started = True
        try:
            start_thread(work, "netsock-reactor")
        except RuntimeError as error:
            start.started = False
            raise RuntimeError(f"{reactor!r} could not be started: {error}") from error
    if not start.running.wait(_START_SECONDS) or start.failure is not None:
        reason = start.failure or f"not within {_START_SECONDS:.0f} s"
        raise RuntimeError(
            f"{reactor!r} could not be started: {reason}; install none before the first call, or "
            "run it in another thread"
        ) from start.failure


def _at_end() -> None:
    """
    Wake the daemon threads: the others have ended, and the functions that `atexit` knows run.

    The reactor goes on in its daemon thread: functions that `atexit` was given before
    this may still need it.
    """
    _waiting.end_others()
    if _start.link is not None:
        _start.link.let_go()


atexit.register(_at_end)


class Call(Generic[T]):
    """
    A function that runs in the reactor's thread while this thread waits.

    Its `wake`, from any thread, cancels it.
    """

    def __init__(
        self,
        function: Callable[[Reactor], Deferred[T]],
        *,
        discard: Callable[[T], object] | None = None,
        released: Callable[[], object] | None = None,
    ) -> None:
        """
        Prepare to call *function* with the reactor.

        Args:
            function: Returns a Deferred, which is cancelled if nobody waits any more.
            discard: Called, in any thread, with a result that came nevertheless.
            released: Called at least once, in any thread, when nothing of this goes on in the
                reactor any more.
        """
        self._function = function
        self._discard = discard
        self._released = released
        self._lock = new_lock()
        self._link: _Link | None = None
        self._answer: _Answer | None = None
        self._deferred: Deferred[Any] | None = None
        self.begun = False
        """From then on this sees to it that *released* is called."""
        self._abandoned = False
        self._woken = False
        self._outcome: _Box | None = None
        self._let_go = new_event()

    def result(
        self,
        seconds: float | None = None,
        timed_out: Callable[[], BaseException] = TimeoutError,
        reactor: object = None,
    ) -> T:
        """
        Run it, and return what it gives.

        Args:
            seconds: The time for it, or `None` for no limit; it is cancelled then.
            timed_out: Makes the error of a timeout.
            reactor: What the caller gave for a reactor: the one in use, or `None`.

        Raises:
            CancelledError: `wake` was called.
            RuntimeError: This is the reactor's thread, or no reactor can be run.
            SocketConnectionLostError: The reactor stopped.
        """
        try:
            box = self._run(seconds, reactor)
            self._release()
            if box.failure is None:
                value: T = box.value
                return value
        except crochet.TimeoutError:
            self._abandon()
            raise timed_out() from None
        except crochet.ReactorStopped:
            self._abandon()
            raise reactor_stopped() from None
        except BaseException:
            self._abandon()
            raise
        error = box.failure.value
        assert error is not None
        raise error.with_traceback(None) from error.__cause__

    def _run(self, seconds: float | None, reactor: object) -> _Box:
        check_thread()
        link = self._link = link_for(reactor)
        answer = self._answer = _Answer(link.reactor)
        self.begun = True
        try:
            link.submit(answer, self._begin)
            box: _Box = answer.wait(seconds)
        finally:
            link.forget(answer)
        return box

    def _begin(self) -> Deferred[_Box]:
        assert self._link is not None
        deferred: Deferred[Any] = maybeDeferred(self._function, self._link.reactor)
        self._deferred = deferred
        if self._abandoned or self._woken:
            deferred.cancel()
        return deferred.addBoth(self._finished)

    def _finished(self, result: object) -> _Box:
        box = _Box(result)
        # crochet holds waiting threads weakly, and would log the result of one that is gone.
        box.answer = self._answer
        with self._lock:
            self._outcome = box
            abandoned = self._abandoned
        if abandoned:
            self._dispose(box)
        return box

    def _dispose(self, box: _Box) -> None:
        """Do away with a result that nobody waits for."""
        if box.failure is None and self._discard is not None:
            self._discard(box.value)
        self._release()

    def _release(self) -> None:
        if self._released is not None:
            self._released()
            self._released = None
        self._let_go.set()

    def wake(self) -> None:
        """Cancel it, from any thread; `result` then fails with ``CancelledError``."""
        self._woken = True
        self._have_called(self._cancel)

    def _abandon(self) -> None:
        """Wait no more: cancel it, and dispose of what it still brings."""
        with self._lock:
            self._abandoned = True
            outcome = self._outcome
        if outcome is not None:
            self._dispose(outcome)
        elif self.begun:
            self._have_called(self._give_up)
            # The socket is this thread's again when this call is over.
            self._let_go.wait(_LET_GO_SECONDS)
        else:
            self._release()

    def _have_called(self, function: Callable[[], None]) -> None:
        if self._link is not None:
            self._link.reactor.callFromThread(function)

    def _give_up(self) -> None:
        if self._deferred is None:
            # It was cut short before the reactor got it: `_begin` would have come before this.
            self._release()
        self._cancel()

    def _cancel(self) -> None:
        if self._outcome is None and self._deferred is not None:
            self._deferred.cancel()


class _Box:
    """What a Deferred came to; for crochet never a failure, which it would log."""

    def __init__(self, result: Any) -> None:
        self.failure = result if isinstance(result, Failure) else None
        self.value = result
        self.answer: _Answer | None = None


def link_for(reactor: object) -> _Link:
    """
    Return the link to the reactor in use, which a caller may have named.

    Raises:
        ValueError: *reactor* is another one.
    """
    if reactor is not None and _start.link is None:
        setup(reactor=reactor)
    link = _current_link()
    if reactor is not None and reactor is not link.reactor:
        raise ValueError(f"reactor={reactor!r} must be the one in use, {link.reactor!r}")
    if link.stopped or not link.reactor.running:
        raise reactor_stopped()
    return link


def use(reactor: object) -> None:
    """
    Refuse a *reactor* that is not the one in use, or take it into use; `None` needs none.

    Raises:
        ValueError: *reactor* is another one.
    """
    if reactor is not None:
        check_thread()
        link_for(reactor)


def run(
    function: Callable[[Reactor], Deferred[T]],
    *,
    discard: Callable[[T], object] | None = None,
    reactor: object = None,
    seconds: float | None = None,
) -> T:
    """Call *function* with the reactor, in its thread, and return what it gives, in time."""
    return Call(function, discard=discard).result(seconds, reactor=reactor)


def in_reactor(function: Callable[[Reactor], object]) -> bool:
    """
    Have *function* called with the reactor, in its thread, and do not wait.

    Returns:
        Whether it will be; not if no reactor runs.
    """
    notice_fork()
    link = _start.link
    if link is None or link.stopped:
        return False
    link.reactor.callFromThread(function, link.reactor)
    return True


def _after_fork() -> None:
    """Start afresh in a forked child, where the reactor's thread is not."""
    global _start  # noqa: PLW0603 - one for the process
    stale = sys.modules.get("twisted.internet.reactor")
    chosen = _start.chosen
    _start = _Start()
    if isinstance(chosen, str):
        _start.chosen = chosen
    if stale is not None and getattr(stale, "running", False):
        _start.forked_from = stale
        threadable.ioThread = None
    _waiting.after_fork()


after_fork(_after_fork)
