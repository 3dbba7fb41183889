"""A connection that has failed remembers why, and nothing of what was to be sent."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from twisted.internet.protocol import Factory, Protocol

from tests.support.loopback import LOOPBACK
from tests.support.protocols import Kind
from tests.support.streams import in_thread, soon, turns
from tests.support.threads import no_descriptors
from tests.support.ways_in import Inner, over
from twisted_netsock import (
    SocketError,
    blocking,
    client_endpoint,
    make_client_socket,
    make_client_tls_socket,
    make_server_socket,
    make_server_tls_socket,
)
from twisted_netsock.errors import SocketConnectionLostError, TLSError, unraised

SIZE = 20_000_000
"""More than the kernel takes of a peer that does not read."""


@pytest.fixture
def kept() -> Iterator[Callable[[], int]]:
    """How many bytes are held that were not when the test began."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]

        def measure() -> int:
            gc.collect()
            return tracemalloc.get_traced_memory()[0] - before

        yield measure
    finally:
        tracemalloc.stop()


@asynccontextmanager
async def listening(kind: Kind) -> AsyncIterator[Any]:
    make: Any = make_server_tls_socket if kind.tls else make_server_socket
    options = (kind.server(),) if kind.tls else ()
    async with await make(LOOPBACK, 0, *options) as listener:
        yield listener


class Sender(Protocol):
    """Keeps what a protocol may keep: its transport, and why it was lost."""

    reason: Any = None

    def connectionLost(self, reason: Any) -> None:
        self.reason = reason


async def send_until_it_fails(sock: Any, how: str, peer: Any) -> None:
    """Have the peer abort while *sock* sends, and try again; nothing of it is left here."""
    data = bytearray(SIZE)

    def begin() -> Any:
        return sock.output_port.write(data) if how == "port" else sock.sendall(data)

    sending = begin()
    await turns()
    assert not sending.called
    peer.abort()
    for _ in range(3):
        try:
            await soon(sending)
        except SocketError:
            pass
        else:
            raise AssertionError("it was sent")
        sending = begin()
    sending.addErrback(lambda _: None)
    # What is resumed by a failure runs within its handler, until it waits.
    await turns()


@pytest.mark.parametrize("how", ["sendall", "port"])
async def test_a_socket_keeps_nothing_of_a_failed_send(how, kind, kept):
    async with listening(kind) as listener:
        accepting = listener.accept()
        make: Any = make_client_tls_socket if kind.tls else make_client_socket
        port = listener.getsockname()[1]
        sock = await make(LOOPBACK, port, *((kind.client(),) if kind.tls else ()))
        await send_until_it_fails(sock, how, await accepting)
        assert kept() < SIZE / 4
        if how == "port":
            assert sock.output_port.pending > 0, "it was never sent"
            with pytest.raises(SocketError):
                await soon(sock.output_port.flush())
        await sock.close()


@pytest.mark.parametrize("late", [False, True], ids=["queued", "written after"])
async def test_a_transport_and_its_reason_keep_nothing_either(late, kind, kept):
    async with listening(kind) as listener:
        accepting = listener.accept()
        reactor: Any = listener._reactor
        endpoint = client_endpoint(reactor, LOOPBACK, listener.getsockname()[1], kind.client())
        protocol: Any = await endpoint.connect(Factory.forProtocol(Sender))
        peer = await accepting
        if not late:
            protocol.transport.write(bytearray(SIZE))
            await turns()
        else:
            protocol.transport.pauseProducing()
        peer.abort()
        await turns()
        if late:
            for _ in range(3):
                protocol.transport.write(bytearray(SIZE))
            protocol.transport.resumeProducing()
        for _ in range(500):
            await turns()
            if protocol.reason is not None:
                break
        assert protocol.reason is not None
        assert kept() < SIZE / 4


@pytest.mark.parametrize("name", ["netsock", "tcp"])
async def test_nor_does_one_over_an_inner_endpoint(name, authority, tmp_path, kept):
    kind = Kind(authority, tls=True)
    async with over(Inner(name, authority, tmp_path), kind) as pair:
        transport = pair.client.transport
        pair.server.transport.pauseProducing()
        transport.write(bytearray(SIZE))
        await turns()
        pair.server.transport.abortConnection()
        await pair.client.loses()
        await turns()
        assert kept() < SIZE / 4
        assert transport is not None


async def test_a_blocking_socket_keeps_nothing_of_a_failed_send(kind, kept):
    async with listening(kind) as listener:
        accepting = listener.accept()
        make: Any = blocking.make_client_tls_socket if kind.tls else blocking.make_client_socket
        port = listener.getsockname()[1]

        sock = await in_thread(make, LOOPBACK, port, kind.client())
        peer = await accepting

        def send() -> None:
            data = bytearray(SIZE)
            for _ in range(3):
                with pytest.raises(SocketError):
                    sock.sendall(data)

        sending = in_thread(send)
        await turns(20)
        peer.abort()
        await soon(sending)
        del sending
        assert kept() < SIZE / 4
        await in_thread(sock.abort)
    await no_descriptors()


def test_an_error_that_is_kept_is_like_the_one_that_was_raised():
    def send(data: object) -> None:
        try:
            int("a number")
        except ValueError:
            raise TLSError("bad record mac", "decryption failed") from None

    with pytest.raises(TLSError) as caught:
        send("a secret")
    error = caught.value
    error.socket = "a socket"  # type: ignore[assignment]
    again = unraised(error)
    assert again is not error
    assert type(again) is TLSError
    assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))
    assert again.__traceback__ is again.__context__ is again.__cause__ is None
    lost = SocketConnectionLostError(errno=104, strerror="reset")
    assert (unraised(lost).errno, str(unraised(lost))) == (104, str(lost))
