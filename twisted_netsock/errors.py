"""
The exception tree: every failure that this package reports, one class for each kind.

Each class is also what a caller of Twisted or of the standard library
already catches: `SocketConnectionRefusedError` is a
`twisted.internet.error.ConnectionRefusedError` and the builtin
`ConnectionRefusedError`. Constructors take what makes the error up and keep
it as attributes; all of them survive `copy` and `pickle`, except that the
``socket`` (or port) they speak of is left behind.
"""

from __future__ import annotations

import errno as _errno
import os
import socket as _socket
import ssl as _ssl
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.internet import error as _error

if TYPE_CHECKING:
    from cryptography import x509

    from .addresses import SocketAddress

__all__ = [
    "CertificateVerificationError",
    "HostNotFoundError",
    "NetsockError",
    "ProxyAuthenticationError",
    "ProxyError",
    "ProxyHeaderError",
    "ProxyProtocolError",
    "ProxyRefusedError",
    "ProxyTargetError",
    "ProxyUnreachableError",
    "SocketBindError",
    "SocketBusyError",
    "SocketClosedError",
    "SocketConnectionError",
    "SocketConnectionLostError",
    "SocketConnectionRefusedError",
    "SocketConnectionTimeoutError",
    "SocketError",
    "SocketIncompleteReadError",
    "SocketPortError",
    "SocketReadTimeoutError",
    "SocketWriteTimeoutError",
    "TLSError",
    "TLSHandshakeError",
    "TLSTruncatedError",
]

_MOST_LISTED = 8
"""How many attempts a message lists; a name may have thousands of addresses."""

_LEFT_BEHIND = frozenset({"certificate", "socket"})
"""Attributes that are `None` in a copy or a pickle of an error: they cannot be copied."""


def _restore(
    cls: type[NetsockError],
    args: tuple[object, ...],
    state: dict[str, object],
) -> NetsockError:
    """Rebuild an error from what `NetsockError.__reduce__` kept of it."""
    rebuilt = cls.__new__(cls)
    if isinstance(rebuilt, OSError):
        OSError.__init__(rebuilt, *args)
    else:
        rebuilt.args = args
    rebuilt.__dict__.update(state)
    return rebuilt


ErrorT = TypeVar("ErrorT", bound=BaseException)


def unraised(error: ErrorT) -> ErrorT:
    """
    Return an error like *error* that has not been raised.

    A raised one has a traceback, and an error in whose place it was raised: their frames
    hold what callers have sent, for as long as anything holds the error. So what is kept
    to be raised later, or is handed to a protocol, is one of these.
    """
    if not isinstance(error, NetsockError):
        return error.with_traceback(None)
    made: Any = _restore(type(error), error.args, error.__dict__)
    return made  # type: ignore[no-any-return]


class NetsockError(Exception):
    """The root of every error of this package."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Keep class, arguments and attributes, whatever the constructors take."""
        state = {k: None if k in _LEFT_BEHIND else v for k, v in self.__dict__.items()}
        return _restore, (type(self), self.args, state)


class HostNotFoundError(NetsockError, _error.DNSLookupError, _socket.gaierror):
    """
    A name could not be looked up.

    Attributes:
        node: The host name as it was asked for, or `None`.
        service: The service as it was asked for, or `None`.
        errno: The ``EAI_…`` code of `socket.getaddrinfo`.
    """

    def __init__(
        self,
        node: str | None,
        service: str | int | None,
        *,
        errno: int = _socket.EAI_NONAME,
        strerror: str | None = None,
    ) -> None:
        self.node = node
        self.service = service
        OSError.__init__(self, errno, strerror or "Name or service not known")

    def __str__(self) -> str:
        return f"cannot look up {self.node!r}, service {self.service!r}: {self.strerror}"


class ProxyHeaderError(NetsockError, ValueError):
    """
    A header of the PROXY protocol is malformed, or something else stands in its place.

    Attributes:
        reason: What is wrong with it, in words.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)

    def __str__(self) -> str:
        return f"bad PROXY header: {self.reason}"


class SocketError(NetsockError, OSError):
    """
    An operation on a socket failed.

    Attributes:
        socket: The socket it failed on, or `None` where there was none yet.
        errno: The operating system's error number, or `None`.
        strerror: What happened, in words.
    """

    default_errno: int | None = None
    default_strerror = "The operation on the socket failed"

    def __init__(
        self,
        socket: object = None,
        errno: int | None = None,
        strerror: str | None = None,
    ) -> None:
        self.socket = socket
        if errno is None:
            errno = self.default_errno
        elif strerror is None:
            strerror = os.strerror(errno)
        OSError.__init__(self, errno, strerror or self.default_strerror)

    def __str__(self) -> str:
        if self.errno is None:
            return str(self.strerror)
        return f"[Errno {self.errno}] {self.strerror}"


class SocketConnectionError(SocketError, _error.ConnectError):
    """
    No connection could be made.

    Attributes:
        attempts: Every address that was tried, with the error it gave.
        osError: The last error of the operating system, where there was one.
    """

    default_strerror = "The connection could not be made"

    def __init__(
        self,
        attempts: Sequence[tuple[SocketAddress, Exception]] = (),
        *,
        socket: object = None,
        errno: int | None = None,
        strerror: str | None = None,
    ) -> None:
        self.attempts = tuple(attempts)
        last = self.attempts[-1][1] if self.attempts else None
        self.osError = last if isinstance(last, OSError) else None
        if errno is None and self.osError is not None:
            errno = self.osError.errno
            strerror = strerror or self.osError.strerror
        SocketError.__init__(self, socket, errno, strerror)

    def __str__(self) -> str:
        head = SocketError.__str__(self)
        listed = self.attempts[:_MOST_LISTED]
        tried = "; ".join(f"{address}: {why}" for address, why in listed)
        if len(self.attempts) == 1 and str(listed[0][1]) == head:
            # Once is enough.
            tried = str(listed[0][0])
        elif len(self.attempts) > _MOST_LISTED:
            tried += f"; and {len(self.attempts) - _MOST_LISTED} more"
        return f"{head} (tried {tried})" if tried else head


class SocketConnectionTimeoutError(SocketConnectionError, _error.TimeoutError, TimeoutError):
    """
    No connection was made within `connection_timeout` or `handshake_timeout`.

    Attributes:
        stage: What was under way: ``"look-up"``, ``"connect"``, ``"proxy"`` or
            ``"handshake"``; in the log of a server also ``"PROXY header"``.
    """

    default_errno = _errno.ETIMEDOUT

    def __init__(
        self,
        stage: str = "connect",
        *,
        attempts: Sequence[tuple[SocketAddress, Exception]] = (),
        socket: object = None,
        errno: int | None = _errno.ETIMEDOUT,
        strerror: str | None = None,
    ) -> None:
        self.stage = stage
        SocketConnectionError.__init__(
            self,
            attempts,
            socket=socket,
            errno=errno,
            strerror=strerror or f"The connection timed out during the {stage}",
        )


class SocketConnectionRefusedError(
    SocketConnectionError, _error.ConnectionRefusedError, ConnectionRefusedError
):
    """Every address that was reached refused the connection."""

    default_errno = _errno.ECONNREFUSED
    default_strerror = "The connection was refused"


class ProxyError(SocketConnectionError):
    """
    There is no connection through the proxy; its kin say why.

    Attributes:
        proxy: The proxy's URL, without credentials.
        target: Host and port that it was to connect to.
        reason: Why it has not, in words.
        code: The status of HTTP or the code of SOCKS that it answered, or `None`.
    """

    default_strerror = "There is no connection through the proxy"

    def __init__(
        self,
        proxy: str,
        target: str,
        reason: str,
        *,
        code: int | None = None,
        attempts: Sequence[tuple[SocketAddress, Exception]] = (),
        socket: object = None,
    ) -> None:
        self.proxy = proxy
        self.target = target
        self.reason = reason
        self.code = code
        text = f"{self.default_strerror}: {proxy}, for {target}: {reason}"
        SocketConnectionError.__init__(self, attempts, socket=socket, strerror=text)


class ProxyUnreachableError(ProxyError):
    """The proxy itself could not be looked up or connected to."""

    default_strerror = "The proxy cannot be reached"


class ProxyRefusedError(ProxyError):
    """The proxy does not do what it was asked."""

    default_strerror = "The proxy refuses"


class ProxyAuthenticationError(ProxyError):
    """The proxy wants credentials, or rejects those that it was given."""

    default_strerror = "The proxy does not know who asks"


class ProxyTargetError(ProxyError):
    """The proxy could not connect to where it was asked to."""

    default_strerror = "The proxy cannot reach the target"


class ProxyProtocolError(ProxyError):
    """What answers is no such proxy, or it went away before it had answered."""

    default_strerror = "The proxy speaks something else"


class SocketConnectionLostError(SocketError, _error.ConnectionLost, ConnectionResetError):
    """The peer or the network broke an established connection."""

    default_errno = _errno.ECONNRESET
    default_strerror = "The connection was lost"


class SocketReadTimeoutError(SocketError, TimeoutError):
    """Nothing arrived within `read_timeout`."""

    default_errno = _errno.ETIMEDOUT
    default_strerror = "Nothing arrived within the read timeout"


class SocketWriteTimeoutError(SocketError, TimeoutError):
    """Nothing could be sent within `write_timeout`."""

    default_errno = _errno.ETIMEDOUT
    default_strerror = "Nothing could be sent within the write timeout"


class SocketBindError(SocketError, _error.CannotListenError):
    """
    An address could not be bound or listened on.

    Attributes:
        interface: The host, path or `None` (every interface) that was asked for.
        port: The port that was asked for.
        socketError: The error that the operating system gave, or `None`.
    """

    default_strerror = "The address could not be bound"

    def __init__(
        self,
        interface: str | None,
        port: str | int | None,
        *,
        socket: object = None,
        errno: int | None = None,
        strerror: str | None = None,
        cause: OSError | None = None,
    ) -> None:
        self.interface = interface
        self.port = port
        self.socketError = cause
        if cause is not None and errno is None:
            errno = cause.errno
            strerror = strerror or cause.strerror or str(cause)
        SocketError.__init__(self, socket, errno, strerror)

    def __str__(self) -> str:
        where = self.interface or "every interface"
        at = "" if self.port is None else f", port {self.port}"
        return f"cannot listen on {where}{at}: {SocketError.__str__(self)}"


class SocketClosedError(SocketError):
    """The socket was closed on this side."""

    default_errno = _errno.EBADF
    default_strerror = "The socket is closed"


class SocketBusyError(SocketError):
    """Another operation of the same direction is waiting on this socket."""

    default_errno = _errno.EBUSY
    default_strerror = "Another operation of the same direction is waiting on this socket"


class SocketPortError(SocketError):
    """
    A port cannot do what was asked, or stands in the way of it.

    Attributes:
        port: The port object.
    """

    default_strerror = "The port cannot do this"

    def __init__(
        self,
        port: object = None,
        *,
        socket: object = None,
        errno: int | None = None,
        strerror: str | None = None,
    ) -> None:
        self.port = port
        SocketError.__init__(self, socket, errno, strerror)

    def __reduce__(self) -> tuple[object, ...]:
        """Leave the port behind, as the socket is: neither can be copied."""
        rebuild, (cls, args, state) = super().__reduce__()
        return rebuild, (cls, args, {**state, "port": None})


class SocketIncompleteReadError(SocketPortError, EOFError):
    """
    The stream ended before as much had been read as was asked for.

    Attributes:
        partial: The bytes that had arrived.
        expected: The number of bytes asked for, or `None` where a delimiter was.
    """

    def __init__(
        self,
        partial: bytes,
        expected: int | None,
        *,
        port: object = None,
        socket: object = None,
    ) -> None:
        self.partial = partial
        self.expected = expected
        wanted = "" if expected is None else f" of {expected}"
        SocketPortError.__init__(
            self,
            port,
            socket=socket,
            strerror=f"The stream ended after {len(partial)}{wanted} bytes",
        )


class TLSError(SocketError, _ssl.SSLError):
    """
    TLS failed.

    Attributes:
        alert: The alert that was received, in words (``"handshake failure"``),
            or `None`.
        reason: OpenSSL's reason, in words.
    """

    default_strerror = "TLS failed"

    def __init__(
        self,
        alert: str | None = None,
        reason: str | None = None,
        *,
        socket: object = None,
        errno: int | None = None,
        strerror: str | None = None,
    ) -> None:
        self.alert = alert
        self.reason = reason or ""
        self.library = "SSL"
        if strerror is None:
            detail = f"alert from the peer: {alert}" if alert else reason
            strerror = f"{self.default_strerror}: {detail}" if detail else None
        SocketError.__init__(self, socket, errno, strerror)

    def __str__(self) -> str:
        return SocketError.__str__(self)


class TLSHandshakeError(TLSError):
    """The handshake failed for another reason than the peer's certificate."""

    default_strerror = "The TLS handshake failed"


_ISSUER_UNKNOWN = "trust its authority with trusted_certificates (--ca FILE)"
_ADVICE = {
    2: _ISSUER_UNKNOWN,
    9: "or this machine's clock is wrong",
    10: "its owner must renew it, or this machine's clock is wrong",
    18: "trust it with trusted_certificates (--ca FILE)",
    19: _ISSUER_UNKNOWN,
    20: f"{_ISSUER_UNKNOWN}, or have the peer send its intermediate certificates",
    21: f"{_ISSUER_UNKNOWN}, or have the peer send its intermediate certificates",
    66: "its owner needs one with a longer key",
    67: "its owner needs one from an authority with a longer key",
    68: "its owner needs one that is signed with SHA-256 or better",
}
"""What to do about OpenSSL's verification codes, for those who have not met them before."""


class CertificateVerificationError(TLSError, _ssl.SSLCertVerificationError):
    """
    The peer's certificate was refused on this side.

    Attributes:
        depth: The place in the chain: 0 is the peer's own certificate.
        reason: Why, in OpenSSL's words where it refused it; the text of the error says what to
            do about it as well.
        certificate: The certificate that was refused, or `None`.
        verify_code: OpenSSL's verification code.
    """

    default_strerror = "The peer's certificate was refused"

    def __init__(
        self,
        depth: int,
        reason: str,
        certificate: x509.Certificate | None,
        *,
        code: int = 1,
        socket: object = None,
    ) -> None:
        self.depth = depth
        self.certificate = certificate
        self.verify_code = code
        self.verify_message = reason
        advice = [_ADVICE[code]] if code in _ADVICE else []
        TLSError.__init__(
            self,
            reason=reason,
            socket=socket,
            strerror="; ".join((f"{self.default_strerror} (depth {depth}): {reason}", *advice)),
        )


class TLSTruncatedError(TLSError, _ssl.SSLEOFError, _error.ConnectionLost):
    """
    The peer went away without close_notify.

    What had arrived may have been cut short by an attacker (RFC 8446,
    section 6.1).
    """

    default_errno = _errno.ECONNRESET
    default_strerror = "The peer closed the connection without close_notify"


def opened_before_fork() -> SocketError:
    """Return the error of a socket that a forked child must not use."""
    return SocketError(
        strerror="This socket was opened before the process forked; open another one in the child"
    )
