"""How TLS connections end, and what a cancelled send leaves behind."""

from __future__ import annotations

import gc
import os
import socket
import ssl
import weakref
from datetime import timedelta
from pathlib import Path

import pytest
from twisted.internet.defer import CancelledError

from tests.support.clocks import ClockedReactor, turns
from tests.support.streams import (
    PythonPeers,
    TLSStreams,
    UNIXTLSStreams,
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
    SocketClosedError,
    SocketConnectionLostError,
    SocketError,
    SocketWriteTimeoutError,
    TLSError,
    TLSTruncatedError,
)
from twisted_netsock.testing import CertificateAuthority

RECORD = 16384
"""What a cancelled send may still send."""

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]

pytestmark = pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)


@pytest.fixture
def tls(authority: CertificateAuthority, version: ssl.TLSVersion) -> TLSStreams:
    return TLSStreams(authority, version)


@pytest.fixture(params=["client", "server"])
def hostile(
    authority: CertificateAuthority,
    version: ssl.TLSVersion,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> PythonPeers:
    return PythonPeers(authority, request.param, version, tmp_path)


def end_without_goodbye(peer: ssl.SSLSocket) -> None:
    """End the TCP stream under *peer*, whose TLS says nothing."""
    peer.shutdown(socket.SHUT_WR)


class TestTruncation:
    async def test_an_end_without_close_notify_is_an_error(self, hostile: PythonPeers) -> None:
        async with hostile.meet() as (ours, peer):
            receiving = ours.recv(10)
            end_without_goodbye(peer)
            for call in (
                lambda: receiving,
                lambda: ours.recv(10),
                lambda: ours.recv_into(bytearray(10)),
            ):
                with pytest.raises(TLSTruncatedError) as caught:
                    await soon(call())
                assert caught.value.socket is ours
            assert await soon(ours.close()) is None

    async def test_one_that_ends_a_close_leaves_no_garbage(self, hostile: PythonPeers) -> None:
        """Else OpenSSL's memory stays until the garbage collector runs."""

        async def meet() -> weakref.ref[object]:
            async with hostile.meet() as (ours, peer):
                closing = ours.close()
                end_without_goodbye(peer)
                await soon(closing)
                return weakref.ref(ours._descriptor.connection)

        gc.disable()
        try:
            connection = await meet()
            # Until then this runs within the attempt.
            await turns(1)
            assert connection() is None
        finally:
            gc.enable()

    @pytest.mark.parametrize("size", [7, RECORD])
    async def test_what_came_before_it_arrives(self, hostile: PythonPeers, size: int) -> None:
        data = noise(size)
        async with hostile.meet() as (ours, peer):
            peer.sendall(data)
            end_without_goodbye(peer)
            await turns()
            buffer = bytearray(100_000)
            assert await soon(ours.recv_into(buffer)) == size
            assert buffer.startswith(data)
            for call in (lambda: ours.recv_into(buffer), lambda: ours.recv(10)):
                with pytest.raises(TLSTruncatedError):
                    await soon(call())

    async def test_a_reset_is_a_lost_connection(self, hostile: PythonPeers) -> None:
        async with hostile.meet() as (ours, peer):
            receiving = ours.recv(10)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            socket.socket(fileno=peer.detach()).close()
            with pytest.raises(SocketConnectionLostError) as caught:
                await soon(receiving)
            assert caught.value.socket is ours
            with pytest.raises(SocketConnectionLostError):
                await soon(ours.sendall(b"x"))
            assert await soon(ours.close()) is None

    async def test_a_forged_record_is_an_error_from_then_on(self, hostile: PythonPeers) -> None:
        async with hostile.meet() as (ours, peer):
            peer.sendall(b"genuine")
            os.write(peer.fileno(), b"\x17\x03\x03\x00\x20" + bytes(32))
            assert await read_exactly(ours, 7) == b"genuine"
            for call in (lambda: ours.recv(10), lambda: ours.recv(10), lambda: ours.send(b"x")):
                with pytest.raises(TLSError) as caught:
                    await soon(call())
                assert not isinstance(caught.value, TLSTruncatedError)
                assert caught.value.reason
                assert caught.value.alert is None
            assert await soon(ours.close()) is None


class TestRecords:
    """Several records at once fill one buffer, as far as they go."""

    @pytest.mark.parametrize("records", [1, 3])
    async def test_one_receive_takes_all_that_is_there(
        self, tls: TLSStreams, records: int
    ) -> None:
        data = noise(records * RECORD)
        buffer = bytearray(100_000)
        async with tls.pair() as (one, other):
            await one.sendall(data)
            await turns()
            assert await soon(other.recv_into(buffer)) == len(data)
            assert buffer.startswith(data)
            waiting = other.recv(1)
            assert not waiting.called
            waiting.cancel()
            assert failure_of(waiting) is CancelledError

    async def test_the_end_of_the_stream_waits_for_the_next_receive(self, tls: TLSStreams) -> None:
        data = noise(2 * RECORD)
        buffer = bytearray(100_000)
        async with tls.pair() as (one, other):
            await one.sendall(data)
            await one.shutdown(socket.SHUT_WR)
            await turns()
            assert await soon(other.recv_into(buffer)) == len(data)
            assert await soon(other.recv_into(buffer)) == 0
            assert buffer.startswith(data)

    async def test_what_a_send_has_counted_is_with_the_kernel(self, hostile: PythonPeers) -> None:
        async with hostile.meet() as (ours, peer):
            shrink_buffers(ours)
            sent, sending = await fill(ours, noise(RECORD))
            # This side has no turn while the peer reads.
            peer.settimeout(5)
            got = bytearray()
            while len(got) < len(sent):
                got += peer.recv(len(sent) - len(got))
            assert bytes(got) == sent
            sending.cancel()
            assert failure_of(sending) is CancelledError


class TestTLSShutdown:
    async def test_all_that_was_sent_arrives_though_the_peers_last_bytes_were_never_read(
        self, tls: TLSStreams
    ) -> None:
        data = noise(200_000)
        async with tls.pair() as (one, other):
            await other.sendall(b"nobody reads this")

            async def send_and_close() -> None:
                await soon(one.sendall(data))
                await soon(one.close())

            async def receive() -> bytes:
                await turns()
                got = await read_to_end(other)
                other.close()
                return got

            assert (await together(send_and_close(), receive()))[1] == data

    async def test_a_send_that_waits_when_the_socket_closes_ends_in_order(
        self, tls: TLSStreams
    ) -> None:
        chunk = noise(RECORD)
        async with tls.pair() as (one, other):
            shrink_buffers(one)
            sent, sending = await fill(one, chunk)
            closing = one.close()
            sending.addErrback(lambda _: None)
            got = await read_to_end(other)
            assert got.startswith(sent)
            assert chunk.startswith(got[len(sent) :])
            other.close()
            await soon(closing)

    async def test_the_close_timeout_bounds_a_peer_that_ignores_it(self, tls: TLSStreams) -> None:
        clock = ClockedReactor()
        patience = timedelta(seconds=3)
        async with tls.pair(client={"reactor": clock, "close_timeout": patience}) as (one, other):
            closing = one.close()
            assert one.closed
            await turns()
            clock.advance(2.9)
            assert not closing.called
            clock.advance(0.1)
            assert closing.called
            assert await soon(closing) is None
            assert await soon(other.recv(1)) == b""
        assert clock.getDelayedCalls() == []

    async def test_a_full_kernel_does_not_prolong_it(self, tls: TLSStreams) -> None:
        clock = ClockedReactor()
        async with tls.pair(client={"reactor": clock}) as (one, other):
            shrink_buffers(one)
            _, sending = await fill(one, bytes(RECORD))
            closing = one.close()
            sending.addErrback(lambda _: None)
            clock.advance(5)
            assert await soon(closing) is None
            with pytest.raises(SocketError):
                await read_to_end(other)
        assert clock.getDelayedCalls() == []

    async def test_a_peer_that_never_stops_sending_is_dropped(self, tls: TLSStreams) -> None:
        async with tls.pair() as (one, other):
            sending = other.sendall(bytes(50_000_000))
            await turns()
            await soon(one.close())
            with pytest.raises(SocketConnectionLostError):
                await soon(sending)

    async def test_an_abort_cuts_it_short(self, tls: TLSStreams) -> None:
        clock = ClockedReactor()
        async with tls.pair(client={"reactor": clock}) as (one, _):
            closing = one.close()
            await turns()
            assert not closing.called
            one.abort()
            assert await soon(closing) is None
        assert clock.getDelayedCalls() == []

    async def test_after_both_have_half_closed_a_close_is_done_at_once(
        self, tls: TLSStreams
    ) -> None:
        async with tls.pair() as (one, other):
            await one.shutdown(socket.SHUT_WR)
            await other.shutdown(socket.SHUT_WR)
            assert await soon(one.recv(1)) == b""
            assert await soon(other.recv(1)) == b""
            assert one.close().called
            assert other.close().called


class TestCancelledSends:
    """What OpenSSL has taken of a cancelled send goes out, before anything else."""

    @pytest.mark.parametrize("size", [1, RECORD, 3 * RECORD], ids=["shorter", "equal", "longer"])
    @pytest.mark.parametrize("method", ["send", "sendall"])
    async def test_other_bytes_follow_exactly(
        self, tls: TLSStreams, method: str, size: int
    ) -> None:
        chunk, following = noise(RECORD, 1), noise(size, 2)
        async with tls.pair() as (one, other):
            shrink_buffers(one, other)
            sent, sending = await fill(one, chunk)
            sending.cancel()
            assert failure_of(sending) is CancelledError

            async def go_on() -> None:
                if method == "sendall":
                    await soon(one.sendall(following))
                else:
                    rest = following
                    while rest:
                        rest = rest[await soon(one.send(rest)) :]
                await soon(one.shutdown(socket.SHUT_WR))

            _, got = await together(go_on(), read_to_end(other))
            self.check(got, sent, chunk, following)

    @pytest.mark.parametrize("method", ["shutdown", "close"])
    async def test_the_end_of_the_stream_follows_exactly(
        self, tls: TLSStreams, method: str
    ) -> None:
        chunk = noise(RECORD)
        async with tls.pair() as (one, other):
            shrink_buffers(one, other)
            sent, sending = await fill(one, chunk)
            sending.cancel()
            assert failure_of(sending) is CancelledError
            ending = one.close() if method == "close" else one.shutdown(socket.SHUT_WR)
            got = await read_to_end(other)
            self.check(got, sent, chunk, b"")
            other.close()
            await soon(ending)

    async def test_a_cancelled_shutdown_can_be_repeated(self, tls: TLSStreams) -> None:
        async with tls.pair() as (one, other):
            shrink_buffers(one, other)
            chunk = noise(RECORD)
            sent, sending = await fill(one, chunk)
            sending.cancel()
            assert failure_of(sending) is CancelledError
            ending = one.shutdown(socket.SHUT_WR)
            assert not ending.called
            ending.cancel()
            assert failure_of(ending) is CancelledError
            _, got = await together(finished(one.shutdown(socket.SHUT_WR)), read_to_end(other))
            self.check(got, sent, chunk, b"")

    async def test_nothing_can_be_sent_after_a_shutdown_that_was_cancelled_at_its_end(
        self, tls: TLSStreams, tmp_path: Path
    ) -> None:
        """OpenSSL takes no more data once close_notify has been made, be it stuck here."""
        unix = UNIXTLSStreams(tls, tmp_path / "socket")
        async with unix.pair() as (one, other):
            shrink_buffers(one, other)
            sent, sending = await fill(one, b"x")
            sending.cancel()
            assert failure_of(sending) is CancelledError
            # Now there is room for one record: the one that was kept.
            assert await soon(other.recv(1)) == b"x"
            ending = one.shutdown(socket.SHUT_WR)
            assert not ending.called
            ending.cancel()
            assert failure_of(ending) is CancelledError
            with pytest.raises(SocketClosedError, match="shut down for writing"):
                await soon(one.send(b"late"))
            _, got = await together(finished(one.shutdown(socket.SHUT_WR)), read_to_end(other))
            assert got == sent

    async def test_other_bytes_follow_a_write_timeout_exactly(self, tls: TLSStreams) -> None:
        clock = ClockedReactor()
        limit = timedelta(seconds=1)
        chunk, following = noise(RECORD, 1), noise(1000, 2)
        async with tls.pair(client={"reactor": clock, "write_timeout": limit}) as (one, other):
            shrink_buffers(one, other)
            sent, sending = await fill(one, chunk)
            clock.advance(1)
            assert failure_of(sending) is SocketWriteTimeoutError
            ending = one.sendall(following).addCallback(lambda _: one.shutdown(socket.SHUT_WR))
            _, got = await together(finished(ending), read_to_end(other))
            self.check(got, sent, chunk, following)

    async def test_receiving_goes_on_after_one(self, tls: TLSStreams) -> None:
        async with tls.pair() as (one, other):
            shrink_buffers(one, other)
            sent, sending = await fill(one, noise(RECORD))
            sending.cancel()
            assert failure_of(sending) is CancelledError
            receiving = one.recv(100)
            await other.sendall(b"the other way")
            assert await soon(receiving) == b"the other way"
            assert await read_exactly(other, len(sent)) == sent

    def check(self, got: bytes, sent: bytes, cancelled: bytes, following: bytes) -> None:
        """Check that *got* is all of *sent*, perhaps some of *cancelled*, all of *following*."""
        assert got.startswith(sent)
        rest = got[len(sent) :]
        assert rest.endswith(following)
        piece = rest.removesuffix(following)
        assert cancelled.startswith(piece)
        assert len(piece) <= RECORD


class TestFlags:
    async def test_flags_are_refused(self, tls: TLSStreams) -> None:
        async with tls.pair() as (one, other):
            await other.sendall(b"x")
            for call in (
                lambda: one.recv(1, socket.MSG_PEEK),
                lambda: one.recv_into(bytearray(1), 0, socket.MSG_WAITALL),
                lambda: one.send(b"x", socket.MSG_OOB),
            ):
                with pytest.raises(ValueError, match=r"flags=\d+: TLS has no flags"):
                    call()
            assert await soon(one.recv(1)) == b"x"
