"""What the kernel reports again and again, and no receive takes away, costs no processor time."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.task import deferLater

from tests.support.clocks import the_reactor, turns, until
from tests.support.loopback import LOOPBACK, note_calls
from tests.support.protocols import Protocols
from tests.support.streams import in_thread, soon
from twisted_netsock import Socket, SocketOptions, blocking, client_endpoint, server_endpoint
from twisted_netsock._io.descriptor import PlainDescriptor

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these are Linux's reports")

IP_RECVERR = 11
SO_TIMESTAMPING = 37
SENT_AND_SOFTWARE = 1 << 1 | 1 << 4

FEW = 20
"""Calls of the poller in a tenth of a second; one that spins is called thousands of times."""


def udp_pair() -> tuple[socket.socket, socket.socket]:
    here, there = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    for each in (here, there):
        each.bind((LOOPBACK, 0))
    here.connect(there.getsockname())
    there.connect(here.getsockname())
    return here, there


def unix_pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)


PAIRS = pytest.mark.parametrize("make", [udp_pair, unix_pair])
RECEIVES: dict[str, tuple[Callable[[Socket], Any], Any]] = {
    "recv": (lambda sock: sock.recv(10), b""),
    "recv_into": (lambda sock: sock.recv_into(bytearray(10)), 0),
    "recvfrom": (lambda sock: sock.recvfrom(10), (b"", ())),
    "recvfrom_into": (lambda sock: sock.recvfrom_into(bytearray(10)), (0, ())),
    "recvmsg": (lambda sock: sock.recvmsg(10), (b"", [], 0, ())),
}


@pytest.mark.parametrize("when", ["before", "meanwhile", "behind our back"])
@pytest.mark.parametrize("name", RECEIVES)
@PAIRS
async def test_datagrams_end_when_reading_is_shut_down(make, name, when):
    """As the kernel has it for a receive that blocks: first what is queued, then the end."""
    receive, end = RECEIVES[name]
    raw, other = make()
    other.send(b"queued")
    number = raw.fileno()
    here = Socket.from_socket(raw)
    if when == "before":
        await here.shutdown(socket.SHUT_RD)
    assert await here.recv(10) == b"queued"
    waiting = receive(here)
    if when == "meanwhile":
        assert not waiting.called
        await here.shutdown(socket.SHUT_RD)
    elif when == "behind our back":
        with socket.socket(fileno=number) as copy:
            copy.shutdown(socket.SHUT_RD)
            copy.detach()
    assert await soon(waiting) == end
    assert await soon(receive(here)) == end
    await here.close()
    other.close()


async def test_an_error_in_the_queue_of_a_socket_does_not_keep_the_reactor_busy(monkeypatch):
    here, there = udp_pair()
    here.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    address = there.getsockname()
    there.close()
    here.send(b"nobody hears this")
    sock = Socket.from_socket(here)
    with pytest.raises(ConnectionRefusedError):
        await soon(sock.recv(10))
    calls = note_calls(monkeypatch)
    waiting = sock.recv(10)
    await deferLater(the_reactor(), 0.1)
    assert len(calls) < FEW
    # What comes is received all the same, each datagram of several at once.
    there = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    there.bind(address)
    for number in range(3):
        there.sendto(b"%d" % number, sock.getsockname())
    assert [await soon(waiting)] + [await soon(sock.recv(10)) for _ in range(2)] == [
        b"0",
        b"1",
        b"2",
    ]
    waiting = sock.recv(10)
    await turns()
    there.sendto(b"late", sock.getsockname())
    assert await soon(waiting) == b"late"
    await sock.close()
    there.close()


async def test_neither_does_it_keep_a_thread_busy(monkeypatch):
    here, there = udp_pair()
    here.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    address = there.getsockname()
    there.close()
    here.send(b"nobody hears this")
    sock = await in_thread(blocking.BlockingSocket.from_socket, here)
    attempts: list[int] = []
    attempt = PlainDescriptor.try_recv

    def noting(self: Any, n: int, flags: int = 0) -> Any:
        attempts.append(n)
        return attempt(self, n, flags)

    monkeypatch.setattr(PlainDescriptor, "try_recv", noting)
    with pytest.raises(ConnectionRefusedError):
        await in_thread(sock.recv, 10)
    waiting = in_thread(sock.recv, 10)
    await deferLater(the_reactor(), 0.2)
    assert len(attempts) < FEW
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(address)
        other.sendto(b"late", sock.getsockname())
        assert await waiting == b"late"
    await in_thread(sock.close)


async def test_neither_does_one_of_a_transport(monkeypatch):
    """Each send puts a time stamp into the queue for errors, where nobody takes it."""
    servers, clients = Protocols(), Protocols()
    port = await server_endpoint(the_reactor(), LOOPBACK, 0).listen(servers)
    stamps = [(socket.SOL_SOCKET, SO_TIMESTAMPING, SENT_AND_SOFTWARE)]
    endpoint = client_endpoint(
        the_reactor(), LOOPBACK, port.getHost().port, SocketOptions(socket_options=stamps)
    )
    client = await endpoint.connect(clients)
    server = await servers.connected()
    client.transport.write(b"stamped")
    await server.receives(7)
    calls = note_calls(monkeypatch)
    await deferLater(the_reactor(), 0.1)
    assert len(calls) < FEW
    # More than one read takes, and then a little.
    server.transport.write(bytes(1_000_000))
    await client.receives(1_000_000)
    server.transport.write(b"x")
    await client.receives(1_000_001)
    # Both ways at once, with more than fits.
    client.transport.write(bytes(5_000_000))
    server.transport.write(bytes(5_000_000))
    await server.receives(5_000_007)
    await client.receives(6_000_001)
    server.transport.loseConnection()
    await client.loses()
    await until(lambda: server.reason)
    await port.stopListening()
