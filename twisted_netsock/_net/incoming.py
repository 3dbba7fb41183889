"""
Incoming connections, from accept(2) to the application, on every kind of server.

The PROXY header is read where the options require one, then the TLS handshake is
performed where the server speaks TLS. A slow, mute or hostile peer costs its own
connection and nothing else: header and handshake share one time limit, and the number
of incoming connections is bounded, in all and for each address. A connection that fails
is closed, counted and logged.
"""

from __future__ import annotations

import socket as _socket
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Final

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.interfaces import ITransport
from twisted.logger import Logger
from twisted.python.failure import Failure

from .._io.descriptor import Descriptor, PlainDescriptor
from .._io.interfaces import Reactor
from .._io.poller import Watch, poller_for
from .._proxy_protocol.header import ProxyHeader
from .._proxy_protocol.wire import receive_header
from .._text import FailureLog, printable
from .._tls.handshake import handshake
from .._tls.in_memory import tls_over
from .._tls.server import ServerContextFactory
from .._validation import in_seconds
from ..addresses import SocketAddress, network_of
from ..errors import NetsockError
from ..options import SocketOptions, TLSSocketOptions
from .deadline import Deadline
from .happy_eyeballs import Established
from .inner import address_of

__all__ = ["IncomingConnection", "IncomingConnections", "server_handshake"]

MAX_INCOMING: Final = 1024
"""
Incoming connections at a time, of one listener. A mute peer holds a slot for the whole
`handshake_timeout`, so there are many.
"""

_PLAIN_SECONDS: Final = 10.0
"""
Time for the PROXY header on plain servers: the default `handshake_timeout` of a TLS server,
which covers header and handshake there.
"""

_log = Logger()


class _Slots:
    """
    Slots for incoming connections, of which one network has half at most.

    Further connections of that network wait in order, without a slot. Waiting needs no
    timer: the time limit of those that hold a slot ends soon.

    Attributes:
        waiting: Connections that wait.
    """

    def __init__(self) -> None:
        self.waiting = 0
        self._taken: Counter[str] = Counter()
        self._queues: dict[str, deque[Deferred[None]]] = {}
        self._freed: deque[str] = deque()
        self._draining = False

    def has_room(self, network: str, limit: int) -> bool:
        """Return whether *network* has less than its half of *limit* slots."""
        return self._taken[network] < max(1, limit // 2)

    def take(self, network: str, limit: int) -> Deferred[None] | None:
        """Take a slot of *limit*: `None` if it is taken, else a Deferred that fires with it."""
        if self.has_room(network, limit):
            self._taken[network] += 1
            return None
        self.waiting += 1
        queue = self._queues.setdefault(network, deque())
        slot: Deferred[None] = Deferred(lambda slot: self._forget(network, slot))
        queue.append(slot)
        return slot

    def _forget(self, network: str, slot: Deferred[None]) -> None:
        self._queues[network].remove(slot)
        self._no_longer_waits(network)

    def _no_longer_waits(self, network: str) -> None:
        self.waiting -= 1
        if not self._queues[network]:
            del self._queues[network]

    def free(self, network: str) -> None:
        """Give a slot back, for the next connection that waits."""
        self._freed.append(network)
        if self._draining:
            # A connection that was given a slot below has ended at once. Thousands may,
            # so the loop goes on instead of a recursion.
            return
        self._draining = True
        try:
            while self._freed:
                self._hand_on(self._freed.popleft())
        finally:
            self._draining = False

    def _hand_on(self, network: str) -> None:
        queue = self._queues.get(network)
        if queue:
            slot = queue.popleft()
            self._no_longer_waits(network)
            slot.callback(None)
            return
        self._taken[network] -= 1
        if not self._taken[network]:
            del self._taken[network]


class IncomingConnection:
    """
    A connection that the application has not been given yet.

    Attributes:
        descriptor: Owned by `IncomingConnections` until the connection is delivered; TLS from its
            handshake on.
        watch: The descriptor's.
        peer: The header's source, where it names one; else the address of the connection.
        header: The PROXY header, or `None` where none was required.
        inner: See `Established`.
        network: The network for which it holds a slot, or `None`.
        deadline: Of header and handshake.
        admitted: Its peer counts as one that has a connection.
        in_handshake: The header is done, and the TLS handshake has begun.
    """

    __slots__ = (
        "_real",
        "admitted",
        "deadline",
        "descriptor",
        "header",
        "in_handshake",
        "inner",
        "network",
        "peer",
        "watch",
    )

    def __init__(
        self,
        descriptor: Descriptor,
        watch: Watch,
        peer: SocketAddress,
        deadline: Deadline,
    ) -> None:
        self._real = peer
        self.deadline = deadline
        self.descriptor = descriptor
        self.watch = watch
        self.peer = peer
        self.header: ProxyHeader | None = None
        self.inner: ITransport | None = None
        self.network: str | None = None
        self.admitted = False
        self.in_handshake = False

    def set_header(self, header: ProxyHeader) -> None:
        """Keep *header*, and take its source for the peer."""
        self.header = header
        if header.source is not None:
            self.peer = header.source

    def __str__(self) -> str:
        """Return the peer's address and the proxy's, for log lines."""
        if self.inner is not None:
            # It may have read a header itself meanwhile.
            return str(address_of(self.inner.getPeer()))
        # The header's source may be a path of any bytes, line breaks among them.
        peer = printable(str(self.peer))
        return peer if self.peer is self._real else f"{peer} through {self._real}"


Secure = Callable[[IncomingConnection], "Deferred[Descriptor]"]
"""Performs the handshake; see `server_handshake`. What it fails with is logged."""


def server_handshake(
    reactor: Reactor, factory: ServerContextFactory, protocols: Sequence[bytes] = ()
) -> Secure:
    """
    Return a function that performs the server's handshake on incoming connections.

    Args:
        reactor: For the time limit.
        factory: Makes the TLS connections; with ``handshake=False`` in its options, the
            handshake is left to the application.
        protocols: For ALPN, beside those of the records.
    """

    def secure(incoming: IncomingConnection) -> Deferred[Descriptor]:
        descriptor = tls_over(incoming.descriptor, factory, protocols)
        incoming.descriptor = descriptor
        if not factory.options.handshake:
            return succeed(descriptor)
        done = handshake(reactor, incoming.watch, descriptor, incoming.deadline.remaining())
        return done.addCallback(lambda _: descriptor)

    return secure


class IncomingConnections:
    """
    Prepares connections for the application, many at a time.

    Attributes:
        failed: How many have failed.
        max_pending: How many may be prepared at a time; 1024 unless changed. One address, or
            network of 64 bits in IPv6, may have half of them.
        max_waiting: How many more may wait because their network has its half.
    """

    def __init__(
        self,
        reactor: Reactor,
        options: SocketOptions,
        deliver: Callable[[IncomingConnection, Descriptor], None],
        room: Callable[[], None],
        *,
        secure: Secure | None = None,
        admit: Callable[[SocketAddress], bool] | None = None,
        gone: Callable[[SocketAddress | None], None] | None = None,
    ) -> None:
        """
        Prepare connections as *options* say.

        Args:
            reactor: Where it happens.
            options: The server's record; of several, the first.
            deliver: Called with each connection that is ready, and its descriptor,
                which the callee owns from then on.
            room: Called when there is room again after `full`.
            secure: Performs the TLS handshake, on TLS servers.
            admit: Called with the peer of each connection, which a PROXY header may have
                named; a connection that is not admitted is closed.
            gone: Called for each connection that is closed before it was delivered, with
                its peer if that was admitted, else `None`.
        """
        self._reactor = reactor
        self._version = options.proxy_protocol
        self._deliver = deliver
        self._room = room
        self._secure = secure
        self._admit = admit
        self._gone = gone
        self.max_pending = MAX_INCOMING
        self.max_waiting: float = MAX_INCOMING
        self._running: dict[IncomingConnection, Deferred[Descriptor]] = {}
        self._slots = _Slots()
        self._failures = FailureLog(reactor, _log)
        self._closed = False
        self.failed = 0
        self._seconds: float | None = _PLAIN_SECONDS
        if isinstance(options, TLSSocketOptions):
            self._seconds = in_seconds(options.handshake_timeout)

    @property
    def full(self) -> bool:
        """Whether no more may begin for now."""
        waiting = self._slots.waiting
        return len(self._running) - waiting >= self.max_pending or waiting >= self.max_waiting

    def begin(self, sock: _socket.socket, peer: SocketAddress) -> None:
        """Prepare *sock*, which this owns from now on, and which *peer* has connected."""
        watch = poller_for(self._reactor).watch(sock.fileno())
        deadline = Deadline(self._reactor, self._seconds)
        incoming = IncomingConnection(PlainDescriptor(sock), watch, peer, deadline)
        self._run(
            incoming,
            self._enter(incoming)
            if self._version is None
            else self._in_slot(incoming, self._receive),
        )

    def has_room(self, peer: SocketAddress) -> bool:
        """Return whether a connection of *peer* would begin at once."""
        network = network_of(peer.host)
        return not self.full and (
            network is None or self._slots.has_room(network, self.max_pending)
        )

    def begin_on(self, established: Established, peer: SocketAddress) -> None:
        """Prepare *established* as `begin` does; its header has been read."""
        deadline = Deadline(self._reactor, self._seconds)
        incoming = IncomingConnection(established.descriptor, established.watch, peer, deadline)
        incoming.header, incoming.inner = established.header, established.inner
        self._run(incoming, self._enter(incoming))

    def _run(self, incoming: IncomingConnection, running: Deferred[Descriptor]) -> None:
        self._running[incoming] = running
        running.addBoth(self._finished, incoming)
        running.addErrback(_log_not_delivered)

    def _in_slot(self, incoming: IncomingConnection, proceed: Secure) -> Deferred[Descriptor]:
        """Call *proceed* with *incoming* when it has a slot."""
        network = network_of(incoming.peer.host)
        waiting = None if network is None else self._slots.take(network, self.max_pending)

        def given(_: None) -> Deferred[Descriptor]:
            incoming.network = network
            if waiting is not None:
                # The time limit begins now, as if it had waited in the kernel's queue.
                incoming.deadline = Deadline(self._reactor, self._seconds)
            return proceed(incoming)

        return given(None) if waiting is None else waiting.addCallback(given)

    def _free_slot(self, incoming: IncomingConnection) -> None:
        network, incoming.network = incoming.network, None
        if network is not None:
            self._slots.free(network)

    def _receive(self, incoming: IncomingConnection) -> Deferred[Descriptor]:
        assert self._version is not None
        return receive_header(
            self._reactor,
            incoming.watch,
            incoming.descriptor.sock,
            self._version,
            incoming.deadline.remaining(),
        ).addCallback(self._header_received, incoming)

    def _header_received(
        self, header: ProxyHeader, incoming: IncomingConnection
    ) -> Deferred[Descriptor]:
        # From here on it counts as a connection of the address that the header names.
        self._free_slot(incoming)
        incoming.set_header(header)
        return self._enter(incoming)

    def _enter(self, incoming: IncomingConnection) -> Deferred[Descriptor]:
        try:
            if self._admit is not None and not self._admit(incoming.peer):
                # The admission limit has logged the reason.
                return fail(CancelledError())
            incoming.admitted = True
            if self._secure is None:
                return succeed(incoming.descriptor)
            return self._in_slot(incoming, self._run_handshake)
        except BaseException:  # noqa: BLE001 - it costs this connection and no other
            return fail()

    def _run_handshake(self, incoming: IncomingConnection) -> Deferred[Descriptor]:
        assert self._secure is not None
        try:
            incoming.in_handshake = True
            return self._secure(incoming)
        except BaseException:  # noqa: BLE001 - it costs this connection and no other
            return fail()

    def _finished(self, result: Descriptor | Failure, incoming: IncomingConnection) -> None:
        was_full = self.full
        self._running.pop(incoming, None)
        try:
            if self._closed and not isinstance(result, Failure):
                # A callback within its handshake has closed the listener.
                result = Failure(CancelledError())
            if isinstance(result, Failure):
                incoming.watch.close()
                incoming.descriptor.close()
                self._report(incoming, result)
                if self._gone is not None:
                    self._gone(incoming.peer if incoming.admitted else None)
            else:
                self._deliver(incoming, result)
        finally:
            # Whatever the callbacks raise: a slot that is not freed is lost, and without
            # `room` nothing would be accepted any more.
            self._free_slot(incoming)
            if was_full and not self._closed:
                self._room()

    def _report(self, incoming: IncomingConnection, failure: Failure) -> None:
        if failure.check(CancelledError) is not None:
            return
        self.failed += 1
        if failure.check(NetsockError) is None:
            _log.failure("a new connection could not be prepared", failure)
            return
        template = (
            "TLS handshake with {peer} failed: {error}"
            if incoming.in_handshake
            else "connection from {peer} refused: {error}"
        )
        self._failures.note(template, peer=incoming, error=failure.value)

    def close(self) -> None:
        """Close every connection that is not delivered."""
        self._closed = True
        # The last first: those that wait are cancelled before a slot is freed for them.
        for running in reversed(list(self._running.values())):
            running.cancel()
        self._failures.end()


def _log_not_delivered(failure: Failure) -> None:
    _log.failure("a new connection could not be handed on", failure)
