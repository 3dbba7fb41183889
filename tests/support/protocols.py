"""
Protocols that record, pairs of them that are connected, peers without manners, and waiting.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, NamedTuple

from twisted.internet import reactor
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IHandshakeListener,
    IProtocolNegotiationFactory,
)
from twisted.internet.protocol import Factory, Protocol
from zope.interface import implementer

from tests.support.clocks import until
from tests.support.loopback import LOOPBACK
from twisted_netsock import SocketOptions, client_endpoint, server_endpoint
from twisted_netsock._endpoints.transport import IViewProtocol
from twisted_netsock.testing import CertificateAuthority, IssuedCertificate

BULK = bytes(range(251)) * (10_000_000 // 251)
"""Ten megabytes in which every displaced byte shows."""


class Recorder(Protocol):
    """Keeps what happens to it."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.received = bytearray()
        self.reason: Any = None

    def connectionMade(self) -> None:
        self.events.append("made")

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        if self.events[-1] != "data":
            self.events.append("data")

    def connectionLost(self, reason: Any = None) -> None:
        self.events.append("lost")
        self.reason = reason.value

    async def receives(self, count: int) -> bytes:
        """Wait for *count* bytes in all."""
        await until(lambda: len(self.received) >= count or self.reason)
        return bytes(self.received)

    async def loses(self) -> Any:
        """Wait for the end of the connection, and return why it ended."""
        return await until(lambda: self.reason)


@implementer(IHalfCloseableProtocol)
class HalfCloser(Recorder):
    """Records the end of each half."""

    def readConnectionLost(self) -> None:
        self.events.append("read lost")

    def writeConnectionLost(self) -> None:
        self.events.append("write lost")


@implementer(IHandshakeListener)
class Listener(Recorder):
    """Records the handshake."""

    def handshakeCompleted(self) -> None:
        self.events.append("handshake")


@implementer(IViewProtocol)
class Viewer(Recorder):
    """Takes views of the shared buffer."""

    def view_received(self, view: memoryview) -> None:
        self.received += view

    def dataReceived(self, data: bytes) -> None:
        raise AssertionError("a protocol of views is given nothing else")


class Protocols(Factory):
    """Builds protocols and keeps them."""

    noisy = False

    def __init__(self, make: Callable[[], Any] = Recorder) -> None:
        self._make = make
        self.built: list[Any] = []
        self.addresses: list[Any] = []
        self.life: list[str] = []

    def startFactory(self) -> None:
        self.life.append("start")

    def stopFactory(self) -> None:
        self.life.append("stop")

    def buildProtocol(self, addr: Any) -> Any:
        self.addresses.append(addr)
        protocol = self._make()
        if protocol is not None:
            protocol.factory = self
            self.built.append(protocol)
        return protocol

    async def connected(self, count: int = 1) -> Any:
        """Wait until *count* protocols have been connected, and return the last of them."""
        await until(lambda: len(self.built) >= count and self.built[count - 1].transport)
        return self.built[count - 1]

    async def all_lost(self) -> None:
        """End the connections that are left, and wait until all have ended."""
        transports = [each.transport for each in self.built if each.transport is not None]
        for transport in transports:
            transport.abortConnection()
        await until(lambda: all(transport.disconnected for transport in transports))


@implementer(IProtocolNegotiationFactory)
class NegotiatingProtocols(Protocols):
    """Names protocols for ALPN."""

    def __init__(self, *names: bytes) -> None:
        super().__init__()
        self._names = list(names)

    def acceptableProtocols(self) -> list[bytes]:
        return self._names


class Kind:
    """Plain or TLS: makes the records of both sides."""

    def __init__(self, authority: CertificateAuthority, *, tls: bool) -> None:
        self.authority = authority
        self.tls = tls

    def server(self, **fields: Any) -> SocketOptions:
        if self.tls:
            return self.authority.server_options(**fields)
        return SocketOptions(**fields)

    def client(self, **fields: Any) -> SocketOptions:
        if self.tls:
            return self.authority.client_options(**fields)
        return SocketOptions(**fields)


@contextlib.asynccontextmanager
async def listening(
    options: Any,
    factory: Protocols,
    *,
    node: str | None = LOOPBACK,
    service: Any = 0,
    on: Any = reactor,
) -> AsyncIterator[Any]:
    """Listen; at the end nothing is left of the port and of the factory's connections."""
    async with serving(server_endpoint(on, node, service, options), factory) as port:
        yield port


@contextlib.asynccontextmanager
async def serving(endpoint: Any, factory: Protocols) -> AsyncIterator[Any]:
    """Listen at *endpoint*; see `listening`."""
    port = await endpoint.listen(factory)
    try:
        yield port
    finally:
        await port.stopListening()
        await factory.all_lost()


class Pair(NamedTuple):
    """Two protocols that are connected with each other."""

    client: Any
    server: Any


@contextlib.asynccontextmanager
async def connected(
    kind: Kind,
    client: Callable[[], Any] = Recorder,
    server: Callable[[], Any] = Recorder,
    *,
    client_fields: dict[str, Any] | None = None,
    server_fields: dict[str, Any] | None = None,
    on: Any = reactor,
) -> AsyncIterator[Pair]:
    """Connect two protocols; at the end both connections are gone."""
    servers, clients = Protocols(server), Protocols(client)
    async with listening(kind.server(**(server_fields or {})), servers, on=on) as port:
        options = kind.client(**(client_fields or {}))
        where = client_endpoint(on, LOOPBACK, port.getHost().port, options)
        try:
            one = await where.connect(clients)
            yield Pair(one, await servers.connected())
        finally:
            await clients.all_lost()


@contextlib.contextmanager
def raw_listener(backlog: int = 8) -> Iterator[socket.socket]:
    """Listen with a socket that does nothing by itself."""
    with socket.create_server((LOOPBACK, 0), backlog=backlog) as listener:
        listener.setblocking(False)
        yield listener


async def accepted(listener: socket.socket) -> socket.socket:
    """Take a connection from a socket of `raw_listener`."""

    def take() -> socket.socket | None:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return None
        connection.setblocking(False)
        return connection

    return await until(take)


@contextlib.contextmanager
def raw_client(port: Any, source: str = LOOPBACK) -> Iterator[socket.socket]:
    """Connect to a port of ours with a socket that does nothing by itself."""
    where = (LOOPBACK, port.getHost().port)
    with socket.create_connection(where, source_address=(source, 0)) as sock:
        sock.setblocking(False)
        yield sock


async def raw_receive(sock: socket.socket) -> bytes:
    """Return what there is to be had from a raw socket, waiting for it; ``b""`` is the end."""
    chunks: list[bytes] = []

    def take() -> bool:
        try:
            chunks.append(sock.recv(65536))
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        return True

    await until(take)
    return chunks[0]


async def tls_peer(
    sock: socket.socket, context: ssl.SSLContext, name: str | None = None
) -> ssl.SSLSocket:
    """Perform the handshake on a raw socket with the standard library's TLS."""
    wrapped = context.wrap_socket(
        sock,
        server_side=name is None,
        server_hostname=name,
        do_handshake_on_connect=False,
        suppress_ragged_eofs=False,
    )
    wrapped.setblocking(False)

    def shake() -> bool:
        try:
            wrapped.do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        return True

    await until(shake)
    return wrapped


def client_context(authority: CertificateAuthority) -> ssl.SSLContext:
    """Return a context of the standard library that trusts *authority*."""
    return ssl.create_default_context(cadata=authority.certificate_pem.decode())


def server_context(issued: IssuedCertificate, directory: Any) -> ssl.SSLContext:
    """Return a context of the standard library for a server."""
    path = directory / "raw-server.pem"
    path.write_bytes(issued.pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


@contextlib.contextmanager
def full_listener() -> Iterator[socket.socket]:
    """Listen with a queue that is full: further connections get no answer."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(raw_listener(backlog=0))
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener
