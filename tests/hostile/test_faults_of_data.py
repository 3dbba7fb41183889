"""Data that comes in the least convenient pieces, too early, too much, or with the end."""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import Any

import pytest
from twisted.internet.defer import maybeDeferred

from tests.support.clocks import until
from tests.support.faults import ANSWER, QUESTION, Flights, good_client, reached
from tests.support.loopback import LOOPBACK, open_sockets
from tests.support.peers import PEER_SECONDS
from tests.support.protocols import Kind, Recorder, client_context, connected, server_context
from tests.support.relay import end_of
from tests.support.streams import TCPStreams, TLSStreams, in_thread, noise, soon
from tests.support.ways_in import ASKING, SERVING, EndedByRelayError
from twisted_netsock import (
    SocketClosedError,
    SocketConnectionLostError,
    SocketOptions,
    TLSHandshakeError,
    make_client_tls_socket,
)

pytestmark = pytest.mark.long

RECORD = 16384
MEGABYTES = 16

every_way_to_serve = pytest.mark.parametrize("way", SERVING)
every_way_to_ask = pytest.mark.parametrize("way", ASKING)


def dialled(port: int) -> socket.socket:
    sock = socket.create_connection((LOOPBACK, port), PEER_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


# The least convenient pieces


def say_byte_by_byte(port: int, context: ssl.SSLContext, data: bytes) -> bytes:
    """Perform the handshake and say *data*, a byte in a segment; return the answer."""
    client = Flights(context, server=False)
    with dialled(port) as sock:
        sock.sendall(client.after(b""))
        while not client.done:
            sock.sendall(client.after(sock.recv(65536)))
        for byte in client.records(data, end=True):
            sock.sendall(bytes([byte]))
        sock.shutdown(socket.SHUT_WR)
        while piece := sock.recv(65536):
            client.after(piece)
        return client.pending


@every_way_to_serve
async def test_the_largest_record_may_come_in_segments_of_one_byte(way, authority):
    data = noise(RECORD - len(QUESTION)) + QUESTION
    async with SERVING[way](authority.server_options()) as served:
        said = in_thread(say_byte_by_byte, served.port, client_context(authority), data)
        assert await said == ANSWER
        await until(lambda: served.seen == [data])


def answer_byte_by_byte(
    listener: socket.socket, context: ssl.SSLContext, question: bytes, data: bytes
) -> None:
    """Take one connection, perform the handshake and answer with *data*, a byte in a segment."""
    listener.settimeout(PEER_SECONDS)
    sock, _ = listener.accept()
    with sock:
        sock.settimeout(PEER_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server = Flights(context, server=True)
        while not (server.done and server.pending == question):
            for byte in server.after(sock.recv(65536)):
                sock.sendall(bytes([byte]))
        for byte in server.records(data, end=True):
            sock.sendall(bytes([byte]))
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65536):
            pass


@every_way_to_ask
async def test_so_may_a_server_s_handshake_and_answer(way, authority, tmp_path):
    data = noise(RECORD)
    context = server_context(authority.issue("localhost", LOOPBACK), tmp_path)
    with socket.create_server((LOOPBACK, 0)) as listener:
        answering = in_thread(answer_byte_by_byte, listener, context, QUESTION, data)
        port = listener.getsockname()[1]
        assert await ASKING[way](LOOPBACK, port, authority.client_options()) == data
        await answering


# Data and the end at once


def answer_and_end(listener: socket.socket, context: ssl.SSLContext | None, data: bytes) -> None:
    """Take one connection; after the question send *data* and the end at once."""
    listener.settimeout(PEER_SECONDS)
    sock, _ = listener.accept()
    with sock:
        sock.settimeout(PEER_SECONDS)
        if context is None:
            assert sock.recv(65536) == QUESTION
            sock.sendall(data)
        else:
            server = Flights(context, server=True)
            while not (server.done and server.pending):
                sock.sendall(server.after(sock.recv(65536)))
            sock.sendall(server.records(data, end=True))
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65536):
            pass


@every_way_to_ask
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("size", [1, 3 * RECORD])
async def test_data_that_comes_with_the_end_of_the_stream_arrives_whole(
    way, tls, size, authority, tmp_path
):
    data = noise(size)
    context = server_context(authority.issue("localhost", LOOPBACK), tmp_path) if tls else None
    options = authority.client_options() if tls else SocketOptions()
    with socket.create_server((LOOPBACK, 0)) as listener:
        answering = in_thread(answer_and_end, listener, context, data)
        port = listener.getsockname()[1]
        assert await ASKING[way](LOOPBACK, port, options) == data
        await answering


def ask_and_end(port: int, context: ssl.SSLContext | None) -> bytes:
    """Send the question and the end at once, and return the answer."""
    with dialled(port) as sock:
        client = None if context is None else Flights(context, server=False)
        if client is None:
            sock.sendall(QUESTION)
        else:
            sock.sendall(client.after(b""))
            while not client.done:
                finish = client.after(sock.recv(65536))
                if not client.done:
                    sock.sendall(finish)
            sock.sendall(finish + client.records(QUESTION, end=True))
        sock.shutdown(socket.SHUT_WR)
        got = b""
        while piece := sock.recv(65536):
            if client is not None:
                client.after(piece)
            got += piece
        return got if client is None else client.pending


@every_way_to_serve
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_a_question_that_comes_with_the_end_is_answered(way, tls, authority):
    """With TLS the rest of the handshake comes with it too."""
    options = authority.server_options() if tls else SocketOptions()
    context = client_context(authority) if tls else None
    async with SERVING[way](options) as served:
        assert await in_thread(ask_and_end, served.port, context) == ANSWER
        await until(lambda: served.seen == [QUESTION])


# Too early, too much


def record(kind: int, content: bytes) -> bytes:
    return bytes([kind, 3, 3]) + len(content).to_bytes(2, "big") + content


FLOODS = {
    "one endless message": record(22, b"\x01\xff\xff\xff" + bytes(RECORD - 4))
    + record(22, bytes(RECORD)) * 63,
    "changes of keys": record(20, b"\x01") * 200_000,
    "warnings": record(21, b"\x01\x5a") * 150_000,
    "empty records": record(22, b"") * 200_000,
    "data": record(23, bytes(RECORD)) * 64,
    "no records": bytes(1_000_000),
}


def flood(port: int, begin: bytes, piece: bytes) -> int:
    """Send *begin* and megabytes of *piece*; return how many bytes the peer has let in."""
    sent = 0
    with contextlib.suppress(ConnectionError), dialled(port) as sock:
        sock.sendall(begin)
        view = memoryview(piece)
        while sent < MEGABYTES << 20:
            sent += sock.send(view[sent % len(view) :])
    return sent


@every_way_to_serve
@pytest.mark.parametrize("kind", FLOODS)
@pytest.mark.parametrize("stage", ["before", "within"])
async def test_megabytes_before_the_handshake_is_done_are_refused(
    way, kind, stage, authority, log_lines
):
    context = client_context(authority)
    begin = Flights(context, server=False).after(b"") if stage == "within" else b""
    async with SERVING[way](authority.server_options()) as served:
        let_in = await in_thread(flood, served.port, begin, FLOODS[kind])
        await until(lambda: any("TLS handshake with" in line for line in log_lines))
        # What the kernel has taken meanwhile is its own; nobody read it.
        assert let_in < MEGABYTES << 20
        assert served.seen == []
        assert await in_thread(good_client, served.port, context) == ANSWER
        await until(lambda: served.seen == [QUESTION])


def flood_client(
    listener: socket.socket, context: ssl.SSLContext, stage: str, piece: bytes
) -> int:
    """Take one connection and flood it; return how many bytes it has let in."""
    listener.settimeout(PEER_SECONDS)
    sock, _ = listener.accept()
    sent = 0
    with contextlib.suppress(ConnectionError), sock:
        sock.settimeout(PEER_SECONDS)
        hello = sock.recv(65536)
        if stage == "within":
            flight = Flights(context, server=True).after(hello)
            sock.sendall(flight[: 5 + int.from_bytes(flight[3:5], "big")])
        view = memoryview(piece)
        while sent < MEGABYTES << 20:
            sent += sock.send(view[sent % len(view) :])
    return sent


@every_way_to_ask
@pytest.mark.parametrize("kind", FLOODS)
@pytest.mark.parametrize("stage", ["before", "within"])
async def test_so_are_megabytes_of_a_server(way, kind, stage, authority, tmp_path):
    """They come instead of its first message, or behind it."""
    context = server_context(authority.issue("localhost", LOOPBACK), tmp_path)
    with socket.create_server((LOOPBACK, 0)) as listener:
        flooding = in_thread(flood_client, listener, context, stage, FLOODS[kind])
        port = listener.getsockname()[1]
        with pytest.raises(
            (TLSHandshakeError, SocketConnectionLostError, EndedByRelayError)
        ) as caught:
            await ASKING[way](LOOPBACK, port, authority.client_options())
        assert await flooding < MEGABYTES << 20
    if way == "relay":
        assert caught.value.reason == "unreachable"


@every_way_to_serve
@pytest.mark.parametrize("version", ["v1", "v2", "any"])
@pytest.mark.parametrize(
    "begin", [b"PROXY TCP4 ", b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\xff\xff"], ids=["text", "binary"]
)
async def test_megabytes_in_place_of_a_proxy_header_are_refused(
    way, version, begin, authority, log_lines
):
    options = SocketOptions(proxy_protocol=version)
    async with SERVING[way](options) as served:
        let_in = await in_thread(flood, served.port, begin, b"\xff" * 1_000_000)
        await until(lambda: any("refused: bad PROXY header" in line for line in log_lines))
        assert let_in < MEGABYTES << 20
        assert served.seen == []


# Closing


@every_way_to_serve
@pytest.mark.parametrize("stage", ["before ClientHello", "in ClientHello", "in the handshake"])
async def test_a_server_that_closes_ends_the_handshakes_under_way(
    way, stage, authority, log_lines
):
    context = client_context(authority)
    with contextlib.ExitStack() as stack:
        async with SERVING[way](authority.server_options()) as served:
            before = open_sockets()
            client = await in_thread(reached, stack, served.port, stage, context)
            # This end, and the server's.
            await until(lambda: open_sockets() == before + 2)
        assert await in_thread(end_of, client) in {"end", "reset"}
    assert served.seen == []
    assert not [line for line in log_lines if "TLS handshake with" in line]


KINDS = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])


class Closer(Recorder):
    """Ends its connection in a callback, in one way or another, or in several."""

    def __init__(self, callback: str, ways: tuple[str, ...]) -> None:
        super().__init__()
        self._callback = callback
        self._ways = ways

    def _close_in(self, callback: str) -> None:
        if callback == self._callback:
            for way in self._ways:
                getattr(self.transport, way)()

    def connectionMade(self) -> None:
        super().connectionMade()
        self._close_in("connectionMade")

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        self._close_in("dataReceived")

    def connectionLost(self, reason: Any = None) -> None:
        super().connectionLost(reason)
        self._close_in("connectionLost")


@KINDS
@pytest.mark.parametrize("callback", ["connectionMade", "dataReceived", "connectionLost"])
@pytest.mark.parametrize(
    "ways",
    [
        ("loseConnection",),
        ("abortConnection",),
        ("loseConnection", "loseConnection"),
        ("loseConnection", "abortConnection"),
        ("abortConnection", "abortConnection", "loseConnection"),
    ],
    ids="+".join,
)
async def test_a_connection_may_be_closed_in_any_callback_and_twice(
    tls, callback, ways, authority
):
    kind = Kind(authority, tls=tls)
    async with connected(kind, server=lambda: Closer(callback, ways)) as pair:
        for _ in range(3):
            pair.client.transport.write(bytes(300_000))
        if callback == "connectionLost":
            pair.client.transport.loseConnection()
        await pair.server.loses()
        await pair.client.loses()
        assert pair.server.events.count("lost") == 1
        assert pair.server.events[-1] == "lost"


@KINDS
@pytest.mark.parametrize("method", ["close", "abort"])
async def test_a_socket_may_be_closed_where_its_data_arrives(tls, method, authority):
    streams = TLSStreams(authority) if tls else TCPStreams()
    async with streams.pair() as (one, other):
        closed = one.recv(100).addCallback(lambda data: (data, getattr(one, method)()))
        await other.sendall(b"data")
        data, closing = await closed
        assert data == b"data"
        for again in (one.recv, one.send):
            with pytest.raises(SocketClosedError):
                await again(b"x" if again == one.send else 1)
        other.abort()
        await soon(maybeDeferred(lambda: closing))


@every_way_to_serve
async def test_a_connection_that_one_side_closes_while_it_waits_ends_its_own_calls(way, authority):
    """The client is one of ours, and its question waits."""
    async with SERVING[way](authority.server_options()) as served:
        sock = await make_client_tls_socket(LOOPBACK, served.port, authority.client_options())
        waiting = sock.recv(1)
        closing = sock.close()
        with pytest.raises(SocketClosedError):
            await waiting
        assert await closing is None
        assert await sock.close() is None
        # The relay connects no backend for who goes without a byte, as health checks do.
        await until(lambda: served.seen == ([] if way == "relay" else [b""]))
