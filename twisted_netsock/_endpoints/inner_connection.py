"""
TLS between the connection of any endpoint and a protocol.

Where that connection is a plain transport of this package, TLS is started on its
descriptor; over any other it runs on memory, by `inner_transport`. The
protocol is built when the handshake is done, on both ways.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import NoProtocol
from twisted.internet.interfaces import (
    IAddress,
    IHalfCloseableProtocol,
    IHandshakeListener,
    IProtocolNegotiationFactory,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import alsoProvides, implementer

from .._io.adapter import TransportDescriptor, TransportWatch
from .._io.interfaces import Reactor
from .._tls.client import ClientContextFactory
from .._tls.context import negotiated_protocols
from .._tls.handshake import handshake, tls_shutdown
from .._tls.in_memory import TLSInMemory
from .._tls.server import ServerContextFactory
from ..errors import SocketConnectionLostError, SocketConnectionTimeoutError
from ..options import TLSSocketOptions
from .factory import log_prefix, seconds
from .inner_transport import TLSOverTransport
from .transport import Transport

__all__ = ["InnerConnection", "InnerConnectionFactory"]


class InnerConnectionFactory(ABC):
    """
    Builds an `InnerConnection` for each connection of the inner endpoint.

    Subclasses handle what becomes of each.
    """

    is_client: bool

    def __init__(
        self,
        reactor: Reactor,
        factory: Any,
        options: TLSSocketOptions,
        context_factory: ClientContextFactory | ServerContextFactory,
    ) -> None:
        self.reactor = reactor
        self.factory = factory
        self.options = options
        self.context_factory = context_factory
        if IProtocolNegotiationFactory.providedBy(factory):
            alsoProvides(self, IProtocolNegotiationFactory)

    def acceptableProtocols(self) -> list[bytes]:
        """Return what the factory behind negotiates."""
        return list(negotiated_protocols(self.factory))

    def buildProtocol(self, _address: IAddress | None) -> InnerConnection:
        """Return what performs the handshake; it builds the protocol after that."""
        return InnerConnection(self)

    def logPrefix(self) -> str:
        """Name the factory behind in log lines."""
        return f"{log_prefix(self.factory)} (TLS)"

    @abstractmethod
    def doStart(self) -> None:
        """Handle that the inner endpoint begins to use this factory."""

    @abstractmethod
    def doStop(self) -> None:
        """Handle that it uses it no more."""

    @abstractmethod
    def began(self, connection: InnerConnection) -> bool:
        """Return whether the handshake of *connection* may begin."""

    @abstractmethod
    def succeeded(self, connection: InnerConnection, protocol: Any) -> None:
        """Handle that *protocol* is connected through *connection*."""

    @abstractmethod
    def failed(self, connection: InnerConnection, error: Failure) -> None:
        """Handle that *connection* is lost, and connected no protocol."""

    @abstractmethod
    def gone(self, connection: Any) -> None:
        """Handle that the protocol of *connection*, an `InnerConnection`, has lost it."""


@implementer(IHalfCloseableProtocol)
class InnerConnection(Protocol):
    """The protocol of an inner connection: after the handshake it connects another protocol."""

    def __init__(self, factory: InnerConnectionFactory) -> None:
        self.factory: Any = factory
        self._owner = factory
        self._failure: Failure | None = None
        self._reported = False
        self._given_up = False
        self._running: Deferred[None] | None = None
        self._inner: TransportDescriptor | None = None
        self._tls_transport: TLSOverTransport | None = None
        self._descriptor: TLSInMemory | None = None

    def logPrefix(self) -> str:
        """Name the factory behind in log lines."""
        return self._owner.logPrefix()

    # The handshake

    def connectionMade(self) -> None:
        """Perform the handshake: on the descriptor if the transport is a plain one of ours."""
        transport: Any = self.transport
        if not self._owner.began(self):
            self._failure = Failure(CancelledError())
            getattr(transport, "abortConnection", transport.loseConnection)()
        elif type(transport) is Transport:
            alsoProvides(self, IHandshakeListener)
            transport.startTLS(self._owner.context_factory)
        else:
            self._begin(transport)

    def _begin(self, transport: Any) -> None:
        owner = self._owner
        close_seconds = owner.options.close_timeout.total_seconds()
        inner = self._inner = TransportDescriptor(owner.reactor, close_seconds)
        try:
            inner.makeConnection(transport)
            protocols = negotiated_protocols(owner.factory)
            self._descriptor = TLSInMemory(inner, owner.context_factory, protocols)
        except BaseException:  # noqa: BLE001 - the caller that connects gets it
            self.fail(Failure())
            return
        limit = seconds(owner.context_factory.options.handshake_timeout)
        self._running = handshake(owner.reactor, self._watch, self._descriptor, limit)
        self._running.addCallbacks(self._handshake_done, self.fail)

    def handshakeCompleted(self) -> None:
        """Connect the protocol, on the descriptor of the transport."""
        transport: Any = self.transport
        protocol = self._build()
        if protocol is None:
            transport.loseConnection()
            return
        self._reported = True
        transport.pass_on(protocol, self._owner.options, self._gone)
        self._owner.succeeded(self, protocol)

    def _handshake_done(self, _: None) -> None:
        assert self._descriptor is not None
        owner, transport = self._owner, self.transport
        assert transport is not None
        self._running = None
        protocol = self._build()
        if self._given_up:
            return
        if protocol is None:
            ending = tls_shutdown(owner.reactor, self._watch, self._descriptor)
            self._running = ending.addCallback(self._refused)
            return
        self._tls_transport = TLSOverTransport(
            owner.reactor,
            self._watch,
            self._descriptor,
            owner.options,
            transport.getHost(),
            transport.getPeer(),
            is_client=owner.is_client,
        )
        self._reported = True
        self._tls_transport.attach(protocol, self._gone)
        owner.succeeded(self, protocol)

    @property
    def _watch(self) -> TransportWatch:
        assert self._inner is not None
        return self._inner.watch

    def _gone(self) -> None:
        self._owner.gone(self)

    def _refused(self, _: None) -> None:
        assert self._inner is not None
        self._running = None
        if self._inner.lost is not None:
            self._report()

    def _build(self) -> Any:
        """Return the protocol, or `None` after noting why there is none."""
        assert self.transport is not None
        try:
            protocol = self._owner.factory.buildProtocol(self.transport.getPeer())
        except BaseException:  # noqa: BLE001 - the caller that connects gets it
            self._failure = self._failure or Failure()
            return None
        if protocol is None:
            self._failure = self._failure or Failure(NoProtocol())
        # The factory may have had all of it given up.
        return None if self._failure is not None else protocol

    def fail(self, error: Failure) -> None:
        """End the connection for *error*, which is reported when it has ended."""
        self._failure = self._failure or error
        self._running = None
        transport: Any = self.transport
        if self._inner is None:
            if transport is not None:
                transport.abortConnection()
            return
        self._watch.close()
        if self._inner.lost is not None:
            self._report()
        elif (
            error.check(CancelledError, SocketConnectionTimeoutError) is None
            and not self._inner.blocked
        ):
            self._inner.close()
        else:
            self._inner.reset()

    def end(self, error: Exception) -> None:
        """Give up for *error*: the handshake is not done."""
        if self._tls_transport is not None:
            self._tls_transport.abortConnection()
            return
        self._given_up = True
        self._failure = self._failure or Failure(error)
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
        self.fail(Failure(CancelledError()))

    def _report(self) -> None:
        if not self._reported:
            self._reported = True
            self._owner.failed(self, self._failure or Failure(SocketConnectionLostError()))

    @property
    def peer(self) -> IAddress:
        """The address of the peer."""
        assert self.transport is not None
        return self.transport.getPeer()

    # What the inner transport reports

    def dataReceived(self, data: bytes) -> None:
        """Pass on what has been received."""
        if self._inner is not None:
            self._inner.dataReceived(data)

    def readConnectionLost(self) -> None:
        """Pass on the end of what is received."""
        if self._inner is not None:
            self._inner.readConnectionLost()

    def writeConnectionLost(self) -> None:
        """Do nothing: it was asked for."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Handle the end of the inner connection."""
        if self._inner is not None:
            self._inner.connectionLost(reason)
        if self._descriptor is None:
            self._failure = self._failure or reason
            self._report()
        elif self._tls_transport is not None:
            self._tls_transport.inner_ended()
        elif self._running is None:
            self._report()
