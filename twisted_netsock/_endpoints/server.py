"""
The server endpoint of Twisted over the sockets of this package.

Its transports perform the handshake before ``connectionMade``, and all their waits have limits.
"""

from __future__ import annotations

import socket as _socket
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from datetime import timedelta
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from zope.interface import implementer

from .._certificates.expiry import Validity
from .._certificates.reload import FileWatch, Reloader, watch_files
from .._io.interfaces import Reactor, current_reactor
from .._io.poller import poller_for
from .._net.listen import listen
from .._net.open_socket import apply_options, check_listening
from .._public import public_in
from .._tls.server import ServerContextFactory, server_context_factory, server_records
from .._validation import optional_duration
from ..errors import SocketError
from ..options import (
    ServerTLSSocketOptions,
    SocketOptions,
    TLSSocketOptions,
    require_reactor_mode,
    require_stream,
)
from .factory import ProtocolFactory, place_of
from .inner_port import PortOverEndpoint, check_inner_server
from .listening_port import ListeningPort

__all__ = ["ServerEndpoint", "server_endpoint"]


@public_in("twisted_netsock")
@implementer(IStreamServerEndpoint)
class ServerEndpoint:
    """Where to listen, and how. Made by `server_endpoint`."""

    def __init__(
        self,
        reactor: Reactor,
        node: str | None,
        service: str | int | None,
        options: SocketOptions | tuple[ServerTLSSocketOptions, ...],
        reload_every: timedelta | None = None,
        inner: IStreamServerEndpoint | None = None,
    ) -> None:
        self._reactor = reactor
        self._inner = inner
        self._node = node
        self._service = service
        self._reload_every = reload_every
        self._context_factory: ServerContextFactory | None = None
        self._reloader: Reloader | None = None
        self._adopt: Callable[[], list[_socket.socket]] | None = None
        if isinstance(options, SocketOptions):
            self._options = options
        else:
            self._context_factory = server_context_factory(options)
            self._reloader = Reloader(reactor, self._context_factory)
            self._options = options[0]

    @property
    def options(self) -> SocketOptions:
        """The record that it was made with; of several, the first."""
        return self._options

    def listen(self, protocolFactory: ProtocolFactory) -> Deferred[IListeningPort]:
        """
        Listen, and build a protocol for each connection.

        Args:
            protocolFactory: Builds the protocols; one that builds `None` drops
                the connection. If it negotiates protocols
                (``IProtocolNegotiationFactory``), ALPN chooses among them.

        Returns:
            An ``IListeningPort``.

        Errors:
            HostNotFoundError: There is no such node or service.
            SocketBindError: The address is taken, or not ours to bind.
            Anything that the inner endpoint fails with, if there is one.

        Cancelling:
            Fails with `CancelledError`; nothing is bound. With an inner endpoint,
            as that one.
        """
        if self._inner is not None:
            assert isinstance(self._options, TLSSocketOptions)
            assert self._context_factory is not None
            over = PortOverEndpoint(
                self._reactor, protocolFactory, self._options, self._context_factory
            )
            return over.listen_on(self._inner).addCallback(self._watched)

        def bound(sockets: list[_socket.socket]) -> Any:
            try:
                port = ListeningPort(
                    self._reactor,
                    sockets,
                    protocolFactory,
                    self._options,
                    self._context_factory,
                    adopted=self._adopt is not None,
                )
                port.startListening()
            except BaseException:
                # What the factory raises is the caller's affair, and the port free again.
                for sock in sockets:
                    sock.close()
                raise
            return self._watched(port)

        return self.bind().addCallback(bound)

    def bind(
        self, service: str | int | None = None, *, shared: bool = False
    ) -> Deferred[list[_socket.socket]]:
        """
        Listen without taking connections, for `adopting` elsewhere.

        Args:
            service: Instead of the endpoint's own: the port that another call has got.
            shared: Set ``SO_REUSEPORT``, so that several can be bound to one port.

        Returns:
            The non-blocking, listening sockets, at least one; the caller's to close.

        Errors:
            HostNotFoundError: There is no such node or service.
            SocketBindError: The address is taken, or not ours to bind.

        Raises:
            ValueError: There is an inner endpoint, which has sockets of its own.

        Cancelling:
            Fails with `CancelledError`; nothing is bound.
        """
        if self._inner is not None:
            raise ValueError(f"endpoint={self._inner!r} listens by itself")
        if self._adopt is not None:
            return maybeDeferred(self._take_over, self._adopt)
        return listen(
            self._reactor,
            self._node,
            self._service if service is None else service,
            self._options.replace(reuse_port=True) if shared else self._options,
            every_address=True,
        )

    def adopting(self, sockets: Callable[[], list[_socket.socket]]) -> ServerEndpoint:
        """
        Return an endpoint that listens as this does, on sockets that are there already.

        It neither binds anything nor removes a path, and shares certificates and
        their reload with this one.

        Args:
            sockets: Called by `listen`, and returns non-blocking, listening stream
                sockets, which the port owns then.
        """
        other = copy(self)
        other._adopt = sockets
        return other

    def _take_over(self, sockets: Callable[[], list[_socket.socket]]) -> list[_socket.socket]:
        """Have sockets that were bound elsewhere, and what they accept, follow the options."""
        found = sockets()
        try:
            for sock in found:
                apply_options(sock, sock.family, sock.type, self._options)
        except SocketError:
            for sock in found:
                sock.close()
            raise
        return found

    @property
    def over_endpoint(self) -> bool:
        """Whether it listens with an inner endpoint, on no socket of its own."""
        return self._inner is not None

    @property
    def adopted(self) -> Callable[[], list[_socket.socket]] | None:
        """What gives the sockets to `adopting`, or `None` where it binds its own."""
        return self._adopt

    @property
    def node(self) -> str | None:
        """What it binds; `None` for every interface."""
        return self._node

    def validity(self) -> Iterator[Validity]:
        """Yield from when to when the certificates in use are valid; nothing without TLS."""
        return iter(()) if self._context_factory is None else self._context_factory.validity()

    @property
    def place(self) -> str:
        """Node and service, for log lines."""
        return place_of(self._node, self._service, self._inner)

    def watch_files(self, seconds: float) -> FileWatch | None:
        """
        Look every *seconds* whether files have changed, and `reload` them then.

        Returns:
            What goes on until it is stopped, or `None`: a plain endpoint has no files.
        """
        return watch_files(self._reactor, self._reloader, seconds, self.place)

    def _watched(self, port: Any) -> Any:
        if self._reload_every is not None and self._reloader is not None:
            port.watch_files(self._reloader, self._reload_every.total_seconds())
        return port

    def reload(self) -> Deferred[None]:
        """
        Read certificates, keys and trusted certificates again, for connections to come.

        A whole new context is built, in another thread, before it replaces the
        old one; connections that there are go on. Plain endpoints have nothing
        to read.

        Returns:
            `None`, when the new certificates are in use.

        Errors:
            ValueError: A file cannot be used; the old certificates stay.

        Cancelling:
            Fails with `CancelledError`; the old certificates stay.
        """
        return succeed(None) if self._reloader is None else self._reloader.reload()

    def __repr__(self) -> str:
        several = self._context_factory.records if self._context_factory else (self._options,)
        shown = ", ".join(repr(record) for record in several)
        where = place_of(self._node, self._service, self._inner)
        return f"<ServerEndpoint {where} {shown}>"


def server_endpoint(
    reactor: object,
    node: str | None,
    service: str | int | None,
    options: SocketOptions | Iterable[ServerTLSSocketOptions] | None = None,
    *,
    reload_every: timedelta | None = None,
    endpoint: IStreamServerEndpoint | None = None,
) -> ServerEndpoint:
    """
    Make a server endpoint, plain or TLS by the class of *options*.

    Args:
        reactor: Provides ``IReactorFDSet``, unless there is an *endpoint*.
        node: A name (all its addresses are bound, on one port), a numeric
            address, a path, or `None` for every interface, IPv4 and IPv6.
        service: A service's name or a port; 0 lets the kernel choose.
        options: A `SocketOptions`, a `ServerTLSSocketOptions`, or several of
            those, chosen by the name that a client asks for. Their files are
            read now. Plain defaults if `None`.
        reload_every: How often to look whether those files have changed, and to
            `ServerEndpoint.reload` them then; never if `None`.
        endpoint: Listens for the connections that TLS is spoken on. *node* and
            *service* are `None` then, and *options* are TLS records that say
            nothing of sockets and addresses.

    Returns:
        An ``IStreamServerEndpoint``.

    Raises:
        TypeError: *options* is a TLS client's record, or no record; or *reactor*
            cannot wait for sockets; or *endpoint* is none, or *options* are
            plain with it.
        ValueError: *node* or *service* is none; *non_blocking* or *handshake* is
            `False`; there is no certificate or key, or it cannot be used; the
            records cannot be served together; or *node*, *service* or an option
            contradicts *endpoint*.
    """
    plain = SocketOptions() if options is None else options
    records: SocketOptions | tuple[ServerTLSSocketOptions, ...]
    if isinstance(plain, SocketOptions) and not isinstance(plain, TLSSocketOptions):
        records = plain
    else:
        records = server_records(plain)
    first = records if isinstance(records, SocketOptions) else records[0]
    require_reactor_mode(first)
    interval = optional_duration(reload_every, "reload_every")
    if interval is not None and isinstance(records, SocketOptions):
        raise ValueError(f"reload_every={reload_every!r} needs TLS: a plain server has no files")
    if endpoint is not None:
        check_inner_server(endpoint, node, service, first)
        return ServerEndpoint(current_reactor(reactor), None, None, records, interval, endpoint)
    check_listening(node, service, first)
    require_stream(first, "endpoints are")
    poller_for(reactor)
    return ServerEndpoint(current_reactor(reactor), node, service, records, interval)
