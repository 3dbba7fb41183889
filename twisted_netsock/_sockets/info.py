"""`SocketInfo`: what a socket returns about itself, and what is set on it, without waiting."""

from __future__ import annotations

import os
import socket as _socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NoReturn

from .._proxy_protocol.header import ProxyHeader
from ..addresses import Address, SocketAddress, as_socket_address
from ..errors import SocketBindError, SocketClosedError, SocketError

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from .._io.descriptor import Descriptor

__all__ = ["SocketInfo"]


class SocketInfo:
    """
    Names, options, binding and listening: the calls that never wait.

    For sockets on the reactor and blocking ones alike.
    """

    _descriptor: Descriptor
    _number: int
    _closed: bool

    _lock: AbstractContextManager[object] = nullcontext()
    """Held by each call; blocking sockets have a real one, since threads share them."""

    # Of the class, so that it takes memory only where there is one.
    proxy_header: ProxyHeader | None = None

    @property
    def _family(self) -> _socket.AddressFamily:
        return self._descriptor.sock.family

    def _check_open(self) -> None:
        if self._closed:
            raise SocketClosedError(self)

    @contextmanager
    def _asking(self) -> Iterator[_socket.socket]:
        """Give the socket beneath, unless this is closed; its errors are this one's."""
        with self._lock:
            self._check_open()
            try:
                yield self._descriptor.sock
            except OSError as error:
                if isinstance(error, SocketError):
                    raise
                raise SocketError(self, error.errno, error.strerror) from None

    @property
    def closed(self) -> bool:
        """Whether it was closed on this side (``socket-closed?``)."""
        return self._closed

    def fileno(self) -> int:
        """Return the descriptor, which stays this socket's; -1 once closed."""
        return -1 if self._closed else self._number

    def get_inheritable(self) -> bool:
        """Return whether the descriptor stays open in programs that this one becomes."""
        return os.get_inheritable(self.fileno())

    def set_inheritable(self, inheritable: bool) -> None:
        """Have the descriptor stay open in programs that this one becomes, or not."""
        os.set_inheritable(self.fileno(), inheritable)

    def __reduce__(self) -> NoReturn:
        """Refuse copies and pickles."""
        name = type(self).__name__
        raise TypeError(f"cannot copy or pickle a {name}: one object owns the descriptor")

    @property
    def family(self) -> _socket.AddressFamily:
        """``AF_INET``, ``AF_INET6`` or ``AF_UNIX``."""
        return self._family

    def getsockname(self) -> SocketAddress:
        """
        Return the address on this side.

        Raises:
            SocketClosedError: The socket is closed.
        """
        with self._asking() as sock:
            return SocketAddress.of(sock.family, sock.getsockname())

    def getpeername(self) -> SocketAddress:
        """
        Return the address of the peer.

        Raises:
            SocketError: There is no peer.
            SocketClosedError: The socket is closed.
        """
        with self._asking() as sock:
            return SocketAddress.of(sock.family, sock.getpeername())

    def getsockopt(self, level: int, name: int, size: int | None = None) -> Any:
        """
        Return an option: an `int`, or `bytes` of at most *size* if that is given.

        Raises:
            SocketError: There is no such option.
            SocketClosedError: The socket is closed.
        """
        with self._asking() as sock:
            if size is None:
                return sock.getsockopt(level, name)
            return sock.getsockopt(level, name, size)

    def setsockopt(self, level: int, name: int, value: int | Buffer) -> None:
        """
        Set an option.

        Raises:
            SocketError: There is no such option, or it refuses the value.
            SocketClosedError: The socket is closed.
        """
        with self._asking() as sock:
            sock.setsockopt(level, name, value)

    def _local_end(self) -> str:
        try:
            return f"at {SocketAddress.of(self._family, self._descriptor.sock.getsockname())}"
        except OSError:
            # The collector has closed the descriptor before it came to this.
            return "lost"

    def __repr__(self) -> str:
        if self._closed:
            return f"<{type(self).__name__} closed>"
        sock = self._descriptor.sock
        try:
            ends = f"from {SocketAddress.of(self._family, sock.getsockname())}"
            ends += f" to {SocketAddress.of(self._family, sock.getpeername())}"
        except OSError:
            # Not bound, or not connected.
            ends = self._local_end()
        return f"<{type(self).__name__} descriptor {self._number} {ends}>"

    def bind(self, address: Address) -> None:
        """
        Bind to *address*, which must be numeric.

        Raises:
            SocketBindError: The address is taken, or not ours to bind.
            SocketClosedError: The socket is closed.
            ValueError: *address* is a name, or of another family.
        """
        with self._asking() as sock:
            target = as_socket_address(address)
            try:
                sock.bind(target.native(sock.family))
            except OSError as error:
                port = None if sock.family == _socket.AF_UNIX else target.port
                raise SocketBindError(target.host, port, socket=self, cause=error) from None

    def listen(self, backlog: int = 128) -> None:
        """
        Accept connections into a queue of the kernel's.

        Args:
            backlog: The length of the queue.

        Raises:
            SocketError: This kind of socket cannot listen.
            SocketClosedError: The socket is closed.
        """
        with self._asking() as sock:
            sock.listen(backlog)
