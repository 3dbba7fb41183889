"""What fails in one direction of TLS fails in the other, and whoever waits there hears of it."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.support.faults import GARBAGE, Flights
from tests.support.peers import PEER_SECONDS
from tests.support.protocols import client_context
from tests.support.streams import fill, in_thread, noise, soon, turns
from tests.support.threads import no_descriptors
from twisted_netsock import Socket, TLSError, blocking, start_tls
from twisted_netsock.testing import CertificateAuthority

NO_TLS = GARBAGE["forged records"]


def perform_handshake(sock: socket.socket, authority: CertificateAuthority) -> None:
    """Be the client on *sock*; what comes after the handshake is never read."""
    sock.settimeout(PEER_SECONDS)
    client = Flights(client_context(authority), server=False)
    sock.sendall(client.after(b""))
    while not client.done:
        sock.sendall(client.after(sock.recv(65536)))


@asynccontextmanager
async def stuck(authority: CertificateAuthority) -> AsyncIterator[tuple[Any, socket.socket]]:
    """Connect a socket of ours with a peer that does not read; the kernel takes what it takes."""
    one, peer = socket.socketpair()
    with peer:
        shaking = in_thread(perform_handshake, peer, authority)
        ours = await soon(start_tls(Socket.from_socket(one), authority.server_options()))
        await shaking
        try:
            yield ours, peer
        finally:
            ours.abort()


async def test_a_send_whose_last_piece_waits_fails_with_the_connection(
    authority: CertificateAuthority,
) -> None:
    """The piece is lost: it must not count as sent."""
    async with stuck(authority) as (ours, peer):
        _, sending = await fill(ours, noise(16384))
        receiving = ours.recv(1)
        peer.sendall(NO_TLS)
        for waiting in (receiving, sending):
            with pytest.raises(TLSError):
                await soon(waiting)


@pytest.mark.parametrize("how", ["parked", "at once"])
async def test_who_waits_to_send_hears_of_a_receive_that_fails(
    how: str, authority: CertificateAuthority
) -> None:
    async with stuck(authority) as (ours, peer):
        sending = ours.sendall(noise(1_000_000))
        await turns()
        if how == "parked":
            receiving = ours.recv(1)
            peer.sendall(NO_TLS)
        else:
            peer.sendall(NO_TLS)
            await turns()
            receiving = ours.recv(1)
        for waiting in (receiving, sending):
            with pytest.raises(TLSError):
                await soon(waiting)


async def test_a_thread_that_waits_to_send_hears_of_a_receive_that_fails(
    authority: CertificateAuthority,
) -> None:
    def connect(sock: socket.socket) -> Any:
        plain = blocking.BlockingSocket.from_socket(sock)
        return blocking.start_tls(plain, authority.server_options())

    def call(name: str, argument: object) -> None:
        with pytest.raises(TLSError):
            getattr(ours, name)(argument)

    one, peer = socket.socketpair()
    with peer:
        shaking = in_thread(perform_handshake, peer, authority)
        ours = await soon(in_thread(connect, one))
        await shaking
        sending = in_thread(call, "sendall", noise(1_000_000))
        receiving = in_thread(call, "recv", 1)
        await turns(20)
        assert not sending.called
        peer.sendall(NO_TLS)
        await soon(receiving)
        await soon(sending)
        await in_thread(ours.abort)
    await no_descriptors()
