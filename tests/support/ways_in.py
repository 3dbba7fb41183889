"""
The four ways in, as one: each asks a server or serves clients, and returns what it saw.

A way to connect returns the answer or raises what its caller sees; a way to serve
notes what its application sees of each connection.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import (
    AdoptedStreamServerEndpoint,
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    UNIXClientEndpoint,
    UNIXServerEndpoint,
    wrapClientTLS,
    wrapServerTLS,
)
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.protocols.haproxy import proxyEndpoint
from zope.interface import implementer

from tests.support.clocks import the_reactor, until
from tests.support.faults import ANSWER, QUESTION
from tests.support.loopback import LOOPBACK
from tests.support.protocols import Kind, Pair, Protocols, Recorder, serving
from tests.support.streams import in_thread
from tests.support.threads import no_descriptors
from twisted_netsock import (
    ServerTLSSocketOptions,
    Socket,
    SocketConnectionError,
    SocketError,
    SocketOptions,
    TLSSocketOptions,
    blocking,
    client_context_factory,
    client_endpoint,
    make_client_socket,
    make_client_tls_socket,
    make_server_socket,
    make_server_tls_socket,
    server_context_factory,
    server_endpoint,
)
from twisted_netsock.commands.relay.limits import Limits
from twisted_netsock.commands.relay.service import RelayService

# Ways to connect

Asking = Callable[..., Awaitable[bytes]]


async def ask_socket(node: str, port: int, options: SocketOptions, half: bool = False) -> bytes:
    make: Any = (
        make_client_tls_socket if isinstance(options, TLSSocketOptions) else make_client_socket
    )
    sock: Socket = await make(node, port, options)
    try:
        return await _ask(sock, half)
    finally:
        assert await sock.close() is None
        assert await sock.close() is None


async def _ask(sock: Socket, half: bool) -> bytes:
    await sock.sendall(QUESTION)
    if half:
        await sock.shutdown(socket.SHUT_WR)
    got = b""
    while piece := await sock.recv(65536):
        got += piece
    return got


class Asker(Protocol):
    """Asks, and keeps what comes back."""

    def __init__(self, half: bool) -> None:
        self._half = half
        self._got = b""
        self.answer: Deferred[bytes] = Deferred()

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.write(QUESTION)
        if self._half:
            transport.loseWriteConnection()

    def dataReceived(self, data: bytes) -> None:
        self._got += data

    def connectionLost(self, reason: Any) -> None:
        if reason.check(ConnectionDone):
            self.answer.callback(self._got)
        else:
            self.answer.errback(reason)


async def ask_endpoint(node: str, port: int, options: SocketOptions, half: bool = False) -> bytes:
    endpoint = client_endpoint(the_reactor(), node, port, options)
    asker: Asker = await endpoint.connect(Factory.forProtocol(lambda: Asker(half)))
    return await asker.answer


async def ask_thread(node: str, port: int, options: SocketOptions, half: bool = False) -> bytes:
    def work() -> bytes:
        make: Any = (
            blocking.make_client_tls_socket
            if isinstance(options, TLSSocketOptions)
            else blocking.make_client_socket
        )
        with make(node, port, options) as sock:
            sock.sendall(QUESTION)
            if half:
                sock.shutdown(socket.SHUT_WR)
            got = b""
            while piece := sock.recv(65536):
                got += piece
            sock.close()
            return got

    try:
        answer: bytes = await in_thread(work)
    finally:
        await no_descriptors()
    return answer


@dataclass
class Relay:
    """A running relay of this process, and its port."""

    service: RelayService
    port: int

    @property
    def ended(self) -> dict[str, int]:
        """How many connections have ended, by reason."""
        ended = self.service.snapshot()["connections"]["ended"]
        return {reason: count for reason, count in ended.items() if count}


@asynccontextmanager
async def relaying(front: Any, back: Any, limits: Limits | None = None) -> AsyncIterator[Relay]:
    """Run a relay from *front* to *back*, and see that it has no connection left."""
    addresses: list[Any] = []
    service = RelayService(
        the_reactor(), front, back, addresses.append, name="the backend", limits=limits
    )
    service.startService()
    await until(lambda: addresses)
    try:
        yield Relay(service, addresses[0].port)
        await until(lambda: service.snapshot()["connections"]["open"] == 0)
    finally:
        await maybeDeferred(service.stopService)
        await until(lambda: service._factory.idle)


class EndedByRelayError(Exception):
    """Why the relay has ended the connection of a client that saw a reset."""

    def __init__(self, ended: dict[str, int]) -> None:
        super().__init__(ended)
        (self.reason,) = ended
        assert ended == {self.reason: 1}


async def ask_relay(node: str, port: int, options: SocketOptions, half: bool = False) -> bytes:
    """Ask through a relay, whose backend *options* are for."""
    front = server_endpoint(the_reactor(), LOOPBACK, 0)
    back = client_endpoint(the_reactor(), node, port, options)
    async with relaying(front, back) as relay:
        try:
            return await ask_socket(LOOPBACK, relay.port, SocketOptions(), half)
        except (ConnectionResetError, SocketConnectionError) as error:
            # The latter if it was reset before the connect was looked at.
            if error.errno != errno.ECONNRESET:
                raise
            await until(lambda: relay.ended)
            raise EndedByRelayError(relay.ended) from None


ASKING: dict[str, Asking] = {
    "socket": ask_socket,
    "endpoint": ask_endpoint,
    "thread": ask_thread,
    "relay": ask_relay,
}


# Ways to serve


@dataclass
class Served:
    """
    A server of ours that answers each question; what became of whom its application met.

    Attributes:
        port: Where it listens.
        seen: For each connection that the application had: the data it got to a clean
            end, or the class of the error that ended it.
        ended: Of a relay, how its connections ended.
    """

    port: int
    seen: list[Any] = field(default_factory=list)
    ended: Callable[[], dict[str, int]] = dict


Serving = Callable[..., contextlib.AbstractAsyncContextManager[Served]]


"""Called with a record, and whether to end its own direction behind the answer (``half``)."""


def _is_tls(options: SocketOptions) -> bool:
    return isinstance(options, ServerTLSSocketOptions)


@asynccontextmanager
async def serve_socket(options: SocketOptions, half: bool = False) -> AsyncIterator[Served]:
    make: Any = make_server_tls_socket if _is_tls(options) else make_server_socket
    listener: Socket = await make(LOOPBACK, 0, options)
    served = Served(listener.getsockname().port)

    async def answer(connection: Socket) -> None:
        got = b""
        try:
            while piece := await connection.recv(65536):
                got += piece
                if got.endswith(QUESTION):
                    await connection.sendall(ANSWER)
                    if half:
                        await connection.shutdown(socket.SHUT_WR)
        except SocketError as error:
            served.seen.append(type(error))
        else:
            served.seen.append(got)

    serving = listener.serve(answer)
    try:
        yield served
    finally:
        await listener.close()
        await serving


@asynccontextmanager
async def serve_thread(options: SocketOptions, half: bool = False) -> AsyncIterator[Served]:
    make: Any = (
        blocking.make_server_tls_socket if _is_tls(options) else blocking.make_server_socket
    )
    listener = await in_thread(make, LOOPBACK, 0, options)
    served = Served(listener.getsockname().port)

    def answer(connection: Any) -> None:
        got = b""
        try:
            while piece := connection.recv(65536):
                got += piece
                if got.endswith(QUESTION):
                    connection.sendall(ANSWER)
                    if half:
                        connection.shutdown(socket.SHUT_WR)
        except SocketError as error:
            served.seen.append(type(error))
        else:
            served.seen.append(got)

    serving = in_thread(listener.serve, answer)
    try:
        yield served
    finally:
        await in_thread(listener.close)
        await serving
        await no_descriptors()


class Answerer(Protocol):
    """Answers, and notes how it ends."""

    def __init__(self, seen: list[Any], open_: set[Answerer], half: bool) -> None:
        self._half = half
        self._seen = seen
        self._open = open_
        self._got = b""

    def connectionMade(self) -> None:
        self._open.add(self)

    def dataReceived(self, data: bytes) -> None:
        self._got += data
        transport: Any = self.transport
        if self._got.endswith(QUESTION):
            transport.write(ANSWER)
            if self._half:
                transport.loseWriteConnection()

    def connectionLost(self, reason: Any) -> None:
        self._open.discard(self)
        self._seen.append(self._got if reason.check(ConnectionDone) else reason.type)


@asynccontextmanager
async def serve_endpoint(options: SocketOptions, half: bool = False) -> AsyncIterator[Served]:
    served = Served(0)
    connected: set[Answerer] = set()
    factory = Factory.forProtocol(lambda: Answerer(served.seen, connected, half))
    port: Any = await server_endpoint(the_reactor(), LOOPBACK, 0, options).listen(factory)
    served.port = port.getHost().port
    try:
        yield served
    finally:
        await port.stopListening()
        await until(lambda: not connected)


@asynccontextmanager
async def serve_relay(options: SocketOptions, half: bool = False) -> AsyncIterator[Served]:
    """Serve by a relay of *options*; what is seen, its backend sees."""
    front = server_endpoint(the_reactor(), LOOPBACK, 0, options)
    async with serve_endpoint(SocketOptions(), half) as behind:
        back = client_endpoint(the_reactor(), LOOPBACK, behind.port)
        async with relaying(front, back) as relay:
            behind.port, behind.ended = relay.port, lambda: relay.ended
            yield behind


SERVING: dict[str, Serving] = {
    "socket": serve_socket,
    "endpoint": serve_endpoint,
    "thread": serve_thread,
    "relay": serve_relay,
}


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
