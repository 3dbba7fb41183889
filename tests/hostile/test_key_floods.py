"""
Requests for new keys without end, by a peer that reads none of the answers.

Each request is answered (RFC 8446, section 4.6.3), and each answer waits where the peer
does not read: in the kernel, and nowhere else.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor

from tests.support.clocks import turns, until
from tests.support.loopback import LONGEST, LOOPBACK
from tests.support.peers import (
    KEY_UPDATE_REQUESTED,
    OpenSSLError,
    OpenSSLPeer,
    meet_openssl,
    needs_libssl,
)
from tests.support.protocols import Protocols, Recorder, listening
from tests.support.streams import in_thread, noise, soon
from twisted_netsock import (
    SocketReadTimeoutError,
    SocketWriteTimeoutError,
    TLSError,
    client_endpoint,
)
from twisted_netsock.testing import CertificateAuthority

pytestmark = [pytest.mark.long, needs_libssl]

SIDES = pytest.mark.parametrize("side", ["client", "server"])

SMALL = 16384
BUFFERS = [
    (socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL),
    (socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL),
]
MOST = 8 * SMALL
"""Bytes of answers: what kernels hold of both sides, which count what they need themselves."""

ENDLESS = 1_000_000
SOON = timedelta(seconds=0.5)


def shrink(*socks: Any) -> None:
    for sock in socks:
        for option in BUFFERS:
            sock.setsockopt(*option)


def flood(peer: OpenSSLPeer, count: int = ENDLESS) -> int:
    """Request new keys *count* times, or until nobody listens; return how often."""
    for number in range(count):
        try:
            peer.update_keys(KEY_UPDATE_REQUESTED)
        except OpenSSLError:
            return number
    return count


@asynccontextmanager
async def flooding(peer: OpenSSLPeer) -> AsyncIterator[None]:
    """Have *peer* request new keys until the end of the block, or until nobody listens."""
    running = in_thread(flood, peer)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            peer.plain.shutdown(socket.SHUT_RDWR)
        assert await soon(running) < ENDLESS


def unread(peer: OpenSSLPeer) -> int:
    """Return how many bytes the peer has not read."""
    answer = fcntl.ioctl(peer.plain, termios.FIONREAD, bytes(4))
    found: int = struct.unpack("i", answer)[0]
    return found


@SIDES
class TestSockets:
    async def test_a_receive_ends_by_its_timeout(
        self, authority: CertificateAuthority, tmp_path: Path, side: str
    ) -> None:
        async with meet_openssl(authority, side, tmp_path) as (ours, peer):
            shrink(ours, peer.plain)
            ours.read_timeout = SOON
            receiving = ours.recv(100)
            async with flooding(peer):
                # It fires at all only if the reactor has its turns.
                with pytest.raises(SocketReadTimeoutError):
                    await soon(receiving)
                assert 0 < unread(peer) < MOST

    async def test_a_send_ends_by_its_timeout_or_with_the_connection(
        self, authority: CertificateAuthority, tmp_path: Path, side: str
    ) -> None:
        """OpenSSL ends a connection that is to answer in the middle of a record of data."""
        async with meet_openssl(authority, side, tmp_path) as (ours, peer):
            shrink(ours, peer.plain)
            ours.read_timeout = ours.write_timeout = SOON
            receiving = ours.recv(100)
            async with flooding(peer):
                await full(peer)
                with pytest.raises((SocketWriteTimeoutError, TLSError)):
                    await soon(ours.sendall(noise(100_000)))
                with pytest.raises((SocketReadTimeoutError, TLSError)):
                    await soon(receiving)
                assert unread(peer) < MOST

    async def test_so_does_one_that_waited_before(
        self, authority: CertificateAuthority, tmp_path: Path, side: str
    ) -> None:
        async with meet_openssl(authority, side, tmp_path) as (ours, peer):
            shrink(ours, peer.plain)
            ours.read_timeout = ours.write_timeout = SOON
            sending = ours.sendall(noise(1_000_000))
            await full(peer)
            before = unread(peer)
            receiving = ours.recv(100)
            async with flooding(peer):
                with pytest.raises((SocketWriteTimeoutError, TLSError)):
                    await soon(sending)
                with pytest.raises((SocketReadTimeoutError, TLSError)):
                    await soon(receiving)
                assert unread(peer) - before < MOST


async def full(peer: OpenSSLPeer) -> None:
    """Wait until answers come to the peer no more."""
    seen = [-1]

    def stands() -> bool:
        now = unread(peer)
        still = now == seen[0] > SMALL // 2
        seen[0] = now
        return still

    for _ in range(3):
        await until(stands)
        await turns(20)


# Endpoints


@asynccontextmanager
async def meet(
    authority: CertificateAuthority, side: str, directory: Path, **fields: Any
) -> AsyncIterator[tuple[Recorder, OpenSSLPeer]]:
    """Connect a protocol of ours, on *side*, with an `OpenSSLPeer`; little fits between them."""
    factory = Protocols(Recorder)
    if side == "server":
        options = authority.server_options(socket_options=BUFFERS, **fields)
        async with listening(options, factory) as port:
            where = (LOOPBACK, port.getHost().port)

            def dial() -> OpenSSLPeer:
                sock = socket.socket()
                shrink(sock)
                sock.connect(where)
                return OpenSSLPeer(sock, "TLSv1.3", None)

            with await in_thread(dial) as peer:
                yield await factory.connected(), peer
        return
    identity = directory / "identity.pem"
    identity.write_bytes(authority.issue(LOOPBACK).pem)
    options = authority.client_options(socket_options=BUFFERS, **fields)
    with socket.create_server((LOOPBACK, 0)) as listener:
        shrink(listener)
        listener.settimeout(LONGEST)
        answering = in_thread(lambda: OpenSSLPeer(listener.accept()[0], "TLSv1.3", identity))
        endpoint = client_endpoint(reactor, *listener.getsockname(), options)
        protocol = await soon(endpoint.connect(factory))
        with await answering as peer:
            yield protocol, peer
        await factory.all_lost()


@SIDES
class TestEndpoints:
    async def test_a_protocol_that_waits_loses_its_connection_by_the_timeout(
        self, authority: CertificateAuthority, tmp_path: Path, side: str
    ) -> None:
        async with (
            meet(authority, side, tmp_path, read_timeout=SOON) as (protocol, peer),
            flooding(peer),
        ):
            assert isinstance(await protocol.loses(), SocketReadTimeoutError)
            assert 0 < unread(peer) < MOST

    async def test_a_protocol_that_writes_is_held_up_and_loses_its_connection(
        self, authority: CertificateAuthority, tmp_path: Path, side: str
    ) -> None:
        async with (
            meet(authority, side, tmp_path, write_timeout=SOON) as (protocol, peer),
            flooding(peer),
        ):
            await full(peer)
            protocol.transport.write(noise(100_000))
            assert isinstance(await protocol.loses(), (SocketWriteTimeoutError, TLSError))
            assert unread(peer) < MOST
