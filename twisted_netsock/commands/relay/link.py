"""
The relay's short way: two descriptors, plain or TLS, and nothing between them.

What arrives on one goes to the other in the same call, out of one buffer for
all; only what that does not take at once is copied, and nothing more is read
until it is gone. Bulk between two plain ones goes through a pipe, and is not
copied at all. Where another's endpoint or the time limits of a transport come
in, `twisted_netsock.commands.relay.factory` does the same with transports.
"""

from __future__ import annotations

from collections.abc import Callable
from socket import SHUT_WR
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted
from twisted.internet.interfaces import IDelayedCall

from ..._endpoints.transport import SCRATCH
from ..._io.descriptor import from_os_error, set_linger_reset
from ..._io.poller import WANT_WRITE, Want
from ..._net.happy_eyeballs import Established
from ..._tls.descriptor import TLSDescriptor
from ..._tls.handshake import tls_shutdown
from ...errors import SocketError
from .accounting import Ledger, Session
from .splice import BULK, Pipe, Pipes

__all__ = ["Link", "Links", "TLSLink", "link_for"]


class Links(Protocol):
    """What the links of a relay have in common."""

    ledger: Ledger
    sides: set[Any]
    pipes: Pipes


class Link:
    """
    One of the two connections: passes on to the other what arrives.

    It reads only while nothing waits to be sent on the other one.

    Attributes:
        count: Bytes that have arrived.
        ended: The peer has finished sending.
        lost: The connection is gone.
        other: The other one.
        session: The account.
        on_lost: Called with the account, if there is one, when the connection is gone.
    """

    _descriptor: Any
    spliceable = True
    """What is in a pipe can be sent on it."""

    def __init__(
        self, relay: Links, established: Established, session: Session | None = None
    ) -> None:
        descriptor, watch = established.descriptor, established.watch
        self.count = 0
        self.ended = False
        self.lost = False
        self.other: Any = None
        self.session = session
        self.on_lost: Callable[[Session | None], None] | None = None
        self._send = descriptor.sock.send
        self._receive_into = descriptor.sock.recv_into
        self._descriptor = descriptor
        self._watch = watch
        self._relay = relay
        self._room = SCRATCH
        """What is read at once fits in there."""
        self._queue: bytes | memoryview = b""
        self._pipe: Pipe | None = None
        """What holds what waits to be sent, if that is not in the queue."""
        self._in_bulk = False
        self._finishing = False
        self._finished = False
        watch.owner = self
        watch.keep()
        relay.sides.add(self)

    def read_at_most(self, size: int) -> None:
        """Read at most *size* bytes, 1 or more, at once."""
        self._room = SCRATCH[:size]

    def resume(self) -> None:
        """Read, unless the peer has finished."""
        if not self.ended:
            self._watch.want_receive()

    def pause(self) -> None:
        """Read nothing until `resume`."""
        self._watch.stop_receive()

    def on_receive_ready(self) -> None:
        """Receive, and pass it on; for the poller."""
        pipe = self._relay.pipes.lend() if self._in_bulk else None
        try:
            count = self._receive_into(self._room) if pipe is None else pipe.fill(self._watch.fd)
        except OSError as error:
            self._receiving_failed(error, pipe)
            return
        self._in_bulk = count >= BULK and self.other.spliceable
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
        if not isinstance(error, BlockingIOError):
            self.lose(from_os_error(error))

    def pass_on(self, data: memoryview) -> None:
        """Send *data*; what the kernel does not take is copied, and pauses the other one."""
        try:
            sent = self._send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.lose(from_os_error(error))
            return
        if sent < len(data):
            self._queue = bytes(data[sent:])
            self.other.pause()
            self._watch.want_send()

    def pass_pipe_on(self, pipe: Pipe) -> None:
        """Send what is in *pipe*, which is given back when it is empty; until then pause."""
        try:
            pipe.drain(self._watch.fd)
        except OSError as error:
            self._relay.pipes.take_back(pipe)
            self.lose(from_os_error(error))
            return
        if not pipe.pending:
            self._relay.pipes.take_back(pipe)
            return
        self._pipe = pipe
        self.other.pause()
        self._watch.want_send()

    def _end(self) -> None:
        """Pass the end of the stream on, and go on with the other direction."""
        self.ended = True
        self.other.finish()
        if self._finished:
            self.lose(None)
        else:
            self._watch.end_receive()

    def on_send_ready(self) -> None:
        """Send what waits; for the poller."""
        try:
            if not self._send_rest():
                return
        except BlockingIOError:
            return
        except OSError as error:
            self.lose(from_os_error(error))
            return
        self._watch.stop_send()
        if self._finishing:
            self.finish()
        else:
            self.other.resume()

    def _send_rest(self) -> bool:
        """Send what waits; return whether nothing waits any more."""
        pipe = self._pipe
        if pipe is not None:
            pipe.drain(self._watch.fd)
            if not pipe.pending:
                self._give_pipe_back()
            return not pipe.pending
        sent = self._send(self._queue)
        self._queue = memoryview(self._queue)[sent:] if sent < len(self._queue) else b""
        return not self._queue

    def _give_pipe_back(self) -> None:
        pipe, self._pipe = self._pipe, None
        assert pipe is not None
        self._relay.pipes.take_back(pipe)

    def finish(self) -> None:
        """Send no more when everything is sent; the connection ends if its peer has, too."""
        if self._queue or self._pipe is not None:
            self._finishing = True
            return
        self._finished = True
        if self.ended:
            # The close says it.
            self.lose(None)
            return
        try:
            self._descriptor.try_shutdown(SHUT_WR)
        except OSError as error:
            self.lose(error)

    def let_go(self) -> None:
        """Close the connection when everything is sent: the other one is gone."""
        self.ended = True
        self.pause()
        self.finish()

    def on_poller_lost(self, reason: Exception) -> None:
        """Lose the connection: the reactor shuts down; for the poller."""
        self.lose(reason)

    def on_fork(self) -> None:
        """Become unusable in a forked child; for the poller."""
        self._descriptor.on_fork()

    def abort(self) -> None:
        """End the connection at once, by a reset, and with it the other one."""
        if not self.lost:
            set_linger_reset(self._descriptor.sock)
            self.lose(ConnectionAborted())

    def lose(self, error: BaseException | None) -> None:
        """
        Close the connection.

        Args:
            error: Why, and then the other one is reset: a stream that was cut off must
                not look complete. One that was complete arrives. `None` after both
                directions have ended.
        """
        if self.lost:
            return
        self.lost = True
        self._watch.close()
        self._descriptor.close()
        self._queue = b""
        if self._pipe is not None:
            self._give_pipe_back()
        self._relay.sides.discard(self)
        if not self._relay.sides:
            self._relay.pipes.close()
        other, self.other = self.other, None
        session, self.session = self.session, None
        if session is not None:
            session.lost(self, error)
        on_lost, self.on_lost = self.on_lost, None
        if on_lost is not None:
            on_lost(session)
        if error is None or other is None:
            return
        if self.ended:
            other.let_go()
        else:
            other.abort()


class TLSLink(Link):
    """
    A `Link` that speaks TLS.

    OpenSSL may want to write to go on reading, and the other way round, keep
    bytes that the poller cannot see, and a piece of what it was given.
    """

    spliceable = False

    def __init__(
        self, relay: Links, established: Established, session: Session | None = None
    ) -> None:
        super().__init__(relay, established, session)
        self._stalled = False
        self._call: IDelayedCall | None = None
        self._shutdown: Deferred[None] | None = None

    def resume(self) -> None:
        """Read, unless the peer has finished."""
        super().resume()
        self._read_on_if_buffered()

    def _read_on_if_buffered(self) -> None:
        """Read on in the next turn if bytes wait where the poller cannot see them."""
        if self._call is None and self._watch.receive is not None and self._descriptor.buffered:
            self._call = self._relay.ledger.reactor.callLater(0, self._read_on)

    def _read_on(self) -> None:
        self._call = None
        if self._watch.receive is not None:
            self._take()

    def on_receive_ready(self) -> None:
        """Receive, and pass it on; for the poller."""
        self._take()

    def _take(self) -> None:
        try:
            count = self._descriptor.try_recv_into(self._room)
        except SocketError as error:
            self.lose(error)
            return
        if count.__class__ is Want:
            if count is not self._watch.receive:
                self._watch.want_receive(count)
            return
        if not count:
            self._end()
            return
        self.count += count
        self.other.pass_on(SCRATCH[:count])
        self._read_on_if_buffered()

    def pass_on(self, data: memoryview) -> None:
        """Send *data*; what OpenSSL does not take is copied, and pauses the other one."""
        self._queue = data
        self._go_on_sending()
        if self._queue:
            self._queue = memoryview(bytes(self._queue))

    def _go_on_sending(self) -> None:
        """Send what waits, and go on with what waited for that."""
        descriptor = self._descriptor
        queue = self._queue
        try:
            want = descriptor.try_flush() if descriptor.unflushed else None
            while queue and want is None:
                count = descriptor.try_send(queue)
                if count.__class__ is Want:
                    want = count
                else:
                    queue = queue[count:]
                    want = WANT_WRITE if descriptor.unflushed else None
        except SocketError as error:
            self.lose(error)
            return
        self._queue = queue
        if want is not None:
            self._watch.want_send(want)
            if not self._stalled:
                self._stalled = True
                self.other.pause()
        elif self._stalled:
            self._stalled = False
            self._watch.stop_send()
            self.other.resume()
            if self._finishing:
                self.finish()

    def on_send_ready(self) -> None:
        """Send what waits; for the poller."""
        if self._stalled:
            self._go_on_sending()
        elif self._finishing:
            self.finish()

    def finish(self) -> None:
        """Send close_notify when everything is sent; see `Link.finish`."""
        if self._finished and not self.ended:
            return
        self._finishing = True
        if self._stalled:
            return
        if self.ended:
            self._finished = True
            self.lose(None)
            return
        try:
            want = self._descriptor.try_shutdown(SHUT_WR)
        except SocketError as error:
            self.lose(error)
            return
        if want is not None:
            self._watch.want_send(want)
            return
        self._watch.stop_send()
        self._finishing = False
        self._finished = True

    def on_fork(self) -> None:
        """Become unusable in a forked child; for the poller."""
        self._descriptor.on_fork()

    def abort(self) -> None:
        """End the connection at once, by a reset, and with it the other one."""
        if self._shutdown is None:
            super().abort()
        elif not self.lost:
            set_linger_reset(self._descriptor.sock)
            self._shutdown.cancel()

    def lose(self, error: BaseException | None) -> None:
        """Close the connection, in order by TLS shutdown, whose time the options limit."""
        if self.lost or self._shutdown is not None:
            return
        if self._call is not None:
            self._call.cancel()
            self._call = None
        if error is not None:
            super().lose(error)
            return
        reactor = self._relay.ledger.reactor
        self._shutdown = tls_shutdown(reactor, self._watch, self._descriptor)
        self._shutdown.addBoth(lambda _: Link.lose(self, None))


def link_for(relay: Links, established: Established, session: Session | None = None) -> Link:
    """Return what passes on what comes on *established*."""
    kind = TLSLink if isinstance(established.descriptor, TLSDescriptor) else Link
    return kind(relay, established, session)
