"""
TLS over the connections of any other endpoint: what may be asked for, and the server's port.

`twisted_netsock._net.inner` makes those connections established ones, which then pass through
the stages of any other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import (
    IListeningPort,
    IProtocolFactory,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from .._io.interfaces import Reactor
from .._net.happy_eyeballs import Established
from .._net.inner import InnerFactory, address_of
from .._tls.server import ServerContextFactory
from ..options import OF_SOCKETS, SocketOptions, TLSSocketOptions, shown_field
from .factory import start_factory, stop_factory
from .listening_port import Port

__all__ = ["PortOverEndpoint", "check_inner_client", "check_inner_server"]

_log = Logger()

MOST_HANDSHAKES: Final = 1024
"""
Handshakes at once. What an inner port has accepted cannot wait in the kernel, so more are
refused; mute peers hold a place for the whole `handshake_timeout`, so there are many.
"""


def _check_options(options: SocketOptions) -> None:
    if not isinstance(options, TLSSocketOptions):
        raise TypeError(
            f"options={options!r}: endpoint is for TLS over another endpoint, and takes a TLS "
            "record; without TLS use that endpoint itself"
        )
    defaults = type(options)()
    for name in OF_SOCKETS:
        if getattr(options, name) != getattr(defaults, name):
            raise ValueError(
                f"{shown_field(options, name)} contradicts endpoint: that makes the connections"
            )


def check_inner_client(
    endpoint: object, node: str, service: str | int | None, options: SocketOptions
) -> None:
    """
    Refuse what cannot be a TLS client over *endpoint*.

    Raises:
        TypeError: *endpoint* is no client endpoint, *node* no name, or *options*
            no TLS record.
        ValueError: *service* or an option says how to connect, too.
    """
    if not IStreamClientEndpoint.providedBy(endpoint):
        raise TypeError(
            f"endpoint={endpoint!r} must provide IStreamClientEndpoint; "
            "of a string clientFromString makes one"
        )
    if not isinstance(node, str) or not node:
        raise TypeError(f"node={node!r} must be the name or address to verify")
    if service is not None:
        raise ValueError(f"service={service!r} contradicts endpoint: that makes the connections")
    _check_options(options)


def check_inner_server(
    endpoint: object,
    node: str | None,
    service: str | int | None,
    options: SocketOptions,
) -> None:
    """
    Refuse what cannot be a TLS server over *endpoint*.

    Raises:
        TypeError: *endpoint* is no server endpoint, or *options* no TLS record.
        ValueError: *node*, *service* or an option says where to listen, too.
    """
    if not IStreamServerEndpoint.providedBy(endpoint):
        raise TypeError(
            f"endpoint={endpoint!r} must provide IStreamServerEndpoint; "
            "of a string serverFromString makes one"
        )
    for name, value in (("node", node), ("service", service)):
        if value is not None:
            raise ValueError(f"{name}={value!r} contradicts endpoint: that listens")
    _check_options(options)


class _ServerFactory(InnerFactory):
    """Starts and stops the factory behind with the inner port."""

    def doStart(self) -> None:
        """Start the factory behind."""
        start_factory(self.factory)

    def doStop(self) -> None:
        """Stop the factory behind."""
        stop_factory(self.factory)


@implementer(IListeningPort)
class PortOverEndpoint(Port):
    """The port of an inner endpoint, and the handshakes with its clients."""

    _port: IListeningPort
    _closed = False
    _full = False

    def __init__(
        self,
        reactor: Reactor,
        factory: IProtocolFactory,
        options: TLSSocketOptions,
        context_factory: ServerContextFactory,
    ) -> None:
        super().__init__(reactor, factory, options, context_factory)
        assert self._incoming is not None
        self._over = options
        self._handshakes = self._incoming
        self._handshakes.max_pending = MOST_HANDSHAKES

    def listen_on(self, endpoint: IStreamServerEndpoint) -> Deferred[PortOverEndpoint]:
        """
        Listen with *endpoint*, and perform the handshake on each of its connections.

        Returns:
            This port.

        Errors:
            Anything that *endpoint* fails with.

        Cancelling:
            As *endpoint* does.
        """

        def listens(port: IListeningPort) -> PortOverEndpoint:
            self._port = port
            return self

        ours: Any = _ServerFactory(
            self._reactor, self._factory, self._over, self._log_prefix, self._on_connection
        )
        return maybeDeferred(endpoint.listen, ours).addCallback(listens)

    def _on_connection(self, established: Established | Failure) -> None:
        if isinstance(established, Failure):
            _log.failure("a new connection could not be served", established)
            return
        assert established.inner is not None
        peer = address_of(established.inner.getPeer())
        # What has come cannot be left to wait, so half is for other addresses than one.
        if self._closed or not self._handshakes.has_room(peer):
            established.reset()
            if not self._closed and not self._full:
                self._full = True
                _log.warn(
                    "too many handshakes are under way ({most} at most, and half of them of one "
                    "address): more are refused",
                    most=self._handshakes.max_pending,
                )
            return
        if self._admission is not None:
            self._admission.entered()
        self._full = False
        self._handshakes.begin_on(established, peer)

    def startListening(self) -> None:
        """Do as the inner port."""
        self._port.startListening()

    def stopListening(self) -> Deferred[None]:
        """
        Take no more connections; those that there are live on.

        Returns:
            `None`, when the inner port has stopped.
        """
        self._closed = True
        self._handshakes.close()
        self._stop_watching()
        stop: Callable[[], Any] = self._port.stopListening
        stopped: Deferred[None] = maybeDeferred(stop)
        return stopped

    def getHost(self) -> Any:
        """Return the address that is listened on."""
        return self._port.getHost()

    def __repr__(self) -> str:
        return f"<TLS over {self._port!r}>"
