"""
What holds for every stream, whether it is TCP, UNIX or TLS.

Subclass `StreamContract` with a fixture `streams` that gives a `Streams`.
"""

from __future__ import annotations

import array
import socket
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import CancelledError

from tests.support.clocks import turns
from tests.support.stream_contract_use import ListenerContract, TimeContract, UseContract
from tests.support.stream_helpers import (
    Streams,
    failure_of,
    fill,
    finished,
    noise,
    read_exactly,
    read_to_end,
    shrink_buffers,
    soon,
    together,
)
from twisted_netsock import (
    SocketBusyError,
    SocketClosedError,
    SocketConnectionLostError,
)

MOST_AT_ONCE = 65536
"""What one `recv` gives at most, whatever it is asked for."""


class ReceivingContract:
    async def test_what_is_sent_arrives(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            assert await one.send(b"to the other") == 12
            assert await soon(other.recv(100)) == b"to the other"
            assert await other.sendall(b"and back") is None
            assert await soon(one.recv(100)) == b"and back"

    async def test_a_receive_waits_until_something_arrives(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            receiving = other.recv(100)
            await turns()
            assert not receiving.called
            await one.sendall(b"late")
            assert await soon(receiving) == b"late"

    async def test_a_short_read_leaves_the_rest(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            await one.sendall(b"abcdefghij")
            assert await soon(other.recv(3)) == b"abc"
            buffer = bytearray(2)
            assert await soon(other.recv_into(buffer)) == 2
            assert buffer == b"de"
            assert await soon(other.recv(1)) == b"f"
            assert await soon(other.recv(100)) == b"ghij"

    async def test_one_receive_allocates_no_more_than_64_kib(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            sending = one.sendall(bytes(300_000))
            piece = await soon(other.recv(300_000))
            assert 0 < len(piece) <= MOST_AT_ONCE
            await together(finished(sending), read_exactly(other, 300_000 - len(piece)))

    async def test_nothing_can_be_received_and_sent_at_once(self, streams: Streams) -> None:
        async with streams.pair() as (one, _):
            assert await soon(one.recv(0)) == b""
            assert await soon(one.recv_into(bytearray())) == 0
            assert await soon(one.send(b"")) == 0
            assert await soon(one.sendall(b"")) is None

    async def test_a_size_that_is_none_is_refused(self, streams: Streams) -> None:
        refused: list[tuple[Any, type[Exception]]] = [
            (-1, ValueError),
            (True, TypeError),
            ("9", TypeError),
        ]
        async with streams.pair() as (one, _):
            for size, error in refused:
                with pytest.raises(error, match="n"):
                    one.recv(size)

    async def test_any_contiguous_buffer_can_be_sent(self, streams: Streams) -> None:
        text = b"12345678"
        async with streams.pair() as (one, other):
            for data in (text, bytearray(text), memoryview(b".." + text)[2:]):
                await one.sendall(data)
                sent = await one.send(data)
                assert await read_exactly(other, 8 + sent) == text + text[:sent]

    async def test_an_array_is_sent_and_received_as_its_bytes(self, streams: Streams) -> None:
        numbers = array.array("i", [1, -2, 3])
        filled = array.array("i", [0, 0, 0])
        async with streams.pair() as (one, other):
            await one.sendall(numbers)
            assert await soon(other.recv_into(filled)) == 3 * numbers.itemsize
        assert filled == numbers

    async def test_recv_into_fills_from_the_start_and_no_further(self, streams: Streams) -> None:
        buffer = bytearray(b"." * 10)
        async with streams.pair() as (one, other):
            await one.sendall(b"abc")
            assert await soon(other.recv_into(memoryview(buffer)[2:])) == 3
        assert buffer == b"..abc....."

    async def test_unfit_buffers_are_refused(self, streams: Streams) -> None:
        holes = memoryview(bytearray(8))[::2]
        async with streams.pair() as (one, _):
            for refused in (holes, "text", 8, None):
                for method in (one.send, one.sendall, one.recv_into):
                    with pytest.raises(TypeError):
                        method(refused)
            with pytest.raises(TypeError, match="must be writable, not bytes"):
                one.recv_into(b"12345678")

    async def test_five_megabytes_pass_both_ways_at_once(self, streams: Streams) -> None:
        there, back = noise(5_000_000, 1), noise(5_000_000, 2)
        async with streams.pair() as (one, other):
            _, _, got_back, got_there = await together(
                finished(one.sendall(there)),
                finished(other.sendall(back)),
                read_exactly(one, len(back)),
                read_exactly(other, len(there)),
            )
            assert got_there == there
            assert got_back == back


class EndingContract:
    async def test_the_end_comes_after_the_data_and_stays(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            await one.sendall(b"last words")
            await one.shutdown(socket.SHUT_WR)
            assert await read_exactly(other, 10) == b"last words"
            for _ in range(3):
                assert await soon(other.recv(100)) == b""
                assert await soon(other.recv_into(bytearray(10))) == 0

    @pytest.mark.parametrize("method", ["recv", "recv_into"])
    async def test_the_end_is_told_as_often_as_somebody_asks(
        self, streams: Streams, method: str
    ) -> None:
        async with streams.pair() as (one, other):
            await one.shutdown(socket.SHUT_WR)
            for _ in range(200):
                argument: Any = 10 if method == "recv" else bytearray(10)
                assert not await soon(getattr(other, method)(argument))

    async def test_a_message_can_be_received_in_pieces_of_any_size_after_a_wait(
        self, streams: Streams
    ) -> None:
        async with streams.pair() as (one, other):
            for size in (1, 3, 5, 10, 11):
                receiving = other.recv(size)
                assert not receiving.called
                await one.sendall(b"0123456789")
                got = await soon(receiving)
                while len(got) < 10:
                    got += await soon(other.recv(size))
                assert got == b"0123456789"

    async def test_the_end_wakes_a_receive_that_waits(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            receiving = other.recv(100)
            await one.shutdown(socket.SHUT_WR)
            assert await soon(receiving) == b""

    @pytest.mark.parametrize("swapped", [False, True])
    async def test_what_the_peer_still_sends_arrives_after_a_half_close(
        self, streams: Streams, swapped: bool
    ) -> None:
        answer = noise(100_000)
        async with streams.pair() as pair:
            one, other = reversed(pair) if swapped else pair
            await one.sendall(b"question")
            await one.shutdown(socket.SHUT_WR)
            assert await read_to_end(other) == b"question"

            async def reply() -> None:
                await soon(other.sendall(answer))
                await soon(other.shutdown(socket.SHUT_WR))

            assert (await together(reply(), read_to_end(one)))[1] == answer

    async def test_nothing_can_be_sent_after_a_half_close(self, streams: Streams) -> None:
        async with streams.pair() as (one, _):
            await one.shutdown(socket.SHUT_WR)
            for sending in (one.send(b"x"), one.sendall(b"x")):
                with pytest.raises(SocketClosedError, match="shut down for writing"):
                    await soon(sending)
            assert not one.closed

    async def test_shutting_down_to_read_ends_the_receiving(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            await one.shutdown(socket.SHUT_RD)
            assert await soon(one.recv(10)) == b""
            assert await soon(one.recv_into(bytearray(10))) == 0
            await one.sendall(b"still sends")
            assert await read_exactly(other, 11) == b"still sends"

    async def test_shutting_down_to_read_wakes_a_receive_that_waits(
        self, streams: Streams
    ) -> None:
        async with streams.pair() as (one, _):
            receiving = one.recv(10)
            await one.shutdown(socket.SHUT_RD)
            assert await soon(receiving, 2) == b""

    async def test_both_directions_can_be_shut_down_together(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            await one.shutdown(socket.SHUT_RDWR)
            assert await soon(other.recv(10)) == b""
            assert await soon(one.recv(10)) == b""

    async def test_an_unknown_direction_is_refused(self, streams: Streams) -> None:
        async with streams.pair() as (one, _):
            with pytest.raises(ValueError, match="how=7"):
                one.shutdown(7)

    async def test_the_peer_reads_the_end_when_this_side_closes(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            await one.sendall(b"bye")
            closing = one.close()
            assert await read_to_end(other) == b"bye"
            other.close()
            assert await soon(closing) is None

    async def test_a_close_fails_whatever_waits(self, streams: Streams) -> None:
        async with streams.pair() as (one, _):
            shrink_buffers(one)
            _, sending = await fill(one, bytes(50_000))
            receiving = one.recv(10)
            one.close()
            assert one.closed
            assert failure_of(sending) is SocketClosedError
            assert failure_of(receiving) is SocketClosedError

    async def test_an_abort_fails_whatever_waits(self, streams: Streams) -> None:
        async with streams.pair() as (one, _):
            shrink_buffers(one)
            _, sending = await fill(one, bytes(50_000))
            receiving = one.recv_into(bytearray(10))
            one.abort()
            assert one.closed
            assert failure_of(sending) is SocketClosedError
            assert failure_of(receiving) is SocketClosedError

    async def test_a_closed_socket_does_nothing_any_more(self, streams: Streams) -> None:
        async with streams.pair() as (one, _):
            assert not one.closed
            one.close()
            assert one.closed
            assert one.fileno() == -1
            for refused in (
                one.recv(1),
                one.recv_into(bytearray(1)),
                one.send(b"x"),
                one.sendall(b"x"),
                one.shutdown(socket.SHUT_WR),
                one.accept(),
            ):
                with pytest.raises(SocketClosedError) as caught:
                    await soon(refused)
                assert caught.value.socket is one
            for call in (
                one.getsockname,
                one.getpeername,
                lambda: one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF),
                lambda: one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 10_000),
                one.listen,
            ):
                with pytest.raises(SocketClosedError):
                    call()

    async def test_closing_again_changes_nothing(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            closings = [one.close(), one.close()]
            other.close()
            for closing in closings:
                assert await soon(closing) is None
            assert await soon(one.close()) is None
            one.abort()
            one.abort()
            assert await soon(one.close()) is None

    async def test_cancelling_the_wait_for_a_close_does_not_stop_it(
        self, streams: Streams
    ) -> None:
        async with streams.pair() as (one, other):
            closing = one.close()
            closing.cancel()
            closing.addErrback(lambda failure: failure.trap(CancelledError))
            assert await read_to_end(other) == b""
            other.close()
            assert await soon(one.close()) is None

    async def test_an_abort_reaches_the_peer_as_a_loss(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            receiving = other.recv(10)
            one.abort()
            if streams.resets:
                with pytest.raises(SocketConnectionLostError):
                    await soon(receiving)
            else:
                # The kernel knows no reset for these.
                assert await soon(receiving) == b""

    async def test_a_send_to_a_peer_that_has_gone_fails_in_the_end(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            other.abort()
            with pytest.raises(SocketConnectionLostError) as caught:
                for _ in range(100):
                    await soon(one.sendall(b"anybody there?"))
                    await turns(1)
            assert caught.value.socket is one
            assert not one.closed

    async def test_async_with_closes_at_the_end(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):

            async def use() -> None:
                async with one as entered:
                    assert entered is one
                    await one.sendall(b"inside")
                assert one.closed

            async def peer() -> bytes:
                async with other:
                    return await read_to_end(other)

            assert (await together(use(), peer()))[1] == b"inside"
            assert other.closed


class SharingContract:
    async def test_a_second_receive_is_refused_and_the_first_goes_on(
        self, streams: Streams
    ) -> None:
        async with streams.pair() as (one, other):
            first = other.recv(10)
            for second in (other.recv(10), other.recv_into(bytearray(10))):
                with pytest.raises(SocketBusyError) as caught:
                    await soon(second)
                assert caught.value.socket is other
            await one.sendall(b"for one")
            assert await soon(first) == b"for one"

    async def test_a_second_send_is_refused_and_the_first_goes_on(self, streams: Streams) -> None:
        chunk = noise(50_000)
        async with streams.pair() as (one, other):
            shrink_buffers(one)
            sent, first = await fill(one, chunk)
            for second in (one.send(b"x"), one.sendall(b"x"), one.shutdown(socket.SHUT_WR)):
                with pytest.raises(SocketBusyError):
                    await soon(second)
            assert await read_exactly(other, len(sent)) == sent
            count = await soon(first)
            assert await read_exactly(other, count) == chunk[:count]

    async def test_one_may_receive_while_another_sends(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            shrink_buffers(one)
            sent, sending = await fill(one, bytes(50_000))
            receiving = one.recv(10)
            await other.sendall(b"crossing")
            assert await soon(receiving) == b"crossing"
            assert not sending.called
            await read_exactly(other, len(sent))
            assert await soon(sending) > 0

    async def test_a_cancelled_receive_consumes_nothing(self, streams: Streams) -> None:
        buffer = bytearray(b"untouched")
        async with streams.pair() as (one, other):
            for receive in (lambda: other.recv(100), lambda: other.recv_into(buffer)):
                receiving = receive()
                await turns(1)
                receiving.cancel()
                with pytest.raises(CancelledError):
                    await receiving
                await one.sendall(b"for the next")
                assert await read_exactly(other, 12) == b"for the next"
        assert buffer == b"untouched"

    async def test_a_receive_can_be_cancelled_when_the_data_is_there(
        self, streams: Streams
    ) -> None:
        async with streams.pair() as (one, other):
            receiving = other.recv(100)
            await one.sendall(b"unseen")
            # No turn of the reactor has passed, so nobody has looked.
            receiving.cancel()
            with pytest.raises(CancelledError):
                await receiving
            assert await read_exactly(other, 6) == b"unseen"

    async def test_after_a_cancelled_sendall_the_next_bytes_follow_exactly(
        self, streams: Streams
    ) -> None:
        lost, kept = noise(2_000_000, 1), noise(70_000, 2)
        async with streams.pair() as (one, other):
            shrink_buffers(one)
            sending = one.sendall(lost)
            await turns()
            sending.cancel()
            with pytest.raises(CancelledError):
                await sending

            async def go_on() -> None:
                count = await soon(one.send(kept))
                await soon(one.sendall(memoryview(kept)[count:]))
                await soon(one.shutdown(socket.SHUT_WR))

            _, got = await together(go_on(), read_to_end(other))
            part = got[: -len(kept)]
            assert got.endswith(kept)
            assert lost.startswith(part)
            assert 0 < len(part) < len(lost)

    @pytest.mark.parametrize("method", ["recv", "recv_into"])
    async def test_one_who_always_finds_data_lets_others_have_their_turn(
        self, streams: Streams, method: str
    ) -> None:
        turned: list[bool] = []
        room = 16384 if method == "recv" else bytearray(16384)
        async with streams.pair() as (one, other):
            receive = getattr(other, method)
            call = reactor.callLater(0, turned.append, True)
            for _ in range(1000):
                await one.send(bytes(16384))
                await receive(room)
            if call.active():
                call.cancel()
            assert turned


class StreamContract(
    ReceivingContract, EndingContract, SharingContract, TimeContract, UseContract, ListenerContract
):
    @pytest.fixture
    def streams(self) -> Streams:
        raise NotImplementedError("a subclass says what it connects")
