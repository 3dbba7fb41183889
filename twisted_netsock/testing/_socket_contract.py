"""`SocketContract`: tests for anybody's sockets, of what the calls of `Socket` promise."""

from __future__ import annotations

import socket as _socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, ClassVar, Final

from twisted.internet.defer import CancelledError, Deferred

from .._public import public_in
from ..errors import (
    SocketBusyError,
    SocketClosedError,
    SocketConnectionLostError,
    SocketError,
    SocketPortError,
    SocketReadTimeoutError,
    SocketWriteTimeoutError,
)
from ._contract import Contract, check, equal

__all__ = ["SocketContract"]

_BULK: Final = bytes(range(251)) * 40_000
"""Ten megabytes in which every displaced byte shows: more than buffers hold."""

_SHORT: Final = timedelta(milliseconds=50)


@public_in("twisted_netsock.testing")
class SocketContract(Contract):
    """
    Tests for connected stream sockets: mix it into a class of tests.

    The class supplies `make_sockets`. The tests are coroutine methods, as those
    of `ClientEndpointContract`.

    Attributes:
        resets: Whether an abort reaches the peer as a lost connection. Between
            UNIX sockets it looks like an end in order.
    """

    resets: ClassVar[bool] = True

    def make_sockets(self) -> Awaitable[tuple[Any, Any]]:
        """
        Make two sockets that are connected with each other; for the class to supply.

        Returns:
            A Deferred or coroutine that gives the socket to test and its peer. The
            tests close both.
        """
        raise NotImplementedError(f"{type(self).__name__} must supply make_sockets")

    @asynccontextmanager
    async def _sockets(self) -> AsyncIterator[tuple[Any, Any]]:
        ours, peer = await self._soon(self.make_sockets(), "the sockets are made")
        try:
            yield ours, peer
        finally:
            closing = [ours.close(), peer.close()]
            for each in closing:
                await self._soon(each, "close fires")

    async def _read_to_end(self, sock: Any) -> bytes:
        received = bytearray()
        while chunk := await self._soon(sock.recv(65536), "something arrives"):
            received += chunk
        return bytes(received)

    # Receiving and sending

    async def test_what_is_sent_arrives_both_ways(self) -> None:
        """At the same time."""
        async with self._sockets() as (ours, peer):
            there, back = ours.sendall(b"to the peer"), peer.sendall(b"and back")
            equal(await self._soon(peer.recv(100), "it arrives"), b"to the peer", "what arrived")
            equal(await self._soon(ours.recv(100), "it arrives"), b"and back", "what arrived")
            equal(await there, None, "what sendall gives")
            equal(await back, None, "what sendall gives")

    async def test_a_receive_gives_no_more_than_was_asked_for(self) -> None:
        """The rest stays for the next."""
        async with self._sockets() as (ours, peer):
            await peer.sendall(b"abcdef")
            equal(await self._soon(ours.recv(2), "it arrives"), b"ab", "the first two bytes")
            buffer = bytearray(b"......")
            count = await self._soon(ours.recv_into(memoryview(buffer)[:3]), "it arrives")
            equal((count, buffer), (3, bytearray(b"cde...")), "count and buffer")
            equal(await self._soon(ours.recv(100), "it arrives"), b"f", "the rest")

    async def test_a_receive_waits_until_something_arrives(self) -> None:
        """And fires with that."""
        async with self._sockets() as (ours, peer):
            receiving = ours.recv(100)
            await self._turns(5)
            check(not receiving.called, "a receive must wait where there is nothing")
            await peer.sendall(b"late")
            equal(await self._soon(receiving, "it arrives"), b"late", "what arrived")

    async def test_nothing_is_received_and_sent_at_once(self) -> None:
        """Neither waits, nor is it taken for the end."""
        async with self._sockets() as (ours, peer):
            equal(await self._soon(ours.recv(0), "it fires"), b"", "recv(0)")
            equal(await self._soon(ours.send(b""), "it fires"), 0, "send of nothing")
            equal(await self._soon(ours.sendall(b""), "it fires"), None, "sendall of nothing")
            await ours.sendall(b"something")
            equal(await self._soon(peer.recv(100), "it arrives"), b"something", "what arrived")

    async def test_send_says_how_much_was_taken(self) -> None:
        """At least one byte, from the start."""
        async with self._sockets() as (ours, peer):
            sent = await self._soon(ours.send(_BULK), "send fires")
            check(0 < sent <= len(_BULK), f"send gave {sent}, of {len(_BULK)} bytes")
            shutting = ours.shutdown(_socket.SHUT_WR)
            check(await self._read_to_end(peer) == _BULK[:sent], "exactly those must arrive")
            await self._soon(shutting, "shutdown fires")

    async def test_sendall_sends_everything_in_order(self) -> None:
        """And fires when the kernel has every byte."""
        async with self._sockets() as (ours, peer):
            sending = ours.sendall(_BULK)
            await self._turns(5)
            check(not sending.called, "sendall must wait while the peer does not read")
            sending.addCallback(lambda _: ours.shutdown(_socket.SHUT_WR))
            check(await self._read_to_end(peer) == _BULK, "the bytes must arrive as they were")
            await self._soon(sending, "sendall fires")

    # The end

    async def test_the_end_of_the_stream_is_no_bytes(self) -> None:
        """And stays so, however often it is asked for; the other way goes on."""
        async with self._sockets() as (ours, peer):
            await peer.sendall(b"the last words")
            await self._soon(peer.shutdown(_socket.SHUT_WR), "shutdown fires")
            equal(await self._read_to_end(ours), b"the last words", "what came before the end")
            for _ in range(2):
                equal(await self._soon(ours.recv(100), "it fires"), b"", "recv at the end")
                count = await self._soon(ours.recv_into(bytearray(9)), "it fires")
                equal(count, 0, "recv_into at the end")
            await ours.sendall(b"an answer")
            equal(await self._soon(peer.recv(100), "it arrives"), b"an answer", "what arrived")

    async def test_nothing_can_be_sent_after_the_end(self) -> None:
        """Once this side has finished."""
        async with self._sockets() as (ours, _):
            await self._soon(ours.shutdown(_socket.SHUT_WR), "shutdown fires")
            await self._fails(ours.sendall(b"more"), SocketError, "a send after shutdown")

    async def test_close_acts_at_once(self) -> None:
        """What waits fails, and the peer reads the end."""
        async with self._sockets() as (ours, peer):
            receiving = ours.recv(100)
            closing = ours.close()
            check(ours.closed, "closed must be true when close returns")
            equal(ours.fileno(), -1, "fileno of a closed socket")
            await self._fails(receiving, SocketClosedError, "a receive during close")
            reading = self._read_to_end(peer)
            equal(await self._soon(reading, "the end arrives"), b"", "what the peer reads")
            await peer.close()
            equal(await self._soon(closing, "close fires"), None, "what close gives")

    async def test_close_may_be_called_any_number_of_times(self) -> None:
        """And never fails."""
        async with self._sockets() as (ours, peer):
            closing = [ours.close() for _ in range(3)]
            await peer.close()
            for each in (*closing, ours.close()):
                equal(await self._soon(each, "close fires"), None, "what close gives")

    async def test_calls_on_a_closed_socket_fail(self) -> None:
        """With the error that says so."""
        async with self._sockets() as (ours, _):
            ours.close()
            calls: dict[str, Callable[[], Deferred[Any]]] = {
                "recv": lambda: ours.recv(1),
                "recv_into": lambda: ours.recv_into(bytearray(1)),
                "send": lambda: ours.send(b"x"),
                "sendall": lambda: ours.sendall(b"x"),
                "shutdown": lambda: ours.shutdown(_socket.SHUT_WR),
            }
            for name, call in calls.items():
                await self._fails(call(), SocketClosedError, f"{name} of a closed socket")

    async def test_an_abort_may_be_called_any_number_of_times(self) -> None:
        """Also after close; the peer loses the connection."""
        async with self._sockets() as (ours, peer):
            receiving = ours.recv(100)
            for _ in range(3):
                ours.abort()
            check(ours.closed, "closed must be true when abort returns")
            await self._fails(receiving, SocketClosedError, "a receive during abort")
            await self._soon(ours.close(), "close fires")
            ours.abort()
            if self.resets:
                reading = self._read_to_end(peer)
                await self._fails(reading, SocketConnectionLostError, "a receive from it")
            else:
                reading = self._read_to_end(peer)
                equal(await self._soon(reading, "the end arrives"), b"", "what the peer reads")

    async def test_the_context_manager_closes(self) -> None:
        """Whatever happens inside."""
        async with self._sockets() as (ours, peer):
            async with ours as entered:
                check(entered is ours, "entering must give the socket itself")
                peer.close()
            check(ours.closed, "closed must be true afterwards")

    # One at a time

    async def test_a_second_receive_is_refused(self) -> None:
        """While the first waits, which it leaves alone."""
        async with self._sockets() as (ours, peer):
            first = ours.recv(100)
            await self._fails(ours.recv(100), SocketBusyError, "a second receive")
            await self._fails(ours.recv_into(bytearray(9)), SocketBusyError, "a second receive")
            await peer.sendall(b"for the first")
            equal(await self._soon(first, "it arrives"), b"for the first", "what it received")

    async def test_a_second_send_is_refused(self) -> None:
        """While the first waits, which it leaves alone."""
        async with self._sockets() as (ours, peer):
            first = ours.sendall(_BULK)
            await self._fails(ours.send(b"x"), SocketBusyError, "a second send")
            await self._fails(ours.sendall(b"x"), SocketBusyError, "a second send")
            first.addCallback(lambda _: ours.shutdown(_socket.SHUT_WR))
            check(await self._read_to_end(peer) == _BULK, "the first must arrive undisturbed")
            await self._soon(first, "sendall fires")

    # Cancelling

    async def test_a_cancelled_receive_consumes_nothing(self) -> None:
        """The next one gets what arrives."""
        async with self._sockets() as (ours, peer):
            for receive, size in ((ours.recv, 100), (ours.recv_into, bytearray(9))):
                receiving = receive(size)
                await self._turns(2)
                receiving.cancel()
                await self._fails(receiving, CancelledError, "a cancelled receive")
            check(not ours.closed, "cancelling must keep the socket open")
            await peer.sendall(b"for the next")
            equal(await self._soon(ours.recv(100), "it arrives"), b"for the next", "what arrived")

    async def test_a_cancelled_sendall_keeps_the_socket(self) -> None:
        """What was sent of it is a beginning of it, and receiving goes on."""
        async with self._sockets() as (ours, peer):
            sending = ours.sendall(_BULK)
            await self._turns(3)
            sending.cancel()
            await self._fails(sending, CancelledError, "a cancelled sendall")
            check(not ours.closed, "cancelling must keep the socket open")
            await peer.sendall(b"an answer")
            equal(await self._soon(ours.recv(100), "it arrives"), b"an answer", "what arrived")
            shutting = ours.shutdown(_socket.SHUT_WR)
            received = await self._read_to_end(peer)
            await self._soon(shutting, "shutdown fires")
            check(_BULK.startswith(received), "what arrived must be a beginning of it")
            check(len(received) < len(_BULK), "a part must be missing")

    # Time

    async def test_read_timeout_ends_a_receive_and_keeps_the_socket(self) -> None:
        """The next one gets what arrives."""
        async with self._sockets() as (ours, peer):
            ours.read_timeout = _SHORT
            equal(ours.read_timeout, _SHORT, "the read_timeout that was set")
            await self._fails(ours.recv(100), SocketReadTimeoutError, "a receive of nothing")
            ours.read_timeout = None
            await peer.sendall(b"late")
            equal(await self._soon(ours.recv(100), "it arrives"), b"late", "what arrived")

    async def test_write_timeout_ends_a_send_and_keeps_the_socket(self) -> None:
        """What was sent of it is a beginning of it."""
        async with self._sockets() as (ours, peer):
            ours.write_timeout = _SHORT
            sending = ours.sendall(_BULK)
            await self._fails(sending, SocketWriteTimeoutError, "a send that nobody reads")
            ours.write_timeout = None
            check(not ours.closed, "a time-out must keep the socket open")
            shutting = ours.shutdown(_socket.SHUT_WR)
            received = await self._read_to_end(peer)
            await self._soon(shutting, "shutdown fires")
            check(_BULK.startswith(received), "what arrived must be a beginning of it")

    # Ports and addresses

    async def test_ports_read_and_write_lines(self) -> None:
        """And are the same objects at every access."""
        async with self._sockets() as (ours, peer):
            check(ours.input_port is ours.input_port, "input_port must be one object")
            check(ours.output_port is ours.output_port, "output_port must be one object")
            await peer.sendall(b"one\ntwo\nthe rest")
            line = await self._soon(ours.input_port.readline(), "a line arrives")
            equal(line, b"one\n", "the first line")
            await self._fails(ours.recv(9), SocketPortError, "a receive past input_port")
            line = await self._soon(ours.input_port.readline(), "a line arrives")
            equal(line, b"two\n", "the second line")
            rest = await self._soon(ours.input_port.read_exactly(8), "the rest arrives")
            equal(rest, b"the rest", "the rest")
            await self._soon(ours.output_port.write(b"an answer"), "write fires")
            await self._soon(ours.output_port.flush(), "flush fires")
            equal(await self._soon(peer.recv(100), "it arrives"), b"an answer", "what arrived")

    async def test_the_ends_know_each_other(self) -> None:
        """Where addresses tell two ends apart."""
        async with self._sockets() as (ours, peer):
            if ours.family in (_socket.AF_INET, _socket.AF_INET6):
                equal(ours.getpeername(), peer.getsockname(), "the peer's address")
                equal(peer.getpeername(), ours.getsockname(), "this socket's address")
