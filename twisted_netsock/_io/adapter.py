"""
Any transport of Twisted's as a descriptor and a watch.

`TransportDescriptor` is the protocol of the transport and has the methods of
`twisted_netsock._io.descriptor.Descriptor`; its `watch` reports as the poller's do. What is
written against those two, TLS for example, works over any transport this way.
"""

from __future__ import annotations

import errno
import select
import socket as _socket
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IDelayedCall,
    IHalfCloseableDescriptor,
    IHalfCloseableProtocol,
    IPushProducer,
    ISSLTransport,
    ITCPTransport,
    ITransport,
)
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from ..errors import (
    SocketClosedError,
    SocketConnectionLostError,
    SocketError,
    opened_before_fork,
    unraised,
)
from .descriptor import byte_view, in_flight
from .fairness import BYTES, DELIVERY, REPORTS
from .interfaces import Reactor, StreamProtocol
from .poller import WANT_READ, WANT_WRITE, Slots, Want

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["TransportDescriptor", "TransportWatch"]

_FULL: Final = DELIVERY
"""
Received bytes above which the transport is paused: one delivery of Twisted's. At most one
more delivery comes behind it, because a transport delivers nothing once it is paused.
"""


_OPTIONS: Final = {
    (_socket.IPPROTO_TCP, _socket.TCP_NODELAY): "TcpNoDelay",
    (_socket.SOL_SOCKET, _socket.SO_KEEPALIVE): "TcpKeepAlive",
}
"""The methods of ``ITCPTransport`` that stand for options, behind ``get`` and ``set``."""


@implementer(IHalfCloseableProtocol, IPushProducer)
class TransportDescriptor(StreamProtocol):
    """
    A transport behind the methods of a `Descriptor`; it is the transport's protocol.

    What has been received and not been read is bounded: the transport is paused. What has
    been sent is in the transport's own buffer, of which it reports by `pauseProducing`.

    Attributes:
        watch: Reports when the next attempt may succeed.
        blocked: The transport's buffer is full: a send waits.
        lost: Why the transport ended; `None` as long as it has not.
    """

    unflushed = False
    buffered = False
    """What is received here counts as seen by the poller: `watch` reports it."""

    def __init__(self, reactor: Reactor, close_seconds: float) -> None:
        """
        Adapt the transport that this is connected to.

        Args:
            reactor: For the limit, and for reports.
            close_seconds: How long the transport may take to close in order before it is
                aborted: Twisted's transports have no such limit.
        """
        self._reactor = reactor
        self._close_seconds = close_seconds
        self._incoming: deque[bytes] = deque()
        self._size = 0
        self._paused = False
        self._producing = False
        self._read_ended = False
        self._read_shut = False
        self._write_shut = False
        self._closed = False
        self._resets = False
        self._forked = False
        self._within = False
        """The transport is being called, and what it reports meanwhile is reported later."""
        self._timer: IDelayedCall | None = None
        self._waiting: list[Deferred[None]] = []
        self.watch = TransportWatch(reactor, self)
        self.blocked = False
        self.lost: Failure | None = None

    def makeConnection(self, transport: ITransport) -> None:
        """Begin on *transport*, which reports from now on when its buffer is full."""
        super().makeConnection(transport)  # type: ignore[no-untyped-call]
        self._producing = True
        self._call(self.wire.registerProducer, self, True)

    def _call(self, method: Callable[..., object], *args: object) -> None:
        """
        Call the transport, and report what that changes in the next reactor iteration.

        A transport in memory may deliver or end within the call, while the owner of the
        watch is in the middle of its attempt.
        """
        before, self._within = self._within, True
        try:
            method(*args)
        finally:
            self._within = before

    # The socket beneath, as far as Twisted's transports let it be seen

    @property
    def sock(self) -> _socket.socket:
        """What has the options of a socket: this."""
        return cast("_socket.socket", self)

    @property
    def family(self) -> int:
        """``AF_INET`` where there are options of TCP; else one that has none."""
        # Twisted's transports on UNIX sockets say that they are TCP, too.
        has_options = ITCPTransport.providedBy(self.transport) and self.lost is None
        is_tcp = has_options and hasattr(self.wire.getHost(), "port")
        return _socket.AF_INET if is_tcp else _socket.AF_UNIX

    def getsockopt(self, level: int, name: int) -> int:
        """Return ``TCP_NODELAY`` or ``SO_KEEPALIVE``."""
        return int(getattr(self.wire, f"get{_OPTIONS[level, name]}")())

    def setsockopt(self, level: int, name: int, value: int) -> None:
        """Set ``TCP_NODELAY`` or ``SO_KEEPALIVE``."""
        getattr(self.wire, f"set{_OPTIONS[level, name]}")(bool(value))

    # Receiving

    @property
    def failed(self) -> bool:
        """Whatever is tried raises: the transport broke, and what it received has been read."""
        return self._forked or (self._is_broken and not self._incoming)

    @property
    def _is_broken(self) -> bool:
        return self.lost is not None and self.lost.check(ConnectionDone) is None

    @property
    def finished(self) -> bool:
        """Nothing more is received: a receive gives the end, or the error, at once."""
        return self._read_shut or self._closed or (self._is_at_end and not self._incoming)

    @property
    def seen_by_poller(self) -> bool:
        """`watch` reports whatever a receive would give."""
        return True

    @property
    def _is_at_end(self) -> bool:
        return self._read_ended or self.lost is not None

    def try_recv(self, n: int, flags: int = 0) -> bytes | Want:
        """Return up to *n* bytes, those of one delivery; ``b""`` is the end of the stream."""
        if not self._incoming or not n:
            return b"" if self._check_end(n) else WANT_READ
        data = self._incoming.popleft()
        if len(data) > n:
            self._incoming.appendleft(data[n:])
            data = data[:n]
        self._took(len(data))
        return data

    def try_recv_into(self, view: memoryview | bytearray, flags: int = 0) -> int | Want:
        """Fill *view* from its start and return the count; 0 is the end of the stream."""
        size = len(view)
        if not self._incoming or not size:
            return 0 if self._check_end(size) else WANT_READ
        filled = 0
        while self._incoming and filled < size:
            data = self._incoming.popleft()
            part = data[: size - filled]
            view[filled : filled + len(part)] = part
            filled += len(part)
            if len(part) < len(data):
                self._incoming.appendleft(data[len(part) :])
        self._took(filled)
        return filled

    def _check_end(self, wanted: int) -> bool:
        """Return whether a receive gives the end: nothing is there. Raises what broke it."""
        if self._forked:
            raise opened_before_fork()
        if self._read_shut or not wanted:
            return True
        if self._closed:
            raise SocketClosedError
        if self._is_broken:
            raise self.loss()
        return self._is_at_end

    def _took(self, count: int) -> None:
        self._size -= count
        if self._size <= 0:
            self._resume()

    def _resume(self) -> None:
        if self._paused and self.lost is None:
            self._paused = False
            self._call(self.wire.resumeProducing)

    def _drop_incoming(self) -> None:
        self._incoming.clear()
        self._size = 0
        self._resume()

    def dataReceived(self, data: bytes) -> None:
        """Keep *data* until it is read; too much of it pauses the transport."""
        if self._read_shut or self._closed:
            return
        self._incoming.append(data)
        self._size += len(data)
        self._report()
        if self._size > _FULL and not self._paused and self.lost is None:
            self._paused = True
            self._call(self.wire.pauseProducing)

    def readConnectionLost(self) -> None:
        """Handle the end of what is received."""
        self._read_ended = True
        self._report()

    def writeConnectionLost(self) -> None:
        """Do nothing: `try_shutdown` has caused it."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Handle the end of the transport; what has been received can still be read."""
        self.lost = reason
        self.blocked = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._report()
        waiting, self._waiting = self._waiting, []
        for deferred in waiting:
            deferred.callback(None)

    def loss(self) -> SocketError:
        """Return the error of a connection that the transport has lost."""
        reason = None if self.lost is None else self.lost.value
        if isinstance(reason, SocketError):
            return unraised(reason)
        if reason is None or isinstance(reason, ConnectionDone):
            return SocketConnectionLostError()
        return SocketConnectionLostError(strerror=f"The inner connection was lost: {reason}")

    def _report(self) -> None:
        if self._within:
            self.watch.report_soon()
        else:
            self.watch.report_all()

    # Sending

    def try_send(self, view: Buffer, flags: int = 0) -> int | Want:
        """Hand some of *view* to the transport, a copy, and return how many bytes."""
        if self._forked:
            raise opened_before_fork()
        if self._closed:
            raise SocketClosedError
        if self.lost is not None:
            raise self.loss()
        if self._write_shut:
            raise SocketClosedError(
                errno=errno.EPIPE, strerror="This side has been shut down for writing"
            )
        if self.blocked:
            return WANT_WRITE
        # The transport would keep all of a block of any size, and only then say that it is full.
        # What is bytes already needs no copy.
        if isinstance(view, bytes) and len(view) <= BYTES:
            piece = view
        else:
            piece = bytes(byte_view(view)[:BYTES])
        self._call(self.wire.write, piece)
        return len(piece)

    def try_flush(self) -> None:
        """Return at once: the transport has everything."""

    def pauseProducing(self) -> None:
        """Send nothing more for now: the transport's buffer is full."""
        self.blocked = True

    def resumeProducing(self) -> None:
        """Send again."""
        self.blocked = False
        self._report()

    def stopProducing(self) -> None:
        """Do nothing: the transport ends, and `connectionLost` reports that."""

    # The end

    @property
    def half_closes(self) -> bool:
        """Whether the transport can end what is sent, and go on with what is received."""
        if not IHalfCloseableDescriptor.providedBy(self.wire):
            return False
        # One of Twisted's over TLS says so, and closes the connection beneath without
        # close_notify; those of this package, which can be released, do not.
        return hasattr(type(self.wire), "release_to") or not ISSLTransport.providedBy(self.wire)

    def try_shutdown(self, how: int) -> None:
        """
        Shut down one direction or both.

        A transport that cannot end its writing alone is closed in order, both directions.
        """
        if how != _socket.SHUT_WR:
            self._read_shut = True
            self._drop_incoming()
        if how == _socket.SHUT_RD or self._write_shut or self._closed or self.lost is not None:
            return
        self._write_shut = True
        self._stop_producing()
        if self.half_closes:
            self._call(self.wire.loseWriteConnection)
        else:
            self._lose_in_order()

    def _stop_producing(self) -> None:
        # A transport with a producer does not end before that is done.
        self.blocked = False
        if self._producing:
            self._producing = False
            self._call(self.wire.unregisterProducer)

    def _lose_in_order(self) -> None:
        self._limit_end()
        # One that speaks TLS itself must read to end.
        self._resume()
        self._call(self.wire.loseConnection)

    def _limit_end(self) -> None:
        if self._timer is None:
            self._timer = self._reactor.callLater(self._close_seconds, self._expire)

    def _expire(self) -> None:
        self._timer = None
        self.reset()

    def in_flight(self) -> int:
        """
        Return how many bytes the kernel has to send, as far as the transport shows its socket.

        What is in the transport's own buffer is not counted; as long as something is there, so
        it is in the kernel's.
        """
        number: Callable[[], int] | None = getattr(self.wire, "fileno", None)
        if number is None or self.lost is not None:
            return 0
        return int(self.blocked) + in_flight(self.family, number())

    def close(self) -> None:
        """
        End the transport in order; what was sent arrives, and `gone` fires then.

        It is aborted if that takes longer than the limit. May be called again.
        """
        if self._resets:
            self.reset()
        if self._closed or self.lost is not None:
            self._closed = True
            return
        self._closed = True
        self._drop_incoming()
        self._stop_producing()
        self._lose_in_order()

    def reset_on_close(self) -> None:
        """Make `close` call `reset`; what waits in the transport is lost then."""
        self._resets = True

    def reset(self) -> None:
        """End the transport at once, also while it closes in order; sent bytes may be lost."""
        self._closed = True
        if self.lost is not None:
            return
        self._limit_end()
        self._stop_producing()
        # Not every transport of a stranger's has abortConnection.
        self._call(getattr(self.wire, "abortConnection", self.wire.loseConnection))

    def gone(self) -> Deferred[None]:
        """Return a Deferred that fires when the transport is gone: after `close` or before."""
        deferred: Deferred[None] = Deferred(self._waiting.remove)
        if self.lost is not None:
            deferred.callback(None)
        else:
            self._waiting.append(deferred)
        return deferred

    def on_fork(self) -> None:
        """Become unusable; see `Descriptor`."""
        self._forked = True


class TransportWatch(Slots):
    """Reports for a `TransportDescriptor` as a `Watch` does for a kernel's."""

    __slots__ = ("_call", "_descriptor", "_reactor")

    def __init__(self, reactor: Reactor, descriptor: TransportDescriptor) -> None:
        super().__init__(-1)
        self._reactor = reactor
        self._descriptor = descriptor
        self._call: IDelayedCall | None = None

    def _ask(self, want: Want) -> None:
        if self._events & self.wanted:
            self.report_soon()

    @property
    def _events(self) -> int:
        """What could be reported now, as a mask of poll(2)."""
        descriptor = self._descriptor
        readable = descriptor._incoming or descriptor._is_at_end or descriptor._read_shut
        return (select.POLLIN if readable else 0) | (0 if descriptor.blocked else select.POLLOUT)

    def keep(self) -> None:
        """Do nothing: the transport keeps its protocol, and that keeps this."""

    def close(self) -> None:
        """Report nothing any more."""
        self.receive = self.send = None
        self.owner = None
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def report_all(self) -> None:
        """Report what the owner waits for, as long as it waits."""
        for _ in range(REPORTS):
            events = self._events & self.wanted
            if not events or self.owner is None:
                return
            self.report(events)
        self.report_soon()

    def report_soon(self) -> None:
        """Report in the next reactor iteration what the owner waits for then."""
        if self._call is None and self.owner is not None:
            self._call = self._reactor.callLater(0, self._run)

    def _run(self) -> None:
        self._call = None
        self.report_all()
