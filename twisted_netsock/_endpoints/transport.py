"""
A transport for protocols on the try layer, plain and TLS.

`Transport` promises what Twisted's own TCP transport does; `TLSTransport` adds
what TLS does, on the same descriptor. Reads go through one shared buffer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from cryptography import x509
from OpenSSL import crypto
from twisted.internet.interfaces import (
    IConsumer,
    IHalfCloseableDescriptor,
    IHalfCloseableProtocol,
    INegotiated,
    IPushProducer,
    ISystemHandle,
    ITCPTransport,
    ITLSTransport,
)
from twisted.python import context
from twisted.python.failure import Failure
from zope.interface import Interface, implementer

from .._io.fairness import DELIVERY
from .._io.poller import Want
from .._tls.client import ClientContextFactory
from .._tls.context import negotiated_protocols
from .._tls.descriptor import TLSDescriptor
from .._tls.handshake import handshake
from .._tls.server import ServerContextFactory
from ..errors import SocketConnectionTimeoutError, SocketError, SocketReadTimeoutError, unraised
from ..options import SocketOptions
from .base_transport import seconds
from .foreign_tls import ForeignTLS, check_context_factory
from .sending_transport import SendingTransport

__all__ = ["SCRATCH", "ForeignTLSTransport", "IViewProtocol", "TLSTransport", "Transport"]

SCRATCH: Final = memoryview(bytearray(256 * 1024))
"""What every transport of the process reads into; copied or passed on before the next read."""


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
)
class Transport(SendingTransport):
    """A connected descriptor for a protocol; see `BaseTransport` for its attributes."""

    _target = SCRATCH[:DELIVERY]
    """What is received at once fits in there."""

    def attach(self, protocol: Any, on_gone: Callable[[], None] | None = None) -> None:
        """
        Begin: connect *protocol* to this transport, and read for it.

        Args:
            protocol: Whom data goes to.
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

    def pass_on(self, protocol: Any, options: SocketOptions, on_gone: Callable[[], None]) -> None:
        """
        Connect *protocol* in the place of the present one, which hears nothing more.

        Args:
            protocol: Whom data goes to from now on.
            options: Whose limits hold from now on.
            on_gone: Called once, after *protocol* has lost its connection.
        """
        for timer in (self._read_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._read_timer = self._write_timer = None
        self._read_limit = seconds(options.read_timeout)
        self._write_limit = seconds(options.write_timeout)
        before = self._on_gone

        def gone() -> None:
            on_gone()
            if before is not None:
                before()

        self.attach(protocol, gone)

    def _introduce(self, protocol: Any) -> None:
        protocol.makeConnection(self)
        if self._is_tls and self.connected:
            self._tell_handshake_completed()

    # Reading

    def read_at_most(self, size: int | None) -> None:
        """Deliver at most *size* bytes, 1 or more, at a time; as usual if `None`."""
        usual = len(SCRATCH) if self._deliver is not None else DELIVERY
        self._target = SCRATCH[: usual if size is None else min(size, usual)]

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
        if count.__class__ is Want:
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
        """Read on in the next turn if bytes wait where the poller cannot see them."""
        if self._is_tls and self._reads and self._descriptor.buffered and not self._continuing:
            self._continuing = True
            self._call_soon(self._continue)

    def _continue(self) -> None:
        self._continuing = False
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
        """Lose the connection, as a producer that nobody listens to."""
        self.loseConnection()

    def startReading(self) -> None:
        """Do as `resumeProducing`, under the name of Twisted's descriptors."""
        self.resumeProducing()

    def stopReading(self) -> None:
        """Do as `pauseProducing`, under the name of Twisted's descriptors."""
        self.pauseProducing()

    def on_send_ready(self) -> None:
        """Send; for the poller."""
        context.call(self._log_context, self._on_send_ready)

    def _on_send_ready(self) -> None:
        if self.connected and not self._aborting:
            self._flush()

    # Time limit

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

    # TLS

    def startTLS(self, contextFactory: Any, normal: bool = True) -> None:
        """
        Speak TLS from here on, when what was written is sent.

        With an object of this package TLS is on the descriptor itself, and the
        transport provides ``ISSLTransport`` once the handshake is done. With any
        other, Twisted's own TLS comes in between, which provides it at once.
        What the protocol writes meanwhile goes behind the handshake either way.

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
        if self._is_tls or self._shaking is not None or isinstance(self, ForeignTLSTransport):
            raise ValueError("TLS was started already")
        if not self.connected:
            return
        if not ours:
            self.__class__ = ForeignTLSTransport
            changed: Any = self
            changed.start_foreign_tls(contextFactory, is_client=is_client)
            return
        # What is written from now on goes behind the handshake.
        self._shaking = contextFactory
        limit = seconds(contextFactory.options.handshake_timeout)
        if limit is not None:
            # From here on, and not from the first message: what is queued may never be sent.
            self._shaking_timer = self.reactor.callLater(limit, self._shaking_expired)
        self._update_reading()
        if not self._queue:
            self._call_soon(self._shake)

    def _go_on(self) -> None:
        if self._shaking is not None:
            self._shake()
        else:
            super()._go_on()

    def _shake(self) -> None:
        """Begin the handshake: everything plain is sent."""
        factory = self._shaking
        if factory is None or self._handshake is not None or self._aborting:
            return
        try:
            protocols = negotiated_protocols(getattr(self.protocol, "factory", None))
        except BaseException:  # noqa: BLE001 - see _protocol_failed
            self._protocol_failed()
            return
        descriptor = self._descriptor = TLSDescriptor(self._descriptor.sock, factory, protocols)
        self._handshake = handshake(self.reactor, self._watch, descriptor, None)
        self._handshake.addBoth(self._shaken)

    def _shaking_expired(self) -> None:
        self._lose(Failure(SocketConnectionTimeoutError("handshake")))

    def _shaken(self, result: Failure | None) -> None:
        self._handshake = None
        if self.disconnected or self._aborting:
            return
        if self._shaking_timer is not None:
            self._shaking_timer.cancel()
            self._shaking_timer = None
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
            context.call(self._log_context, self._tell_handshake_completed)
        except BaseException:  # noqa: BLE001 - see _protocol_failed
            self._protocol_failed()
            return
        if not self.connected:
            return
        self._update_reading()
        self._continue_if_buffered()
        pulls = self.producer is not None and not self.streamingProducer
        if self._queue or self.disconnecting or self._write_closing or pulls:
            self._want_flush()


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


class ForeignTLSTransport(ForeignTLS, Transport):
    """A `Transport` on which Twisted's own TLS was started."""
