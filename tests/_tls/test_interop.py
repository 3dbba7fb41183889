"""TLS sockets against those of the standard library, which run in threads."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import pytest

from tests.support.streams import (
    PythonPeers,
    finished,
    in_thread,
    noise,
    read_exactly,
    read_to_end,
    soon,
    together,
)
from twisted_netsock.testing import CertificateAuthority

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
SIDES = ["client", "server"]

pytestmark = [
    pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name),
    pytest.mark.parametrize("side", SIDES),
]


@pytest.fixture
def peers(
    authority: CertificateAuthority, side: str, version: ssl.TLSVersion, tmp_path: Path
) -> PythonPeers:
    return PythonPeers(authority, side, version, tmp_path)


def receive_to_end(peer: ssl.SSLSocket) -> bytes:
    """Receive until close_notify; anything else raises."""
    data = bytearray()
    while piece := peer.recv(65536):
        data += piece
    return bytes(data)


async def test_they_agree_on_what_was_negotiated(
    peers: PythonPeers, version: ssl.TLSVersion
) -> None:
    async with peers.meet("http/1.1", alpn=["h2", "http/1.1"]) as (ours, theirs):
        assert ours.tls_version == theirs.version() == version.name.replace("_", ".")
        assert ours.cipher == theirs.cipher()[0]
        assert ours.selected_alpn == theirs.selected_alpn_protocol() == "http/1.1"


async def test_much_passes_both_ways(peers: PythonPeers) -> None:
    there, back = noise(1_000_000, 1), noise(1_000_000, 2)
    async with peers.meet() as (ours, theirs):

        def answer() -> bytes:
            got = bytearray()
            while len(got) < len(there):
                got += theirs.recv(65536)
            theirs.sendall(back)
            return bytes(got)

        answering = in_thread(answer)
        _, got_back = await together(finished(ours.sendall(there)), read_exactly(ours, len(back)))
        assert got_back == back
        assert await soon(answering) == there


async def test_we_half_close_and_still_receive(peers: PythonPeers) -> None:
    async with peers.meet() as (ours, theirs):

        def answer() -> bytes:
            got = receive_to_end(theirs)
            theirs.sendall(b"the answer to " + got)
            theirs.unwrap().close()
            return got

        answering = in_thread(answer)
        await ours.sendall(b"a question")
        await soon(ours.shutdown(socket.SHUT_WR))
        assert await read_to_end(ours) == b"the answer to a question"
        assert await soon(answering) == b"a question"


async def test_our_close_is_a_proper_end_to_them(peers: PythonPeers) -> None:
    data = noise(300_000)
    async with peers.meet() as (ours, theirs):

        def receive() -> bytes:
            got = receive_to_end(theirs)
            theirs.unwrap().close()
            return got

        receiving = in_thread(receive)
        await soon(ours.sendall(data))
        assert await soon(ours.close()) is None
        assert await soon(receiving) == data


async def test_their_close_is_a_proper_end_to_us(peers: PythonPeers) -> None:
    async with peers.meet() as (ours, theirs):

        def send_and_close() -> None:
            theirs.sendall(b"last words")
            theirs.unwrap().close()

        closing = in_thread(send_and_close)
        assert await read_to_end(ours) == b"last words"
        await soon(ours.close())
        await soon(closing)
