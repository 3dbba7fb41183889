"""Streams of every kind, TCP, UNIX and TLS: the shipped contracts, and what only we promise."""

from __future__ import annotations

import gc
import os
import socket
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import CancelledError

from tests.support.clocks import ClockedReactor, turns
from tests.support.streams import (
    Streams,
    TCPStreams,
    TLSStreams,
    UNIXStreams,
    failure_of,
    fill,
    noise,
    read_exactly,
    shrink_buffers,
    soon,
)
from twisted_netsock import (
    SocketBusyError,
    SocketClosedError,
    SocketConnectionLostError,
    SocketError,
    SocketReadTimeoutError,
    SocketWriteTimeoutError,
)
from twisted_netsock._io.poller import poller_for
from twisted_netsock.testing import CertificateAuthority, ListenerContract, SocketContract

SECONDS = 10.0
TIMEOUT = timedelta(seconds=SECONDS)
KINDS = ["TCP", "UNIX", "TLS 1.2", "TLS 1.3", "TLS 1.2, accepted", "TLS 1.3, accepted"]


@pytest.fixture(params=KINDS)
def streams(
    request: pytest.FixtureRequest, authority: CertificateAuthority, tmp_path: Path
) -> Streams:
    match request.param.replace(",", "").split():
        case ["TCP"]:
            return TCPStreams()
        case ["UNIX"]:
            return UNIXStreams(tmp_path)
        case [_, version, *accepted]:
            return TLSStreams(authority, f"TLSv{version}", server_first=bool(accepted))
    raise AssertionError(request.param)


class Made:
    """Gives the contracts sockets of each kind."""

    @pytest.fixture(autouse=True)
    def _streams(self, streams: Streams) -> None:
        self.streams = streams
        self.resets = streams.resets

    async def make_sockets(self) -> Any:
        return await self.streams.connected()

    def make_listener(self) -> Any:
        return self.streams.listen()

    def make_client(self, listener: Any) -> Any:
        return self.streams.connect(listener)


class TestSockets(Made, SocketContract):
    pass


class TestListeners(Made, ListenerContract):
    pass


class TestTime:
    async def test_a_receive_fails_when_nothing_arrives_in_time(
        self, streams: Streams, clocked: ClockedReactor
    ) -> None:
        async with streams.pair(reactor=clocked, read_timeout=TIMEOUT) as (one, other):
            receiving = other.recv(10)
            clocked.advance(SECONDS - 0.1)
            assert not receiving.called
            clocked.advance(0.1)
            with pytest.raises(SocketReadTimeoutError) as caught:
                await receiving
            assert caught.value.socket is other
            assert not other.closed
            await one.sendall(b"too late, but not lost")
            assert await read_exactly(other, 22) == b"too late, but not lost"

    async def test_what_arrives_in_time_ends_the_time_limit(
        self, streams: Streams, clocked: ClockedReactor
    ) -> None:
        async with streams.pair(reactor=clocked, read_timeout=TIMEOUT) as (one, other):
            for _ in range(3):
                receiving = other.recv_into(bytearray(10))
                clocked.advance(SECONDS - 0.1)
                await one.sendall(b"in time")
                assert await soon(receiving) == 7
            assert clocked.getDelayedCalls() == []

    async def test_the_read_timeout_can_be_changed(
        self, streams: Streams, clocked: ClockedReactor
    ) -> None:
        async with streams.pair(reactor=clocked) as (one, _):
            assert one.read_timeout is None
            one.read_timeout = timedelta(milliseconds=5)
            receiving = one.recv(10)
            clocked.advance(0.005)
            assert failure_of(receiving) is SocketReadTimeoutError
            one.read_timeout = None
            receiving = one.recv(10)
            clocked.advance(1_000_000)
            assert not receiving.called
            receiving.addErrback(lambda failure: failure.trap(SocketClosedError))

    async def test_a_send_fails_when_the_peer_does_not_read(
        self, streams: Streams, clocked: ClockedReactor
    ) -> None:
        async with streams.pair(reactor=clocked, write_timeout=TIMEOUT) as (one, other):
            shrink_buffers(one)
            sent, sending = await fill(one, bytes(50_000))
            clocked.advance(SECONDS)
            with pytest.raises(SocketWriteTimeoutError) as caught:
                await sending
            assert caught.value.socket is one
            assert not one.closed
            assert await read_exactly(other, len(sent)) == sent

    async def test_progress_begins_the_write_timeout_anew(
        self, streams: Streams, clocked: ClockedReactor
    ) -> None:
        data = bytes(5_000_000)
        async with streams.pair(reactor=clocked, write_timeout=TIMEOUT) as (one, other):
            shrink_buffers(one)
            sending = one.sendall(data)
            for step in range(5):
                clocked.advance(SECONDS - 1)
                assert not sending.called, f"it failed after {step} steps"
                await read_exactly(other, 100_000)
                await turns()
            clocked.advance(SECONDS)
            clocked.advance(SECONDS)
            with pytest.raises(SocketWriteTimeoutError):
                await sending

    async def test_sending_does_not_prolong_the_read_timeout(
        self, streams: Streams, clocked: ClockedReactor
    ) -> None:
        async with streams.pair(reactor=clocked, read_timeout=TIMEOUT) as (one, other):
            shrink_buffers(one)
            sending = one.sendall(bytes(5_000_000))
            receiving = one.recv(10)
            clocked.advance(SECONDS - 1)
            await read_exactly(other, 100_000)
            await turns()
            clocked.advance(1)
            assert failure_of(receiving) is SocketReadTimeoutError
            sending.cancel()
            assert failure_of(sending) is CancelledError

    async def test_cancelling_and_closing_end_the_time_limits(
        self, streams: Streams, clocked: ClockedReactor
    ) -> None:
        async with streams.pair(reactor=clocked, read_timeout=TIMEOUT, write_timeout=TIMEOUT) as (
            one,
            _,
        ):
            shrink_buffers(one)
            _, sending = await fill(one, bytes(50_000))
            receiving = one.recv(10)
            assert len(clocked.getDelayedCalls()) == 2
            receiving.cancel()
            assert failure_of(receiving) is CancelledError
            assert len(clocked.getDelayedCalls()) == 1
            one.abort()
            assert clocked.getDelayedCalls() == []
            assert failure_of(sending) is SocketClosedError

    async def test_the_timeouts_hold_for_accepted_sockets_and_not_for_accept(
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


class TestErrors:
    """Each names its socket, and says what was wrong with it."""

    async def test_a_refused_call_names_its_socket(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            shrink_buffers(one)
            sent, sending = await fill(one, noise(50_000))
            first = one.recv(10)
            refused = (one.recv(10), one.recv_into(bytearray(10)), one.send(b"x"),
                       one.sendall(b"x"), one.shutdown(socket.SHUT_WR))  # fmt: skip
            for each in refused:
                with pytest.raises(SocketBusyError) as caught:
                    await soon(each)
                assert caught.value.socket is one
            assert await read_exactly(other, len(sent)) == sent
            await soon(sending)
            await other.sendall(b"for the first")
            assert await soon(first) == b"for the fi"
            for call in (
                lambda: one.setsockopt(socket.SOL_SOCKET, 9999, 1),
                lambda: one.getsockopt(socket.SOL_SOCKET, 9999),
            ):
                with pytest.raises(SocketError) as unknown:
                    call()
                assert unknown.value.socket is one

    async def test_a_call_on_a_closed_socket_names_it(self, streams: Streams) -> None:
        async with streams.pair() as (one, _):
            one.close()
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
            with pytest.raises(SocketClosedError):
                one.listen()

    async def test_a_loss_names_the_socket(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            other.abort()
            with pytest.raises(SocketConnectionLostError) as caught:
                for _ in range(100):
                    await soon(one.sendall(b"anybody there?"))
                    await turns(1)
            assert caught.value.socket is one

    async def test_a_listener_and_a_connection_name_themselves(self, streams: Streams) -> None:
        async with streams.pair() as (one, other):
            for each in (one, other):
                with pytest.raises(SocketError) as caught:
                    await soon(each.accept())
                assert caught.value.socket is each
        async with await streams.listen() as listener:
            first = listener.accept()
            with pytest.raises(SocketBusyError) as busy:
                await soon(listener.accept())
            assert busy.value.socket is listener
            listener.abort()
            assert failure_of(first) is SocketClosedError

    async def test_a_refused_argument_is_named(self, streams: Streams) -> None:
        async with streams.pair() as (one, _):
            for size, error in ((-1, ValueError), (True, TypeError), ("9", TypeError)):
                with pytest.raises(error, match="n"):
                    one.recv(size)
            with pytest.raises(TypeError, match="must be writable, not bytes"):
                one.recv_into(b"12345678")
            with pytest.raises(ValueError, match="how=7"):
                one.shutdown(7)
            times = (
                (10, TypeError),
                (0.5, TypeError),
                (True, TypeError),
                (timedelta(0), ValueError),
            )
            for name in ("read_timeout", "write_timeout"):
                for value, error in times:
                    with pytest.raises(error, match=name):
                        setattr(one, name, value)
            await one.shutdown(socket.SHUT_WR)
            with pytest.raises(SocketClosedError, match="shut down for writing"):
                await soon(one.send(b"x"))


class TestRepr:
    async def test_it_shows_the_state(self, streams: Streams) -> None:
        async with streams.pair() as (one, _):
            kind = type(one).__name__
            ends = f"from {one.getsockname()} to {one.getpeername()}"
            assert repr(one) == f"<{kind} descriptor {one.fileno()} {ends}>"
            one.abort()
            assert repr(one) == f"<{kind} closed>"

    async def test_that_of_a_listener_shows_its_address(self, streams: Streams) -> None:
        async with await streams.listen() as listener:
            assert repr(listener) == (
                f"<{type(listener).__name__} descriptor {listener.fileno()} "
                f"at {listener.getsockname()}>"
            )


class TestEnds:
    """Of the reactor, and of the last reference."""

    async def test_what_waits_fails_when_the_reactor_ends(self, streams: Streams) -> None:
        clock = ClockedReactor()
        async with streams.pair(reactor=clock) as (one, _):
            shrink_buffers(one)
            _, sending = await fill(one, bytes(50_000))
            receiving = one.recv(10)
            poller_for(clock).lose_all()
            assert failure_of(receiving) is SocketConnectionLostError
            assert failure_of(sending) is SocketConnectionLostError

    async def test_an_errback_of_the_reactors_end_may_close_the_socket(
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
