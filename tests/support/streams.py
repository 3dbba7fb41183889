"""Streams for tests: ways to make them, to fill and to read them, also through ports."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.python.failure import Failure

from tests.support.clocks import turns, until
from tests.support.loopback import LONGEST
from twisted_netsock import (
    ServerTLSSocketOptions,
    Socket,
    SocketOptions,
    TLSSocket,
    TLSSocketOptions,
    make_client_socket,
    make_client_tls_socket,
    make_server_socket,
    make_server_tls_socket,
)
from twisted_netsock.testing import CertificateAuthority, connected_pair

SMALL_BUFFER = 16384


def soon(deferred: Deferred[Any], seconds: float = LONGEST) -> Deferred[Any]:
    """Bound *deferred*, so that a wait that never ends fails its test and no other."""
    return deferred.addTimeout(seconds, reactor)


async def finished(deferred: Deferred[Any]) -> Any:
    """Wait for *deferred* as `soon` does, as a coroutine for `together`."""
    return await soon(deferred)


async def together(*coroutines: Awaitable[Any]) -> list[Any]:
    """Run *coroutines* at once and return their results; the first failure cancels the others."""
    running = [Deferred.fromCoroutine(each) for each in coroutines]
    try:
        return await gatherResults(running, consumeErrors=True)
    except FirstError as error:
        for each in running:
            each.addErrback(lambda _: None)
            each.cancel()
        error.subFailure.raiseException()
        raise


async def read_exactly(sock: Socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = await soon(sock.recv(min(65536, size - len(data))))
        assert piece, f"the stream ended after {len(data)} of {size} bytes"
        data += piece
    return bytes(data)


async def read_to_end(sock: Socket) -> bytes:
    data = bytearray()
    while piece := await soon(sock.recv(65536)):
        data += piece
    return bytes(data)


def shrink_buffers(*socks: Socket | socket.socket) -> None:
    """Give the kernel little room, so that a peer that does not read is noticed soon."""
    for sock in socks:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)


async def fill(sock: Socket, chunk: bytes) -> tuple[bytes, Deferred[int]]:
    """
    Send *chunk* again and again until the kernel takes no more.

    Returns what was sent, and the send of another *chunk* that waits.
    """
    sent = bytearray()
    for _ in range(10_000):
        sending = sock.send(chunk)
        if not sending.called:
            await turns()
            if not sending.called:
                return bytes(sent), sending
        sent += chunk[: await sending]
    raise AssertionError("the kernel takes everything")


def in_thread(function: Callable[..., Any], *args: Any) -> Deferred[Any]:
    """Call *function*, which may block for a while, in a thread of its own."""
    result: Deferred[Any] = Deferred()

    def run() -> None:
        try:
            outcome = function(*args)
        except BaseException:  # noqa: BLE001 - the caller gets it
            outcome = Failure(captureVars=False)
        reactor.callFromThread(result.callback, outcome)

    threading.Thread(target=run, daemon=True).start()
    return result


# Peers of the standard library


def python_client_context(authority: CertificateAuthority) -> ssl.SSLContext:
    """Return a context of the standard library that trusts *authority*."""
    return ssl.create_default_context(cadata=authority.certificate_pem.decode())


def python_server_context(authority: CertificateAuthority, directory: Path) -> ssl.SSLContext:
    """Return a context of the standard library with a certificate for localhost."""
    path = directory / "server.pem"
    path.write_bytes(authority.issue("localhost", "127.0.0.1").pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


async def meet_python_client(
    listener: Socket, context: ssl.SSLContext
) -> tuple[Any, ssl.SSLSocket]:
    """Accept a client of the standard library: our socket and its, the handshake done."""
    host, port = listener.getsockname()

    def connect() -> ssl.SSLSocket:
        plain = socket.create_connection((host, port), timeout=LONGEST)
        return context.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False)

    ours, theirs = await together(finished(listener.accept()), finished(in_thread(connect)))
    return ours, theirs


async def meet_python_server(
    context: ssl.SSLContext, options: TLSSocketOptions
) -> tuple[Any, ssl.SSLSocket]:
    """Connect to a server of the standard library: our socket and its, the handshake done."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LONGEST)

        def accept() -> ssl.SSLSocket:
            plain, _ = listener.accept()
            plain.settimeout(LONGEST)
            return context.wrap_socket(plain, server_side=True, suppress_ragged_eofs=False)

        host, port = listener.getsockname()
        ours, theirs = await together(
            finished(make_client_tls_socket(host, port, options)), finished(in_thread(accept))
        )
    return ours, theirs


# Kinds of stream


class Streams:
    """One kind of stream: how to listen for it, and how to connect it."""

    resets = True
    """Whether an abort reaches the peer as more than the end of the stream."""

    def listen(self, **fields: Any) -> Deferred[Socket]:
        raise NotImplementedError

    def connect(self, listener: Socket, **fields: Any) -> Deferred[Socket]:
        raise NotImplementedError

    @asynccontextmanager
    async def pair(
        self,
        server: Mapping[str, Any] = MappingProxyType({}),
        client: Mapping[str, Any] = MappingProxyType({}),
        **fields: Any,
    ) -> AsyncIterator[tuple[Any, Any]]:
        """
        Connect two sockets, and abort them at the end.

        Both have *fields* in their options, the accepted one those of *server*
        too, the one that connects those of *client*.
        """
        ends = await self.connected(server, client, **fields)
        try:
            await self.settle(*ends)
            yield ends
        finally:
            for each in ends:
                each.abort()

    async def connected(
        self,
        server: Mapping[str, Any] = MappingProxyType({}),
        client: Mapping[str, Any] = MappingProxyType({}),
        **fields: Any,
    ) -> tuple[Any, Any]:
        """Connect two sockets, which are the caller's to close."""
        async with await self.listen(**fields, **server) as listener:
            one, other = await together(
                finished(self.connect(listener, **fields, **client)), finished(listener.accept())
            )
        return self.arrange(one, other)

    async def settle(self, *ends: Any) -> None:
        """Let the client take what comes before any data."""

    def arrange(self, client: Socket, accepted: Socket) -> tuple[Socket, Socket]:
        return client, accepted


class TCPStreams(Streams):
    def listen(self, reactor: Any = None, **fields: Any) -> Deferred[Socket]:
        return make_server_socket("127.0.0.1", 0, SocketOptions(**fields), reactor=reactor)

    def connect(self, listener: Socket, reactor: Any = None, **fields: Any) -> Deferred[Socket]:
        host, port = listener.getsockname()
        return make_client_socket(host, port, SocketOptions(**fields), reactor=reactor)


class UNIXStreams(Streams):
    resets = False

    def __init__(self, directory: Path) -> None:
        self._paths = (str(directory / f"{number}") for number in itertools.count())

    def listen(self, reactor: Any = None, **fields: Any) -> Deferred[Socket]:
        options = SocketOptions(ai_family=socket.AF_UNIX, **fields)
        return make_server_socket(next(self._paths), None, options, reactor=reactor)

    def connect(self, listener: Socket, reactor: Any = None, **fields: Any) -> Deferred[Socket]:
        options = SocketOptions(ai_family=socket.AF_UNIX, **fields)
        return make_client_socket(listener.getsockname().host, None, options, reactor=reactor)


class TLSStreams(Streams):
    def __init__(
        self,
        authority: CertificateAuthority,
        version: str = "TLSv1.3",
        *,
        server_first: bool = False,
    ) -> None:
        self._authority = authority
        self._version = version
        self._server_first = server_first

    def server_options(self, **fields: Any) -> ServerTLSSocketOptions:
        return self._authority.server_options(maximum_version=self._version, **fields)

    def client_options(self, **fields: Any) -> TLSSocketOptions:
        return self._authority.client_options(maximum_version=self._version, **fields)

    def listen(self, reactor: Any = None, **fields: Any) -> Deferred[Socket]:
        options = self.server_options(**fields)
        made: Deferred[Any] = make_server_tls_socket("127.0.0.1", 0, options, reactor=reactor)
        return made

    def connect(self, listener: Socket, reactor: Any = None, **fields: Any) -> Deferred[Socket]:
        options = self.client_options(**fields)
        host, port = listener.getsockname()
        made: Deferred[Any] = make_client_tls_socket(host, port, options, reactor=reactor)
        return made

    async def settle(self, *ends: Any) -> None:
        """Take the tickets: one in each reactor iteration, while the kernel finds more room."""
        client = ends[-1] if self._server_first else ends[0]
        if client.tls_version == "TLSv1.3":
            receiving = client.recv(1)
            await turns(3)
            receiving.cancel()
            failure_of(receiving)

    def arrange(self, client: Socket, accepted: Socket) -> tuple[Socket, Socket]:
        return (accepted, client) if self._server_first else (client, accepted)


class UNIXTLSStreams(Streams):
    """TLS over a UNIX socket, which takes and gives room record by record."""

    def __init__(self, tls: TLSStreams, path: Path) -> None:
        self._tls = tls
        self._path = str(path)

    def listen(self, **fields: Any) -> Deferred[Socket]:
        options = self._tls.server_options(ai_family=socket.AF_UNIX, **fields)
        made: Deferred[Any] = make_server_tls_socket(self._path, None, options)
        return made

    def connect(self, listener: Socket, **fields: Any) -> Deferred[Socket]:
        options = self._tls.client_options(ai_family=socket.AF_UNIX, sni="localhost", **fields)
        made: Deferred[Any] = make_client_tls_socket(self._path, None, options)
        return made


def noise(size: int, seed: int = 0) -> bytes:
    """Return bytes that look like nothing else."""
    return random.Random(seed).randbytes(size)


def failure_of(deferred: Deferred[Any]) -> type[BaseException] | None:
    """Return the class of the error that *deferred* has failed with by now."""
    found: list[object] = []
    deferred.addBoth(found.append)
    return found[0].type if found and isinstance(found[0], Failure) else None


class PythonPeers:
    """Connects a socket of ours, on either side, with one of the standard library."""

    def __init__(
        self,
        authority: CertificateAuthority,
        side: str,
        version: ssl.TLSVersion,
        directory: Path,
    ) -> None:
        self._authority = authority
        self._side = side
        self._version = version
        self._directory = directory

    @asynccontextmanager
    async def meet(
        self, theirs: str | None = None, **ours: Any
    ) -> AsyncIterator[tuple[Any, ssl.SSLSocket]]:
        """Connect; *theirs* is the protocol that the other speaks, *ours* are options."""
        sock, peer = await self._connect(theirs, ours)
        try:
            with peer:
                yield sock, peer
        finally:
            sock.abort()

    async def _connect(
        self, alpn: str | None, fields: dict[str, Any]
    ) -> tuple[Any, ssl.SSLSocket]:
        if self._side == "server":
            context = python_client_context(self._authority)
            self._adjust(context, alpn)
            async with await TLSStreams(self._authority).listen(**fields) as listener:
                return await meet_python_client(listener, context)
        context = python_server_context(self._authority, self._directory)
        self._adjust(context, alpn)
        return await meet_python_server(context, self._authority.client_options(**fields))

    def _adjust(self, context: ssl.SSLContext, alpn: str | None) -> None:
        context.maximum_version = self._version
        if alpn is not None:
            context.set_alpn_protocols([alpn])


# Makers


def record_for(authority: CertificateAuthority, maker: Callable[..., Any], **fields: Any) -> Any:
    """Return a record with *fields* that *maker* takes, whichever of the four it is."""
    if maker is make_client_tls_socket:
        return authority.client_options(**fields)
    if maker is make_server_tls_socket:
        return authority.server_options(**fields)
    return SocketOptions(**fields)


class World:
    """Makes pairs of plain or TLS sockets with the makers themselves."""

    def __init__(self, authority: CertificateAuthority, *, tls: bool) -> None:
        self._authority = authority
        self.tls = tls
        self.kind = TLSSocket if tls else Socket

    def serve(self, node: str | None, service: Any, **fields: Any) -> Deferred[Any]:
        if self.tls:
            names = ("localhost", "127.0.0.1", "::1")
            options = self._authority.server_options(*names, **fields)
            return make_server_tls_socket(node, service, options)
        return make_server_socket(node, service, SocketOptions(**fields))

    def connect(self, node: str, service: Any, **fields: Any) -> Deferred[Any]:
        if self.tls:
            return make_client_tls_socket(node, service, self.client_options(**fields))
        return make_client_socket(node, service, self.client_options(**fields))

    def client_options(self, **fields: Any) -> SocketOptions:
        if self.tls:
            return self._authority.client_options(**fields)
        return SocketOptions(**fields)

    async def meet(self, server: Any, node: str, service: Any, **fields: Any) -> tuple[Any, Any]:
        """Return a new connection's two ends, which have talked with each other."""
        client, accepted = await together(
            finished(self.connect(node, service, **fields)), finished(server.accept())
        )
        await client.sendall(b"talk")
        assert await read_exactly(accepted, 4) == b"talk"
        assert type(client) is type(accepted) is self.kind
        return client, accepted


KINDS = ("tcp", "unix", "tls")


def streams_of(kind: str, directory: Path, authority: CertificateAuthority) -> Streams:
    """Return the streams of one of the `KINDS`."""
    if kind == "tcp":
        return TCPStreams()
    return UNIXStreams(directory) if kind == "unix" else TLSStreams(authority)


async def stick(sock: Socket) -> bytes:
    """
    Write to the output port until the kernel takes no more, and return what was written.

    The port then holds 40 to 60 kB, less than makes a write wait.
    """
    shrink_buffers(sock)
    port = sock.output_port
    written = bytearray()
    looks = 0
    for number in range(2000):
        if port.pending < 40_000:
            chunk = noise(20_000, number)
            port.write(chunk)
            written += chunk
            looks = 0
        # TCP may put an acknowledgement off for 40 ms, and goes on then.
        await turns(10)
        looks += 1
        if looks == 6:
            return bytes(written)
    raise AssertionError("the kernel takes everything")


async def arrived(sock: Socket, count: int) -> None:
    """Wait until the buffer of the input port, which somebody reads, holds *count* bytes."""
    await until(lambda: sock.input_port.pending >= count)


NO_TIME = timedelta(0)
SOON = timedelta(milliseconds=10)


@pytest.fixture
def pairs() -> Iterator[Callable[..., list[tuple[Socket, Socket]]]]:
    made: list[tuple[Socket, Socket]] = []

    def make(count: int, **how: Any) -> list[tuple[Socket, Socket]]:
        made.extend(connected_pair(**how) for _ in range(count))
        return made[-count:]

    yield make
    for pair in made:
        for sock in pair:
            sock.abort()


@contextlib.asynccontextmanager
async def tls_pair(authority: Any, version: str = "TLSv1.3") -> AsyncIterator[tuple[Any, Any]]:
    async with TLSStreams(authority, version).pair() as pair:
        yield pair


async def raised(deferred: Any) -> BaseException:
    with pytest.raises(Exception) as caught:
        await soon(deferred)
    return caught.value
