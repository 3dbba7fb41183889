"""One side ends without close_notify, or by a reset: what had arrived arrives at the other."""

from __future__ import annotations

import fcntl
import hashlib
import random
import re
import socket
import sys
import termios

import pytest
from twisted.internet import reactor
from twisted.internet.task import deferLater

from tests.support.clocks import turns, until
from tests.support.relay import (
    BACKS,
    FRONTS,
    LateEndpoint,
    Peer,
    certificate_files,
    exchange,
    listening_backend,
    place,
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

KINDS = ["netsock", "netsock-tls", "tcp", "ssl"]
PAIRS = [(front, back) for front in KINDS for back in KINDS if "netsock" in front + back]
SIZES = [1, 500_000, 6_000_000]


def in_flight(sock: socket.socket) -> int:
    return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


async def send_and_cut(peer: Peer, data: bytes, manner: str) -> None:
    """Send *data*, and end in a way that is no end of a stream, when all has left."""
    await peer.send(data)
    await until(lambda: not in_flight(peer.sock))
    if manner == "reset":
        peer.reset()
    else:
        peer.truncate()


async def read_to_cut(peer: Peer, *, slow: bool) -> tuple[str, bool]:
    """Read to the end; return the hash of it, and whether the end was a clean one."""
    found = hashlib.sha256()
    if slow:
        await deferLater(reactor, 0.1)
    while True:
        try:
            chunk = await peer.receive_some()
        except OSError:
            return found.hexdigest(), False
        if not chunk:
            return found.hexdigest(), True
        found.update(chunk)
        if slow:
            await deferLater(reactor, 0.001)


@sides
@pytest.mark.parametrize("slow", [False, True], ids=["quick", "slow"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("front", "back"), PAIRS)
async def test_everything_that_had_arrived_arrives_before_the_cut(
    front, back, side, size, slow, place
):
    ender = FRONTS[front] if side == "client" else BACKS[back]
    data = random.Random(size).randbytes(size)
    for manner in ("reset", "truncation") if ender.tls else ("reset",):
        async with relayed(front, back, place) as relay:
            first, second = await relay.pair_from(side)
            _, (found, clean) = await together(
                send_and_cut(first, data, manner), read_to_cut(second, slow=slow)
            )
            assert found == hashlib.sha256(data).hexdigest()
            assert not clean


@sides
@pytest.mark.parametrize("other", ["netsock", "netsock-tls"])
@pytest.mark.parametrize("kind", ["netsock", "netsock-tls", "tcp"])
async def test_so_it_does_when_a_send_meets_the_reset_first(kind, other, side, place):
    """Nothing is read while the receiver is slow, so it is a send that finds out."""
    front, back = (kind, other) if side == "client" else (other, kind)
    async with relayed(front, back, place) as relay:
        first, second = await relay.pair_from(side)
        await first.send(b"hello")
        assert await second.receive(5) == b"hello"
        sent = hashlib.sha256()
        link = link_of(relay, first)
        while link._watch.receive is not None:
            await send_acknowledged(first, sent)
        # The relay's kernel has this, and the relay has not read it.
        await send_acknowledged(first, sent)
        first.reset()
        await second.send(bytes(1000))
        # Twisted's transports take what is sent, and fail later.
        await (turns(20) if kind == "tcp" else until(lambda: link._broken is not None))
        assert await read_to_cut(second, slow=False) == (sent.hexdigest(), False)


def link_of(relay, peer):
    """Return the relay's link with *peer*: that which has received."""
    (link,) = [link for link in relay.service._factory.sides if link.count]
    return link


async def send_acknowledged(peer, sent):
    """Send a piece, and wait until it has arrived; note it in *sent*, a hash."""
    data = random.randbytes(50_000)
    await peer.send(data)
    sent.update(data)
    await until(lambda: not in_flight(peer.sock))
    await turns(3)


@sides
@pytest.mark.parametrize("front", ["netsock", "netsock-tls", "tcp"])
async def test_a_receiver_that_is_still_sending_gets_all(front, side, place):
    """What it sends is read and dropped: unread, it would turn the end into a reset at once."""
    data = random.Random(7).randbytes(500_000)
    async with relayed(front, "netsock-tls", place) as relay:
        client, server = await relay.pair()
        sending = client.send(bytes(6_000_000))
        await server.send(data)
        server.truncate()
        await sending
        found, clean = await read_to_cut(client, slow=False)
        assert found == hashlib.sha256(data).hexdigest()
        assert not clean


@pytest.mark.parametrize("back", ["netsock", "netsock-tls", "tcp"])
async def test_what_a_client_said_before_it_ended_without_close_notify_arrives(back, place):
    late = LateEndpoint()
    with listening_backend(back, place) as backend:
        async with relaying("netsock-tls", backend, place, to=late) as relay:
            client = await relay.connect()
            await client.send(b"a question")
            client.truncate()
            await late.attempted()
            await turns(20)
            late.go_on(backend.endpoint)
            server = await relay.accept()
            found, clean = await read_to_cut(server, slow=False)
            assert found == hashlib.sha256(b"a question").hexdigest()
            assert not clean


async def test_the_log_counts_what_the_client_acknowledged(place, log_lines):
    async with relayed("netsock", "netsock", place) as relay:
        client, server = await relay.pair()
        sent = await server.send_until_stalled(bytes(20_000_000))
        arrived = await client.receive(100_000)
        client.reset()
        await until(lambda: any("connection client-lost" in line for line in log_lines))
    (line,) = [line for line in log_lines if "connection client-lost" in line]
    (counted,) = re.findall(r" sent=(\d+) ", line)
    # Its kernel has taken as much again as there is room for, and no more.
    assert len(arrived) <= int(counted) < sent - 1_000_000


# Ordinary clients


@pytest.mark.parametrize("back", ["netsock", "netsock-tls"])
async def test_a_client_that_ends_tls_without_close_notify_is_none_that_broke_off(
    back, place, log_lines
):
    async with relayed("netsock-tls", back, place) as relay:
        client, server = await relay.pair()
        await exchange(client, server)
        client.truncate()
        await server.is_cut_off()
        await until(lambda: any("connection no-close-notify" in line for line in log_lines))


async def test_one_that_misses_what_was_on_its_way_is(place, log_lines):
    async with relayed("netsock-tls", "netsock", place) as relay:
        client, server = await relay.pair()
        await server.send_until_stalled(bytes(20_000_000))
        client.truncate()
        # It has read nothing, so that nothing is read from there.
        client.reset()
        await server.is_cut_off()
        await until(lambda: any("connection client-lost" in line for line in log_lines))
