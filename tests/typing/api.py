"""What a user's program looks like to a type checker; never run."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import timedelta
from typing import Any, assert_type

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from twisted.trial.unittest import TestCase
from twisted.web.client import Agent
from twisted.web.iweb import IAgentEndpointFactory

import twisted_netsock as netsock
from twisted_netsock import blocking
from twisted_netsock.testing import (
    CertificateAuthority,
    ClientEndpointContract,
    ServerEndpointContract,
    SocketContract,
    connected_pair,
)


def records() -> None:
    plain = netsock.SocketOptions(
        connection_timeout=timedelta(seconds=10), socket_options=[(1, 2, 3)], backlog=5
    )
    assert_type(plain.replace(backlog=7), netsock.SocketOptions)
    tls = netsock.TLSSocketOptions.from_options(plain, alpn="h2", sni="example.com")
    assert_type(tls, netsock.TLSSocketOptions)
    assert_type(tls.alpn, tuple[str, ...] | None)
    server = netsock.ServerTLSSocketOptions(
        certificates=["chain.pem", b"..."], client_certificate_required=False
    )
    assert_type(server.replace(private_key="key.pem"), netsock.ServerTLSSocketOptions)
    assert_type(netsock.SocketOptions.from_options(server), netsock.SocketOptions)
    plain.replace(no_such_field=1)  # type: ignore[call-arg]


async def sockets() -> None:
    sock = await netsock.make_client_socket("localhost", 80)
    assert_type(sock, netsock.Socket)
    assert_type(sock.recv(10), Deferred[bytes])
    assert_type(await sock.recv_into(bytearray(10)), int)
    await sock.sendall(memoryview(b"data"))
    assert_type(sock.getpeername(), netsock.SocketAddress)
    tls = await netsock.make_client_tls_socket("localhost", "https", netsock.SocketOptions())
    assert_type(tls, netsock.TLSSocket)
    assert_type(tls.selected_alpn, str | None)
    async with await netsock.make_server_socket(None, 0) as server:
        async for connection in server:
            assert_type(connection, netsock.Socket)
    listener = await netsock.make_server_tls_socket(
        None, 0, [netsock.ServerTLSSocketOptions()], reload_every=timedelta(hours=1)
    )
    assert_type(listener, netsock.TLSSocket)
    assert_type(await listener.accept(), netsock.TLSSocket)
    assert_type(listener.serve(handle, limit=100), Deferred[None])
    assert_type(await netsock.start_tls(sock, netsock.TLSSocketOptions()), netsock.TLSSocket)
    await netsock.start_tls(sock, netsock.TLSSocketOptions(), "example.com")
    assert_type(await netsock.wait_readable(sock, timeout=timedelta(1)), list[netsock.Socket])
    assert_type(await netsock.wait_writable(tls), list[netsock.TLSSocket])
    selector = netsock.SocketSelector(timedelta(seconds=10))
    selector.add(tls, on_read, timedelta(seconds=1))
    await listener.serve(print)


async def handle(connection: netsock.TLSSocket) -> None:
    await connection.sendall(b"hello")


async def on_read(
    sock: netsock.Socket, error: netsock.SocketError | None, again: Callable[..., None]
) -> None:
    if error is None:
        await sock.recv(10)
    again()


async def proxies(reactor: object) -> None:
    options = netsock.SocketOptions(proxy_protocol="v2")
    header = netsock.ProxyHeader(
        ("192.0.2.1", 56324),
        IPv4Address("TCP", "192.0.2.2", 443),
        tlvs=[(netsock.ProxyTLV.SSL, netsock.ProxyTLS(client=1).encode()), (0xE0, b"")],
        checksum=True,
    )
    assert_type(header.source, netsock.SocketAddress | None)
    assert_type(header.tls, netsock.ProxyTLS | None)
    assert_type(netsock.ProxyHeader.parse(header.encode("v2")), netsock.ProxyHeader)
    sock = await netsock.make_client_socket("localhost", 80, options, proxy_header=header)
    assert_type(sock.proxy_header, netsock.ProxyHeader | None)
    behalf = netsock.client_endpoint(reactor, "localhost", 80, options).on_behalf_of(header)
    assert_type(behalf, netsock.ClientEndpoint)
    netsock.SocketOptions(proxy_protocol="v3")  # type: ignore[arg-type]


def blocking_sockets() -> None:
    blocking.setup(reactor="epoll")
    sock = blocking.make_client_socket("localhost", 80)
    assert_type(sock, blocking.BlockingSocket)
    assert_type(sock.recv(10), bytes)
    assert_type(sock.recv_into(bytearray(10)), int)
    assert_type(sock.sendall(b"data"), None)
    assert_type(sock.getpeername(), netsock.SocketAddress)
    assert_type(sock.input_port, io.BufferedReader)
    assert_type(sock.output_port, io.BufferedWriter)
    assert_type(sock.gettimeout(), float | None)
    with blocking.make_client_tls_socket("localhost", "https", netsock.SocketOptions()) as tls:
        assert_type(tls, blocking.BlockingTLSSocket)
        assert_type(tls.selected_alpn, str | None)
    with blocking.make_server_socket(None, 0) as server:
        for connection in server:
            assert_type(connection, blocking.BlockingSocket)
        server.serve(lambda each: each.sendall(each.recv(10)), limit=10)
    listener = blocking.make_server_tls_socket(None, 0, [netsock.ServerTLSSocketOptions()])
    assert_type(listener, blocking.BlockingTLSSocket)
    assert_type(blocking.start_tls(sock, netsock.TLSSocketOptions()), blocking.BlockingTLSSocket)
    assert_type(blocking.wait_readable(sock), list[blocking.BlockingSocket])
    assert_type(blocking.receive_non_blocking(sock, 10, 0.1), bytes | None)
    assert_type(blocking.get_address_info("localhost", 80), netsock.AddressInfo)
    assert_type(blocking.with_net_io("localhost", 80, lambda reader, _: reader.read()), bytes)
    blocking.SocketSelector().add(sock, lambda each, error, again: again())
    await_nothing: bytes = sock.recv(1, flags="none")  # type: ignore[arg-type]
    print(await_nothing)


def endpoints(reactor: object) -> None:
    client: IStreamClientEndpoint = netsock.client_endpoint(reactor, "localhost", 80)
    server: IStreamServerEndpoint = netsock.server_endpoint(reactor, None, 0)
    netsock.client_endpoint(
        reactor, "example.com", None, netsock.TLSSocketOptions(), endpoint=client
    )
    netsock.server_endpoint(reactor, None, None, netsock.ServerTLSSocketOptions(), endpoint=server)
    for_client: IOpenSSLClientConnectionCreator = netsock.client_context_factory(
        netsock.TLSSocketOptions(), "example.com"
    )
    for_server: IOpenSSLServerConnectionCreator = netsock.server_context_factory(
        netsock.ServerTLSSocketOptions()
    )
    print(client, server, for_client, for_server)


def http(reactor: object) -> None:
    factory: IAgentEndpointFactory = netsock.agent_endpoint_factory(
        reactor, netsock.TLSSocketOptions(alpn="http/1.1")
    )
    Agent.usingEndpointFactory(reactor, factory)
    netsock.agent_endpoint_factory(reactor, "options")  # type: ignore[arg-type]


class Endpoints:
    def make_server_endpoint(self, address: IAddress | None = None) -> IStreamServerEndpoint:
        from twisted.internet import reactor

        return netsock.server_endpoint(reactor, "localhost", 0)

    def make_client_endpoint(self, address: IAddress) -> IStreamClientEndpoint:
        from twisted.internet import reactor

        return netsock.client_endpoint(reactor, "localhost", 80)


class ClientTests(Endpoints, ClientEndpointContract, TestCase):
    pass


class ServerTests(Endpoints, ServerEndpointContract, TestCase):
    half_close = False


class SocketTests(SocketContract, TestCase):
    async def make_sockets(self) -> tuple[Any, Any]:
        return connected_pair()


def certificates() -> None:
    authority = CertificateAuthority()
    assert_type(authority.server_options("localhost"), netsock.ServerTLSSocketOptions)
    assert_type(authority.client_options(), netsock.TLSSocketOptions)
