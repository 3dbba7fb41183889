"""
What gevent replaces, as the standard library has it: threads, locks and sockets.

The reactor of threaded programs runs in a real thread, also where gevent has made threads
greenlets, before this was imported or after. What that thread shares with others must not
belong to the hub of either: a lock, a socket.
"""

from __future__ import annotations

import _thread
import select
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__all__ = [
    "NativeSocket",
    "are_greenlets",
    "native_poll",
    "native_select",
    "new_lock",
    "original",
    "poll_class",
    "start_thread",
]


def original(module: ModuleType, name: str) -> Any:
    """Return what *module* has as *name* where gevent is not; `None` for nothing."""
    monkey: Any = sys.modules.get("gevent.monkey")
    if monkey is None or not monkey.is_object_patched(module.__name__, name):
        return getattr(module, name, None)
    return monkey.get_original(module.__name__, name)


if TYPE_CHECKING:
    from select import poll as native_poll
    from socket import socket as NativeSocket  # noqa: N812 - it is a class
else:
    native_poll = original(select, "poll")
    NativeSocket = original(socket, "socket")


def are_greenlets() -> bool:
    """
    Return whether what starts as a thread now is a greenlet of gevent's.

    Raises:
        RuntimeError: Waiting would block what cannot be told apart.
    """
    eventlet: Any = sys.modules.get("eventlet.patcher")
    if eventlet is not None and (
        eventlet.is_monkey_patched("thread") or eventlet.is_monkey_patched("select")
    ):
        raise RuntimeError(
            "eventlet has replaced threads or select, and twisted_netsock.blocking does not work "
            "beside it: use real threads, or gevent"
        )
    replaced = original(_thread, "start_new_thread") is not _thread.start_new_thread
    if not replaced and original(select, "poll") is not select.poll:
        raise RuntimeError(
            "gevent has replaced select and not threads: have gevent.monkey.patch_all() "
            "replace both"
        )
    return replaced


def poll_class() -> type[select.poll]:
    """Return what polls, and lets other greenlets run meanwhile if this is one."""
    if not are_greenlets():
        return select.poll
    gevents: type[select.poll] = import_module("gevent.select").poll
    return gevents


@contextmanager
def native_select() -> Iterator[None]:
    """Have epoll(7) in `select` for what is imported within this context."""
    hidden = not hasattr(select, "epoll")
    if hidden:
        # What gevent cannot replace it takes away.
        select.epoll = original(select, "epoll")  # type: ignore[misc]
    try:
        yield
    finally:
        if hidden:
            del select.epoll


def new_lock() -> threading.RLock:
    """
    Return a reentrant lock of real threads.

    Greenlets of one thread must not switch while they hold it: to them it is no lock.
    """
    lock: threading.RLock = original(_thread, "RLock")()
    return lock


def start_thread(work: Callable[[], object], name: str) -> None:
    """
    Start a real daemon thread.

    Raises:
        RuntimeError: There is none to be had.
    """
    if are_greenlets():
        original(_thread, "start_new_thread")(work, ())
    else:
        threading.Thread(target=work, name=name, daemon=True).start()
