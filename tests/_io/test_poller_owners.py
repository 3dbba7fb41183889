"""The poller: owners apart from each other, numbers used again, and the end."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack

import pytest

from tests.support.clocks import the_reactor, turns, until
from tests.support.loopback import KINDS, Owner, in_reactor, note_calls, poller_of, watched
from twisted_netsock import SocketConnectionLostError
from twisted_netsock._io.poller import EpollPoller


@pytest.fixture(params=KINDS)
def poller(request, monkeypatch):
    with poller_of(request.param, monkeypatch) as poller:
        yield poller


@pytest.fixture
def calls(monkeypatch):
    """The calls of the reactor to pollers, one by one."""
    return note_calls(monkeypatch)


# One touches no other


async def test_an_error_of_one_owner_is_logged_and_touches_no_other(poller, logged_errors):
    def fail(owner):
        owner.watch.stop_receive()
        raise ZeroDivisionError("the owner's own mistake")

    with ExitStack() as stack:
        pairs = [stack.enter_context(watched(poller, act=act)) for act in (fail, len, fail)]
        pairs = [stack.enter_context(watched(poller, act=fail)) for _ in range(2)]
        well, well_peer = stack.enter_context(watched(poller))
        pairs.append((well, well_peer))
        for owner, peer in pairs:
            owner.watch.want_receive()
            peer.send(b"x")
        await until(lambda: len(well.heard) >= 3 and all(owner.heard for owner, _ in pairs))
        assert [owner.heard for owner, _ in pairs[:2]] == [["readable"], ["readable"]]
    kinds = [event["log_failure"].type for event in logged_errors]
    assert kinds == [ZeroDivisionError] * 2
    logged_errors.clear()


async def test_an_owner_that_fails_goes_on_hearing(poller, logged_errors):
    def fail(owner):
        raise ZeroDivisionError

    with watched(poller, act=fail) as (owner, peer):
        owner.watch.want_receive()
        peer.send(b"x")
        await until(lambda: len(owner.heard) >= 3)
    assert len(logged_errors) == len(owner.heard)
    logged_errors.clear()


async def test_an_owner_may_close_any_watch_while_it_is_called(poller):
    """Whoever is told first closes the other, which then hears nothing."""
    with watched(poller) as (first, first_peer), watched(poller) as (second, second_peer):
        first.act = lambda _: (first.watch.stop_receive(), second.watch.close())
        second.act = lambda _: (second.watch.stop_receive(), first.watch.close())
        first_peer.send(b"x")
        second_peer.send(b"x")
        first.watch.want_receive()
        second.watch.want_receive()
        await until(lambda: first.heard or second.heard)
        await turns(5)
        assert sorted([first.heard, second.heard]) == [[], ["readable"]]


@pytest.mark.parametrize("poller", [EpollPoller], indirect=True)
async def test_a_descriptor_that_cannot_be_waited_for_is_refused_at_once(poller):
    with watched(poller) as (owner, peer):
        owner.watch.want_receive()
        gone, other = socket.socketpair()
        bad = poller.watch(gone.fileno())
        gone.close()
        other.close()
        with pytest.raises(OSError, match="descriptor"):
            bad.want_receive()
        bad.close()
        peer.send(b"x")
        await until(lambda: owner.heard)


# The number of a descriptor is used again


async def test_a_closed_watch_hears_nothing_of_the_next_descriptor_of_its_number(poller):
    with watched(poller) as (old, _), watched(poller) as (unused, peer):
        old.watch.want_receive()
        old.watch.close()
        number = old.sock.fileno()
        os.dup2(unused.sock.fileno(), number)
        new = Owner(poller.watch(number), lambda owner: owner.watch.stop_receive())
        new.watch.want_receive()
        peer.send(b"x")
        await until(lambda: new.heard)
        new.watch.close()
        assert (old.heard, new.heard) == ([], ["readable"])


async def test_closing_twice_leaves_the_next_watch_of_the_number_alone(poller):
    with watched(poller) as (old, _), watched(poller) as (unused, peer):
        old.watch.want_receive()
        old.watch.close()
        os.dup2(unused.sock.fileno(), old.sock.fileno())
        new = Owner(poller.watch(old.sock.fileno()), lambda owner: owner.watch.stop_receive())
        new.watch.want_receive()
        old.watch.close()
        peer.send(b"x")
        await until(lambda: new.heard)
        new.watch.close()


async def test_a_closed_watch_hears_nothing_though_a_copy_of_the_descriptor_lives(poller, calls):
    with watched(poller) as (owner, peer):
        owner.watch.want_receive()
        owner.watch.close()
        with owner.sock.dup():
            owner.sock.close()
            peer.send(b"x")
            await turns(10)
        assert (owner.heard, calls) == ([], [])


# The end


async def test_what_remove_all_dropped_is_reported_at_the_next_registration(poller):
    """As the clean-up of trial does it, which tells nobody."""
    with watched(poller) as (old, _), watched(poller) as (new, peer):
        old.watch.want_receive()
        old.watch.keep()
        the_reactor().removeAll()
        await turns(2)
        assert old.heard == []
        new.watch.want_receive()
        assert [type(reason) for reason in old.heard] == [SocketConnectionLostError]
        assert not old.watch.receive
        peer.send(b"x")
        await until(lambda: new.heard)
        assert new.heard[0] == "readable"
        assert len(old.heard) == 1


async def test_nobody_waits_for_ever_after_remove_all_if_another_one_goes_on(poller):
    """Each hears of its loss, or of what it waits for."""
    with ExitStack() as stack:
        pairs = [stack.enter_context(watched(poller)) for _ in range(3)]
        (renewed, _), (old, old_peer), (new, _) = pairs
        renewed.watch.want_receive()
        old.watch.want_receive()
        the_reactor().removeAll()
        renewed.watch.want_receive()
        new.watch.want_receive()
        old_peer.send(b"x")
        await turns(20)
        assert old.heard


async def test_who_waits_anew_in_a_report_hears_more_though_all_was_removed_in_it(poller):
    def remove_all(owner):
        if len(owner.heard) == 1:
            the_reactor().removeAll()
            owner.watch.want_receive()

    with watched(poller, act=remove_all) as (owner, peer):
        owner.watch.want_receive()
        peer.send(b"x")
        await until(lambda: len(owner.heard) > 1)
        assert set(owner.heard) == {"readable"}


async def test_an_owner_may_wait_anew_when_it_hears_of_the_loss(poller):
    with watched(poller) as (old, old_peer), watched(poller) as (new, new_peer):

        def wait_anew(owner):
            if owner.heard[-1] != "readable":
                owner.watch.owner = owner
                owner.watch.want_receive()

        old.act = wait_anew
        old.watch.want_receive()
        the_reactor().removeAll()
        new.watch.want_receive()
        old_peer.send(b"x")
        new_peer.send(b"x")
        await until(lambda: new.heard and len(old.heard) > 1)
        assert old.heard[1] == "readable"


def whoever_may_hear(poller, stack):
    """Return owners: one that waits, one that is kept, one that is neither, one that left."""
    owners = [stack.enter_context(watched(poller))[0] for _ in range(4)]
    waiting, kept, idle, closed = owners
    waiting.watch.want_receive()
    kept.watch.keep()
    closed.watch.want_send()
    closed.watch.keep()
    closed.watch.close()
    assert idle.heard == []
    return owners


async def test_the_end_is_reported_once_to_who_waits_and_who_is_kept(poller):
    with ExitStack() as stack:
        waiting, kept, idle, closed = whoever_may_hear(poller, stack)
        poller.lose_all()
        poller.lose_all()
        for owner in (waiting, kept):
            assert [type(reason) for reason in owner.heard] == [SocketConnectionLostError]
        assert (idle.heard, closed.heard) == ([], [])
        assert in_reactor() == set()


async def test_an_error_in_hearing_of_the_end_touches_no_other(poller, logged_errors):
    def fail(owner):
        raise ZeroDivisionError

    with ExitStack() as stack:
        owners = [stack.enter_context(watched(poller, act=fail))[0] for _ in range(3)]
        for owner in owners:
            owner.watch.want_receive()
        poller.lose_all()
        assert [len(owner.heard) for owner in owners] == [1, 1, 1]
    assert len(logged_errors) == 3
    logged_errors.clear()


async def test_disconnecting_all_tells_who_waits(poller):
    with watched(poller) as (owner, _):
        owner.watch.want_receive()
        the_reactor().disconnectAll()
        assert [type(reason) for reason in owner.heard] == [SocketConnectionLostError]
