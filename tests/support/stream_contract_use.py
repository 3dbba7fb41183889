"""The rest of the contract of streams: time limits, ways to use them, listeners."""

from __future__ import annotations

import gc
import os
import socket
import warnings
from collections.abc import Iterator
from datetime import timedelta

import pytest
from twisted.internet.defer import CancelledError, Deferred, inlineCallbacks

from tests.support.clocks import ClockedReactor, turns, until
from tests.support.stream_helpers import (
    Streams,
    failure_of,
    fill,
    finished,
    read_exactly,
    shrink_buffers,
    soon,
    together,
)
from twisted_netsock import (
    Socket,
    SocketBusyError,
    SocketClosedError,
    SocketConnectionLostError,
    SocketError,
    SocketReadTimeoutError,
    SocketWriteTimeoutError,
)
from twisted_netsock._io.poller import poller_for

SECONDS = 10.0
TIMEOUT = timedelta(seconds=SECONDS)


class TimeContract:
    @pytest.fixture
    def clock(self) -> Iterator[ClockedReactor]:
        clock = ClockedReactor()
        yield clock
        assert clock.getDelayedCalls() == []

    async def test_a_receive_fails_when_nothing_arrives_in_time(
        self, streams: Streams, clock: ClockedReactor
    ) -> None:
        async with streams.pair(reactor=clock, read_timeout=TIMEOUT) as (one, other):
            receiving = other.recv(10)
            clock.advance(SECONDS - 0.1)
            assert not receiving.called
            clock.advance(0.1)
            with pytest.raises(SocketReadTimeoutError) as caught:
                await receiving
            assert caught.value.socket is other
            assert not other.closed
            await one.sendall(b"too late, but not lost")
            assert await read_exactly(other, 22) == b"too late, but not lost"

    async def test_what_arrives_in_time_ends_the_time_limit(
        self, streams: Streams, clock: ClockedReactor
    ) -> None:
        async with streams.pair(reactor=clock, read_timeout=TIMEOUT) as (one, other):
            for _ in range(3):
                receiving = other.recv_into(bytearray(10))
                clock.advance(SECONDS - 0.1)
                await one.sendall(b"in time")
                assert await soon(receiving) == 7
            assert clock.getDelayedCalls() == []

    async def test_the_read_timeout_can_be_changed(
        self, streams: Streams, clock: ClockedReactor
    ) -> None:
        async with streams.pair(reactor=clock) as (one, _):
            assert one.read_timeout is None
            one.read_timeout = timedelta(milliseconds=5)
            receiving = one.recv(10)
            clock.advance(0.005)
            assert failure_of(receiving) is SocketReadTimeoutError
            one.read_timeout = None
            receiving = one.recv(10)
            clock.advance(1_000_000)
            assert not receiving.called
            receiving.addErrback(lambda failure: failure.trap(SocketClosedError))

    async def test_a_bad_time_out_is_refused(self, streams: Streams) -> None:
        bad: list[tuple[object, type[Exception]]] = [
            (10, TypeError),
            (0.5, TypeError),
            (True, TypeError),
            (timedelta(0), ValueError),
        ]
        async with streams.pair(read_timeout=TIMEOUT, write_timeout=TIMEOUT) as (one, _):
            for name in ("read_timeout", "write_timeout"):
                for value, error in bad:
                    with pytest.raises(error, match=name):
                        setattr(one, name, value)
                assert getattr(one, name) == TIMEOUT

    async def test_a_send_fails_when_the_peer_does_not_read(
        self, streams: Streams, clock: ClockedReactor
    ) -> None:
        async with streams.pair(reactor=clock, write_timeout=TIMEOUT) as (one, other):
            shrink_buffers(one)
            sent, sending = await fill(one, bytes(50_000))
            clock.advance(SECONDS)
            with pytest.raises(SocketWriteTimeoutError) as caught:
                await sending
            assert caught.value.socket is one
            assert not one.closed
            assert await read_exactly(other, len(sent)) == sent

    async def test_progress_begins_the_write_timeout_anew(
        self, streams: Streams, clock: ClockedReactor
    ) -> None:
        data = bytes(5_000_000)
        async with streams.pair(reactor=clock, write_timeout=TIMEOUT) as (one, other):
            shrink_buffers(one)
            sending = one.sendall(data)
            for step in range(5):
                clock.advance(SECONDS - 1)
                assert not sending.called, f"it failed after {step} steps"
                await read_exactly(other, 100_000)
                await turns()
            clock.advance(SECONDS)
            clock.advance(SECONDS)
            with pytest.raises(SocketWriteTimeoutError):
                await sending

    async def test_sending_does_not_prolong_the_read_timeout(
        self, streams: Streams, clock: ClockedReactor
    ) -> None:
        async with streams.pair(reactor=clock, read_timeout=TIMEOUT) as (one, other):
            shrink_buffers(one)
            sending = one.sendall(bytes(5_000_000))
            receiving = one.recv(10)
            clock.advance(SECONDS - 1)
            await read_exactly(other, 100_000)
            await turns()
            clock.advance(1)
            assert failure_of(receiving) is SocketReadTimeoutError
            sending.cancel()
            assert failure_of(sending) is CancelledError

    async def test_cancelling_and_closing_end_the_time_limits(
        self, streams: Streams, clock: ClockedReactor
    ) -> None:
        async with streams.pair(reactor=clock, read_timeout=TIMEOUT, write_timeout=TIMEOUT) as (
            one,
            _,
        ):
            shrink_buffers(one)
            _, sending = await fill(one, bytes(50_000))
            receiving = one.recv(10)
            assert len(clock.getDelayedCalls()) == 2
            receiving.cancel()
            assert failure_of(receiving) is CancelledError
            assert len(clock.getDelayedCalls()) == 1
            one.abort()
            assert clock.getDelayedCalls() == []
            assert failure_of(sending) is SocketClosedError


class UseContract:
    async def test_callbacks_work(self, streams: Streams) -> None:
        got: list[bytes] = []
        async with streams.pair() as (one, other):
            done = one.sendall(b"by callback").addCallback(lambda _: other.recv(100))
            done.addCallback(got.append)
            await soon(done)
        assert got == [b"by callback"]

    async def test_inline_callbacks_work(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):

            @inlineCallbacks
            def exchange() -> object:
                yield one.sendall(b"there")
                got = yield other.recv(100)
                yield other.sendall(b"back")
                return got, (yield one.recv(100))

            assert await soon(exchange()) == (b"there", b"back")

    async def test_a_callback_of_a_receive_may_receive_again(self, streams: Streams) -> None:
        got: list[bytes] = []
        ended: Deferred[None] = Deferred()
        async with streams.pair() as (one, other):

            def again(data: bytes) -> None:
                if data:
                    got.append(data)
                    other.recv(4).addCallback(again)
                else:
                    ended.callback(None)

            other.recv(4).addCallback(again)
            await turns()
            await one.sendall(b"abcdefghij")
            await turns()
            await one.sendall(b"klm")
            await one.shutdown(socket.SHUT_WR)
            await soon(ended)
        assert b"".join(got) == b"abcdefghijklm"

    async def test_a_callback_of_a_receive_may_close_the_socket(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            shrink_buffers(other)
            _, sending = await fill(other, bytes(50_000))
            receiving = other.recv(10).addCallback(lambda _: other.close() and None)
            await one.sendall(b"close!")
            await soon(receiving)
            assert other.closed
            assert failure_of(sending) is SocketClosedError

    async def test_a_callback_of_a_receive_may_cancel_a_send(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            shrink_buffers(other)
            sent, sending = await fill(other, bytes(50_000))
            receiving = other.recv(10).addCallback(lambda _: sending.cancel())
            await one.sendall(b"cancel!")
            await soon(receiving)
            assert failure_of(sending) is CancelledError
            assert await read_exactly(one, len(sent)) == sent

    async def test_a_callback_of_a_send_may_close_the_socket(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            shrink_buffers(one)
            receiving = one.recv(10)
            sending = one.sendall(bytes(200_000)).addCallback(lambda _: one.close() and None)
            await read_exactly(other, 200_000)
            await soon(sending)
            assert one.closed
            assert failure_of(receiving) is SocketClosedError

    async def test_an_errback_of_a_cancelled_receive_may_receive_again(
        self, streams: Streams
    ) -> None:
        async with streams.pair() as (one, other):
            receiving = other.recv(10)
            receiving.addErrback(lambda failure: failure.trap(CancelledError) and other.recv(10))
            receiving.cancel()
            await one.sendall(b"again")
            assert await soon(receiving) == b"again"

    async def test_all_that_waits_hears_when_the_reactor_ends(self, streams: Streams) -> None:
        clock = ClockedReactor()
        async with streams.pair(reactor=clock) as (one, _):
            shrink_buffers(one)
            _, sending = await fill(one, bytes(50_000))
            receiving = one.recv(10)
            poller_for(clock).lose_all()
            assert failure_of(receiving) is SocketConnectionLostError
            assert failure_of(sending) is SocketConnectionLostError

    async def test_who_hears_of_the_reactors_end_may_close_the_socket(
        self, streams: Streams
    ) -> None:
        clock = ClockedReactor()
        async with streams.pair(reactor=clock) as (one, _):
            shrink_buffers(one)
            _, sending = await fill(one, bytes(50_000))
            receiving = one.recv(10).addErrback(lambda _: one.abort())
            poller_for(clock).lose_all()
            assert failure_of(receiving) is None
            assert failure_of(sending) is SocketClosedError

    async def test_an_open_socket_that_is_dropped_is_warned_about(self, streams: Streams) -> None:
        async def drop() -> list[int]:
            async with streams.pair() as (one, other):
                return [one.fileno(), other.fileno()]

        # Sockets that were closed are dropped without a word.
        await drop()
        gc.collect()
        kept = [await streams.listen()]
        number = kept[0].fileno()
        kind = type(kept[0]).__name__
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            kept.clear()
            gc.collect()
        told = [str(each.message) for each in caught if each.category is ResourceWarning]
        assert any(
            each.startswith(f"<{kind} descriptor {number} ") and each.endswith(" was never closed")
            for each in told
        )
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)

    async def test_the_repr_tells_the_state(self, streams: Streams) -> None:
        async with streams.pair() as (one, _):
            kind = type(one).__name__
            ends = f"from {one.getsockname()} to {one.getpeername()}"
            assert repr(one) == f"<{kind} descriptor {one.fileno()} {ends}>"
            one.abort()
            assert repr(one) == f"<{kind} closed>"

    async def test_both_ends_agree_on_their_addresses(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            assert one.getsockname() == other.getpeername()
            assert one.getpeername() == other.getsockname()
            assert one.getsockname().family == one.family

    async def test_options_can_be_read_and_set(self, streams: Streams) -> None:
        async with streams.pair() as (one, _):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            assert one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 4) == b"\1\0\0\0"
            for call in (
                lambda: one.setsockopt(socket.SOL_SOCKET, 9999, 1),
                lambda: one.getsockopt(socket.SOL_SOCKET, 9999),
            ):
                with pytest.raises(SocketError) as caught:
                    call()
                assert caught.value.socket is one


class ListenerContract:
    async def test_async_for_accepts_until_the_listener_is_closed(self, streams: Streams) -> None:
        accepted: list[Socket] = []
        listener = await streams.listen()

        async def serve() -> str:
            async for connection in listener:
                accepted.append(connection)  # noqa: PERF401 - they are counted as they come
            return "ended quietly"

        serving = Deferred.fromCoroutine(serve())
        clients = [await soon(streams.connect(listener)) for _ in range(3)]
        await until(lambda: len(accepted) == 3)
        assert not serving.called
        listener.close()
        assert await soon(serving) == "ended quietly"
        for each in (*clients, *accepted):
            each.abort()

    async def test_async_for_ends_when_the_loop_itself_closes_the_listener(
        self, streams: Streams
    ) -> None:
        count = 0
        listener = await streams.listen()
        connecting = streams.connect(listener)
        async for connection in listener:
            count += 1
            listener.close()
            client = await soon(connecting)
            client.abort()
            connection.abort()
        assert count == 1

    async def test_a_cancelled_accept_leaves_the_connection_to_the_next(
        self, streams: Streams
    ) -> None:
        async with await streams.listen() as listener:
            for _ in range(2):
                accepting = listener.accept()
                await turns(1)
                accepting.cancel()
                with pytest.raises(CancelledError):
                    await accepting
            client, accepted = await together(
                finished(streams.connect(listener)), finished(listener.accept())
            )
            assert accepted.getpeername() == client.getsockname()
            client.abort()
            accepted.abort()

    async def test_connections_are_accepted_one_by_one(self, streams: Streams) -> None:
        async with await streams.listen() as listener:
            connecting = [streams.connect(listener) for _ in range(5)]
            accepted = [await soon(listener.accept()) for _ in connecting]
            clients = [await soon(each) for each in connecting]
            if clients[0].family != socket.AF_UNIX:
                names = {client.getsockname() for client in clients}
                assert {each.getpeername() for each in accepted} == names
            for each in (*clients, *accepted):
                each.abort()

    async def test_a_callback_of_an_accept_may_accept_again_and_close_the_listener(
        self, streams: Streams
    ) -> None:
        accepted: list[Socket] = []
        async with await streams.listen() as listener:

            def again(connection: Socket) -> Deferred[None] | None:
                accepted.append(connection)
                if len(accepted) < 3:
                    return listener.accept().addCallback(again)
                listener.close()
                return None

            accepting = listener.accept().addCallback(again)
            clients = await together(*(finished(streams.connect(listener)) for _ in range(3)))
            await soon(accepting)
            assert len(accepted) == 3
            assert listener.closed
            for each in (*clients, *accepted):
                each.abort()

    async def test_a_second_accept_is_refused(self, streams: Streams) -> None:
        async with await streams.listen() as listener:
            first = listener.accept()
            with pytest.raises(SocketBusyError) as caught:
                await soon(listener.accept())
            assert caught.value.socket is listener
            client = await soon(streams.connect(listener))
            (await soon(first)).abort()
            client.abort()

    async def test_closing_the_listener_fails_an_accept_that_waits(self, streams: Streams) -> None:
        for close in (Socket.close, Socket.abort):
            listener = await streams.listen()
            accepting = listener.accept()
            close(listener)
            assert failure_of(accepting) is SocketClosedError
            assert listener.closed

    async def test_the_time_outs_hold_for_accepted_sockets_and_not_for_accept(
        self, streams: Streams
    ) -> None:
        clock = ClockedReactor()
        listener = await streams.listen(reactor=clock, read_timeout=TIMEOUT, write_timeout=TIMEOUT)
        accepting = listener.accept()
        clock.advance(1000 * SECONDS)
        assert not accepting.called
        client = await soon(streams.connect(listener))
        accepted = await soon(accepting)
        assert (accepted.read_timeout, accepted.write_timeout) == (TIMEOUT, TIMEOUT)
        for each in (client, accepted, listener):
            each.abort()

    async def test_what_does_not_listen_cannot_accept(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            for each in (one, other):
                with pytest.raises(SocketError) as caught:
                    await soon(each.accept())
                assert caught.value.socket is each

    async def test_a_listener_has_no_data(self, streams: Streams) -> None:
        async with await streams.listen() as listener:
            for refused in (listener.recv(1), listener.sendall(b"x")):
                with pytest.raises(SocketError):
                    await soon(refused)
            with pytest.raises(SocketError):
                listener.getpeername()
            assert repr(listener) == (
                f"<{type(listener).__name__} descriptor {listener.fileno()} "
                f"at {listener.getsockname()}>"
            )
