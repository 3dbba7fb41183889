"""
A transport for protocols on the try layer, plain and TLS.

`Transport` promises what Twisted's own TCP transport does; `TLSTransport` adds
what TLS does, on the same descriptor. A write goes to the kernel at once where
it can, a read goes through one shared buffer, and every wait that is the
library's own has a limit.
"""

from __future__ import annotations

import socket as _socket
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

from cryptography import x509
from OpenSSL import crypto
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import (
    IAddress,
    IConsumer,
    IHalfCloseableDescriptor,
    IHalfCloseableProtocol,
    IHandshakeListener,
    ILoggingContext,
    INegotiated,
    IPushProducer,
    ISystemHandle,
    ITCPTransport,
    ITLSTransport,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import Interface, implementer

from .client_contexts import ClientContextFactory
from .contexts import negotiated_protocols
from .descriptors import (
    WANT_READ,
    WANT_WRITE,
    Descriptor,
    Want,
    byte_view,
    set_linger_reset,
)
from .errors import SocketError, SocketReadTimeoutError, SocketWriteTimeoutError
from .options import SocketOptions
from .proxy_headers import ProxyHeader
from .readiness import Watch
from .server_contexts import ServerContextFactory
from .tls import TLSDescriptor, handshake, say_goodbye

__all__ = ["IViewProtocol", "TLSTransport", "Transport"]

_SCRATCH: Final = memoryview(bytearray(256 * 1024))
"""What every transport of the process reads into; copied or passed on before the next read."""

_READ_LIMIT: Final = 64 * 1024
"""Bytes that one delivery to an ordinary protocol holds at most."""

_BUFFER_FULL: Final = 64 * 1024
"""Queued bytes above which a streaming producer is paused, as in Twisted."""

_FLUSH_LIMIT: Final = 1024 * 1024
"""Bytes sent for one connection between two turns of the reactor."""

_JOIN_LIMIT: Final = 256 * 1024
"""Queued chunks are sent together up to this many bytes."""

_log = Logger()


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
        protocol: Whom data goes to; `None` once the connection is lost.
        connected: The connection stands.
        disconnecting: `loseConnection` was called.
        disconnected: The connection is lost.
        proxy_header: The PROXY header that the peer began with, whose addresses
            `getPeer` and `getHost` give then, or `None`.
    """

    _is_tls = False

    def __init__(
        self,
        reactor: Any,
        watch: Watch,
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
        self._descriptor: Any = descriptor
        self._options = options
        self._host = host
        self._peer = peer
        self._is_client = is_client
        self._deliver: Callable[[memoryview], None] | None = None
        self._on_gone: Callable[[], None] | None = None
        self._queue: deque[bytes | memoryview] = deque()
        self._queued = 0
        self._paused = False
        self._read_closed = False
        self._write_closing = False
        self._write_closed = False
        self._shaking: ClientContextFactory | ServerContextFactory | None = None
        self._aborting = False
        self._read_want: Want = WANT_READ
        self._write_want: Want | None = None
        self._goodbye: Deferred[None] | None = None
        self._handshake: Deferred[None] | None = None
        self._behind_handshake: list[bytes] = []
        self._calls: set[Any] = set()
        self._continuing = False
        self._read_limit = _seconds(options.read_timeout)
        self._write_limit = _seconds(options.write_timeout)
        self._read_timer: Any = None
        self._write_timer: Any = None
        self._last_read = 0.0
        self._last_write = 0.0
        watch.owner = self

    # The life of a connection

    def attach(self, protocol: Any, on_gone: Callable[[], None] | None = None) -> None:
        """
        Begin: connect *protocol* to this transport, and read for it.

        Args:
            protocol: Whom data goes to.
            on_gone: Called once, after the protocol has lost its connection.
        """
        self.protocol = protocol
        self._on_gone = on_gone
        if IViewProtocol.providedBy(protocol):
            self._deliver = protocol.view_received
        try:
            protocol.makeConnection(self)
            if self._is_tls and self.connected:
                self._tell_handshake_completed()
        except Exception:  # noqa: BLE001 - see _protocol_failed
            self._protocol_failed()
            return
        if self._read_limit is not None and self.connected:
            self._last_read = self.reactor.seconds()
            self._read_timer = self.reactor.callLater(self._read_limit, self._check_reading)
        self._update_reading()
        self._continue_if_buffered()

    def _tell_handshake_completed(self) -> None:
        listener = IHandshakeListener(self.protocol, None)
        if listener is not None:
            listener.handshakeCompleted()

    def _call_soon(self, function: Callable[..., None], *args: object) -> None:
        """Call *function* in the reactor's next turn, unless the connection is lost by then."""

        def run() -> None:
            self._calls.discard(call)
            function(*args)

        call = self.reactor.callLater(0, run)
        self._calls.add(call)

    def _lose(self, reason: Failure) -> None:
        """Note that the connection is lost: let go of everything, and tell the protocol."""
        if self.disconnected:
            return
        self.connected = False
        self.disconnected = True
        self.disconnecting = False
        for call in (*self._calls, self._read_timer, self._write_timer):
            if call is not None and call.active():
                call.cancel()
        self._calls.clear()
        handshaking, self._handshake = self._handshake, None
        if handshaking is not None:
            handshaking.cancel()
        self._watch.close()
        self._descriptor.close()
        self._queue.clear()
        self._queued = 0
        producer, self.producer = self.producer, None
        if producer is not None:
            _guard(producer.stopProducing)
        protocol, self.protocol, self._deliver = self.protocol, None, None
        _guard(protocol.connectionLost, reason)
        on_gone, self._on_gone = self._on_gone, None
        if on_gone is not None:
            on_gone()

    def _lose_soon(self, error: Exception) -> None:
        """Lose the connection in the next turn: nothing is told from inside a write."""
        if not self._aborting:
            self._aborting = True
            self._watch.stop_read()
            self._watch.stop_write()
            self._call_soon(self._lose, Failure(error))

    def _protocol_failed(self) -> None:
        """Lose the connection for an exception that the protocol raised, as Twisted does."""
        failure = Failure()
        _log.failure("a protocol raised an exception, its connection is closed", failure)
        self._lose(failure)

    def on_poller_lost(self, reason: Exception) -> None:
        """Lose the connection: the reactor shuts down; for the poller."""
        self._lose(Failure(reason))

    # Reading

    def _update_reading(self) -> None:
        """Wait to read if, and only if, somebody wants what could be read."""
        if not self.connected or self._handshake is not None or self._goodbye is not None:
            return
        if (self._reads and self._read_want is WANT_READ) or self._write_want is WANT_READ:
            if not self._watch.reading:
                self._watch.want_read()
        else:
            self._watch.stop_read()

    @property
    def _reads(self) -> bool:
        return not (
            self._paused
            or self._read_closed
            or self.disconnecting
            or self._aborting
            or self.disconnected
            or self._goodbye is not None
            or self._shaking is not None
        )

    def on_readable(self) -> None:
        """Receive; for the poller."""
        if self._write_want is WANT_READ:
            self._flush()
        if self._reads:
            self._receive()

    def _receive(self) -> None:
        deliver = self._deliver
        target = _SCRATCH if deliver is not None else _SCRATCH[:_READ_LIMIT]
        try:
            count = self._descriptor.try_recv_into(target)
        except SocketError as error:
            self._lose(Failure(error))
            return
        if count.__class__ is Want:
            if count is not self._read_want:
                self._read_want = count
                self._update_reading()
                if count is WANT_WRITE:
                    self._watch.want_write()
            return
        self._read_want = WANT_READ
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
        except Exception:  # noqa: BLE001 - see _protocol_failed
            self._protocol_failed()
            return
        self._continue_if_buffered()

    def _continue_if_buffered(self) -> None:
        """Read on in the next turn if bytes wait where the poller cannot see them."""
        if self._is_tls and self._reads and self._descriptor.buffered and not self._continuing:
            self._continuing = True
            self._call_soon(self._continue)

    def _continue(self) -> None:
        self._continuing = False
        if self._reads:
            self._receive()

    def _end_of_stream(self) -> None:
        self._read_closed = True
        self._update_reading()
        listener = IHalfCloseableProtocol(self.protocol, None)
        if listener is None:
            self._finish()
            return
        try:
            listener.readConnectionLost()
        except Exception:  # noqa: BLE001 - see _protocol_failed
            self._protocol_failed()
            return
        if self._write_closed and self.connected:
            self._finish()

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
        """Lose the connection, as a producer that nobody listens to."""
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
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"data must be bytes, not {type(data).__name__}")
        if not self.connected or self._write_closed or self._aborting or self._goodbye is not None:
            return
        data = byte_view(data) if isinstance(data, memoryview) else data
        if self._queue or self._shaking is not None or self._write_want is not None:
            self._enqueue(data)
            return
        size = len(data)
        sent = 0
        try:
            while sent < size:
                count = self._descriptor.try_send(memoryview(data)[sent:] if sent else data)
                if count.__class__ is Want:
                    self._write_want = count
                    break
                sent += count
                if sent < size and not self._is_tls:
                    # The kernel's buffer is full: the rest waits.
                    break
        except SocketError as error:
            self._lose_soon(error)
            return
        if sent < size:
            self._enqueue(memoryview(data)[sent:])
        elif self._descriptor.unflushed or (
            self.producer is not None and not self.streamingProducer
        ):
            self._want_flush()

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """Send each of *data*, in order; see `write`."""
        self.write(b"".join(data))

    def _enqueue(self, data: bytes | bytearray | memoryview) -> None:
        if not len(data):
            return
        if self._shaking is not None:
            self._behind_handshake.append(bytes(data))
        else:
            self._queue.append(bytes(data))
        self._queued += len(data)
        self._want_flush()
        if (
            self._queued > _BUFFER_FULL
            and self.producer is not None
            and self.streamingProducer
            and not self.producerPaused
        ):
            self.producerPaused = True
            self.producer.pauseProducing()

    def _want_flush(self) -> None:
        """Have `_flush` called when the descriptor can be written."""
        if self._handshake is not None or self._goodbye is not None:
            return
        if self._shaking is not None and not self._queue:
            return
        if self._write_want is WANT_READ:
            self._update_reading()
        elif not self._watch.writing:
            self._watch.want_write()
        if self._write_limit is not None and self._write_timer is None:
            self._last_write = self.reactor.seconds()
            self._write_timer = self.reactor.callLater(self._write_limit, self._check_writing)

    def on_writable(self) -> None:
        """Send; for the poller."""
        if self._read_want is WANT_WRITE:
            self._read_want = WANT_READ
            self._update_reading()
            if self._reads:
                self._receive()
        if self.connected and not self._aborting:
            self._flush()

    def _flush(self) -> None:
        self._write_want = None
        descriptor = self._descriptor
        budget = _FLUSH_LIMIT
        try:
            while self._queue and budget > 0:
                chunk = self._next_chunk()
                count = descriptor.try_send(chunk)
                if count.__class__ is Want:
                    self._wait_to_flush(count)
                    return
                budget -= count
                self._queued -= count
                self._last_write = self.reactor.seconds() if self._write_limit else 0.0
                if count < len(chunk):
                    self._queue[0] = memoryview(chunk)[count:]
                else:
                    self._queue.popleft()
            if self._queue:
                return
            want = descriptor.try_flush()
        except SocketError as error:
            self._lose(Failure(error))
            return
        if want is not None:
            self._wait_to_flush(want)
            return
        self._drained()

    def _next_chunk(self) -> bytes | memoryview:
        """Return the head of the queue, small chunks joined: one system call for many writes."""
        queue = self._queue
        if len(queue) > 1 and len(queue[0]) + len(queue[1]) <= _JOIN_LIMIT:
            size = 0
            parts = []
            while queue and size + len(queue[0]) <= _JOIN_LIMIT:
                part = queue.popleft()
                size += len(part)
                parts.append(part)
            queue.appendleft(b"".join(parts))
        return queue[0]

    def _wait_to_flush(self, want: Want) -> None:
        self._write_want = want
        if want is WANT_READ:
            self._watch.stop_write()
            self._update_reading()
        elif not self._watch.writing:
            self._watch.want_write()

    def _drained(self) -> None:
        """Everything is with the kernel: go on with what waited for that."""
        self._watch.stop_write()
        self._update_reading()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        if self._shaking is not None:
            self._shake()
        elif self.producer is not None and (not self.streamingProducer or self.producerPaused):
            self.producerPaused = False
            if not self.streamingProducer:
                self._want_flush()
            try:
                self.producer.resumeProducing()
            except Exception:  # noqa: BLE001 - see _protocol_failed
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
            self._lose(Failure(error))
            return
        if want is not None:
            self._wait_to_flush(want)
            return
        self._write_closed = True
        listener = IHalfCloseableProtocol(self.protocol, None)
        if listener is not None:
            try:
                listener.writeConnectionLost()
            except Exception:  # noqa: BLE001 - see _protocol_failed
                self._protocol_failed()
                return
        if self._read_closed and self.connected:
            self._finish()

    def _finish(self) -> None:
        """End in order: on TLS with a goodbye, which its options limit."""
        if self._goodbye is not None or self.disconnected:
            return
        if not isinstance(self._descriptor, TLSDescriptor):
            self._lose(Failure(ConnectionDone()))
            return
        self.disconnecting = True
        for timer in (self._read_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._read_timer = self._write_timer = None
        self._goodbye = say_goodbye(self.reactor, self._watch, self._descriptor)
        self._goodbye.addBoth(self._after_goodbye)

    def _after_goodbye(self, _: object) -> None:
        if not self._aborting:
            self._lose(Failure(ConnectionDone()))

    def abortConnection(self) -> None:
        """Close at once and reset the connection; may be called again, and after loss."""
        if self.disconnected or self._aborting:
            return
        self._aborting = self.disconnecting = True
        if self._goodbye is not None:
            self._goodbye.cancel()
        else:
            handshaking, self._handshake = self._handshake, None
            if handshaking is not None:
                handshaking.cancel()
            self._watch.stop_read()
            self._watch.stop_write()
            set_linger_reset(self._descriptor.sock)
        self._call_soon(self._lose, Failure(ConnectionAborted()))

    def readConnectionLost(self, reason: Failure) -> None:
        """Handle the end of the peer's half; owned by ``IHalfCloseableDescriptor``."""
        self._end_of_stream()

    def writeConnectionLost(self, reason: Failure) -> None:
        """Handle the end of our half; owned by ``IHalfCloseableDescriptor``."""
        self._lose(reason)

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

        Args:
            contextFactory: Made by `client_context_factory` or
                `server_context_factory`.
            normal: Whether the side that connected is TLS's client, too.

        Raises:
            TypeError: *contextFactory* is another kind of object.
            ValueError: It is for the other side; or TLS was started already.
        """
        if not isinstance(contextFactory, ClientContextFactory | ServerContextFactory):
            raise TypeError(
                "contextFactory must be made by client_context_factory or "
                f"server_context_factory, not {contextFactory!r}"
            )
        if isinstance(contextFactory, ClientContextFactory) is not (self._is_client is normal):
            side = "client" if self._is_client is normal else "server"
            raise ValueError(f"contextFactory={contextFactory!r}: this is the {side}'s side")
        if self._is_tls or self._shaking is not None:
            raise ValueError("TLS was started already")
        if not self.connected:
            return
        # What is written from now on goes behind the handshake.
        self._shaking = contextFactory
        self._update_reading()
        if not self._queue:
            self._call_soon(self._shake)

    def _shake(self) -> None:
        """Begin the handshake: everything plain is sent."""
        factory = self._shaking
        if factory is None or self._handshake is not None or self._aborting:
            return
        protocols = negotiated_protocols(getattr(self.protocol, "factory", None))
        descriptor = self._descriptor = TLSDescriptor(self._descriptor.sock, factory, protocols)
        self._handshake = handshake(
            self.reactor, self._watch, descriptor, _seconds(factory.options.handshake_timeout)
        )
        self._handshake.addBoth(self._shaken)

    def _shaken(self, result: Failure | None) -> None:
        self._handshake = None
        if self.disconnected or self._aborting:
            return
        self._watch.owner = self
        if isinstance(result, Failure):
            self._lose(result)
            return
        self._shaking = None
        self._queue.extend(self._behind_handshake)
        self._behind_handshake.clear()
        # From here on it provides what a TLS transport does: protocols decide by its
        # interfaces whether a password may be sent.
        self.__class__ = TLSTransport
        try:
            self._tell_handshake_completed()
        except Exception:  # noqa: BLE001 - see _protocol_failed
            self._protocol_failed()
            return
        if not self.connected:
            return
        self._update_reading()
        self._continue_if_buffered()
        pulls = self.producer is not None and not self.streamingProducer
        if self._queue or self.disconnecting or self._write_closing or pulls:
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
        """Tell whether small writes are sent at once."""
        return bool(self._get_option(_socket.IPPROTO_TCP, _socket.TCP_NODELAY))

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Send small writes at once, or gather them."""
        self._set_option(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, int(enabled))

    def getTcpKeepAlive(self) -> bool:
        """Tell whether the kernel probes an idle connection."""
        return bool(self._get_option(_socket.SOL_SOCKET, _socket.SO_KEEPALIVE))

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Have the kernel probe an idle connection, or not."""
        self._set_option(_socket.SOL_SOCKET, _socket.SO_KEEPALIVE, int(enabled))

    def _get_option(self, level: int, name: int) -> int:
        if self.disconnected or self._descriptor.sock.family == _socket.AF_UNIX:
            return 0
        option: int = self._descriptor.sock.getsockopt(level, name)
        return option

    def _set_option(self, level: int, name: int, value: int) -> None:
        if not self.disconnected and self._descriptor.sock.family != _socket.AF_UNIX:
            self._descriptor.sock.setsockopt(level, name, value)

    def logPrefix(self) -> str:
        """Name the protocol in log lines."""
        protocol = self.protocol
        if ILoggingContext.providedBy(protocol):
            return str(protocol.logPrefix())
        return type(protocol).__name__ if protocol is not None else "-"

    def __repr__(self) -> str:
        state = "connected" if self.connected else "lost"
        return f"<{type(self).__name__} {state} {self._host} to {self._peer}>"


@implementer(INegotiated)
class TLSTransport(Transport):
    """A `Transport` whose connection speaks TLS, and whose peer is verified."""

    _is_tls = True

    @property
    def negotiatedProtocol(self) -> bytes | None:
        """The protocol that ALPN chose, or `None`."""
        chosen: bytes = self._descriptor.connection.get_alpn_proto_negotiated()
        return chosen or None

    def getPeerCertificate(self) -> crypto.X509 | None:
        """Return the peer's certificate as Twisted does, as an object of pyOpenSSL's."""
        certificate = self.peer_certificate
        return None if certificate is None else crypto.X509.from_cryptography(certificate)

    @property
    def peer_certificate(self) -> x509.Certificate | None:
        """The peer's certificate, or `None`."""
        found: x509.Certificate | None = self._descriptor.peer_certificate
        return found

    @property
    def tls(self) -> TLSDescriptor:
        """The descriptor, for what was negotiated."""
        assert isinstance(self._descriptor, TLSDescriptor)
        return self._descriptor


def _seconds(timeout: Any) -> float | None:
    return None if timeout is None else timeout.total_seconds()


def _guard(function: Callable[..., object], *args: object) -> None:
    """Call a protocol's or producer's method; what it raises is logged."""
    try:
        function(*args)
    except Exception:  # noqa: BLE001 - nothing else may be lost for it
        _log.failure("a protocol or producer raised an exception")
