"""
The relay's one engine: two descriptors of any kind, and nothing between them.

What arrives on one goes to the other in the same call, out of one buffer for
all; only what that does not take at once is copied, and nothing more is read
until it is gone. Bulk between two plain ones goes through a pipe, and is not
copied at all. Transports of other endpoints are descriptors by
`twisted_netsock._io.adapter`.
"""

from __future__ import annotations

from collections.abc import Callable
from socket import SHUT_WR
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted
from twisted.internet.interfaces import IDelayedCall

from ..._endpoints.transport import SCRATCH
from ..._io.descriptor import PlainDescriptor, from_os_error
from ..._io.drive import drive
from ..._io.poller import WANT_WRITE, Want
from ..._net.happy_eyeballs import Established
from ..._tls.descriptor import TLSDescriptor
from ...errors import (
    SocketConnectionTimeoutError,
    SocketError,
    SocketReadTimeoutError,
    SocketWriteTimeoutError,
    TLSTruncatedError,
)
from ...options import SocketOptions
from .accounting import Ledger, Session
from .splice import BULK, Pipe, Pipes

__all__ = ["Link", "Links", "Nowhere", "PlainLink", "TLSLink", "link_for"]

_GIVE_UP_SECONDS: Final = 5.0
"""Without progress, when what has been passed on is waited for to be acknowledged."""

_SOONEST, _LATEST = 0.002, 0.25
"""
Seconds between two looks at that: the kernel does not report it. They double without progress. A
look takes 1.1 µs of processor time.
"""

_LOOKS: Final = 4
"""
How often a link with a time limit is looked at within it. The limit is kept to a quarter, and
nothing is noted for what passes.
"""


class Links(Protocol):
    """What the links of a relay have in common."""

    ledger: Ledger
    sides: set[Any]
    pipes: Pipes


class Nowhere:
    """Stands in the place of the other connection: takes what comes, and keeps nothing."""

    spliceable = False
    other: Any = None

    @property
    def count(self) -> int:
        """Bytes that have arrived."""
        return 0

    @property
    def holds_early_data(self) -> bool:
        """Whether something is kept here all the same, for a connection to come."""
        return False

    def pass_on(self, data: memoryview) -> None:
        """Drop *data*."""

    def nothing(self) -> None:
        """Do nothing: there is no connection."""

    finish = let_go = cut_off = abort = pause = resume = nothing


NOWHERE: Final = Nowhere()


class Link:
    """
    One of the two connections: passes on to the other what arrives.

    It reads only while nothing waits to be sent on the other one. A descriptor may want to
    write to go on reading, and the other way round, keep bytes that the poller cannot see,
    and a piece of what it was given.

    Attributes:
        count: Bytes that have arrived.
        ended: The peer has finished sending.
        lost: The connection is gone.
        other: The other one.
        session: The account.
        unsent: Of what was to be sent, the bytes that the peer had not acknowledged when the
            connection broke.
        on_lost: Called with the account, if there is one, when the connection is gone.
    """

    spliceable = False
    """What is in a pipe can be sent on it."""
    holds_early_data = False

    _descriptor: Any

    def __init__(
        self, relay: Links, established: Established, session: Session | None = None
    ) -> None:
        self.count = 0
        self.ended = False
        self.lost = False
        self.unsent = 0
        self.other: Any = None
        self.session = session
        self.on_lost: Callable[[Session | None], None] | None = None
        self._descriptor = established.descriptor
        self._watch = established.watch
        self._relay = relay
        self._room = SCRATCH
        """What is read at once fits in there."""
        self._queue: bytes | memoryview = b""
        self._stalled = False
        self._finishing = False
        self._finished = False
        self._broken: BaseException | None = None
        """Why it is lost as soon as all that has arrived is read and passed on."""
        self._ending: Deferred[Any] | None = None
        """It closes in order, or waits until a transport that was closed is gone."""
        self._closed = False
        self._call: IDelayedCall | None = None
        self._limits: list[_Limit | _Drain] = []
        self._watch.owner = self
        self._watch.keep()
        relay.sides.add(self)

    # Receiving

    def read_at_most(self, size: int) -> None:
        """Read at most *size* bytes, 1 or more, at once."""
        self._room = SCRATCH[:size]

    def resume(self) -> None:
        """Read, unless the peer has finished."""
        if not self.ended and not self.lost:
            self._watch.want_receive()
            self._read_on_if_buffered()

    def pause(self) -> None:
        """Read nothing until `resume`."""
        self._watch.stop_receive()

    def on_receive_ready(self) -> None:
        """Receive, and pass it on; for the poller."""
        try:
            count = self._descriptor.try_recv_into(self._room)
        except SocketError as error:
            self._broke(error)
            return
        if count.__class__ is Want:
            if self._broken is not None:
                self.lose(self._broken)
            elif count is not self._watch.receive:
                self._watch.want_receive(count)
            return
        if not count:
            self._end()
            return
        self.count += count
        self.other.pass_on(SCRATCH[:count])
        self._read_on_if_buffered()

    def _read_on_if_buffered(self) -> None:
        """Read on in the next reactor iteration if bytes wait where the poller cannot see them."""
        # TLS that has failed is reported by no poller either.
        hidden = self._descriptor.buffered or self._broken is not None
        if hidden and self._call is None and self._watch.receive is not None:
            self._call = self._relay.ledger.reactor.callLater(0, self._read_on)

    def _read_on(self) -> None:
        self._call = None
        if self._watch.receive is not None:
            self.on_receive_ready()

    def _end(self) -> None:
        """Pass the end of the stream on, and go on with the other direction."""
        if self._broken is not None and self._descriptor.gone() is None:
            # The error was reported to a send, and the kernel shows none any more.
            self.lose(self._broken)
            return
        self.ended = True
        self.other.finish()
        if self._finished:
            self.lose(None)
            return
        self._watch.end_receive()
        gone: Deferred[None] | None = self._descriptor.gone()
        if gone is not None:
            gone.addCallback(self._vanished)

    def _broke(self, error: BaseException) -> None:
        """Lose the connection; after its early data, unless it was reset."""
        if isinstance(error, TLSTruncatedError) and self.other.holds_early_data:
            self._broken = error
            self.pause()
        else:
            self.lose(error)

    def _vanished(self, _: None) -> None:
        """Let go of both: a transport is gone, although this side has not finished."""
        other = self.other
        self.lose(None)
        other.let_go()

    # Sending

    def pass_on(self, data: memoryview) -> None:
        """Send *data*; what is not taken is copied, and pauses the other one."""
        self._queue = data
        self._go_on_sending()
        if self._queue:
            self._queue = bytes(self._queue)

    def on_send_ready(self) -> None:
        """Send what waits; for the poller."""
        if self._stalled:
            self._go_on_sending()
        elif self._finishing:
            self.finish()

    def _go_on_sending(self) -> None:
        """Send what waits, and go on with what waited for that."""
        try:
            want = self._send_queue()
        except OSError as error:
            self._sending_failed(error)
            return
        if want is not None:
            self._stall(want)
        elif self._stalled:
            self._stalled = False
            self._watch.stop_send()
            self.other.resume()
            if self._finishing:
                self.finish()

    def _send_queue(self) -> Want | None:
        """Send what waits; return what the rest waits for."""
        descriptor = self._descriptor
        want: Want | None = descriptor.try_flush() if descriptor.unflushed else None
        while self._queue and want is None:
            count = descriptor.try_send(self._queue)
            if count.__class__ is Want:
                return count
            self._queue = memoryview(self._queue)[count:]
            want = WANT_WRITE if descriptor.unflushed else None
        return want

    def _sending_failed(self, error: OSError) -> None:
        """Read what has arrived, then lose the connection: the kernel reports a reset once."""
        if self.ended or self.other is NOWHERE:
            self.lose(from_os_error(error))
            return
        if self._broken is None:
            self._broken = from_os_error(error)
            self.unsent = self._outstanding
        self._drop_queue()
        self._finishing = False
        self._watch.stop_send()
        self.other.other = _Unsendable(self)
        if self._stalled:
            self._stalled = False
            self.other.resume()
        self._read_on_if_buffered()

    def _drop_queue(self) -> None:
        self._queue = b""

    @property
    def _unsent(self) -> int:
        """How many bytes wait here to be sent."""
        return len(self._queue)

    @property
    def _outstanding(self) -> int:
        """How many bytes the peer has not acknowledged, those that wait here among them."""
        in_flight: int = self._descriptor.in_flight()
        return self._unsent + in_flight

    def _stall(self, want: Want = WANT_WRITE) -> None:
        """Go on when it is possible to send, and have nothing more read for that."""
        self._watch.want_send(want)
        if not self._stalled:
            self._stalled = True
            self.other.pause()

    # The end

    def finish(self) -> None:
        """Send no more when everything is sent; the connection ends if its peer has, too."""
        if self._finished and not self.ended:
            return
        self._finishing = True
        if self._stalled:
            return
        if self.ended:
            # The close says it.
            self._finished = True
            self.lose(None)
            return
        try:
            want = self._descriptor.try_shutdown(SHUT_WR)
        except SocketError as error:
            self._sending_failed(error)
            return
        if want is not None:
            self._watch.want_send(want)
            return
        self._watch.stop_send()
        self._finishing = False
        self._finished = True
        if self.other is NOWHERE:
            self._wait_for_peer()

    def let_go(self) -> None:
        """
        Close the connection when everything is sent and acknowledged: the other one is gone.

        What comes meanwhile is read and dropped: the kernel resets a connection that is closed
        with something unread, and what is under way is lost then.
        """
        if not self.lost and self._ending is None:
            self.other = NOWHERE
            self.resume()
            if self._finished:
                self._wait_for_peer()
            else:
                self.finish()

    def _wait_for_peer(self) -> None:
        self._limits.append(_Drain(self, lambda: self.lose(None)))

    def cut_off(self) -> None:
        """Do as `let_go`, and reset the connection then: the other one has broken."""
        if not self.lost and self._ending is None:
            self.other = NOWHERE
            self._finishing = False
            self.resume()
            self._limits.append(_Drain(self, self.abort))

    def on_poller_lost(self, reason: Exception) -> None:
        """Lose both connections: the reactor shuts down; for the poller."""
        other = self.other
        self.lose(reason)
        other.abort()

    def on_fork(self) -> None:
        """Become unusable in a forked child; for the poller."""
        self._descriptor.on_fork()

    def abort(self) -> None:
        """End the connection at once, by a reset, and with it the other one."""
        if self.lost:
            return
        self._descriptor.reset_on_close()
        if self._ending is None:
            self.lose(ConnectionAborted())
        elif self._closed:
            self._descriptor.close()
        else:
            self._ending.cancel()

    def lose(self, error: BaseException | None) -> None:
        """
        Close the connection, in order by TLS shutdown, whose time the options limit.

        Args:
            error: Why, and then the other one is reset when everything has arrived there: a
                stream that was cut off must not look complete. `None` after both directions
                have ended.
        """
        if self.lost or self._ending is not None:
            return
        if self._call is not None:
            self._call.cancel()
            self._call = None
        for limit in self._limits:
            limit.stop()
        self._ending = self._shut_down() if error is None else None
        if self._ending is None:
            self._close(error)
        else:
            self._ending.addBoth(lambda _: self._close(None))

    def _shut_down(self) -> Deferred[Any] | None:
        """Return what fires when the descriptor may be closed; `None`: it may."""
        return None

    def _close(self, error: BaseException | None) -> None:
        self._closed = True
        if error is not None and self._broken is None:
            self.unsent = self._outstanding
        self._watch.close()
        self._descriptor.close()
        gone: Deferred[None] | None = self._descriptor.gone()
        if gone is None:
            self._lost(error)
        else:
            self._ending = gone
            gone.addCallback(lambda _: self._lost(error))

    def _lost(self, error: BaseException | None) -> None:
        self.lost = True
        self._drop_queue()
        self._relay.sides.discard(self)
        if not self._relay.sides:
            self._relay.pipes.close()
        other, self.other = self.other, NOWHERE
        if other.other is self:
            other.other = NOWHERE
        session, self.session = self.session, None
        if session is not None:
            session.lost(self, error)
        on_lost, self.on_lost = self.on_lost, None
        if on_lost is not None:
            on_lost(session)
        if error is None:
            return
        if self.ended:
            other.let_go()
        elif isinstance(error, ConnectionAborted):
            other.abort()
        else:
            other.cut_off()

    # Time limits

    def limit(self, options: SocketOptions) -> None:
        """Lose the connection by the `read_timeout` and the `write_timeout` of *options*."""
        if options.read_timeout is not None:
            read = options.read_timeout.total_seconds()
            self._limits.append(_Limit(self, read, self._reading, SocketReadTimeoutError))
        if options.write_timeout is not None:
            write = options.write_timeout.total_seconds()
            self._limits.append(_Limit(self, write, self._sending, SocketWriteTimeoutError))

    def _reading(self) -> object:
        return None if self._watch.receive is None else self.count

    def _sending(self) -> object:
        return (self.other.count, self._unsent) if self._stalled else None


class _Limit:
    """Loses a link that waits and whose mark has not changed for a time."""

    def __init__(
        self,
        link: Link,
        seconds: float,
        mark: Callable[[], object],
        error: Callable[[], SocketError],
    ) -> None:
        """Have *link* lost after *seconds*; *mark* returns `None` while it does not wait."""
        self._link = link
        self._seconds = seconds
        self._mark = mark
        self._error = error
        self._seen: object = None
        self._reactor = link._relay.ledger.reactor
        self._look()

    def _look(self) -> None:
        now, mark = self._reactor.seconds(), self._mark()
        if mark is None or mark != self._seen:
            self._seen, self._since = mark, now
        elif now - self._since >= self._seconds:
            self._link.lose(self._error())
            return
        self._call = self._reactor.callLater(self._seconds / _LOOKS, self._look)

    def stop(self) -> None:
        """Look no more."""
        if self._call.active():
            self._call.cancel()


class _Unsendable(Nowhere):
    """Stands for a link to which nothing can be sent, while what it had received is passed on."""

    def __init__(self, link: Link) -> None:
        self.pause = link.pause  # type: ignore[method-assign]
        self.resume = link.resume  # type: ignore[method-assign]
        self._link = link

    @property
    def count(self) -> int:
        """Bytes that have arrived."""
        return self._link.count

    def pass_on(self, data: memoryview) -> None:
        """Drop *data*, and note how much that is."""
        self._link.unsent += len(data)

    def _give_up(self) -> None:
        """Lose the link: the other one is gone, too."""
        self._link.lose(self._link._broken)

    let_go = cut_off = abort = _give_up


class _Drain:
    """Waits until the peer of a link has acknowledged everything, or nothing for too long."""

    def __init__(self, link: Link, done: Callable[[], None]) -> None:
        """Call *done* then."""
        self._link = link
        self._done = done
        self._reactor = link._relay.ledger.reactor
        self._since = self._reactor.seconds()
        self._least = link._outstanding
        self._delay = _SOONEST
        self._call: IDelayedCall | None = self._reactor.callLater(_SOONEST, self._look)

    def _look(self) -> None:
        self._call = None
        now, least, left = self._reactor.seconds(), self._least, self._link._outstanding
        # Twice in a row: what a transport of Twisted's was given is with the kernel in the next
        # iteration of the reactor.
        if not (left or least) or (left >= least and now - self._since >= _GIVE_UP_SECONDS):
            self._done()
            return
        if left < least:
            self._least, self._since, self._delay = left, now, _SOONEST
        else:
            self._delay = min(2 * self._delay, _LATEST)
        self._call = self._reactor.callLater(self._delay, self._look)

    def stop(self) -> None:
        """Look no more."""
        if self._call is not None:
            self._call.cancel()


class PlainLink(Link):
    """A `Link` on a socket of the kernel's: nothing stands between, and bulk passes by pipes."""

    spliceable = True

    def __init__(
        self, relay: Links, established: Established, session: Session | None = None
    ) -> None:
        super().__init__(relay, established, session)
        self._send = self._descriptor.sock.send
        self._receive_into = self._descriptor.sock.recv_into
        self._pipe: Pipe | None = None
        """What holds what waits to be sent, if that is not in the queue."""
        self._in_bulk = False

    def on_receive_ready(self) -> None:
        """Receive, and pass it on; for the poller."""
        pipe = self._relay.pipes.lend() if self._in_bulk and self.other.spliceable else None
        try:
            count = self._receive_into(self._room) if pipe is None else pipe.fill(self._watch.fd)
        except OSError as error:
            self._receiving_failed(error, pipe)
            return
        self._in_bulk = count >= BULK
        self.count += count
        if pipe is not None:
            # None is no sure sign of the end: in front of a byte out of band there is none
            # either. The next report decides: it finds what is there by receiving it.
            self.other.pass_pipe_on(pipe)
        elif count:
            self.other.pass_on(SCRATCH[:count])
        else:
            self._end()

    def _receiving_failed(self, error: OSError, pipe: Pipe | None) -> None:
        pipes = self._relay.pipes
        if pipe is not None:
            pipes.take_back(pipe)
            # The next report finds what is still there, and copies it: also where the kernel
            # never gets past a byte out of band in this way.
            self._in_bulk = False
            if pipes.disabled_by(error):
                return
        if self._broken is not None:
            self.lose(self._broken)
        elif not isinstance(error, BlockingIOError):
            self._broke(from_os_error(error))

    def pass_on(self, data: memoryview) -> None:
        """Send *data*; what the kernel does not take is copied, and pauses the other one."""
        try:
            sent = self._send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._sending_failed(error)
            return
        if sent < len(data):
            self._queue = bytes(data[sent:])
            self._stall()

    def pass_pipe_on(self, pipe: Pipe) -> None:
        """Send what is in *pipe*, which is given back when it is empty; until then pause."""
        self._pipe = pipe
        self._go_on_sending()

    def _send_queue(self) -> Want | None:
        pipe = self._pipe
        if pipe is not None:
            pipe.drain(self._watch.fd)
            if pipe.pending:
                return WANT_WRITE
            self._give_pipe_back()
            return None
        try:
            sent = self._send(self._queue)
        except BlockingIOError:
            return WANT_WRITE
        self._queue = memoryview(self._queue)[sent:]
        return WANT_WRITE if self._queue else None

    def _give_pipe_back(self) -> None:
        if self._pipe is not None:
            self._relay.pipes.take_back(self._pipe)
            self._pipe = None

    def _drop_queue(self) -> None:
        self._queue = b""
        self._give_pipe_back()

    @property
    def _unsent(self) -> int:
        return len(self._queue) if self._pipe is None else self._pipe.pending


class TLSLink(Link):
    """A `Link` that speaks TLS: it ends with a TLS shutdown."""

    def _send_queue(self) -> Want | None:
        self._descriptor.check_reset()
        return super()._send_queue()

    def _shut_down(self) -> Deferred[Any]:
        descriptor: TLSDescriptor = self._descriptor
        return drive(
            self._relay.ledger.reactor,
            self._watch,
            descriptor.try_tls_shutdown,
            timeout=descriptor.options.close_timeout.total_seconds(),
            timed_out=lambda: SocketConnectionTimeoutError("TLS shutdown"),
        )


def link_for(relay: Links, established: Established, session: Session | None = None) -> Link:
    """Return what passes on what comes on *established*."""
    descriptor = established.descriptor
    if isinstance(descriptor, PlainDescriptor):
        return PlainLink(relay, established, session)
    if isinstance(descriptor, TLSDescriptor):
        return TLSLink(relay, established, session)
    return Link(relay, established, session)
