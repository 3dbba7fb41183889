"""The TLS handshake of a connection that arrives at a server, for sockets and endpoints alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, succeed

from .._io.descriptor import Descriptor
from .._tls.descriptor import TLSDescriptor
from .._tls.handshake import handshake
from .._tls.server import ServerContextFactory
from .incoming import Arrival, Secure

__all__ = ["shaking_hands"]


def shaking_hands(
    reactor: Any, factory: ServerContextFactory, protocols: Sequence[bytes] = ()
) -> Secure:
    """
    Return what shakes hands on arrivals, as the records of *factory* say.

    Args:
        reactor: Where it happens.
        factory: Makes the connections.
        protocols: For ALPN, beside those of the records.
    """

    def secure(arrival: Arrival) -> Deferred[Descriptor]:
        descriptor = TLSDescriptor(arrival.descriptor.sock, factory, protocols)
        arrival.descriptor = descriptor
        if not factory.options.handshake:
            return succeed(descriptor)
        shaken = handshake(reactor, arrival.watch, descriptor, arrival.remaining())
        return shaken.addCallback(lambda _: descriptor)

    return secure
