"""`TLSSocket`: a `Socket` that speaks TLS."""

from __future__ import annotations

import socket as _socket
from typing import Self

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from .._certificates.reload import FileWatch, Reloader
from .._io.descriptor import Descriptor
from .._io.interfaces import Reactor
from .._io.operation import Operation
from .._io.poller import WANT_READ, Want, Watch
from .._net.incoming import IncomingConnections, server_handshake
from .._public import public_in
from .._tls.descriptor import TLSDescriptor
from .._tls.handshake import handshake, tls_shutdown
from .._tls.info import TLSSocketInfo
from .._tls.server import ServerContextFactory
from .._validation import in_seconds
from ..errors import SocketError
from ..options import SocketOptions
from .socket import Socket

__all__ = ["TLSSocket"]


@public_in("twisted_netsock")
class TLSSocket(TLSSocketInfo, Socket):
    """
    A TLS socket on the reactor: connected, or listening.

    Made by `make_client_tls_socket`, `make_server_tls_socket` and `start_tls`.
    It has the methods of `Socket`, except that TLS knows no flags and no
    datagrams. Its peer is verified before it is handed over, unless the
    options say ``handshake=False``.

    Attributes:
        node: The host, address or path that it was made for, or `None`.
        service: The service that it was made for, or `None`.
    """

    _factory: ServerContextFactory | None = None
    _running: Deferred[None] | None = None
    _reloader: Reloader | None = None
    _file_watch: FileWatch | None = None

    def __init__(
        self,
        reactor: Reactor,
        watch: Watch,
        descriptor: Descriptor,
        *,
        node: str | None = None,
        service: str | int | None = None,
        options: SocketOptions | None = None,
        factory: ServerContextFactory | None = None,
    ) -> None:
        """Take *watch* and *descriptor* over; *factory* makes it listening."""
        super().__init__(reactor, watch, descriptor, node=node, service=service, options=options)
        if factory is not None:
            self._factory = factory
            self._reloader = Reloader(reactor, factory)
            self._incoming = IncomingConnections(
                reactor,
                factory.options,
                self._on_incoming,
                self._on_room,
                secure=server_handshake(reactor, factory),
            )

    @classmethod
    def from_socket(
        cls,
        sock: _socket.socket | int,  # noqa: ARG003 - the signature is the base's
        *,
        reactor: object = None,  # noqa: ARG003
    ) -> Self:
        """
        Refuse: a descriptor alone does not speak TLS.

        Raises:
            TypeError: Always.
        """
        raise TypeError("TLSSocket.from_socket: adopt it with Socket.from_socket first")

    # Accepting

    def accept(self) -> Deferred[Self]:
        """
        Take the next connection whose handshake is done and whose client is verified.

        A handshake that fails is closed, counted (`failed_handshakes`) and
        logged, and never fails this call; so is one without the PROXY header that
        `proxy_protocol` requires, for which `handshake_timeout` holds, too. With
        ``handshake=False`` the connection comes at once (after the header), and
        the handshake is the caller's.

        Returns:
            A `TLSSocket`, which is the caller's to close.

        Errors:
            As `Socket.accept`.

        Cancelling:
            Fails with `CancelledError`; the next accept gets the connection.
        """
        return super().accept()

    def reload(self) -> Deferred[None]:
        """
        Read certificates, keys and trusted certificates again, for connections to come.

        For listening sockets. A whole new context is built, in another thread,
        before it replaces the old one; connections that there are go on.

        Returns:
            `None`, when the new certificates are in use.

        Errors:
            ValueError: A file cannot be used; the old certificates stay.
            SocketError: The socket does not listen.
            SocketClosedError: The socket is closed.

        Cancelling:
            Fails with `CancelledError`; the old certificates stay.
        """
        if self._closed:
            return self._refuse()
        if self._reloader is None:
            return self._failed(
                SocketError(strerror="This is a connection: it has its certificates already")
            )
        return self._reloader.reload()

    def _watch_files(self, seconds: float) -> None:
        """Look every *seconds* whether the files have changed, until this is closed."""
        assert self._reloader is not None
        where = str(self.getsockname())
        self._file_watch = FileWatch(self._reactor, self._reloader, seconds, where)

    # The handshake

    def handshake(self) -> Deferred[None]:
        """
        Shake hands and verify the peer (``tls-client-handshake``, ``tls-server-handshake``).

        For sockets made with ``handshake=False``; until it is done nothing can
        be sent or received. Once it is done, this does nothing.

        Returns:
            `None`, when it is done and the peer verified.

        Errors:
            CertificateVerificationError: We refused the peer's certificate.
            TLSHandshakeError: Anything else that TLS did not like.
            SocketConnectionLostError: The peer went away.
            SocketConnectionTimeoutError: `handshake_timeout` passed.
            SocketBusyError: Another operation is waiting.
            SocketClosedError: The socket is closed, or was while this waited.

        Cancelling:
            Fails with `CancelledError`; the socket is good for nothing but closing.
        """
        if self._closed or self._reader is not None or self._writer is not None:
            return self._refuse()
        descriptor = self._tls()
        seconds = in_seconds(descriptor.options.handshake_timeout)
        outer: Operation[None]
        outer = Operation(lambda _: running.cancel(), lambda: WANT_READ, WANT_READ)
        # The handshake needs both directions, so both are taken while it runs.
        self._reader = self._writer = outer
        running = self._running = handshake(self._reactor, self._watch, descriptor, seconds)

        def finished(result: Failure | None) -> None:
            self._running = None
            if self._closed:
                # The closing fails what waits.
                return
            if self._reader is outer:
                self._reader = self._writer = None
            if isinstance(result, Failure) and isinstance(result.value, SocketError):
                result.value.socket = self
            if not outer.called:
                outer.finish(result)

        running.addBoth(finished)
        return outer

    def _stop_helpers(self) -> None:
        super()._stop_helpers()
        if self._file_watch is not None:
            self._file_watch.stop()
        if self._running is not None:
            self._running.cancel()

    def shutdown(self, how: int) -> Deferred[None]:
        """
        Shut down one direction or both; writing ends with close_notify.

        See `Socket.shutdown`. Once this side has shut down reading, a receive
        gives the end of the stream.
        """
        shut = super().shutdown(how)
        if how != _socket.SHUT_WR and self._reader is not None:
            # Nothing in the kernel wakes it, as it would a plain socket's.
            self._retry(self._reader)
        return shut

    # Data

    def _try_readable(self) -> Want | None:
        descriptor = self._descriptor
        if self._ready or (self._input is not None and self._input.pending):
            return None
        if isinstance(descriptor, TLSDescriptor) and descriptor.handshaken:
            return descriptor.try_readable()
        return super()._try_readable()

    # Closing

    def _let_go(self, *, abort: bool) -> None:
        descriptor = self._descriptor
        if isinstance(descriptor, TLSDescriptor) and descriptor.handshaken and not abort:
            self._ending = tls_shutdown(self._reactor, self._watch, descriptor)
            self._ending.addBoth(self._on_gone)
        else:
            super()._let_go(abort=abort)
