"""
``startTLS`` with a contextFactory object that is not of this package.

Such an object makes OpenSSL connections on memory buffers, so Twisted's own TLS
protocol comes between the transport and its protocol, as in Twisted's
transports; but its handshake and its TLS shutdown have limits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IOpenSSLContextFactory,
    IOpenSSLServerConnectionCreator,
)

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
