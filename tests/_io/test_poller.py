"""The poller: what it reports, to whom, and what nobody waits for."""

from __future__ import annotations

import gc
import os
import socket
import weakref
from contextlib import ExitStack

import pytest

from tests.support.clocks import turns, until
from tests.support.loopback import KINDS, Owner, in_reactor, note_calls, poller_of, watched
from twisted_netsock._io.poller import EpollPoller


@pytest.fixture(params=KINDS)
def poller(request, monkeypatch):
    with poller_of(request.param, monkeypatch) as poller:
        yield poller


@pytest.fixture
def calls(monkeypatch):
    """The calls of the reactor to pollers, one by one."""
    return note_calls(monkeypatch)


def fill(sock):
    """Send until the kernel takes no more, so that *sock* is not writable."""
    with pytest.raises(BlockingIOError):
        while True:
            sock.send(bytes(65536))


# What is reported


async def test_readable_is_reported_for_as_long_as_it_is_so(poller):
    with watched(poller) as (owner, peer):
        owner.watch.want_receive()
        await turns(3)
        assert owner.heard == []
        peer.send(b"x")
        await until(lambda: len(owner.heard) >= 3)
        assert set(owner.heard) == {"readable"}
        owner.sock.recv(10)
        owner.heard.clear()
        await turns(5)
        assert owner.heard == []


async def test_writable_is_reported_for_as_long_as_it_is_so(poller):
    with watched(poller) as (owner, peer):
        fill(owner.sock)
        owner.watch.want_send()
        await turns(3)
        assert owner.heard == []
        while True:
            try:
                peer.recv(65536)
            except BlockingIOError:
                break
        await until(lambda: len(owner.heard) >= 3)
        assert set(owner.heard) == {"writable"}


async def test_both_directions_are_reported_to_one_owner(poller):
    with watched(poller) as (owner, peer):
        owner.watch.want_receive()
        owner.watch.want_send()
        peer.send(b"x")
        await until(lambda: len(owner.heard) >= 4)
        assert set(owner.heard) == {"readable", "writable"}


@pytest.mark.parametrize("direction", ["receive", "send"])
async def test_a_direction_that_is_given_up_is_not_reported(poller, direction):
    with watched(poller) as (owner, peer):
        owner.watch.want_receive()
        owner.watch.want_send()
        getattr(owner.watch, f"stop_{direction}")()
        peer.send(b"x")
        await until(lambda: len(owner.heard) >= 3)
        assert set(owner.heard) == {"readable" if direction == "send" else "writable"}


async def test_a_stream_that_has_ended_wakes_nobody(poller, calls):
    with watched(poller) as (owner, peer):
        owner.watch.want_receive()
        peer.close()
        await until(lambda: owner.heard)
        owner.watch.end_receive()
        await turns(3)
        owner.heard.clear()
        calls.clear()
        await turns(5)
        assert owner.heard == []
        assert calls == []


async def test_what_is_to_be_sent_is_reported_after_the_end_of_reading(poller):
    with watched(poller) as (owner, _):
        owner.watch.want_receive()
        owner.watch.want_send()
        owner.watch.end_receive()
        await until(lambda: len(owner.heard) >= 3)
        assert set(owner.heard) == {"writable"}


async def test_the_end_of_the_stream_counts_as_readable(poller):
    with watched(poller, act=lambda owner: owner.watch.stop_receive()) as (owner, peer):
        owner.watch.want_receive()
        peer.close()
        await until(lambda: owner.heard)
        assert owner.heard == ["readable"]


async def test_a_hang_up_counts_as_writable(poller):
    with watched(poller, act=lambda owner: owner.watch.stop_send()) as (owner, peer):
        fill(owner.sock)
        owner.watch.want_send()
        peer.close()
        await until(lambda: owner.heard)
        assert owner.heard == ["writable"]


async def test_a_refused_connection_counts_as_writable(poller):
    with socket.socket() as closed, socket.socket() as here:
        closed.bind(("127.0.0.1", 0))
        here.setblocking(False)
        with pytest.raises(BlockingIOError):
            here.connect(closed.getsockname())
        owner = Owner(poller.watch(here.fileno()), lambda owner: owner.watch.stop_send())
        owner.watch.want_send()
        await until(lambda: owner.heard)
        owner.watch.close()
        assert owner.heard == ["writable"]


@pytest.mark.parametrize("end", ["here", "there"])
async def test_a_watch_can_be_waited_on_again(poller, end):
    with watched(poller, act=lambda owner: owner.watch.stop_receive()) as (owner, peer):
        for count in range(1, 4):
            owner.watch.want_receive()
            peer.send(b"x")
            await until(lambda count=count: owner.heard == ["readable"] * count)
            if end == "here":
                owner.sock.recv(10)
            await turns(3)
        assert owner.heard == ["readable"] * 3


# What nobody waits for


@pytest.mark.parametrize("event", ["data", "end of the stream", "hang-up", "room to write"])
async def test_what_nobody_waits_for_is_reported_once_at_the_most(poller, calls, event):
    with watched(poller) as (owner, peer):
        if event == "room to write":
            owner.watch.want_send()
            owner.watch.stop_send()
        else:
            owner.watch.want_receive()
            owner.watch.stop_receive()
        if event == "data":
            peer.send(b"x")
        elif event == "end of the stream":
            peer.shutdown(socket.SHUT_WR)
        elif event == "hang-up":
            peer.close()
        await turns(20)
        assert owner.heard == []
        assert len(calls) <= 1
        assert in_reactor() == set()


async def test_a_hang_up_wakes_nobody_who_waits_for_nothing(poller, calls):
    """Also after another direction had been waited for, and was served."""
    with watched(poller, act=lambda owner: owner.watch.stop_send()) as (owner, peer):
        owner.watch.want_send()
        await until(lambda: owner.heard)
        peer.close()
        await turns(20)
        assert owner.heard == ["writable"]
        assert len(calls) <= 2


async def test_room_to_write_wakes_nobody_who_waits_to_read(poller, calls):
    with watched(poller) as (owner, peer):
        owner.watch.want_receive()
        owner.watch.want_send()
        owner.watch.stop_send()
        await turns(20)
        assert owner.heard == []
        assert len(calls) <= 1
        peer.send(b"x")
        await until(lambda: owner.heard)
        assert owner.heard[0] == "readable"


async def test_an_owner_that_waits_no_more_can_leave_its_watch_and_be_forgotten(poller):
    here, there = socket.socketpair()
    with here, there:
        watch = poller.watch(here.fileno())
        owner = weakref.ref(Owner(watch))
        watch.want_receive()
        gc.collect()
        assert owner() is not None
        watch.stop_receive()
        watch.owner = None
        gc.collect()
        assert owner() is None
        there.send(b"x")
        await turns(5)
        watch.close()


async def test_the_reactor_holds_nothing_while_nothing_is_waited_for(poller):
    assert in_reactor() == set()
    with watched(poller) as (first, _), watched(poller) as (second, _):
        assert in_reactor() == set()
        first.watch.want_receive()
        second.watch.want_receive()
        second.watch.want_send()
        assert in_reactor()
        first.watch.close()
        assert in_reactor()
        second.watch.close()
        assert in_reactor() == set()


async def test_what_the_reactor_holds_names_the_descriptors(poller):
    with watched(poller) as (first, _), watched(poller) as (second, _):
        first.watch.want_receive()
        second.watch.want_receive()
        shown = " ".join(repr(each) for each in in_reactor())
        assert "twisted_netsock" in shown
        for owner in (first, second):
            assert str(owner.watch.fd) in shown


# Many at a time


@pytest.mark.parametrize("poller", [EpollPoller], indirect=True)
async def test_each_of_many_is_reported_in_turn_at_most_128_at_a_time(poller, monkeypatch):
    """The timers of `turn` get theirs in between."""
    heard = []
    reported_at_once = []
    do_read = EpollPoller.doRead

    def noting(self):
        before = len(heard)
        do_read(self)
        reported_at_once.append(len(heard) - before)

    monkeypatch.setattr(EpollPoller, "doRead", noting)
    with ExitStack() as stack:
        here, there = socket.socketpair()
        stack.enter_context(here)
        stack.enter_context(there)
        there.send(b"always readable")
        for _ in range(300):
            number = os.dup(here.fileno())
            stack.callback(os.close, number)
            owner = Owner(poller.watch(number), lambda owner: heard.append(owner.watch.fd))
            stack.callback(owner.watch.close)
            owner.watch.want_receive()
        await turns(10)
    assert max(reported_at_once) == 128
    assert len(set(heard)) == 300
