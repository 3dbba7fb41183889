"""The procedures of (chibi net) that carry data, with and without timeouts, and NetIO."""

from __future__ import annotations

import math
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, fail, succeed

from tests.support.clocks import ClockedReactor, turns
from tests.support.loopback import native_listener
from tests.support.streams import (
    KINDS,
    Streams,
    failure_of,
    fill,
    in_thread,
    noise,
    read_exactly,
    shrink_buffers,
    soon,
    streams_of,
)
from twisted_netsock import (
    Socket,
    SocketBusyError,
    SocketClosedError,
    SocketConnectionRefusedError,
    SocketReadTimeoutError,
    chibi,
)
from twisted_netsock.testing import CertificateAuthority, connected_pair

LOOPBACK = chibi.make_sockaddr(host="127.0.0.1", port=0)


@pytest.fixture(params=KINDS)
def streams(request: Any, tmp_path: Path, authority: CertificateAuthority) -> Streams:
    return streams_of(request.param, tmp_path, authority)


@asynccontextmanager
async def udp_pair(**fields: Any) -> AsyncIterator[tuple[Socket, Socket]]:
    """Open two bound UDP sockets, not connected."""
    made = [chibi.socket(socket.AF_INET, socket.SOCK_DGRAM, **fields) for _ in range(2)]
    async with made[0], made[1]:
        for sock in made:
            chibi.bind(sock, LOOPBACK)
        yield made[0], made[1]


class TestTransfer:
    async def test_what_is_sent_is_received(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            assert await soon(chibi.send(one, b"by send")) == 7
            assert await soon(chibi.receive(other, 100)) == b"by send"
            assert await soon(chibi.send(one, memoryview(b"..a range..")[2:9])) == 7
            buffer = bytearray(b"." * 10)
            assert await soon(chibi.receive_into(other, buffer)) == 7
            assert buffer == b"a range..."

    async def test_no_bytes_are_the_end_of_a_stream(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            await soon(one.shutdown(socket.SHUT_WR))
            buffer = bytearray(10)
            for timeout in (0, 5):
                assert await soon(chibi.receive(other, 10)) == b""
                assert await soon(chibi.receive_into(other, buffer)) == 0
                # The end has to arrive before it can be found at the first try.
                assert await soon(chibi.receive_non_blocking(other, 10, timeout)) == b""
                assert await soon(chibi.receive_into_non_blocking(other, buffer, timeout)) == 0

    async def test_flags_are_passed_on(self) -> None:
        one, other = connected_pair()
        async with one, other:
            assert await soon(chibi.send(one, b"looked at", socket.MSG_NOSIGNAL)) == 9
            peek = socket.MSG_PEEK
            buffer = bytearray(9)
            assert await soon(chibi.receive(other, 6, peek)) == b"looked"
            assert await soon(chibi.receive_into(other, buffer, peek)) == 9
            assert await soon(chibi.receive_non_blocking(other, 9, 1, peek)) == b"looked at"
            assert await soon(chibi.receive_into_non_blocking(other, buffer, 1, peek)) == 9
            assert await soon(chibi.receive(other, 9)) == b"looked at"
            for call in (
                lambda: chibi.receive(other, 1, socket.MSG_TRUNC),
                lambda: chibi.receive_non_blocking(other, 1, 1, socket.MSG_TRUNC),
            ):
                with pytest.raises(ValueError, match="MSG_TRUNC"):
                    call()

    async def test_tls_has_no_flags_and_no_addresses(
        self, authority: CertificateAuthority
    ) -> None:
        async with streams_of("tls", Path(), authority).pair() as (one, _):
            for call in (
                lambda: chibi.send(one, b"x", socket.MSG_DONTWAIT),
                lambda: chibi.receive(one, 1, socket.MSG_PEEK),
                lambda: chibi.receive_into(one, bytearray(1), socket.MSG_PEEK),
            ):
                with pytest.raises(ValueError, match="TLS has no flags"):
                    call()
            with pytest.raises(OSError, match="TLS has no datagrams"):
                await soon(chibi.send(one, b"x", 0, LOOPBACK))

    @pytest.mark.parametrize("form", ["AddressInfo", "SocketAddress", "tuple"])
    async def test_a_datagram_is_sent_to_an_address(self, form: str) -> None:
        async with udp_pair() as (one, other):
            address = other.getsockname()
            hints = chibi.make_address_info(socket.AF_INET, socket.SOCK_DGRAM, 0)
            info = await soon(chibi.get_address_info(*address, hints))
            target = {"AddressInfo": info, "SocketAddress": address, "tuple": tuple(address)}[form]
            assert await soon(chibi.send(one, b"first", 0, target)) == 5
            assert await soon(chibi.send_non_blocking(one, b"second", 1, 0, target)) == 6
            assert await soon(chibi.receive(other, 10, 0, info)) == b"first"
            assert (
                await soon(chibi.receive_non_blocking(other, 10, 1, addrinfo=hints)) == b"second"
            )

    async def test_the_expected_family_is_checked(self) -> None:
        any_family = chibi.make_address_info(socket.AF_UNSPEC, socket.SOCK_DGRAM, 0)
        other_family = chibi.make_address_info(socket.AF_INET6, socket.SOCK_DGRAM, 0)
        async with udp_pair() as (one, other):
            for wrong in (other_family, chibi.make_sockaddr(host="::1")):
                for call in (
                    lambda wrong=wrong: chibi.receive(other, 1, 0, wrong),
                    lambda wrong=wrong: chibi.receive_into(other, bytearray(1), 0, wrong),
                    lambda wrong=wrong: chibi.receive_non_blocking(other, 1, 1, 0, wrong),
                    lambda wrong=wrong: chibi.receive_into_non_blocking(
                        other, bytearray(1), 1, 0, wrong
                    ),
                ):
                    with pytest.raises(ValueError, match="AF_INET6"):
                        call()
            await soon(chibi.send(one, b"taken", 0, other.getsockname()))
            assert await soon(chibi.receive(other, 10, 0, any_family)) == b"taken"

    async def test_an_empty_datagram_is_no_timeout(self) -> None:
        clock = ClockedReactor()
        async with udp_pair(reactor=clock) as (one, other):
            for _ in range(3):
                assert await soon(chibi.send(one, b"", 0, other.getsockname())) == 0
            assert await soon(chibi.receive(other, 10)) == b""
            assert await soon(chibi.receive_non_blocking(other, 10, 0)) == b""
            assert await soon(chibi.receive_into_non_blocking(other, bytearray(10), 1)) == 0
            assert await soon(chibi.receive_non_blocking(other, 10, 0)) is None
            waiting = chibi.receive_non_blocking(other, 10, 1)
            clock.advance(1)
            assert await soon(waiting) is None


class TestTimeOuts:
    @pytest.mark.parametrize("seconds", [2, 2.0, timedelta(seconds=2)])
    async def test_seconds_or_a_timedelta_are_waited(self, streams: Streams, seconds: Any) -> None:
        clock = ClockedReactor()
        buffer = bytearray(b"." * 10)
        async with streams.pair(reactor=clock) as (one, other):
            receives: list[Callable[[], Deferred[Any]]] = [
                lambda: chibi.receive_non_blocking(other, 10, seconds),
                lambda: chibi.receive_into_non_blocking(other, buffer, seconds),
            ]
            for receive in receives:
                waiting = receive()
                clock.advance(1.75)
                await turns()
                assert not waiting.called
                clock.advance(0.25)
                assert await soon(waiting) is None
                assert not other.closed
                await soon(one.sendall(b"sent afterwards"))
                assert await read_exactly(other, 15) == b"sent afterwards"
            assert buffer == b"." * 10

    async def test_a_real_timeout_passes_on_the_real_reactor(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            assert await soon(chibi.receive_non_blocking(other, 10, 0.01)) is None
            waiting = chibi.receive_non_blocking(other, 10, timedelta(seconds=20))
            await soon(one.sendall(b"in time"))
            assert await soon(waiting) == b"in time"

    @pytest.mark.parametrize("zero", [0, 0.0, timedelta(0)])
    async def test_zero_tries_once(self, streams: Streams, zero: Any) -> None:
        buffer = bytearray(10)
        async with streams.pair() as (one, other):
            for missing in (
                chibi.receive_non_blocking(other, 10, zero),
                chibi.receive_into_non_blocking(other, buffer, zero),
            ):
                assert missing.called
                assert await missing is None
            assert chibi.send_non_blocking(one, b"sent", zero).called
            arriving = other.recv(1)
            assert await soon(arriving) == b"s"
            there = chibi.receive_non_blocking(other, 2, zero)
            assert there.called
            assert await there == b"en"
            into = chibi.receive_into_non_blocking(other, buffer, zero)
            assert into.called
            assert (await into, buffer[:1]) == (1, b"t")

    @pytest.mark.parametrize("seconds", [0, 3])
    async def test_a_send_that_times_out_has_sent_nothing(self, seconds: int) -> None:
        clock = ClockedReactor()
        one, other = connected_pair(reactor=clock)
        async with one, other:
            shrink_buffers(one)
            sent, sending = await fill(one, noise(50_000))
            sending.cancel()
            assert failure_of(sending) is CancelledError
            giving_up = chibi.send_non_blocking(one, b"never sent", seconds)
            clock.advance(seconds)
            assert await soon(giving_up) is None
            assert await read_exactly(other, len(sent)) == sent
            assert await soon(chibi.send_non_blocking(one, b"sent", 3)) == 4
            assert await read_exactly(other, 4) == b"sent"

    async def test_a_send_waits_for_room_until_the_timeout(self, streams: Streams) -> None:
        clock = ClockedReactor()
        async with streams.pair(reactor=clock) as (one, other):
            shrink_buffers(one)
            sent, first = await fill(one, noise(50_000))
            first.cancel()
            assert failure_of(first) is CancelledError
            waiting = chibi.send_non_blocking(one, b"in time", 3)
            clock.advance(2.5)
            assert not waiting.called
            await read_exactly(other, len(sent))
            assert await soon(waiting) == 7

    @pytest.mark.parametrize(
        ("seconds", "error"),
        [
            (True, TypeError),
            (False, TypeError),
            ("1", TypeError),
            (None, TypeError),
            (-1, ValueError),
            (-0.001, ValueError),
            (timedelta(seconds=-1), ValueError),
            (math.nan, ValueError),
            (math.inf, ValueError),
            (-math.inf, ValueError),
            pytest.param(10**400, ValueError, id="huge"),
        ],
    )
    async def test_what_is_no_time_is_refused_before_anything_happens(
        self, seconds: Any, error: type[Exception]
    ) -> None:
        one, other = connected_pair()
        async with one, other:
            await soon(one.sendall(b"unread"))
            for call in (
                lambda: chibi.send_non_blocking(one, b"unsent", seconds),
                lambda: chibi.receive_non_blocking(other, 10, seconds),
                lambda: chibi.receive_into_non_blocking(other, bytearray(10), seconds),
            ):
                with pytest.raises(error, match="timeout"):
                    call()
            await soon(one.shutdown(socket.SHUT_WR))
            assert await soon(other.recv(100)) == b"unread"
            assert await soon(other.recv(100)) == b""

    @pytest.mark.parametrize("seconds", [0, 5])
    async def test_an_error_is_no_timeout(self, seconds: int) -> None:
        one, other = connected_pair()
        async with one, other:
            receiving = other.recv(1)
            for call in (
                chibi.receive_non_blocking(other, 1, seconds),
                chibi.receive_into_non_blocking(other, bytearray(1), seconds),
            ):
                with pytest.raises(SocketBusyError):
                    await soon(call)
            other.close()
            assert failure_of(receiving) is SocketClosedError
            for call in (
                chibi.receive_non_blocking(other, 1, seconds),
                chibi.send_non_blocking(other, b"x", seconds),
            ):
                with pytest.raises(SocketClosedError):
                    await soon(call)

    async def test_closing_or_cancelling_is_no_timeout(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            waiting = chibi.receive_non_blocking(other, 10, 20)
            waiting.cancel()
            with pytest.raises(CancelledError):
                await waiting
            await soon(one.sendall(b"kept"))
            assert await soon(chibi.receive_non_blocking(other, 10, 20)) == b"kept"
            waiting = chibi.receive_non_blocking(other, 10, 20)
            other.close()
            assert failure_of(waiting) is SocketClosedError

    async def test_the_sockets_own_timeout_stays_an_error(self) -> None:
        clock = ClockedReactor()
        one, other = connected_pair(reactor=clock)
        async with one, other:
            other.read_timeout = timedelta(seconds=1)
            waiting = chibi.receive_non_blocking(other, 10, 5)
            clock.advance(1)
            assert failure_of(waiting) is SocketReadTimeoutError
            assert clock.getDelayedCalls() == []


class TestNetIO:
    async def test_a_connection_is_opened_with_its_ports(self) -> None:
        with native_listener() as (listener, address):
            opened = await soon(chibi.open_net_io(*address))
            sock, reader, writer = opened
            peer, _ = listener.accept()
            with peer:
                assert isinstance(opened, chibi.NetIO)
                assert (reader, writer) == (sock.input_port, sock.output_port)
                await soon(writer.write(b"question\n"))
                assert peer.recv(100) == b"question\n"
                peer.sendall(b"answer\nmore")
                assert await soon(reader.readline()) == b"answer\n"
                sock.close()
                assert sock.closed

    async def test_a_connection_that_cannot_be_made_is_an_error(self) -> None:
        called: list[object] = []
        with native_listener() as (_, address):
            pass
        with pytest.raises(SocketConnectionRefusedError):
            await soon(chibi.open_net_io(*address))
        with pytest.raises(SocketConnectionRefusedError):
            await soon(chibi.with_net_io(*address, lambda *ports: called.append(ports)))
        assert not called

    @pytest.mark.parametrize("kind", ["value", "Deferred", "coroutine"])
    async def test_the_result_comes_when_everything_is_sent_and_closed(self, kind: str) -> None:
        data = noise(2_000_000)
        with native_listener() as (listener, address):

            def proc(reader: Any, writer: Any) -> Any:
                async def talk() -> str:
                    assert await reader.readline() == b"go\n"
                    await writer.write(data)
                    return "result"

                if kind == "coroutine":
                    return talk()
                writer.write(data).addErrback(lambda failure: failure.trap(SocketClosedError))
                return succeed("result") if kind == "Deferred" else "result"

            def serve() -> bytes:
                peer, _ = listener.accept()
                with peer:
                    peer.settimeout(10)
                    if kind == "coroutine":
                        peer.sendall(b"go\n")
                    return b"".join(iter(lambda: peer.recv(65536), b""))

            serving = in_thread(serve)
            assert await soon(chibi.with_net_io(*address, proc)) == "result"
            assert await serving == data

    @pytest.mark.parametrize("kind", ["raised", "Deferred", "coroutine"])
    async def test_what_the_procedure_raises_comes_through_and_the_connection_is_closed(
        self, kind: str
    ) -> None:
        def proc(_reader: Any, _writer: Any) -> Any:
            async def talk() -> None:
                raise LookupError("of the procedure")

            if kind == "raised":
                raise LookupError("of the procedure")
            return talk() if kind == "coroutine" else fail(LookupError("of the procedure"))

        with native_listener() as (listener, address):
            with pytest.raises(LookupError, match="of the procedure"):
                await soon(chibi.with_net_io(*address, proc))
            with listener.accept()[0] as peer:
                peer.settimeout(10)
                assert peer.recv(1) == b""

    async def test_cancelling_cancels_the_procedure_and_closes(self) -> None:
        waiting: Deferred[None] = Deferred()
        with native_listener() as (listener, address):
            running = chibi.with_net_io(*address, lambda _reader, _writer: waiting)
            with listener.accept()[0] as peer:
                peer.settimeout(10)
                await turns()
                assert not running.called
                running.cancel()
                assert failure_of(running) is CancelledError
                assert waiting.called
                assert peer.recv(1) == b""
