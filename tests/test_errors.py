"""The exception tree: who catches what, and what each error says and keeps."""

from __future__ import annotations

import copy
import errno
import pickle
import socket
import ssl
from typing import Any, NamedTuple

import pytest
from twisted.internet import error as twisted_error
from twisted.python.failure import Failure

from twisted_netsock import errors
from twisted_netsock.addresses import SocketAddress
from twisted_netsock.errors import (
    CertificateVerificationError,
    HostNotFoundError,
    NetsockError,
    ProxyAuthenticationError,
    ProxyError,
    ProxyHeaderError,
    ProxyProtocolError,
    ProxyRefusedError,
    ProxyTargetError,
    ProxyUnreachableError,
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
        ProxyError("http://p:1", "t:2", "why"),
        (SocketConnectionError, *PLAIN),
        (twisted_error.ConnectError, OSError),
        "There is no connection through the proxy: http://p:1, for t:2: why",
        None,
        {"proxy": "http://p:1", "target": "t:2", "reason": "why", "code": None},
    ),
    Case(
        ProxyAuthenticationError("http://p:1", "t:2", "why", code=5),
        (ProxyError, SocketConnectionError, *PLAIN),
        (twisted_error.ConnectError, OSError),
        "The proxy does not know who asks: http://p:1, for t:2: why",
        None,
        {"code": 5},
    ),
    Case(
        ProxyProtocolError("http://p:1", "t:2", "why", code=5),
        (ProxyError, SocketConnectionError, *PLAIN),
        (twisted_error.ConnectError, OSError),
        "The proxy speaks something else: http://p:1, for t:2: why",
        None,
        {"code": 5},
    ),
    Case(
        ProxyRefusedError("http://p:1", "t:2", "why", code=5),
        (ProxyError, SocketConnectionError, *PLAIN),
        (twisted_error.ConnectError, OSError),
        "The proxy refuses: http://p:1, for t:2: why",
        None,
        {"code": 5},
    ),
    Case(
        ProxyTargetError("http://p:1", "t:2", "why", code=5),
        (ProxyError, SocketConnectionError, *PLAIN),
        (twisted_error.ConnectError, OSError),
        "The proxy cannot reach the target: http://p:1, for t:2: why",
        None,
        {"code": 5},
    ),
    Case(
        ProxyUnreachableError("http://p:1", "t:2", "why", code=5),
        (ProxyError, SocketConnectionError, *PLAIN),
        (twisted_error.ConnectError, OSError),
        "The proxy cannot be reached: http://p:1, for t:2: why",
        None,
        {"code": 5},
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
        f"[Errno {errno.ETIMEDOUT}] Nothing arrived within the read timeout",
        errno.ETIMEDOUT,
        {},
    ),
    Case(
        SocketWriteTimeoutError(),
        PLAIN,
        (TimeoutError, OSError),
        f"[Errno {errno.ETIMEDOUT}] Nothing could be sent within the write timeout",
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
        "The peer's certificate was refused (depth 1): certificate has expired; "
        "its owner must renew it, or this machine's clock is wrong",
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
        (
            twisted_error.ConnectionLost,
            twisted_error.ConnectionClosed,
            ssl.SSLEOFError,
            ssl.SSLError,
            OSError,
        ),
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


pytestmark = pytest.mark.once

WELL_KNOWN = (
    twisted_error.DNSLookupError,
    twisted_error.ConnectError,
    twisted_error.TimeoutError,
    twisted_error.ConnectionRefusedError,
    twisted_error.ConnectionLost,
    twisted_error.ConnectionDone,
    twisted_error.CannotListenError,
    socket.gaierror,
    TimeoutError,
    ConnectionRefusedError,
    ConnectionResetError,
    BrokenPipeError,
    ConnectionAbortedError,
    EOFError,
    ssl.SSLError,
    ssl.SSLCertVerificationError,
    ssl.SSLEOFError,
    ssl.SSLZeroReturnError,
    BlockingIOError,
)
"""What programs tell failures apart by."""


def alike(one: Any, other: Any) -> bool:
    """Compare values of attributes; exceptions do not compare by value."""
    if isinstance(one, BaseException):
        return type(one) is type(other) and str(one) == str(other) and one.args == other.args
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    return type(one) is type(other) and one == other


def test_every_class_of_the_tree_stands_in_the_table():
    public = {getattr(errors, name) for name in errors.__all__}
    assert {type(case.error) for case in CASES} == public


@every_case
def test_an_error_is_caught_by_each_parent(case):
    for parent in (type(case.error), *case.ours, *case.theirs, Exception):
        with pytest.raises(parent) as caught:
            raise case.error.with_traceback(None)
        assert caught.value is case.error
        assert Failure(case.error).check(parent) is parent


@every_case
def test_an_error_is_nothing_that_callers_take_for_another_failure(case):
    public = {getattr(errors, name) for name in errors.__all__}
    assert {cls for cls in public if isinstance(case.error, cls)} == {type(case.error), *case.ours}
    promised = {known for known in WELL_KNOWN for cls in case.theirs if issubclass(cls, known)}
    assert {known for known in WELL_KNOWN if isinstance(case.error, known)} == promised


@every_case
def test_an_error_says_what_happened_and_keeps_what_it_was_made_of(case):
    assert str(case.error) == case.text
    assert type(case.error).__name__ in repr(case.error)
    assert getattr(case.error, "errno", None) == case.errno
    if isinstance(case.error, OSError):
        assert case.error.args == (case.errno, case.error.strerror)
    for name, value in case.attributes.items():
        assert alike(getattr(case.error, name), value), name


@pytest.mark.parametrize(
    "duplicate",
    [
        copy.copy,
        copy.deepcopy,
        *(
            pytest.param(
                lambda error, protocol=protocol: pickle.loads(pickle.dumps(error, protocol)),
                id=f"pickle{protocol}",
            )
            for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
        ),
    ],
)
def test_a_copy_is_the_same_error(duplicate):
    for case in CASES:
        twin = duplicate(case.error)
        assert twin is not case.error
        assert type(twin) is type(case.error)
        assert str(twin) == case.text
        assert twin.args == case.error.args
        assert getattr(twin, "errno", None) == case.errno
        for name, value in case.attributes.items():
            if name != "socket":
                assert alike(getattr(twin, name), value), (twin, name)


def unpicklable() -> Any:
    """Stand in for a socket, a port or a certificate: what cannot be pickled."""
    return lambda: None


WITH_SOCKET = [
    lambda it: SocketError(it, errno.EINVAL),
    lambda it: SocketConnectionError(socket=it),
    lambda it: SocketConnectionTimeoutError(socket=it),
    lambda it: SocketConnectionRefusedError(socket=it),
    SocketConnectionLostError,
    SocketReadTimeoutError,
    SocketWriteTimeoutError,
    lambda it: SocketBindError(None, 80, socket=it),
    SocketClosedError,
    SocketBusyError,
    lambda it: SocketPortError(socket=it),
    lambda it: SocketIncompleteReadError(b"", 1, socket=it),
    lambda it: TLSError(socket=it),
    lambda it: TLSHandshakeError(socket=it),
    lambda it: CertificateVerificationError(0, "expired", None, socket=it),
    lambda it: TLSTruncatedError(socket=it),
]
WITH_PORT = [SocketPortError, lambda it: SocketIncompleteReadError(b"", 1, port=it)]
WITH_CERTIFICATE = [lambda it: CertificateVerificationError(0, "expired", it)]


@pytest.mark.parametrize(
    ("attribute", "makers"),
    [("socket", WITH_SOCKET), ("port", WITH_PORT), ("certificate", WITH_CERTIFICATE)],
)
def test_what_cannot_be_copied_stays_with_the_error_and_is_none_in_its_copies(attribute, makers):
    for make in makers:
        it = unpicklable()
        error = make(it)
        assert getattr(error, attribute) is it
        for twin in (copy.copy(error), copy.deepcopy(error), pickle.loads(pickle.dumps(error))):
            assert str(twin) == str(error)
            assert getattr(twin, attribute) is None


def test_copying_an_error_leaves_the_original_alone():
    it = unpicklable()
    error = SocketPortError(it, socket=it)
    copy.copy(error)
    assert error.port is it
    assert error.socket is it


def test_an_error_within_an_error_survives_pickling():
    inner = SocketConnectionRefusedError([(HERE, REFUSED)], socket=unpicklable())
    outer = SocketConnectionError([(THERE, UNREACHABLE), (HERE, inner)])
    twin = pickle.loads(pickle.dumps(outer))
    assert twin.osError is twin.attempts[1][1]
    assert isinstance(twin.osError, SocketConnectionRefusedError)
    assert str(twin) == str(outer)


def test_the_attempts_are_kept_as_a_tuple_whatever_sequence_they_came_in():
    attempts = [(HERE, REFUSED)]
    error = SocketConnectionError(attempts)
    attempts.clear()
    assert error.attempts == ((HERE, REFUSED),)


def test_an_attempt_that_failed_otherwise_than_in_the_system_gives_no_number():
    error = SocketConnectionError([(HERE, REFUSED), (THERE, ValueError("odd"))])
    assert error.osError is None
    assert error.errno is None
    assert "odd" in str(error)


def test_a_number_that_is_given_wins_over_that_of_the_last_attempt():
    error = SocketConnectionError([(HERE, REFUSED)], errno=errno.EHOSTUNREACH)
    assert error.errno == errno.EHOSTUNREACH
    assert error.osError is REFUSED
    bind = SocketBindError(None, 80, errno=errno.EACCES, cause=IN_USE)
    assert bind.errno == errno.EACCES
    assert bind.socketError is IN_USE


def test_an_incomplete_read_of_a_line_says_how_much_there_was():
    error = SocketIncompleteReadError(b"abcd", None)
    assert (error.partial, error.expected) == (b"abcd", None)
    assert "4" in str(error)
    assert "None" not in str(error)


def test_the_certificate_that_was_refused_is_kept(authority):
    certificate = authority.issue("example.com").certificate
    error = CertificateVerificationError(0, "hostname mismatch", certificate, code=62)
    assert error.certificate is certificate
    assert error.verify_code == 62


def test_notes_and_attributes_that_a_program_adds_are_copied():
    error = SocketClosedError()
    error.add_note("while relaying")
    error.request = 7
    twin = pickle.loads(pickle.dumps(error))
    assert twin.__notes__ == ["while relaying"]
    assert twin.request == 7


class _QueueClosedError(SocketClosedError):
    """A program's own error, with a constructor of its own."""

    def __init__(self, queue: str) -> None:
        self.queue = queue
        super().__init__(strerror=f"The queue {queue} is closed")


def test_a_programs_own_subclass_can_be_copied_and_pickled():
    error = _QueueClosedError("jobs")
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(twin) is _QueueClosedError
        assert twin.queue == "jobs"
        assert str(twin) == str(error) == f"[Errno {errno.EBADF}] The queue jobs is closed"
