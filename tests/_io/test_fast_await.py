"""Who awaits an operation goes on as with any Deferred, on whichever way."""

from __future__ import annotations

import contextvars
import gc
import socket
import types
import weakref
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from twisted.internet.defer import (
    AlreadyCalledError,
    CancelledError,
    Deferred,
    inlineCallbacks,
    succeed,
)
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from tests.support.clocks import the_reactor, turns
from tests.support.streams import failure_of
from twisted_netsock import Socket, SocketClosedError
from twisted_netsock._io import fast_await


@pytest.fixture(params=[True, False], ids=["shorter", "Twisted's"], autouse=True)
def way(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Coroutines that alone await an operation are resumed on a shorter way, if there is one."""
    assert fast_await._RESUME is not None
    if not request.param:
        monkeypatch.setattr(fast_await, "_RESUME", None)


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Socket, Callable[[bytes], object]]]:
    """Give a socket, and what has it receive something."""
    peer, own = socket.socketpair()
    with peer:
        async with Socket.from_socket(own) as sock:
            yield sock, peer.send


def later(result: str) -> Deferred[str]:
    return deferLater(the_reactor(), 0.001, lambda: result)


class TestAwaiting:
    @pytest.mark.parametrize("callbacks", [0, 1])
    async def test_who_awaits_gets_the_result_and_who_comes_later_what_it_left(
        self, callbacks: int
    ) -> None:
        peer, own = socket.socketpair()
        got: list[object] = []

        async def receive(receiving: Deferred[bytes]) -> None:
            got.append(await receiving)

        with peer:
            async with Socket.from_socket(own) as sock:
                receiving = sock.recv(10)
                done = Deferred.fromCoroutine(receive(receiving))
                for _ in range(callbacks):
                    receiving.addCallback(got.append)
                peer.send(b"data")
                await done
                receiving.addCallback(got.append)
                await turns()
                assert got == [b"data"] + [None] * (callbacks + 1)
                receiving.cancel()
                assert receiving.called

    @pytest.mark.parametrize("first", ["coroutine", "chain"])
    async def test_another_deferred_that_waits_for_it_goes_on_too(self, first: str) -> None:
        """Twisted chains a Deferred that a callback returns without asking it."""
        peer, own = socket.socketpair()
        got: list[object] = []

        async def receive(receiving: Deferred[bytes]) -> None:
            got.append(await receiving)

        def chain(receiving: Deferred[bytes]) -> Deferred[Any]:
            outer: Deferred[Any] = Deferred()
            outer.addCallback(lambda _: receiving)
            outer.callback(None)
            return outer.addCallback(got.append)

        with peer:
            async with Socket.from_socket(own) as sock:
                receiving = sock.recv(10)
                if first == "chain":
                    chained = chain(receiving)
                done = Deferred.fromCoroutine(receive(receiving))
                if first == "coroutine":
                    chained = chain(receiving)
                peer.send(b"data")
                await done
                await chained
                assert got == [b"data", None]

    async def test_who_awaits_hears_of_the_error(self) -> None:
        peer, own = socket.socketpair()
        with peer:
            sock = Socket.from_socket(own)
            receiving = sock.recv(10)
            done = Deferred.fromCoroutine(failure_of_awaited(receiving))
            sock.close()
            assert isinstance(await done, SocketClosedError)

    async def test_who_awaits_hears_of_the_error_before_a_deferred_that_was_chained_later(
        self,
    ) -> None:
        peer, own = socket.socketpair()
        got: list[object] = []
        with peer:
            sock = Socket.from_socket(own)
            receiving = sock.recv(10)
            done = Deferred.fromCoroutine(failure_of_awaited(receiving))
            outer: Deferred[Any] = succeed(None)
            outer.addCallback(lambda _: receiving).addBoth(got.append)
            sock.close()
            assert isinstance(await done, SocketClosedError)
            assert got == [None]

    async def test_a_wait_that_is_paused_goes_on_when_it_is_no_more(self) -> None:
        peer, own = socket.socketpair()
        with peer:
            async with Socket.from_socket(own) as sock:
                receiving = sock.recv(10)
                done = Deferred.fromCoroutine(awaited(receiving))
                receiving.pause()
                peer.send(b"data")
                await turns()
                assert not done.called
                receiving.unpause()
                assert await done == b"data"


class TestCoroutines:
    async def test_it_goes_on_through_one_wait_after_the_other(self) -> None:
        async with pair() as (sock, send):

            async def dialogue() -> list[object]:
                got: list[object] = [await sock.recv(1)]
                got.append(await later("late"))
                got.append(await sock.recv(1))
                got.append(await succeed("at once"))
                got.append(await sock.sendall(b"out"))
                got.append(await receive_one())
                return got

            async def receive_one() -> bytes:
                return await sock.recv(1)

            done = Deferred.fromCoroutine(dialogue())
            for piece in (b"a", b"b", b"c"):
                await turns(2)
                assert not done.called
                send(piece)
            assert await done == [b"a", "late", b"b", "at once", None, b"c"]

    async def test_what_it_raises_is_the_failure_of_its_deferred(self) -> None:
        async with pair() as (sock, send):

            async def fail() -> None:
                await sock.recv(1)
                raise ZeroDivisionError("its own mistake")

            done = Deferred.fromCoroutine(fail())
            await turns(1)
            send(b"x")
            await turns()
            assert failure_of(done) is ZeroDivisionError

    async def test_one_whose_end_somebody_else_told_is_a_failure_of_what_it_awaited(self) -> None:
        async with pair() as (sock, send):
            receiving = sock.recv(1)
            done = Deferred.fromCoroutine(awaited(receiving))
            done.callback(b"not its own")
            send(b"x")
            await turns()
            assert failure_of(receiving) is AlreadyCalledError
            receiving.addCallback(lambda _: "and goes on")
            assert await receiving == "and goes on"

    @pytest.mark.parametrize("before", [0, 1, 2])
    async def test_to_cancel_it_cancels_what_it_awaits(self, before: int) -> None:
        async with pair() as (sock, send):
            got: list[bytes] = []

            async def receive() -> None:
                while True:
                    got.append(await sock.recv(1))

            done = Deferred.fromCoroutine(receive())
            for _ in range(before):
                await turns(1)
                send(b"x")
                await turns(2)
            assert not done.called
            done.cancel()
            assert failure_of(done) is CancelledError
            assert got == [b"x"] * before
            # The wait is gone, and takes nothing.
            receiving = sock.recv(1)
            send(b"y")
            assert await receiving == b"y"

    async def test_to_cancel_it_cancels_another_wait_that_follows(self) -> None:
        async with pair() as (sock, send):
            never: Deferred[None] = Deferred()
            caught: list[BaseException] = []

            async def receive() -> str:
                await sock.recv(1)
                try:
                    await never
                except CancelledError as error:
                    caught.append(error)
                return "went on"

            done = Deferred.fromCoroutine(receive())
            await turns(1)
            send(b"x")
            await turns()
            done.cancel()
            assert await done == "went on"
            assert len(caught) == 1

    async def test_its_context_stays_its_own(self) -> None:
        variable = contextvars.ContextVar("variable", default="outside")
        async with pair() as (sock, send):

            async def receive() -> list[str]:
                variable.set("inside")
                found = []
                for _ in range(3):
                    await sock.recv(1)
                    found.append(variable.get())
                return found

            done = Deferred.fromCoroutine(receive())
            for _ in range(3):
                await turns(1)
                send(b"x")
            assert await done == ["inside"] * 3
            assert variable.get() == "outside"

    async def test_two_may_await_the_same_wait(self) -> None:
        async with pair() as (sock, send):
            receiving = sock.recv(10)
            first, second = (Deferred.fromCoroutine(awaited(receiving)) for _ in range(2))
            send(b"data")
            # As of any Deferred, the second gets what the first one's callback left.
            assert await first == b"data"
            assert await second is None

    async def test_an_awaitable_of_another_library_gets_its_own_back(self) -> None:
        class Foreign:
            def __await__(self) -> Generator[object, object, object]:
                return (yield "a request")

        async with pair() as (sock, send):

            async def dialogue() -> list[object]:
                first = await sock.recv(1)
                return [first, await Foreign(), await sock.recv(1)]

            done = Deferred.fromCoroutine(dialogue())
            await turns(1)
            send(b"a")
            await turns()
            send(b"b")
            assert await done == [b"a", "a request", b"b"]

    async def test_a_coroutine_that_is_yielded_is_run(self) -> None:
        async def later_result() -> str:
            return await later("its result")

        class Yielding:
            def __await__(self) -> Generator[object, object, object]:
                return (yield later_result())

        async with pair() as (sock, send):

            async def dialogue() -> list[object]:
                first = await sock.recv(1)
                return [first, await Yielding(), await sock.recv(1)]

            done = Deferred.fromCoroutine(dialogue())
            await turns(1)
            send(b"a")
            await turns()
            send(b"b")
            assert await done == [b"a", "its result", b"b"]

    async def test_a_generator_based_coroutine_works_too(self) -> None:
        async with pair() as (sock, send):

            @types.coroutine
            def old() -> Generator[Any, Any, list[bytes]]:
                return [(yield sock.recv(1)), (yield sock.recv(1))]

            async def receive() -> list[bytes]:
                first = await sock.recv(1)
                return [first, *await old()]

            done = Deferred.fromCoroutine(receive())
            for piece in (b"a", b"b", b"c"):
                await turns(1)
                send(piece)
            assert await done == [b"a", b"b", b"c"]

    async def test_inline_callbacks_work_too(self) -> None:
        async with pair() as (sock, send):

            @inlineCallbacks
            def receive() -> Generator[Deferred[Any], Any, list[object]]:
                first = yield sock.recv(1)
                between = yield later("late")
                second = yield sock.recv(1)
                return [first, between, second]

            done = receive()
            for piece in (b"a", b"b"):
                await turns(4)
                send(piece)
            assert await done == [b"a", "late", b"b"]

    async def test_it_may_close_what_it_awaits_and_another_may_wait_then(self) -> None:
        async with pair() as (sock, send):

            async def receive() -> bytes:
                got = await sock.recv(1)
                sock.close()
                return got

            done = Deferred.fromCoroutine(receive())
            await turns(1)
            send(b"x")
            assert await done == b"x"
            assert sock.closed
            assert failure_of(sock.recv(1)) is SocketClosedError


class TestReferences:
    @pytest.mark.parametrize("end", ["received", "cancelled", "closed"])
    @pytest.mark.parametrize("awaits", [False, True])
    async def test_who_keeps_the_deferred_keeps_no_socket(self, end: str, awaits: bool) -> None:
        peer, own = socket.socketpair()
        with peer:
            sock = Socket.from_socket(own)
            receiving: Deferred[int] = sock.recv_into(bytearray(10))
            if awaits:
                Deferred.fromCoroutine(ended(receiving))
            await turns(1)
            if end == "received":
                peer.send(b"x")
                await turns()
            elif end == "cancelled":
                receiving.cancel()
            sock.close()
            receiving.addErrback(lambda _: None)
            freed = weakref.ref(sock)
            del sock
            gc.collect()
            assert freed() is None


class TestDone:
    """What is done at once is a Deferred as any."""

    async def test_callbacks_change_what_comes_later(self) -> None:
        async with pair() as (sock, send):
            send(b"data")
            receiving = sock.recv(10)
            assert receiving.called
            got: list[object] = []
            receiving.addCallback(bytes.upper).addBoth(lambda result: (got.append(result), 7)[1])
            assert got == [b"DATA"]
            assert await receiving == 7

    async def test_it_is_awaited_again_and_again(self) -> None:
        async with pair() as (sock, send):
            send(b"data")
            receiving = sock.recv(10)
            assert [await receiving, await receiving] == [b"data"] * 2

    async def test_a_callback_that_fails_fails_it(self) -> None:
        async with pair() as (sock, send):
            send(b"data")
            receiving = sock.recv(10)
            receiving.addCallback(lambda _: 1 // 0)
            with pytest.raises(ZeroDivisionError):
                await receiving

    async def test_a_failure_of_somebody_elses_class_fails_it_too(self) -> None:
        class CopiedFailure(Failure):
            """As that of ``twisted.spread.pb``."""

        async with pair() as (sock, send):
            send(b"data")
            receiving = sock.recv(10)
            receiving.addCallback(lambda _: CopiedFailure(ZeroDivisionError()))
            with pytest.raises(ZeroDivisionError):
                await receiving

    async def test_a_callback_that_waits_holds_it_up(self) -> None:
        async with pair() as (sock, send):
            send(b"data")
            receiving = sock.recv(10)
            receiving.addCallback(lambda data: later(f"{data!r}, later"))
            assert await receiving == "b'data', later"

    async def test_it_cannot_be_cancelled_any_more(self) -> None:
        async with pair() as (sock, _):
            sending = sock.sendall(b"data")
            sending.cancel()
            assert await sending is None

    async def test_its_repr_tells_nothing_of_the_data(self) -> None:
        async with pair() as (sock, send):
            send(b"secret")
            receiving = sock.recv(10)
            assert "secret" not in f"{receiving!r} {receiving}"


async def awaited(deferred: Deferred[bytes]) -> bytes:
    return await deferred


async def ended(deferred: Deferred[Any]) -> None:
    with suppress(SocketClosedError, CancelledError):
        await deferred


async def failure_of_awaited(deferred: Deferred[bytes]) -> BaseException | None:
    try:
        await deferred
    except SocketClosedError as error:
        return error
    return None
