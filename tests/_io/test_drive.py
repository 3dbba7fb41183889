"""Running one operation of the try layer until it is done."""

from __future__ import annotations

import socket

import pytest
from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock

from tests.support.clocks import the_reactor, turns, until
from twisted_netsock import SocketConnectionLostError, SocketReadTimeoutError
from twisted_netsock._io.drive import drive
from twisted_netsock._io.poller import WANT_READ, WANT_WRITE, poller_for


class Attempt:
    """Gives one outcome after the other; an exception is raised."""

    def __init__(self, *outcomes):
        self._outcomes = list(outcomes)
        self.count = 0

    def __call__(self):
        self.count += 1
        outcome = self._outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


@pytest.fixture
def pair():
    here, there = socket.socketpair()
    for sock in (here, there):
        sock.setblocking(False)
    with here, there:
        yield here, there


@pytest.fixture
def watch(pair):
    """The watch of the first of the pair."""
    watch = poller_for(the_reactor()).watch(pair[0].fileno())
    yield watch
    watch.close()


@pytest.fixture
def clock():
    """Time for the timeouts; none may be left."""
    clock = Clock()
    yield clock
    assert clock.getDelayedCalls() == []


def is_idle(watch):
    return (watch.receive, watch.send, watch.owner) == (None, None, None)


@pytest.mark.parametrize("result", [None, 0, b"", 7])
async def test_what_is_done_at_once_fires_at_once(clock, watch, result):
    results = []
    drive(clock, watch, Attempt(result), timeout=5.0).addCallback(results.append)
    assert results == [result]
    assert is_idle(watch)


async def test_what_fails_at_once_fails_at_once(clock, watch):
    running = drive(clock, watch, Attempt(ZeroDivisionError()), timeout=5.0)
    assert running.called
    with pytest.raises(ZeroDivisionError):
        await running
    assert is_idle(watch)


@pytest.mark.parametrize("first", [None, WANT_READ])
async def test_it_waits_until_the_descriptor_is_readable(clock, watch, pair, first):
    _, there = pair
    attempt = Attempt(*([WANT_READ] if first is None else []), WANT_READ, "done")
    running = drive(clock, watch, attempt, first=first)
    begun = attempt.count
    assert begun == (1 if first is None else 0)
    await turns(3)
    assert attempt.count == begun
    there.send(b"x")
    # Readable for as long as nobody reads, so that the second time comes as well.
    assert await running == "done"
    assert attempt.count == begun + 2
    assert is_idle(watch)


@pytest.mark.parametrize("first", [None, WANT_WRITE])
async def test_it_waits_until_the_descriptor_is_writable(clock, watch, pair, first):
    here, there = pair
    with pytest.raises(BlockingIOError):
        while True:
            here.send(bytes(65536))
    attempt = Attempt(*([WANT_WRITE] if first is None else []), "done")
    running = drive(clock, watch, attempt, first=first)
    begun = attempt.count
    await turns(3)
    assert attempt.count == begun
    with pytest.raises(BlockingIOError):
        while True:
            there.recv(65536)
    assert await running == "done"


async def test_it_may_want_another_direction_each_time(clock, watch, pair):
    attempt = Attempt(WANT_READ, WANT_WRITE, WANT_READ, "done")
    running = drive(clock, watch, attempt)
    await turns(3)
    assert attempt.count == 1
    pair[1].send(b"x")
    assert await running == "done"
    assert attempt.count == 4


async def test_only_the_wanted_direction_counts(clock, watch):
    attempt = Attempt(WANT_WRITE, WANT_READ)
    running = drive(clock, watch, attempt)
    await until(lambda: attempt.count == 2)
    # It stays writable, and that is not what is waited for.
    await turns(5)
    assert (watch.receive, watch.send) == (WANT_READ, None)
    running.cancel()
    with pytest.raises(CancelledError):
        await running


async def test_an_error_passes_through_as_it_is(clock, watch, pair):
    error = ZeroDivisionError("the attempt's own")
    running = drive(clock, watch, Attempt(WANT_READ, error), timeout=5.0)
    pair[1].send(b"x")
    with pytest.raises(ZeroDivisionError) as caught:
        await running
    assert caught.value is error
    assert is_idle(watch)


async def test_a_timeout_fails_with_the_error_that_was_asked_for(clock, watch, pair):
    attempt = Attempt(WANT_READ)
    running = drive(clock, watch, attempt, timeout=5.0, timed_out=SocketReadTimeoutError)
    clock.advance(4.9)
    assert not running.called
    clock.advance(0.2)
    with pytest.raises(SocketReadTimeoutError):
        await running
    assert is_idle(watch)
    pair[1].send(b"x")
    await turns(3)
    assert attempt.count == 1


async def test_the_timeout_is_one_for_all_attempts(clock, watch, pair):
    received = []

    def attempt():
        try:
            received.append(pair[0].recv(1))
        except BlockingIOError:
            pass
        return WANT_READ

    running = drive(clock, watch, attempt, timeout=5.0, timed_out=SocketReadTimeoutError)
    for count in (1, 2):
        clock.advance(2.0)
        pair[1].send(b"x")
        await until(lambda count=count: len(received) == count)
    assert not running.called
    clock.advance(1.1)
    with pytest.raises(SocketReadTimeoutError):
        await running


@pytest.mark.parametrize("left", [0.0, -1.0])
async def test_no_time_left_is_a_timeout_in_the_next_turn(clock, watch, left):
    running = drive(
        clock, watch, Attempt(WANT_READ), timeout=left, timed_out=SocketReadTimeoutError
    )
    assert not running.called
    clock.advance(0)
    with pytest.raises(SocketReadTimeoutError):
        await running


async def test_the_timer_ends_with_the_operation(clock, watch, pair):
    running = drive(clock, watch, Attempt(WANT_READ, "done"), timeout=5.0)
    assert len(clock.getDelayedCalls()) == 1
    pair[1].send(b"x")
    assert await running == "done"
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize("want", [WANT_READ, WANT_WRITE])
async def test_cancelling_leaves_nothing_and_keeps_the_descriptor(clock, watch, pair, want):
    attempt = Attempt(want)
    running = drive(clock, watch, attempt, timeout=5.0)
    running.cancel()
    with pytest.raises(CancelledError):
        await running
    assert is_idle(watch)
    pair[1].send(b"x")
    await turns(3)
    assert attempt.count == 1
    assert await drive(clock, watch, Attempt(WANT_READ, "again")) == "again"
    assert pair[0].recv(10) == b"x"


async def test_the_next_operation_may_begin_when_one_has_ended(clock, watch, pair):
    first = drive(clock, watch, Attempt(WANT_READ, "first"), timeout=5.0)
    second = first.addCallback(
        lambda result: drive(clock, watch, Attempt(WANT_READ, f"{result}, second"), timeout=5.0)
    )
    pair[1].send(b"x")
    assert await second == "first, second"
    assert is_idle(watch)


async def test_the_end_of_the_poller_is_what_it_fails_with(clock, watch):
    attempt = Attempt(WANT_READ)
    running = drive(clock, watch, attempt, timeout=5.0)
    poller_for(the_reactor()).lose_all()
    with pytest.raises(SocketConnectionLostError, match="shut down"):
        await running
    assert (attempt.count, is_idle(watch)) == (1, True)


async def test_a_descriptor_that_cannot_be_waited_for_fails_it(clock, pair):
    watch = poller_for(the_reactor()).watch(pair[0].fileno())
    pair[0].close()
    with pytest.raises(OSError, match="descriptor"):
        await drive(clock, watch, Attempt(WANT_READ), timeout=5.0)
    assert is_idle(watch)
    watch.close()
