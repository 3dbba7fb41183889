"""The TLS handshake of a connection that arrives at a server, for sockets and endpoints alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, succeed

from .._io.descriptor import Descriptor
from .._tls.descriptor import TLSDescriptor
from .._tls.handshake import handshake
from .._tls.server import ServerContextFactory
from .incoming import IncomingConnection, Secure

__all__ = ["server_handshake"]


def server_handshake(
    reactor: Any, factory: ServerContextFactory, protocols: Sequence[bytes] = ()
) -> Secure:
    """
    Return what shakes hands on incoming, as the records of *factory* say.

    Args:
        reactor: Where it happens.
        factory: Makes the connections.
        protocols: For ALPN, beside those of the records.
    """

    def secure(incoming: IncomingConnection) -> Deferred[Descriptor]:
        descriptor = TLSDescriptor(incoming.descriptor.sock, factory, protocols)
        incoming.descriptor = descriptor
        if not factory.options.handshake:
            return succeed(descriptor)
        shaken = handshake(reactor, incoming.watch, descriptor, incoming.remaining())
        return shaken.addCallback(lambda _: descriptor)

    return secure
