"""
What every transport has: a connected descriptor, a protocol, and their life together.

`BaseTransport` keeps the state, tells the protocol, and answers questions. How
bytes go out is in `twisted_netsock._endpoints.sending_transport`, how they come in in
`twisted_netsock._endpoints.transport`.
"""

from __future__ import annotations

import itertools
import socket as _socket
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IHandshakeListener, ILoggingContext
from twisted.logger import Logger
from twisted.python import context
from twisted.python.failure import Failure
from twisted.python.log import ILogContext
from zope.interface import implementer

from .._io.descriptor import Descriptor
from .._io.poller import Watch, contain
from .._proxy_protocol.header import ProxyHeader
from .._tls.client import ClientContextFactory
from .._tls.descriptor import TLSDescriptor
from .._tls.server import ServerContextFactory
from ..options import SocketOptions
from .factory import log_prefix

__all__ = ["BaseTransport", "guard", "seconds"]

_log = Logger()

_sessions: Final = itertools.count()
"""Numbers the connections that servers of this process take, for log lines."""


@implementer(ILoggingContext)
class BaseTransport:
    """
    A connected descriptor for a protocol.

    Attributes:
        protocol: Whom data goes to; `None` once the connection is lost.
        connected: The connection stands.
        disconnecting: `loseConnection` was called.
        disconnected: The connection is lost.
        proxy_header: The PROXY header that the peer began with, whose addresses
            `getPeer` and `getHost` give then, or `None`.
        logstr: What log lines of the protocol are marked with.
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
        self._host = host
        self._peer = peer
        self._is_client = is_client
        self.logstr = "-"
        self._session: int | None = None
        self._log_context: dict[Any, Any] = {}
        self._deliver: Callable[[memoryview], None] | None = None
        self._on_gone: Callable[[], None] | None = None
        self._queue: deque[bytes | memoryview] = deque()
        self._queued = 0
        self._paused = False
        self._read_closed = False
        self._write_closing = False
        self._write_closed = False
        self._shaking: ClientContextFactory | ServerContextFactory | None = None
        self._shaking_timer: Any = None
        self._aborting = False
        self._goodbye: Deferred[None] | None = None
        self._handshake: Deferred[None] | None = None
        self._behind_handshake: list[bytes] = []
        self._calls: set[Any] = set()
        self._continuing = False
        self._read_limit = seconds(options.read_timeout)
        self._write_limit = seconds(options.write_timeout)
        self._read_timer: Any = None
        self._write_timer: Any = None
        self._last_read = 0.0
        self._last_write = 0.0

    # The life of a connection

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

    def _tell_handshake_completed(self) -> None:
        listener = IHandshakeListener(self.protocol, None)
        if listener is not None:
            listener.handshakeCompleted()

    def _call_soon(self, function: Callable[..., None], *args: object) -> None:
        """Call *function* in the reactor's next turn, unless the connection is lost by then."""
        self._call_later(0, function, *args)

    def _call_later(self, delay: float, function: Callable[..., None], *args: object) -> None:
        """Call *function* after *delay* seconds, unless the connection is lost by then."""

        def run() -> None:
            self._calls.discard(call)
            function(*args)

        call = self.reactor.callLater(delay, run)
        self._calls.add(call)

    def _lose(self, reason: Failure) -> None:
        """Note that the connection is lost: let go of everything, and tell the protocol."""
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
        self._behind_handshake.clear()
        self._queued = 0
        producer, self.producer = self.producer, None
        if producer is not None:
            guard(producer.stopProducing)
        protocol, self.protocol, self._deliver = self.protocol, None, None
        context.call(self._log_context, guard, protocol.connectionLost, reason)
        on_gone, self._on_gone = self._on_gone, None
        if on_gone is not None:
            guard(on_gone)

    def _cancel_calls(self) -> None:
        for call in (*self._calls, self._read_timer, self._write_timer, self._shaking_timer):
            if call is not None and call.active():
                call.cancel()
        self._calls.clear()

    def _lose_soon(self, error: Exception) -> None:
        """Lose the connection in the next turn: nothing is told from inside a write."""
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
        """Become unusable in a forked child, where the protocol hears nothing; for the poller."""
        self._descriptor.on_fork()
        self._cancel_calls()
        self.connected = self.disconnecting = False
        self.disconnected = True

    def _update_reading(self) -> None:
        """Wait to receive if, and only if, somebody wants what could be received."""
        if not self.connected or self._handshake is not None or self._goodbye is not None:
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
            or self._goodbye is not None
            or self._shaking is not None
        )

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
        """Return what log lines of the protocol are marked with, in Twisted's form."""
        return self.logstr

    def __repr__(self) -> str:
        state = "connected" if self.connected else "lost"
        return f"<{type(self).__name__} {state} {self._host} to {self._peer}>"


def seconds(timeout: Any) -> float | None:
    """Return a `timedelta` in seconds, and `None` as it is."""
    return None if timeout is None else timeout.total_seconds()


def guard(function: Callable[..., object], *args: object) -> None:
    """Call a protocol's or producer's method; what it raises is logged."""
    try:
        function(*args)
    except BaseException:  # noqa: BLE001 - nothing else may be lost for it
        _log.failure("a protocol, producer or factory raised an exception")
