"""`ContextSocket`: a `BlockingTLSSocket` with the methods of `ssl.SSLSocket`."""

from __future__ import annotations

import contextlib
import socket as _socket
import ssl
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar

from .._io.descriptor import PlainDescriptor
from .._io.poller import Want
from .._tls.client import ClientContextFactory
from .._tls.descriptor import TLSDescriptor
from .._tls.server import ServerContextFactory
from ..addresses import Address
from ._chibi import get_address_info
from ._make import begin_tls
from ._socket import BlockingSocket
from ._ssl_names import StandardNames, end_of, would_block
from ._tls_socket import BlockingTLSSocket
from ._waiting import Countdown, Waiter

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

    # Type checkers would compare the signature of each method with that of the other base.
    _Standard = object
else:
    _Standard = ssl.SSLSocket

__all__ = ["ContextSocket"]

T = TypeVar("T")


def is_connected(sock: _socket.socket | BlockingSocket) -> bool:
    """Return whether *sock* has a peer; else it listens, or will, or is to be connected."""
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


class ContextSocket(StandardNames, BlockingTLSSocket, _Standard):
    """
    What `wrap_socket` of our contexts returns: ours in everything but the names.

    An instance of `ssl.SSLSocket`, since programs ask for one, of which nothing is used: each
    of its methods is overridden here or by the bases before it.

    Attributes:
        server_side: Whether it is a server's.
        server_hostname: What was given to `wrap_socket`.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.server_side = False
        self.server_hostname: str | None = None
        self._context: ssl.SSLContext | None = None
        self._handshakes = True

    @classmethod
    def wrapping(
        cls,
        sock: _socket.socket | BlockingSocket,
        factory: ClientContextFactory | ServerContextFactory,
        context: ssl.SSLContext,
        server_hostname: str | None,
    ) -> Self:
        """
        Take *sock* over: connected, listening, or to be connected later.

        Raises:
            SocketError, ValueError: As `start_tls`.
        """
        seconds = sock.gettimeout()
        plain = sock if isinstance(sock, BlockingSocket) else BlockingSocket.from_socket(sock)
        if plain.service is None:
            # By which a client finds the session that it may resume.
            with contextlib.suppress(OSError):
                plain.service = plain.getpeername().port
        made: Self
        if isinstance(factory, ServerContextFactory) and not is_connected(plain):
            # It listens, or will.
            options = factory.options
            made = cls(plain._surrender(), options=options, factory=factory)
        else:
            made = begin_tls(plain, factory, cls, seconds or None)
        made._belong(context, server_hostname, factory)
        if seconds is not None:
            made.settimeout(seconds)
        return made

    def _belong(
        self,
        context: ssl.SSLContext | None,
        server_hostname: str | None,
        factory: ClientContextFactory | ServerContextFactory,
    ) -> None:
        self._context = context
        self.server_hostname = server_hostname
        self.server_side = isinstance(factory, ServerContextFactory)
        self._handshakes = factory.options.handshake

    @property
    def context(self) -> ssl.SSLContext | None:
        """The context that it was made by."""
        return self._context

    @property
    def _sslobj(self) -> Self | None:
        """What httpcore asks for the protocol; `None` without TLS, as there."""
        return self if isinstance(self._descriptor, TLSDescriptor) else None

    # Connecting and accepting

    def connect(self, address: Address) -> None:
        """Connect, to a name too, and shake hands unless `wrap_socket` was told not to."""
        super().connect(self._looked_up(address))
        if self._handshakes:
            self.do_handshake(block=True)

    def _looked_up(self, address: Any) -> Address:
        """Return the address of the name in *address*, as `socket.socket` does."""
        match address:
            case (host, port) if self.family != _socket.AF_UNIX:
                for found in get_address_info(host, port):
                    if found.family == self.family and found.address is not None:
                        return found.address
        native: Address = address
        return native

    def accept(self) -> Self:
        """Take the next connection, which unpacks into itself and its peer's address."""
        made = super().accept()
        assert self._factory is not None
        made._belong(self._context, None, self._factory)
        return made

    # The handshake and the end of TLS

    def do_handshake(self, block: bool = False) -> None:
        """Shake hands; where no call waits, as far as that goes."""
        if self._waits or block:
            self.handshake()
        else:
            self._write(self._tls().try_handshake)

    def _handshake_seconds(self, descriptor: TLSDescriptor) -> float | None:
        limits = super()._handshake_seconds(descriptor), self._read_seconds
        return min((each for each in limits if each is not None), default=None)

    def unwrap(self) -> Self:
        """
        End TLS in both directions, and go on without: this socket is plain then.

        Raises:
            TLSError: The peer sends data, which stays to be read.
            TLSTruncatedError: The peer ends without close_notify.
        """
        descriptor = self._tls()
        self.shutdown(_socket.SHUT_WR)

        self._receive(lambda: end_of(descriptor))
        with self._lock:
            self._check_open()
            self._descriptor = PlainDescriptor(descriptor.sock)
        return self

    # Data

    def read(self, len: int = 1024, buffer: Buffer | None = None) -> bytes | int:  # noqa: A002
        """Receive up to *len* bytes, or into *buffer*."""
        return self.recv(len) if buffer is None else self.recv_into(buffer, len or 0)

    def write(self, data: Buffer) -> int:
        """Send some of *data*."""
        return self.send(data)

    def recv(self, n: int = 1024, flags: int = 0) -> bytes:
        """Receive up to *n* bytes."""
        return super().recv(n, flags)

    def recv_into(self, buffer: Buffer, nbytes: int | None = None, flags: int = 0) -> int:
        """Receive into *buffer*; *nbytes* may be `None`, as there."""
        return super().recv_into(buffer, nbytes or 0, flags)

    def recvmsg_into(self, *_arguments: object, **_named: object) -> NoReturn:
        """Refuse: TLS has no messages."""
        raise NotImplementedError("TLS has no messages: use recv_into")

    def sendmsg_afalg(self, *_arguments: object, **_named: object) -> NoReturn:
        """Refuse: TLS has no messages."""
        raise NotImplementedError("TLS has no messages: use send")

    def _wait(
        self, waiter: Waiter, want: Want, deadline: Countdown, by: int, *, reading: bool
    ) -> None:
        if not self._waits and isinstance(self._descriptor, TLSDescriptor):
            raise would_block(want)
        super()._wait(waiter, want, deadline, by, reading=reading)

    def _ask(self, ask: Callable[[TLSDescriptor], T], otherwise: T) -> T:
        return super()._ask(ask, otherwise) if self._sslobj is not None else otherwise

    # The descriptor

    def dup(self) -> NoReturn:
        """Refuse: one object owns the keys."""
        raise NotImplementedError("A TLS socket cannot be duplicated")

    def _real_close(self, *_arguments: object) -> None:
        self.close()

    def _decref_socketios(self) -> None:
        """Do nothing: our files count for themselves."""
