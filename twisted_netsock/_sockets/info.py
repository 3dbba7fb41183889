"""`SocketFacts`: what can be asked about a socket and set on it, without waiting."""

from __future__ import annotations

import socket as _socket
from typing import TYPE_CHECKING, Any

from .._proxy_protocol.header import ProxyHeader
from ..addresses import Address, SocketAddress, as_socket_address
from ..errors import SocketBindError, SocketClosedError, SocketError

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["SocketFacts"]


class SocketFacts:
    """
    Names, options, binding and listening: the calls that never wait.

    For sockets on the reactor and blocking ones alike.
    """

    _descriptor: Any
    _number: int
    _closed: bool

    # Of the class, so that it takes memory only where there is one.
    proxy_header: ProxyHeader | None = None

    @property
    def _family(self) -> _socket.AddressFamily:
        family: _socket.AddressFamily = self._descriptor.sock.family
        return family

    def _check_open(self) -> None:
        if self._closed:
            raise SocketClosedError(self)

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
        self._check_open()
        return SocketAddress.of(self._family, self._descriptor.sock.getsockname())

    def getpeername(self) -> SocketAddress:
        """
        Return the address of the peer.

        Raises:
            SocketError: There is no peer.
            SocketClosedError: The socket is closed.
        """
        self._check_open()
        try:
            return SocketAddress.of(self._family, self._descriptor.sock.getpeername())
        except OSError as error:
            raise SocketError(self, error.errno, error.strerror) from None

    def getsockopt(self, level: int, name: int, size: int | None = None) -> Any:
        """
        Return an option: an `int`, or `bytes` of at most *size* if that is given.

        Raises:
            SocketError: There is no such option.
            SocketClosedError: The socket is closed.
        """
        self._check_open()
        try:
            if size is None:
                return self._descriptor.sock.getsockopt(level, name)
            return self._descriptor.sock.getsockopt(level, name, size)
        except OSError as error:
            raise SocketError(self, error.errno, error.strerror) from None

    def setsockopt(self, level: int, name: int, value: int | Buffer) -> None:
        """
        Set an option.

        Raises:
            SocketError: There is no such option, or it refuses the value.
            SocketClosedError: The socket is closed.
        """
        self._check_open()
        try:
            self._descriptor.sock.setsockopt(level, name, value)
        except OSError as error:
            raise SocketError(self, error.errno, error.strerror) from None

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
        self._check_open()
        target = as_socket_address(address)
        try:
            self._descriptor.sock.bind(target.native(self._family))
        except OSError as error:
            port = None if self._family == _socket.AF_UNIX else target.port
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
        self._check_open()
        try:
            self._descriptor.sock.listen(backlog)
        except OSError as error:
            raise SocketError(self, error.errno, error.strerror) from None
