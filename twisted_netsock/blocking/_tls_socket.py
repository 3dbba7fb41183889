"""`BlockingTLSSocket`: a `BlockingSocket` that speaks TLS."""

from __future__ import annotations

import socket as _socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Self, TypeVar

from twisted.internet.defer import Deferred
from twisted.python import threadable

from .._io.descriptor import Descriptor
from .._io.interfaces import Reactor
from .._io.native import new_lock
from .._io.poller import Want, poller_for
from .._public import public_in
from .._sockets.socket import Socket
from .._sockets.tls_socket import TLSSocket
from .._tls.descriptor import TLSDescriptor
from .._tls.handshake import handshake, tls_shutdown
from .._tls.info import TLSSocketInfo
from .._tls.server import ServerContextFactory
from .._validation import in_seconds
from ..errors import SocketBusyError, SocketError, opened_before_fork
from ..options import SocketOptions, TLSSocketOptions
from ._bridge import in_reactor, run, use
from ._socket import BlockingSocket

__all__ = ["BlockingTLSSocket", "shake_hands"]

T = TypeVar("T")


def shake_hands(
    reactor: Reactor, descriptor: TLSDescriptor, seconds: float | None
) -> Deferred[None]:
    """Shake hands on *descriptor*, within *seconds*, in the reactor's thread."""
    watch = poller_for(reactor).watch(descriptor.sock.fileno())

    def leave(result: object) -> object:
        watch.close()
        return result

    return handshake(reactor, watch, descriptor, seconds).addBoth(leave)


@public_in("twisted_netsock.blocking")
class BlockingTLSSocket(TLSSocketInfo, BlockingSocket):
    """
    A blocking TLS socket: connected, or listening.

    Made by `make_client_tls_socket`, `make_server_tls_socket` and `start_tls` of
    `twisted_netsock.blocking`. It has the methods of `BlockingSocket`, except
    that TLS knows no flags and no datagrams. Its peer is verified before it is
    handed over, unless the options say ``handshake=False``.

    Attributes:
        node: The host, address or path that it was made for, or `None`.
        service: The service that it was made for, or `None`.
    """

    _takes_before_it_sends = True

    def __init__(
        self,
        descriptor: Descriptor,
        *,
        node: str | None = None,
        service: str | int | None = None,
        options: SocketOptions | None = None,
        factory: ServerContextFactory | None = None,
        reload_seconds: float | None = None,
    ) -> None:
        """Take *descriptor* over; *factory* makes it listening."""
        super().__init__(descriptor, node=node, service=service, options=options)
        self._factory = factory
        self._reload_seconds = reload_seconds
        self._shutdown: Deferred[None] | None = None
        self._engine = new_lock()
        self._inside = 0
        """The thread that is in the middle of OpenSSL's connection; it has *_engine*."""
        self._postponed: deque[Callable[[], object]] = deque()
        """What signal handlers want done as soon as it is not."""

    @classmethod
    def from_socket(
        cls,
        sock: _socket.socket | int,  # noqa: ARG003 - the signature is the base's
        *,
        reactor: object = None,
    ) -> Self:
        """
        Refuse: a descriptor alone does not speak TLS.

        Raises:
            TypeError: Always.
        """
        use(reactor)
        raise TypeError(
            "BlockingTLSSocket.from_socket: adopt it with BlockingSocket.from_socket first"
        )

    # Running operations

    def _attempt(self, attempt: Callable[[], T | Want]) -> T | Want:
        """Try once, alone."""
        try:
            return self._alone(lambda: super(BlockingTLSSocket, self)._attempt(attempt))
        except SocketError:
            if self._descriptor.failed:
                # The kernel would not report it to a thread that waits in the other direction.
                self._wake_users()
            raise

    def _alone(self, function: Callable[[], T]) -> T:
        """
        Call *function* while nobody else uses OpenSSL's connection: one state for both directions.

        Raises:
            SocketBusyError: This is a signal handler, whose thread is in the middle of that.
        """
        this_thread = threading.get_ident()
        try:
            # Not `_lock`: closing must never wait for as long as this takes.
            with self._engine:
                if self._inside:
                    raise SocketBusyError(self)
                self._inside = this_thread
                try:
                    result = function()
                finally:
                    self._inside = 0
                return result
        finally:
            if self._postponed and self._inside != this_thread:
                # Another thread, which has done the same, may have been faster.
                with suppress(IndexError):
                    while True:
                        self._postponed.popleft()()

    def _is_interrupted(self) -> bool:
        """Return whether this thread runs a signal handler, and is inside OpenSSL's connection."""
        return self._inside == threading.get_ident()

    def _when_free(self, function: Callable[[], object]) -> None:
        if self._is_interrupted():
            self._postponed.append(function)
        else:
            function()

    @contextmanager
    def _others_turn(self) -> Iterator[None]:
        # To read a file takes as long as it takes: a pipe may even wait for what another
        # thread is to receive here.
        this_thread, self._inside = self._inside, 0
        try:
            self._engine.release()
            yield
        finally:
            self._engine.acquire()
            self._inside = this_thread

    def _is_drained(self, count: int, wanted: int) -> bool:
        return count > 0 and not self._descriptor.buffered

    # Accepting

    def _make_counterpart(self, reactor: Reactor) -> Socket:
        assert isinstance(self._options, TLSSocketOptions)
        counterpart = TLSSocket(
            reactor,
            poller_for(reactor).watch(self._number),
            self._descriptor,
            options=self._options,
            factory=self._factory,
        )
        if self._reload_seconds is not None:
            counterpart._watch_files(self._reload_seconds)
        return counterpart

    def reload(self) -> None:
        """
        Read certificates, keys and trusted certificates again, for connections to come.

        For listening sockets. A whole new context is built before it replaces the
        old one; connections that there are go on.

        Raises:
            ValueError: A file cannot be used; the old certificates stay.
            SocketError: The socket does not listen.
            SocketClosedError: The socket is closed.
        """
        self._check_open()
        if self._factory is None:
            raise SocketError(
                self, strerror="This is a connection: it has its certificates already"
            )
        run(self._reload_there)

    def _reload_there(self, reactor: Reactor) -> Deferred[None]:
        counterpart = self._counterpart_on(reactor)
        assert isinstance(counterpart, TLSSocket)
        return counterpart.reload()

    def _can_receive(self) -> bool:
        descriptor = self._descriptor
        if not isinstance(descriptor, TLSDescriptor) or not descriptor.handshaken:
            return True
        return self._alone(lambda: descriptor.try_readable() is None)

    def _has_input(self) -> bool:
        with self._engine:
            return super()._has_input()

    # The handshake

    def handshake(self) -> None:
        """
        Shake hands and verify the peer (``tls-client-handshake``, ``tls-server-handshake``).

        For sockets made with ``handshake=False``; until it is done nothing can
        be sent or received. Once it is done, this does nothing. Ctrl-C leaves the
        socket good for nothing but closing.

        Raises:
            CertificateVerificationError: We refused the peer's certificate.
            TLSHandshakeError: Anything else that TLS did not like.
            SocketConnectionLostError: The peer went away.
            SocketConnectionTimeoutError: `handshake_timeout` passed.
            SocketBusyError: Another thread uses the socket.
            SocketClosedError: The socket is closed, or was while this waited.
        """
        descriptor = self._tls()
        seconds = self._handshake_seconds(descriptor)
        self._bridge(lambda reactor: shake_hands(reactor, descriptor, seconds), writing=True)

    def _handshake_seconds(self, descriptor: TLSDescriptor) -> float | None:
        return in_seconds(descriptor.options.handshake_timeout)

    def shutdown(self, how: int) -> None:
        """
        Shut down one direction or both; writing ends with close_notify.

        See `BlockingSocket.shutdown`. Once this side has shut down reading, a
        receive gives the end of the stream.
        """
        if self._is_interrupted():
            self._postponed.append(lambda: self._shut_down_quietly(how))
            return
        super().shutdown(how)
        if how != _socket.SHUT_WR:
            # Nothing in the kernel wakes a receive, as it would a plain socket's.
            self._drained = False
            if self._reader is not None:
                self._reader.wake()

    def _shut_down_quietly(self, how: int) -> None:
        # What was interrupted meets the same error by itself.
        with suppress(SocketError):
            self.shutdown(how)

    # Closing

    def _dispose(self) -> None:
        descriptor = self._descriptor
        if (
            isinstance(descriptor, TLSDescriptor)
            and not (self._aborted or self._dropped or self._cut)
            and self._begin_shutdown(descriptor)
        ):
            return
        super()._dispose()

    def _begin_shutdown(self, descriptor: TLSDescriptor) -> bool:
        """Send close_notify, and return whether the reactor goes on with TLS shutdown."""
        try:
            waiting = self._alone(descriptor.try_tls_shutdown) is not None
        except SocketError:
            return False
        return waiting and in_reactor(self._finish_shutdown)

    def _finish_shutdown(self, reactor: Reactor) -> None:
        """Wait for the peer's close_notify, in the reactor's thread."""
        try:
            watch = poller_for(reactor).watch(self._number)
        except SocketError:
            self._descriptor.close()
            return
        self._shutdown = tls_shutdown(reactor, watch, self._tls())
        if self._aborted:
            self._cut_shutdown()

    def abort(self) -> None:
        """Close at once and reset the connection; may be called again, and after `close`."""
        saying = self._gone and not self._aborted
        super().abort()
        if saying:
            in_reactor(lambda _: self._cut_shutdown())

    def _cut_shutdown(self) -> None:
        assert threadable.isInIOThread()
        if self._shutdown is not None and not self._shutdown.called:
            self._descriptor.reset_on_close()
            self._shutdown.cancel()

    def _after_fork(self) -> None:
        if isinstance(self._descriptor, TLSDescriptor):
            # Two processes must never send records with the same keys and numbers.
            self._descriptor.give_up(opened_before_fork())
        self._engine = new_lock()
        self._inside = 0
        self._postponed.clear()
        super()._after_fork()

    # What was negotiated

    def _ask(self, ask: Callable[[TLSDescriptor], T], otherwise: T) -> T:
        """Ask for what the handshake, once it is done, has settled."""
        descriptor = self._tls()
        with self._engine:
            # Until then it is the reactor's thread that uses the connection.
            return ask(descriptor) if descriptor.handshaken else otherwise
