"""The relay in tests: as a process and within this one; clients and backends of every kind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import clientFromString, quoteStringArgument, serverFromString
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from zope.interface import implementer

from tests.support.clocks import turns, until
from tests.support.loopback import LONGEST, LOOPBACK
from tests.support.processes import (
    TWIST,
    CertificateFiles,
    Child,
    Ran,
    run,
    started,
    write_certificates,
)
from tests.support.streams import together
from twisted_netsock.commands.relay.service import RelayService
from twisted_netsock.testing import CertificateAuthority

RELAY = (*TWIST, "netsock", "relay")
TRACEBACK = "Traceback"
PLAIN = "netsock:0:node=127.0.0.1"


@contextlib.contextmanager
def running_relay(
    directory: Path, *arguments: str | Path, listeners: int = 1, **options: Any
) -> Iterator[tuple[Child, list[int]]]:
    """Run a relay with *arguments*; yield it, and the ports that it has logged."""
    with started(*RELAY, *arguments, output=directory / "relay.log", **options) as child:
        child.wait_for_line("Starting reactor")
        wait_for(lambda: len(relayed_ports(child)) >= listeners, child)
        yield child, relayed_ports(child)


def relayed_ports(child: Child) -> list[int]:
    return [int(port) for port in re.findall(r"relay(?:ing)? from .*?:(\d+) to", child.output)]


def wait_for(condition: Callable[[], Any], child: Child | None = None) -> Any:
    """Wait until *condition* holds, and return what it returned."""
    end = time.monotonic() + LONGEST
    while time.monotonic() < end:
        result = condition()
        if result:
            return result
        time.sleep(0.02)
    raise AssertionError("it did not happen:\n" + (child.output if child else ""))


def check(*arguments: str | Path) -> Ran:
    """Run the relay with ``--check``."""
    return run(*RELAY, *arguments, "--check")


def get(port: int, path: str) -> tuple[int, str]:
    """Ask for a page of the status."""
    done = run(
        "curl", "--silent", "--output", "-", "--write-out", "\n%{http_code}",
        f"http://{LOOPBACK}:{port}{path}",
    )  # fmt: skip
    body, _, code = done.output.rpartition("\n")
    return int(code), body


def status(port: int) -> Any:
    return json.loads(get(port, "/status.json")[1])


class EchoServer:
    """Sends back what it gets, in threads; says *name* first, if it has one."""

    def __init__(self, name: bytes = b"") -> None:
        self._name = name
        self._listener = socket.create_server((LOOPBACK, 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        accepting = threading.Thread(target=self._accept, daemon=True)
        self._threads.append(accepting)
        accepting.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections.append(connection)
            serving = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(serving)
            serving.start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.sendall(self._name)
            while data := connection.recv(65536):
                connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(LONGEST)
        for connection in self.connections:
            connection.close()


@contextlib.contextmanager
def echo_server(name: bytes = b"") -> Iterator[EchoServer]:
    server = EchoServer(name)
    try:
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def client(port: int) -> Iterator[socket.socket]:
    with socket.create_connection((LOOPBACK, port), timeout=LONGEST) as sock:
        yield sock


def echoes(sock: socket.socket, data: bytes = b"is anybody there?") -> bool:
    """Tell whether *sock* leads to an `EchoServer`."""
    sock.sendall(data)
    received = b""
    while len(received) < len(data):
        chunk = sock.recv(65536)
        if not chunk:
            return False
        received += chunk
    return received == data


def end_of(sock: socket.socket) -> str:
    """Return how the stream ends: in order, or by a reset."""
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        return "reset"
    return "end"


MEGABYTE = 1024 * 1024
SMALL = ":SO_RCVBUF=65536:SO_SNDBUF=65536"
ONE, OTHER = os.urandom(MEGABYTE), os.urandom(MEGABYTE + 1)

_LATER = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Peer:
    """A client or a backend: a socket, plain or TLS, that does nothing by itself."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._ended = False

    async def _done(self, call: Callable[..., Any], *arguments: object) -> Any:
        results: list[Any] = []

        def attempt() -> bool:
            try:
                results.append(call(*arguments))
            except _LATER:
                return False
            return True

        await until(attempt)
        return results[0]

    async def perform_handshake(self, context: ssl.SSLContext, name: str | None) -> None:
        """Begin TLS: as the server if *name* is `None`."""
        self.sock = context.wrap_socket(
            self.sock,
            server_side=name is None,
            server_hostname=name,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
        )
        await self._done(self.sock.do_handshake)

    async def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[await self._done(self.sock.send, view[:65536]) :]

    async def send_until_stalled(self, data: bytes) -> int:
        """Send as much of *data* as is taken, and return how much that was."""
        sent = quiet = 0
        while sent < len(data) and quiet < 60:
            try:
                sent += self.sock.send(data[sent : sent + 65536])
                quiet = 0
            except _LATER:
                quiet += 1
                await deferLater(reactor, 0.002)
        return sent

    async def receive(self, most: int | None = None) -> bytes:
        """Return what comes up to a clean end, or the first *most* bytes."""
        chunks: list[bytes] = []
        size = 0
        while most is None or size < most:
            try:
                wanted = 262144 if most is None else min(262144, most - size)
                chunk = await self._done(self.sock.recv, wanted)
            except ssl.SSLZeroReturnError:
                chunk = b""
            if not chunk:
                self._ended = True
                break
            chunks.append(chunk)
            size += len(chunk)
        return b"".join(chunks)

    async def receive_some(self) -> bytes:
        """Return what comes next; nothing at a clean end."""
        try:
            data: bytes = await self._done(self.sock.recv, 65536)
        except ssl.SSLZeroReturnError:
            return b""
        return data

    def end(self) -> None:
        """End the direction from here: with close_notify on TLS."""
        if isinstance(self.sock, ssl.SSLSocket):
            with contextlib.suppress(ssl.SSLWantReadError):
                self.sock.unwrap()
        else:
            self.sock.shutdown(socket.SHUT_WR)

    def truncate(self) -> None:
        """End the direction from here without a TLS shutdown."""
        socket.socket.shutdown(self.sock, socket.SHUT_WR)

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.sock.close()

    def close(self) -> None:
        self.sock.close()

    async def is_cut_off(self) -> None:
        """Read to the end, which must not be a clean one."""
        with pytest.raises(OSError):
            await self.receive()

    async def is_over(self) -> None:
        """Read to the end, whatever kind of end it is."""
        with contextlib.suppress(OSError):
            await self.receive()


@dataclass(frozen=True)
class Place:
    """Certificates, and a directory for the sockets of one test."""

    files: CertificateFiles
    directory: Path
    authority: CertificateAuthority


@dataclass(frozen=True)
class Kind:
    """A kind of endpoint that a relay listens or connects with."""

    text: str
    tls: bool = False
    unix: bool = False


FRONTS = {
    "netsock": Kind("netsock:0:node=127.0.0.1{more}"),
    "netsock-tls": Kind(
        "netsock-tls:0:node=127.0.0.1:certificates={files.server}{more}", tls=True
    ),
    "netsock-unix": Kind("netsock:{path}:aiFamily=unix{more}", unix=True),
    # A time limit, which takes a transport.
    "netsock-timed": Kind("netsock:0:node=127.0.0.1:writeTimeout=60s{more}"),
    "tcp": Kind("tcp:0:interface=127.0.0.1"),
    "ssl": Kind(
        "ssl:0:interface=127.0.0.1:privateKey={files.server}:certKey={files.server}", tls=True
    ),
    "unix": Kind("unix:{path}", unix=True),
}
BACKS = {
    "netsock": Kind("netsock:127.0.0.1:{port}{more}"),
    "netsock-tls": Kind(
        "netsock-tls:localhost:{port}:aiFamily=inet:trustedCertificates={files.authority}{more}",
        tls=True,
    ),
    "netsock-unix": Kind("netsock:{path}:aiFamily=unix{more}", unix=True),
    "tcp": Kind("tcp:127.0.0.1:{port}"),
    "ssl": Kind("ssl:127.0.0.1:{port}:caCertsDir={files.roots}", tls=True),
    "tls": Kind(
        "tls:localhost:{port}:trustRoots={files.roots}:endpoint=tcp\\:127.0.0.1\\:{port}", tls=True
    ),
    "unix": Kind("unix:{path}", unix=True),
}
HALF_CLOSING_FRONTS = [name for name in FRONTS if name != "ssl"]
HALF_CLOSING_BACKS = [name for name in BACKS if name not in {"ssl", "tls"}]
NETWORK_FRONTS = [name for name in FRONTS if not FRONTS[name].unix]
NETWORK_BACKS = [name for name in BACKS if not BACKS[name].unix and name != "tls"]


@pytest.fixture(scope="session")
def certificate_files(
    tmp_path_factory: pytest.TempPathFactory, authority: CertificateAuthority
) -> CertificateFiles:
    return write_certificates(tmp_path_factory.mktemp("relay-certificates"), authority)


@pytest.fixture
def place(
    certificate_files: CertificateFiles, tmp_path: Path, authority: CertificateAuthority
) -> Place:
    return Place(certificate_files, tmp_path, authority)


@contextlib.contextmanager
def unix_listener(path: Path) -> Any:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        yield listener


@dataclass
class Backend:
    """Where a relay connects to, accepted by hand."""

    kind: Kind
    place: Place
    listener: socket.socket
    more: str = ""

    @property
    def endpoint(self) -> Any:
        name = self.listener.getsockname()
        text = self.kind.text.format(
            files=self.place.files,
            more=self.more,
            path=quoteStringArgument(str(name)) if self.kind.unix else None,
            port=None if self.kind.unix else name[1],
        )
        return clientFromString(reactor, text)

    async def accept(self, peers: list[Peer]) -> Peer:
        """Take a connection, and add it to *peers* before anything can fail."""
        self.listener.setblocking(False)
        found: list[socket.socket] = []

        def take() -> bool:
            try:
                found.append(self.listener.accept()[0])
            except BlockingIOError:
                return False
            return True

        await until(take)
        peers.append(peer := Peer(found[0]))
        if self.kind.tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.place.files.server)
            await peer.perform_handshake(context, None)
        return peer


@contextlib.contextmanager
def listening_backend(name: str, place: Place, more: str = "", size: int | None = None) -> Any:
    kind = BACKS[name]
    with contextlib.ExitStack() as stack:
        if kind.unix:
            listener = stack.enter_context(unix_listener(place.directory / "back"))
        else:
            listener = stack.enter_context(socket.create_server((LOOPBACK, 0)))
        if size is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
        yield Backend(kind, place, listener, more)


@dataclass
class Relay:
    """A relay that runs, and the clients connected to it."""

    service: RelayService
    kind: Kind
    place: Place
    backend: Any
    addresses: list[Any]
    """Where it has listened, at each of its starts."""
    peers: list[Peer] = field(default_factory=list)

    @property
    def address(self) -> Any:
        return self.addresses[-1]

    def connect_raw(self, size: int | None = None) -> Peer:
        """Connect a client, without TLS yet."""
        sock = socket.socket(socket.AF_UNIX if self.kind.unix else socket.AF_INET)
        self.peers.append(peer := Peer(sock))
        if size is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
        with contextlib.suppress(BlockingIOError):
            if self.kind.unix:
                sock.connect(os.fspath(self.address.name))
            else:
                sock.connect((LOOPBACK, self.address.port))
        return peer

    async def connect(self, size: int | None = None) -> Peer:
        """Connect a client."""
        peer = self.connect_raw(size)
        if self.kind.tls:
            cadata = self.place.authority.certificate_pem.decode()
            await peer.perform_handshake(ssl.create_default_context(cadata=cadata), "localhost")
        return peer

    async def accept(self) -> Peer:
        """Take the backend's end of a connection."""
        return await self.backend.accept(self.peers)

    async def pair(self, size: int | None = None) -> tuple[Peer, Peer]:
        """Connect a client with the backend."""
        client, server = await together(self.connect(size), self.accept())
        return client, server

    async def pair_from(self, side: str) -> tuple[Peer, Peer]:
        """Return the ends of a connection, that on *side* of the relay first."""
        client, server = await self.pair()
        return (client, server) if side == "client" else (server, client)

    async def stop(self) -> None:
        await maybeDeferred(self.service.stopService)


@contextlib.asynccontextmanager
async def relaying(
    front: str, backend: Any, place: Place, more: str = "", to: Any = None
) -> AsyncIterator[Relay]:
    """Run a relay to *backend*; at the end everything is gone."""
    kind = FRONTS[front]
    path = quoteStringArgument(str(place.directory / "front"))
    text = kind.text.format(files=place.files, more=more, path=path)
    endpoint = serverFromString(reactor, text)
    addresses: list[Any] = []
    to = backend.endpoint if to is None else to
    service = RelayService(reactor, endpoint, to, addresses.append)
    relay = Relay(service, kind, place, backend, addresses)
    service.startService()
    try:
        await until(lambda: addresses)
        yield relay
    finally:
        if service.running:
            await relay.stop()
        for peer in relay.peers:
            peer.close()
        await turns()


@contextlib.asynccontextmanager
async def relayed(front: str, back: str, place: Place) -> AsyncIterator[Relay]:
    """Run a relay between two kinds of endpoints."""
    with listening_backend(back, place) as backend:
        async with relaying(front, backend, place) as relay:
            yield relay


@implementer(IStreamClientEndpoint)
class LateEndpoint:
    """Connects when the test says so."""

    def __init__(self) -> None:
        self.factories: list[Any] = []
        self.cancelled = 0
        self._waiting: list[Deferred[Any]] = []

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        def cancel(_: Deferred[Any]) -> None:
            self.cancelled += 1

        waiting: Deferred[Any] = Deferred(cancel)
        self.factories.append(protocolFactory)
        self._waiting.append(waiting)
        return waiting

    async def attempted(self, count: int = 1) -> None:
        await until(lambda: len(self.factories) >= count)

    def go_on(self, endpoint: Any) -> None:
        """Connect the last attempt through *endpoint*."""
        endpoint.connect(self.factories[-1]).chainDeferred(self._waiting[-1])

    def fail(self, error: Exception) -> None:
        """Have the last attempt fail."""
        self._waiting[-1].errback(error)


def sides(function: Any) -> Any:
    return pytest.mark.parametrize("side", ["client", "backend"])(function)


def quiet(make: Callable[..., Protocol], *arguments: object) -> Factory:
    factory = Factory()
    factory.noisy = False
    factory.buildProtocol = lambda _: make(*arguments)  # type: ignore[method-assign]
    return factory


async def exchange(first: Peer, second: Peer) -> None:
    """Have both have sent and received something."""
    await first.send(b"ping")
    assert await second.receive(4) == b"ping"
    await second.send(b"pong")
    assert await first.receive(4) == b"pong"
