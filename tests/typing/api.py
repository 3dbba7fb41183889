"""What a user's program of endpoints looks like to mypy with mypy-zope; never run."""

from __future__ import annotations

from typing import Any, assert_type

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
from twisted.web.iweb import IAgentEndpointFactory, IPolicyForHTTPS

import twisted_netsock as netsock
from twisted_netsock.testing import (
    CertificateAuthority,
    ClientEndpointContract,
    IssuedCertificate,
    ListenerContract,
    ScriptedResolver,
    ServerEndpointContract,
    SocketContract,
    clean_reactor,
    connected_pair,
    leak_check,
)


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
    ours: netsock.ServerEndpoint = netsock.server_endpoint(reactor, None, 0)
    assert_type(ours.reload(), Deferred[None])
    header = netsock.ProxyHeader(("192.0.2.1", 56324), ("192.0.2.2", 443))
    behalf = netsock.client_endpoint(reactor, "localhost", 80).on_behalf_of(header)
    assert_type(behalf, netsock.ClientEndpoint)


def http(reactor: object) -> None:
    factory: IAgentEndpointFactory = netsock.agent_endpoint_factory(
        reactor, netsock.TLSSocketOptions(alpn="http/1.1")
    )
    Agent.usingEndpointFactory(reactor, factory)
    netsock.agent_endpoint_factory(reactor, "options")  # type: ignore[arg-type]
    policy: IPolicyForHTTPS = netsock.https_policy(netsock.TLSSocketOptions(alpn="http/1.1"))
    policy.creatorForNetloc(b"example.com", 443)
    netsock.https_policy(netsock.SocketOptions())  # type: ignore[arg-type]


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


class ListenerTests(ListenerContract, TestCase):
    async def make_listener(self) -> netsock.Socket:
        return await netsock.make_server_socket("127.0.0.1", 0)

    async def make_client(self, listener: netsock.Socket) -> netsock.Socket:
        return await netsock.make_client_socket(*listener.getsockname())


def certificates() -> None:
    authority = CertificateAuthority()
    assert_type(authority.server_options("localhost"), netsock.ServerTLSSocketOptions)
    assert_type(authority.client_options(), netsock.TLSSocketOptions)
    issued: IssuedCertificate = authority.issue("localhost", expired=True)
    assert_type(issued.pem, bytes)


def look_ups() -> None:
    resolver = ScriptedResolver({"db.example": ["127.0.0.2"]}, delay=None)
    assert_type(resolver.asked, list[str])
    print(clean_reactor, leak_check())
