"""`RelayService` between any two endpoints: what passes, at which pace, and what is cut off."""

from __future__ import annotations

import fcntl
import random
import socket
import sys
import termios
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.protocol import Protocol

from tests.support.clocks import turns, until
from tests.support.loopback import open_sockets
from tests.support.relay import (
    BACKS,
    FRONTS,
    HALF_CLOSING_BACKS,
    HALF_CLOSING_FRONTS,
    MEGABYTE,
    NETWORK_BACKS,
    NETWORK_FRONTS,
    ONE,
    OTHER,
    SMALL,
    LateEndpoint,
    certificate_files,
    exchange,
    listening_backend,
    place,
    quiet,
    relayed,
    relaying,
    sides,
)
from tests.support.streams import together

# Fixtures.
assert certificate_files
assert place

pytestmark = [
    # Twisted's own TLS hands objects of the old kind to pyOpenSSL.
    pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning"),
]


# What passes


@sides
@pytest.mark.parametrize("back", HALF_CLOSING_BACKS)
@pytest.mark.parametrize("front", HALF_CLOSING_FRONTS)
async def test_each_direction_passes_whole_and_ends_by_itself(front, back, side, place):
    async with relayed(front, back, place) as relay:
        first, second = await relay.pair_from(side)
        await first.send(b"a question")
        first.end()
        assert await second.receive() == b"a question"
        _, received = await together(second.send(ONE), first.receive(len(ONE)))
        assert received == ONE
        second.end()
        assert await first.receive() == b""


@sides
@pytest.mark.parametrize(
    ("front", "back"),
    [("ssl", back) for back in BACKS if back != "ssl"]
    + [(front, "tls") for front in FRONTS if front != "ssl"]
    + [("netsock", "ssl"), ("ssl", "ssl")],
)
async def test_what_was_sent_before_the_end_arrives_whole_through_the_tls_of_twisted(
    front, back, side, place
):
    async with relayed(front, back, place) as relay:
        first, second = await relay.pair_from(side)

        async def say() -> None:
            await first.send(ONE)
            first.end()

        _, received = await together(say(), second.receive())
        assert received == ONE


@pytest.mark.parametrize("back", ["netsock", "netsock-tls", "tcp", "tls"])
@pytest.mark.parametrize("front", NETWORK_FRONTS)
async def test_both_directions_pass_at_the_same_time(front, back, place):
    async with relayed(front, back, place) as relay:
        client, server = await relay.pair()
        _, _, upload, download = await together(
            client.send(ONE), server.send(OTHER), server.receive(len(ONE)),
            client.receive(len(OTHER)),
        )  # fmt: skip
        assert (upload == ONE, download == OTHER) == (True, True)


@pytest.mark.parametrize(
    ("front", "back"),
    [("netsock", "netsock-tls"), ("netsock-tls", "netsock"), ("tcp", "ssl"), ("ssl", "tcp")],
)
async def test_a_backend_may_speak_first(front, back, place):
    async with relayed(front, back, place) as relay:
        client, server = await relay.pair()
        await server.send(b"220 ready\r\n")
        assert await client.receive(11) == b"220 ready\r\n"


@pytest.mark.parametrize("back", ["netsock", "netsock-tls"])
@pytest.mark.parametrize("front", ["netsock", "netsock-tls"])
async def test_nothing_of_a_connection_is_left_after_both_ends(front, back, place):
    async with relayed(front, back, place) as relay:
        before = open_sockets()
        client, server = await relay.pair()
        client.end()
        assert await server.receive() == b""
        server.end()
        assert await client.receive() == b""
        # The two of this test are still open.
        await until(lambda: open_sockets() == before + 2)


class Echo(Protocol):
    """Sends back what it gets, no faster than that is taken."""

    def connectionMade(self) -> None:
        self.transport.registerProducer(self.transport, True)

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)

    def connectionLost(self, reason: object = None) -> None:
        self.transport.unregisterProducer()


class Asker(Protocol):
    """Sends bytes, and waits for as many."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.received = bytearray()
        self.answer: Deferred[bytes] = Deferred()
        self.lost: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self.transport.write(self.data)

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        if len(self.received) >= len(self.data) and not self.answer.called:
            self.answer.callback(bytes(self.received))

    def connectionLost(self, reason: Any = None) -> None:
        if not self.answer.called:
            self.answer.errback(reason)
        self.lost.callback(None)


async def ask(endpoint: Any, data: bytes) -> bool:
    """Tell whether *endpoint* leads to an `Echo`."""
    asker = await endpoint.connect(quiet(Asker, data))
    try:
        return await asker.answer == data
    finally:
        asker.transport.loseConnection()
        await asker.lost


@pytest.mark.parametrize(
    ("listen", "to", "backend", "client"),
    [
        ("netsock-tls", "netsock", "tcp", "tls"),
        ("netsock", "netsock-tls", "ssl", "tcp"),
    ],
)
async def test_two_hundred_connections_at_once_keep_their_bytes_apart(
    listen, to, backend, client, place
):
    chance = random.Random(200)
    text = FRONTS[backend].text.format(files=place.files) + ":backlog=512"
    port = await serverFromString(reactor, text).listen(quiet(Echo))
    try:
        number = port.getHost().port
        target = clientFromString(
            reactor, BACKS[to].text.format(files=place.files, port=number, more="")
        )
        async with relaying(listen, None, place, ":backlog=512", to=target) as relay:
            text = BACKS[client].text.format(files=place.files, port=relay.address.port)
            endpoint = clientFromString(reactor, text)
            data = [chance.randbytes(chance.randrange(1, 100_000)) for _ in range(200)]
            assert await together(*(ask(endpoint, each) for each in data)) == [True] * 200
    finally:
        await port.stopListening()
        await turns()


# Pace


@sides
@pytest.mark.parametrize("back", ["netsock", "netsock-tls"])
@pytest.mark.parametrize("front", ["netsock", "netsock-tls"])
async def test_a_reader_that_is_slow_stops_the_sender_soon(front, back, side, place):
    """With small buffers in the kernel, what the relay itself holds shows."""
    data = ONE * 8
    with listening_backend(back, place, SMALL, 65536) as backend:
        async with relaying(front, backend, place, SMALL) as relay:
            client, server = await relay.pair(65536)
            first, second = (client, server) if side == "client" else (server, client)
            first.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
            sent = await first.send_until_stalled(data)
            assert sent < 2 * MEGABYTE
            _, received = await together(first.send(data[sent:]), second.receive(len(data)))
            assert received == data


@sides
@pytest.mark.parametrize(
    ("front", "back"),
    [("tcp", "netsock"), ("netsock", "tcp"), ("ssl", "netsock-tls"), ("netsock-tls", "ssl")],
)
async def test_a_reader_that_is_slow_stops_the_sender(front, back, side, place):
    """The kernel's buffers grow to several megabytes here, the relay's do not."""
    data = ONE * 48
    async with relayed(front, back, place) as relay:
        first, second = await relay.pair_from(side)
        sent = await first.send_until_stalled(data)
        assert sent < 24 * MEGABYTE
        more = data[: sent + MEGABYTE]
        _, received = await together(first.send(more[sent:]), second.receive(len(more)))
        assert received == more


@pytest.mark.parametrize("front", ["netsock", "netsock-tls"])
async def test_a_client_cannot_fill_the_memory_before_the_backend_reads(front, place):
    """Neither while the backend is being connected, nor when it is and what was said goes on."""
    late = LateEndpoint()
    data = ONE * 8
    with listening_backend("netsock", place, SMALL, 65536) as backend:
        async with relaying(front, backend, place, SMALL, to=late) as relay:
            client = await relay.connect(65536)
            await late.attempted()
            sent = await client.send_until_stalled(data)
            assert sent < 2 * MEGABYTE
            late.go_on(backend.endpoint)
            server = await relay.accept()
            sent += await client.send_until_stalled(data[sent:])
            assert sent < 2 * MEGABYTE
            _, received = await together(client.send(data[sent:]), server.receive(len(data)))
            assert received == data


# Streams that are cut off


def unacknowledged(sock: socket.socket) -> int:
    """Return how many of the bytes sent have not arrived at the other kernel."""
    return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


@sides
@pytest.mark.parametrize("back", NETWORK_BACKS)
@pytest.mark.parametrize("front", NETWORK_FRONTS)
async def test_a_reset_never_looks_like_a_clean_end(front, back, side, place):
    async with relayed(front, back, place) as relay:
        first, second = await relay.pair_from(side)
        await exchange(first, second)
        await first.send(ONE[:1000])
        first.reset()
        await second.is_cut_off()


@pytest.mark.parametrize("back", NETWORK_BACKS)
@pytest.mark.parametrize("front", ["netsock-tls", "ssl"])
async def test_a_truncated_tls_stream_of_a_client_never_looks_like_a_clean_end(front, back, place):
    async with relayed(front, back, place) as relay:
        client, server = await relay.pair()
        await exchange(client, server)
        await client.send(ONE[:1000])
        client.truncate()
        await server.is_cut_off()


@pytest.mark.parametrize("back", ["netsock-tls", "ssl", "tls"])
@pytest.mark.parametrize("front", NETWORK_FRONTS)
async def test_a_truncated_tls_stream_of_a_backend_never_looks_like_a_clean_end(
    front, back, place
):
    async with relayed(front, back, place) as relay:
        client, server = await relay.pair()
        await exchange(client, server)
        await server.send(ONE[:1000])
        server.truncate()
        await client.is_cut_off()


@pytest.mark.parametrize("back", ["netsock", "netsock-tls", "tcp"])
@pytest.mark.parametrize("front", ["netsock", "netsock-tls", "tcp"])
async def test_an_answer_that_has_ended_arrives_whole_although_the_backend_resets_then(
    front, back, place
):
    """A server that answers early, and closes, resets what the client goes on to send."""
    answer = ONE[:300_000]
    async with relayed(front, back, place) as relay:
        # The client takes little before it reads: the rest waits in front of it.
        client, server = await relay.pair(16384)
        await server.send(answer)
        server.end()
        await until(lambda: unacknowledged(server.sock) == 0)
        await turns(20)
        server.reset()
        await client.send(b"more of the question")
        await turns(20)
        assert await client.receive() == answer
