"""
`Socket`: the BSD calls as Deferreds.

Each call tries the operation at once, through the try layer, and returns a
Deferred that has fired already if that was enough; else the operation is parked
until the poller reports the descriptor.
"""

from __future__ import annotations

import socket as _socket
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Self, TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from .. import _validation as check
from .._io.descriptor import Connect, Descriptor, PlainDescriptor, adopt, from_os_error
from .._io.operation import Operation
from .._io.poller import WANT_READ, Want, poller_for
from .._net.accept import Acceptor
from .._net.incoming import IncomingConnection, IncomingConnections
from .._public import public_in
from ..addresses import Address, SocketAddress, as_socket_address
from ..errors import (
    SocketBusyError,
    SocketClosedError,
    SocketConnectionLostError,
    SocketError,
    SocketPortError,
)
from .data import DataSocket
from .serve import serve

__all__ = ["Socket"]

T = TypeVar("T")


def current_reactor(reactor: Any) -> Any:
    """Return *reactor*, or the one that is installed if it is `None`."""
    if reactor is None:
        from twisted.internet import reactor as installed

        return installed
    return reactor


def _until_delivered() -> Want:
    """Try nothing: what this operation waits for is brought to it."""
    return WANT_READ


@public_in("twisted_netsock")
class Socket(DataSocket):
    """
    A socket on the reactor.

    Made by `make_client_socket` and its kin, by `chibi.socket`, or around an
    existing descriptor by `Socket.from_socket`. To be used from the reactor's
    thread alone. ``async with`` closes it at the end; ``async for`` accepts.

    One operation at a time may wait in each direction: a second fails with
    `SocketBusyError`.

    Attributes:
        node: The host, address or path that it was made for, or `None`.
        service: The service that it was made for, or `None`.
        proxy_header: The PROXY header that an accepted connection began with, or
            `None`; *node* and *service* are its source then.
    """

    _acceptor: Acceptor | None = None
    _incoming: IncomingConnections | None = None
    _ready: deque[Any] | None = None

    @classmethod
    def from_socket(cls, sock: _socket.socket | int, *, reactor: Any = None) -> Self:
        """
        Adopt a socket of the standard library, or a descriptor.

        The new socket owns it from then on: a *sock* object is detached and
        spent, a number is closed when the new socket is. It is made
        non-blocking, and ``TCP_NODELAY`` is set where it is TCP.

        Raises:
            OSError: *sock* is no open socket.
            TypeError: *reactor* cannot wait for sockets, or *sock* speaks TLS.
        """
        reactor = current_reactor(reactor)
        poller = poller_for(reactor)
        descriptor = adopt(sock)
        return cls(reactor, poller.watch(descriptor.sock.fileno()), descriptor)

    def detach(self) -> int:
        """
        Give the descriptor away, and close this socket without it.

        Returns:
            The descriptor, non-blocking, which is the caller's to close.

        Raises:
            SocketClosedError: The socket is closed.
            SocketBusyError: An operation is waiting.
            SocketPortError: A port holds bytes.
            SocketError: This is TLS, whose state would be lost.
        """
        self._check_open()
        if self._output is not None and self._output.pending:
            raise SocketPortError(self._output, socket=self, strerror="output_port holds bytes")
        plain, _ = self._spend()
        self._watch.close()
        return plain.sock.detach()

    def _spend(self) -> tuple[PlainDescriptor, Operation[Any] | None]:
        """
        Close this object, and leave its descriptor and watch to the caller.

        Returns:
            The descriptor, and the operation of the output port that is not
            done: the caller does it, and fires its Deferred.

        Raises:
            SocketClosedError: The socket is closed.
            SocketBusyError: An operation waits that is not the output port's.
            SocketPortError: The input port holds bytes, or the output port failed.
            SocketError: This is TLS, whose state would be lost.
        """
        self._check_open()
        plain = self._datagrams()
        sending = self._writer if self._output is not None and self._output.sending else None
        if self._reader is not None or self._writer is not sending:
            raise SocketBusyError(self)
        if self._input is not None and self._input.pending:
            raise SocketPortError(
                self._input, socket=self, strerror="input_port holds unread bytes"
            )
        if sending is not None:
            self._drop(sending)
        self._closed = True
        self._watch.owner = None
        self._close_ports()
        self._on_gone(None)
        return plain, sending

    def _hand_over(self) -> Any:
        """Close this socket without its descriptor, which is the caller's from now on."""
        self._closed = True
        self._watch.close()
        self._close_ports()
        self._on_gone(None)
        return self._descriptor

    # Connecting and listening

    def connect(self, address: Address) -> Deferred[None]:
        """
        Connect to *address*.

        Args:
            address: Numeric: no call looks a name up behind its caller's back.

        Returns:
            `None`, when the connection stands.

        Raises:
            ValueError: *address* is a name, or of another family.

        Errors:
            SocketConnectionRefusedError: The peer refused.
            SocketConnectionTimeoutError: The kernel gave up.
            SocketConnectionError: Anything else that went wrong.
            SocketBusyError: Another send or connect is waiting.
            SocketClosedError: The socket is closed, or was while this waited.

        Cancelling:
            Fails with `CancelledError`; the socket stays open, and the
            attempt goes on in the kernel: good for nothing but closing.
        """
        native = as_socket_address(address).native(self._family)
        may_go_on = poller_for(self._reactor).may_go_on
        return self._write(Connect(self._descriptor.sock, native, may_go_on))

    def accept(self) -> Deferred[Self]:
        """
        Take the next connection.

        Where the options have `proxy_protocol`, one whose PROXY header has come.
        A connection without a good one, within 10 seconds, is closed, counted
        (`failed_handshakes`) and logged, and never fails this call.

        Returns:
            Its socket, which is the caller's to close. `read_timeout` and
            `write_timeout` of this socket hold for it; neither holds for this call.

        Errors:
            SocketBusyError: Another accept is waiting.
            SocketClosedError: The socket is closed, or was while this waited.
            SocketError: The socket does not listen.

        Cancelling:
            Fails with `CancelledError` and takes nothing: the next accept gets
            the connection.
        """
        if self._closed or self._reader is not None:
            return self._refuse()
        if self._ready:
            return succeed(self._ready.popleft())
        acceptor = self._acceptor or self._make_acceptor()
        if self._incoming is not None:
            return self._park_accept(None if self._incoming.full else acceptor)
        try:
            taken = acceptor.take() if self._may_go_on() else None
        except SocketError as error:
            return self._failed(error)
        if taken is not None:
            return succeed(self._accepted(*taken))
        return self._park_accept(acceptor)

    def serve(
        self, handler: Callable[[Self], object], *, limit: int | None = None
    ) -> Deferred[None]:
        """
        Accept connections, and hand each to *handler* at once, until this is closed.

        Args:
            handler: Called with a connection; a coroutine function, or what
                returns a Deferred or anything else. When it is done, or fails, the
                connection is closed, also if it has been given to `start_tls`.
                What it raises is logged and touches no other connection: in a
                line if it is an error of the connection's own, else with its
                traceback.
            limit: The most connections at a time, until they are closed; more
                wait in the kernel's queue. `None`: no limit.

        Returns:
            `None`, when this socket is closed on this side and every handler
            is done.

        Raises:
            TypeError: *handler* cannot be called, or *limit* is no number.
            ValueError: *limit* is below 1.

        Errors:
            SocketBusyError: An accept is waiting.
            SocketError: The socket does not listen.

        Cancelling:
            Fails with `CancelledError`. The handlers that run are cancelled and
            their connections closed; this socket stays open.
        """
        if not callable(handler):
            raise TypeError(f"handler={handler!r} must be callable with a connection")
        if limit is not None:
            check.positive(limit, "limit")
        return serve(self.accept, handler, limit)

    def _park_accept(self, acceptor: Acceptor | None) -> Deferred[Any]:
        """Wait in the receiving direction for a connection, which *acceptor* takes if given."""
        operation: Operation[Any]
        operation = Operation(lambda _: self._stop_accepting(), _until_delivered, WANT_READ)
        self._reader = operation
        if acceptor is not None:
            try:
                acceptor.start()
            except OSError as error:
                self._reader = None
                return self._failed(from_os_error(error))
        return operation

    @property
    def _waiting_accept(self) -> Operation[Any] | None:
        """The accept that waits for a connection, if one does."""
        operation = self._reader
        return operation if operation and operation.trying is _until_delivered else None

    def _make_acceptor(self) -> Acceptor:
        if self._incoming is None and self._options.proxy_protocol is not None:
            self._incoming = IncomingConnections(
                self._reactor, self._options, self._on_incoming, self._on_room
            )
        self._acceptor = Acceptor(
            self._reactor,
            self._watch,
            self._descriptor.sock,
            self._on_connection,
            self._on_acceptor_lost,
        )
        return self._acceptor

    def on_fork(self) -> None:
        """Become unusable in a forked child; for the poller."""
        super().on_fork()
        if self._acceptor is not None:
            self._acceptor.on_fork()

    def _stop_accepting(self) -> None:
        self._reader = None
        self._pause_acceptor()

    def _stop_helpers(self) -> None:
        self._pause_acceptor()

    def _let_go(self, *, abort: bool) -> None:
        if self._incoming is not None:
            self._incoming.close()
            while self._ready:
                self._ready.popleft().close()
        super()._let_go(abort=abort)

    def _on_connection(self, connection: _socket.socket, peer: SocketAddress) -> None:
        if self._incoming is not None:
            self._incoming.begin(connection, peer)
            if self._incoming.full:
                self._pause_acceptor()
            return
        operation = self._waiting_accept
        self._stop_accepting()
        assert operation is not None
        operation.finish(self._accepted(connection, peer))

    def _pause_acceptor(self) -> None:
        if self._acceptor is not None:
            self._acceptor.stop()

    def _on_room(self) -> None:
        if self._waiting_accept is not None and self._acceptor is not None:
            self._acceptor.start()

    def _on_incoming(self, incoming: IncomingConnection, descriptor: Descriptor) -> None:
        connection = type(self)(
            self._reactor,
            incoming.watch,
            descriptor,
            node=incoming.peer.host,
            service=incoming.peer.port or None,
            options=self._options,
        )
        connection.proxy_header = incoming.header
        operation = self._waiting_accept
        if operation is None:
            if self._ready is None:
                self._ready = deque()
            self._ready.append(connection)
            if self._reader is not None:
                # It waits to learn of this.
                self._retry(self._reader)
            return
        self._stop_accepting()
        operation.finish(connection)

    def _try_readable(self) -> Want | None:
        return None if self._ready else super()._try_readable()

    @property
    def _has_ready(self) -> bool:
        """Whether connections wait for the next `accept` that the kernel knows nothing of."""
        return bool(self._ready)

    @property
    def failed_handshakes(self) -> int:
        """How many connections failed before `accept`, by their PROXY header or handshake."""
        return 0 if self._incoming is None else self._incoming.failed

    def _on_acceptor_lost(self, reason: Exception) -> None:
        operation, self._reader = self._reader, None
        if operation is not None:
            operation.finish(Failure(reason))

    def _accepted(self, connection: _socket.socket, peer: SocketAddress) -> Any:
        watch = poller_for(self._reactor).watch(connection.fileno())
        return Socket(
            self._reactor,
            watch,
            PlainDescriptor(connection),
            node=peer.host,
            service=peer.port or None,
            options=self._options,
        )

    async def __aiter__(self) -> AsyncIterator[Self]:
        """Accept connections until this socket is closed on this side."""
        while not self._closed:
            try:
                connection = await self.accept()
            except (SocketClosedError, SocketConnectionLostError):
                # Closed here, or with the reactor.
                return
            yield connection
