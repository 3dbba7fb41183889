"""
Accepting connections from a listening descriptor, for sockets and endpoints alike.

An `Acceptor` survives every error of a single connection, and pauses when the process
or the system is out of descriptors or memory.
"""

from __future__ import annotations

import errno
import socket as _socket
import sys
from collections.abc import Callable
from typing import Final

from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from .._io.descriptor import from_os_error, inherit
from .._io.fairness import ACCEPTS
from .._io.interfaces import Reactor
from .._io.native import NativeSocket
from .._io.poller import Watch, contain
from ..addresses import SocketAddress
from ..errors import SocketError

__all__ = ["Acceptor"]

_PAUSE_SECONDS: Final = 1.0
"""
How long to pause when resources are short. accept(2) would fail again at once, and the
descriptor stays readable, so the reactor would do nothing else.
"""

# Linux passes pending errors of the new connection on as errors of accept(2), whose manual
# page says to treat them like EAGAIN and to retry.
_OF_THE_CONNECTION: Final = frozenset(
    {
        errno.ECONNABORTED,
        errno.EPROTO,
        errno.ENETDOWN,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.ENONET,
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.ETIMEDOUT,
    }
)
_OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_NO_DELAY_INHERITED: Final = sys.platform == "linux"
"""On Linux a connection inherits ``TCP_NODELAY`` from its listener: one system call less."""

_log = Logger()


class Acceptor:
    """
    Accepts connections between `start` and `stop`, and delivers each one.

    Connections are non-blocking, and have ``TCP_NODELAY`` set where they are TCP:
    before a TLS handshake, whose small flights would wait for delayed acknowledgements.
    """

    def __init__(
        self,
        reactor: Reactor,
        watch: Watch,
        sock: _socket.socket,
        deliver: Callable[[_socket.socket, SocketAddress], None],
        lost: Callable[[Exception], None],
    ) -> None:
        """
        Accept connections from *sock*; `start` begins.

        Args:
            reactor: For the pause.
            watch: The listening descriptor's; this becomes its owner.
            sock: Listening; stays its caller's.
            deliver: Called with each connection, which the callee owns then, and the peer.
            lost: Called once if nothing more can be accepted.
        """
        self._reactor = reactor
        self._watch = watch
        self._sock = sock
        # Read once: `socket.family` and `.type` make members of enumerations, and `socket.accept`
        # reads both for each connection, which takes as long as the system call: 3 % of a
        # relayed connection.
        self._family, self._kind, self._protocol = int(sock.family), int(sock.type), sock.proto
        self._quick_accept = getattr(sock, "_accept", None) if type(sock) is NativeSocket else None
        self._deliver = deliver
        self._lost = lost
        self._running = False
        self._starts = 0
        self._complained = False
        self._pause: IDelayedCall | None = None

    def start(self) -> None:
        """Accept connections until `stop`, from the next reactor iteration on."""
        if not self._running:
            self._running = True
            self._starts += 1
            if self._pause is None:
                self._listen()

    def stop(self) -> None:
        """Leave new connections in the kernel's queue."""
        self._running = False
        self._watch.stop_receive()
        self._watch.owner = None
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def take(self) -> tuple[_socket.socket, SocketAddress] | None:
        """
        Accept one connection if one is pending.

        Raises:
            SocketError: The listening descriptor failed.
        """
        # After so many errors in a row the rest waits for the next reactor iteration.
        for _ in range(ACCEPTS):
            try:
                connection, peer = self._accept()
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno in _OF_THE_CONNECTION and self._listens():
                    continue
                if error.errno in _OUT_OF_RESOURCES:
                    self._rest(error)
                    return None
                raise from_os_error(error) from None
            self._complained = False
            return self._prepare(connection), SocketAddress.named(peer)
        return None

    def _accept(self) -> tuple[_socket.socket, object]:
        if self._quick_accept is None:
            return self._sock.accept()
        number, peer = self._quick_accept()
        return NativeSocket(self._family, self._kind, self._protocol, number), peer

    def _listens(self) -> bool:
        """Return whether *sock* listens: only then may an error be a connection's."""
        return bool(self._sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ACCEPTCONN))

    def _prepare(self, connection: _socket.socket) -> _socket.socket:
        connection.setblocking(False)
        if not _NO_DELAY_INHERITED and self._family in (_socket.AF_INET, _socket.AF_INET6):
            try:
                connection.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, self._no_delay())
            except OSError:
                # The peer has gone already; the next receive fails.
                pass
        return connection

    def _no_delay(self) -> int:
        # The listener's own setting: `socket_options` may have turned it off.
        return self._sock.getsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY)

    def _listen(self) -> None:
        self._watch.owner = self
        self._watch.want_receive()

    def _rest(self, error: OSError) -> None:
        """Pause, because of *error*, and log that once."""
        if not self._complained:
            self._complained = True
            _log.error(
                "cannot accept connections on {address} for lack of resources, trying again "
                "every {seconds} s: {error}",
                address=self._sock.getsockname(),
                seconds=_PAUSE_SECONDS,
                error=error,
            )
        self._watch.stop_receive()
        if self._pause is None:
            self._pause = self._reactor.callLater(_PAUSE_SECONDS, self._resume)

    def _resume(self) -> None:
        self._pause = None
        if self._running:
            self._listen()

    def on_receive_ready(self) -> None:
        """Accept pending connections; for the poller."""
        starts = self._starts
        for _ in range(ACCEPTS):
            if not self._running or self._starts != starts:
                # The delivery has stopped this, or stopped and started it.
                return
            try:
                taken = self.take()
            except SocketError as error:
                self.stop()
                self._lost(error)
                return
            if taken is None:
                return
            try:
                self._deliver(*taken)
            except BaseException as error:  # noqa: BLE001 - it costs this connection and no other
                contain(error, "a new connection could not be served")

    def on_send_ready(self) -> None:
        """Do nothing: a listening descriptor is never written."""

    def on_poller_lost(self, reason: Exception) -> None:
        """Report that nothing more can be accepted; for the poller."""
        self.stop()
        self._lost(reason)

    def on_fork(self) -> None:
        """Stop for good in a forked child; for the poller."""
        self.stop()
        self._quick_accept = None
        inherit(self._sock)
