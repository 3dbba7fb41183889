"""How a command ended: its exit status, and what it says about an error."""

from __future__ import annotations

import socket as _socket
import sys
from enum import IntEnum
from typing import Final

from twisted.internet import defer
from twisted.internet import error as _error

from ...errors import (
    CertificateVerificationError,
    HostNotFoundError,
    SocketConnectionError,
    SocketConnectionTimeoutError,
    TLSError,
    TLSTruncatedError,
)

__all__ = ["Outcome", "explain", "outcome_of"]


class Outcome(IntEnum):
    """The exit statuses of ``netsock probe`` and ``netsock connect``: a promise to scripts."""

    OK = 0
    FAILED = 1
    """Something else: a file cannot be read, or the command itself is at fault."""
    USAGE = 2
    NOT_FOUND = 3
    UNREACHABLE = 4
    TLS = 5
    UNVERIFIED = 6
    EXPIRING = 7
    LOST = 8
    IDLE = 9
    CLASSICAL = 10
    """Verified, and without a post-quantum key exchange where one was expected."""
    HUNG_UP = 129
    """128 and the number of SIGHUP: the terminal is gone, or ssh has done with its command."""
    INTERRUPTED = 130
    """128 and the number of SIGINT, as shells have it."""
    BROKEN_PIPE = 141
    """128 and the number of SIGPIPE, which ends other filters."""
    TERMINATED = 143


_TLS_LIBRARY: Final = "OpenSSL.SSL"
_BY_CLASS: Final[tuple[tuple[type[Exception] | tuple[type[Exception], ...], Outcome], ...]] = (
    (CertificateVerificationError, Outcome.UNVERIFIED),
    (TLSTruncatedError, Outcome.LOST),
    (TLSError, Outcome.TLS),
    ((HostNotFoundError, _error.DNSLookupError, _socket.gaierror), Outcome.NOT_FOUND),
    ((SocketConnectionError, _error.ConnectError, defer.TimeoutError), Outcome.UNREACHABLE),
    ((_error.ConnectionLost, _error.ConnectionAborted, ConnectionError), Outcome.LOST),
    # The transports' own limits, of reading and of writing.
    (TimeoutError, Outcome.IDLE),
)


def _is_tls(error: BaseException) -> bool:
    """Return whether *error* is of the TLS of Twisted's own transports."""
    library = sys.modules.get(_TLS_LIBRARY)
    return library is not None and isinstance(error, library.Error)


def outcome_of(error: BaseException) -> Outcome:
    """Return the exit status for *error*, of this package's endpoints or of Twisted's."""
    if isinstance(error, SocketConnectionTimeoutError):
        by_stage = {"look-up": Outcome.NOT_FOUND, "handshake": Outcome.TLS}
        return by_stage.get(error.stage, Outcome.UNREACHABLE)
    for kinds, outcome in _BY_CLASS:
        if isinstance(error, kinds):
            return outcome
    if _is_tls(error):
        failed = "certificate verify failed" in str(error)
        return Outcome.UNVERIFIED if failed else Outcome.TLS
    return Outcome.FAILED


def explain(error: BaseException) -> str:
    """Return what *error* says, for people: without numbers, the first letter small."""
    strerror = getattr(error, "strerror", None)
    if isinstance(error, TLSError) and not isinstance(error, CertificateVerificationError):
        strerror = (
            f"alert from the peer: {error.alert}" if error.alert else error.reason or strerror
        )
    if isinstance(error, HostNotFoundError) or not strerror:
        said = str(error) or type(error).__name__
    else:
        said = str(strerror)
    said = said.rstrip(".")
    # "TLS failed" keeps its capitals.
    return said if said[1:2].isupper() else said[:1].lower() + said[1:]
