"""
A transport for protocols on the try layer, plain and TLS.

`Transport` promises what Twisted's own TCP transport does; `TLSTransport` adds
what TLS does, on the same descriptor. Reads go through one shared buffer. A write
goes to the kernel at once where it can; what does not fit is queued, and every wait
that is the library's own has a limit.
"""

from __future__ import annotations

import itertools
import socket as _socket
from collections.abc import Callable, Iterable
from typing import Any, Final

from cryptography import x509
from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import (
    IAddress,
    IConsumer,
    IDelayedCall,
    IHalfCloseableDescriptor,
    IHalfCloseableProtocol,
    IHandshakeListener,
    ILoggingContext,
    INegotiated,
    IPushProducer,
    ISSLTransport,
    ISystemHandle,
    ITCPTransport,
    ITLSTransport,
)
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python import context
from twisted.python.failure import Failure
from twisted.python.log import ILogContext
from zope.interface import Interface, implementer

from .._io.descriptor import Descriptor, byte_view
from .._io.fairness import BYTES, DELIVERY
from .._io.interfaces import Reactor
from .._io.poller import WANT_READ, WANT_WRITE, Slots, Want, contain
from .._io.send_queue import SendQueue
from .._net.happy_eyeballs import Established
from .._proxy_protocol.header import ProxyHeader
from .._tls.client import ClientContextFactory
from .._tls.context import negotiated_protocols
from .._tls.descriptor import TLSDescriptor
from .._tls.handshake import handshake, tls_shutdown
from .._tls.in_memory import tls_over
from .._tls.server import ServerContextFactory
from .._validation import in_seconds
from ..errors import (
    SocketConnectionTimeoutError,
    SocketError,
    SocketReadTimeoutError,
    SocketWriteTimeoutError,
    unraised,
)
from ..options import SocketOptions
from .factory import guard, log_prefix
from .foreign_tls import (
    FOREIGN_CLOSE_SECONDS,
    FOREIGN_HANDSHAKE_SECONDS,
    LIMITS,
    PlainSide,
    TwistedTLS,
    WithoutWrapper,
    check_bytes,
    check_context_factory,
    joined,
)

__all__ = ["SCRATCH", "ForeignTLSTransport", "IViewProtocol", "TLSTransport", "Transport"]

_sessions: Final = itertools.count()
"""Numbers the connections that servers of this process take, for log lines."""

_BUFFER_FULL: Final = 64 * 1024
"""Queued bytes above which a streaming producer is paused: `FileDescriptor.bufferSize`."""

SCRATCH: Final = memoryview(bytearray(256 * 1024))
"""
What every transport of the process reads into; copied or passed on before the next read.
As many bytes as one send over TLS takes (`TLS_BYTES`); one buffer for all, since each
connection would hold its own as long as it lives.
"""


class IViewProtocol(Interface):
    """A protocol that takes what arrives as a view of the shared buffer, without a copy."""

    def view_received(view: memoryview) -> None:  # noqa: N805 - zope interfaces have no self
        """Handle *view*, which is valid during this call only."""


@implementer(
    ITCPTransport,
    ITLSTransport,
    IHalfCloseableDescriptor,
    IPushProducer,
    IConsumer,
    ISystemHandle,
    ILoggingContext,
)
class Transport:
    """
    A connected descriptor for a protocol.

    Attributes:
        protocol: Receives the data; `None` once the connection is lost.
        connected: The connection stands.
        disconnecting: `loseConnection` was called.
        disconnected: The connection is lost.
        proxy_header: The PROXY header that the peer began with, whose addresses
            `getPeer` and `getHost` give then, or `None`.
        logstr: What log lines of the protocol are marked with.
    """

    _is_tls = False
    _target = SCRATCH[:DELIVERY]
    """What is received at once fits in there."""

    def __init__(
        self,
        reactor: Reactor,
        watch: Slots,
        descriptor: Descriptor,
        options: SocketOptions,
        host: IAddress,
        peer: IAddress,
        *,
        is_client: bool,
    ) -> None:
        """Take *watch*, which was made with ``keep``, and *descriptor* over."""
        self.reactor = reactor
        self.protocol: Any = None
        self.proxy_header: ProxyHeader | None = None
        self.connected = True
        self.disconnecting = False
        self.disconnected = False
        self.producer: Any = None
        self.streamingProducer = False
        self.producerPaused = False
        self._watch = watch
        self._descriptor = descriptor
        self._host = host
        self._peer = peer
        self._is_client = is_client
        self.logstr = "-"
        self._session: int | None = None
        self._log_context: dict[object, object] = {}
        self._deliver: Callable[[memoryview], None] | None = None
        self._on_gone: Callable[[], None] | None = None
        self._queue = SendQueue()
        self._paused = False
        self._read_closed = False
        self._write_closing = False
        self._write_closed = False
        self._starting_tls: ClientContextFactory | ServerContextFactory | None = None
        self._handshake_timer: IDelayedCall | None = None
        self._aborting = False
        self._shutdown: Deferred[None] | None = None
        self._handshake: Deferred[None] | None = None
        self._after_handshake: SendQueue | None = None
        self._calls: set[IDelayedCall] = set()
        self._will_continue = False
        self._read_limit = in_seconds(options.read_timeout)
        self._write_limit = in_seconds(options.write_timeout)
        self._read_timer: IDelayedCall | None = None
        self._write_timer: IDelayedCall | None = None
        self._last_read = 0.0
        self._last_write = 0.0

    # The life of a connection

    def attach(self, protocol: Any, on_gone: Callable[[], None] | None = None) -> None:
        """
        Begin: connect *protocol* to this transport, and read for it.

        Args:
            protocol: Receives the data.
            on_gone: Called once, after the protocol has lost its connection.
        """
        self._watch.owner = self
        self.protocol = protocol
        self._on_gone = on_gone
        try:
            self._name_protocol()
            if IViewProtocol.providedBy(protocol):
                self._deliver = protocol.view_received
            self.read_at_most(None)
            context.call(self._log_context, self._introduce, protocol)
        except BaseException:  # noqa: BLE001 - see _protocol_failed
            self._protocol_failed()
            return
        if self._read_limit is not None and self.connected:
            self._last_read = self.reactor.seconds()
            self._read_timer = self.reactor.callLater(self._read_limit, self._check_reading)
        self._update_reading()
        self._continue_if_buffered()

    def release_to(self, protocol: object) -> Established | None:
        """
        Give up the connection: *protocol* goes on with its descriptor and its watch.

        Returns:
            The connection, with the PROXY header that it began with; `None` if there is TLS
            already, or something waits to be sent, or *protocol* is not this transport's own:
            what stands in between must see what passes.
        """
        if self.protocol is not protocol or self._is_tls or not self.connected:
            return None
        if self._queue.size or self._starting_tls is not None:
            return None
        self._cancel_calls()
        self._watch.stop_receive()
        self.connected, self.disconnected, self.protocol = False, True, None
        on_gone, self._on_gone = self._on_gone, None
        if on_gone is not None:
            guard(on_gone)
        watch: Any = self._watch
        return Established(self._descriptor, watch, header=self.proxy_header)

    def _introduce(self, protocol: Any) -> None:
        protocol.makeConnection(self)
        if self._is_tls and self.connected:
            self._report_handshake()

    def _name_protocol(self) -> None:
        """Mark the protocol's log lines as Twisted does."""
        name = log_prefix(self.protocol)
        if self._is_client:
            self.logstr = f"{name},client"
        else:
            if self._session is None:
                self._session = next(_sessions)
            self.logstr = f"{name},{self._session},{getattr(self._peer, 'host', 'unix')}"
        theirs = context.get(ILogContext) or {}
        self._log_context = {ILogContext: {**theirs, "system": self.logstr}}

    def _report_handshake(self) -> None:
        listener = IHandshakeListener(self.protocol, None)
        if listener is not None:
            listener.handshakeCompleted()

    def _call_soon(self, function: Callable[..., None], *args: object) -> None:
        """Call *function* in the next reactor iteration, unless the connection is lost by then."""
        self._call_later(0, function, *args)

    def _call_later(self, delay: float, function: Callable[..., None], *args: object) -> None:
        """Call *function* after *delay* seconds, unless the connection is lost by then."""

        def run() -> None:
            self._calls.discard(call)
            function(*args)

        call = self.reactor.callLater(delay, run)
        self._calls.add(call)

    def _lose(self, reason: Failure) -> None:
        """Release everything and report the lost connection to the protocol."""
        if self.disconnected:
            return
        self.connected = False
        self.disconnected = True
        self.disconnecting = False
        self._cancel_calls()
        handshaking, self._handshake = self._handshake, None
        if handshaking is not None:
            handshaking.cancel()
        self._watch.close()
        self._descriptor.close()
        self._queue.clear()
        self._after_handshake = None
        producer, self.producer = self.producer, None
        if producer is not None:
            guard(producer.stopProducing)
        ended = self._descriptor.gone()
        if ended is None:
            self._report_loss(reason)
        else:
            ended.addCallback(lambda _: self._report_loss(reason))

    def _report_loss(self, reason: Failure) -> None:
        protocol, self.protocol, self._deliver = self.protocol, None, None
        context.call(self._log_context, guard, protocol.connectionLost, reason)
        on_gone, self._on_gone = self._on_gone, None
        if on_gone is not None:
            guard(on_gone)

    def _cancel_calls(self) -> None:
        for call in (*self._calls, self._read_timer, self._write_timer, self._handshake_timer):
            if call is not None and call.active():
                call.cancel()
        self._calls.clear()

    def _lose_soon(self, error: Exception) -> None:
        """
        Lose the connection in the next reactor iteration.

        Programs do not expect ``connectionLost`` within their call of ``write``.
        """
        if not self._aborting:
            self._aborting = True
            self._watch.stop_receive()
            self._watch.stop_send()
            self._call_soon(self._lose, Failure(error))

    def _protocol_failed(self) -> None:
        """
        Lose the connection for an exception that the protocol raised, as Twisted does.

        Called where it is handled; raises an interrupt again.
        """
        failure = Failure()
        assert failure.value is not None
        self._lose(failure)
        contain(failure.value, "a protocol raised an exception, its connection is closed")

    def on_poller_lost(self, reason: Exception) -> None:
        """Lose the connection: the reactor shuts down; for the poller."""
        self._lose(Failure(reason))

    def on_fork(self) -> None:
        """Become unusable in a forked child, where the protocol is not called; for the poller."""
        self._descriptor.on_fork()
        self._cancel_calls()
        self.connected = self.disconnecting = False
        self.disconnected = True

    # Reading

    def read_at_most(self, size: int | None) -> None:
        """Deliver at most *size* bytes, 1 or more, at a time; as usual if `None`."""
        usual = len(SCRATCH) if self._deliver is not None else DELIVERY
        self._target = SCRATCH[: usual if size is None else min(size, usual)]

    def _update_reading(self) -> None:
        """Wait to receive if, and only if, what could be received is wanted."""
        if not self.connected or self._handshake is not None or self._shutdown is not None:
            return
        if not self._reads:
            self._watch.stop_receive()
        elif self._watch.receive is None:
            self._watch.want_receive()

    @property
    def _reads(self) -> bool:
        return not (
            self._paused
            or self._read_closed
            or self.disconnecting
            or self._aborting
            or self.disconnected
            or self._shutdown is not None
            or self._starting_tls is not None
        )

    def on_receive_ready(self) -> None:
        """Receive; for the poller."""
        if self._deliver is not None:
            # A protocol that takes views is quick, and names itself in what it logs.
            self._receive()
            return
        context.call(self._log_context, self._receive)

    def _receive(self) -> None:
        if not self._reads:
            return
        deliver = self._deliver
        target = self._target
        try:
            count = self._descriptor.try_recv_into(target)
        except SocketError as error:
            self._lose(Failure(unraised(error)))
            return
        # Identity takes 10 ns; `isinstance` takes 60 for the class of an Enum.
        if count is WANT_READ or count is WANT_WRITE:
            if count is not self._watch.receive:
                self._watch.want_receive(count)
            return
        if count == 0:
            self._end_of_stream()
            return
        if self._read_limit is not None:
            self._last_read = self.reactor.seconds()
        try:
            if deliver is not None:
                deliver(target[:count])
            else:
                self.protocol.dataReceived(bytes(target[:count]))
        except BaseException:  # noqa: BLE001 - see _protocol_failed
            self._protocol_failed()
            return
        self._continue_if_buffered()

    def _continue_if_buffered(self) -> None:
        """
        Read on in the next reactor iteration if OpenSSL holds decrypted bytes.

        The poller cannot see those. Reading on at once would keep the reactor for as long
        as the peer sends.
        """
        if self._is_tls and self._reads and self._descriptor.buffered and not self._will_continue:
            self._will_continue = True
            self._call_soon(self._continue)

    def _continue(self) -> None:
        self._will_continue = False
        context.call(self._log_context, self._receive)

    def _end_of_stream(self) -> None:
        self._read_closed = True
        self._update_reading()
        try:
            listener = IHalfCloseableProtocol(self.protocol, None)
            if listener is None:
                self._finish()
                return
            listener.readConnectionLost()
        except BaseException:  # noqa: BLE001 - see _protocol_failed
            self._protocol_failed()
            return
        if self._write_closed and self.connected:
            self._finish()

    def readConnectionLost(self, reason: Failure) -> None:
        """Handle the end of the peer's half; owned by ``IHalfCloseableDescriptor``."""
        self._end_of_stream()

    def writeConnectionLost(self, reason: Failure) -> None:
        """Handle the end of our half; owned by ``IHalfCloseableDescriptor``."""
        self._lose(reason)

    def pauseProducing(self) -> None:
        """Deliver nothing until `resumeProducing`."""
        self._paused = True
        self._update_reading()

    def resumeProducing(self) -> None:
        """Deliver again."""
        self._paused = False
        if self._read_limit is not None:
            self._last_read = self.reactor.seconds()
        self._update_reading()
        self._continue_if_buffered()

    def stopProducing(self) -> None:
        """Lose the connection: the consumer wants no more."""
        self.loseConnection()

    def startReading(self) -> None:
        """Do as `resumeProducing`, under the name of Twisted's descriptors."""
        self.resumeProducing()

    def stopReading(self) -> None:
        """Do as `pauseProducing`, under the name of Twisted's descriptors."""
        self.pauseProducing()

    # Writing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """
        Send *data*, in order and reliably; what does not fit now is queued.

        Args:
            data: May be changed by its owner as soon as this returns.

        Raises:
            TypeError: *data* is no bytes.
        """
        check_bytes(data)
        if (
            not self.connected
            or self._write_closed
            or self._aborting
            or self._shutdown is not None
        ):
            return
        data = byte_view(data) if isinstance(data, memoryview) else data
        if self._queue.size or self._starting_tls is not None or self._descriptor.unflushed:
            self._enqueue(data)
            return
        size = len(data)
        sent = 0
        try:
            while sent < size:
                count = self._descriptor.try_send(memoryview(data)[sent:] if sent else data)
                if count is WANT_READ or count is WANT_WRITE:
                    self._wait_to_send(count)
                    break
                sent += count
                if sent < size and not self._is_tls:
                    # The kernel's buffer is full: the rest waits.
                    break
        except SocketError as error:
            self._lose_soon(unraised(error))
            return
        if sent < size:
            self._enqueue(memoryview(data)[sent:])
        elif self._descriptor.unflushed or (
            self.producer is not None and not self.streamingProducer
        ):
            self._want_flush()

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """
        Send each of *data*, in order; see `write`.

        Raises:
            TypeError: One of *data* is no bytes; nothing is sent then.
        """
        self.write(joined(data))

    def _enqueue(self, data: bytes | bytearray | memoryview) -> None:
        if not len(data):
            return
        queue, later = self._queue, self._after_handshake
        (queue if later is None else later).append(bytes(data))
        self._want_flush()
        if (
            queue.size + (0 if later is None else later.size) > _BUFFER_FULL
            and self.producer is not None
            and self.streamingProducer
            and not self.producerPaused
        ):
            self.producerPaused = True
            self.producer.pauseProducing()

    def _want_flush(self) -> None:
        """Have `_flush` called when the descriptor can be written."""
        if self._handshake is not None or self._shutdown is not None:
            return
        if self._starting_tls is not None and not self._queue.size:
            return
        if self._watch.send is None:
            self._watch.want_send()
        if self._write_limit is not None and self._write_timer is None:
            self._last_write = self.reactor.seconds()
            self._write_timer = self.reactor.callLater(self._write_limit, self._check_writing)

    def on_send_ready(self) -> None:
        """Send; for the poller."""
        context.call(self._log_context, self._on_send_ready)

    def _on_send_ready(self) -> None:
        if self.connected and not self._aborting:
            self._flush()

    def _flush(self) -> None:
        descriptor, queue = self._descriptor, self._queue
        budget = BYTES
        try:
            while queue.size and budget > 0:
                count = descriptor.try_send(queue.head())
                if count is WANT_READ or count is WANT_WRITE:
                    self._wait_to_send(count)
                    return
                budget -= count
                queue.sent(count)
                self._last_write = self.reactor.seconds() if self._write_limit else 0.0
            if queue.size:
                self._wait_to_send(WANT_WRITE)
                return
            want = descriptor.try_flush()
        except SocketError as error:
            self._lose(Failure(unraised(error)))
            return
        if want is not None:
            self._wait_to_send(want)
            return
        self._drained()

    def _wait_to_send(self, want: Want) -> None:
        if self._watch.send is not want:
            self._watch.want_send(want)

    def _drained(self) -> None:
        """Everything is with the kernel: go on with what waited for that."""
        self._watch.stop_send()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        self._go_on()

    def _go_on(self) -> None:
        if self._starting_tls is not None:
            self._begin_handshake()
        elif self.producer is not None and (not self.streamingProducer or self.producerPaused):
            self.producerPaused = False
            if not self.streamingProducer:
                self._want_flush()
            try:
                self.producer.resumeProducing()
            except BaseException:  # noqa: BLE001 - see _protocol_failed
                self._protocol_failed()
        elif self.producer is not None:
            return
        elif self.disconnecting:
            self._finish()
        elif self._write_closing and not self._write_closed:
            self._close_write()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """
        Let *producer* fill the queue, paused while more than 64 KiB wait.

        Raises:
            RuntimeError: Another producer is registered.
        """
        if self.producer is not None:
            raise RuntimeError(
                f"Cannot register producer {producer}, because producer {self.producer} "
                "was never unregistered."
            )
        if self.disconnected:
            producer.stopProducing()
            return
        self.producer = producer
        self.streamingProducer = streaming
        self.producerPaused = False
        if not streaming:
            self._want_flush()
            producer.resumeProducing()

    def stopConsuming(self) -> None:
        """Let go of the producer, and lose the connection."""
        self.unregisterProducer()
        self.loseConnection()

    def unregisterProducer(self) -> None:
        """Let go of the producer; a close that waited for it goes on."""
        self.producer = None
        if self.connected and (self.disconnecting or self._write_closing):
            self._want_flush()

    # The end

    def loseConnection(self) -> None:
        """Close the connection when all that was written is sent, and the producer is done."""
        if not self.connected or self.disconnecting:
            return
        self.disconnecting = True
        self._update_reading()
        if self._write_closed:
            self._call_soon(self._finish)
        else:
            self._want_flush()

    def loseWriteConnection(self) -> None:
        """Close the writing half when all that was written is sent; on TLS by close_notify."""
        if self.connected and not self._write_closing:
            self._write_closing = True
            self._want_flush()

    def _close_write(self) -> None:
        try:
            want = self._descriptor.try_shutdown(_socket.SHUT_WR)
        except SocketError as error:
            self._lose(Failure(unraised(error)))
            return
        if want is not None:
            self._wait_to_send(want)
            return
        self._write_closed = True
        try:
            listener = IHalfCloseableProtocol(self.protocol, None)
            if listener is not None:
                listener.writeConnectionLost()
        except BaseException:  # noqa: BLE001 - see _protocol_failed
            self._protocol_failed()
            return
        if self._read_closed and self.connected:
            self._finish()

    def _finish(self) -> None:
        """End in order: on TLS with a TLS shutdown, limited by `close_timeout`."""
        if self._shutdown is not None or self.disconnected:
            return
        if not isinstance(self._descriptor, TLSDescriptor):
            self._lose(Failure(ConnectionDone()))
            return
        self.disconnecting = True
        for timer in (self._read_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._read_timer = self._write_timer = None
        self._shutdown = tls_shutdown(self.reactor, self._watch, self._descriptor)
        self._shutdown.addBoth(self._shutdown_done)

    def _shutdown_done(self, _: object) -> None:
        if not self._aborting:
            self._lose(Failure(ConnectionDone()))

    def abortConnection(self) -> None:
        """Close at once and reset the connection; may be called again, and after loss."""
        if self.disconnected or self._aborting:
            return
        self._aborting = self.disconnecting = True
        self._descriptor.reset_on_close()
        if self._shutdown is not None:
            self._shutdown.cancel()
        else:
            handshaking, self._handshake = self._handshake, None
            if handshaking is not None:
                handshaking.cancel()
            self._watch.stop_receive()
            self._watch.stop_send()
        self._call_soon(self._lose, Failure(ConnectionAborted()))

    # Time limits

    def _check_reading(self) -> None:
        assert self._read_limit is not None
        left = self._last_read + self._read_limit - self.reactor.seconds()
        if self._read_closed:
            self._read_timer = None
        elif left > 0 or not self._reads:
            delay = left if left > 0 else self._read_limit
            self._read_timer = self.reactor.callLater(delay, self._check_reading)
        else:
            self._read_timer = None
            self._lose(Failure(SocketReadTimeoutError()))

    def _check_writing(self) -> None:
        assert self._write_limit is not None
        self._write_timer = None
        left = self._last_write + self._write_limit - self.reactor.seconds()
        if left > 0:
            self._write_timer = self.reactor.callLater(left, self._check_writing)
        else:
            self._lose(Failure(SocketWriteTimeoutError()))

    # TLS

    def startTLS(self, contextFactory: Any, normal: bool = True) -> None:
        """
        Speak TLS from here on, when what was written is sent.

        With an object of this package TLS is on the descriptor itself, and the
        transport provides ``ISSLTransport`` once the handshake is done. With any
        other, Twisted's own TLS comes in between, which provides it at once.
        What the protocol writes meanwhile is sent after the handshake either way.

        Args:
            contextFactory: Made by `client_context_factory` or
                `server_context_factory`; or any that Twisted takes:
                ``optionsForClientTLS(...)``, ``CertificateOptions``, or an
                old-style one with ``getContext``.
            normal: Whether the side that connected is TLS's client, too.

        Raises:
            TypeError: *contextFactory* is none.
            ValueError: It is for the other side; or TLS was started already.
        """
        is_client = self._is_client is bool(normal)
        ours = isinstance(contextFactory, ClientContextFactory | ServerContextFactory)
        if not ours:
            check_context_factory(contextFactory, is_client=is_client)
        elif isinstance(contextFactory, ClientContextFactory) is not is_client:
            side = "client" if is_client else "server"
            raise ValueError(f"contextFactory={contextFactory!r}: this is the {side}'s side")
        if self._is_tls or self._starting_tls is not None or isinstance(self, ForeignTLSTransport):
            raise ValueError("TLS was started already")
        if not self.connected:
            return
        if not ours:
            self.__class__ = ForeignTLSTransport
            changed: Any = self
            changed.start_foreign_tls(contextFactory, is_client=is_client)
            return
        # What is written from now on is sent after the handshake.
        self._starting_tls = contextFactory
        self._after_handshake = SendQueue()
        limit = in_seconds(contextFactory.options.handshake_timeout)
        if limit is not None:
            # From here on, and not from the first message: what is queued may never be sent.
            self._handshake_timer = self.reactor.callLater(limit, self._handshake_expired)
        self._update_reading()
        if not self._queue.size:
            self._call_soon(self._begin_handshake)

    def _begin_handshake(self) -> None:
        """Begin the handshake, once all plain text is sent."""
        factory = self._starting_tls
        if factory is None or self._handshake is not None or self._aborting:
            return
        try:
            protocols = negotiated_protocols(getattr(self.protocol, "factory", None))
        except BaseException:  # noqa: BLE001 - see _protocol_failed
            self._protocol_failed()
            return
        descriptor = self._descriptor = tls_over(self._descriptor, factory, protocols)
        self._handshake = handshake(self.reactor, self._watch, descriptor, None)
        self._handshake.addBoth(self._handshake_done)

    def _handshake_expired(self) -> None:
        self._lose(Failure(SocketConnectionTimeoutError("handshake")))

    def _handshake_done(self, result: Failure | None) -> None:
        self._handshake = None
        if self.disconnected or self._aborting:
            return
        if self._handshake_timer is not None:
            self._handshake_timer.cancel()
            self._handshake_timer = None
        self._watch.owner = self
        if isinstance(result, Failure):
            self._lose(result)
            return
        self._starting_tls = None
        assert self._after_handshake is not None
        self._queue.take_over(self._after_handshake)
        self._after_handshake = None
        # From here on it provides what a TLS transport does: protocols decide by its
        # interfaces whether a password may be sent, and callers ask `isinstance`. The other
        # class takes 0.2 us, where zope's `alsoProvides` takes 1.6 and answers only the first.
        self.__class__ = TLSTransport
        try:
            context.call(self._log_context, self._report_handshake)
        except BaseException:  # noqa: BLE001 - see _protocol_failed
            self._protocol_failed()
            return
        if not self.connected:
            return
        self._update_reading()
        self._continue_if_buffered()
        pulls = self.producer is not None and not self.streamingProducer
        if self._queue.size or self.disconnecting or self._write_closing or pulls:
            self._want_flush()

    # Looking at it

    def getHost(self) -> Any:
        """Return the address on this side."""
        return self._host

    def getPeer(self) -> Any:
        """Return the address of the peer."""
        return self._peer

    def getHandle(self) -> Any:
        """Return the socket, or on TLS OpenSSL's connection; both stay the transport's."""
        if isinstance(self._descriptor, TLSDescriptor):
            return self._descriptor.connection
        return self._descriptor.sock

    def fileno(self) -> int:
        """Return the descriptor; -1 once the connection is lost."""
        return -1 if self.disconnected else self._watch.fd

    def getTcpNoDelay(self) -> bool:
        """Return whether small writes are sent at once."""
        return bool(self._get_option(_socket.IPPROTO_TCP, _socket.TCP_NODELAY))

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Send small writes at once, or gather them."""
        self._set_option(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, int(enabled))

    def getTcpKeepAlive(self) -> bool:
        """Return whether the kernel probes an idle connection."""
        return bool(self._get_option(_socket.SOL_SOCKET, _socket.SO_KEEPALIVE))

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Have the kernel probe an idle connection, or not."""
        self._set_option(_socket.SOL_SOCKET, _socket.SO_KEEPALIVE, int(enabled))

    def _get_option(self, level: int, name: int) -> int:
        if self.disconnected or self._descriptor.sock.family == _socket.AF_UNIX:
            return 0
        return self._descriptor.sock.getsockopt(level, name)

    def _set_option(self, level: int, name: int, value: int) -> None:
        if not self.disconnected and self._descriptor.sock.family != _socket.AF_UNIX:
            self._descriptor.sock.setsockopt(level, name, value)

    def logPrefix(self) -> str:
        """Return what log lines of the protocol are marked with, in Twisted's form."""
        return self.logstr

    def __repr__(self) -> str:
        state = "connected" if self.connected else "lost"
        return f"<{type(self).__name__} {state} {self._host} to {self._peer}>"


@implementer(INegotiated)
class TLSTransport(Transport, TwistedTLS, metaclass=WithoutWrapper):  # type: ignore[misc]
    """A `Transport` whose connection speaks TLS, and whose peer is verified."""

    _is_tls = True

    @property
    def negotiatedProtocol(self) -> bytes | None:
        """The protocol that ALPN chose, or `None`."""
        chosen: bytes = self.tls.connection.get_alpn_proto_negotiated()
        return chosen or None

    @property
    def peer_certificate(self) -> x509.Certificate | None:
        """The peer's certificate, or `None`."""
        return self.tls.peer_certificate

    @property
    def tls(self) -> TLSDescriptor:
        """The descriptor, for what was negotiated."""
        assert isinstance(self._descriptor, TLSDescriptor)
        return self._descriptor


@implementer(ISSLTransport, INegotiated)
class ForeignTLSTransport(Transport, TwistedTLS):  # type: ignore[misc]
    """
    A `Transport` on which Twisted's own TLS was started; see `foreign_tls`.

    It passes what its protocol does on to Twisted's TLS protocol. A transport becomes
    one when TLS is started on it: its protocol has it already, and must find TLS
    behind it.
    """

    # An attribute that is missing here is not looked for in a transport beneath.
    __getattr__ = object.__getattribute__

    _tls_protocol: TLSMemoryBIOProtocol
    _closing = False

    def start_foreign_tls(self, context_factory: Any, *, is_client: bool) -> None:
        """Put Twisted's TLS protocol between this transport and its protocol."""
        producer, streaming = self.producer, self.streamingProducer
        if producer is not None:
            super().unregisterProducer()
        # There is no factory behind a protocol that is connected already.
        no_factory: Any = None
        factory = TLSMemoryBIOFactory(context_factory, is_client, no_factory, self.reactor)
        protocol = self.protocol
        self._tls_protocol = factory.protocol(factory, protocol, False)
        self.protocol = self._tls_protocol
        self._deliver = None
        beneath: object = PlainSide(self, super())
        try:
            self._tls_protocol.makeConnection(beneath)
        except BaseException:
            # A protocol that catches this must not go on in plain text.
            self.protocol = protocol
            self.abortConnection()
            raise
        self._call_later(FOREIGN_HANDSHAKE_SECONDS[is_client], self._check_handshake)
        if producer is not None:
            self.registerProducer(producer, streaming)

    @property
    def wrappedProtocol(self) -> Any:
        """The protocol behind TLS, which may be set."""
        return self._tls_protocol.wrappedProtocol

    @wrappedProtocol.setter
    def wrappedProtocol(self, protocol: Any) -> None:
        self._tls_protocol.wrappedProtocol = protocol

    # What goes through TLS

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send *data*, protected; see `Transport.write`."""
        check_bytes(data)
        if self.connected and not self._aborting:
            self._tls_protocol.write(bytes(data))

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """Send each of *data*, in order; see `write`."""
        self.write(joined(data))

    def loseConnection(self) -> None:
        """Close the connection when all that was written is sent, with a TLS shutdown."""
        if self.connected and not self.disconnecting and not self._closing:
            self._closing = True
            self._tls_protocol.loseConnection()
            self._call_later(FOREIGN_CLOSE_SECONDS, self._check_shutdown)

    def registerProducer(self, producer: object, streaming: bool) -> None:
        """Let *producer* write; see `Transport.registerProducer`."""
        self._tls_protocol.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        """Let go of the producer; a close that waited for it goes on."""
        self._tls_protocol.unregisterProducer()

    # Limits

    def _check_handshake(self) -> None:
        if self._connection.get_peer_finished() is None:
            self._lose(Failure(SocketConnectionTimeoutError("handshake")))

    def _check_shutdown(self) -> None:
        """Stop waiting for the peer's close_notify, if all is sent and its time has passed."""
        if self.producer is not None or self._queue.size:
            self._call_later(FOREIGN_CLOSE_SECONDS, self._check_shutdown)
        else:
            self._lose(Failure(ConnectionDone()))

    def _lose(self, reason: Failure) -> None:
        if reason.check(*LIMITS) and not self._aborting:
            # Twisted's TLS reports any end without close_notify as a lost connection, unless
            # it is given another reason in this way.
            self._tls_protocol.failVerification(reason)
        else:
            super()._lose(reason)

    # Looking at it

    @property
    def _connection(self) -> SSL.Connection:
        connection: SSL.Connection = self._tls_protocol.getHandle()
        return connection

    def getHandle(self) -> Any:
        """Return OpenSSL's connection; `None` once the connection is lost."""
        return self._tls_protocol.getHandle()

    @property
    def negotiatedProtocol(self) -> bytes | None:
        """The protocol that ALPN chose, or `None`."""
        return self._tls_protocol.negotiatedProtocol

    @property
    def peer_certificate(self) -> x509.Certificate | None:
        """The peer's certificate, or `None`; `None` too once the connection is lost."""
        if self.disconnected:
            return None
        return self._connection.get_peer_certificate(as_cryptography=True)
