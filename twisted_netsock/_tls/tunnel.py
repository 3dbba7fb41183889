"""
TLS to a proxy, as the descriptor of what passes through it.

`Tunnel` has the methods of `twisted_netsock._io.descriptor.PlainDescriptor` for a stream: to
those who use it, it is a connection without TLS. TLS with the target goes through it by
`twisted_netsock._tls.in_memory`.
"""

from __future__ import annotations

import socket as _socket
from contextlib import suppress
from typing import TYPE_CHECKING

from .._io.native import new_lock
from .._io.poller import Want
from ..errors import SocketError
from .descriptor import TLSDescriptor

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from typing_extensions import Buffer

__all__ = ["Tunnel"]


class Tunnel:
    """
    A stream within TLS whose handshake is done; owns it.

    Blocking sockets receive in one thread and send in another, and take it for a descriptor of
    the kernel's. OpenSSL takes one call at a time.
    """

    __slots__ = ("_lock", "_resets", "_tls")

    half_closes = True
    """A close_notify says to the proxy that this direction has ended."""

    def __init__(self, tls: TLSDescriptor) -> None:
        self._tls = tls
        self._lock = new_lock()
        self._resets = False

    @property
    def sock(self) -> _socket.socket:
        """The socket beneath, for its options and addresses."""
        return self._tls.sock

    @property
    def unflushed(self) -> bool:
        """See `Descriptor`, as for all that follows."""
        return self._tls.unflushed

    @property
    def failed(self) -> bool:
        """Every attempt fails."""
        return self._tls.failed

    @property
    def seen_by_poller(self) -> bool:
        """OpenSSL has nothing that is whole."""
        return self._tls.seen_by_poller

    @property
    def buffered(self) -> bool:
        """OpenSSL has bytes."""
        with self._lock:
            return self._tls.buffered

    @property
    def finished(self) -> bool:
        """A receive returns the end, or raises, at once."""
        return self._tls.finished

    def try_recv(self, n: int, flags: int = 0) -> bytes | Want:
        """Return up to *n* bytes."""
        _refuse(flags)
        with self._lock:
            return self._tls.try_recv(n)

    def try_recv_into(self, view: memoryview | bytearray, flags: int = 0) -> int | Want:
        """Fill *view* from its start and return the count."""
        _refuse(flags)
        with self._lock:
            return self._tls.try_recv_into(view)

    def try_send(self, view: Buffer, flags: int = 0) -> int | Want:
        """Take some of *view*."""
        _refuse(flags)
        with self._lock:
            return self._tls.try_send(view)

    def try_flush(self) -> Want | None:
        """Hand to the kernel what was taken."""
        with self._lock:
            return self._tls.try_flush()

    def try_shutdown(self, how: int) -> Want | None:
        """Shut down one direction or both."""
        with self._lock:
            return self._tls.try_shutdown(how)

    def reset_on_close(self) -> None:
        """Make `close` reset the connection."""
        self._resets = True
        self._tls.reset_on_close()

    def check_reset(self) -> None:
        """Raise what the kernel has to report of a reset."""
        self._tls.check_reset()

    def in_flight(self) -> int:
        """Return how many bytes TCP has to send."""
        return self._tls.in_flight()

    def close(self) -> None:
        """Close in order: with a close_notify, which is not waited for, unless this resets."""
        with self._lock:
            if not self._resets:
                with suppress(SocketError):
                    self._tls.try_shutdown(_socket.SHUT_WR)
            self._tls.close()

    def gone(self) -> Deferred[None] | None:
        """Return `None`: it is gone with its close."""
        return self._tls.gone()

    def on_fork(self) -> None:
        """Become unusable."""
        # Another thread of the parent may have held it.
        self._lock = new_lock()
        self._tls.on_fork()


def _refuse(flags: int) -> None:
    if flags:
        raise SocketError(strerror="flags mean nothing through an HTTPS proxy: TLS has none")
