"""What tests of accepting share: a listener, connections to it, and an acceptor of them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from twisted.internet.task import Clock

from tests.support.clocks import the_reactor
from twisted_netsock import SocketAddress
from twisted_netsock._io.poller import poller_for
from twisted_netsock._net.accept import Acceptor


class Accepting:
    """An acceptor of connections to a listening socket, and what it hands on."""

    def __init__(self, listener: Any, on_delivery: Callable[[], object]) -> None:
        self.clock = Clock()
        self.watch = poller_for(the_reactor()).watch(listener.fileno())
        self.delivered: list[tuple[socket.socket, SocketAddress]] = []
        self.lost: list[Exception] = []
        self._on_delivery = on_delivery
        self.acceptor = Acceptor(self.clock, self.watch, listener, self._deliver, self.lost.append)

    def _deliver(self, connection: socket.socket, peer: SocketAddress) -> None:
        self.delivered.append((connection, peer))
        self._on_delivery()


@contextmanager
def accepting(
    listener: Any, on_delivery: Callable[[], object] = lambda: None
) -> Iterator[Accepting]:
    """Give an acceptor that is closed at the end, and what it accepted with it."""
    found = Accepting(listener, on_delivery)
    try:
        yield found
    finally:
        found.acceptor.stop()
        found.watch.close()
        for connection, _ in found.delivered:
            connection.close()
    assert found.clock.getDelayedCalls() == []


@contextmanager
def listening() -> Iterator[socket.socket]:
    """Give a listening socket."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as sock:
        sock.setblocking(False)
        yield sock


@contextmanager
def dialling(listener: socket.socket) -> Iterator[Callable[[], socket.socket]]:
    """Give what makes connections to *listener*, which the kernel completes by itself."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(socket.create_connection(listener.getsockname()))
