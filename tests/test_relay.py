"""
`RelayService` between any two endpoints, ours and Twisted's own.

The clients and the backends of these tests are sockets of the operating system
and the standard library's TLS, so that nothing of the package vouches for
itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import socket
import ssl
import sys
import termios
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from loopback import open_sockets
from processes import CertificateFiles, write_certificates
from protocols import LOOPBACK, full_listener, turns, until
from twisted.application.service import IService
from twisted.internet import reactor
from twisted.internet.defer import Deferred, FirstError, gatherResults, maybeDeferred
from twisted.internet.endpoints import clientFromString, quoteStringArgument, serverFromString
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IStreamClientEndpoint, IStreamServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.python.usage import UsageError
from zope.interface import implementer
from zope.interface.verify import verifyObject

from twisted_netsock.commands import Options, makeService
from twisted_netsock.commands.relay import RelayFactory, RelayOptions, RelayService
from twisted_netsock.testing import CertificateAuthority

pytestmark = [
    # Twisted's own TLS hands objects of the old kind to pyOpenSSL.
    pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning"),
]

MEGABYTE = 1024 * 1024
SMALL = ":SO_RCVBUF=65536:SO_SNDBUF=65536"
ONE, OTHER = os.urandom(MEGABYTE), os.urandom(MEGABYTE + 1)

_LATER = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


async def together(*coroutines: Awaitable[Any]) -> list[Any]:
    """Run *coroutines* at the same time, and return what each of them does."""
    deferreds = [Deferred.fromCoroutine(each) for each in coroutines]
    try:
        return await gatherResults(deferreds, consumeErrors=True)
    except FirstError as error:
        for deferred in deferreds:
            deferred.addErrback(lambda _: None)
            deferred.cancel()
        error.subFailure.raiseException()
        raise


class Peer:
    """A client or a backend: a socket, plain or TLS, that does only what it is told."""

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

    async def shake_hands(self, context: ssl.SSLContext, name: str | None) -> None:
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

    def end(self) -> None:
        """End the direction from here: with close_notify on TLS."""
        if isinstance(self.sock, ssl.SSLSocket):
            with contextlib.suppress(ssl.SSLWantReadError):
                self.sock.unwrap()
        else:
            self.sock.shutdown(socket.SHUT_WR)

    def truncate(self) -> None:
        """End the direction from here without TLS being told."""
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


# What the relay can be put between


@dataclass(frozen=True)
class Place:
    """Certificates, and a directory for the sockets of one test."""

    files: CertificateFiles
    directory: Path
    authority: CertificateAuthority


@dataclass(frozen=True)
class Front:
    """A kind of endpoint that a relay listens with."""

    text: str
    tls: bool = False
    unix: bool = False


@dataclass(frozen=True)
class Back:
    """A kind of endpoint that a relay connects with."""

    text: str
    tls: bool = False
    unix: bool = False


FRONTS = {
    "netsock": Front("netsock:0:node=127.0.0.1{more}"),
    "netsock-tls": Front(
        "netsock-tls:0:node=127.0.0.1:certificates={files.server}{more}", tls=True
    ),
    "netsock-unix": Front("netsock:{path}:aiFamily=unix{more}", unix=True),
    "tcp": Front("tcp:0:interface=127.0.0.1"),
    "ssl": Front(
        "ssl:0:interface=127.0.0.1:privateKey={files.server}:certKey={files.server}", tls=True
    ),
    "unix": Front("unix:{path}", unix=True),
}
BACKS = {
    "netsock": Back("netsock:127.0.0.1:{port}{more}"),
    "netsock-tls": Back(
        "netsock-tls:localhost:{port}:aiFamily=inet:trustedCertificates={files.authority}{more}",
        tls=True,
    ),
    "netsock-unix": Back("netsock:{path}:aiFamily=unix{more}", unix=True),
    "tcp": Back("tcp:127.0.0.1:{port}"),
    "ssl": Back("ssl:127.0.0.1:{port}:caCertsDir={files.roots}", tls=True),
    "tls": Back(
        "tls:localhost:{port}:trustRoots={files.roots}:endpoint=tcp\\:127.0.0.1\\:{port}", tls=True
    ),
    "unix": Back("unix:{path}", unix=True),
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

    kind: Back
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
            await peer.shake_hands(context, None)
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
    """A relay that runs, and whoever has connected to it."""

    service: RelayService
    kind: Front
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
            await peer.shake_hands(ssl.create_default_context(cadata=cadata), "localhost")
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
    """Connects when it is told to."""

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


# What passes


@sides
@pytest.mark.parametrize("back", HALF_CLOSING_BACKS)
@pytest.mark.parametrize("front", HALF_CLOSING_FRONTS)
async def test_each_direction_passes_whole_and_ends_by_itself(front, back, side, place):
    async with relayed(front, back, place) as relay:
        first, second = await relay.pair_from(side)
        await first.send(b"a question")
        first.end()
        assert await second.receive() == b"a question"
        _, received = await together(second.send(ONE), first.receive(len(ONE)))
        assert received == ONE
        second.end()
        assert await first.receive() == b""


@sides
@pytest.mark.parametrize(
    ("front", "back"),
    [("ssl", back) for back in BACKS if back != "ssl"]
    + [(front, "tls") for front in FRONTS if front != "ssl"]
    + [("netsock", "ssl"), ("ssl", "ssl")],
)
async def test_what_was_sent_before_the_end_arrives_whole_through_the_tls_of_twisted(
    front, back, side, place
):
    async with relayed(front, back, place) as relay:
        first, second = await relay.pair_from(side)

        async def say() -> None:
            await first.send(ONE)
            first.end()

        _, received = await together(say(), second.receive())
        assert received == ONE


@pytest.mark.parametrize("back", ["netsock", "netsock-tls", "tcp", "tls"])
@pytest.mark.parametrize("front", NETWORK_FRONTS)
async def test_both_directions_pass_at_the_same_time(front, back, place):
    async with relayed(front, back, place) as relay:
        client, server = await relay.pair()
        _, _, upload, download = await together(
            client.send(ONE), server.send(OTHER), server.receive(len(ONE)),
            client.receive(len(OTHER)),
        )  # fmt: skip
        assert (upload == ONE, download == OTHER) == (True, True)


@pytest.mark.parametrize(
    ("front", "back"),
    [("netsock", "netsock-tls"), ("netsock-tls", "netsock"), ("tcp", "ssl"), ("ssl", "tcp")],
)
async def test_a_backend_may_speak_first(front, back, place):
    async with relayed(front, back, place) as relay:
        client, server = await relay.pair()
        await server.send(b"220 ready\r\n")
        assert await client.receive(11) == b"220 ready\r\n"


@pytest.mark.parametrize("back", ["netsock", "netsock-tls"])
@pytest.mark.parametrize("front", ["netsock", "netsock-tls"])
async def test_nothing_of_a_connection_is_left_after_both_ends(front, back, place):
    async with relayed(front, back, place) as relay:
        before = open_sockets()
        client, server = await relay.pair()
        client.end()
        assert await server.receive() == b""
        server.end()
        assert await client.receive() == b""
        # The two of this test are still open.
        await until(lambda: open_sockets() == before + 2)


class Echo(Protocol):
    """Sends back what it gets, no faster than that is taken."""

    def connectionMade(self) -> None:
        self.transport.registerProducer(self.transport, True)

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)

    def connectionLost(self, reason: object = None) -> None:
        self.transport.unregisterProducer()


class Asker(Protocol):
    """Sends bytes, and waits for as many."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.received = bytearray()
        self.answer: Deferred[bytes] = Deferred()
        self.lost: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self.transport.write(self.data)

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        if len(self.received) >= len(self.data) and not self.answer.called:
            self.answer.callback(bytes(self.received))

    def connectionLost(self, reason: Any = None) -> None:
        if not self.answer.called:
            self.answer.errback(reason)
        self.lost.callback(None)


def quiet(make: Callable[..., Protocol], *arguments: object) -> Factory:
    factory = Factory()
    factory.noisy = False
    factory.buildProtocol = lambda _: make(*arguments)  # type: ignore[method-assign]
    return factory


async def ask(endpoint: Any, data: bytes) -> bool:
    """Tell whether *endpoint* leads to an `Echo`."""
    asker = await endpoint.connect(quiet(Asker, data))
    try:
        return await asker.answer == data
    finally:
        asker.transport.loseConnection()
        await asker.lost


@pytest.mark.parametrize(
    ("listen", "to", "backend", "client"),
    [
        ("netsock-tls", "netsock", "tcp", "tls"),
        ("netsock", "netsock-tls", "ssl", "tcp"),
    ],
)
async def test_two_hundred_connections_at_once_keep_their_bytes_apart(
    listen, to, backend, client, place
):
    chance = random.Random(200)
    text = FRONTS[backend].text.format(files=place.files) + ":backlog=512"
    port = await serverFromString(reactor, text).listen(quiet(Echo))
    try:
        number = port.getHost().port
        target = clientFromString(
            reactor, BACKS[to].text.format(files=place.files, port=number, more="")
        )
        async with relaying(listen, None, place, ":backlog=512", to=target) as relay:
            text = BACKS[client].text.format(files=place.files, port=relay.address.port)
            endpoint = clientFromString(reactor, text)
            data = [chance.randbytes(chance.randrange(1, 100_000)) for _ in range(200)]
            assert await together(*(ask(endpoint, each) for each in data)) == [True] * 200
    finally:
        await port.stopListening()
        await turns()


# Pace


@sides
@pytest.mark.parametrize("back", ["netsock", "netsock-tls"])
@pytest.mark.parametrize("front", ["netsock", "netsock-tls"])
async def test_a_reader_that_is_slow_stops_the_sender_soon(front, back, side, place):
    """With small buffers in the kernel, what the relay itself holds shows."""
    data = ONE * 8
    with listening_backend(back, place, SMALL, 65536) as backend:
        async with relaying(front, backend, place, SMALL) as relay:
            client, server = await relay.pair(65536)
            first, second = (client, server) if side == "client" else (server, client)
            first.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
            sent = await first.send_until_stalled(data)
            assert sent < 2 * MEGABYTE
            _, received = await together(first.send(data[sent:]), second.receive(len(data)))
            assert received == data


@sides
@pytest.mark.parametrize(
    ("front", "back"),
    [("tcp", "netsock"), ("netsock", "tcp"), ("ssl", "netsock-tls"), ("netsock-tls", "ssl")],
)
async def test_a_reader_that_is_slow_stops_the_sender(front, back, side, place):
    """The kernel's buffers grow to several megabytes here, the relay's do not."""
    data = ONE * 48
    async with relayed(front, back, place) as relay:
        first, second = await relay.pair_from(side)
        sent = await first.send_until_stalled(data)
        assert sent < 24 * MEGABYTE
        more = data[: sent + MEGABYTE]
        _, received = await together(first.send(more[sent:]), second.receive(len(more)))
        assert received == more


@pytest.mark.parametrize("front", ["netsock", "netsock-tls"])
async def test_a_client_cannot_fill_the_memory_before_the_backend_reads(front, place):
    """Neither while the backend is being connected, nor when it is and what was said goes on."""
    late = LateEndpoint()
    data = ONE * 8
    with listening_backend("netsock", place, SMALL, 65536) as backend:
        async with relaying(front, backend, place, SMALL, to=late) as relay:
            client = await relay.connect(65536)
            await late.attempted()
            sent = await client.send_until_stalled(data)
            assert sent < 2 * MEGABYTE
            late.go_on(backend.endpoint)
            server = await relay.accept()
            sent += await client.send_until_stalled(data[sent:])
            assert sent < 2 * MEGABYTE
            _, received = await together(client.send(data[sent:]), server.receive(len(data)))
            assert received == data


# Streams that are cut off


def unacknowledged(sock: socket.socket) -> int:
    """Return how many of the bytes sent have not arrived at the other kernel."""
    return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


async def exchange(first: Peer, second: Peer) -> None:
    """Have both have sent and received something."""
    await first.send(b"ping")
    assert await second.receive(4) == b"ping"
    await second.send(b"pong")
    assert await first.receive(4) == b"pong"


@sides
@pytest.mark.parametrize("back", NETWORK_BACKS)
@pytest.mark.parametrize("front", NETWORK_FRONTS)
async def test_a_reset_never_looks_like_a_clean_end(front, back, side, place):
    async with relayed(front, back, place) as relay:
        first, second = await relay.pair_from(side)
        await exchange(first, second)
        await first.send(ONE[:1000])
        first.reset()
        await second.is_cut_off()


@pytest.mark.parametrize("back", NETWORK_BACKS)
@pytest.mark.parametrize("front", ["netsock-tls", "ssl"])
async def test_a_truncated_tls_stream_of_a_client_never_looks_like_a_clean_end(front, back, place):
    async with relayed(front, back, place) as relay:
        client, server = await relay.pair()
        await exchange(client, server)
        await client.send(ONE[:1000])
        client.truncate()
        await server.is_cut_off()


@pytest.mark.parametrize("back", ["netsock-tls", "ssl", "tls"])
@pytest.mark.parametrize("front", NETWORK_FRONTS)
async def test_a_truncated_tls_stream_of_a_backend_never_looks_like_a_clean_end(
    front, back, place
):
    async with relayed(front, back, place) as relay:
        client, server = await relay.pair()
        await exchange(client, server)
        await server.send(ONE[:1000])
        server.truncate()
        await client.is_cut_off()


@pytest.mark.parametrize("back", ["netsock", "netsock-tls", "tcp"])
@pytest.mark.parametrize("front", ["netsock", "netsock-tls", "tcp"])
async def test_an_answer_that_has_ended_arrives_whole_although_the_backend_resets_then(
    front, back, place
):
    """A server that answers early, and closes, resets what the client goes on to send."""
    answer = ONE[:300_000]
    async with relayed(front, back, place) as relay:
        # The client takes little before it reads: the rest waits in front of it.
        client, server = await relay.pair(16384)
        await server.send(answer)
        server.end()
        await until(lambda: unacknowledged(server.sock) == 0)
        await turns(20)
        server.reset()
        await client.send(b"more of the question")
        await turns(20)
        assert await client.receive() == answer


# Backends that cannot be had


@pytest.mark.parametrize("back", NETWORK_BACKS)
@pytest.mark.parametrize("front", NETWORK_FRONTS)
async def test_a_refused_backend_closes_the_client_and_is_logged(front, back, place, log_lines):
    with listening_backend(back, place) as backend:
        target = backend.endpoint
    async with relaying(front, backend, place, to=target) as relay:
        client = relay.connect_raw()
        if relay.kind.tls and front != "ssl":
            with contextlib.suppress(OSError):
                await client.shake_hands(ssl._create_unverified_context(), "localhost")
        await client.is_cut_off()
        (line,) = [each for each in log_lines if "cannot connect" in each]
        assert "refused" in line
        assert LOOPBACK in line


async def test_a_backend_that_is_not_trusted_gets_nothing(place, tmp_path, other_authority,
                                                          log_lines):  # fmt: skip
    strange = tmp_path / "strange.pem"
    strange.write_bytes(other_authority.certificate_pem)
    with listening_backend("netsock-tls", place) as backend:
        port = backend.listener.getsockname()[1]
        target = clientFromString(
            reactor, f"netsock-tls:localhost:{port}:aiFamily=inet:trustedCertificates={strange}"
        )
        async with relaying("netsock", backend, place, to=target) as relay:
            client = relay.connect_raw()
            await client.send(b"a secret")
            with pytest.raises(ssl.SSLError):
                await relay.accept()
            await client.is_cut_off()
            assert any("cannot connect" in line and "certificate" in line for line in log_lines)


@pytest.mark.parametrize("front", ["netsock", "netsock-tls"])
async def test_a_backend_that_does_not_answer_in_time_closes_the_client(front, place, log_lines):
    with full_listener() as listener:
        port = listener.getsockname()[1]
        target = clientFromString(reactor, f"netsock:127.0.0.1:{port}:connectionTimeout=200ms")
        async with relaying(front, None, place, to=target) as relay:
            client = await relay.connect()
            await client.is_cut_off()
            assert any("cannot connect" in line for line in log_lines)


async def test_one_refused_client_does_not_touch_the_others(place, log_lines):
    with listening_backend("netsock", place) as backend:
        late = LateEndpoint()
        async with relaying("netsock", backend, place, to=late) as relay:
            first = await relay.connect()
            await late.attempted()
            late.go_on(backend.endpoint)
            server = await relay.accept()
            second = await relay.connect()
            await late.attempted(2)
            late.fail(ConnectionRefusedError("nobody is there"))
            await second.is_cut_off()
            await exchange(first, server)
            assert any("nobody is there" in line for line in log_lines)


# Clients that leave early


@pytest.mark.parametrize("said", [b"", b"a question"])
@pytest.mark.parametrize("front", NETWORK_FRONTS)
async def test_a_client_that_is_gone_ends_the_attempt_to_connect_the_backend(front, said, place):
    late = LateEndpoint()
    async with relaying(front, None, place, to=late) as relay:
        client = relay.connect_raw() if front == "ssl" else await relay.connect()
        await late.attempted()
        if said and front != "ssl":
            await client.send(said)
        client.reset()
        await until(lambda: late.cancelled)


@pytest.mark.parametrize("back", ["netsock", "netsock-tls", "tcp"])
@pytest.mark.parametrize("front", ["netsock", "netsock-tls", "netsock-unix", "tcp", "unix"])
async def test_a_client_that_has_ended_before_the_backend_was_connected_is_served(
    front, back, place
):
    late = LateEndpoint()
    with listening_backend(back, place) as backend:
        async with relaying(front, backend, place, to=late) as relay:
            client = await relay.connect()
            await client.send(b"a question")
            client.end()
            await late.attempted()
            await turns()
            late.go_on(backend.endpoint)
            server = await relay.accept()
            assert await server.receive() == b"a question"
            await server.send(b"an answer")
            server.end()
            assert await client.receive() == b"an answer"


@pytest.mark.parametrize("front", ["netsock", "netsock-unix", "tcp", "unix"])
async def test_what_a_client_said_before_it_left_arrives(front, place):
    late = LateEndpoint()
    with listening_backend("netsock", place) as backend:
        async with relaying(front, backend, place, to=late) as relay:
            client = await relay.connect()
            await client.send(ONE[:50_000])
            client.close()
            await late.attempted()
            await turns()
            late.go_on(backend.endpoint)
            server = await relay.accept()
            assert await server.receive() == ONE[:50_000]


# Starting and stopping


async def test_the_service_is_a_service(place):
    with listening_backend("netsock", place) as backend:
        async with relaying("netsock", backend, place) as relay:
            assert verifyObject(IService, relay.service)
            assert relay.service.running


@pytest.mark.parametrize("back", NETWORK_BACKS)
@pytest.mark.parametrize("front", NETWORK_FRONTS)
async def test_stopping_ends_every_connection(front, back, place):
    async with relayed(front, back, place) as relay:
        pairs = [await relay.pair() for _ in range(3)]
        client, server = pairs[0]
        if front != "ssl" and back != "ssl":
            client.end()
            assert await server.receive() == b""
        await pairs[1][0].send(b"on its way")
        await relay.stop()
        for peer in (each for pair in pairs for each in pair):
            await peer.is_over()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((LOOPBACK, relay.address.port)).close()


@pytest.mark.parametrize("front", NETWORK_FRONTS)
async def test_stopping_cuts_off_what_is_under_way(front, place):
    """Half an answer must not look like a whole one because the relay was stopped."""
    async with relayed(front, "netsock", place) as relay:
        client, server = await relay.pair()
        await exchange(client, server)
        await relay.stop()
        await together(client.is_cut_off(), server.is_cut_off())


@pytest.mark.parametrize("front", NETWORK_FRONTS)
async def test_stopping_ends_attempts_to_connect(front, place):
    late = LateEndpoint()
    async with relaying(front, None, place, to=late) as relay:
        client = relay.connect_raw() if front == "ssl" else await relay.connect()
        await late.attempted()
        await relay.stop()
        await client.is_over()
        await until(lambda: late.cancelled)


@pytest.mark.parametrize("front", ["netsock-tls", "ssl"])
async def test_stopping_ends_handshakes(front, place):
    async with relayed(front, "netsock", place) as relay:
        client = relay.connect_raw()
        await client.send(b"\x16\x03\x01")
        await turns(10)
        await relay.stop()
        await client.is_over()


async def test_aborting_ends_a_backend_whose_client_has_finished(place):
    """What the backend is slow to take waits in the relay, which must let go of it."""
    with listening_backend("netsock", place) as backend:
        before = open_sockets()
        factory = RelayFactory(backend.endpoint)
        front: Any = factory.buildProtocol(None)
        front.makeConnection(StringTransport())
        peers: list[Peer] = []
        await backend.accept(peers)
        await turns(10)
        for _ in range(16):
            front.dataReceived(ONE)
        front.connectionLost(Failure(ConnectionDone()))
        await turns(10)
        try:
            # The backend's end, and the relay's.
            assert open_sockets() == before + 2
            factory.abort()
            await turns(10)
            assert open_sockets() == before + 1
        finally:
            peers[0].close()
            await turns(10)


async def test_a_service_that_was_stopped_can_be_started_again(place):
    async with relayed("netsock", "netsock", place) as relay:
        await exchange(*await relay.pair())
        await relay.stop()
        relay.service.startService()
        await until(lambda: len(relay.addresses) == 2)
        await exchange(*await relay.pair())


async def test_stopping_before_it_listens_is_quiet(place):
    service = RelayService(
        reactor,
        serverFromString(reactor, "netsock:0:node=localhost:aiFamily=inet"),
        LateEndpoint(),
    )
    service.startService()
    await maybeDeferred(service.stopService)
    await turns(20)


class ReactorToStop:
    """The real reactor, but for being stopped."""

    def __init__(self) -> None:
        self.stopped = 0

    def stop(self) -> None:
        self.stopped += 1

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)


@pytest.mark.parametrize("text", ["netsock:{}:node=127.0.0.1", "tcp:{}:interface=127.0.0.1"])
async def test_a_port_that_is_taken_is_told_and_stops_the_reactor(text, log_lines):
    to_stop = ReactorToStop()
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        endpoint = serverFromString(reactor, text.format(port))
        service = RelayService(to_stop, endpoint, LateEndpoint())
        service.startService()
        await until(lambda: to_stop.stopped)
        await maybeDeferred(service.stopService)
    (line,) = [each for each in log_lines if "cannot listen" in each]
    assert "Address already in use" in line
    assert str(port) in line


async def test_a_factory_knows_the_connections_that_there_are(place):
    with listening_backend("netsock", place) as backend:
        factory = RelayFactory(backend.endpoint)
        text = FRONTS["netsock"].text.format(more="")
        port = await serverFromString(reactor, text).listen(factory)
        relay = Relay(None, FRONTS["netsock"], place, backend, [port.getHost()])
        try:
            client, server = await relay.pair()
            assert factory.connections == 1
            await exchange(client, server)
            client.close()
            assert await server.receive() == b""
            server.close()
            await until(lambda: not factory.connections)
            await relay.pair()
            factory.abort()
            await until(lambda: not factory.connections)
        finally:
            await port.stopListening()
            for peer in relay.peers:
                peer.close()
            await turns()


@pytest.mark.parametrize("front", HALF_CLOSING_FRONTS)
@pytest.mark.parametrize("back", HALF_CLOSING_BACKS)
async def test_a_connection_ends_when_both_directions_have(front, back, place):
    async with relayed(front, back, place) as relay:
        client, server = await relay.pair()
        client.end()
        assert await server.receive() == b""
        server.end()
        assert await client.receive() == b""
        await until(lambda: relay.service._factory.idle)


# The command's options


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "netsock:localhost:80"], ["--listen is missing"]),
        (["--listen", "netsock:0", "--to", "netsock:localhost:80:conectionTimeout=1s"],
         ["--to netsock:localhost:80", "did you mean connectionTimeout?"]),
        (["--listen", "netsock:0:interface=127.0.0.1", "--to", "tcp:127.0.0.1:80"],
         ["--listen ", "interface", "called node"]),
        (["--listen", "netsock:0", "--to", "netsock:localhost:80:readTimeout=10"],
         ["readTimeout='10'", "10s"]),
        (["--listen", "netsock-tls:0", "--to", "tcp:127.0.0.1:80"], ["certificates"]),
        (["--listen", "netsok:0", "--to", "tcp:127.0.0.1:80"], ["--listen ", "netsok"]),
        (["--listen", "tcp:0", "--to", "tcp:127.0.0.1"], ["--to tcp:127.0.0.1"]),
        (["--listen", "tcp:http-nonsense", "--to", "tcp:127.0.0.1:80"], ["--listen "]),
    ],
)  # fmt: skip
def test_a_mistake_in_an_endpoint_is_told_with_its_option(arguments, said):
    with pytest.raises(UsageError) as caught:
        RelayOptions().parseOptions(arguments)
    message = str(caught.value)
    assert "\n" not in message
    for text in said:
        assert text in message


def test_without_a_subcommand_the_message_names_them():
    with pytest.raises(UsageError, match="relay"):
        Options().parseOptions([])


def test_endpoints_of_any_kind_are_made_of_the_options():
    options = Options()
    options.parseOptions(["relay", "--listen", "tcp:0", "--to", "netsock:localhost:80"])
    assert verifyObject(IStreamServerEndpoint, options.subOptions["listen"][0])
    (target,) = options.subOptions.settings.routes
    assert verifyObject(IStreamClientEndpoint, target.endpoint)
    assert verifyObject(IService, makeService(options))
