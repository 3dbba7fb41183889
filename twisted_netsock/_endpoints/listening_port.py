"""What a server endpoint listens with: its port, and the transports of its connections."""

from __future__ import annotations

import math
import socket as _socket
from collections.abc import Callable
from functools import partial
from socket import SOCK_STREAM
from typing import Any, Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.logger import Logger
from zope.interface import Interface, implementer

from .._certificates.reload import FileWatch, Reloader
from .._io.descriptor import Descriptor, PlainDescriptor
from .._io.interfaces import Reactor
from .._io.poller import Watch, contain, poller_for
from .._net.accept import Acceptor
from .._net.happy_eyeballs import Established
from .._net.incoming import IncomingConnection, IncomingConnections, server_handshake
from .._net.inner import address_of
from .._net.unix_paths import bound_path
from .._proxy_protocol.header import ProxyHeader
from .._tls.context import negotiated_protocols
from .._tls.descriptor import TLSDescriptor
from .._tls.handshake import tls_shutdown
from .._tls.server import ServerContextFactory
from ..addresses import SocketAddress, to_twisted_address
from ..errors import SocketClosedError
from ..options import SocketOptions
from .factory import log_prefix, start_factory, stop_factory
from .transport import TLSTransport, Transport

__all__ = ["AdmissionLimit", "IConnectionFactory", "ListeningPort", "make_transport"]

_log = Logger()


def make_transport(
    reactor: Reactor,
    established: Established,
    options: SocketOptions,
    peer: IAddress,
    *,
    is_client: bool,
) -> Transport:
    """Return a transport on *established* that the poller keeps until it is lost."""
    descriptor, watch, header = established.descriptor, established.watch, established.header
    if established.inner is not None:
        host = established.inner.getHost()
    else:
        has_destination = header is not None and header.destination is not None
        socket_type = SOCK_STREAM if header is None or not has_destination else header.socket_type
        host = to_twisted_address(_local_address(descriptor.sock, header), socket_type)
    kind = TLSTransport if isinstance(descriptor, TLSDescriptor) else Transport
    watch.keep()
    transport = kind(reactor, watch, descriptor, options, host, peer, is_client=is_client)
    transport.proxy_header = header
    return transport


def _local_address(sock: _socket.socket, header: ProxyHeader | None) -> SocketAddress:
    """Return the address that a connection came to, which *header* may name."""
    if header is not None and header.destination is not None:
        return header.destination
    return SocketAddress.named(sock.getsockname())


def twisted_peer(peer: SocketAddress, header: ProxyHeader | None) -> IAddress:
    """Return *peer*, which *header* may have named, as Twisted names it."""
    return to_twisted_address(peer, SOCK_STREAM if header is None else header.socket_type)


class AdmissionLimit(Protocol):
    """Is called for every connection of a `ListeningPort`: accepted, admitted, gone."""

    def admits(self, peer: Any) -> bool:
        """
        Return whether *peer* may have one more connection: before TLS, behind a PROXY header.

        It counts from then on until it has `left`. A connection that may not is closed.
        """

    def entered(self) -> None:
        """Note that a connection was taken from the kernel; here the port may be paused."""

    def left(self, peer: Any) -> None:
        """
        Note that one that had entered is gone, be it before or after a protocol had it.

        Args:
            peer: The address it was admitted with; `None` if it was not.
        """


class IConnectionFactory(Interface):
    """A factory that takes connections as they are, without protocol and transport."""

    def take_connection(
        established: Established,  # noqa: N805
        peer: SocketAddress,
        host: SocketAddress,
        options: SocketOptions,
        gone: Callable[[], None],
    ) -> None:
        """
        Take a connection over, which the port's `AdmissionLimit` has admitted; raises nothing.

        Args:
            established: The connection.
            peer: Where it comes from, by its PROXY header where that names it.
            host: Where it came to, likewise.
            options: Has the time limits, `read_timeout` and `write_timeout`.
            gone: To be called once, when it is lost.
        """


class Port:
    """Takes connections through PROXY header and handshake, and builds their protocols."""

    def __init__(
        self,
        reactor: Reactor,
        factory: Any,
        options: SocketOptions,
        context_factory: ServerContextFactory | None,
    ) -> None:
        self._reactor = reactor
        self._factory = factory
        self._options = options
        self._takes = IConnectionFactory.providedBy(factory)
        self._secured = context_factory is not None
        self._admission: AdmissionLimit | None = None
        self._file_watch: FileWatch | None = None
        self._incoming: IncomingConnections | None = None
        if context_factory is not None or options.proxy_protocol is not None:
            self._incoming = IncomingConnections(
                reactor,
                options,
                self._serve,
                self._on_room,
                secure=(
                    None
                    if context_factory is None
                    else server_handshake(reactor, context_factory, negotiated_protocols(factory))
                ),
                admit=self._admits,
                gone=self._left,
            )

    @property
    def _log_prefix(self) -> str:
        prefix = log_prefix(self._factory)
        return f"{prefix} (TLS)" if self._secured else prefix

    def getHost(self) -> Any:
        """Return the address that is listened on, of several the first."""
        raise NotImplementedError

    def guard(self, admission: AdmissionLimit, max_incoming: int | None = None) -> None:
        """
        Have every connection to come reported to *admission*.

        Args:
            admission: Replaces one that was given before.
            max_incoming: How many connections may be on their way to a protocol
                at once, through PROXY header and handshake, half of them of one
                address; more stay with the kernel. 1024 if `None`.
        """
        self._admission = admission
        if self._incoming is not None:
            # It knows how many connections of one address are too many.
            self._incoming.max_waiting = math.inf
            if max_incoming is not None:
                self._incoming.max_pending = max_incoming

    @property
    def failed_incoming(self) -> int:
        """How many connections have failed before a protocol had them."""
        return 0 if self._incoming is None else self._incoming.failed

    def _admits(self, peer: SocketAddress) -> bool:
        return self._admission is None or self._admission.admits(peer)

    def _left(self, peer: SocketAddress | None) -> None:
        if self._admission is not None:
            self._admission.left(peer)

    def _on_room(self) -> None:
        """Take connections again, after too many were pending."""

    def _serve(self, incoming: IncomingConnection, descriptor: Descriptor) -> None:
        self._build(
            Established(descriptor, incoming.watch, incoming.peer, incoming.inner, incoming.header)
        )

    def _build(self, established: Established) -> None:
        """Build a protocol for a connection, or drop the connection."""
        descriptor, watch = established.descriptor, established.watch
        peer, header = established.peer, established.header
        assert peer is not None
        inner = established.inner
        gone = partial(self._left, peer)
        try:
            if self._takes:
                host = (
                    address_of(inner.getHost())
                    if inner
                    else _local_address(descriptor.sock, header)
                )
                self._factory.take_connection(established, peer, host, self._options, gone)
                return
            address = inner.getPeer() if inner else twisted_peer(peer, header)
            protocol = self._factory.buildProtocol(address)
            if protocol is None:
                if isinstance(descriptor, TLSDescriptor):
                    tls_shutdown(self._reactor, watch, descriptor).addCallback(lambda _: gone())
                else:
                    established.close()
                    gone()
                return
            transport = make_transport(
                self._reactor, established, self._options, address, is_client=False
            )
        except BaseException as error:  # noqa: BLE001 - it costs this connection and no other
            established.close()
            gone()
            contain(error, "a new connection could not be served")
            return
        transport.attach(protocol, gone)

    def watch_files(self, reloader: Reloader, seconds: float) -> None:
        """Look every *seconds* whether the files of *reloader* have changed, while listening."""
        self._file_watch = FileWatch(self._reactor, reloader, seconds, str(self.getHost()))

    def _stop_watching(self) -> None:
        watch, self._file_watch = self._file_watch, None
        if watch is not None:
            watch.stop()


@implementer(IListeningPort)
class ListeningPort(Port):
    """
    What a server endpoint listens on: one descriptor, or one for each address.

    Beside what ``IListeningPort`` asks for, accepting can be paused, and an
    `AdmissionLimit` set, which counts and chooses connections.
    """

    def __init__(
        self,
        reactor: Reactor,
        sockets: list[_socket.socket],
        factory: Any,
        options: SocketOptions,
        context_factory: ServerContextFactory | None,
        *,
        adopted: bool = False,
    ) -> None:
        """
        Listen on *sockets*, from `startListening` on.

        Args:
            reactor: Where it happens.
            sockets: Listening, all on one port; this owns them.
            factory: Builds the protocols.
            options: The record; of several, the first.
            context_factory: For TLS.
            adopted: The sockets were bound elsewhere: a path is not removed.
        """
        super().__init__(reactor, factory, options, context_factory)
        self._poller = poller_for(reactor)
        self._sockets = sockets
        self._paused = False
        self._host = SocketAddress.of(sockets[0].family, sockets[0].getsockname())
        self._path = None if adopted else bound_path(sockets[0])
        self._listening = False
        self._in_use = False
        self._watches: list[Watch] = []
        self._acceptors: list[Acceptor] = []

    def startListening(self) -> None:
        """Take connections; done by the endpoint already."""
        if self._listening:
            return
        if not self._sockets:
            raise SocketClosedError(strerror="A port that has stopped cannot start again")
        for sock in self._sockets:
            watch = self._poller.watch(sock.fileno())
            watch.keep()
            acceptor = Acceptor(
                self._reactor, watch, sock, self._on_connection, self._on_acceptor_lost
            )
            self._watches.append(watch)
            self._acceptors.append(acceptor)
        self._listening = True
        _log.info("{prefix} starting on {place}", prefix=self._log_prefix, place=self._place)
        try:
            start_factory(self._factory)
        except BaseException:
            self.stop_accepting()
            raise
        self._in_use = True
        self._accept_or_not()

    # Log lines are those of Twisted's ports: log filters of programs look for them.

    @property
    def _kind(self) -> str:
        if self._host.family == _socket.AF_UNIX:
            return "UNIX"
        return "TLS" if self._secured else "TCP"

    @property
    def _place(self) -> str:
        if self._host.family == _socket.AF_UNIX:
            return repr(self._host.host)
        return str(self._host.port)

    # Pausing

    def pause_accepting(self) -> None:
        """
        Take no more connections until `resume_accepting`.

        The port stays bound: up to ``backlog`` connections wait in the kernel's
        queue, and come in order then. Pending ones, and those that
        there are, go on. May be called again, and from an `AdmissionLimit`.
        """
        self._paused = True
        self._accept_or_not()

    def resume_accepting(self) -> None:
        """Take connections again; does nothing on a port that is not paused, or has stopped."""
        self._paused = False
        self._accept_or_not()

    def _accept_or_not(self) -> None:
        full = self._incoming is not None and self._incoming.full
        for acceptor in self._acceptors:
            if self._paused or full:
                acceptor.stop()
            else:
                acceptor.start()

    # Connections

    def _on_connection(self, connection: _socket.socket, peer: SocketAddress) -> None:
        admission = self._admission
        if admission is not None:
            admission.entered()
        if self._incoming is None:
            if admission is not None and not admission.admits(peer):
                connection.close()
                admission.left(None)
                return
            watch = self._poller.watch(connection.fileno())
            self._build(Established(PlainDescriptor(connection), watch, peer))
            return
        self._incoming.begin(connection, peer)
        if self._incoming.full:
            self._accept_or_not()

    def _on_room(self) -> None:
        self._accept_or_not()

    def _on_acceptor_lost(self, reason: Exception) -> None:
        if self._listening:
            _log.info(
                "stopped listening on {address}: {reason}", address=self._host, reason=reason
            )
            self.stopListening()

    def stopListening(self) -> Deferred[None]:
        """
        Take no more connections; those that there are live on.

        Returns:
            `None`, already: the port is free.
        """
        self.stop_accepting()
        if self._in_use:
            self._in_use = False
            if self._incoming is not None:
                self._incoming.close()
            stop_factory(self._factory)
        return succeed(None)

    def stop_accepting(self) -> None:
        """
        Close what is listened on, for good; what is in the kernel's queue is refused.

        Pending connections go on, and get protocols, until
        `stopListening`.
        """
        if not self._listening:
            return
        self._listening = False
        # Twisted quotes a path in the first of the two lines only.
        _log.info("({kind} Port {place} Closed)", kind=self._kind, place=self._place.strip("'\""))
        if self._path is not None:
            self._path.unlink()
        for acceptor, watch, sock in zip(
            self._acceptors, self._watches, self._sockets, strict=True
        ):
            acceptor.stop()
            watch.close()
            sock.close()
        self._sockets = []
        self._acceptors = []
        self._watches = []
        self._stop_watching()

    def loseConnection(self) -> None:
        """Do as `stopListening`."""
        self.stopListening()

    def getHost(self) -> Any:
        """Return the address that is listened on, of several the first."""
        return to_twisted_address(self._host)

    def __repr__(self) -> str:
        state = "listening on" if self._listening else "stopped, was on"
        return f"<port {state} {self._host} for {self._factory!r}>"
