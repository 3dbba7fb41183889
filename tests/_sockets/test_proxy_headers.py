"""PROXY headers on awaitable sockets: listeners that require them, and makers that send them."""

from __future__ import annotations

import contextlib
import re
import socket
from datetime import timedelta
from typing import Any

import pytest
from twisted.internet.defer import CancelledError

from tests.support.clocks import ClockedReactor, turns, until
from tests.support.streams import failure_of, soon
from twisted_netsock import (
    ProxyHeader,
    ProxyTLV,
    SocketBusyError,
    SocketClosedError,
    SocketOptions,
    make_client_socket,
    make_client_tls_socket,
    make_server_socket,
    make_server_tls_socket,
    socket_options_to_client_socket,
    start_tls,
    wait_readable,
)
from twisted_netsock.testing import CertificateAuthority

SOURCE, DESTINATION = ("192.0.2.1", 56324), ("192.0.2.2", 443)
HEADER = ProxyHeader(SOURCE, DESTINATION)
V1, V2 = HEADER.encode("v1"), HEADER.encode("v2")


class Makers:
    """Makes sockets of both sides, plain or TLS."""

    def __init__(self, authority: CertificateAuthority, *, tls: bool) -> None:
        self._authority = authority
        self.tls = tls

    async def listen(self, version: Any = "any", *, reactor: Any = None, **fields: Any) -> Any:
        if self.tls:
            options = self._authority.server_options(proxy_protocol=version, **fields)
            return await make_server_tls_socket("127.0.0.1", 0, options, reactor=reactor)
        record = SocketOptions(proxy_protocol=version, **fields)
        return await make_server_socket("127.0.0.1", 0, record, reactor=reactor)

    def options(self, version: Any) -> SocketOptions:
        if self.tls:
            return self._authority.client_options(proxy_protocol=version)
        return SocketOptions(proxy_protocol=version)

    def connect(self, listener: Any, version: Any = "v2", header: Any = None) -> Any:
        make: Any = make_client_tls_socket if self.tls else make_client_socket
        port = listener.getsockname().port
        return make("127.0.0.1", port, self.options(version), proxy_header=header)


@pytest.fixture(params=["plain", "tls"])
def makers(request, authority):
    return Makers(authority, tls=request.param == "tls")


def raw(listener: Any, said: bytes = b"", source: str = "127.0.0.1") -> socket.socket:
    """Return a connection to *listener* that has said no more than this."""
    sock = socket.create_connection(listener.getsockname(), timeout=5, source_address=(source, 0))
    sock.sendall(said)
    return sock


@contextlib.asynccontextmanager
async def met(listener: Any, connecting: Any):
    """Accept what *connecting* comes to, and give both ends."""
    accepting = listener.accept()
    client = await soon(connecting)
    server = await soon(accepting)
    try:
        yield client, server
    finally:
        client.abort()
        server.abort()


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_an_accepted_socket_is_its_sources(makers, version):
    async with await makers.listen(version) as listener:
        connecting = makers.connect(listener, version, HEADER)
        async with met(listener, connecting) as (client, server):
            assert (server.node, server.service) == SOURCE
            assert server.proxy_header == HEADER
            assert server.getpeername() == client.getsockname()
            assert client.proxy_header is None
            assert listener.proxy_header is None
            await client.sendall(b"hello")
            assert await server.recv(100) == b"hello"
            await server.sendall(b"and back")
            assert await client.recv(100) == b"and back"
        assert listener.failed_handshakes == 0


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_a_client_tells_its_own_addresses(makers, version):
    async with (
        await makers.listen() as listener,
        met(listener, makers.connect(listener, version)) as (client, server),
    ):
        assert (server.node, server.service) == tuple(client.getsockname())
        assert server.proxy_header == ProxyHeader(client.getsockname(), client.getpeername())


async def test_a_header_without_addresses_leaves_those_of_the_connection(makers):
    async with await makers.listen() as listener:
        connecting = makers.connect(listener, "v2", ProxyHeader(local=True))
        async with met(listener, connecting) as (client, server):
            assert (server.node, server.service) == tuple(client.getsockname())
            assert server.proxy_header == ProxyHeader(local=True)


async def test_the_record_may_choose_the_maker(makers):
    header = ProxyHeader(SOURCE, DESTINATION, tlvs=[(ProxyTLV.UNIQUE_ID, b"7")])
    async with await makers.listen() as listener:
        connecting = socket_options_to_client_socket(
            makers.options("v2"), "127.0.0.1", listener.getsockname().port, proxy_header=header
        )
        async with met(listener, connecting) as (_, server):
            assert server.proxy_header.unique_id == b"7"


async def test_timeouts_of_the_listener_hold_for_what_it_accepts(makers):
    async with (
        await makers.listen(read_timeout=timedelta(seconds=7)) as listener,
        met(listener, makers.connect(listener)) as (_, server),
    ):
        assert server.read_timeout == timedelta(seconds=7)


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.0\r\n\r\n", b"PROXY TCP4 x\r\n", V2[:12] + b"\xff", V2[:14], b""]
)
async def test_what_is_no_good_header_never_fails_an_accept(makers, said, log_lines):
    async with await makers.listen() as listener:
        accepting = listener.accept()
        with raw(listener, said) as peer:
            peer.shutdown(socket.SHUT_WR)
            await until(lambda: listener.failed_handshakes)
            port = peer.getsockname()[1]
        assert listener.failed_handshakes == 1
        [line] = [line for line in log_lines if "refused" in line]
        assert re.search(rf"connection from 127.0.0.1:{port} refused: .*PROXY header", line)
        assert not accepting.called
        client = await soon(makers.connect(listener))
        (await soon(accepting)).abort()
        client.abort()


@pytest.mark.parametrize("said", [b"", b"PROXY ", V1[:-1], V2[:-1]])
async def test_a_mute_peer_is_closed_after_ten_seconds(makers, said, log_lines):
    clock = ClockedReactor()
    async with await makers.listen(reactor=clock) as listener:
        accepting = listener.accept()
        with raw(listener, said) as mute:
            await until(clock.getDelayedCalls)
            await turns()
            clock.advance(9)
            assert listener.failed_handshakes == 0
            clock.advance(1)
            assert listener.failed_handshakes == 1
            with contextlib.suppress(ConnectionResetError):
                assert mute.recv(1) == b""
        assert any("timed out during the PROXY header" in line for line in log_lines)
        assert not accepting.called
        accepting.cancel()
        assert failure_of(accepting) is CancelledError
        assert not clock.getDelayedCalls()


async def test_the_handshake_timeout_of_a_tls_record_covers_the_header(authority, log_lines):
    clock = ClockedReactor()
    makers = Makers(authority, tls=True)
    listening = makers.listen(reactor=clock, handshake_timeout=timedelta(seconds=3))
    async with await listening as listener:
        accepting = listener.accept()
        with raw(listener):
            await until(clock.getDelayedCalls)
            clock.advance(3)
            assert listener.failed_handshakes == 1
        accepting.cancel()
        assert failure_of(accepting) is CancelledError


async def test_mute_peers_hold_up_nobody(makers):
    async with await makers.listen() as listener:
        accepting = listener.accept()
        with contextlib.ExitStack() as stack:
            for said in (b"", V1[:-1], V2[:13]) * 5:
                stack.enter_context(raw(listener, said))
            await turns()
            client = await soon(makers.connect(listener))
            server = await soon(accepting)
            assert server.getpeername() == client.getsockname()
            server.abort()
            client.abort()


async def test_the_number_of_connections_on_the_way_is_bounded(makers, monkeypatch):
    """The others stay with the kernel, until one of these has ended."""
    monkeypatch.setattr("twisted_netsock._net.incoming.MAX_INCOMING", 64)
    async with await makers.listen(backlog=512) as listener:
        accepting = listener.accept()
        with contextlib.ExitStack() as stack:
            # Of several addresses: one alone would have half of the places.
            first, *mute = [
                stack.enter_context(raw(listener, source=f"127.0.1.{number % 4 + 1}"))
                for number in range(64)
            ]
            connecting = makers.connect(listener)
            await turns(10)
            assert not accepting.called
            first.close()
            client = await soon(connecting)
            server = await soon(accepting)
            assert listener.failed_handshakes == 1
            assert mute
            server.abort()
            client.abort()


async def test_those_that_are_ready_wait_for_the_next_accept():
    async with await Makers(None, tls=False).listen() as listener:
        accepting = listener.accept()
        with raw(listener) as late, raw(listener, V2):
            first = await soon(accepting)
            # It was on its way when the accept was served.
            late.sendall(V1 + b"late")
            await turns(10)
            second = await soon(listener.accept())
            assert second.getpeername() == late.getsockname()
            assert await second.recv(100) == b"late"
            first.abort()
            second.abort()


async def test_a_wait_learns_of_those_that_are_ready():
    async with await Makers(None, tls=False).listen() as listener:
        accepting = listener.accept()
        with raw(listener) as late, raw(listener, V2):
            (await soon(accepting)).abort()
            waiting = wait_readable(listener)
            await turns()
            assert not waiting.called
            late.sendall(V1)
            assert await soon(waiting) == [listener]
            (await soon(listener.accept())).abort()


async def test_a_serve_loop_hands_on_what_has_a_header(makers, log_lines):
    listener = await makers.listen()
    served: list[Any] = []

    async def handler(connection):
        served.append(connection.proxy_header)
        await connection.sendall(await connection.recv(100))

    serving = listener.serve(handler)
    with raw(listener, b"GET / HTTP/1.0\r\n\r\n"):
        await until(lambda: listener.failed_handshakes)
    client = await soon(makers.connect(listener, "v2", HEADER))
    await client.sendall(b"hello")
    assert await soon(client.recv(100)) == b"hello"
    assert served == [HEADER]
    client.abort()
    await listener.close()
    await soon(serving)


async def test_tls_that_begins_later_keeps_the_header(authority):
    async with await Makers(None, tls=False).listen() as listener:
        plain = Makers(None, tls=False)
        async with met(listener, plain.connect(listener, "v1", HEADER)) as (one, other):
            upgrading = start_tls(other, authority.server_options())
            client = await soon(start_tls(one, authority.client_options()))
            server = await soon(upgrading)
            assert server.proxy_header == HEADER
            assert (server.node, server.service) == SOURCE
            client.abort()
            server.abort()


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_a_client_whose_handshake_comes_later_has_sent_its_header(authority, version):
    makers = Makers(authority, tls=True)
    async with await makers.listen(version) as listener:
        accepting = listener.accept()
        options = authority.client_options(proxy_protocol=version, handshake=False)
        client = await soon(
            make_client_tls_socket("127.0.0.1", listener.getsockname().port, options)
        )
        await soon(client.handshake())
        server = await soon(accepting)
        assert (server.node, server.service) == tuple(client.getsockname())
        client.abort()
        server.abort()


async def test_a_second_accept_is_refused(makers):
    async with await makers.listen() as listener:
        accepting = listener.accept()
        with pytest.raises(SocketBusyError):
            await listener.accept()
        accepting.cancel()
        assert failure_of(accepting) is CancelledError


async def test_closing_ends_those_whose_header_has_not_come(makers):
    listener = await makers.listen()
    accepting = listener.accept()
    with raw(listener, V2[:14]) as peer:
        await turns()
        await listener.close()
        assert failure_of(accepting) is SocketClosedError
        with contextlib.suppress(ConnectionResetError):
            assert peer.recv(1) == b""
    assert listener.failed_handshakes == 0


async def test_a_connection_nobody_accepts_is_closed_with_the_listener():
    listener = await Makers(None, tls=False).listen()
    accepting = listener.accept()
    with raw(listener) as late, raw(listener, V2):
        (await soon(accepting)).abort()
        late.sendall(V1)
        await turns(10)
        await listener.close()
        with contextlib.suppress(ConnectionResetError):
            assert late.recv(1) == b""


async def test_without_a_handshake_the_header_comes_first(authority):
    makers = Makers(authority, tls=True)
    async with await makers.listen(handshake=False) as listener:
        accepting = listener.accept()
        connecting = makers.connect(listener, "v1", HEADER)
        server = await soon(accepting)
        assert server.proxy_header == HEADER
        assert server.tls_version is None
        await soon(server.handshake())
        client = await soon(connecting)
        assert server.tls_version == "TLSv1.3"
        server.abort()
        client.abort()


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_what_follows_in_the_same_segment_is_received(version):
    async with await Makers(None, tls=False).listen() as listener:
        accepting = listener.accept()
        with raw(listener, HEADER.encode(version) + b"hello\r\n"):
            server = await soon(accepting)
            assert await server.recv(100) == b"hello\r\n"
            server.abort()


async def test_a_listener_without_proxy_protocol_looks_for_no_header():
    async with await Makers(None, tls=False).listen(None) as listener:
        accepting = listener.accept()
        with raw(listener, V1):
            server = await soon(accepting)
            assert await server.recv(1000) == V1
            assert server.proxy_header is None
            assert listener.failed_handshakes == 0
            server.abort()


def test_a_client_has_to_choose_a_version(makers):
    make: Any = make_client_tls_socket if makers.tls else make_client_socket
    with pytest.raises(ValueError, match="proxy_protocol='any' is for servers"):
        make("localhost", 80, makers.options("any"))


@pytest.mark.parametrize(
    ("version", "header", "error", "told"),
    [
        (None, HEADER, ValueError, "proxy_protocol"),
        ("v2", V2, TypeError, "ProxyHeader"),
        ("v1", ProxyHeader(SOURCE, DESTINATION, tlvs=[(1, b"h2")]), ValueError, "'v2' has"),
    ],
)
def test_a_header_that_cannot_be_sent_is_refused_at_once(makers, version, header, error, told):
    with pytest.raises(error, match=told):
        socket_options_to_client_socket(
            makers.options(version), "localhost", 80, proxy_header=header
        )
