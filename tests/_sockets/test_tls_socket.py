"""TLS sockets: the contract of streams, the handshake, and what it negotiates."""

from __future__ import annotations

import errno
import os
import re
import socket
from datetime import timedelta
from typing import Any

import pytest
from twisted.internet.defer import CancelledError

from tests.support.clocks import ClockedReactor, turns, until
from tests.support.streams import (
    TLSStreams,
    failure_of,
    finished,
    read_exactly,
    soon,
    together,
)
from twisted_netsock import (
    CertificateVerificationError,
    SocketBusyError,
    SocketClosedError,
    SocketConnectionLostError,
    SocketConnectionTimeoutError,
    SocketError,
    TLSError,
    TLSHandshakeError,
    TLSSocket,
)
from twisted_netsock.testing import CertificateAuthority

VERSIONS = ["TLSv1.2", "TLSv1.3"]


@pytest.fixture
def tls(authority: CertificateAuthority) -> TLSStreams:
    return TLSStreams(authority)


def raw_connection(listener: Any, source: str = "127.0.0.1") -> socket.socket:
    """Return a connection to *listener* that has said nothing yet."""
    where = listener.getsockname()
    return socket.create_connection(where, timeout=5, source_address=(source, 0))


class TestNegotiated:
    @pytest.mark.parametrize("version", VERSIONS)
    async def test_both_sides_tell_the_same(
        self, authority: CertificateAuthority, version: str
    ) -> None:
        async with TLSStreams(authority, version).pair() as (client, server):
            assert client.tls_version == server.tls_version == version
            assert client.cipher == server.cipher
            assert "_" in client.cipher or "-" in client.cipher
            assert client.group == server.group
            assert isinstance(client.group, str)

    async def test_nothing_is_reported_before_the_handshake(self, tls: TLSStreams) -> None:
        async with tls.pair(handshake=False, alpn="h2") as pair:
            for each in pair:
                assert each.tls_version is None
                assert each.cipher is None
                assert each.group is None
                assert each.selected_alpn is None
                assert each.peer_certificate is None
                assert each.peer_chain == ()

    async def test_the_client_sees_the_servers_certificates(
        self, authority: CertificateAuthority, tls: TLSStreams
    ) -> None:
        async with tls.pair() as (client, server):
            mine = client.peer_certificate
            assert mine.issuer == authority.certificate.subject
            assert client.peer_chain == (mine,)
            assert server.peer_certificate is None
            assert server.peer_chain == ()

    @pytest.mark.parametrize("version", VERSIONS)
    async def test_each_side_sees_all_that_the_other_sent_its_own_first(
        self, authority: CertificateAuthority, version: str
    ) -> None:
        issued = authority.issue("client@example.com")
        mine = {"certificates": [issued.pem, authority.certificate_pem]}
        asking = {"trusted_certificates": authority.certificate_pem}
        async with TLSStreams(authority, version).pair(server=asking, client=mine) as (_, server):
            assert server.peer_certificate == issued.certificate
            assert server.peer_chain == (issued.certificate, authority.certificate)

    @pytest.mark.parametrize(
        ("offered", "spoken", "selected"),
        [
            (["h2", "http/1.1"], ["http/1.1", "h2"], "http/1.1"),
            ("h2", ["http/1.1", "h2"], "h2"),
            (None, "h2", None),
            ("h2", None, None),
        ],
    )
    async def test_the_server_chooses_the_protocol(
        self, tls: TLSStreams, offered: Any, spoken: Any, selected: str | None
    ) -> None:
        async with tls.pair(server={"alpn": spoken}, client={"alpn": offered}) as (one, other):
            assert one.selected_alpn == selected
            assert other.selected_alpn == selected

    async def test_without_a_common_protocol_there_is_no_connection(self, tls: TLSStreams) -> None:
        async with await tls.listen(alpn="h2") as listener:
            accepting = listener.accept()
            with pytest.raises(TLSHandshakeError) as caught:
                await soon(tls.connect(listener, alpn="http/1.1"))
            assert caught.value.alert == "no application protocol"
            assert not accepting.called
            assert listener.failed_handshakes == 1
            accepting.addErrback(lambda failure: failure.trap(SocketClosedError))

    async def test_the_server_learns_the_name_that_was_asked_for(self, tls: TLSStreams) -> None:
        async with tls.pair(client={"sni": "localhost"}) as (client, server):
            assert server.server_name == "localhost"
            assert client.options.sni == ("localhost",)
        async with tls.pair() as (_, server):
            assert server.server_name is None

    async def test_a_listener_has_no_peer_to_tell_about(self, tls: TLSStreams) -> None:
        async with await tls.listen() as listener:
            for name in ("peer_certificate", "peer_chain", "selected_alpn", "tls_version"):
                with pytest.raises(SocketError, match="has no peer"):
                    getattr(listener, name)
            with pytest.raises(SocketError, match="has no peer"):
                await listener.handshake()

    def test_no_tls_socket_is_made_around_a_plain_one(self) -> None:
        """It would speak plain text."""
        one, other = socket.socketpair()
        with one, other, pytest.raises(TypeError):
            TLSSocket.from_socket(one).abort()


class TestHandshake:
    @pytest.mark.parametrize("version", VERSIONS)
    async def test_it_can_be_left_to_the_caller(
        self, authority: CertificateAuthority, version: str
    ) -> None:
        async with TLSStreams(authority, version).pair(handshake=False) as (client, server):
            for each in (client, server):
                for call in (
                    lambda each=each: each.recv(1),
                    lambda each=each: each.recv_into(bytearray(1)),
                    lambda each=each: each.sendall(b"x"),
                    lambda each=each: each.send(b"x"),
                    lambda each=each: each.recv(0),
                    lambda each=each: each.send(b""),
                    lambda each=each: each.shutdown(socket.SHUT_WR),
                    lambda each=each: each.shutdown(socket.SHUT_RD),
                    lambda each=each: each.shutdown(socket.SHUT_RDWR),
                    lambda each=each: each.input_port.read(1),
                ):
                    with pytest.raises(TLSError, match="the handshake is not done"):
                        await soon(call())
            done = await together(finished(client.handshake()), finished(server.handshake()))
            assert done == [None, None]
            assert client.peer_certificate is not None
            await client.sendall(b"secret")
            assert await read_exactly(server, 6) == b"secret"

    async def test_a_second_one_does_nothing(self, tls: TLSStreams) -> None:
        async with tls.pair() as (client, server):
            for each in (client, server):
                assert await soon(each.handshake()) is None

    async def test_nothing_else_happens_meanwhile(self, tls: TLSStreams) -> None:
        async with tls.pair(handshake=False) as (client, server):
            shaking = client.handshake()
            for refused in (client.recv(1), client.send(b"x"), client.handshake()):
                with pytest.raises(SocketBusyError) as caught:
                    await soon(refused)
                assert caught.value.socket is client
            await soon(server.handshake())
            await soon(shaking)

    async def test_a_peer_without_trust_is_refused_for_good(
        self, authority: CertificateAuthority, other_authority: CertificateAuthority
    ) -> None:
        server, client = TLSStreams(authority), TLSStreams(other_authority)
        async with await server.listen(handshake=False) as listener:
            connecting = client.connect(listener, handshake=False)
            accepted: Any = await soon(listener.accept())
            connected: Any = await soon(connecting)
            shaking = accepted.handshake()
            for call in (connected.handshake, lambda: connected.recv(1), connected.handshake):
                with pytest.raises(CertificateVerificationError) as caught:
                    await soon(call())
                assert caught.value.socket is connected
            with pytest.raises(TLSHandshakeError) as told:
                await soon(shaking)
            assert told.value.alert == "unknown ca"
            connected.abort()
            accepted.abort()

    @pytest.mark.parametrize("swapped", [False, True])
    async def test_a_mute_peer_is_given_up_after_a_time(
        self, tls: TLSStreams, swapped: bool
    ) -> None:
        clock = ClockedReactor()
        limit = timedelta(seconds=7)
        async with tls.pair(reactor=clock, handshake=False, handshake_timeout=limit) as pair:
            one = pair[swapped]
            shaking = one.handshake()
            await turns()
            clock.advance(6.9)
            assert not shaking.called
            clock.advance(0.1)
            with pytest.raises(SocketConnectionTimeoutError) as caught:
                await shaking
            assert caught.value.stage == "handshake"
            assert caught.value.socket is one
        assert clock.getDelayedCalls() == []

    async def test_it_can_be_cancelled(self, tls: TLSStreams) -> None:
        clock = ClockedReactor()
        async with tls.pair(reactor=clock, handshake=False) as (client, server):
            for each in (client, server):
                shaking = each.handshake()
                shaking.cancel()
                with pytest.raises(CancelledError):
                    await shaking
        assert clock.getDelayedCalls() == []

    @pytest.mark.parametrize("method", ["close", "abort"])
    @pytest.mark.parametrize("swapped", [False, True])
    async def test_closing_ends_it(self, tls: TLSStreams, method: str, swapped: bool) -> None:
        clock = ClockedReactor()
        async with tls.pair(reactor=clock, handshake=False) as pair:
            one = pair[swapped]
            shaking = one.handshake()
            getattr(one, method)()
            assert failure_of(shaking) is SocketClosedError
            assert one.closed
            assert await soon(one.close()) is None
            assert clock.getDelayedCalls() == []

    async def test_a_peer_that_resets_is_a_lost_connection(self, tls: TLSStreams) -> None:
        async with tls.pair(handshake=False) as (client, server):
            shaking = client.handshake()
            server.abort()
            with pytest.raises(SocketConnectionLostError, match=os.strerror(errno.ECONNRESET)):
                await soon(shaking)

    async def test_a_peer_that_goes_away_is_a_lost_connection(self, tls: TLSStreams) -> None:
        async with await tls.listen(handshake=False) as listener:
            with raw_connection(listener) as peer:
                accepted: Any = await soon(listener.accept())
                shaking = accepted.handshake()
                peer.shutdown(socket.SHUT_WR)
                with pytest.raises(SocketConnectionLostError, match="during the TLS handshake"):
                    await soon(shaking)
                accepted.abort()

    async def test_a_peer_that_speaks_something_else_is_refused(self, tls: TLSStreams) -> None:
        async with await tls.listen(handshake=False) as listener:
            with raw_connection(listener) as peer:
                accepted: Any = await soon(listener.accept())
                peer.sendall(b"GET / HTTP/1.0\r\n\r\n")
                with pytest.raises(TLSHandshakeError):
                    await soon(accepted.handshake())
                accepted.abort()


class TestAccepting:
    async def test_what_is_accepted_knows_its_peer(self, tls: TLSStreams) -> None:
        async with tls.pair() as (client, server):
            assert isinstance(server, TLSSocket)
            assert (server.node, server.service) == tuple(client.getsockname())

    async def test_a_mute_peer_holds_up_nobody(self, tls: TLSStreams) -> None:
        async with await tls.listen() as listener:
            with raw_connection(listener):
                accepting = listener.accept()
                await turns()
                client = await soon(tls.connect(listener))
                accepted = await soon(accepting)
                assert accepted.getpeername() == client.getsockname()
                client.abort()
                accepted.abort()
                assert listener.failed_handshakes == 0

    async def test_a_mute_peer_is_closed_after_a_time(
        self, tls: TLSStreams, log_lines: list[str]
    ) -> None:
        clock = ClockedReactor()
        async with await tls.listen(reactor=clock) as listener:
            with raw_connection(listener) as mute:
                accepting = listener.accept()
                await until(clock.getDelayedCalls)
                # The default of servers.
                clock.advance(10)
                assert listener.failed_handshakes == 1
                assert mute.recv(1) == b""
                told = [line for line in log_lines if "TLS handshake" in line]
                assert len(told) == 1
                assert re.search(rf"127.0.0.1:{mute.getsockname()[1]} .*timed out", told[0])
            assert not accepting.called
            accepting.cancel()
            assert failure_of(accepting) is CancelledError

    @pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01\xff\xff\xff"])
    async def test_a_peer_that_talks_nonsense_is_counted_and_logged(
        self, tls: TLSStreams, said: bytes, log_lines: list[str]
    ) -> None:
        async with await tls.listen() as listener:
            accepting = listener.accept()
            with raw_connection(listener) as peer:
                port = peer.getsockname()[1]
                peer.sendall(said)
                peer.shutdown(socket.SHUT_WR)
                await until(lambda: listener.failed_handshakes)
            assert listener.failed_handshakes == 1
            assert any(f"handshake with 127.0.0.1:{port} failed" in line for line in log_lines)
            assert not accepting.called
            client = await soon(tls.connect(listener))
            (await soon(accepting)).abort()
            client.abort()

    async def test_connections_that_are_ready_wait_in_order(self, tls: TLSStreams) -> None:
        async with await tls.listen() as listener:
            with raw_connection(listener):
                accepting = listener.accept()
                clients = [await soon(tls.connect(listener))]
                accepted = [await soon(accepting)]
                # These shake hands while nobody accepts any more.
                accepting = listener.accept()
                connecting = [tls.connect(listener) for _ in range(3)]
                await until(lambda: accepting.called)
                accepting.addCallback(accepted.append)
                accepted += [await soon(listener.accept()) for _ in range(2)]
                clients += [await soon(each) for each in connecting]
            ports = {each.getsockname().port for each in clients}
            assert {each.getpeername().port for each in accepted} == ports
            for each in (*clients, *accepted):
                each.abort()

    async def test_an_accept_cancelled_during_a_handshake_loses_nobody(
        self, tls: TLSStreams
    ) -> None:
        clock = ClockedReactor()
        async with await tls.listen(reactor=clock) as listener:
            accepting = listener.accept()
            client: Any = await soon(tls.connect(listener, handshake=False))
            # The handshake has its time limit from its beginning.
            await until(clock.getDelayedCalls)
            accepting.cancel()
            assert failure_of(accepting) is CancelledError
            _, accepted = await together(finished(client.handshake()), finished(listener.accept()))
            assert accepted.getpeername() == client.getsockname()
            client.abort()
            accepted.abort()
        assert clock.getDelayedCalls() == []

    async def test_at_most_so_many_shake_hands_at_once(
        self, tls: TLSStreams, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("twisted_netsock._net.incoming.MAX_INCOMING", 128)
        clock = ClockedReactor()
        listener = await tls.listen(reactor=clock, backlog=512)
        # Of several addresses: one alone would have half of the places.
        mute = [raw_connection(listener, f"127.0.1.{number % 4 + 1}") for number in range(128)]
        accepting = listener.accept()
        await until(lambda: len(clock.getDelayedCalls()) == 128)
        connecting = tls.connect(listener)
        await turns(20)
        assert not accepting.called
        assert len(clock.getDelayedCalls()) == 128
        mute.pop().close()
        client = await soon(connecting)
        (await soon(accepting)).abort()
        client.abort()
        listener.close()
        assert clock.getDelayedCalls() == []
        for each in mute:
            assert each.recv(1) == b""
            each.close()

    async def test_closing_the_listener_closes_who_shakes_hands_and_who_is_ready(
        self, tls: TLSStreams
    ) -> None:
        clock = ClockedReactor()
        listener: Any = await tls.listen(reactor=clock)
        accepting = listener.accept()
        with raw_connection(listener) as mute:
            await until(clock.getDelayedCalls)
            # Both come while one accept waits: the other gets ready, or nearly so.
            clients = await together(*(finished(tls.connect(listener)) for _ in range(2)))
            accepted = await soon(accepting)
            await turns()
            listener.close()
            assert mute.recv(1) == b""
        [forgotten] = [each for each in clients if each.getsockname() != accepted.getpeername()]
        assert await soon(forgotten.recv(1)) == b""
        for each in (*clients, accepted):
            each.abort()
        await until(lambda: not clock.getDelayedCalls())
