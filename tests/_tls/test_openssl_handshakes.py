"""Handshakes on memory: what they take of pyOpenSSL's inner parts, and what they bound."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from pathlib import Path
from typing import Any

import pytest
from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol

from tests.support.clocks import turns
from tests.support.loopback import LONGEST as SECONDS
from tests.support.streams import (
    TLSStreams,
    in_thread,
    noise,
    python_client_context,
    python_server_context,
    read_exactly,
    soon,
)
from twisted_netsock import (
    TLSHandshakeError,
    client_context_factory,
    make_client_tls_socket,
    make_server_tls_socket,
    server_context_factory,
    server_endpoint,
)
from twisted_netsock._io.poller import WANT_READ
from twisted_netsock._tls import descriptor, openssl
from twisted_netsock._tls.descriptor import TLSDescriptor
from twisted_netsock._tls.openssl import MessageLimit
from twisted_netsock.testing import CertificateAuthority


def test_pyopenssl_has_the_parts_that_are_used() -> None:
    """When this fails, nothing bounds the handshakes of strangers."""
    assert openssl.can_handshake_in_memory()
    assert openssl.can_use_buffers()


async def test_without_them_a_handshake_runs_on_the_descriptor(
    authority: CertificateAuthority, monkeypatch: Any
) -> None:
    monkeypatch.setattr(descriptor, "can_handshake_in_memory", lambda: False)
    async with TLSStreams(authority).pair() as (one, other):
        await one.sendall(b"hello")
        assert await soon(other.recv(10)) == b"hello"


async def test_without_them_data_takes_a_detour(
    authority: CertificateAuthority, monkeypatch: Any
) -> None:
    monkeypatch.setattr(openssl, "_CAN_USE_BUFFERS", False)
    async with TLSStreams(authority).pair() as (one, other):
        sending = one.sendall(noise(1_000_000))
        assert await soon(other.recv(10)) == noise(1_000_000)[:10]
        buffer = bytearray(100)
        assert await soon(other.recv_into(buffer)) == len(buffer)
        assert bytes(buffer) == noise(1_000_000)[10:110]
        assert await read_exactly(other, 999_890) == noise(1_000_000)[110:]
        await soon(sending)


def test_two_tickets_take_one_receive(authority: CertificateAuthority) -> None:
    """To wait for the second would take an iteration of the reactor, though it is here."""
    pair = socket.socketpair()
    for sock in pair:
        sock.setblocking(False)
    factories = (
        client_context_factory(authority.client_options(), "127.0.0.1"),
        server_context_factory(authority.server_options()),
    )
    client, server = (TLSDescriptor(*each) for each in zip(pair, factories, strict=True))
    for _ in range(5):
        wants = client.try_handshake(), server.try_handshake()
    assert wants == (None, None)
    server.try_send(b"data")
    assert client.try_recv(10) == WANT_READ
    assert client.try_recv(10) == b"data"
    assert client.try_recv(10) == WANT_READ
    client.close()
    server.close()


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("size", [1, 5, 1000, 100_000])
async def test_what_comes_right_behind_the_handshake_is_received(
    authority: CertificateAuthority, tmp_path: Path, size: int, ends: bool
) -> None:
    """A server of TLS 1.2 has the last word, and may go on in the same segment."""
    context = python_server_context(authority, tmp_path)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    greeting = b"220 hello " * 3

    def serve() -> None:
        """Send everything in pieces of *size* bytes, the greeting along with the Finished."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_side=True)
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(SECONDS)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while True:
                with contextlib.suppress(ssl.SSLWantReadError):
                    tls.do_handshake()
                    break
                send_in_pieces(connection, outgoing.read(), size)
                incoming.write(connection.recv(65536))
            tls.write(greeting)
            if ends:
                with contextlib.suppress(ssl.SSLWantReadError):
                    tls.unwrap()
            send_in_pieces(connection, outgoing.read(), size)
            while connection.recv(65536):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(SECONDS)
        serving = in_thread(serve)
        async with await make_client_tls_socket(
            *listener.getsockname(), authority.client_options()
        ) as sock:
            assert sock.tls_version == "TLSv1.2"
            assert await soon(sock.input_port.read_exactly(len(greeting))) == greeting
            if ends:
                assert await soon(sock.input_port.read(1)) == b""
        await serving


async def test_a_client_that_goes_right_behind_the_handshake_is_heard(
    authority: CertificateAuthority,
) -> None:
    """The server's tickets find nobody, and what the client sent is received all the same."""
    context = python_client_context(authority)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    async with await make_server_tls_socket("127.0.0.1", 0, authority.server_options()) as server:
        accepting = server.accept()
        with socket.create_connection(server.getsockname()[:2]) as client:
            client.setblocking(False)
            while True:
                with contextlib.suppress(ssl.SSLWantReadError):
                    ours.do_handshake()
                    break
                if outgoing.pending:
                    client.sendall(outgoing.read())
                await turns(1)
                with contextlib.suppress(BlockingIOError):
                    incoming.write(client.recv(65536))
            assert ours.version() == "TLSv1.3"
            ours.write(b"last words")
            client.sendall(outgoing.read())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection = await soon(accepting)
        assert await soon(connection.recv(100)) == b"last words"
        await connection.close()


def send_in_pieces(connection: socket.socket, data: bytes, size: int) -> None:
    for begin in range(0, len(data), size):
        connection.sendall(data[begin : begin + size])


# Messages that are too long: OpenSSL makes room for one when its length has come


LONGEST = 32 * 1024
HELLO, CERTIFICATE = 1, 11
ILLEGAL_PARAMETER = bytes.fromhex("15 0303 0002 02 2f")


def message(kind: int, claimed: int, sent: int) -> bytes:
    return bytes([kind]) + claimed.to_bytes(3) + bytes(sent)


def records(data: bytes, size: int = 16384, kind: int = 22) -> bytes:
    pieces = [data[begin : begin + size] for begin in range(0, len(data), size)]
    return b"".join(bytes([kind, 3, 3]) + len(piece).to_bytes(2) + piece for piece in pieces)


class Negotiated:
    """A connection that has got as far as to a version."""

    def __init__(self, version: int = SSL.TLS1_3_VERSION) -> None:
        self.get_protocol_version = lambda: version


def refuses(stream: bytes, step: int = 1 << 20, version: int = SSL.TLS1_3_VERSION) -> bool:
    limit: Any = MessageLimit(Negotiated(version))  # type: ignore[arg-type]
    try:
        for begin in range(0, len(stream), step):
            limit.check(stream[begin : begin + step])
    except TLSHandshakeError:
        return True
    return False


@pytest.mark.parametrize("step", [1, 3, 4096, 1 << 20])
@pytest.mark.parametrize("size", [1, 2, 5, 16384])
def test_a_length_is_found_however_it_is_cut(size: int, step: int) -> None:
    good = message(HELLO, LONGEST, LONGEST) + message(CERTIFICATE, 0, 0) * 3
    assert not refuses(records(good * 2, size), step)
    for kind in (HELLO, CERTIFICATE):
        assert refuses(
            records(message(HELLO, 300, 300) + message(kind, LONGEST + 1, 0), size), step
        )


@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
def test_what_is_encrypted_is_not_taken_for_a_length(version: int) -> None:
    hello, change = records(message(HELLO, 300, 300)), records(b"\x01", kind=20)
    noise_of_keys = bytes([0xFF]) * 40
    # With TLS 1.2 behind change_cipher_spec, with TLS 1.3 in records of another type.
    kind = 22 if version == SSL.TLS1_2_VERSION else 23
    assert not refuses(hello + change + records(noise_of_keys, kind=kind), version=version)
    # With TLS 1.3 that message means nothing, and a second hello may follow it.
    second = records(message(HELLO, 120_000, 0))
    assert refuses(hello + change + second, version=SSL.TLS1_3_VERSION)


async def stranger(address: Any, flight: bytes) -> bytes:
    """Send *flight* to a server, and return what it answers until it closes."""

    def send() -> bytes:
        with socket.create_connection(address, timeout=SECONDS) as sock:
            answer = b""
            with contextlib.suppress(ConnectionError):
                sock.sendall(flight)
                while piece := sock.recv(65536):
                    answer += piece
            return answer

    answer: bytes = await in_thread(send)
    return answer


@pytest.mark.parametrize("way", ["socket", "endpoint", "inner"])
async def test_a_client_that_begins_too_long_a_hello_is_refused(
    way: str, authority: CertificateAuthority, log_lines: list[str]
) -> None:
    flight = records(message(HELLO, 120_000, 20_000))
    options, factory = authority.server_options(), Factory.forProtocol(Protocol)
    if way == "socket":
        async with await make_server_tls_socket("127.0.0.1", 0, options) as listener:
            accepting = listener.accept()
            accepting.addErrback(lambda _: None)
            answer = await stranger(listener.getsockname(), flight)
    else:
        inner = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1") if way == "inner" else None
        node = None if inner else "127.0.0.1"
        endpoint = server_endpoint(reactor, node, None if inner else 0, options, endpoint=inner)
        port = await endpoint.listen(factory)
        host = port.getHost()
        answer = await stranger((host.host, host.port), flight)
        await port.stopListening()
    # A reset may follow the alert at once, for what has not been read.
    assert answer in (ILLEGAL_PARAMETER, b"")
    assert [line for line in log_lines if "message of 120000 bytes, more than 32768" in line]


@pytest.mark.parametrize("way", ["socket", "inner"])
async def test_a_long_hello_of_a_real_client_is_taken(
    way: str, authority: CertificateAuthority
) -> None:
    """As those with many protocols or large keys."""
    names = tuple(f"{number:0250}" for number in range(80))
    client_options = authority.client_options(alpn=names)
    server_options = authority.server_options(alpn=names[-1])
    inner = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1") if way == "inner" else None
    endpoint = server_endpoint(
        reactor, None if inner else "127.0.0.1", None if inner else 0, server_options,
        endpoint=inner,
    )  # fmt: skip
    port = await endpoint.listen(Factory.forProtocol(Protocol))
    sock = await make_client_tls_socket("127.0.0.1", port.getHost().port, client_options)
    assert sock.selected_alpn == names[-1]
    sock.abort()
    await port.stopListening()


async def test_a_client_that_begins_too_long_a_certificate_is_refused(
    authority: CertificateAuthority, log_lines: list[str]
) -> None:
    """With TLS 1.2, where it is in plain text: nobody has been verified yet."""
    options = authority.server_options(
        trusted_certificates=authority.certificate, maximum_version="TLSv1.2"
    )
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl._create_unverified_context()
    client = context.wrap_bio(incoming, outgoing)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    flight = outgoing.read() + records(message(CERTIFICATE, 90_000, 10_000))
    async with await make_server_tls_socket("127.0.0.1", 0, options) as listener:
        accepting = listener.accept()
        accepting.addErrback(lambda _: None)
        await stranger(listener.getsockname(), flight)
    assert [line for line in log_lines if "message of 90000 bytes, more than 32768" in line]
