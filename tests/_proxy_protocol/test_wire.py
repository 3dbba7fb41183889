"""Taking a PROXY header off a descriptor: all of it, and not a byte more."""

from __future__ import annotations

import fcntl
import random
import socket
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from tests.support.clocks import the_reactor, turns, until
from twisted_netsock import (
    ProxyHeader,
    ProxyHeaderError,
    SocketConnectionLostError,
    SocketConnectionTimeoutError,
)
from twisted_netsock._io.descriptor import PlainDescriptor
from twisted_netsock._io.poller import Watch, poller_for
from twisted_netsock._proxy_protocol.wire import receive_header, send_header

V4 = ProxyHeader(("192.0.2.1", 56324), ("192.0.2.2", 443))
LONG = ProxyHeader(("::1", 1), ("::2", 2), tlvs=[(0xE0, bytes(3000))], checksum=True)
HEADERS = [
    V4.encode("v1"),
    V4.encode("v2"),
    LONG.encode("v2"),
    b"PROXY UNKNOWN\r\n",
    ProxyHeader(local=True).encode("v2"),
]
TAIL = b"\r\nPROXY UNKNOWN\r\n\x16\x03\x01"


class Ends:
    """Two connected sockets, of which ours is watched."""

    def __init__(self, ours: socket.socket, theirs: socket.socket, watch: Watch) -> None:
        self.ours = ours
        self.theirs = theirs
        self.watch = watch

    def receive(self, version: str = "any", timeout: float | None = None) -> Deferred[ProxyHeader]:
        return receive_header(the_reactor(), self.watch, self.ours, version, timeout)

    @property
    def waiting(self) -> int:
        """How many bytes the kernel holds for us."""
        unread = fcntl.ioctl(self.ours, termios.FIONREAD, bytes(4))
        count: int = struct.unpack("i", unread)[0]
        return count

    async def holds(self, count: int) -> None:
        """Wait until the kernel holds so many bytes, and no more."""
        await until(lambda: self.waiting == count)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener.accept()[0], theirs


@pytest.fixture(params=[tcp_pair, socket.socketpair], ids=["tcp", "unix"])
def ends(request) -> Iterator[Ends]:
    with connected(*request.param()) as made:
        yield made


@contextmanager
def connected(ours: socket.socket, theirs: socket.socket) -> Iterator[Ends]:
    ours.setblocking(False)
    watch = poller_for(the_reactor()).watch(ours.fileno())
    with ours, theirs:
        yield Ends(ours, theirs, watch)
        watch.close()


@pytest.mark.parametrize("header", HEADERS)
async def test_what_follows_stays_with_the_kernel(ends, header):
    ends.theirs.sendall(header + TAIL)
    assert await ends.receive() == ProxyHeader.parse(header)
    assert ends.ours.recv(100) == TAIL


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("seed", range(5))
async def test_however_it_is_cut_a_header_is_taken_whole_and_alone(ends, header, seed):
    chance = random.Random(seed)
    data = header + TAIL
    cuts = sorted(chance.sample(range(1, len(data)), chance.randint(1, 6)))
    receiving = ends.receive()
    for start, end in pairwise([0, *cuts, len(data)]):
        ends.theirs.sendall(data[start:end])
        await ends.holds(max(0, end - len(header)))
        assert receiving.called is (end >= len(header))
    assert await receiving == ProxyHeader.parse(header)
    assert ends.ours.recv(100) == TAIL


@pytest.mark.parametrize("part", [b"P", b"PROXY TCP4 1", b"\r\n\r\n", HEADERS[1][:20]])
async def test_a_part_of_a_header_is_not_reported_again_and_again(ends, part):
    """What stays with the kernel would make every turn of the reactor report it."""
    receiving = ends.receive()
    ends.theirs.sendall(part)
    await ends.holds(0)
    await turns(3)
    assert not receiving.called
    receiving.cancel()
    with pytest.raises(CancelledError):
        await receiving
    assert not ends.watch.receive


@pytest.mark.parametrize("part", [b"", b"PROXY TCP4", HEADERS[1][:-1]])
async def test_the_end_of_the_stream_is_an_error(ends, part):
    ends.theirs.sendall(part)
    ends.theirs.shutdown(socket.SHUT_WR)
    error = ProxyHeaderError if part else SocketConnectionLostError
    with pytest.raises(error, match=f"after {len(part)} bytes" if part else "without a PROXY"):
        await ends.receive()


async def test_a_reset_is_a_lost_connection():
    with connected(*tcp_pair()) as ends:
        receiving = ends.receive()
        ends.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        ends.theirs.close()
        with pytest.raises(SocketConnectionLostError):
            await receiving


async def test_a_timeout_tells_its_stage(ends):
    clock = Clock()
    receiving = receive_header(clock, ends.watch, ends.ours, "any", 3)
    clock.advance(3)
    with pytest.raises(SocketConnectionTimeoutError, match="during the PROXY header") as caught:
        await receiving
    assert caught.value.stage == "PROXY header"


async def test_without_a_time_limit_there_is_no_timer(ends):
    clock = Clock()
    receiving = receive_header(clock, ends.watch, ends.ours, "any", None)
    assert clock.getDelayedCalls() == []
    ends.theirs.sendall(HEADERS[0])
    await receiving


async def test_a_header_waits_until_there_is_room_for_it():
    """Which a new connection always has; a small buffer stands for a strange one."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    header = ProxyHeader(("::1", 1), ("::2", 2), tlvs=[(0xE0, bytes(60000))])
    with connected(ours, theirs) as ends:
        sending = send_header(the_reactor(), ends.watch, PlainDescriptor(ours), "v2", header)
        assert not sending.called
        theirs.setblocking(False)
        data = bytearray()

        def received() -> bool:
            try:
                data.extend(theirs.recv(65536))
            except BlockingIOError:
                pass
            return sending.called

        await until(received)
        received()
        assert bytes(data) == header.encode("v2")
        await sending


@pytest.mark.parametrize("header", [V4, None])
async def test_a_connection_that_is_lost_takes_no_header(header):
    with connected(*tcp_pair()) as ends:
        ends.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        ends.theirs.close()
        await turns(3)
        with pytest.raises(SocketConnectionLostError):
            await send_header(the_reactor(), ends.watch, PlainDescriptor(ends.ours), "v1", header)
