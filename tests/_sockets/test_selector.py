"""Waiting for many sockets: `SocketSelector`."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from tests.support.clocks import ClockedReactor, turns, until
from tests.support.streams import NO_TIME, pairs, raised, soon, tls_pair
from twisted_netsock import (
    Socket,
    SocketBusyError,
    SocketClosedError,
    SocketReadTimeoutError,
    SocketSelector,
    chibi,
)

# Fixtures.
assert pairs


class Calls:
    """What a selector has called, and what to do then."""

    def __init__(self) -> None:
        self.seen: list[tuple[Socket, Any]] = []
        self.agains: list[Any] = []

    def __call__(self, sock: Socket, error: Any, again: Any) -> None:
        self.seen.append((sock, None if error is None else type(error)))
        self.agains.append(again)


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
def selector() -> Iterator[SocketSelector]:
    made = SocketSelector()
    yield made
    made.close()


async def test_each_registration_is_called_once(selector, calls, pairs):
    ((one, other),) = pairs(1)
    selector.add(one, calls)
    assert len(selector) == 1
    await other.sendall(b"x")
    await until(lambda: calls.seen)
    assert len(selector) == 0
    await other.sendall(b"y")
    await turns()
    assert calls.seen == [(one, None)]


async def test_nothing_is_called_before_add_returns(selector, calls, pairs):
    ((one, other),) = pairs(1)
    await other.sendall(b"x")
    await turns()
    selector.add(one, calls)
    assert calls.seen == []
    await until(lambda: calls.seen)


async def test_what_is_added_twice_in_a_turn_is_refused_and_not_forgotten(selector, calls, pairs):
    ((one, other),) = pairs(1)
    await other.sendall(b"x")
    await turns()
    selector.add(one, calls)
    with pytest.raises(SocketBusyError):
        selector.add(one, calls)
    await until(lambda: calls.seen)
    await turns()
    assert calls.seen == [(one, None)]
    selector.add(one, calls)
    await until(lambda: len(calls.seen) == 2)


async def test_what_is_closed_before_its_turn_is_reported_as_closed(selector, calls, pairs):
    ((one, other),) = pairs(1)
    await other.sendall(b"x")
    await turns()
    selector.add(one, calls)
    await one.close()
    await until(lambda: calls.seen)
    assert calls.seen == [(one, SocketClosedError)]


async def test_again_waits_anew(selector, pairs):
    ((one, other),) = pairs(1)
    received = []

    async def on_read(sock: Socket, error: Any, again: Any) -> None:
        if error is None:
            received.append(await sock.recv(10))
            again()

    selector.add(one, on_read)
    for number in range(5):
        await other.sendall(b"%d" % number)
        await until(lambda number=number: len(received) == number + 1)
    assert received == [b"0", b"1", b"2", b"3", b"4"]
    assert len(selector) == 1


@pytest.mark.parametrize("whose", ["selector", "registration"])
async def test_timeouts_are_the_registration_s_own_or_the_selector_s(whose, calls, pairs):
    (one, _), (two, _) = pairs(2)
    short, long = timedelta(milliseconds=10), timedelta(hours=1)
    selector = SocketSelector(short if whose == "selector" else long)
    selector.add(one, calls, None if whose == "selector" else short)
    selector.add(two, calls, long)
    await until(lambda: calls.seen)
    assert calls.seen == [(one, SocketReadTimeoutError)]
    assert len(selector) == 1
    selector.close()


async def test_again_has_the_timeout_of_the_registration_or_another(pairs, calls):
    clock = ClockedReactor()
    ((one, _),) = pairs(1, reactor=clock)
    selector = SocketSelector(reactor=clock)
    selector.add(one, calls, timedelta(seconds=10))
    clock.advance(10)
    assert len(calls.seen) == 1
    calls.agains[-1]()
    clock.advance(9)
    assert len(calls.seen) == 1
    clock.advance(1)
    assert len(calls.seen) == 2
    calls.agains[-1](timedelta(seconds=30))
    clock.advance(29)
    assert len(calls.seen) == 2
    clock.advance(1)
    assert calls.seen == [(one, SocketReadTimeoutError)] * 3
    selector.close()


async def test_no_time_is_one_look_for_a_selector_too(selector, calls, pairs):
    (one, other), (two, _) = pairs(2)
    await other.sendall(b"x")
    await turns()
    for sock in (one, two):
        selector.add(sock, calls, NO_TIME)
    await until(lambda: len(calls.seen) == 2)
    assert dict(calls.seen) == {one: None, two: SocketReadTimeoutError}


async def test_a_thousand_sockets_wait_in_one_selector(calls, pairs):
    made = pairs(150)
    # More would need more descriptors than some systems give a process.
    locals_ = [chibi.open_socket_pair() for _ in range(850 if many_descriptors() else 50)]
    everybody = made + locals_
    selector = SocketSelector(timedelta(hours=1))
    for number, (one, _) in enumerate(everybody):
        own = timedelta(milliseconds=10) if number % 10 == 3 else None
        selector.add(one, calls, own)
    silent = {one for number, (one, _) in enumerate(everybody) if number % 10 == 3}
    for number, (_, other) in enumerate(everybody):
        if number % 10 == 7:
            await other.sendall(b"x")
    speaking = {one for number, (one, _) in enumerate(everybody) if number % 10 == 7}
    await until(lambda: len(calls.seen) == len(silent) + len(speaking))
    assert {sock for sock, error in calls.seen if error is None} == speaking
    assert {sock for sock, error in calls.seen if error is SocketReadTimeoutError} == silent
    assert len(selector) == len(everybody) - len(silent) - len(speaking)
    selector.close()
    assert len(selector) == 0
    for pair in locals_:
        for sock in pair:
            sock.abort()


def many_descriptors() -> bool:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 4096


async def test_decrypted_bytes_are_reported_without_the_kernel(authority, selector, calls):
    async with tls_pair(authority) as (one, other):
        await other.sendall(b"many bytes")
        assert await soon(one.recv(1)) == b"m"
        selector.add(one, calls)
        await until(lambda: calls.seen)
        assert calls.seen == [(one, None)]


async def test_a_callback_may_close_its_socket_and_others(selector, calls, pairs):
    (one, other), (two, _) = pairs(2)

    def on_read(sock: Socket, error: Any, again: Any) -> None:
        sock.close()
        two.close()

    selector.add(two, calls)
    selector.add(one, on_read)
    await other.sendall(b"x")
    await until(lambda: calls.seen)
    assert calls.seen == [(two, SocketClosedError)]
    assert one.closed


async def test_a_callback_may_close_the_selector(selector, calls, pairs):
    (one, other), (two, second) = pairs(2)
    selector.add(one, lambda *_: selector.close())
    selector.add(two, calls)
    await other.sendall(b"x")
    await until(lambda: len(selector) == 0)
    await second.sendall(b"y")
    await turns()
    assert calls.seen == []
    assert await soon(two.recv(10)) == b"y"


@pytest.mark.parametrize("kind", ["function", "coroutine function"])
async def test_what_a_callback_raises_touches_no_other(
    kind, selector, calls, pairs, logged_errors
):
    (one, other), (two, second) = pairs(2)

    def fails(*_: object) -> None:
        raise RuntimeError("a mistake")

    async def fails_later(*_: object) -> None:
        raise RuntimeError("a mistake")

    selector.add(one, fails if kind == "function" else fails_later)
    selector.add(two, calls)
    await other.sendall(b"x")
    await second.sendall(b"y")
    await until(lambda: calls.seen and logged_errors)
    assert [str(event["log_failure"].value) for event in logged_errors] == ["a mistake"]
    logged_errors.clear()
    assert await soon(one.recv(10)) == b"x"


async def test_a_peer_that_goes_is_reported_as_something_to_read(selector, calls, pairs):
    (one, other), (two, second) = pairs(2)
    selector.add(one, calls)
    selector.add(two, calls)
    other.close()
    second.abort()
    await until(lambda: len(calls.seen) == 2)
    assert dict(calls.seen) == {one: None, two: None}


async def test_what_a_selector_cannot_take_is_refused(selector, calls, pairs):
    (one, _), (two, _), (three, _) = pairs(3)
    with pytest.raises(TypeError, match="socket=7"):
        selector.add(7, calls)
    with pytest.raises(TypeError, match="on_read=7"):
        selector.add(one, 7)
    with pytest.raises(TypeError, match="timeout"):
        selector.add(one, calls, 5)
    with pytest.raises(ValueError, match="timeout"):
        SocketSelector(timedelta(seconds=-1))
    selector.add(one, calls)
    with pytest.raises(SocketBusyError):
        selector.add(one, calls)
    receiving = two.recv(1)
    with pytest.raises(SocketBusyError):
        selector.add(two, calls)
    receiving.cancel()
    await raised(receiving)
    three.close()
    with pytest.raises(SocketClosedError):
        selector.add(three, calls)
    assert len(selector) == 1
    selector.close()
    with pytest.raises(SocketClosedError, match="selector"):
        selector.add(two, calls)


async def test_again_does_nothing_once_the_selector_is_closed(selector, calls, pairs):
    ((one, other),) = pairs(1)
    selector.add(one, calls)
    await other.sendall(b"x")
    await until(lambda: calls.seen)
    selector.close()
    calls.agains[-1]()
    assert len(selector) == 0
    assert await soon(one.recv(10)) == b"x"


async def test_a_selector_says_what_it_waits_for(selector, calls, pairs):
    ((one, _),) = pairs(1)
    selector.add(one, calls)
    assert repr(selector) == "<SocketSelector of 1 sockets>"
    selector.close()
    selector.close()
    assert repr(selector) == "<SocketSelector closed>"
