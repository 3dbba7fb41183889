"""`ContextObject`: TLS on memory, with the methods of `ssl.SSLObject`, for asyncio."""

from __future__ import annotations

import socket as _socket
import ssl
from typing import TYPE_CHECKING, TypeVar

from .._io.poller import WANT_READ, Want
from .._tls.client import ClientContextFactory
from .._tls.descriptor import TLSDescriptor
from .._tls.in_memory import TLSInMemory
from .._tls.server import ServerContextFactory
from ._ssl_names import StandardNames, end_of, would_block

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

    # As for `ContextSocket`.
    _Standard = object
else:
    _Standard = ssl.SSLObject

__all__ = ["ContextObject"]

T = TypeVar("T")


class _Memory:
    """What is beneath: the two buffers of a program, which take all and never wait."""

    unflushed = False
    buffered = False

    def __init__(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> None:
        self._incoming = incoming
        self._outgoing = outgoing

    def try_recv(self, n: int) -> bytes | Want:
        """Return up to *n* bytes; the end is what the program has written as such."""
        data = self._incoming.read(n)
        return data if data or self._incoming.eof else WANT_READ

    def try_send(self, view: Buffer) -> int:
        """Take all of *view*."""
        return self._outgoing.write(view)

    def try_flush(self) -> None:
        """Do nothing: all was taken."""


class ContextObject(StandardNames, _Standard):
    """
    What `wrap_bio` of our contexts returns: no call waits.

    Attributes:
        context: The context that it was made by.
        server_side: Whether it is a server's.
        server_hostname: What was given to `wrap_bio`.
    """

    context: ssl.SSLContext | None = None
    server_side: bool = False
    server_hostname: str | None = None

    def __init__(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        factory: ClientContextFactory | ServerContextFactory,
        context: ssl.SSLContext,
        server_hostname: str | None,
    ) -> None:
        self._descriptor = TLSInMemory(_Memory(incoming, outgoing), factory)
        self.context = context
        self.server_hostname = server_hostname
        self.server_side = isinstance(factory, ServerContextFactory)

    def _ask(self, ask: Callable[[TLSDescriptor], T], otherwise: T) -> T:
        return ask(self._descriptor)

    def _done(self, result: T | Want) -> T:
        """Return what an attempt has come to."""
        if isinstance(result, Want):
            raise would_block(result)
        return result

    def do_handshake(self) -> None:
        """Shake hands, as far as that goes."""
        self._done(self._descriptor.try_handshake())

    def read(self, len: int = 1024, buffer: Buffer | None = None) -> bytes | int:  # noqa: A002
        """Receive up to *len* bytes, or into *buffer*."""
        if buffer is None:
            return self._done(self._descriptor.try_recv(len))
        view = memoryview(buffer).cast("B")
        return self._done(self._descriptor.try_recv_into(view[:len] if len > 0 else view))

    def write(self, data: Buffer) -> int:
        """Take some of *data*, and return how many bytes."""
        return self._done(self._descriptor.try_send(data))

    def unwrap(self) -> None:
        """
        End TLS in both directions.

        Raises:
            TLSError: The peer sends data, which stays to be read.
            TLSTruncatedError: The peer ends without close_notify.
        """
        self._done(self._descriptor.try_shutdown(_socket.SHUT_WR))
        self._done(end_of(self._descriptor))
