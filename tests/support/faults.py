"""
Peers that misbehave at one stage, and clients that do not.

Each is a thread with a raw socket, so that it can stop, reset or talk nonsense at any byte.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.loopback import LOOPBACK, reset
from tests.support.peers import PEER_SECONDS
from tests.support.streams import in_thread

QUESTION = b"is anybody there?"
ANSWER = b"yes, what is it about?"
GARBAGE = {
    "plain HTTP": b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n" * 40,
    "noise": bytes(range(7, 256)) * 8,
    "forged records": (b"\x17\x03\x03\x00\x20" + bytes(32)) * 50,
}
"""Each is longer than what a half message of a handshake lacks."""

FAULTS = ("silence", "end", "reset", *GARBAGE)


def misbehave(sock: socket.socket, fault: str, over: threading.Event) -> None:
    """Do *fault* on *sock*, and then nothing until the test is *over*."""
    with contextlib.suppress(OSError):
        if fault == "reset":
            reset(sock)
            return
        if fault == "end":
            sock.shutdown(socket.SHUT_WR)
        elif fault != "silence":
            sock.sendall(GARBAGE[fault])
    over.wait(PEER_SECONDS)


def raw(tls: ssl.SSLSocket) -> socket.socket:
    """Take the socket out of *tls*, which says nothing."""
    return socket.socket(fileno=tls.detach())


class Flights:
    """
    One side of TLS in memory: what it says is sent as the test likes.

    Attributes:
        done: Its part of the handshake is.
        pending: What it has received.
    """

    def __init__(self, context: ssl.SSLContext, *, server: bool) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming,
            self._outgoing,
            server_side=server,
            server_hostname=None if server else "localhost",
        )
        self.done = False
        self.pending = b""

    def after(self, data: bytes) -> bytes:
        """Take what the peer has said, and return what there is to answer."""
        self._incoming.write(data)
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            if not self.done:
                self._tls.do_handshake()
                self.done = True
            while piece := self._tls.read(65536):
                self.pending += piece
        return self._outgoing.read()

    def records(self, data: bytes, *, end: bool = False) -> bytes:
        """Return *data* as the peer is to get it, and close_notify if it is the *end*."""
        self._tls.write(data)
        if end:
            with contextlib.suppress(ssl.SSLWantReadError):
                self._tls.unwrap()
        return self._outgoing.read()


# Servers that misbehave, for clients of ours


def bad_server(
    listener: socket.socket,
    stage: str,
    fault: str,
    context: ssl.SSLContext | None,
    over: threading.Event,
) -> None:
    """Take one connection, and do *fault* at *stage*; without *context* in plain text."""
    listener.settimeout(PEER_SECONDS)
    sock, _ = listener.accept()
    with contextlib.ExitStack() as stack:
        stack.enter_context(sock)
        sock.settimeout(PEER_SECONDS)
        if stage == "before ClientHello":
            pass
        elif stage == "before ServerHello":
            sock.recv(65536)
        elif stage == "in the handshake":
            assert context is not None
            flight = Flights(context, server=True).after(sock.recv(65536))
            sock.sendall(flight[: len(flight) // 2])
        elif context is None:
            _await_question(sock, stage)
        else:
            tls = stack.enter_context(context.wrap_socket(sock, server_side=True))
            _await_question(tls, stage)
            sock = stack.enter_context(raw(tls))
        misbehave(sock, fault, over)


def _await_question(sock: socket.socket, stage: str) -> None:
    got = b""
    while len(got) < len(QUESTION):
        piece = sock.recv(65536)
        assert piece, "the client has gone"
        got += piece
    if stage == "half-closed":
        assert sock.recv(1) == b""


@asynccontextmanager
async def misbehaving_server(
    stage: str, fault: str, context: ssl.SSLContext | None
) -> AsyncIterator[int]:
    """Run a `bad_server`, and yield its port."""
    over = threading.Event()
    with socket.create_server((LOOPBACK, 0)) as listener:
        served = in_thread(bad_server, listener, stage, fault, context, over)
        try:
            yield listener.getsockname()[1]
        finally:
            over.set()
            await served


# Clients, good and bad


def good_client(port: int, context: ssl.SSLContext | None, header: bytes = b"") -> bytes:
    """Say *header*, ask, end in order, and return the answer."""
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.create_connection((LOOPBACK, port), PEER_SECONDS))
        sock.sendall(header)
        if context is not None:
            sock = context.wrap_socket(
                sock, server_hostname="localhost", suppress_ragged_eofs=False
            )
            stack.callback(sock.close)
        sock.sendall(QUESTION)
        got = b""
        while len(got) < len(ANSWER):
            piece = sock.recv(100)
            assert piece, "the server has gone"
            got += piece
        if isinstance(sock, ssl.SSLSocket):
            sock = sock.unwrap()
            stack.callback(sock.close)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(100):
            pass
        return got


def reached(
    stack: contextlib.ExitStack,
    port: int,
    stage: str,
    context: ssl.SSLContext | None,
    header: bytes = b"",
) -> socket.socket:
    """Connect, say *header*, and get to *stage*; without *context* in plain text."""
    sock = stack.enter_context(socket.create_connection((LOOPBACK, port), PEER_SECONDS))
    sock.sendall(header)
    if stage == "connected":
        if context is not None:
            sock = stack.enter_context(context.wrap_socket(sock, server_hostname="localhost"))
        sock.sendall(QUESTION)
        assert sock.recv(100) == ANSWER
        if isinstance(sock, ssl.SSLSocket):
            sock = stack.enter_context(raw(sock))
    elif stage != "before ClientHello":
        assert context is not None
        client = Flights(context, server=False)
        hello = client.after(b"")
        sock.sendall(hello[: len(hello) // 2] if stage == "in ClientHello" else hello)
        if stage == "in the handshake":
            finish = b""
            while not finish:
                finish = client.after(sock.recv(65536))
            sock.sendall(finish[: len(finish) // 2])
    return sock


@asynccontextmanager
async def misbehaving_client(
    port: int, stage: str, fault: str, context: ssl.SSLContext | None, header: bytes = b""
) -> AsyncIterator[None]:
    """Run a client that does *fault* at *stage*, and then nothing more."""
    over = threading.Event()

    def run() -> None:
        with contextlib.ExitStack() as stack:
            misbehave(reached(stack, port, stage, context, header), fault, over)

    running = in_thread(run)
    try:
        yield
    finally:
        over.set()
        await running
