"""
``startTLS`` with a contextFactory object that is not of this package.

Such an object makes OpenSSL connections on memory buffers, so Twisted's own TLS
protocol comes between the transport and its protocol, as in Twisted's
transports; but its handshake and its goodbye have limits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from cryptography import x509
from OpenSSL import SSL, crypto
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    INegotiated,
    IOpenSSLClientConnectionCreator,
    IOpenSSLContextFactory,
    IOpenSSLServerConnectionCreator,
    ISSLTransport,
)
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from ..errors import (
    SocketConnectionTimeoutError,
    SocketReadTimeoutError,
    SocketWriteTimeoutError,
)
from .sending_transport import SendingTransport, check_bytes, joined

__all__ = ["ForeignTLS", "check_context_factory"]

_HANDSHAKE_SECONDS: Final = {True: 30.0, False: 10.0}
"""What the records have as `handshake_timeout`, on clients and on servers."""

_CLOSE_SECONDS: Final = 5.0
"""What they have as `close_timeout`."""

_LIMITS: Final = (
    SocketConnectionTimeoutError,
    SocketReadTimeoutError,
    SocketWriteTimeoutError,
)


def check_context_factory(context_factory: object, *, is_client: bool) -> None:
    """
    Refuse what makes no TLS connections for this side.

    Raises:
        TypeError: *context_factory* is of no kind that Twisted knows.
        ValueError: It is for the other side.
    """
    creators = [IOpenSSLServerConnectionCreator, IOpenSSLClientConnectionCreator]
    if (
        creators[is_client].providedBy(context_factory)
        or IOpenSSLContextFactory.providedBy(context_factory)
        or callable(getattr(context_factory, "getContext", None))
    ):
        return
    if creators[not is_client].providedBy(context_factory):
        side = "client" if is_client else "server"
        raise ValueError(f"contextFactory={context_factory!r}: this is the {side}'s side")
    raise TypeError(
        "contextFactory must be made by client_context_factory or server_context_factory, "
        f"or be one that Twisted takes, not {context_factory!r}"
    )


class _Beneath:
    """What Twisted's TLS protocol has for its transport: the connection without TLS."""

    def __init__(self, transport: ForeignTLS) -> None:
        plain: Any = super(ForeignTLS, transport)
        self._transport = transport
        self.write = plain.write
        self.writeSequence = plain.writeSequence
        self.loseConnection = plain.loseConnection
        self.registerProducer = plain.registerProducer
        self.unregisterProducer = plain.unregisterProducer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


@implementer(ISSLTransport, INegotiated)
class ForeignTLS(SendingTransport):
    """
    Passes what the protocol does on to Twisted's TLS protocol.

    A transport becomes one when TLS is started on it: its protocol has it
    already, and must find TLS behind it.
    """

    _layer: TLSMemoryBIOProtocol
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
        self._layer = factory.protocol(factory, protocol, False)
        self.protocol = self._layer
        self._deliver = None
        beneath: Any = _Beneath(self)
        try:
            self._layer.makeConnection(beneath)
        except BaseException:
            # A protocol that catches this must not go on in plain text.
            self.protocol = protocol
            self.abortConnection()
            raise
        self._call_later(_HANDSHAKE_SECONDS[is_client], self._check_handshake)
        if producer is not None:
            self.registerProducer(producer, streaming)

    # What goes through TLS

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send *data*, protected; see `Transport.write`."""
        check_bytes(data)
        if self.connected and not self._aborting:
            self._layer.write(bytes(data))

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """Send each of *data*, in order; see `write`."""
        self.write(joined(data))

    def loseConnection(self) -> None:
        """Close the connection when all that was written is sent, with a goodbye."""
        if self.connected and not self.disconnecting and not self._closing:
            self._closing = True
            self._layer.loseConnection()
            self._call_later(_CLOSE_SECONDS, self._check_goodbye)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Let *producer* write; see `Transport.registerProducer`."""
        self._layer.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        """Let go of the producer; a close that waited for it goes on."""
        self._layer.unregisterProducer()

    # Limits

    def _check_handshake(self) -> None:
        if self._connection.get_peer_finished() is None:
            self._lose(Failure(SocketConnectionTimeoutError("handshake")))

    def _check_goodbye(self) -> None:
        """Wait no more for the peer's goodbye, if all is sent and it has had its time."""
        if self.producer is not None or self._queue:
            self._call_later(_CLOSE_SECONDS, self._check_goodbye)
        else:
            self._lose(Failure(ConnectionDone()))

    def _lose(self, reason: Failure) -> None:
        if reason.check(*_LIMITS) and not self._aborting:
            # Twisted's TLS takes any end without a goodbye for a lost connection. This is
            # how it is told of another reason.
            self._layer.failVerification(reason)
        else:
            super()._lose(reason)

    # Looking at it

    @property
    def _connection(self) -> SSL.Connection:
        connection: SSL.Connection = self._layer.getHandle()
        return connection

    def getHandle(self) -> Any:
        """Return OpenSSL's connection; `None` once the connection is lost."""
        return self._layer.getHandle()

    @property
    def negotiatedProtocol(self) -> bytes | None:
        """The protocol that ALPN chose, or `None`."""
        return self._layer.negotiatedProtocol

    def getPeerCertificate(self) -> crypto.X509 | None:
        """Return the peer's certificate as Twisted does, as an object of pyOpenSSL's."""
        certificate = self.peer_certificate
        return None if certificate is None else crypto.X509.from_cryptography(certificate)

    @property
    def peer_certificate(self) -> x509.Certificate | None:
        """The peer's certificate, or `None`; `None` too once the connection is lost."""
        if self.disconnected:
            return None
        return self._connection.get_peer_certificate(as_cryptography=True)
