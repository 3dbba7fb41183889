"""
What TLS transports have in common with Twisted's, and TLS by a contextFactory of others.

A contextFactory object that is not of this package makes OpenSSL connections on memory
buffers, so Twisted's own TLS protocol comes between the transport and its protocol, as in
Twisted's transports; but its handshake and its TLS shutdown have limits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, cast

from cryptography import x509
from OpenSSL import crypto
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IOpenSSLContextFactory,
    IOpenSSLServerConnectionCreator,
)
from twisted.protocols.policies import ProtocolWrapper
from twisted.protocols.tls import TLSMemoryBIOProtocol

from .._io.descriptor import byte_view
from ..errors import (
    SocketConnectionTimeoutError,
    SocketReadTimeoutError,
    SocketWriteTimeoutError,
)

__all__ = [
    "FOREIGN_CLOSE_SECONDS",
    "FOREIGN_HANDSHAKE_SECONDS",
    "LIMITS",
    "PlainSide",
    "TwistedTLS",
    "WithoutWrapper",
    "check_bytes",
    "check_context_factory",
    "joined",
]

FOREIGN_HANDSHAKE_SECONDS: Final = {True: 30.0, False: 10.0}
"""What the records have as `handshake_timeout`, on clients and on servers."""

FOREIGN_CLOSE_SECONDS: Final = 5.0
"""What they have as `close_timeout`."""

LIMITS: Final = (
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


_UNKNOWN: Final = "Unknown OID"
"""What cryptography calls the extensions that it has no name for."""


class _Extension:
    """An extension as pyOpenSSL had it before 26.2; its text is the value in DER."""

    def __init__(self, extension: x509.Extension[x509.ExtensionType]) -> None:
        self._extension = extension

    def get_short_name(self) -> bytes:
        """Return OpenSSL's name, of an extension that is unknown here its OID."""
        oid = self._extension.oid
        name: str = getattr(oid, "_name", _UNKNOWN)
        return (oid.dotted_string if name == _UNKNOWN else name).encode()

    def get_critical(self) -> bool:
        """Return whether it is critical."""
        return self._extension.critical

    def get_data(self) -> bytes:
        """Return the value in DER."""
        return self._extension.value.public_bytes()

    def __str__(self) -> str:
        return self.get_data().hex(":")


class PeerCertificate(crypto.X509):
    """
    A certificate of pyOpenSSL's, with the two methods that it has deprecated and removed.

    Autobahn before 26 asks for the extensions of every peer's certificate that way.
    """

    def get_extension_count(self) -> int:
        """Return how many extensions there are."""
        return len(self.to_cryptography().extensions)

    def get_extension(self, index: int) -> _Extension:
        """Return one of them."""
        return _Extension(self.to_cryptography().extensions[index])


class WithoutWrapper(type):
    """
    Leaves Twisted's ``ProtocolWrapper`` out of the classes in which attributes are looked up.

    Its ``__getattr__`` would have Python look up each attribute that there is by the slow way:
    a round trip over TLS took 32.2 us of processor time in place of 30.2.
    """

    def mro(cls) -> list[type]:
        """Return the classes, in order."""
        return [base for base in super().mro() if base is not ProtocolWrapper]


class TwistedTLS(TLSMemoryBIOProtocol):
    """
    Makes a transport of ours an instance of Twisted's TLS protocol, which it works without.

    Twisted has no other, so that programs ask for the class: Autobahn refuses any TLS
    transport that is none. Whatever the class does, transports do themselves.
    """

    protocol: Any

    @property
    def wrappedProtocol(self) -> Any:
        """The protocol; Daphne and Autobahn set another, where HTTP becomes a WebSocket."""
        return self.protocol

    @wrappedProtocol.setter
    def wrappedProtocol(self, protocol: Any) -> None:
        self.protocol = protocol

    @property
    def peer_certificate(self) -> x509.Certificate | None:
        """The peer's certificate, or `None`."""
        raise NotImplementedError

    def getPeerCertificate(self) -> PeerCertificate | None:
        """Return the peer's certificate as Twisted does, as an object of pyOpenSSL's."""
        certificate = self.peer_certificate
        if certificate is None:
            return None
        found = crypto.X509.from_cryptography(certificate)
        found.__class__ = PeerCertificate
        return cast("PeerCertificate", found)


_BYTES: Final = (bytes, bytearray, memoryview)


def check_bytes(data: object) -> None:
    """Raise `TypeError` if *data* is nothing that `write` takes."""
    if not isinstance(data, _BYTES):
        raise TypeError(f"data must be bytes, not {type(data).__name__}")


def joined(data: Iterable[bytes | bytearray | memoryview]) -> bytes:
    """Return what ``writeSequence`` was given in one piece, of what `check_bytes` lets pass."""
    parts = tuple(data)
    for part in parts:
        check_bytes(part)
    return b"".join(byte_view(part) if isinstance(part, memoryview) else part for part in parts)


class PlainSide:
    """What Twisted's TLS protocol has for its transport: the connection without TLS."""

    def __init__(self, transport: object, plain: Any) -> None:
        """Take from *plain*, the class below *transport*'s, what is not to go through TLS."""
        self._transport = transport
        self.write = plain.write
        self.writeSequence = plain.writeSequence
        self.loseConnection = plain.loseConnection
        self.registerProducer = plain.registerProducer
        self.unregisterProducer = plain.unregisterProducer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
