"""Every error as it is made, and what is promised of it."""

from __future__ import annotations

import errno
import socket
import ssl
from typing import Any, NamedTuple

import pytest
from twisted.internet import error as twisted_error

from twisted_netsock.addresses import SocketAddress
from twisted_netsock.errors import (
    CertificateVerificationError,
    HostNotFoundError,
    NetsockError,
    ProxyHeaderError,
    SocketBindError,
    SocketBusyError,
    SocketClosedError,
    SocketConnectionError,
    SocketConnectionLostError,
    SocketConnectionRefusedError,
    SocketConnectionTimeoutError,
    SocketError,
    SocketIncompleteReadError,
    SocketPortError,
    SocketReadTimeoutError,
    SocketWriteTimeoutError,
    TLSError,
    TLSHandshakeError,
    TLSTruncatedError,
)

HERE = SocketAddress(("127.0.0.1", 80))
THERE = SocketAddress(("::1", 80, 0, 0))
REFUSED = ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
UNREACHABLE = OSError(errno.ENETUNREACH, "Network is unreachable")
IN_USE = OSError(errno.EADDRINUSE, "Address already in use")


class Case(NamedTuple):
    """An error as it is made, and what is promised of it."""

    error: NetsockError
    ours: tuple[type[NetsockError], ...]
    """The classes of this package that it is, beside its own."""
    theirs: tuple[type[BaseException], ...]
    """What callers of Twisted or of the standard library catch already."""
    text: str
    errno: int | None
    attributes: dict[str, Any]


PLAIN = (NetsockError, SocketError)
CONNECTING = (*PLAIN, SocketConnectionError)
TLS = (*PLAIN, TLSError)

CASES = [
    Case(NetsockError("anything"), (), (Exception,), "anything", None, {}),
    Case(
        HostNotFoundError("nowhere.invalid", "https"),
        (NetsockError,),
        (twisted_error.DNSLookupError, socket.gaierror, OSError),
        "cannot look up 'nowhere.invalid', service 'https': Name or service not known",
        socket.EAI_NONAME,
        {"node": "nowhere.invalid", "service": "https"},
    ),
    Case(
        ProxyHeaderError("it is longer than 107 bytes"),
        (NetsockError,),
        (ValueError,),
        "bad PROXY header: it is longer than 107 bytes",
        None,
        {"reason": "it is longer than 107 bytes"},
    ),
    Case(
        HostNotFoundError(None, 443, errno=socket.EAI_AGAIN, strerror="Try again"),
        (NetsockError,),
        (twisted_error.DNSLookupError, socket.gaierror),
        "cannot look up None, service 443: Try again",
        socket.EAI_AGAIN,
        {"node": None, "service": 443, "strerror": "Try again"},
    ),
    Case(
        SocketError(),
        (NetsockError,),
        (OSError,),
        "The operation on the socket failed",
        None,
        {"socket": None, "strerror": "The operation on the socket failed"},
    ),
    Case(
        SocketError(None, errno.ENOTCONN),
        (NetsockError,),
        (OSError,),
        f"[Errno {errno.ENOTCONN}] Transport endpoint is not connected",
        errno.ENOTCONN,
        {"strerror": "Transport endpoint is not connected"},
    ),
    Case(
        SocketError(None, errno.EINVAL, "In other words"),
        (NetsockError,),
        (OSError,),
        f"[Errno {errno.EINVAL}] In other words",
        errno.EINVAL,
        {"strerror": "In other words"},
    ),
    Case(
        SocketConnectionError(),
        PLAIN,
        (twisted_error.ConnectError, OSError),
        "The connection could not be made",
        None,
        {"attempts": (), "osError": None},
    ),
    Case(
        SocketConnectionError([(THERE, REFUSED), (HERE, UNREACHABLE)]),
        PLAIN,
        (twisted_error.ConnectError, OSError),
        f"[Errno {errno.ENETUNREACH}] Network is unreachable "
        f"(tried [::1]:80: {REFUSED}; 127.0.0.1:80: {UNREACHABLE})",
        errno.ENETUNREACH,
        {"attempts": ((THERE, REFUSED), (HERE, UNREACHABLE)), "osError": UNREACHABLE},
    ),
    Case(
        SocketConnectionTimeoutError("look-up"),
        CONNECTING,
        (twisted_error.TimeoutError, twisted_error.ConnectError, TimeoutError, OSError),
        f"[Errno {errno.ETIMEDOUT}] The connection timed out during the look-up",
        errno.ETIMEDOUT,
        {"stage": "look-up", "attempts": (), "osError": None},
    ),
    Case(
        SocketConnectionTimeoutError("connect", attempts=[(HERE, UNREACHABLE)]),
        CONNECTING,
        (twisted_error.TimeoutError, twisted_error.ConnectError, TimeoutError, OSError),
        f"[Errno {errno.ETIMEDOUT}] The connection timed out during the connect "
        f"(tried 127.0.0.1:80: {UNREACHABLE})",
        errno.ETIMEDOUT,
        {"stage": "connect", "attempts": ((HERE, UNREACHABLE),), "osError": UNREACHABLE},
    ),
    Case(
        SocketConnectionTimeoutError("handshake"),
        CONNECTING,
        (twisted_error.TimeoutError, TimeoutError),
        f"[Errno {errno.ETIMEDOUT}] The connection timed out during the handshake",
        errno.ETIMEDOUT,
        {"stage": "handshake"},
    ),
    Case(
        SocketConnectionRefusedError([(HERE, REFUSED)]),
        CONNECTING,
        (
            twisted_error.ConnectionRefusedError,
            twisted_error.ConnectError,
            ConnectionRefusedError,
            ConnectionError,
            OSError,
        ),
        f"[Errno {errno.ECONNREFUSED}] Connection refused (tried 127.0.0.1:80)",
        errno.ECONNREFUSED,
        {"attempts": ((HERE, REFUSED),), "osError": REFUSED},
    ),
    Case(
        SocketConnectionRefusedError(),
        CONNECTING,
        (twisted_error.ConnectionRefusedError, ConnectionRefusedError),
        f"[Errno {errno.ECONNREFUSED}] The connection was refused",
        errno.ECONNREFUSED,
        {"attempts": (), "osError": None},
    ),
    Case(
        SocketConnectionLostError(),
        PLAIN,
        (
            twisted_error.ConnectionLost,
            twisted_error.ConnectionClosed,
            ConnectionResetError,
            ConnectionError,
            OSError,
        ),
        f"[Errno {errno.ECONNRESET}] The connection was lost",
        errno.ECONNRESET,
        {"socket": None},
    ),
    Case(
        SocketConnectionLostError(None, errno.EPIPE),
        PLAIN,
        (twisted_error.ConnectionLost, ConnectionResetError),
        f"[Errno {errno.EPIPE}] Broken pipe",
        errno.EPIPE,
        {},
    ),
    Case(
        SocketReadTimeoutError(),
        PLAIN,
        (TimeoutError, OSError),
        f"[Errno {errno.ETIMEDOUT}] Nothing arrived within the read time-out",
        errno.ETIMEDOUT,
        {},
    ),
    Case(
        SocketWriteTimeoutError(),
        PLAIN,
        (TimeoutError, OSError),
        f"[Errno {errno.ETIMEDOUT}] Nothing could be sent within the write time-out",
        errno.ETIMEDOUT,
        {},
    ),
    Case(
        SocketBindError("127.0.0.1", 80, cause=IN_USE),
        PLAIN,
        (twisted_error.CannotListenError, twisted_error.BindError, OSError),
        f"cannot listen on 127.0.0.1, port 80: {IN_USE}",
        errno.EADDRINUSE,
        {"interface": "127.0.0.1", "port": 80, "socketError": IN_USE},
    ),
    Case(
        SocketBindError(None, 8080, errno=errno.EACCES),
        PLAIN,
        (twisted_error.CannotListenError, OSError),
        f"cannot listen on every interface, port 8080: [Errno {errno.EACCES}] Permission denied",
        errno.EACCES,
        {"interface": None, "port": 8080, "socketError": None},
    ),
    Case(
        SocketBindError("/run/x.sock", None),
        PLAIN,
        (twisted_error.CannotListenError, OSError),
        "cannot listen on /run/x.sock: The address could not be bound",
        None,
        {"interface": "/run/x.sock", "port": None, "socketError": None},
    ),
    Case(
        SocketClosedError(),
        PLAIN,
        (OSError,),
        f"[Errno {errno.EBADF}] The socket is closed",
        errno.EBADF,
        {},
    ),
    Case(
        SocketBusyError(),
        PLAIN,
        (OSError,),
        f"[Errno {errno.EBUSY}] Another operation of the same direction is waiting on this socket",
        errno.EBUSY,
        {},
    ),
    Case(
        SocketPortError(strerror="The port holds bytes"),
        PLAIN,
        (OSError,),
        "The port holds bytes",
        None,
        {"port": None},
    ),
    Case(
        SocketIncompleteReadError(b"abc", 5),
        (*PLAIN, SocketPortError),
        (EOFError, OSError),
        "The stream ended after 3 of 5 bytes",
        None,
        {"partial": b"abc", "expected": 5, "port": None},
    ),
    Case(
        TLSError(),
        PLAIN,
        (ssl.SSLError, OSError),
        "TLS failed",
        None,
        {"alert": None, "reason": ""},
    ),
    Case(
        TLSError(None, "wrong version number"),
        PLAIN,
        (ssl.SSLError, OSError),
        "TLS failed: wrong version number",
        None,
        {"alert": None, "reason": "wrong version number"},
    ),
    Case(
        TLSHandshakeError("handshake failure", "sslv3 alert handshake failure"),
        TLS,
        (ssl.SSLError, OSError),
        "The TLS handshake failed: alert from the peer: handshake failure",
        None,
        {"alert": "handshake failure", "reason": "sslv3 alert handshake failure"},
    ),
    Case(
        CertificateVerificationError(1, "certificate has expired", None, code=10),
        TLS,
        (ssl.SSLCertVerificationError, ssl.SSLError, OSError),
        "The peer's certificate was refused (depth 1): certificate has expired",
        None,
        {
            "depth": 1,
            "reason": "certificate has expired",
            "certificate": None,
            "alert": None,
            "verify_code": 10,
            "verify_message": "certificate has expired",
        },
    ),
    Case(
        TLSTruncatedError(),
        TLS,
        (twisted_error.ConnectionLost, twisted_error.ConnectionClosed, ssl.SSLError, OSError),
        f"[Errno {errno.ECONNRESET}] The peer closed the connection without close_notify",
        errno.ECONNRESET,
        {"alert": None, "reason": ""},
    ),
]


def case_name(case: Case) -> str:
    return str(case.error).replace(" ", "-")[:48]


every_case = pytest.mark.parametrize(
    "case", [pytest.param(c, id=f"{type(c.error).__name__}-{case_name(c)}") for c in CASES]
)
