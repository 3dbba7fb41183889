"""
The connection of another endpoint, as an established one that the ordinary stages take.

A plain transport of this package gives its descriptor up; any other transport is a descriptor
through `twisted_netsock._io.adapter`.
"""

from __future__ import annotations

from collections.abc import Callable
from socket import AF_INET, AF_INET6, AF_UNIX, AF_UNSPEC
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import (
    IAddress,
    IProtocolNegotiationFactory,
    IStreamClientEndpoint,
)
from twisted.python.failure import Failure
from zope.interface import alsoProvides

from .._hostnames import strip_zone
from .._io.adapter import TransportDescriptor
from .._io.interfaces import Reactor
from .._tls.context import negotiated_protocols
from ..addresses import SocketAddress, network_of
from ..errors import SocketConnectionError
from ..options import TLSSocketOptions
from .happy_eyeballs import Established

__all__ = ["InnerFactory", "address_of", "inner_connection"]


class InnerFactory:
    """What an inner endpoint is given to connect: it calls back with each connection."""

    def __init__(
        self,
        reactor: Reactor,
        factory: object,
        options: TLSSocketOptions,
        prefix: str,
        made: Callable[[Established | Failure], None],
    ) -> None:
        """
        Hand connections on.

        Args:
            reactor: For the limit of `close_timeout`.
            factory: Builds the protocols of the connections in the end.
            options: Has the limit.
            prefix: Names *factory* in log lines.
            made: Called with each connection, which the callee owns; or with why there is none.
        """
        self.reactor = reactor
        self.close_seconds = options.close_timeout.total_seconds()
        self.made = made
        self.factory = factory
        self._prefix = prefix
        if IProtocolNegotiationFactory.providedBy(factory):
            alsoProvides(self, IProtocolNegotiationFactory)

    def acceptableProtocols(self) -> list[bytes]:
        """Return what the factory behind negotiates."""
        return list(negotiated_protocols(self.factory))

    def buildProtocol(self, _address: IAddress | None) -> InnerConnection:
        """Return what makes the connection an established one."""
        return InnerConnection(self)

    def logPrefix(self) -> str:
        """Name the factory behind in log lines."""
        return self._prefix

    def doStart(self) -> None:
        """Do nothing: the factory behind is started by those that use it."""

    def doStop(self) -> None:
        """Do nothing; see `doStart`."""


class InnerConnection(TransportDescriptor):
    """The protocol of an inner connection, and its descriptor unless the transport has one."""

    def __init__(self, factory: InnerFactory) -> None:
        super().__init__(factory.reactor, factory.close_seconds)
        self.factory: Any = factory

    def logPrefix(self) -> str:
        """Name the factory behind in log lines."""
        return str(self.factory.logPrefix())

    def makeConnection(self, transport: Any) -> None:
        """Hand the connection on."""
        try:
            # Behind a wrapper our transport refuses: its protocol is the wrapper.
            release = getattr(transport, "release_to", None)
            established: Established | None = None if release is None else release(self)
            if established is None:
                super().makeConnection(transport)
                watch: Any = self.watch
                established = Established(self, watch)
            else:
                self.transport = transport
            established.inner = transport
        except BaseException:  # noqa: BLE001 - the caller that connects gets it
            self.factory.made(Failure())
        else:
            self.factory.made(established)


def inner_connection(
    reactor: Reactor,
    endpoint: IStreamClientEndpoint,
    factory: Any,
    options: TLSSocketOptions,
    prefix: str,
) -> Deferred[Established]:
    """
    Connect through *endpoint*.

    Args:
        reactor: See `InnerFactory`; so are the other arguments.
        endpoint: Makes the connection.

    Returns:
        The connection, which is the receiver's to close.

    Errors:
        SocketConnectionError: *endpoint* built no protocol.
        Anything that *endpoint* fails with.

    Cancelling:
        Fails with `CancelledError`; a connection that *endpoint* makes all the same is reset.
    """
    over = False

    def finish(result: Established | Failure) -> None:
        nonlocal over
        if not over:
            over = True
            done.callback(result)
        elif isinstance(result, Established):
            result.reset()

    def connected(_: object) -> None:
        why = "The inner endpoint connected, and built no protocol"
        finish(Failure(SocketConnectionError(strerror=why)))

    def cancel(_: object) -> None:
        nonlocal over
        over = True
        connecting.cancel()

    done: Deferred[Established] = Deferred(cancel)
    ours: Any = InnerFactory(reactor, factory, options, prefix, finish)
    connecting = maybeDeferred(endpoint.connect, ours)
    connecting.addCallbacks(connected, finish)
    return done


def address_of(address: Any) -> SocketAddress:
    """Return what limits and log lines know a peer of Twisted's by."""
    host: Any = getattr(address, "host", None)
    if network_of(host) is None:
        name = getattr(address, "name", None)
        return SocketAddress.of(AF_UNSPEC if name is None else AF_UNIX, name)
    native = (strip_zone(host), getattr(address, "port", 0))
    if ":" not in host:
        return SocketAddress.of(AF_INET, native)
    more = (getattr(address, "flowInfo", 0), getattr(address, "scopeID", 0))
    return SocketAddress.of(AF_INET6, native + more)
