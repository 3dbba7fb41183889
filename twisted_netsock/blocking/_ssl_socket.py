"""`ContextSocket`: a `BlockingTLSSocket` with the methods of `ssl.SSLSocket`."""

from __future__ import annotations

import contextlib
import errno
import os
import socket as _socket
import ssl
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from .._certificates.der import without_warnings
from .._io.descriptor import PlainDescriptor
from .._io.poller import WANT_READ, Want
from .._sockets.attempts import Attempt
from .._tls.client import ClientContextFactory
from .._tls.descriptor import TLSDescriptor
from .._tls.server import ServerContextFactory
from ..addresses import Address
from ..errors import TLSError
from ._chibi import get_address_info
from ._make import begin_tls
from ._socket import BlockingSocket
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


class _WouldReadError(ssl.SSLWantReadError, BlockingIOError):
    """What both kinds of programs catch: those that know TLS, and those that do not."""


class _WouldSendError(ssl.SSLWantWriteError, BlockingIOError):
    """The same, where there is no room to send."""


class ContextSocket(BlockingTLSSocket, _Standard):
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
        listens = bool(sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ACCEPTCONN))
        seconds = sock.gettimeout()
        plain = sock if isinstance(sock, BlockingSocket) else BlockingSocket.from_socket(sock)
        if plain.service is None:
            # By which a client finds the session that it may resume.
            with contextlib.suppress(OSError):
                plain.service = plain.getpeername().port
        made: Self
        if listens:
            options = factory.options
            assert isinstance(factory, ServerContextFactory)
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

    def connect_ex(self, address: Address) -> int:
        """Connect, and return the number of the error, or 0."""
        try:
            self.connect(address)
        except OSError as error:
            return error.errno or errno.EIO
        return 0

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

        def attempt() -> bytes | Want:
            want = descriptor.try_readable()
            if want is not None:
                return want
            if descriptor.connection.pending():
                raise TLSError(reason="unwrap: the peer has sent data that is not read yet")
            return descriptor.try_recv(1)

        self._receive(attempt)
        with self._lock:
            self._check_open()
            self._descriptor = PlainDescriptor(descriptor.sock)
        return self

    def verify_client_post_handshake(self) -> NoReturn:
        """Refuse: clients show their certificate in the handshake, or not at all."""
        raise TLSError(reason="there is no authentication after the handshake")

    # Data

    def read(self, len: int = 1024, buffer: Buffer | None = None) -> bytes | int:  # noqa: A002
        """Receive up to *len* bytes, or into *buffer*."""
        return self.recv(len) if buffer is None else self.recv_into(buffer, len or 0)

    def write(self, data: Buffer) -> int:
        """Send some of *data*."""
        return self.send(data)

    def pending(self) -> int:
        """Return how many bytes can be read without the kernel."""
        count: int = self._ask(lambda tls: tls.connection.pending(), 0)
        return count

    def recv(self, n: int = 1024, flags: int = 0) -> bytes:
        """Receive up to *n* bytes."""
        return super().recv(n, flags)

    def recv_into(self, buffer: Buffer, nbytes: int | None = None, flags: int = 0) -> int:
        """Receive into *buffer*; *nbytes* may be `None`, as there."""
        return super().recv_into(buffer, nbytes or 0, flags)

    def sendall(self, data: Buffer, flags: int = 0) -> None:
        """Send all of *data*."""
        if flags:
            self._check_flags(flags)
        super().sendall(data)

    def recvmsg_into(self, *_arguments: object, **_named: object) -> NoReturn:
        """Refuse: TLS has no messages."""
        raise NotImplementedError("TLS has no messages: use recv_into")

    def sendmsg_afalg(self, *_arguments: object, **_named: object) -> NoReturn:
        """Refuse: TLS has no messages."""
        raise NotImplementedError("TLS has no messages: use send")

    def _send_once(self, view: memoryview, flags: int) -> Attempt[int]:
        if isinstance(self._descriptor, TLSDescriptor):
            return super()._send_once(view, flags)
        return BlockingSocket._send_once(self, view, flags)

    def _wait(
        self, waiter: Waiter, want: Want, deadline: Countdown, by: int, *, reading: bool
    ) -> None:
        if not self._waits and isinstance(self._descriptor, TLSDescriptor):
            if want is WANT_READ:
                raise _WouldReadError(ssl.SSL_ERROR_WANT_READ, "nothing can be read yet")
            raise _WouldSendError(ssl.SSL_ERROR_WANT_WRITE, "nothing can be sent yet")
        super()._wait(waiter, want, deadline, by, reading=reading)

    # What was negotiated

    def _ask(self, ask: Callable[[TLSDescriptor], Any], otherwise: Any) -> Any:
        return super()._ask(ask, otherwise) if self._sslobj is not None else otherwise

    def getpeercert(self, binary_form: bool = False) -> dict[str, object] | bytes | None:
        """Return the peer's certificate: DER, or a dictionary, empty if nothing was verified."""
        certificate = self.peer_certificate
        if certificate is None:
            return None
        if binary_form:
            return certificate.public_bytes(Encoding.DER)
        with without_warnings():
            needed = self._ask(lambda tls: tls.connection.state.verification.needed, False)
            return _as_dictionary(certificate) if needed else {}

    def get_verified_chain(self) -> list[bytes]:
        """Return the certificates from the peer's own to a trusted one, DER."""
        return [each.public_bytes(Encoding.DER) for each in self.verified_chain]

    def get_unverified_chain(self) -> list[bytes]:
        """Return the certificates that the peer sent, DER."""
        return [each.public_bytes(Encoding.DER) for each in self.peer_chain]

    def version(self) -> str | None:
        """Return the version of TLS; `None` before the handshake."""
        return self.tls_version

    def cipher(self) -> tuple[str, str, int] | None:  # type: ignore[override]
        """Return the name of the cipher suite, the version of TLS that it is of, and its bits."""

        def ask(tls: TLSDescriptor) -> tuple[str, str, int] | None:
            connection = tls.connection
            name = connection.get_cipher_name()
            if name is None:
                return None
            return name, connection.get_cipher_version() or "", connection.get_cipher_bits() or 0

        found: tuple[str, str, int] | None = self._ask(ask, None)
        return found

    def shared_ciphers(self) -> None:
        """Return `None`: pyOpenSSL does not tell."""

    def compression(self) -> None:
        """Return `None`: nothing is compressed."""

    def selected_alpn_protocol(self) -> str | None:
        """Return what ALPN has selected."""
        return self.selected_alpn

    def selected_npn_protocol(self) -> None:
        """Return `None`: NPN is no more."""

    def get_channel_binding(self, cb_type: str = "tls-unique") -> bytes | None:
        """
        Return the channel binding (RFC 5929), with TLS 1.2; `None` with TLS 1.3, which has none.

        Raises:
            ValueError: *cb_type* is not ``"tls-unique"``.
        """
        if cb_type != "tls-unique":
            raise ValueError(f"cb_type={cb_type!r} must be 'tls-unique'")
        if self.tls_version != "TLSv1.2":
            return None

        def ask(tls: TLSDescriptor) -> bytes | None:
            # The first Finished of the handshake.
            if tls.is_client == tls.connection.session_reused():
                return tls.connection.get_peer_finished()
            return tls.connection.get_finished()

        binding: bytes | None = self._ask(ask, None)
        return binding

    @property
    def session(self) -> None:
        """Always `None`: clients keep and resume sessions by themselves."""

    @property
    def session_reused(self) -> bool:
        """Whether a session was resumed."""
        return self.resumed

    # The descriptor

    def dup(self) -> NoReturn:
        """Refuse: one object owns the keys."""
        raise NotImplementedError("A TLS socket cannot be duplicated")

    def get_inheritable(self) -> bool:
        """Return whether the descriptor stays open in programs that this one becomes."""
        return os.get_inheritable(self.fileno())

    def set_inheritable(self, inheritable: bool) -> None:
        """Have the descriptor stay open in programs that this one becomes, or not."""
        os.set_inheritable(self.fileno(), inheritable)

    def _real_close(self, *_arguments: object) -> None:
        self.close()

    def _decref_socketios(self) -> None:
        """Do nothing: our files count for themselves."""


_MONTHS: Final = "JanFebMarAprMayJunJulAugSepOctNovDec"
_ALTERNATIVES: Final[tuple[tuple[type[x509.GeneralName], str], ...]] = (
    (x509.DNSName, "DNS"),
    (x509.IPAddress, "IP Address"),
    (x509.UniformResourceIdentifier, "URI"),
    (x509.RFC822Name, "email"),
)


def _as_dictionary(certificate: x509.Certificate) -> dict[str, object]:
    """Return what `ssl.SSLSocket.getpeercert` makes of a certificate."""
    made: dict[str, object] = {
        "subject": _names(certificate.subject),
        "issuer": _names(certificate.issuer),
        "version": certificate.version.value + 1,
        "serialNumber": f"{certificate.serial_number:X}".rjust(2, "0"),
        "notBefore": _time(certificate.not_valid_before_utc),
        "notAfter": _time(certificate.not_valid_after_utc),
    }
    with contextlib.suppress(x509.ExtensionNotFound, ValueError):
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        made["subjectAltName"] = tuple(
            (label, str(name.value))
            for name in found.value
            for kind, label in _ALTERNATIVES
            if isinstance(name, kind)
        )
    return made


def _names(name: x509.Name) -> tuple[tuple[tuple[str, str], ...], ...]:
    return tuple(
        tuple((each.oid._name, str(each.value)) for each in relative) for relative in name.rdns
    )


def _time(moment: datetime) -> str:
    # strftime(3) would write the month in the language of the locale.
    month = _MONTHS[3 * moment.month - 3 : 3 * moment.month]
    return f"{month} {moment.day:2} {moment:%H:%M:%S %Y} GMT"
