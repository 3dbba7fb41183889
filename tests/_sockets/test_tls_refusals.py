"""Certificates of clients, and how a server's refusal, be it late, reaches the client."""

from __future__ import annotations

import select
import socket
from typing import Any

import pytest
from twisted.internet.defer import CancelledError
from twisted.internet.protocol import Factory, Protocol

from tests.support.clocks import turns, until
from tests.support.streams import TLSStreams, failure_of, read_exactly, soon
from twisted_netsock import TLSError, TLSHandshakeError, client_endpoint
from twisted_netsock.testing import CertificateAuthority

VERSIONS = ["TLSv1.2", "TLSv1.3"]


@pytest.fixture
def demanding(authority: CertificateAuthority) -> dict[str, Any]:
    return {
        "trusted_certificates": authority.certificate_pem,
        "client_certificate_required": True,
    }


class TestClientCertificates:
    @pytest.mark.parametrize("version", VERSIONS)
    async def test_a_good_one_is_accepted(
        self, authority: CertificateAuthority, demanding: dict[str, Any], version: str
    ) -> None:
        issued = authority.issue("client@example.com")
        mine = {"certificates": issued.pem}
        streams = TLSStreams(authority, version)
        async with streams.pair(server=demanding, client=mine) as (client, server):
            assert server.peer_certificate == issued.certificate
            await client.sendall(b"known")
            assert await read_exactly(server, 5) == b"known"

    @pytest.mark.parametrize(
        ("faults", "alert"),
        [
            (None, "certificate required"),
            ({"self_signed": True}, "unknown ca"),
            ({"expired": True}, "certificate expired"),
        ],
    )
    async def test_with_tls_1_3_the_first_receive_tells_of_a_refusal(
        self,
        authority: CertificateAuthority,
        demanding: dict[str, Any],
        faults: dict[str, bool] | None,
        alert: str,
    ) -> None:
        streams = TLSStreams(authority)
        mine = {}
        if faults is not None:
            mine["certificates"] = authority.issue("client@example.com", **faults).pem
        async with await streams.listen(**demanding) as listener:
            accepting = listener.accept()
            client = await soon(streams.connect(listener, **mine))
            for _ in range(2):
                with pytest.raises(TLSError) as caught:
                    await soon(client.recv(1))
                assert caught.value.alert == alert
                assert caught.value.socket is client
            assert listener.failed_handshakes == 1
            accepting.cancel()
            assert failure_of(accepting) is CancelledError
            client.abort()

    async def test_with_tls_1_3_a_send_tells_of_a_refusal_too(
        self, authority: CertificateAuthority, demanding: dict[str, Any]
    ) -> None:
        streams = TLSStreams(authority)
        async with await streams.listen(**demanding) as listener:
            accepting = listener.accept()
            client = await soon(streams.connect(listener))
            await until(lambda: listener.failed_handshakes)
            with pytest.raises(TLSError) as caught:
                for _ in range(100):
                    await soon(client.sendall(b"anybody there?"))
                    await turns(1)
            assert caught.value.alert == "certificate required"
            accepting.cancel()
            assert failure_of(accepting) is CancelledError
            client.abort()

    async def test_with_tls_1_2_the_handshake_tells_of_a_refusal(
        self, authority: CertificateAuthority, demanding: dict[str, Any]
    ) -> None:
        streams = TLSStreams(authority, "TLSv1.2")
        async with await streams.listen(**demanding) as listener:
            accepting = listener.accept()
            with pytest.raises(TLSHandshakeError) as caught:
                await soon(streams.connect(listener))
            assert caught.value.alert == "handshake failure"
            accepting.cancel()
            assert failure_of(accepting) is CancelledError


@pytest.fixture(params=VERSIONS)
def streams(authority: CertificateAuthority, request: pytest.FixtureRequest) -> TLSStreams:
    return TLSStreams(authority, request.param)


def arrive(sock: Any) -> None:
    """Wait until *sock* has something to read, without a turn of the reactor."""
    assert select.select([sock], [], [], 5)[0]


@pytest.mark.parametrize("size", [1, 2, 5, 16384])
async def test_a_send_leaves_what_has_come_to_the_receive_that_waits(
    streams: TLSStreams, size: int
) -> None:
    """Bytes inside OpenSSL would wake nobody."""
    async with streams.pair() as (client, server):
        receiving = client.recv(size)
        assert not receiving.called
        await server.sendall(bytes(size))
        arrive(client)
        await soon(client.sendall(b"a request"))
        assert await soon(receiving) == bytes(size)
        assert await read_exactly(server, 9) == b"a request"


async def test_a_write_leaves_what_has_come_to_the_protocol(
    authority: CertificateAuthority, streams: TLSStreams
) -> None:
    received = bytearray()

    class Client(Protocol):
        def dataReceived(self, data: bytes) -> None:
            received.extend(data)

    from twisted.internet import reactor

    version = streams._version
    async with await streams.listen() as listener:
        endpoint = client_endpoint(
            reactor, *listener.getsockname(), authority.client_options(maximum_version=version)
        )
        connecting = endpoint.connect(Factory.forProtocol(Client))
        server = await soon(listener.accept())
        client: Any = await soon(connecting)
        await server.sendall(b"an answer")
        arrive(client.transport)
        client.transport.write(b"a request")
        await until(lambda: received == b"an answer")
        assert await read_exactly(server, 9) == b"a request"
        client.transport.abortConnection()
        server.abort()


@pytest.mark.parametrize("then", ["send", "recv"])
async def test_a_refusal_is_reported_however_much_was_sent_before_it_came(
    authority: CertificateAuthority, demanding: dict[str, Any], then: str
) -> None:
    streams = TLSStreams(authority)
    room = {"socket_options": (socket.SOL_SOCKET, socket.SO_SNDBUF, 2_000_000)}
    sent: list[Any] = []

    def send_much(client: Any) -> Any:
        # The server has had no turn yet to look at the certificate that is missing.
        for _ in range(100):
            sending = client.sendall(bytes(10_000))
            sent.append(sending)
            if not sending.called:
                break
        return client

    async with await streams.listen(**demanding) as listener:
        accepting = listener.accept()
        client = await soon(streams.connect(listener, **room).addCallback(send_much))
        assert len(sent) > 64
        sent[-1].cancel()
        failure_of(sent[-1])
        await until(lambda: listener.failed_handshakes)
        for _ in range(2):
            with pytest.raises(TLSError) as caught:
                await soon(client.send(b"more") if then == "send" else client.recv(1))
            assert caught.value.alert == "certificate required"
        accepting.cancel()
        assert failure_of(accepting) is CancelledError
        client.abort()
