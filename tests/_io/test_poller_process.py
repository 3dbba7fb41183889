"""The poller and its reactor: which belongs to which, shutdown, and forked children."""

from __future__ import annotations

import gc
import select
import weakref

import pytest
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactor, MemoryReactorClock

from tests.support.clocks import the_reactor
from tests.support.loopback import run_script
from twisted_netsock._io.poller import EpollPoller, ReactorPoller, poller_for

# Whether the process of the test has epoll.
KINDS = pytest.mark.parametrize("kind", ["EpollPoller", "ReactorPoller"])
_WITHOUT_EPOLL = {"EpollPoller": "", "ReactorPoller": "import select; del select.epoll\n"}
_OWNERS = """
import socket
from twisted.internet.task import deferLater
from twisted_netsock import SocketConnectionLostError, SocketError
from twisted_netsock._io.poller import poller_for

class Owner:
    def __init__(self, name, sock):
        self.watch = poller_for(reactor).watch(sock.fileno())
        self.watch.owner = self
        self.name = name
        self.heard = []

    def on_receive_ready(self):
        self.watch.stop_receive()
        self.heard.append(f"{self.name}: readable")

    def on_fork(self):
        self.heard.append(f"{self.name}: forked")

    def on_poller_lost(self, reason):
        self.heard.append(f"{self.name}: {reason}")
        assert isinstance(reason, SocketError)
        self.watch.close()

here, there = socket.socketpair()
other, another = socket.socketpair()
waiting = Owner("waiting", here)
waiting.watch.want_receive()
idle = Owner("idle", other)
"""


@pytest.fixture
def select_reactor():
    """Make reactors beside the installed one, and close what they open for themselves."""
    wakers = []

    def make():
        reactor = SelectReactor()
        wakers.extend(reactor.getReaders())
        return reactor

    yield make
    for waker in wakers:
        waker.connectionLost(None)


def test_a_reactor_has_one_poller(select_reactor):
    one, other = select_reactor(), select_reactor()
    assert poller_for(one) is poller_for(one)
    assert poller_for(one) is not poller_for(other)


@pytest.mark.parametrize("kind", [EpollPoller, ReactorPoller])
def test_the_kind_depends_on_whether_the_system_has_epoll(select_reactor, monkeypatch, kind):
    if kind is ReactorPoller:
        monkeypatch.delattr(select, "epoll")
    assert type(poller_for(select_reactor())) is kind


@pytest.mark.parametrize("make", [Clock, MemoryReactor, MemoryReactorClock])
def test_a_reactor_that_cannot_wait_is_refused_and_a_way_to_test_named(make):
    with pytest.raises(TypeError, match=r"(?s)reactor=.*twisted_netsock\.testing"):
        poller_for(make())


def test_a_reactor_that_is_dropped_frees_its_poller(select_reactor):
    reactor = select_reactor()
    poller = weakref.ref(poller_for(reactor))
    gone = weakref.ref(reactor)
    del reactor
    gc.collect()
    assert (gone(), poller()) == (None, None)


def test_the_poller_lives_as_long_as_its_reactor():
    poller = weakref.ref(poller_for(the_reactor()))
    gc.collect()
    assert poller() is poller_for(the_reactor())


@KINDS
def test_shutdown_tells_who_waits_and_who_is_kept(kind):
    lines = run_script(
        _WITHOUT_EPOLL[kind]
        + _OWNERS
        + """
print(type(poller_for(reactor)).__name__)
kept = Owner("kept", there)
kept.watch.keep()

async def main():
    pass

run(main)
for owner in (waiting, kept, idle):
    print(len(owner.heard), *owner.heard)
for sock in (here, there, other, another):
    sock.close()
    """
    )
    assert lines[0] == kind
    assert lines[1].startswith("1 waiting: ")
    assert lines[2].startswith("1 kept: ")
    assert lines[3] == "0"


@KINDS
def test_a_forked_child_cannot_use_what_its_parent_opened_and_disturbs_nothing(kind):
    lines = run_script(
        _WITHOUT_EPOLL[kind]
        + _OWNERS
        + """
def seen_by(call):
    try:
        return f"{call()}"
    except SocketError as error:
        return str(error)

async def main():
    poller = poller_for(reactor)
    # In the reactor for real, before the fork.
    await deferLater(reactor, 0)
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            lines = [
                *waiting.heard,
                seen_by(idle.watch.want_receive),
                seen_by(waiting.watch.want_send),
                seen_by(lambda: poller.watch(there.fileno())),
                str(poller_for(reactor) is poller),
            ]
            idle.watch.close()
            os.write(write_end, "\\n".join(lines).encode())
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    print(os.read(read_end, 65536).decode())
    print(waiting.heard)
    idle.watch.want_receive()
    there.send(b"x")
    for _ in range(200):
        if waiting.heard:
            break
        await deferLater(reactor, 0.01)
    print(waiting.heard)
    idle.watch.close()
    waiting.watch.close()

run(main)
for sock in (here, there, other, another):
    sock.close()
    """
    )
    assert len(lines) == 7, lines
    assert lines[0].startswith("waiting: ")
    assert all("forked" in line for line in lines[:4]), lines
    assert lines[4:] == ["False", "[]", "['waiting: readable']"]
