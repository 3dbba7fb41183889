"""What a test leaves behind in the reactor and the process, and where that was made."""

from __future__ import annotations

import gc
import os
import socket as _socket
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final
from unittest.mock import patch
from weakref import WeakKeyDictionary

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater

import twisted

from .._io.describe import describe
from .._io.interfaces import Reactor, current_reactor
from ._run import current_coroutine, waiting_at

__all__ = ["leak_check", "watch"]

_LIBRARY: Final = sysconfig.get_path("stdlib")
_OTHERS: Final = (
    str(Path(__file__).parents[1]),
    str(Path(twisted.__file__).parent),
    "<frozen",
)


def _is_program(name: str) -> bool:
    """Return whether a file is the program's, and not a library's between it and the kernel."""
    library = name.startswith(_LIBRARY) and "-packages" not in name
    return not library and not name.startswith(_OTHERS)


def _place() -> str:
    """Return where the program makes what is being made."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        if _is_program(code.co_filename):
            if "_pytest" in code.co_filename or "pluggy" in code.co_filename:
                break
            return f", made at {code.co_filename}:{frame.f_lineno} in {code.co_name}"
        frame = frame.f_back
    for name, number, function in waiting_at(current_coroutine()):
        if _is_program(name):
            return f", made while {function} waited at {name}:{number}"
    return ""


class _Watch:
    """What there was before, and where the program has made what came since."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._descriptors = _descriptors()
        self._readers = set(reactor.getReaders())
        self._writers = set(reactor.getWriters())
        self._calls = set(_active(reactor))
        self.sockets: WeakKeyDictionary[object, str] = WeakKeyDictionary()
        self._made: WeakKeyDictionary[IDelayedCall, str] = WeakKeyDictionary()
        self._call_later = reactor.callLater

    def call_later(self, *args: Any, **kwargs: Any) -> IDelayedCall:
        """Do as the reactor's `callLater`."""
        call = self._call_later(*args, **kwargs)
        self._made[call] = _place()
        return call

    def left(self) -> str:
        """Return what was not there before, a line for each; an empty text for nothing."""
        gc.collect()
        readers, writers = self._reactor.getReaders(), self._reactor.getWriters()
        # The reactor's own wakers come with its first run; both ends of a pipe have one name.
        wakers = [each for each in readers if "Waker" in type(each).__name__]
        descriptors = _descriptors()
        own = {descriptors.get(each.fileno()) for each in wakers}
        numbers = {_number(sock): place for sock, place in self.sockets.items()}
        lines = [
            describe(fd) + numbers.get(fd, "")
            for fd, what in descriptors.items()
            if self._descriptors.get(fd) != what and what not in own and _is_leak(what)
        ]
        own_readers = self._readers.union(wakers)
        lines += [f"reader {each}" for each in readers if each not in own_readers]
        lines += [f"writer {each}" for each in writers if each not in self._writers]
        calls = [call for call in _active(self._reactor) if call not in self._calls]
        lines += [f"delayed call {call}{self._made.get(call, '')}" for call in calls]
        return "\n  ".join(["the test left behind", *lines]) if lines else ""


_watches: Final[list[_Watch]] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.__new__" and _watches:
        place = _place()
        for each in _watches:
            each.sockets[arguments[0]] = place


_audited: Final[set[object]] = set()


@contextmanager
def watch(reactor: Reactor) -> Iterator[_Watch]:
    """Note what is made within this context, and where."""
    if not _audited:
        # It cannot be taken away again.
        _audited.add(_audit)
        sys.addaudithook(_audit)
    made = _Watch(reactor)
    _watches.append(made)
    try:
        with patch.object(reactor, "callLater", made.call_later):
            yield made
    finally:
        _watches.remove(made)


def leak_check(*, reactor: object = None) -> Callable[[], Deferred[None]]:
    """
    Return a function that fails a test that has left anything behind since.

    For trial, whose tests begin with ``self.addCleanup(leak_check())`` in ``setUp``; for
    pytest there is `clean_reactor`.

    Args:
        reactor: The installed one if `None`.

    Returns:
        The function. Its Deferred fires in the next reactor iteration, and fails with an
        `AssertionError` that names each socket, file, delayed call, reader and writer, and
        where the program has made it.
    """
    there = current_reactor(reactor)
    context = watch(there)
    made = context.__enter__()

    def check(_: object) -> None:
        context.__exit__(None, None, None)
        text = made.left()
        if text:
            raise AssertionError(text)

    return lambda: deferLater(there, 0, lambda: None).addBoth(check)


def _number(sock: Any) -> int:
    number: int = _socket.socket.fileno(sock) if isinstance(sock, _socket.socket) else -1
    return number


def _descriptors() -> dict[int, str]:
    """Return the open descriptors of the process and what they are, where /proc has them."""
    found = {}
    try:
        numbers = os.listdir("/proc/self/fd")
    except FileNotFoundError:  # pragma: no cover: Linux has it
        return {}
    for number in numbers:
        try:
            found[int(number)] = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            # The one that listed the directory.
            continue
    return found


def _is_leak(what: str) -> bool:
    # The reactor, its poller and their wake-up descriptors live as long as the process.
    return not what.startswith("anon_inode:[event") and "/dev/" not in what


def _active(reactor: Reactor) -> list[IDelayedCall]:
    """Return the delayed calls of *reactor* but for the time limit of trial's test."""
    return [call for call in reactor.getDelayedCalls() if call.active() and not _is_trials(call)]


def _is_trials(call: IDelayedCall) -> bool:
    home: object = getattr(getattr(call, "func", None), "__module__", None)
    return isinstance(home, str) and home.startswith("twisted.trial")
