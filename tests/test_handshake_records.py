"""What a client's handshake takes of pyOpenSSL's inner parts, and what it does without them."""

from __future__ import annotations

import contextlib
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
from stream_helpers import (
    LONGEST,
    TLSStreams,
    in_thread,
    noise,
    python_server_context,
    read_exactly,
    soon,
)

from twisted_netsock import connections, make_client_tls_socket, tls
from twisted_netsock.testing import CertificateAuthority


def test_pyopenssl_has_the_parts_that_are_used() -> None:
    """When this fails, a server can hold up a client's reactor during the handshake."""
    assert connections.can_move()
    assert connections.can_pass_through()


async def test_without_them_a_handshake_runs_on_the_descriptor(
    authority: CertificateAuthority, monkeypatch: Any
) -> None:
    monkeypatch.setattr(tls, "can_move", lambda: False)
    async with TLSStreams(authority).pair() as (one, other):
        await one.sendall(b"hello")
        assert await soon(other.recv(10)) == b"hello"


async def test_without_them_data_takes_a_detour(
    authority: CertificateAuthority, monkeypatch: Any
) -> None:
    monkeypatch.setattr(connections, "_CAN_PASS_THROUGH", False)
    async with TLSStreams(authority).pair() as (one, other):
        sending = one.sendall(noise(1_000_000))
        assert await soon(other.recv(10)) == noise(1_000_000)[:10]
        buffer = bytearray(100)
        assert await soon(other.recv_into(buffer)) == len(buffer)
        assert bytes(buffer) == noise(1_000_000)[10:110]
        assert await read_exactly(other, 999_890) == noise(1_000_000)[110:]
        await soon(sending)


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
            connection.settimeout(LONGEST)
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
        listener.settimeout(LONGEST)
        serving = in_thread(serve)
        async with await make_client_tls_socket(
            *listener.getsockname(), authority.client_options()
        ) as sock:
            assert sock.tls_version == "TLSv1.2"
            assert await soon(sock.input_port.read_exactly(len(greeting))) == greeting
            if ends:
                assert await soon(sock.input_port.read(1)) == b""
        await serving


def send_in_pieces(connection: socket.socket, data: bytes, size: int) -> None:
    for begin in range(0, len(data), size):
        connection.sendall(data[begin : begin + size])
