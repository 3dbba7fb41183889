"""`SocketContract`: tests for anybody's sockets, of what the calls of `Socket` promise."""

from __future__ import annotations

import socket as _socket
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, ClassVar, Final

from twisted.internet.defer import CancelledError, Deferred, inlineCallbacks

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
from ._contract import Contract, UnderTest, check, equal

__all__ = ["SocketContract"]

_BULK: Final = bytes(range(251)) * 40_000
"""Ten megabytes in which every displaced byte shows: more than buffers hold."""

_PIECE: Final = _BULK[:50_000]
_ROOM: Final = 16384
"""Bytes that the kernel is asked to buffer, so that a peer that does not read is noticed soon."""

_MOST_AT_ONCE: Final = 65536
"""Bytes that one `recv` gives at most, whatever it is asked for."""

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
    async def _sockets(self) -> AsyncIterator[tuple[UnderTest, UnderTest]]:
        ours, peer = await self._soon(self.make_sockets(), "the sockets are made")
        try:
            yield ours, peer
        finally:
            closing = [ours.close(), peer.close()]
            for each in closing:
                await self._soon(each, "close fires")

    async def _read_to_end(self, sock: UnderTest) -> bytes:
        received = bytearray()
        while chunk := await self._soon(sock.recv(_MOST_AT_ONCE), "something arrives"):
            received += chunk
        return bytes(received)

    async def _receives(self, sock: UnderTest, expected: bytes) -> None:
        """Check that the next bytes are *expected*."""
        received = bytearray()
        while missing := len(expected) - len(received):
            asked = min(_MOST_AT_ONCE, missing)
            chunk = await self._soon(sock.recv(asked), "something arrives")
            check(len(chunk) <= asked, f"recv({asked}) gave {len(chunk)} bytes")
            received += chunk
            if not chunk:
                break
        equal(bytes(received), expected, "what arrived")

    async def _fill(self, sock: UnderTest) -> tuple[bytes, Deferred[int]]:
        """Send until the kernel takes no more: what was sent, and a send that waits."""
        sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, _ROOM)
        # TLS 1.3 has tickets to read first, and the kernel finds more room meanwhile.
        receiving = sock.recv(1)
        await self._turns(5)
        receiving.cancel()
        receiving.addErrback(lambda failure: failure.trap(CancelledError))
        sent = bytearray()
        while len(sent) < len(_BULK):
            sending: Deferred[int] = sock.send(_PIECE)
            await self._turns(5)
            if not sending.called:
                return bytes(sent), sending
            sent += _PIECE[: await sending]
        raise AssertionError("a send must wait where the peer does not read")

    # Receiving and sending

    async def test_what_is_sent_arrives_both_ways(self) -> None:
        """At the same time."""
        async with self._sockets() as (ours, peer):
            there, back = ours.sendall(b"to the peer"), peer.sendall(b"and back")
            await self._receives(peer, b"to the peer")
            await self._receives(ours, b"and back")
            equal(await there, None, "what sendall gives")
            equal(await back, None, "what sendall gives")

    async def test_a_receive_gives_no_more_than_was_asked_for(self) -> None:
        """The rest stays for the next."""
        async with self._sockets() as (ours, peer):
            await peer.sendall(b"abcdef")
            equal(await self._soon(ours.recv(2), "it arrives"), b"ab", "the first two bytes")
            buffer = bytearray(b"......")
            count = await self._soon(ours.recv_into(memoryview(buffer)[1:4]), "it arrives")
            equal((count, buffer), (3, bytearray(b".cde..")), "count and buffer")
            equal(await self._soon(ours.recv(100), "it arrives"), b"f", "the rest")

    async def test_recv_into_leaves_the_rest_of_the_buffer(self) -> None:
        """When less has arrived."""
        async with self._sockets() as (ours, peer):
            buffer = bytearray(b"." * 10)
            await peer.sendall(b"abc")
            count = await self._soon(ours.recv_into(memoryview(buffer)[2:]), "it arrives")
            equal((count, buffer), (3, bytearray(b"..abc.....")), "count and buffer")

    async def test_a_receive_gives_no_more_than_64_kib(self) -> None:
        """Whatever it is asked for, so that its size allocates nothing."""
        async with self._sockets() as (ours, peer):
            sending = peer.sendall(_BULK[:300_000])
            piece = await self._soon(ours.recv(300_000), "it arrives")
            check(0 < len(piece) <= _MOST_AT_ONCE, f"recv gave {len(piece)} bytes")
            await self._receives(ours, _BULK[len(piece) : 300_000])
            await self._soon(sending, "sendall fires")

    async def test_a_receive_waits_until_something_arrives(self) -> None:
        """And fires with that; what it does not take stays."""
        async with self._sockets() as (ours, peer):
            for size in (1, 3, 5, 10, 100):
                receiving = ours.recv(size)
                await self._turns(5)
                check(not receiving.called, "a receive must wait where there is nothing")
                await peer.sendall(b"0123456789")
                got = await self._soon(receiving, "it arrives")
                while len(got) < len(b"0123456789"):
                    got += await self._soon(ours.recv(size), "it arrives")
                equal(got, b"0123456789", "what arrived")

    async def test_nothing_is_received_and_sent_at_once(self) -> None:
        """Neither waits, nor is it taken for the end."""
        async with self._sockets() as (ours, peer):
            equal(await self._soon(ours.recv(0), "it fires"), b"", "recv(0)")
            equal(await self._soon(ours.recv_into(bytearray()), "it fires"), 0, "recv_into")
            equal(await self._soon(ours.send(b""), "it fires"), 0, "send of nothing")
            equal(await self._soon(ours.sendall(b""), "it fires"), None, "sendall of nothing")
            await ours.sendall(b"something")
            await self._receives(peer, b"something")

    async def test_send_says_how_much_was_taken(self) -> None:
        """At least one byte, from the start; a few bytes are taken whole."""
        async with self._sockets() as (ours, peer):
            equal(await self._soon(ours.send(b"a few"), "send fires"), 5, "what send gives")
            sent = await self._soon(ours.send(_BULK), "send fires")
            check(0 < sent <= len(_BULK), f"send gave {sent}, of {len(_BULK)} bytes")
            shutting = ours.shutdown(_socket.SHUT_WR)
            received = await self._read_to_end(peer)
            check(received == b"a few" + _BULK[:sent], "exactly those must arrive")
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

    async def test_megabytes_pass_both_ways_at_once(self) -> None:
        """Neither direction waits for the other."""
        there, back = _BULK[:5_000_000], _BULK[-5_000_000:]
        async with self._sockets() as (ours, peer):
            sending = [ours.sendall(there), peer.sendall(back)]
            reading = Deferred.fromCoroutine(self._receives(peer, there))
            await self._receives(ours, back)
            for each in (*sending, reading):
                await self._soon(each, "everything arrives")

    async def test_any_contiguous_buffer_can_be_sent_and_filled(self) -> None:
        """As its bytes, whatever its items are."""
        text, numbers, filled = (
            b"12345678",
            array("i", [1, -2, 3]),
            array("i", [0] * 3),
        )
        async with self._sockets() as (ours, peer):
            for data in (text, bytearray(text), memoryview(b".." + text)[2:]):
                await ours.sendall(data)
                sent = await ours.send(data)
                await self._receives(peer, text + text[:sent])
            await peer.sendall(numbers)
            count = await self._soon(ours.recv_into(filled), "it arrives")
            equal(count, 3 * numbers.itemsize, "what recv_into gives")
            equal(filled, numbers, "the numbers")

    async def test_bad_arguments_are_refused(self) -> None:
        """At once, before anything waits."""
        holes = memoryview(bytearray(8))[::2]
        async with self._sockets() as (ours, _):
            for bad in (holes, "text", 8, None):
                for name in ("send", "sendall", "recv_into"):
                    self._refuses(TypeError, name, getattr(ours, name), bad)
            self._refuses(TypeError, "recv_into", ours.recv_into, b"read-only")
            for size, error in ((-1, ValueError), (True, TypeError), ("9", TypeError)):
                self._refuses(error, "recv", ours.recv, size)
            self._refuses(ValueError, "shutdown", ours.shutdown, 7)
            for name in ("read_timeout", "write_timeout"):
                setattr(ours, name, _SHORT)
                for value in (10, 0.5, True):
                    self._refuses(TypeError, name, setattr, ours, name, value)
                self._refuses(ValueError, name, setattr, ours, name, timedelta(0))
                equal(getattr(ours, name), _SHORT, f"the {name} that was set before")

    # The end

    async def test_the_end_of_the_stream_is_no_bytes(self) -> None:
        """And stays so, however often it is asked for; the other way goes on."""
        async with self._sockets() as (ours, peer):
            await peer.sendall(b"the last words")
            await self._soon(peer.shutdown(_socket.SHUT_WR), "shutdown fires")
            equal(await self._read_to_end(ours), b"the last words", "what came before the end")
            for _ in range(200):
                equal(await self._soon(ours.recv(100), "it fires"), b"", "recv at the end")
                count = await self._soon(ours.recv_into(bytearray(9)), "it fires")
                equal(count, 0, "recv_into at the end")
            await ours.sendall(b"an answer")
            await self._receives(peer, b"an answer")

    async def test_the_end_wakes_a_receive_that_waits(self) -> None:
        """The peer's end, and that of this side."""
        async with self._sockets() as (ours, peer):
            receiving = ours.recv(100)
            await self._soon(peer.shutdown(_socket.SHUT_WR), "shutdown fires")
            equal(await self._soon(receiving, "the end arrives"), b"", "recv at the end")
        async with self._sockets() as (ours, peer):
            receiving = ours.recv(100)
            await self._soon(ours.shutdown(_socket.SHUT_RD), "shutdown fires")
            equal(await self._soon(receiving, "it fires"), b"", "recv after SHUT_RD")

    async def test_an_answer_arrives_after_a_half_close(self) -> None:
        """Whichever side has finished."""
        answer = _BULK[:100_000]
        for swapped in (False, True):
            async with self._sockets() as pair:
                one, other = reversed(pair) if swapped else pair
                await one.sendall(b"question")
                await self._soon(one.shutdown(_socket.SHUT_WR), "shutdown fires")
                equal(await self._read_to_end(other), b"question", "what arrived")
                sending = other.sendall(answer)
                sending.addCallback(lambda _, other=other: other.shutdown(_socket.SHUT_WR))
                check(await self._read_to_end(one) == answer, "the answer must arrive")
                await self._soon(sending, "shutdown fires")

    async def test_nothing_can_be_sent_after_the_end(self) -> None:
        """Once this side has finished."""
        async with self._sockets() as (ours, _):
            await self._soon(ours.shutdown(_socket.SHUT_WR), "shutdown fires")
            for send in (ours.send, ours.sendall):
                await self._fails(send(b"more"), SocketClosedError, "a send after shutdown")
            check(not ours.closed, "shutdown must keep the socket open")

    async def test_nothing_is_received_after_shutting_that_down(self) -> None:
        """Sending goes on."""
        async with self._sockets() as (ours, peer):
            await self._soon(ours.shutdown(_socket.SHUT_RD), "shutdown fires")
            equal(await self._soon(ours.recv(10), "it fires"), b"", "recv after SHUT_RD")
            count = await self._soon(ours.recv_into(bytearray(10)), "it fires")
            equal(count, 0, "recv_into after SHUT_RD")
            await ours.sendall(b"still sends")
            await self._receives(peer, b"still sends")

    async def test_both_directions_can_be_shut_down_together(self) -> None:
        """Both ends read the end."""
        async with self._sockets() as (ours, peer):
            await self._soon(ours.shutdown(_socket.SHUT_RDWR), "shutdown fires")
            for each in (peer, ours):
                equal(await self._soon(each.recv(10), "the end arrives"), b"", "recv")

    async def test_close_acts_at_once(self) -> None:
        """What waits fails, and the peer reads what was sent, and the end."""
        async with self._sockets() as (ours, peer):
            await ours.sendall(b"bye")
            receiving = ours.recv(100)
            closing = ours.close()
            check(ours.closed, "closed must be true when close returns")
            equal(ours.fileno(), -1, "fileno of a closed socket")
            await self._fails(receiving, SocketClosedError, "a receive during close")
            reading = self._read_to_end(peer)
            equal(await self._soon(reading, "the end arrives"), b"bye", "what the peer reads")
            await peer.close()
            equal(await self._soon(closing, "close fires"), None, "what close gives")

    async def test_close_and_abort_fail_what_waits(self) -> None:
        """Sending and receiving, before they return."""
        for end in ("close", "abort"):
            async with self._sockets() as (ours, _):
                _, sending = await self._fill(ours)
                receiving = ours.recv_into(bytearray(10))
                getattr(ours, end)()
                check(ours.closed, f"closed must be true when {end} returns")
                for waiting, what in ((sending, "a send"), (receiving, "a receive")):
                    check(waiting.called, f"{what} must have failed when {end} returns")
                    await self._fails(waiting, SocketClosedError, f"{what} during {end}")
                ours.abort()

    async def test_close_may_be_called_any_number_of_times(self) -> None:
        """And never fails; to cancel one wait for it stops nothing."""
        async with self._sockets() as (ours, peer):
            closing = [ours.close() for _ in range(3)]
            cancelled = ours.close()
            cancelled.cancel()
            cancelled.addErrback(lambda failure: failure.trap(CancelledError))
            equal(await self._read_to_end(peer), b"", "what the peer reads")
            await peer.close()
            for each in (*closing, ours.close()):
                equal(await self._soon(each, "close fires"), None, "what close gives")

    async def test_calls_on_a_closed_socket_fail(self) -> None:
        """With the error that says so."""
        async with self._sockets() as (ours, _):
            check(not ours.closed, "closed must be false before")
            ours.close()
            calls: dict[str, Callable[[], Awaitable[object]]] = {
                "recv": lambda: ours.recv(1),
                "recv_into": lambda: ours.recv_into(bytearray(1)),
                "send": lambda: ours.send(b"x"),
                "sendall": lambda: ours.sendall(b"x"),
                "shutdown": lambda: ours.shutdown(_socket.SHUT_WR),
            }
            for name, call in calls.items():
                await self._fails(call(), SocketClosedError, f"{name} of a closed socket")
            buffer = (_socket.SOL_SOCKET, _socket.SO_SNDBUF)
            self._refuses(SocketClosedError, "getsockname", ours.getsockname)
            self._refuses(SocketClosedError, "getpeername", ours.getpeername)
            self._refuses(SocketClosedError, "getsockopt", ours.getsockopt, *buffer)
            self._refuses(SocketClosedError, "setsockopt", ours.setsockopt, *buffer, 10_000)

    async def test_an_abort_may_be_called_any_number_of_times(self) -> None:
        """Also after close; the peer loses the connection."""
        async with self._sockets() as (ours, peer):
            receiving, theirs = ours.recv(100), peer.recv(100)
            for _ in range(3):
                ours.abort()
            check(ours.closed, "closed must be true when abort returns")
            await self._fails(receiving, SocketClosedError, "a receive during abort")
            await self._soon(ours.close(), "close fires")
            ours.abort()
            if self.resets:
                await self._fails(theirs, SocketConnectionLostError, "a receive from it")
            else:
                # The kernel knows no reset for these.
                equal(await self._soon(theirs, "the end arrives"), b"", "what the peer reads")

    async def test_a_send_to_a_peer_that_has_gone_fails(self) -> None:
        """In the end, when the kernel knows; the socket stays open."""
        async with self._sockets() as (ours, peer):
            peer.abort()

            async def send() -> None:
                for _ in range(100):
                    await ours.sendall(b"anybody there?")
                    await self._turns(2)

            await self._fails(send(), SocketConnectionLostError, "a send to nobody")
            check(not ours.closed, "a loss must keep the socket open")

    async def test_the_context_manager_closes(self) -> None:
        """Whatever happens inside."""
        async with self._sockets() as (ours, peer):
            async with ours as entered:
                check(entered is ours, "entering must give the socket itself")
                await ours.sendall(b"inside")
                await self._receives(peer, b"inside")
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
            shutting = ours.shutdown(_socket.SHUT_WR)
            await self._fails(shutting, SocketBusyError, "a shutdown during a send")
            first.addCallback(lambda _: ours.shutdown(_socket.SHUT_WR))
            check(await self._read_to_end(peer) == _BULK, "the first must arrive undisturbed")
            await self._soon(first, "sendall fires")

    async def test_a_receive_goes_on_while_a_send_waits(self) -> None:
        """Each direction by itself."""
        async with self._sockets() as (ours, peer):
            sent, sending = await self._fill(ours)
            receiving = ours.recv(100)
            await peer.sendall(b"crossing")
            equal(await self._soon(receiving, "it arrives"), b"crossing", "what arrived")
            check(not sending.called, "the send must still wait")
            await self._receives(peer, sent)
            count = await self._soon(sending, "send fires")
            await self._receives(peer, _PIECE[:count])

    async def test_a_socket_that_always_has_data_lets_others_run(self) -> None:
        """However long its coroutine receives and never has to wait."""
        for method in ("recv", "recv_into"):
            ran: list[bool] = []
            async with self._sockets() as (ours, peer):
                call = self._reactor().callLater(0, ran.append, True)
                for _ in range(1000):
                    await peer.send(bytes(16384))
                    await getattr(ours, method)(16384 if method == "recv" else bytearray(16384))
                if call.active():
                    call.cancel()
            check(ran, f"a thousand calls of {method} must let the reactor run")

    # Cancelling

    async def test_a_cancelled_receive_consumes_nothing(self) -> None:
        """The next one gets what arrives, or what has arrived already."""
        async with self._sockets() as (ours, peer):
            buffer = bytearray(b"untouched")
            for receive, size in ((ours.recv, 100), (ours.recv_into, buffer)):
                receiving = receive(size)
                await self._turns(2)
                receiving.cancel()
                await self._fails(receiving, CancelledError, "a cancelled receive")
                check(not ours.closed, "cancelling must keep the socket open")
                await peer.sendall(b"for the next")
                await self._receives(ours, b"for the next")
            equal(buffer, b"untouched", "the buffer of a cancelled receive")
            receiving = ours.recv(100)
            await peer.sendall(b"unseen")
            # The reactor has not run since then, so nobody has looked.
            receiving.cancel()
            await self._fails(receiving, CancelledError, "a cancelled receive")
            await self._receives(ours, b"unseen")

    async def test_a_cancelled_sendall_keeps_the_socket(self) -> None:
        """What was sent of it is a beginning of it; both directions go on behind that."""
        async with self._sockets() as (ours, peer):
            sending = ours.sendall(_BULK)
            await self._turns(3)
            sending.cancel()
            await self._fails(sending, CancelledError, "a cancelled sendall")
            check(not ours.closed, "cancelling must keep the socket open")
            await peer.sendall(b"an answer")
            await self._receives(ours, b"an answer")
            following = b"what follows " * 5000
            done = ours.send(following)
            done.addCallback(lambda count: ours.sendall(memoryview(following)[count:]))
            done.addCallback(lambda _: ours.shutdown(_socket.SHUT_WR))
            received = await self._read_to_end(peer)
            await self._soon(done, "shutdown fires")
            check(received.endswith(following), "what follows must arrive whole")
            sent = received[: -len(following)]
            check(_BULK.startswith(sent), "what arrived must be a beginning of it")
            check(0 < len(sent) < len(_BULK), "a part must be missing")

    # Time

    async def test_read_timeout_ends_a_receive_and_keeps_the_socket(self) -> None:
        """The next one gets what arrives."""
        async with self._sockets() as (ours, peer):
            equal(ours.read_timeout, None, "the read_timeout of a new socket")
            ours.read_timeout = _SHORT
            equal(ours.read_timeout, _SHORT, "the read_timeout that was set")
            await self._fails(ours.recv(100), SocketReadTimeoutError, "a receive of nothing")
            check(not ours.closed, "a timeout must keep the socket open")
            ours.read_timeout = None
            await peer.sendall(b"late")
            await self._receives(ours, b"late")

    async def test_write_timeout_ends_a_send_and_keeps_the_socket(self) -> None:
        """What was sent of it is a beginning of it."""
        async with self._sockets() as (ours, peer):
            ours.write_timeout = _SHORT
            sending = ours.sendall(_BULK)
            await self._fails(sending, SocketWriteTimeoutError, "a send that nobody reads")
            ours.write_timeout = None
            check(not ours.closed, "a timeout must keep the socket open")
            shutting = ours.shutdown(_socket.SHUT_WR)
            received = await self._read_to_end(peer)
            await self._soon(shutting, "shutdown fires")
            check(_BULK.startswith(received), "what arrived must be a beginning of it")

    # What callbacks may do

    async def test_callbacks_and_generators_work(self) -> None:
        """What may wait gives a Deferred."""
        async with self._sockets() as (ours, peer):

            @inlineCallbacks
            def exchange() -> Generator[Deferred[Any], Any, tuple[bytes, bytes]]:
                yield ours.sendall(b"there")
                there = yield peer.recv(100)
                yield peer.sendall(b"back")
                return there, (yield ours.recv(100))

            equal(await self._soon(exchange(), "it ends"), (b"there", b"back"), "what arrived")
            done = ours.sendall(b"by callback").addCallback(lambda _: peer.recv(100))
            equal(await self._soon(done, "it arrives"), b"by callback", "what arrived")

    async def test_a_callback_of_a_receive_may_receive_again(self) -> None:
        """And so may the errback of one that was cancelled."""
        received: list[bytes] = []
        async with self._sockets() as (ours, peer):

            def again(data: bytes) -> object:
                received.append(data)
                return ours.recv(4).addCallback(again) if data else None

            receiving = ours.recv(4)
            receiving.addErrback(lambda failure: failure.trap(CancelledError) and ours.recv(4))
            receiving.addCallback(again)
            receiving.cancel()
            await self._turns(5)
            await peer.sendall(b"abcdefghij")
            await self._turns(5)
            await peer.sendall(b"klm")
            await self._soon(peer.shutdown(_socket.SHUT_WR), "shutdown fires")
            await self._soon(receiving, "the end arrives")
        equal(b"".join(received), b"abcdefghijklm", "what arrived")

    async def test_a_callback_of_a_receive_may_cancel_a_send(self) -> None:
        """What was sent before it arrives."""
        async with self._sockets() as (ours, peer):
            sent, sending = await self._fill(ours)
            receiving = ours.recv(10).addCallback(lambda _: sending.cancel())
            await peer.sendall(b"cancel!")
            await self._soon(receiving, "it arrives")
            await self._fails(sending, CancelledError, "a cancelled send")
            await self._receives(peer, sent)
            ours.abort()

    async def test_a_callback_may_close_the_socket(self) -> None:
        """Of a receive while a send waits, and the other way round."""
        async with self._sockets() as (ours, peer):
            _, sending = await self._fill(ours)
            receiving = ours.recv(10).addCallback(lambda _: ours.close() and None)
            await peer.sendall(b"close!")
            await self._soon(receiving, "it arrives")
            check(ours.closed, "closed must be true when close returns")
            await self._fails(sending, SocketClosedError, "a send during close")
            ours.abort()
        async with self._sockets() as (ours, peer):
            receiving = ours.recv(10)
            sending = ours.sendall(_BULK).addCallback(lambda _: ours.close() and None)
            check(await self._read_to_end(peer) == _BULK, "the bytes must arrive as they were")
            await self._soon(sending, "sendall fires")
            check(ours.closed, "closed must be true when close returns")
            await self._fails(receiving, SocketClosedError, "a receive during close")

    # Ports, addresses and options

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
            await self._receives(peer, b"an answer")

    async def test_the_ends_know_each_other(self) -> None:
        """Where two ends have different addresses."""
        async with self._sockets() as (ours, peer):
            equal(ours.getsockname().family, ours.family, "the family of its address")
            if ours.family in (_socket.AF_INET, _socket.AF_INET6):
                equal(ours.getpeername(), peer.getsockname(), "the peer's address")
                equal(peer.getpeername(), ours.getsockname(), "this socket's address")

    async def test_options_can_be_read_and_set(self) -> None:
        """As numbers and bytes; what the kernel does not know is an error of the socket."""
        keepalive = (_socket.SOL_SOCKET, _socket.SO_KEEPALIVE)
        async with self._sockets() as (ours, _):
            ours.setsockopt(*keepalive, 1)
            equal(ours.getsockopt(*keepalive), 1, "the option")
            equal(ours.getsockopt(*keepalive, 4), b"\1\0\0\0", "the option in bytes")
            self._refuses(SocketError, "setsockopt", ours.setsockopt, _socket.SOL_SOCKET, 9999, 1)
            self._refuses(SocketError, "getsockopt", ours.getsockopt, _socket.SOL_SOCKET, 9999)
