"""What TLS says between the data: new keys, tickets, and requests for more than we grant."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import CancelledError

from tests.support.clocks import turns
from tests.support.peers import (
    KEY_UPDATE_NOT_REQUESTED,
    KEY_UPDATE_REQUESTED,
    OpenSSLError,
    OpenSSLPeer,
    meet_openssl,
    needs_libssl,
)
from tests.support.streams import (
    failure_of,
    fill,
    finished,
    in_thread,
    noise,
    read_exactly,
    read_to_end,
    shrink_buffers,
    soon,
    together,
)
from twisted_netsock import TLSError, TLSTruncatedError
from twisted_netsock.testing import CertificateAuthority

pytestmark = [pytest.mark.long, needs_libssl]

SIDES = pytest.mark.parametrize("side", ["client", "server"])
KINDS = pytest.mark.parametrize(
    "kind", [KEY_UPDATE_NOT_REQUESTED, KEY_UPDATE_REQUESTED], ids=["told", "requested"]
)


@SIDES
class TestNewKeys:
    @KINDS
    async def test_data_goes_on_both_ways(
        self, authority: CertificateAuthority, tmp_path: Path, side: str, kind: int
    ) -> None:
        async with meet_openssl(authority, side, tmp_path) as (ours, peer):

            def talk() -> bytes:
                heard = b""
                for number in range(20):
                    peer.send(b"before %02d" % number)
                    peer.update_keys(kind)
                    peer.send(b"after  %02d" % number)
                    heard += peer.read_exactly(2)
                return heard

            talking = in_thread(talk)
            for number in range(20):
                heard = await read_exactly(ours, 18)
                assert heard == b"before %02dafter  %02d" % (number, number)
                await soon(ours.sendall(b"%02d" % number))
            assert await talking == b"".join(b"%02d" % number for number in range(20))

    @KINDS
    async def test_they_wake_nobody(
        self, authority: CertificateAuthority, tmp_path: Path, side: str, kind: int
    ) -> None:
        async with meet_openssl(authority, side, tmp_path) as (ours, peer):
            receiving = ours.recv(10)

            def update() -> None:
                for _ in range(200):
                    peer.update_keys(kind)

            await in_thread(update)
            await turns()
            assert not receiving.called
            await in_thread(peer.send, b"data")
            assert await soon(receiving) == b"data"
            await soon(ours.sendall(b"answer"))
            assert await in_thread(peer.read_exactly, 6) == b"answer"

    async def test_a_flood_of_them_lets_others_have_their_turn(
        self, authority: CertificateAuthority, tmp_path: Path, side: str
    ) -> None:
        async with meet_openssl(authority, side, tmp_path) as (ours, peer):

            def flood() -> None:
                for _ in range(2000):
                    peer.update_keys(KEY_UPDATE_NOT_REQUESTED)
                peer.send(b"data")

            await in_thread(flood)
            receiving = ours.recv(10)
            count = 0
            while not receiving.called:
                await turns(1)
                count += 1
            assert await receiving == b"data"
            assert count > 10

    @KINDS
    @pytest.mark.parametrize("cancel", [False, True])
    async def test_a_send_that_waits_goes_on_byte_by_byte(
        self, authority: CertificateAuthority, tmp_path: Path, side: str, kind: int, cancel: bool
    ) -> None:
        """Its piece was encrypted with the old keys, and goes out before the new ones."""
        chunk, following = noise(16384, 1), noise(100_000, 2)
        async with meet_openssl(authority, side, tmp_path) as (ours, peer):
            shrink_buffers(ours, peer.plain)
            sent, sending = await fill(ours, chunk)
            # The kernel may find more room each time that it hears of the peer.
            for _ in range(10):
                receiving = ours.recv(100)
                await in_thread(peer.update_keys, kind)
                await in_thread(peer.send, b"read with the new keys")
                assert await soon(receiving) == b"read with the new keys"
                if not sending.called:
                    break
                sent += chunk[: await sending]
                more, sending = await fill(ours, chunk)
                sent += more
            assert not sending.called
            if cancel:
                sending.cancel()
                assert failure_of(sending) is CancelledError
            expected = sent + chunk + following

            async def go_on() -> None:
                if not cancel:
                    assert await soon(sending) == len(chunk)
                await soon(ours.sendall(following))

            _, got = await together(go_on(), finished(in_thread(peer.read_exactly, len(expected))))
            assert got == expected

    @KINDS
    async def test_both_directions_are_busy_meanwhile(
        self, authority: CertificateAuthority, tmp_path: Path, side: str, kind: int
    ) -> None:
        """The peer's answers to our data carry its new keys, in the midst of everything."""
        there, back = noise(1_000_000, 1), noise(1_000_000, 2)
        async with meet_openssl(authority, side, tmp_path) as (ours, peer):

            def answer() -> bytes:
                heard = bytearray()
                for begin in range(0, len(back), 50_000):
                    peer.update_keys(kind)
                    peer.send(back[begin : begin + 50_000])
                    heard += peer.read_exactly(50_000)
                return bytes(heard)

            answering = in_thread(answer)
            _, got = await together(finished(ours.sendall(there)), read_exactly(ours, len(back)))
            assert got == back
            assert await answering == there

    async def test_the_end_follows_them(
        self, authority: CertificateAuthority, tmp_path: Path, side: str
    ) -> None:
        async with meet_openssl(authority, side, tmp_path) as (ours, peer):

            def end() -> bytes:
                peer.update_keys(KEY_UPDATE_REQUESTED)
                peer.send(b"the last")
                peer.shutdown()
                return peer.read_exactly(6) + peer.recv()

            ending = in_thread(end)
            assert await read_to_end(ours) == b"the last"
            await soon(ours.sendall(b"indeed"))
            await soon(ours.shutdown(socket.SHUT_WR))
            assert await ending == b"indeed"


class TestServersMessages:
    async def test_tickets_may_come_at_any_time(
        self, authority: CertificateAuthority, tmp_path: Path
    ) -> None:
        async with meet_openssl(authority, "client", tmp_path) as (ours, peer):

            def talk() -> bytes:
                for number in range(5):
                    peer.check("SSL_new_session_ticket")
                    peer.send(b"%d" % number)
                return peer.read_exactly(4)

            talking = in_thread(talk)
            assert await read_exactly(ours, 5) == b"01234"
            await soon(ours.sendall(b"fine"))
            assert await talking == b"fine"

    async def test_a_late_request_for_a_certificate_is_not_even_offered(
        self, authority: CertificateAuthority, tmp_path: Path
    ) -> None:
        """Our client does not say that it would answer one (RFC 8446, section 4.2.6)."""
        async with meet_openssl(authority, "client", tmp_path) as (ours, peer):
            with pytest.raises(OpenSSLError, match="post_handshake"):
                await in_thread(peer.check, "SSL_verify_client_post_handshake")
            await in_thread(peer.send, b"never mind")
            assert await read_exactly(ours, 10) == b"never mind"


def _renegotiate(peer: OpenSSLPeer) -> None:
    peer.send(b"before")
    peer.check("SSL_renegotiate")
    peer.check("SSL_do_handshake")
    peer.recv()


@SIDES
async def test_a_renegotiation_is_refused_and_the_peer_ends_for_it(
    authority: CertificateAuthority, tmp_path: Path, side: str
) -> None:
    async with meet_openssl(authority, side, tmp_path, "TLSv1.2") as (ours, peer):
        renegotiating: Any = in_thread(_renegotiate, peer)
        assert await read_exactly(ours, 6) == b"before"
        receiving = ours.recv(1)
        with pytest.raises(OpenSSLError):
            await renegotiating
        with pytest.raises(TLSError) as caught:
            await soon(receiving)
        assert caught.value.alert == "handshake failure"
        assert not isinstance(caught.value, TLSTruncatedError)
