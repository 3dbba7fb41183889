"""What the relay tells its backend with PROXY headers, and what it passes on."""

from __future__ import annotations

import contextlib
import socket

import pytest
from twisted.internet import reactor
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint

from tests.support.clocks import until
from tests.support.loopback import LOOPBACK
from tests.support.protocols import Protocols, listening
from twisted_netsock import (
    ProxyHeader,
    ProxyTLS,
    ProxyTLV,
    ServerTLSSocketOptions,
    SocketOptions,
    TLSSocketOptions,
    client_endpoint,
    server_endpoint,
)
from twisted_netsock.commands.relay.service import RelayFactory

PLAIN = SocketOptions()
SOURCE, DESTINATION = ("192.0.2.1", 56324), ("2001:db8::2", 443)
HEADER = ProxyHeader(SOURCE, DESTINATION, tlvs=[(ProxyTLV.UNIQUE_ID, b"7")], checksum=True)


@contextlib.asynccontextmanager
async def relaying(front, back):
    """Relay from one endpoint to another; yield the port."""
    factory = RelayFactory(back)
    port = await front.listen(factory)
    try:
        yield port
    finally:
        await port.stopListening()
        factory.abort()
        await until(lambda: factory.idle)


@contextlib.asynccontextmanager
async def through_relay(kind, front, *, version, client=PLAIN, header=None):
    """Connect to a backend of *kind* through a relay, and give both ends."""
    servers, clients = Protocols(), Protocols()
    async with listening(kind.server(proxy_protocol="any"), servers) as backend:
        options = kind.client(proxy_protocol=version)
        back = client_endpoint(reactor, LOOPBACK, backend.getHost().port, options)
        async with relaying(front, back) as port:
            where = client_endpoint(reactor, LOOPBACK, port.getHost().port, client)
            if header is not None:
                where = where.on_behalf_of(header)
            one = await where.connect(clients)
            one.transport.write(b"question")
            server = await servers.connected()
            assert await server.receives(8) == b"question"
            try:
                yield one.transport, server.transport
            finally:
                await clients.all_lost()


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_a_backend_learns_whom_the_relay_serves(kind, version):
    front = server_endpoint(reactor, LOOPBACK, 0)
    async with through_relay(kind, front, version=version) as (client, server):
        assert server.getPeer() == client.getHost()
        assert server.getHost() == client.getPeer()


async def test_so_it_is_behind_an_endpoint_of_twisteds_own(kind):
    front = TCP4ServerEndpoint(reactor, 0, interface=LOOPBACK)
    async with through_relay(kind, front, version="v2") as (client, server):
        assert server.getPeer() == client.getHost()


@pytest.mark.parametrize(
    ("version", "passed"), [("v2", HEADER), ("v1", ProxyHeader(SOURCE, DESTINATION))]
)
async def test_a_header_is_passed_on(kind, version, passed):
    front = server_endpoint(reactor, LOOPBACK, 0, SocketOptions(proxy_protocol="v2"))
    client = SocketOptions(proxy_protocol="v2")
    async with through_relay(kind, front, version=version, client=client, header=HEADER) as (
        _,
        server,
    ):
        assert server.proxy_header == passed
        assert server.getPeer() == IPv4Address("TCP", *SOURCE)


async def test_a_health_check_stays_one(kind):
    local = ProxyHeader(local=True)
    front = server_endpoint(reactor, LOOPBACK, 0, SocketOptions(proxy_protocol="v2"))
    client = SocketOptions(proxy_protocol="v2")
    async with through_relay(kind, front, version="v2", client=client, header=local) as (
        _,
        server,
    ):
        assert server.proxy_header == local


async def test_clients_of_a_unix_socket_have_no_address_but_its_path(kind, tmp_path):
    path = str(tmp_path / "front.sock")
    unix = SocketOptions(ai_family=socket.AF_UNIX)
    servers = Protocols()
    async with listening(kind.server(proxy_protocol="v2"), servers) as backend:
        options = kind.client(proxy_protocol="v2")
        back = client_endpoint(reactor, LOOPBACK, backend.getHost().port, options)
        async with relaying(server_endpoint(reactor, path, None, unix), back):
            clients = Protocols()
            await client_endpoint(reactor, path, None, unix).connect(clients)
            server = await servers.connected()
            assert server.transport.getHost() == UNIXAddress(path.encode())
            await clients.all_lost()


async def test_without_proxy_protocol_a_backend_learns_nothing():
    for make in (
        lambda port: client_endpoint(reactor, LOOPBACK, port),
        lambda port: TCP4ClientEndpoint(reactor, LOOPBACK, port),
    ):
        servers, clients = Protocols(), Protocols()
        async with listening(PLAIN, servers) as backend:
            back = make(backend.getHost().port)
            async with relaying(server_endpoint(reactor, LOOPBACK, 0), back) as port:
                where = client_endpoint(reactor, LOOPBACK, port.getHost().port)
                client = await where.connect(clients)
                client.transport.write(b"question")
                server = await servers.connected()
                assert await server.receives(8) == b"question"
                await clients.all_lost()


# What a relay that terminates TLS tells about it


def terminating(authority, **fields):
    """Return a front of TLS that asks for certificates."""
    options = ServerTLSSocketOptions(
        certificates=authority.issue("localhost", LOOPBACK).pem,
        trusted_certificates=authority.certificate_pem,
        alpn="echo",
        **fields,
    )
    return server_endpoint(reactor, LOOPBACK, 0, options)


def presenting(authority, **fields):
    shown = authority.issue("client", common_name="the client\u2028\n").pem
    return TLSSocketOptions(
        trusted_certificates=authority.certificate_pem, alpn="echo", sni="localhost",
        **{"certificates": shown, **fields},
    )  # fmt: skip


async def test_a_backend_learns_of_the_tls_that_ends_at_the_relay(kind, authority):
    front, client = terminating(authority), presenting(authority)
    async with through_relay(kind, front, version="v2", client=client) as (_, server):
        header = server.proxy_header
        assert (header.authority, header.alpn) == ("localhost", "echo")
        assert header.tls.verified
        assert header.tls.common_name == "the client\u2028\n"
        assert header.tls.version == "TLSv1.3"
        assert header.tls.cipher.startswith("TLS_")


async def test_without_a_certificate_there_is_no_name(kind, authority):
    front, client = terminating(authority), presenting(authority, certificates=None)
    async with through_relay(kind, front, version="v2", client=client) as (_, server):
        assert server.proxy_header.tls.client == ProxyTLS.SSL
        assert not server.proxy_header.tls.verified
        assert server.proxy_header.tls.common_name is None


async def test_version_1_tells_addresses_alone(kind, authority):
    front, client = terminating(authority), presenting(authority)
    async with through_relay(kind, front, version="v1", client=client) as (_, server):
        assert server.proxy_header.tls is None


async def test_what_another_proxy_claims_of_tls_is_not_passed_on_as_the_relays_own(
    kind, authority
):
    claimed = ProxyTLS(client=7, verify=0, tlvs=[(ProxyTLV.SSL_CN, b"somebody else")])
    header = ProxyHeader(
        SOURCE,
        DESTINATION,
        tlvs=[
            (ProxyTLV.SSL, claimed.encode()),
            (ProxyTLV.AUTHORITY, b"elsewhere"),
            (ProxyTLV.UNIQUE_ID, b"7"),
        ],
    )
    front = terminating(authority, proxy_protocol="v2")
    client = presenting(authority, proxy_protocol="v2")
    async with through_relay(kind, front, version="v2", client=client, header=header) as (
        _,
        server,
    ):
        told = server.proxy_header
        assert told.source == header.source
        assert (told.authority, told.unique_id) == ("localhost", b"7")
        assert told.tls.common_name == "the client\u2028\n"
