"""Ports: what `output_port` promises, and how closing the socket ends it, on every stream."""

from __future__ import annotations

import array
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred

from tests.support.clocks import ClockedReactor, turns
from tests.support.streams import (
    KINDS,
    Streams,
    TLSStreams,
    arrived,
    failure_of,
    fill,
    finished,
    noise,
    read_exactly,
    read_to_end,
    shrink_buffers,
    soon,
    stick,
    streams_of,
    together,
)
from twisted_netsock import (
    SocketBusyError,
    SocketClosedError,
    SocketConnectionLostError,
    SocketReadTimeoutError,
    SocketWriteTimeoutError,
    TLSTruncatedError,
)
from twisted_netsock.testing import CertificateAuthority, connected_pair

QUEUE_FULL = 65536


@pytest.fixture(params=KINDS)
def streams(request: Any, tmp_path: Path, authority: CertificateAuthority) -> Streams:
    return streams_of(request.param, tmp_path, authority)


class TestWriting:
    async def test_a_write_fires_at_once_and_goes_out_by_itself(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            data = bytearray(b"mutable")
            writing = one.output_port.write(data)
            data[:] = b"CHANGED"
            assert writing.called
            assert await writing is None
            assert await soon(one.output_port.flush()) is None
            assert one.output_port.pending == 0
            assert await read_exactly(other, 7) == b"mutable"

    async def test_a_write_waits_while_64_kib_are_queued(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            written = await stick(one)
            port = one.output_port
            filling = noise(QUEUE_FULL - port.pending - 1)
            assert port.write(filling).called
            waiting = port.write(b"x")
            empty = port.write(b"")
            assert (port.pending, waiting.called, empty.called) == (QUEUE_FULL, False, False)
            written += filling + b"x"
            assert await read_exactly(other, len(written)) == written
            assert await soon(waiting) is None
            assert await soon(empty) is None

    async def test_flush_waits_until_the_kernel_has_everything(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            written = await stick(one)
            flushing = one.output_port.flush()
            await turns()
            assert not flushing.called
            assert await read_exactly(other, len(written)) == written
            assert await soon(flushing) is None
            assert one.output_port.pending == 0

    async def test_many_writes_arrive_in_order(self, streams: Streams) -> None:
        lines = [
            b"%d %s\n" % (number, noise(number % 97).hex().encode()) for number in range(3000)
        ]
        async with streams.pair() as (one, other):
            shrink_buffers(one)

            async def write() -> None:
                for line in lines:
                    await one.output_port.write(line)
                await soon(one.output_port.flush())
                await soon(one.shutdown(socket.SHUT_WR))

            _, got = await together(write(), finished(other.input_port.read_all()))
            assert got == b"".join(lines)

    async def test_an_array_is_written_as_its_bytes(self, streams: Streams) -> None:
        numbers = array.array("i", [1, -2, 3])
        async with streams.pair() as (one, other):
            await soon(one.output_port.write(numbers))
            assert await read_exactly(other, 3 * numbers.itemsize) == numbers.tobytes()

    @pytest.mark.parametrize("data", [5, "text", None, [1, 2]])
    async def test_what_is_no_buffer_is_refused(self, data: Any) -> None:
        one, other = connected_pair()
        async with one, other:
            with pytest.raises(TypeError):
                one.output_port.write(data)
            assert one.output_port.pending == 0

    async def test_a_cancelled_write_or_flush_is_sent_nevertheless(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            written = await stick(one)
            more = noise(100_000)
            for waiting in (one.output_port.write(more), one.output_port.flush()):
                waiting.cancel()
                with pytest.raises(CancelledError):
                    await waiting
            one.output_port.write(b"end")
            written += more + b"end"
            assert await read_exactly(other, len(written)) == written

    async def test_the_port_and_the_socket_send_one_after_the_other(
        self, streams: Streams
    ) -> None:
        async with streams.pair() as (one, other):
            written = await stick(one)
            for refused in (one.send(b"x"), one.sendall(b"x"), one.shutdown(socket.SHUT_WR)):
                with pytest.raises(SocketBusyError):
                    await soon(refused)
            assert await read_exactly(other, len(written)) == written
            await soon(one.output_port.flush())
            sent, sending = await fill(one, noise(50_000))
            with pytest.raises(SocketBusyError):
                await soon(one.output_port.write(b"lost"))
            assert one.output_port.pending == 0
            assert await read_exactly(other, len(sent)) == sent
            await read_exactly(other, await soon(sending))
            await soon(one.output_port.write(b"taken"))
            assert await read_exactly(other, 5) == b"taken"

    async def test_whoever_waits_for_a_write_may_write_more(self, streams: Streams) -> None:
        first, second = noise(300_000, 1), noise(300_000, 2)
        async with streams.pair() as (one, other):
            shrink_buffers(one)

            async def write() -> None:
                await one.output_port.write(first)
                await one.output_port.write(second)
                await one.output_port.flush()
                await one.output_port.write(b"end")

            _, got = await together(write(), read_exactly(other, 600_003))
            assert got == first + second + b"end"

    async def test_whoever_waits_for_a_write_may_close_the_socket(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            data = await stick(one)
            more = noise(QUEUE_FULL)
            # So that the kernel takes the rest in one go.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 400_000)

            async def write() -> None:
                await one.output_port.write(more)
                await one.close()

            async def read() -> bytes:
                got = await read_to_end(other)
                other.close()
                return got

            assert (await together(write(), read()))[1] == data + more
            assert one.closed


class TestFailing:
    async def test_a_failed_write_is_reported_to_all_that_wait_and_to_later_writes(
        self, streams: Streams
    ) -> None:
        async with streams.pair() as (one, other):
            await stick(one)
            waiting = [one.output_port.write(noise(100_000)), one.output_port.flush()]
            other.abort()
            for told in waiting:
                with pytest.raises(SocketConnectionLostError) as caught:
                    await soon(told)
                assert caught.value.socket is one
            for later in (
                one.output_port.write(b"later"),
                one.output_port.write(b""),
                one.output_port.flush(),
                one.output_port.close(),
            ):
                with pytest.raises(SocketConnectionLostError):
                    await soon(later)
            assert await soon(one.close()) is None

    async def test_a_write_after_a_half_close_fails(self, streams: Streams) -> None:
        async with streams.pair() as (one, _):
            await one.shutdown(socket.SHUT_WR)
            for _ in range(2):
                with pytest.raises(SocketClosedError, match="shut down for writing"):
                    await soon(one.output_port.write(b"x"))

    async def test_the_write_timeout_holds_for_what_is_queued(self, streams: Streams) -> None:
        clock = ClockedReactor()
        fields = {"reactor": clock, "write_timeout": timedelta(seconds=10)}
        async with streams.pair(**fields) as (one, _):
            await stick(one)
            flushing = one.output_port.flush()
            clock.advance(9)
            assert not flushing.called
            clock.pump([1, 10])
            with pytest.raises(SocketWriteTimeoutError):
                await soon(flushing)
            with pytest.raises(SocketWriteTimeoutError):
                await soon(one.output_port.write(b"later"))

    async def test_what_arrives_does_not_put_off_the_write_timeout(self, streams: Streams) -> None:
        """A peer that goes on sending and takes nothing does not hold a write for ever."""
        clock = ClockedReactor()
        fields = {"reactor": clock, "write_timeout": timedelta(seconds=10)}
        async with streams.pair(**fields) as (one, other):
            await stick(one)
            flushing = one.output_port.flush()
            reading = one.input_port.read_exactly(100)
            for count in range(1, 7):
                await other.sendall(b"x")
                await arrived(one, count)
                clock.advance(5)
            assert failure_of(flushing) is SocketWriteTimeoutError
            reading.cancel()
            assert failure_of(reading) is CancelledError

    async def test_what_is_sent_does_not_put_off_the_read_timeout(self, streams: Streams) -> None:
        clock = ClockedReactor()
        fields = {"reactor": clock, "read_timeout": timedelta(seconds=10)}
        async with streams.pair(**fields) as (one, other):
            reading = one.input_port.read(10)
            for _ in range(6):
                await soon(one.output_port.write(b"x"))
                assert await read_exactly(other, 1) == b"x"
                clock.advance(5)
            assert failure_of(reading) is SocketReadTimeoutError


class TestClosingTheSocket:
    async def test_a_close_sends_what_the_output_port_holds(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            written = await stick(one)
            waiting: list[Deferred[None]] = [one.output_port.flush()]
            closing = one.close()
            assert one.closed
            assert one.output_port.closed
            assert failure_of(waiting[0]) is SocketClosedError
            assert not closing.called
            assert await read_to_end(other) == written
            other.close()
            assert await soon(closing) is None

    async def test_an_abort_sends_nothing_more(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            written = await stick(one)
            one.abort()
            assert one.output_port.closed
            assert await soon(one.close()) is None
            received = bytearray()
            try:
                while piece := await soon(other.recv(65536)):
                    received += piece
            except SocketConnectionLostError:
                pass
            assert len(received) < len(written)

    async def test_an_abort_ends_a_close_that_still_sends(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            await stick(one)
            closing = one.close()
            await turns()
            assert not closing.called
            one.abort()
            assert await soon(closing) is None
            other.abort()

    async def test_an_abort_ends_a_tls_shutdown_after_the_last_bytes(
        self, authority: CertificateAuthority
    ) -> None:
        async with TLSStreams(authority).pair() as (one, other):
            written = await stick(one)
            # What is left can be sent at once now, and nobody has noticed that yet.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1_000_000)
            raw = socket.socket(fileno=socket.dup(other.fileno()))
            with raw:
                for _ in range(len(written)):
                    try:
                        raw.recv(65536, socket.MSG_DONTWAIT)
                    except BlockingIOError:
                        break
            closing = one.close()
            await turns()
            assert not closing.called
            one.abort()
            assert closing.called
            other.abort()

    @pytest.mark.parametrize("write_timeout", [None, timedelta(seconds=20)])
    async def test_a_close_gives_up_on_a_peer_that_takes_nothing(
        self, streams: Streams, write_timeout: timedelta | None
    ) -> None:
        clock = ClockedReactor()
        async with streams.pair(reactor=clock, write_timeout=write_timeout) as (one, _):
            await stick(one)
            closing = one.close()
            await turns()
            clock.advance(4 if write_timeout is None else 19)
            assert not closing.called
            # TLS has its goodbye to try then, which nobody takes either.
            clock.pump([2, 6])
            assert await soon(closing) is None

    @pytest.mark.parametrize("kind", ["tcp", "tls"])
    async def test_a_close_that_gives_up_does_not_look_like_the_end_of_the_stream(
        self, kind: str, tmp_path: Path, authority: CertificateAuthority
    ) -> None:
        """The kernel knows no reset for UNIX sockets, so that these cannot tell."""
        clock = ClockedReactor()
        async with streams_of(kind, tmp_path, authority).pair(reactor=clock) as (one, other):
            await stick(one)
            closing = one.close()
            clock.advance(5)
            with pytest.raises((SocketConnectionLostError, TLSTruncatedError)):
                await read_to_end(other)
            other.abort()
            clock.pump([5, 5])
            assert await soon(closing) is None
