"""While strangers' handshakes fail in every way, who is connected loses no byte."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import LogEvent

from tests.support.clocks import until
from tests.support.loopback import LONGEST
from tests.support.streams import finished, in_thread, noise, read_exactly, soon, together
from twisted_netsock import (
    ServerTLSSocketOptions,
    TLSError,
    TLSSocket,
    VerifyResult,
    blocking,
    make_client_tls_socket,
    make_server_tls_socket,
    server_endpoint,
)
from twisted_netsock.testing import CertificateAuthority

ROUNDS = 100
PIECE = 20_000
SPOILT = "whose certificate upsets the verifier"


class UpsetError(Exception):
    """The verifier of the tests fails."""


def verifier(depth: int, result: VerifyResult, certificate: x509.Certificate) -> None:
    if SPOILT in certificate.subject.rfc4514_string():
        raise UpsetError


# The server: an echo


@asynccontextmanager
async def echoing_socket(options: ServerTLSSocketOptions) -> AsyncIterator[int]:
    listener: TLSSocket = await make_server_tls_socket("127.0.0.1", 0, options)

    async def echo(connection: TLSSocket) -> None:
        # A client whose own side refuses it after the handshake ends with an error.
        with contextlib.suppress(TLSError):
            while data := await connection.recv(65536):
                await connection.sendall(data)

    serving = listener.serve(echo)
    try:
        yield listener.getsockname().port
    finally:
        await listener.close()
        await soon(serving)


@asynccontextmanager
async def echoing_threads(options: ServerTLSSocketOptions) -> AsyncIterator[int]:
    """Handshakes run on the reactor, and a thread for each connection reads and writes."""

    def echo(connection: blocking.BlockingTLSSocket) -> None:
        with contextlib.suppress(TLSError):
            while data := connection.recv(65536):
                connection.sendall(data)

    listener = await in_thread(blocking.make_server_tls_socket, "127.0.0.1", 0, options)
    serving = in_thread(listener.serve, echo)
    try:
        yield listener.getsockname().port
    finally:
        await in_thread(listener.close)
        await soon(serving)
        await until(lambda: not any("netsock" in repr(each) for each in reactor.getReaders()))


@asynccontextmanager
async def echoing_endpoint(options: ServerTLSSocketOptions) -> AsyncIterator[int]:
    connected: set[Protocol] = set()

    class Echo(Protocol):
        def connectionMade(self) -> None:
            connected.add(self)

        def dataReceived(self, data: bytes) -> None:
            self.transport.write(data)

        def connectionLost(self, reason: Any) -> None:
            connected.discard(self)

    endpoint = server_endpoint(reactor, "127.0.0.1", 0, options)
    port: Any = await endpoint.listen(Factory.forProtocol(Echo))
    try:
        yield port.getHost().port
    finally:
        await port.stopListening()
        await until(lambda: not connected)


# Clients that are welcome


def talk_in_thread(context: ssl.SSLContext, port: int, seed: int) -> int:
    """Send and receive again, with the standard library, and return how much came back."""
    count = 0
    with (
        socket.create_connection(("127.0.0.1", port), timeout=LONGEST) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        assert tls.selected_alpn_protocol() == "h2"
        for number in range(ROUNDS):
            data = noise(PIECE, seed + number)
            tls.sendall(data)
            got = b""
            while len(got) < len(data):
                piece = tls.recv(len(data) - len(got))
                assert piece, "the stream ended"
                got += piece
            assert got == data
            count += len(got)
        tls.unwrap().close()
    return count


async def talk(authority: CertificateAuthority, port: int, seed: int) -> int:
    """Do the same with a socket of ours."""
    count = 0
    options = authority.client_options(alpn="h2")
    async with await make_client_tls_socket("127.0.0.1", port, options) as sock:
        for number in range(ROUNDS):
            data = noise(PIECE, seed + number)
            got, _ = await together(read_exactly(sock, len(data)), finished(sock.sendall(data)))
            assert got == data
            count += len(got)
    return count


def talk_blocking(authority: CertificateAuthority, port: int, seed: int) -> int:
    """Do the same with a blocking socket of ours."""
    count = 0
    options = authority.client_options(alpn="h2")
    with blocking.make_client_tls_socket("127.0.0.1", port, options) as sock:
        for number in range(ROUNDS):
            data = noise(PIECE, seed + number)
            sock.sendall(data)
            got = sock.input_port.read(len(data))
            assert got == data
            count += len(got)
    return count


# Strangers


def hello(alpn: str = "h2") -> bytes:
    """Return the first message of a client."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols([alpn])
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def say(port: int, data: bytes, *, reset: bool = False) -> None:
    """Say *data*, and end in order or by a reset."""
    with (
        contextlib.suppress(OSError),
        socket.create_connection(("127.0.0.1", port), timeout=LONGEST) as plain,
    ):
        plain.sendall(data)
        if reset:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            return
        plain.shutdown(socket.SHUT_WR)
        while plain.recv(4096):
            pass


def try_tls(port: int, context: ssl.SSLContext) -> None:
    """Perform a handshake, which must not get further than TLS 1.3 lets a client believe."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=LONGEST) as plain,
        contextlib.suppress(ssl.SSLError, ConnectionError),
        context.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False) as tls,
    ):
        tls.recv(1)
        raise AssertionError("a stranger was let in")


class Strangers:
    """Makes the contexts of strangers, and sends them to a server."""

    def __init__(
        self,
        authority: CertificateAuthority,
        other: CertificateAuthority,
        version: ssl.TLSVersion,
        directory: Path,
    ) -> None:
        self._authority = authority
        self._version = version
        self._directory = directory
        known = self.context
        self.ways: list[Callable[[int], None]] = [
            lambda port, context=context: try_tls(port, context)
            for context in (
                known(alpn="imap"),
                known(trusting=other),
                known(identity=other.issue("a stranger").pem),
                known(identity=authority.issue("a client", expired=True).pem),
                known(identity=authority.issue(SPOILT).pem),
            )
        ]
        self.ways += [
            lambda port: say(port, b""),
            lambda port: say(port, b"GET / HTTP/1.0\r\n\r\n"),
            lambda port: say(port, noise(5000)),
            lambda port: say(port, hello()[:100]),
            lambda port: say(port, hello(), reset=True),
            lambda port: say(port, hello("imap"), reset=True),
            lambda port: say(port, hello() + noise(500)),
        ]

    def context(
        self,
        alpn: str = "h2",
        trusting: CertificateAuthority | None = None,
        identity: bytes | None = None,
    ) -> ssl.SSLContext:
        trusted = (trusting or self._authority).certificate_pem.decode()
        context = ssl.create_default_context(cadata=trusted)
        context.maximum_version = self._version
        context.set_alpn_protocols([alpn])
        if identity is not None:
            path = self._directory / "identity.pem"
            path.write_bytes(identity)
            context.load_cert_chain(path)
        return context

    def come(self, port: int, over: threading.Event) -> int:
        """Try each way, several times, until it is *over*; return how often somebody came."""
        came = 0
        while came < 100 * len(self.ways):
            for way in self.ways:
                way(port)
            came += len(self.ways)
            if over.is_set():
                break
        return came


@pytest.mark.parametrize(
    "version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=lambda version: version.name
)
@pytest.mark.parametrize("echoing", [echoing_socket, echoing_endpoint, echoing_threads])
async def test_who_is_connected_loses_no_byte(
    authority: CertificateAuthority,
    other_authority: CertificateAuthority,
    echoing: Callable[[ServerTLSSocketOptions], Any],
    version: ssl.TLSVersion,
    tmp_path: Path,
    log_lines: list[str],
    logged_errors: list[LogEvent],
    capfd: pytest.CaptureFixture[str],
) -> None:
    strangers = Strangers(authority, other_authority, version, tmp_path)
    welcome = strangers.context()
    options = authority.server_options(
        alpn="h2",
        trusted_certificates=authority.certificate,
        certificate_verifier=verifier,
    )
    async with echoing(options) as port:
        over = threading.Event()
        coming = in_thread(strangers.come, port, over)
        try:
            counts = await together(
                *(finished(in_thread(talk_in_thread, welcome, port, 1000 * n)) for n in range(2)),
                *(talk(authority, port, 1000 * n) for n in range(2, 4)),
                finished(in_thread(talk_blocking, authority, port, 4000)),
            )
        finally:
            over.set()
        came = await coming
        assert counts == [ROUNDS * PIECE] * 5
        failed = sum("TLS handshake with" in line for line in log_lines)
    sums = [re.match(r"(\d+) more connections have failed", line) for line in log_lines]
    assert failed + sum(int(found[1]) for found in sums if found) == came
    assert {event["log_failure"].type for event in logged_errors} == {UpsetError}
    logged_errors.clear()
    assert capfd.readouterr().err == ""
