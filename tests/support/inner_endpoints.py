"""Endpoints to lay TLS over, by kind: of Twisted's and of ours, on both sides."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.endpoints import (
    AdoptedStreamServerEndpoint,
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    UNIXClientEndpoint,
    UNIXServerEndpoint,
    wrapClientTLS,
    wrapServerTLS,
)
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.protocols.haproxy import proxyEndpoint
from zope.interface import implementer

from tests.support.protocols import LOOPBACK, Kind, Pair, Protocols, Recorder, serving
from twisted_netsock import (
    SocketOptions,
    client_context_factory,
    client_endpoint,
    server_context_factory,
    server_endpoint,
)

PROXY_HEADER = b"PROXY TCP4 192.0.2.7 192.0.2.8 4711 443\r\n"


@implementer(IStreamClientEndpoint)
class Proxying:
    """Writes a PROXY header before anything else."""

    def __init__(self, endpoint: Any) -> None:
        self._endpoint = endpoint

    def connect(self, factory: Any) -> Any:
        class Heading(Factory):
            noisy = False

            def buildProtocol(self, address: Any) -> Any:
                protocol = factory.buildProtocol(address)
                make = protocol.makeConnection

                def heading(transport: Any) -> None:
                    transport.write(PROXY_HEADER)
                    make(transport)

                protocol.makeConnection = heading
                return protocol

        return self._endpoint.connect(Heading())


class Inner:
    """One kind of inner endpoint."""

    def __init__(self, name: str, authority: Any, directory: Any, on: Any = reactor) -> None:
        self.name = name
        self.on = on
        self._authority = authority
        self._path = str(directory / "inner.sock")

    def server(self) -> Any:  # noqa: PLR0911 - one for each kind
        """Return a server endpoint."""
        tcp = TCP4ServerEndpoint(self.on, 0, interface=LOOPBACK)
        match self.name:
            case "tcp":
                return tcp
            case "unix":
                return UNIXServerEndpoint(self.on, self._path)
            case "haproxy":
                return proxyEndpoint(tcp)
            case "adopted":
                listener = socket.create_server((LOOPBACK, 0))
                listener.setblocking(False)
                # It is the endpoint's from now on.
                return AdoptedStreamServerEndpoint(self.on, listener.detach(), socket.AF_INET)
            case "netsock":
                return server_endpoint(self.on, LOOPBACK, 0)
            case "netsock-unix":
                plain = SocketOptions(ai_family=socket.AF_UNIX)
                return server_endpoint(self.on, self._path, None, plain)
            case "netsock-tls":
                return server_endpoint(self.on, LOOPBACK, 0, self._authority.server_options())
            case "tls":
                factory = server_context_factory(self._authority.server_options())
                return wrapServerTLS(factory, tcp)
        raise AssertionError(self.name)

    def client(self, port: Any) -> Any:  # noqa: PLR0911 - one for each kind
        """Return a client endpoint that connects to *port*."""
        host = port.getHost()
        number = getattr(host, "port", 0)
        tcp = TCP4ClientEndpoint(self.on, LOOPBACK, number)
        match self.name:
            case "unix":
                return UNIXClientEndpoint(self.on, self._path)
            case "haproxy":
                return Proxying(tcp)
            case "netsock":
                return client_endpoint(self.on, LOOPBACK, number)
            case "netsock-unix":
                plain = SocketOptions(ai_family=socket.AF_UNIX)
                return client_endpoint(self.on, self._path, None, plain)
            case "netsock-tls":
                options = self._authority.client_options()
                return client_endpoint(self.on, LOOPBACK, number, options)
            case "tls":
                factory = client_context_factory(self._authority.client_options(), LOOPBACK)
                return wrapClientTLS(factory, tcp)
        return tcp


KINDS = ("tcp", "unix", "haproxy", "adopted", "netsock", "netsock-unix", "netsock-tls", "tls")
WITHOUT_TLS = KINDS[:-2]
IN_MEMORY = ("tcp", "unix", "haproxy", "adopted")


@contextlib.asynccontextmanager
async def over(
    inner: Inner,
    kind: Kind,
    client: Callable[[], Any] = Recorder,
    server: Callable[[], Any] = Recorder,
    *,
    client_fields: dict[str, Any] | None = None,
    server_fields: dict[str, Any] | None = None,
) -> AsyncIterator[Pair]:
    """Connect two protocols by TLS over *inner*; at the end both connections are gone."""
    servers, clients = Protocols(server), Protocols(client)
    listens = server_endpoint(
        inner.on, None, None, kind.server(**(server_fields or {})), endpoint=inner.server()
    )
    async with serving(listens, servers) as port:
        connects = client_endpoint(
            inner.on,
            LOOPBACK,
            None,
            kind.client(**(client_fields or {})),
            endpoint=inner.client(port),
        )
        try:
            one = await connects.connect(clients)
            yield Pair(one, await servers.connected())
        finally:
            await clients.all_lost()
