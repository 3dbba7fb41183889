"""
TLS over a transport that is no descriptor of ours.

OpenSSL works on memory buffers here, and what it makes goes through another
transport; everything else is as on a descriptor. `InnerTransport` stands where
the socket stands, `LayeredWatch` where the poller's watch does, so handshake,
goodbye, limits and errors are those of `twisted_netsock._tls.descriptor` and of
`TLSTransport`.
"""

from __future__ import annotations

import select
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from OpenSSL import SSL
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IHalfCloseableDescriptor, ISSLTransport, ITCPTransport
from twisted.python.failure import Failure

from .._io.fairness import REPORTS
from .._io.poller import WANT_READ, WANT_WRITE, Slots, Want
from .._tls.client import ClientContextFactory
from .._tls.descriptor import TLSDescriptor
from .._tls.openssl import TOO_LONG, MessageLimit
from .._tls.server import ServerContextFactory
from ..errors import (
    SocketConnectionLostError,
    SocketError,
    SocketWriteTimeoutError,
    TLSHandshakeError,
    unraised,
)
from .transport import TLSTransport

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["InnerTransport", "LayeredDescriptor", "LayeredTransport", "LayeredWatch"]

_CHUNK: Final = 64 * 1024
"""Bytes that are taken from OpenSSL at a time."""

T = TypeVar("T")


class InnerTransport:
    """
    Another transport, behind the few methods of a socket that TLS needs.

    Attributes:
        transport: The transport.
        blocked: It has asked for nothing more to be written for now.
        lost: Why it ended; `None` as long as it stands.
    """

    def __init__(self, reactor: Any, transport: Any, close_seconds: float) -> None:
        """Speak for *transport*, which gets *close_seconds* to end when it is closed."""
        self._reactor = reactor
        self._close_seconds = close_seconds
        self._timer: Any = None
        self._paused = False
        self._producing = False
        self._writes = True
        self._closed = False
        self.transport = transport
        self.blocked = False
        self.lost: Failure | None = None

    def register(self, producer: Any) -> None:
        """Have *producer* told when nothing more may be written."""
        self.transport.registerProducer(producer, True)
        self._producing = True

    def _stop_producing(self) -> None:
        # A transport with a producer does not end before that is done.
        if self._producing:
            self._producing = False
            self.transport.unregisterProducer()

    def write(self, data: bytes) -> None:
        """Send *data*, unless the transport is at its end."""
        if self._writes and self.lost is None:
            self.transport.write(data)

    def pause(self) -> None:
        """Take nothing more for now."""
        if not self._paused and self.lost is None and not self._closed:
            self._paused = True
            self.transport.pauseProducing()

    def resume(self) -> None:
        """Take what comes again."""
        if self._paused and self.lost is None:
            self._paused = False
            self.transport.resumeProducing()

    def shutdown(self, _how: int) -> None:
        """
        Say that nothing more will be written, where the transport can.

        One that speaks TLS itself cannot: it would be cut off without a goodbye.
        """
        transport: Any = self.transport
        if (
            self._writes
            and self.lost is None
            and IHalfCloseableDescriptor.providedBy(transport)
            and not ISSLTransport.providedBy(transport)
        ):
            self._writes = False
            self._stop_producing()
            self.transport.loseWriteConnection()

    def close(self) -> None:
        """End the transport in order; at once if it does not get rid of what was written."""
        if self.lost is not None or self._closed:
            return
        if self.blocked:
            self.abort()
            return
        self._end()
        # One that speaks TLS itself must read to end.
        self.resume()
        self.transport.loseConnection()

    def abort(self) -> None:
        """End the transport at once."""
        if self.lost is None:
            self._end()
            getattr(self.transport, "abortConnection", self.transport.loseConnection)()

    def _end(self) -> None:
        self._closed = True
        self._writes = False
        if self._timer is None:
            self._timer = self._reactor.callLater(self._close_seconds, self._expire)
        self._stop_producing()

    def _expire(self) -> None:
        self._timer = None
        self.abort()

    def end(self, reason: Failure) -> None:
        """Note that the transport has ended."""
        self.lost = reason
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class LayeredDescriptor(TLSDescriptor):
    """
    TLS on memory buffers, whose bytes go through an `InnerTransport`.

    Attributes:
        readable: Something has come in since OpenSSL last asked for more.
    """

    __slots__ = ("_excess", "_limit", "inner", "readable")

    def __init__(
        self,
        inner: InnerTransport,
        factory: ClientContextFactory | ServerContextFactory,
        protocols: Sequence[bytes] = (),
    ) -> None:
        # Where OpenSSL is given no socket it works on memory.
        no_socket: Any = None
        super().__init__(no_socket, factory, protocols)
        in_its_place: Any = inner
        self.sock = in_its_place
        self.inner = inner
        self.readable = False
        self._limit = None if self.is_client else MessageLimit(self.connection)
        self._excess: SocketError | None = None

    def feed(self, data: bytes) -> None:
        """Take what has come in."""
        self.readable = True
        if self._limit is not None and self._excess is None and not self.handshaken:
            try:
                self._limit.check(data)
            except TLSHandshakeError as error:
                self._excess = unraised(error)
        if self._excess is None:
            self.connection.bio_write(data)

    def finish(self) -> None:
        """Take note that nothing more will come in."""
        self.connection.bio_shutdown()
        self.readable = True

    def _look_for_refusal(self) -> None:
        """Do nothing: a send into memory does not fail, and hides no alert."""

    def _pass_on(self) -> None:
        """Hand what OpenSSL has made to the inner transport."""
        while True:
            try:
                data = self.connection.bio_read(_CHUNK)
            except SSL.Error:
                # There is nothing more.
                return
            self.inner.write(data)

    def _noted(self, result: T) -> T:
        if result is WANT_READ:
            self.readable = False
        return result

    def try_handshake(self) -> Want | None:
        """Carry the handshake on; see `TLSDescriptor.try_handshake`."""
        if self._excess is not None and not self.failed:
            self.inner.write(TOO_LONG)
            raise self._fail(unraised(self._excess))
        try:
            return self._noted(super().try_handshake())
        finally:
            self._pass_on()

    def try_recv(self, n: int, flags: int = 0) -> bytes | Want:
        """Return up to *n* bytes; see `TLSDescriptor.try_recv`."""
        try:
            return self._noted(super().try_recv(n, flags))
        finally:
            self._pass_on()

    def try_recv_into(self, view: memoryview | bytearray, flags: int = 0) -> int | Want:
        """Fill *view*; see `TLSDescriptor.try_recv_into`."""
        try:
            return self._noted(super().try_recv_into(view, flags))
        finally:
            self._pass_on()

    def try_send(self, view: Buffer, flags: int = 0) -> int | Want:
        """Take some of *view*; see `TLSDescriptor.try_send`."""
        want = self._check_way()
        if want is not None:
            return want
        try:
            return self._noted(super().try_send(view, flags))
        finally:
            self._pass_on()

    def try_flush(self) -> Want | None:
        """Send the piece that was taken; see `TLSDescriptor.try_flush`."""
        try:
            return self._noted(super().try_flush())
        finally:
            self._pass_on()

    def try_shutdown(self, how: int) -> Want | None:
        """Shut down one direction or both; see `TLSDescriptor.try_shutdown`."""
        want = self._check_way()
        if want is not None:
            return want
        try:
            return self._noted(super().try_shutdown(how))
        finally:
            self._pass_on()

    def _check_way(self) -> Want | None:
        """Tell whether the inner transport takes more; it must not be lost."""
        if self.inner.lost is not None and self._failure is None:
            raise self._fail(self.loss())
        return WANT_WRITE if self.inner.blocked else None

    def loss(self) -> SocketError:
        """Return the error of a connection that the inner transport lost."""
        reason = None if self.inner.lost is None else self.inner.lost.value
        if isinstance(reason, SocketError):
            return unraised(reason)
        if reason is None or isinstance(reason, ConnectionDone):
            return SocketConnectionLostError()
        return SocketConnectionLostError(strerror=f"The inner connection was lost: {reason}")

    def _broken(self, error: Exception) -> bool:
        """Tell whether *error* is the end of an inner transport that broke."""
        lost = self.inner.lost
        return (
            isinstance(error, SSL.SysCallError)
            and lost is not None
            and lost.check(ConnectionDone) is None
        )

    def _handshake_error(self, error: Exception) -> SocketError:
        if self._broken(error) and self.connection.state.verification.failure is None:
            return self.loss()
        return super()._handshake_error(error)

    def _data_error(self, error: Exception) -> SocketError:
        return self.loss() if self._broken(error) else super()._data_error(error)


class LayeredWatch(Slots):
    """
    Tells its owner that something has come in, or may be written, as a `Watch` does.

    Attributes:
        fd: No descriptor: -1.
    """

    def __init__(self, reactor: Any, descriptor: LayeredDescriptor) -> None:
        super().__init__()
        self._reactor = reactor
        self._descriptor = descriptor
        self._inner = descriptor.inner
        self._call: Any = None
        self.fd = -1

    def want_receive(self, want: Want = WANT_READ) -> None:
        """Call `Owner.on_receive_ready` whenever the inner transport is as wanted."""
        self.receive = want
        self._ask(want)

    def want_send(self, want: Want = WANT_WRITE) -> None:
        """Call `Owner.on_send_ready` whenever the inner transport is as wanted."""
        self.send = want
        self._ask(want)

    def _ask(self, want: Want) -> None:
        if want is WANT_READ:
            self._inner.resume()
        if self._events & self.wanted:
            self._report_soon()

    @property
    def _events(self) -> int:
        """What could be reported now, as a mask of poll(2)."""
        return (select.POLLIN if self._descriptor.readable else 0) | (
            0 if self._inner.blocked else select.POLLOUT
        )

    def keep(self) -> None:
        """Do nothing: the inner transport keeps all of this alive."""

    def close(self) -> None:
        """Report nothing any more."""
        self.receive = self.send = None
        self.owner = None
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def arrived(self) -> None:
        """Report what has come in; the inner transport pauses if nobody wants it."""
        if self.wanted & select.POLLIN:
            self.report_all()
        else:
            self._inner.pause()

    def report_all(self) -> None:
        """Report what the owner waits for, as long as it waits."""
        for _ in range(REPORTS):
            events = self._events & self.wanted
            if not events:
                return
            self.report(events)
        self._report_soon()

    def _report_soon(self) -> None:
        if self._call is None:
            self._call = self._reactor.callLater(0, self._run)

    def _run(self) -> None:
        self._call = None
        self.report_all()


class LayeredTransport(TLSTransport):
    """A `TLSTransport` over another transport."""

    _watch: Any
    _ending: Failure | None = None

    @property
    def _inner(self) -> InnerTransport:
        inner: InnerTransport = self._descriptor.inner
        return inner

    def _lose(self, reason: Failure) -> None:
        """Lose the connection, once the inner transport has ended."""
        if self._inner.lost is not None:
            super()._lose(self._ending or reason)
        elif self._ending is None:
            self._begin_to_end(reason)
            if reason.check(SocketWriteTimeoutError) is None:
                self._inner.close()
            else:
                self._inner.abort()

    def _begin_to_end(self, reason: Failure) -> None:
        self._ending = reason
        self._aborting = self.disconnecting = True
        self._watch.stop_receive()
        self._watch.stop_send()
        for timer in (self._read_timer, self._write_timer):
            if timer is not None and timer.active():
                timer.cancel()
        self._read_timer = self._write_timer = None

    def inner_ended(self) -> None:
        """Handle the end of the inner transport."""
        broken = self._inner.lost is not None and self._inner.lost.check(ConnectionDone) is None
        if self._ending is not None:
            self._lose(self._ending)
        elif self._goodbye is not None or (self._reads and self._watch.receive is not None):
            self._watch.report_all()
        elif self._read_closed or broken:
            self._lose(Failure(self._descriptor.loss()))

    def abortConnection(self) -> None:
        """Close at once and reset the connection; may be called again, and after loss."""
        if self.disconnected:
            return
        if self._ending is None:
            self._begin_to_end(Failure(ConnectionAborted()))
        if self._goodbye is not None:
            self._goodbye.cancel()
        self._inner.abort()

    def _tcp(self) -> Any:
        """Return the inner transport, if it is TCP and stands."""
        transport = self._inner.transport
        # Twisted's transports on UNIX sockets say that they are TCP, too.
        is_tcp = ITCPTransport.providedBy(transport) and hasattr(self._host, "port")
        return transport if is_tcp and self._inner.lost is None else None

    def getTcpNoDelay(self) -> bool:
        """Tell whether small writes are sent at once; `False` where it is not TCP."""
        tcp = self._tcp()
        return tcp is not None and bool(tcp.getTcpNoDelay())

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Send small writes at once, or gather them; nothing where it is not TCP."""
        tcp = self._tcp()
        if tcp is not None:
            tcp.setTcpNoDelay(enabled)

    def getTcpKeepAlive(self) -> bool:
        """Tell whether the kernel probes an idle connection; `False` where it is not TCP."""
        tcp = self._tcp()
        return tcp is not None and bool(tcp.getTcpKeepAlive())

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Have the kernel probe an idle connection, or not; nothing where it is not TCP."""
        tcp = self._tcp()
        if tcp is not None:
            tcp.setTcpKeepAlive(enabled)
