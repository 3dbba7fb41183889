"""PROXY headers on endpoints: what servers require and report, and what clients send."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl

import pytest
from twisted.internet import reactor
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import CancelledError

from tests.support.clocks import ClockedReactor, turns, until
from tests.support.loopback import LOOPBACK, reset
from tests.support.protocols import (
    Kind,
    Protocols,
    accepted,
    client_context,
    connected,
    listening,
    raw_client,
    raw_listener,
    raw_receive,
    tls_peer,
)
from twisted_netsock import (
    ProxyHeader,
    ProxyTLV,
    SocketOptions,
    client_endpoint,
    server_endpoint,
)
from twisted_netsock._proxy_protocol.header import HEADER_LIMIT

SOURCE, DESTINATION = ("192.0.2.1", 56324), ("192.0.2.2", 443)
HEADER = ProxyHeader(SOURCE, DESTINATION)
V1, V2 = HEADER.encode("v1"), HEADER.encode("v2")
SIGNATURE = V2[:12]


async def say(kind, sock, data=b"hello"):
    """Say something over *sock* as a client does, with TLS where it is."""
    if kind.tls:
        secured = await tls_peer(sock, client_context(kind.authority), "localhost")
        secured.send(data)
        return secured
    sock.send(data)
    return sock


async def proxied(kind, port, servers, header):
    """Connect to *port* with *header* in front, and return the server's protocol."""
    with raw_client(port) as sock:
        sock.send(header)
        with await say(kind, sock):
            server = await servers.connected(len(servers.built) + 1)
            assert await server.receives(5) == b"hello"
            return server


# What a server requires


@pytest.mark.parametrize(("required", "sent"), [("v1", V1), ("v2", V2), ("any", V1), ("any", V2)])
async def test_a_protocol_sees_the_addresses_of_the_header(kind, required, sent):
    servers = Protocols()
    async with listening(kind.server(proxy_protocol=required), servers) as port:
        server = await proxied(kind, port, servers, sent)
        assert servers.addresses == [IPv4Address("TCP", *SOURCE)]
        assert server.transport.getPeer() == IPv4Address("TCP", *SOURCE)
        assert server.transport.getHost() == IPv4Address("TCP", *DESTINATION)
        assert server.transport.proxy_header == HEADER


@pytest.mark.parametrize(
    ("header", "peer", "host"),
    [
        (
            ProxyHeader(("2001:db8::1", 1), ("2001:db8::2", 2)),
            IPv6Address("TCP", "2001:db8::1", 1),
            IPv6Address("TCP", "2001:db8::2", 2),
        ),
        (
            ProxyHeader(UNIXAddress(b"/run/a"), UNIXAddress(b"/run/b")),
            UNIXAddress(b"/run/a"),
            UNIXAddress(b"/run/b"),
        ),
        (
            ProxyHeader(SOURCE, DESTINATION, socket_type=socket.SOCK_DGRAM),
            IPv4Address("UDP", *SOURCE),
            IPv4Address("UDP", *DESTINATION),
        ),
    ],
)
async def test_addresses_of_every_family_are_reported(kind, header, peer, host):
    servers = Protocols()
    async with listening(kind.server(proxy_protocol="v2"), servers) as port:
        server = await proxied(kind, port, servers, header.encode("v2"))
        assert (server.transport.getPeer(), server.transport.getHost()) == (peer, host)
        assert servers.addresses == [peer]


@pytest.mark.parametrize(
    "sent",
    [b"PROXY UNKNOWN\r\n", ProxyHeader().encode("v2"), ProxyHeader(local=True).encode("v2")],
)
async def test_a_header_without_addresses_leaves_those_of_the_connection(kind, sent):
    servers = Protocols()
    async with listening(kind.server(proxy_protocol="any"), servers) as port:
        server = await proxied(kind, port, servers, sent)
        assert server.transport.getPeer().host == LOOPBACK
        assert server.transport.getHost() == port.getHost()
        assert server.transport.proxy_header == ProxyHeader.parse(sent)


@pytest.mark.parametrize("sent", [V1, V2])
async def test_a_header_may_come_byte_by_byte(kind, sent):
    servers = Protocols()
    async with listening(kind.server(proxy_protocol="any"), servers) as port:
        with raw_client(port) as sock:
            for place in range(len(sent)):
                assert servers.built == []
                sock.send(sent[place : place + 1])
                await turns(2)
            with await say(kind, sock):
                server = await servers.connected()
                assert await server.receives(5) == b"hello"


@pytest.mark.parametrize("sent", [V1, V2, b"PROXY UNKNOWN\r\n"])
async def test_what_follows_in_the_same_segment_is_the_applications(sent):
    """A line break, too, which could be taken for the end of the header."""
    servers = Protocols()
    async with listening(SocketOptions(proxy_protocol="any"), servers) as port:
        with raw_client(port) as sock:
            sock.send(sent + b"\r\nPROXY TCP4")
            server = await servers.connected()
            assert await server.receives(12) == b"\r\nPROXY TCP4"


@pytest.mark.parametrize("sent", [V1, V2])
async def test_a_client_hello_may_follow_in_the_same_segment(authority, sent):
    kind = Kind(authority, tls=True)
    servers = Protocols()
    async with listening(kind.server(proxy_protocol="any"), servers) as port:
        with raw_client(port) as sock:
            coming, going = ssl.MemoryBIO(), ssl.MemoryBIO()
            secured = client_context(authority).wrap_bio(
                coming, going, server_hostname="localhost"
            )
            with contextlib.suppress(ssl.SSLWantReadError):
                secured.do_handshake()
            sock.send(sent + going.read())

            async def shake():
                while True:
                    coming.write(await raw_receive(sock))
                    try:
                        secured.do_handshake()
                    except ssl.SSLWantReadError:
                        continue
                    return

            await shake()
            secured.write(b"hello")
            sock.send(going.read())
            server = await servers.connected()
            assert await server.receives(5) == b"hello"
            assert server.transport.proxy_header == HEADER


async def test_tlvs_come_with_the_header(kind):
    header = ProxyHeader(
        SOURCE,
        DESTINATION,
        tlvs=[(ProxyTLV.AUTHORITY, b"example.com"), (0xE0, b"x")],
        checksum=True,
    )
    servers = Protocols()
    async with listening(kind.server(proxy_protocol="v2"), servers) as port:
        server = await proxied(kind, port, servers, header.encode("v2"))
        assert server.transport.proxy_header == header
        assert server.transport.proxy_header.authority == "example.com"


# Peers without manners

BAD = [
    ("any", b"GET / HTTP/1.0\r\n\r\n", "not there"),
    ("any", b"\x16\x03\x01\x02\x00", "not there"),
    ("v1", V2, "version 1 was expected"),
    ("v2", V1, "version 2 was expected"),
    ("any", b"PROXY TCP4 nonsense\r\n", "cannot be understood"),
    ("any", b"PROXY " + b"x" * 200, "longer than 107 bytes"),
    ("any", SIGNATURE + b"\x21\x11\xff\xff", f"longer than {HEADER_LIMIT} bytes"),
    ("any", SIGNATURE + b"\x21\x11\x00\x04abcd", "cut off"),
    ("any", SIGNATURE + b"\x29", "no version and command 0x29"),
]


@pytest.mark.parametrize(("required", "sent", "message"), BAD)
async def test_what_is_no_good_header_ends_that_connection(
    kind, required, sent, message, log_lines
):
    servers = Protocols()
    async with listening(kind.server(proxy_protocol=required), servers) as port:
        with raw_client(port) as sock:
            sock.send(sent)
            with contextlib.suppress(ConnectionResetError):
                assert await raw_receive(sock) == b""
            here = re.escape(f"{LOOPBACK}:{sock.getsockname()[1]}")
        [line] = [line for line in log_lines if "refused" in line]
        assert re.search(rf"connection from {here} refused: bad PROXY header: .*{message}", line)
        assert servers.built == []
        await proxied(kind, port, servers, V1 if required == "v1" else V2)


@pytest.mark.parametrize("sent", [b"", b"PROXY TCP4", SIGNATURE, V2[:-1]])
@pytest.mark.parametrize("leave", [socket.socket.close, reset])
async def test_a_peer_may_leave_at_any_byte(kind, sent, leave, log_lines):
    servers = Protocols()
    async with listening(kind.server(proxy_protocol="any"), servers) as port:
        with raw_client(port) as sock:
            sock.send(sent)
            await turns()
            leave(sock)
        await until(lambda: any("refused" in line for line in log_lines))
        assert servers.built == []
        await proxied(kind, port, servers, V2)


@pytest.mark.parametrize("sent", [b"", b"PROXY TCP4 192.", V2[:14], V2[:-1]])
async def test_a_mute_peer_is_closed_after_a_time(kind, sent, log_lines):
    clock = ClockedReactor()
    servers = Protocols()
    async with listening(kind.server(proxy_protocol="any"), servers, on=clock) as port:
        with raw_client(port) as sock:
            sock.send(sent)
            await until(clock.getDelayedCalls)
            await turns()
            clock.advance(9.9)
            assert len(clock.getDelayedCalls()) == 1
            clock.advance(0.2)
            with contextlib.suppress(ConnectionResetError):
                assert await raw_receive(sock) == b""
        [line] = [line for line in log_lines if "refused" in line]
        assert "timed out during the PROXY header" in line
    assert clock.getDelayedCalls() == []


async def test_header_and_handshake_share_one_time(authority, log_lines):
    kind = Kind(authority, tls=True)
    clock = ClockedReactor()
    async with listening(kind.server(proxy_protocol="any"), Protocols(), on=clock) as port:
        with raw_client(port) as sock:
            await until(clock.getDelayedCalls)
            clock.advance(6)
            [header_timer] = clock.getDelayedCalls()
            sock.send(V1)
            await until(lambda: clock.getDelayedCalls() not in ([], [header_timer]))
            clock.advance(4.1)
            with contextlib.suppress(ConnectionResetError):
                assert await raw_receive(sock) == b""
            [line] = [line for line in log_lines if "TLS handshake" in line]
            assert (
                f"with 192.0.2.1:56324 through {LOOPBACK}:{sock.getsockname()[1]} failed" in line
            )
            assert "timed out during the handshake" in line


async def test_a_path_cannot_forge_lines_of_the_log(authority, log_lines):
    kind = Kind(authority, tls=True)
    source = UNIXAddress(b"/a\nforged \xff")
    header = ProxyHeader(source, UNIXAddress(b"/b"))
    async with listening(kind.server(proxy_protocol="v2"), Protocols()) as port:
        with raw_client(port) as sock:
            sock.send(header.encode("v2") + b"this is no TLS")
            with contextlib.suppress(ConnectionResetError):
                while await raw_receive(sock):
                    pass
    [line] = [line for line in log_lines if "TLS handshake" in line]
    assert "\n" not in line
    assert line.isascii()
    assert r"unix:/a\nforged" in line


async def test_mute_peers_hold_up_no_other(kind):
    servers = Protocols()
    async with listening(kind.server(proxy_protocol="any"), servers) as port:
        with contextlib.ExitStack() as stack:
            for part in (b"", b"P", V1[:-1], V2[:13]) * 10:
                stack.enter_context(raw_client(port)).send(part)
            await turns()
            await proxied(kind, port, servers, V1)
        assert len(servers.built) == 1


async def test_stopping_closes_connections_whose_header_has_not_come(kind, log_lines):
    servers = Protocols()
    async with listening(kind.server(proxy_protocol="any"), servers) as port:
        with raw_client(port) as sock:
            sock.send(V2[:14])
            await turns()
            await port.stopListening()
            with contextlib.suppress(ConnectionResetError):
                assert await raw_receive(sock) == b""
    assert not [line for line in log_lines if "refused" in line]


async def test_a_factory_that_builds_nothing_drops_the_connection(kind):
    servers = Protocols(lambda: None)
    async with listening(kind.server(proxy_protocol="any"), servers) as port:
        with raw_client(port) as sock:
            sock.send(V1)
            if not kind.tls:
                assert await raw_receive(sock) == b""
                return
            with await say(kind, sock) as said:
                assert await raw_receive(said) == b""


# What a client sends


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_a_client_tells_its_own_addresses(kind, version):
    async with connected(
        kind,
        client_fields={"proxy_protocol": version},
        server_fields={"proxy_protocol": version},
    ) as (client, server):
        assert server.transport.getPeer() == client.transport.getHost()
        assert server.transport.getHost() == client.transport.getPeer()
        assert server.transport.proxy_header.source is not None
        assert client.transport.proxy_header is None
        client.transport.write(b"question")
        assert await server.receives(8) == b"question"
        server.transport.write(b"answer")
        assert await client.receives(6) == b"answer"


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_the_header_is_sent_first_and_whole(version):
    clients = Protocols()
    with raw_listener() as listener:
        options = SocketOptions(proxy_protocol=version)
        where = client_endpoint(reactor, *listener.getsockname(), options)
        client = await where.connect(clients)
        client.transport.write(b"hello")
        with await accepted(listener) as sock:
            header = ProxyHeader(sock.getpeername(), sock.getsockname()).encode(version)
            data = b""
            while len(data) < len(header) + 5:
                data += await raw_receive(sock)
            assert data == header + b"hello"
            await clients.all_lost()


async def test_a_client_tells_of_another_connection(kind):
    header = ProxyHeader(
        ("2001:db8::1", 1), SOURCE, tlvs=[(ProxyTLV.UNIQUE_ID, b"7")], checksum=True
    )
    servers, clients = Protocols(), Protocols()
    async with listening(kind.server(proxy_protocol="v2"), servers) as port:
        options = kind.client(proxy_protocol="v2")
        where = client_endpoint(reactor, LOOPBACK, port.getHost().port, options)
        behalf = where.on_behalf_of(header)
        assert "on behalf of [2001:db8::1]:1" in repr(behalf)
        await behalf.connect(clients)
        server = await servers.connected()
        assert server.transport.proxy_header == header
        assert server.transport.getPeer() == IPv6Address("TCP", "2001:db8::1", 1)
        # The endpoint itself still sends the connection's own.
        client = await where.connect(clients)
        server = await servers.connected(2)
        assert server.transport.getPeer() == client.transport.getHost()
        assert "on behalf" not in repr(where)
        await clients.all_lost()


async def test_unix_sockets_have_headers_too(kind, tmp_path):
    path = str(tmp_path / "server.sock")
    servers, clients = Protocols(), Protocols()
    fields = {"ai_family": socket.AF_UNIX, "proxy_protocol": "v2"}
    async with listening(kind.server(**fields), servers, node=path, service=None):
        options = kind.client(**fields, **({"sni": "localhost"} if kind.tls else {}))
        await client_endpoint(reactor, path, None, options).connect(clients)
        server = await servers.connected()
        assert server.transport.proxy_header == ProxyHeader(
            UNIXAddress(b""), UNIXAddress(path.encode())
        )
        assert server.transport.getHost() == UNIXAddress(path.encode())
        await clients.all_lost()


async def test_version_1_tells_unknown_over_unix_sockets(tmp_path):
    path = str(tmp_path / "server.sock")
    servers, clients = Protocols(), Protocols()
    options = SocketOptions(ai_family=socket.AF_UNIX, proxy_protocol="v1")
    async with listening(options, servers, node=path, service=None):
        await client_endpoint(reactor, path, None, options).connect(clients)
        server = await servers.connected()
        assert server.transport.proxy_header == ProxyHeader()
        await clients.all_lost()


async def test_an_ipv4_connection_of_a_dual_stack_port_is_reported_as_ipv4(kind):
    servers, clients = Protocols(), Protocols()
    async with listening(kind.server(proxy_protocol="v1"), servers, node=None) as port:
        options = kind.client(proxy_protocol="v1")
        client = await client_endpoint(reactor, LOOPBACK, port.getHost().port, options).connect(
            clients
        )
        server = await servers.connected()
        assert server.transport.getPeer() == client.transport.getHost()
        assert isinstance(server.transport.getHost(), IPv4Address)
        await clients.all_lost()


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_ipv6_connections_are_reported_as_such(version):
    servers, clients = Protocols(), Protocols()
    options = SocketOptions(proxy_protocol=version)
    async with listening(options, servers, node="::1") as port:
        where = client_endpoint(reactor, "::1", port.getHost().port, options)
        client = await where.connect(clients)
        server = await servers.connected()
        assert server.transport.getPeer() == client.transport.getHost()
        assert server.transport.getHost() == port.getHost()
        await clients.all_lost()


async def test_a_server_that_expects_none_takes_the_header_for_data():
    """As any server does: the two sides have to agree."""
    async with connected(Kind(None, tls=False), client_fields={"proxy_protocol": "v1"}) as (
        _,
        server,
    ):
        await until(lambda: server.received.endswith(b"\r\n"))
        assert server.received.startswith(b"PROXY TCP4 127.0.0.1 127.0.0.1 ")


async def test_a_connect_is_cancelled_between_header_and_handshake(authority):
    kind = Kind(authority, tls=True)
    with raw_listener() as listener:
        options = kind.client(proxy_protocol="v1")
        connecting = client_endpoint(reactor, *listener.getsockname(), options).connect(
            Protocols()
        )
        with await accepted(listener) as sock:
            assert (await raw_receive(sock)).startswith(b"PROXY TCP4")
            connecting.cancel()
            with pytest.raises(CancelledError):
                await connecting
            while await raw_receive(sock):
                pass


# What is refused


def test_a_client_has_to_choose_a_version(kind):
    with pytest.raises(ValueError, match="proxy_protocol='any' is for servers"):
        client_endpoint(reactor, "localhost", 80, kind.client(proxy_protocol="any"))


@pytest.mark.parametrize(
    ("version", "header", "error", "message"),
    [
        (None, HEADER, ValueError, "proxy_protocol"),
        ("v2", V2, TypeError, "ProxyHeader"),
        ("v2", None, TypeError, "ProxyHeader"),
        ("v1", ProxyHeader(SOURCE, DESTINATION, tlvs=[(1, b"h2")]), ValueError, "'v2' has"),
    ],
)
def test_a_header_that_cannot_be_sent_is_refused_at_once(kind, version, header, error, message):
    where = client_endpoint(reactor, "localhost", 80, kind.client(proxy_protocol=version))
    with pytest.raises(error, match=message):
        where.on_behalf_of(header)


def test_records_of_one_server_require_the_same(authority):
    options = authority.server_options("localhost")
    with pytest.raises(ValueError, match="proxy_protocol must be the same"):
        server_endpoint(
            reactor,
            None,
            0,
            [options, options.replace(sni="example.com", proxy_protocol="v1")],
        )
