"""
What OpenSSL notes of one connection that failed does no harm to another.

It keeps a queue of errors for each thread, and before version 4 takes what is left there
for the error of whichever connection it is asked about next.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest
from OpenSSL._util import lib

from tests.support.faults import Flights
from tests.support.loopback import LOOPBACK, reset
from tests.support.peers import PEER_SECONDS
from tests.support.protocols import client_context
from tests.support.streams import finished, in_thread, noise, soon, together, turns
from twisted_netsock import SocketError, make_server_tls_socket
from twisted_netsock.testing import CertificateAuthority


class Peer:
    """A client whose socket the test has in hand."""

    def __init__(self, port: int, authority: CertificateAuthority) -> None:
        self._tls = Flights(client_context(authority), server=False)
        self.sock = socket.create_connection((LOOPBACK, port), PEER_SECONDS)
        self.sock.sendall(self._tls.after(b""))
        while not self._tls.done:
            self.sock.sendall(self._tls.after(self.sock.recv(65536)))

    def send(self, data: bytes) -> None:
        self.sock.sendall(self._tls.records(data))


async def fail_to_receive(ours: Any, peer: Peer) -> None:
    receiving = ours.recv(1)
    reset(peer.sock)
    await soon(receiving)


async def fail_to_send(ours: Any, peer: Peer) -> None:
    reset(peer.sock)
    for _ in range(100):
        await soon(ours.sendall(noise(100_000)))


async def fail_to_end(ours: Any, peer: Peer) -> None:
    sending = ours.sendall(noise(10_000_000))
    await turns()
    reset(peer.sock)
    await soon(sending)


FAILING: dict[str, Callable[..., Any]] = {
    "receiving": fail_to_receive,
    "sending": fail_to_send,
    "a send that waits": fail_to_end,
}


@pytest.mark.parametrize("how", FAILING)
async def test_a_connection_that_fails_does_no_harm_to_others(
    how: str, authority: CertificateAuthority
) -> None:
    async with await make_server_tls_socket(LOOPBACK, 0, authority.server_options()) as listener:
        port = listener.getsockname().port
        (dying, its_peer), (ours, peer) = [
            await together(finished(listener.accept()), finished(in_thread(Peer, port, authority)))
            for _ in range(2)
        ]
        with pytest.raises(SocketError):
            await FAILING[how](dying, its_peer)
        assert lib.ERR_peek_error() == 0
        # It finds nothing there, and has to wait.
        receiving = ours.recv(4)
        await turns()
        assert not receiving.called
        peer.send(b"data")
        assert await soon(receiving) == b"data"
        await soon(ours.sendall(b"fine"))
        dying.abort()
        ours.abort()
        peer.sock.close()
