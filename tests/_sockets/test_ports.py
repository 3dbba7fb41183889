"""Ports: what `input_port` promises, and the life of both, over TCP, UNIX and TLS."""

from __future__ import annotations

import gc
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import CancelledError

from tests.support.clocks import ClockedReactor, turns
from tests.support.streams import (
    KINDS,
    Streams,
    arrived,
    failure_of,
    finished,
    noise,
    read_exactly,
    soon,
    stick,
    streams_of,
    together,
)
from twisted_netsock import (
    Socket,
    SocketBusyError,
    SocketClosedError,
    SocketConnectionLostError,
    SocketError,
    SocketIncompleteReadError,
    SocketPortError,
    SocketReadTimeoutError,
    chibi,
)
from twisted_netsock.testing import CertificateAuthority, connected_pair

QUEUE_FULL = 65536


@pytest.fixture(params=KINDS)
def streams(request: Any, tmp_path: Path, authority: CertificateAuthority) -> Streams:
    return streams_of(request.param, tmp_path, authority)


class TestReading:
    async def test_read_gives_up_to_as_many_bytes_as_asked_for(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            reading = other.input_port.read(4)
            await turns()
            assert not reading.called
            await one.sendall(b"abcdef")
            assert await soon(reading) == b"abcd"
            assert other.input_port.pending == 2
            assert await soon(other.input_port.read(100)) == b"ef"

    async def test_readline_gives_one_line_with_its_newline(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            await one.sendall(b"first\n\nthi")
            port = other.input_port
            assert await soon(port.readline()) == b"first\n"
            assert await soon(port.readline()) == b"\n"
            reading = port.readline()
            await turns()
            assert not reading.called
            await one.sendall(b"rd\r\nfourth")
            assert await soon(reading) == b"third\r\n"
            await one.shutdown(socket.SHUT_WR)
            assert await soon(port.readline()) == b"fourth"
            assert await soon(port.readline()) == b""

    async def test_what_is_held_is_read_however_often_that_is(self, streams: Streams) -> None:
        """The peer sends no more, so the kernel reports nothing; others run meanwhile."""
        ran: list[bool] = []
        async with streams.pair() as (one, other):
            await one.sendall(b"a line\n" * 1000)
            assert await soon(other.input_port.readline()) == b"a line\n"
            reactor.callLater(0, ran.append, True)
            for _ in range(998):
                assert await soon(other.input_port.readline()) == b"a line\n"
            assert ran
            assert await soon(other.input_port.read_exactly(3)) == b"a l"
            for byte in b"ine\n":
                assert await soon(other.input_port.read(1)) == bytes([byte])

    async def test_a_read_that_gives_way_can_be_cancelled(self, streams: Streams) -> None:
        """What it would have read stays, for the next."""
        async with streams.pair() as (one, other):
            await one.sendall(b"x" * 100)
            reading = other.input_port.read(1)
            count = 0
            while await soon(reading):
                count += 1
                reading = other.input_port.read(1)
                if not reading.called:
                    break
            reading.cancel()
            assert failure_of(reading) is CancelledError
            assert len(await soon(other.input_port.read(100))) == 100 - count

    async def test_a_line_longer_than_the_limit_stays_readable(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            await one.sendall(b"12345678\nnext\n")
            port = other.input_port
            with pytest.raises(SocketPortError, match="limit of 8 bytes") as caught:
                await soon(port.readline(limit=8))
            assert caught.value.port is port
            assert caught.value.socket is other
            assert await soon(port.readline(limit=9)) == b"12345678\n"
            assert await soon(port.readline(limit=5)) == b"next\n"

    async def test_the_limit_of_a_line_is_64_kib_unless_told(self, streams: Streams) -> None:
        longest, longer = b"x" * 65535 + b"\n", b"y" * 65536 + b"\n"
        async with streams.pair() as (one, other):
            sending = one.sendall(longest + longer)
            port = other.input_port
            assert await soon(port.readline()) == longest
            with pytest.raises(SocketPortError, match="65536"):
                await soon(port.readline())
            assert await soon(port.read_exactly(65537)) == longer
            await soon(sending)

    async def test_a_last_line_of_exactly_the_limit_is_within_it(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            await one.sendall(b"12345678")
            await one.shutdown(socket.SHUT_WR)
            assert await soon(other.input_port.readline(limit=8)) == b"12345678"

    async def test_read_exactly_waits_for_every_byte(self, streams: Streams) -> None:
        data = noise(200_000)
        async with streams.pair() as (one, other):
            sending = one.sendall(data)
            port = other.input_port
            assert await soon(port.read_exactly(0)) == b""
            assert await soon(port.read_exactly(150_000)) == data[:150_000]
            assert await soon(port.read_exactly(50_000)) == data[150_000:]
            await soon(sending)

    async def test_read_exactly_tells_what_there_was_before_the_end(
        self, streams: Streams
    ) -> None:
        async with streams.pair() as (one, other):
            await one.sendall(b"some")
            await one.shutdown(socket.SHUT_WR)
            with pytest.raises(SocketIncompleteReadError) as caught:
                await soon(other.input_port.read_exactly(10))
            assert (caught.value.partial, caught.value.expected) == (b"some", 10)
            assert isinstance(caught.value, EOFError)
            assert caught.value.port is other.input_port
            assert await soon(other.input_port.read(1)) == b""

    async def test_read_all_gives_everything_to_the_end(self, streams: Streams) -> None:
        data = noise(500_000)
        async with streams.pair() as (one, other):

            async def send() -> None:
                await soon(one.sendall(data))
                await soon(one.shutdown(socket.SHUT_WR))

            _, got = await together(send(), finished(other.input_port.read_all()))
            assert got == data
            assert await soon(other.input_port.read_all()) == b""

    async def test_read_all_refuses_more_than_its_limit_and_keeps_it(
        self, streams: Streams
    ) -> None:
        async with streams.pair() as (one, other):
            await one.sendall(b"12345678")
            await one.shutdown(socket.SHUT_WR)
            with pytest.raises(SocketPortError, match="limit of 7 bytes"):
                await soon(other.input_port.read_all(limit=7))
            assert await soon(other.input_port.read_all(limit=8)) == b"12345678"

    async def test_async_for_gives_the_lines(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            await one.sendall(b"one\ntwo\n\nlast")
            await one.shutdown(socket.SHUT_WR)

            async def lines() -> list[bytes]:
                return [line async for line in other.input_port]

            assert await together(lines()) == [[b"one\n", b"two\n", b"\n", b"last"]]

    async def test_the_end_stays_the_end(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            await one.shutdown(socket.SHUT_WR)
            port = other.input_port
            for _ in range(2):
                assert await soon(port.read(1)) == b""
                assert await soon(port.readline()) == b""
                assert await soon(port.read_all()) == b""

    @pytest.mark.parametrize("call", ["read", "readline", "read_exactly"])
    @pytest.mark.parametrize(
        ("count", "error"),
        [(-1, ValueError), (True, TypeError), ("9", TypeError), (1.0, TypeError)],
    )
    async def test_a_count_that_is_none_is_refused(
        self, call: str, count: Any, error: type[Exception]
    ) -> None:
        one, other = connected_pair()
        async with one, other:
            with pytest.raises(error):
                getattr(one.input_port, call)(count)


class TestSharing:
    @pytest.mark.parametrize("by_lines", [True, False])
    async def test_one_who_always_finds_data_lets_others_have_their_turn(
        self, by_lines: bool
    ) -> None:
        """The kernel holds everything from the start, so that no read has to wait."""
        one, other = chibi.open_socket_pair()
        async with one, other:
            await soon(one.sendall(b"\n" * 100_000))
            await soon(one.shutdown(socket.SHUT_WR))
            turned: list[bool] = []
            call = reactor.callLater(0, turned.append, True)
            count = 0
            if by_lines:
                async for _ in other.input_port:
                    count += 1
            else:
                while await other.input_port.read(1):
                    count += 1
            if call.active():
                call.cancel()
            assert count == 100_000
            assert turned


class TestKeeping:
    """What was received and not read is lost to nobody."""

    @pytest.mark.parametrize("call", ["read_exactly", "readline", "read_all"])
    async def test_a_timeout_keeps_what_was_read(self, streams: Streams, call: str) -> None:
        clock = ClockedReactor()
        fields = {"reactor": clock, "read_timeout": timedelta(seconds=10)}
        async with streams.pair(**fields) as (one, other):
            port = other.input_port
            reading = getattr(port, call)(*([6] if call == "read_exactly" else []))
            await one.sendall(b"abc")
            await arrived(other, 3)
            # The bytes that came may have moved the end of the time-out.
            clock.pump([10, 10])
            with pytest.raises(SocketReadTimeoutError) as caught:
                await soon(reading)
            assert caught.value.socket is other
            await one.sendall(b"de\n")
            assert await soon(port.read_exactly(6)) == b"abcde\n"

    @pytest.mark.parametrize("call", ["read_exactly", "readline", "read_all"])
    async def test_a_cancelled_read_keeps_what_was_read(self, streams: Streams, call: str) -> None:
        async with streams.pair() as (one, other):
            port = other.input_port
            reading = getattr(port, call)(*([6] if call == "read_exactly" else []))
            await one.sendall(b"abc")
            await arrived(other, 3)
            reading.cancel()
            with pytest.raises(CancelledError):
                await reading
            await one.sendall(b"de\n")
            assert await soon(port.readline()) == b"abcde\n"

    async def test_a_lost_connection_keeps_what_was_read(self) -> None:
        one, other = connected_pair()
        async with one, other:
            reading = other.input_port.read_exactly(6)
            await one.sendall(b"abc")
            await arrived(other, 3)
            one.abort()
            with pytest.raises(SocketConnectionLostError):
                await soon(reading)
            assert await soon(other.input_port.read(6)) == b"abc"

    async def test_nothing_is_received_past_unread_bytes_of_the_port(
        self, streams: Streams
    ) -> None:
        async with streams.pair() as (one, other):
            await one.sendall(b"line\nrest")
            assert await soon(other.input_port.readline()) == b"line\n"
            calls = [other.recv(10), other.recv_into(bytearray(10))]
            if type(other) is Socket:
                calls += [
                    other.recvfrom(10),
                    other.recvfrom_into(bytearray(10)),
                    other.recvmsg(10),
                ]
            for call in calls:
                with pytest.raises(SocketPortError, match="unread bytes") as caught:
                    await soon(call)
                assert caught.value.port is other.input_port
                assert caught.value.socket is other
            assert await soon(other.input_port.read(10)) == b"rest"
            await one.sendall(b"again")
            assert await soon(other.recv(10)) == b"again"
            await one.sendall(b"and again")
            assert await soon(other.recv_into(bytearray(10))) == 9

    async def test_one_reads_at_a_time(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            reading = other.input_port.read(10)
            for second in (other.recv(10), other.input_port.readline()):
                with pytest.raises(SocketBusyError):
                    await soon(second)
            await one.sendall(b"for one")
            assert await soon(reading) == b"for one"
            receiving = other.recv(10)
            with pytest.raises(SocketBusyError):
                await soon(other.input_port.read(10))
            await one.sendall(b"another")
            assert await soon(receiving) == b"another"


class TestLife:
    async def test_a_port_is_the_same_object_at_every_access(self, streams: Streams) -> None:
        async with streams.pair() as (one, _):
            ports = one.input_port, one.output_port
            assert (one.input_port, one.output_port) == ports
            for port in ports:
                await soon(port.close())
            assert (one.input_port, one.output_port) == ports

    async def test_closing_the_input_port_leaves_the_socket_open(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            await one.sendall(b"line\ndropped")
            port = other.input_port
            assert await soon(port.readline()) == b"line\n"
            assert await soon(port.close()) is None
            assert port.closed
            assert not other.closed
            with pytest.raises(SocketPortError, match="closed") as caught:
                await soon(port.read(1))
            assert caught.value.port is port
            await one.sendall(b"received")
            assert await soon(other.recv(100)) == b"received"

    async def test_closing_the_output_port_sends_and_leaves_the_socket_open(
        self, streams: Streams
    ) -> None:
        async with streams.pair() as (one, other):
            written = await stick(one)
            closing = one.output_port.close()
            assert one.output_port.closed
            assert not closing.called
            with pytest.raises(SocketPortError, match="closed"):
                await soon(one.output_port.write(b"too late"))
            assert await read_exactly(other, len(written)) == written
            assert await soon(closing) is None
            assert not one.closed
            await soon(one.sendall(b"by the socket"))
            assert await read_exactly(other, 13) == b"by the socket"

    async def test_ports_that_are_dropped_leave_the_socket_open(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            one.output_port.write(b"written")
            reading = other.input_port.read(100)
            assert await soon(reading) == b"written"
            del reading
            gc.collect()
            await one.sendall(b"on")
            assert await soon(other.recv(10)) == b"on"

    async def test_closing_the_socket_closes_its_ports(self, streams: Streams) -> None:
        async with streams.pair() as (one, _):
            reading = one.input_port.read(1)
            ports = one.input_port, one.output_port
            one.close()
            assert failure_of(reading) is SocketClosedError
            assert [port.closed for port in ports] == [True, True]
            for refused in (ports[0].read(1), ports[1].write(b"x")):
                with pytest.raises(SocketError):
                    await soon(refused)

    async def test_a_closed_socket_has_no_new_ports(self) -> None:
        one, other = connected_pair()
        async with one, other:
            one.close()
            for name in ("input_port", "output_port"):
                with pytest.raises(SocketClosedError):
                    getattr(one, name)
