"""
The handshakes that a TLS server has under way, for sockets and endpoints alike.

A slow, mute or hostile peer costs its own connection and nothing else: each
handshake has a time limit, their number is bounded, and one that fails is
closed, counted and logged.
"""

from __future__ import annotations

import socket as _socket
from collections.abc import Callable, Sequence
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from .addresses import SocketAddress
from .readiness import Watch, poller_for
from .server_contexts import ServerContextFactory
from .tls import TLSDescriptor, handshake

__all__ = ["ServerHandshakes"]

MOST_HANDSHAKES: Final = 128

_log = Logger()


class ServerHandshakes:
    """
    Shakes hands with clients, many at a time.

    Attributes:
        failed: How many handshakes have failed.
    """

    def __init__(
        self,
        reactor: Any,
        factory: ServerContextFactory,
        done: Callable[[TLSDescriptor, Watch, SocketAddress], None],
        room: Callable[[], None],
        most: int = MOST_HANDSHAKES,
    ) -> None:
        """
        Shake hands as the records of *factory* say.

        Args:
            reactor: Where it happens.
            factory: Makes the connections.
            done: Called with each verified connection, which it owns then.
            room: Called when there is room again after `full`.
            most: How many at a time.
        """
        self._reactor = reactor
        self._factory = factory
        self._done = done
        self._room = room
        self._most = most
        self._running: dict[TLSDescriptor, Deferred[None]] = {}
        self._closed = False
        self.failed = 0

    @property
    def full(self) -> bool:
        """Whether no more may begin for now."""
        return len(self._running) >= self._most

    def begin(
        self, sock: _socket.socket, peer: SocketAddress, protocols: Sequence[bytes] = ()
    ) -> None:
        """Shake hands on *sock*, which this owns from now on, with *peer*."""
        try:
            descriptor = TLSDescriptor(sock, self._factory, protocols)
        except BaseException:
            sock.close()
            raise
        watch = poller_for(self._reactor).watch(sock.fileno())
        timeout = self._factory.options.handshake_timeout
        seconds = None if timeout is None else timeout.total_seconds()
        running = handshake(self._reactor, watch, descriptor, seconds)
        self._running[descriptor] = running

        def finished(result: Failure | None) -> None:
            was_full = self.full
            self._running.pop(descriptor, None)
            if isinstance(result, Failure):
                watch.close()
                descriptor.close()
                self._report(result, peer)
            else:
                self._done(descriptor, watch, peer)
            if was_full and not self._closed:
                self._room()

        running.addBoth(finished)
        running.addErrback(lambda f: _log.failure("a new connection could not be handed on", f))

    def _report(self, failure: Failure, peer: SocketAddress) -> None:
        if failure.check(CancelledError) is not None:
            return
        self.failed += 1
        _log.info(
            "TLS handshake with {peer} failed: {error}",
            peer=str(peer),
            error=str(failure.value),
        )

    def close(self) -> None:
        """Close every connection whose handshake is not done."""
        self._closed = True
        for running in list(self._running.values()):
            running.cancel()
