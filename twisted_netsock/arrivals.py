"""
What connections go through before an application sees them, on every kind of server.

A PROXY header is read where the options require one, and then TLS shakes hands
where it is TLS. A slow, mute or hostile peer costs its own connection and
nothing else: both together have one time limit, the number of connections on
the way is bounded, and one that fails is closed, counted and logged.
"""

from __future__ import annotations

import socket as _socket
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from .addresses import SocketAddress
from .descriptors import Descriptor, PlainDescriptor
from .errors import NetsockError
from .options import SocketOptions, TLSSocketOptions
from .proxy_headers import ProxyHeader
from .proxying import receive_header
from .readiness import Watch, poller_for

__all__ = ["Arrival", "Arrivals"]

MOST_ARRIVALS: Final = 1024
"""Mute peers hold these places for the whole `handshake_timeout`, so there are many."""

_PLAIN_SECONDS: Final = 10.0
"""Time for the PROXY header on plain servers; on TLS `handshake_timeout` covers it."""

_log = Logger()


class Arrival:
    """
    A connection on its way to the application.

    Attributes:
        descriptor: Owned by `Arrivals` until the connection is delivered; TLS from its
            handshake on.
        watch: Of *descriptor*.
        peer: Whom it comes from: the header's source, where it tells one.
        header: The PROXY header, or `None` where none was required.
        shaking: The header is done, and TLS shakes hands.
    """

    __slots__ = ("_end", "_reactor", "_real", "descriptor", "header", "peer", "shaking", "watch")

    def __init__(
        self,
        reactor: Any,
        descriptor: Descriptor,
        watch: Watch,
        peer: SocketAddress,
        seconds: float | None,
    ) -> None:
        self._reactor = reactor
        self._real = peer
        self._end = None if seconds is None else reactor.seconds() + seconds
        self.descriptor = descriptor
        self.watch = watch
        self.peer = peer
        self.header: ProxyHeader | None = None
        self.shaking = False

    def remaining(self) -> float | None:
        """Return the seconds that are left for what is to be done; `None`: no limit."""
        return None if self._end is None else max(0.0, self._end - self._reactor.seconds())

    def tell(self, header: ProxyHeader) -> None:
        """Note what the header tells."""
        self.header = header
        if header.source is not None:
            self.peer = header.source

    def __str__(self) -> str:
        """Name the peer in the log, and through whom it came."""
        # The header's source may be a path of any bytes, line breaks among them.
        peer = str(self.peer).encode("unicode_escape").decode("ascii")
        return peer if self.peer is self._real else f"{peer} through {self._real}"


Secure = Callable[[Arrival], "Deferred[Descriptor]"]
"""Shakes hands; see `twisted_netsock.handshakes`. What it fails with is reported."""


class Arrivals:
    """
    Prepares connections for the application, many at a time.

    Attributes:
        failed: How many have failed on the way.
        most: How many may be on the way at a time; 1024 unless changed.
    """

    def __init__(
        self,
        reactor: Any,
        options: SocketOptions,
        deliver: Callable[[Arrival, Descriptor], None],
        room: Callable[[], None],
        *,
        secure: Secure | None = None,
        admit: Callable[[SocketAddress], bool] | None = None,
        gone: Callable[[], None] | None = None,
    ) -> None:
        """
        Prepare connections as *options* say.

        Args:
            reactor: Where it happens.
            options: The server's record; of several, the first.
            deliver: Called with each connection that is ready, and its
                descriptor, which it owns then.
            room: Called when there is room again after `full`.
            secure: Shakes hands, on TLS.
            admit: Asked about the peer of each, which a PROXY header may have
                told; one that is not admitted is closed.
            gone: Called for each connection that is closed on the way.
        """
        self._reactor = reactor
        self._version = options.proxy_protocol
        self._deliver = deliver
        self._room = room
        self._secure = secure
        self._admit = admit
        self._gone = gone
        self.most = MOST_ARRIVALS
        self._running: dict[Arrival, Deferred[Any]] = {}
        self._closed = False
        self.failed = 0
        if isinstance(options, TLSSocketOptions):
            limit = options.handshake_timeout
            self._seconds = None if limit is None else limit.total_seconds()
        else:
            self._seconds = _PLAIN_SECONDS

    @property
    def full(self) -> bool:
        """Whether no more may begin for now."""
        return len(self._running) >= self.most

    def begin(self, sock: _socket.socket, peer: SocketAddress) -> None:
        """Prepare *sock*, which this owns from now on, and which *peer* has connected."""
        watch = poller_for(self._reactor).watch(sock.fileno())
        arrival = Arrival(self._reactor, PlainDescriptor(sock), watch, peer, self._seconds)
        running: Deferred[Any]
        if self._version is None:
            running = self._shake(arrival)
        else:
            running = receive_header(
                self._reactor, watch, sock, self._version, arrival.remaining()
            ).addCallback(self._greeted, arrival)
        self._running[arrival] = running
        running.addBoth(self._finished, arrival)
        running.addErrback(_not_handed_on)

    def _greeted(self, header: ProxyHeader, arrival: Arrival) -> Deferred[Descriptor]:
        arrival.tell(header)
        return self._shake(arrival)

    def _shake(self, arrival: Arrival) -> Deferred[Descriptor]:
        try:
            if self._admit is not None and not self._admit(arrival.peer):
                # Who does not admit it tells why.
                return fail(CancelledError())
            if self._secure is None:
                return succeed(arrival.descriptor)
            arrival.shaking = True
            return self._secure(arrival)
        except BaseException:  # noqa: BLE001 - it costs this connection and no other
            return fail()

    def _finished(self, result: Descriptor | Failure, arrival: Arrival) -> None:
        was_full = self.full
        self._running.pop(arrival, None)
        try:
            if self._closed and not isinstance(result, Failure):
                # By what its handshake called.
                result = Failure(CancelledError())
            if isinstance(result, Failure):
                arrival.watch.close()
                arrival.descriptor.close()
                self._report(arrival, result)
                if self._gone is not None:
                    self._gone()
            else:
                self._deliver(arrival, result)
        finally:
            # Whatever the others raise: nothing would be accepted any more.
            if was_full and not self._closed:
                self._room()

    def _report(self, arrival: Arrival, failure: Failure) -> None:
        if failure.check(CancelledError) is not None:
            return
        self.failed += 1
        if failure.check(NetsockError) is None:
            _log.failure("a new connection could not be prepared", failure)
            return
        told = (
            "TLS handshake with {peer} failed: {error}"
            if arrival.shaking
            else "connection from {peer} refused: {error}"
        )
        _log.info(told, peer=str(arrival), error=str(failure.value))

    def close(self) -> None:
        """Close every connection that is not delivered."""
        self._closed = True
        for running in list(self._running.values()):
            running.cancel()


def _not_handed_on(failure: Failure) -> None:
    _log.failure("a new connection could not be handed on", failure)
