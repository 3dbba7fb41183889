"""TLS in memory, over any descriptor: over a socket, and over another TLS."""

from __future__ import annotations

import socket

import pytest

from twisted_netsock import SocketConnectionLostError, TLSHandshakeError, TLSTruncatedError
from twisted_netsock._io.descriptor import PlainDescriptor
from twisted_netsock._io.poller import Want
from twisted_netsock._tls.client import ClientContextFactory
from twisted_netsock._tls.in_memory import TLSInMemory
from twisted_netsock._tls.server import ServerContextFactory
from twisted_netsock.testing import CertificateAuthority

NAME = "server.example"


@pytest.fixture(scope="module")
def factories():
    authority = CertificateAuthority()
    client = ClientContextFactory(authority.client_options(), NAME)
    return client, ServerContextFactory((authority.server_options(NAME),))


@pytest.fixture
def plain():
    pair = socket.socketpair()
    for sock in pair:
        sock.setblocking(False)
    descriptors = [PlainDescriptor(sock) for sock in pair]
    yield descriptors
    for descriptor in descriptors:
        descriptor.close()


def layered(below, factories):
    """Return TLS over both of *below*, its handshake done."""
    pair = [TLSInMemory(*each) for each in zip(below, factories, strict=True)]
    for _ in range(20):
        wants = [each.try_handshake() for each in pair]
        if wants == [None, None]:
            return pair
    raise AssertionError(wants)


@pytest.fixture(params=[1, 2], ids=["TLS", "TLS in TLS"])
def pair(request, plain, factories):
    pair = plain
    for _ in range(request.param):
        pair = layered(pair, factories)
    return pair


def received(descriptor, n):
    data = b""
    while len(data) < n:
        part = descriptor.try_recv(n)
        if isinstance(part, Want):
            break
        data += part
    return data


def test_passes_data_both_ways(pair):
    client, server = pair
    assert client.try_send(b"hello") == 5
    assert received(server, 5) == b"hello"
    assert server.try_send(b"world") == 5
    room = bytearray(10)
    assert client.try_recv_into(memoryview(room)) == 5
    assert bytes(room[:5]) == b"world"


def test_whole_records_wait_here_unseen(pair):
    client, server = pair
    client.try_send(b"one")
    client.try_send(b"two")
    assert server.try_recv(10) == b"one"
    assert server.buffered
    assert server.try_recv(10) == b"two"
    assert isinstance(server.try_recv(10), Want)
    assert not server.buffered


def test_a_peer_that_does_not_read_makes_a_send_wait(pair):
    client, server = pair
    sent = 0
    while True:
        count = client.try_send(bytes(65536))
        if isinstance(count, Want):
            break
        sent += count
        assert sent < 16 * 1024 * 1024
    assert client.unflushed
    total = 0
    while total < sent:
        client.try_flush()
        data = server.try_recv(65536)
        assert not isinstance(data, Want)
        total += len(data)
    assert client.try_flush() is None
    assert not client.unflushed


def test_ends_with_close_notify(pair):
    client, server = pair
    client.try_send(b"last")
    assert client.try_shutdown(socket.SHUT_WR) is None
    assert received(server, 4) == b"last"
    assert server.try_recv(10) == b""
    assert server.try_tls_shutdown() is None
    assert client.try_tls_shutdown() is None


def test_an_end_beneath_truncates(pair):
    client, server = pair
    # The server's tickets: a socket that is closed over unread data resets.
    assert isinstance(client.try_recv(10), Want)
    client.inner.close()
    with pytest.raises(TLSTruncatedError):
        server.try_recv(10)


def test_a_reset_beneath_is_a_lost_connection(pair):
    client, server = pair
    client.inner.close()
    with pytest.raises(SocketConnectionLostError):
        server.try_recv(10)
    assert server.failed


def test_a_message_that_is_too_long_is_refused(plain, factories):
    stranger, below = plain
    server = TLSInMemory(below, factories[1])
    # A ClientHello of 16 MiB.
    stranger.try_send(b"\x16\x03\x01\x00\x04\x01\xff\xff\xff")
    with pytest.raises(TLSHandshakeError, match="begins a handshake message"):
        server.try_handshake()
    assert stranger.try_recv(100)[:1] == b"\x15"
    assert server.failed
