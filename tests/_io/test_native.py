"""What the standard library has where gevent has put something else, or taken it away."""

from __future__ import annotations

import _thread
import select
import sys
import threading
import types

import pytest

from tests.support.loopback import LONGEST
from twisted_netsock._io.native import (
    are_greenlets,
    native_select,
    new_lock,
    original,
    poll_class,
    start_thread,
)

pytestmark = pytest.mark.once


@pytest.fixture
def replaced(monkeypatch):
    """Replace a name, as gevent does; `None` takes it away."""
    saved = {}
    gevent = types.ModuleType("gevent.monkey")
    gevent.is_object_patched = lambda module, name: (module, name) in saved
    gevent.get_original = lambda module, name: saved[module, name]
    monkeypatch.setitem(sys.modules, "gevent.monkey", gevent)

    def replace(module, name, other):
        saved[module.__name__, name] = getattr(module, name)
        if other is None:
            monkeypatch.delattr(module, name)
        else:
            monkeypatch.setattr(module, name, other)

    return replace


def refuse(*_):
    raise AssertionError


def test_the_original_is_found_behind_what_replaced_it(replaced):
    poll = select.poll
    assert original(select, "poll") is poll
    replaced(select, "poll", refuse)
    assert original(select, "poll") is poll
    assert original(select, "nothing") is None


def test_epoll_is_back_for_imports_alone(replaced):
    epoll = select.epoll
    replaced(select, "epoll", None)
    with native_select():
        assert select.epoll is epoll
    assert not hasattr(select, "epoll")


def test_a_real_thread_and_lock_are_had_where_threads_are_greenlets(replaced):
    assert (are_greenlets(), poll_class()) == (False, select.poll)
    replaced(_thread, "start_new_thread", refuse)
    assert are_greenlets()
    ran = _thread.allocate_lock()
    ran.acquire()
    start_thread(ran.release, "name")
    assert ran.acquire(timeout=LONGEST)
    assert type(new_lock()) is type(threading.RLock())


def test_select_alone_is_refused(replaced):
    replaced(select, "poll", refuse)
    with pytest.raises(RuntimeError, match="replaced select and not threads"):
        poll_class()
