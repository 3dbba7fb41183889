"""
What CPython's tests see of our sockets that is not as the standard library's, and why.

Each is a row of the table in ``docs/how-to/from-socket.md``. A test that fails and is
not named here fails the session; so does one that is named here and passes.
"""

from __future__ import annotations

from typing import NamedTuple


class Difference(NamedTuple):
    """What is different, why, and the tests that show it."""

    what: str
    why: str
    tests: tuple[str, ...]


DIFFERENCES = (
    Difference(
        "Words of errors",
        "they name the argument and the value, or say what was refused and why; the classes are "
        "those that the tests expect",
        (
            "test_socket.*.testReadAfterTimeout",
            "test_socket.*.test_errors",
            "test_socket.GeneralModuleTests.testSendtoErrors",
            "test_socket.GeneralModuleTests.test_makefile_invalid_mode",
            "test_ssl.ThreadedTests.test_check_hostname",
            "test_ssl.ThreadedTests.test_wrong_cert_tls13",
        ),
    ),
    Difference(
        "`repr`",
        "says where the socket is connected",
        ("test_socket.GeneralModuleTests.test_repr",),
    ),
    Difference(
        "`ValueError` for numbers out of range",
        "the standard library has an `OverflowError`, which names no argument",
        (
            "test_socket.BasicTCPTest*.testShutdown_overflow",
            "test_socket.GeneralModuleTests.test_flowinfo",
            "test_socket.GeneralModuleTests.test_getsockaddrarg",
        ),
    ),
    Difference(
        "Families of addresses",
        "IPv4, IPv6 and UNIX; the family is what the descriptor's is",
        (
            "test_socket.GeneralModuleTests.test_unknown_socket_family_repr",
            "test_socket.ThreadedVSOCKSocketStreamTest.testStream",
        ),
    ),
    Difference(
        "Addresses of UNIX sockets",
        "a `SocketAddress`, whose one part is the path; of abstract names it is text, in which "
        "bytes that are no UTF-8 are escaped as in names of files",
        (
            "test_socket.TestLinuxAbstractNamespace.*",
            "test_socket.TestUnixDomain.*",
        ),
    ),
    Difference(
        "The descriptor never blocks",
        "a call waits, or not, by `settimeout` alone, and `SOCK_NONBLOCK` changes nothing",
        (
            "test_socket.NonBlockingTCPTests.testInitNonBlocking",
            "test_socket.NonBlockingTCPTests.testSetBlocking*",
            "test_socket.NonblockConstantTest.test_SOCK_NONBLOCK",
            "test_socket.TestExceptions.test_setblocking_invalidfd",
        ),
    ),
    Difference(
        "`dup`",
        "one object owns the descriptor; `os.dup(sock.fileno())` makes another",
        (
            "test_socket.BasicTCPTest*.testDup",
            "test_socket.InheritanceTest.test_dup",
        ),
    ),
    Difference(
        "`recv` after `close`, with an object of `makefile` open",
        "a closed socket is closed; the object goes on",
        ("test_socket.UnbufferedFileObjectClassTestCase.testMakefileClose*",),
    ),
    Difference(
        "`sendfile` where no call waits",
        "sends as far as that goes, and raises a `BlockingIOError`",
        ("test_socket.Sendfile*.testNonBlocking",),
    ),
    Difference(
        "`sendfile` of what is no regular file",
        "is sent; the tests look for the standard library's inner functions",
        (
            "test_socket.Sendfile*.testNonRegularFile",
            "test_socket.GeneralModuleTests.test__sendfile_use_sendfile",
        ),
    ),
    Difference(
        "Inner names",
        "the tests look for those of the standard library's own",
        (
            "test_socket.GeneralModuleTests.testNewAttributes",
            "test_socket.GeneralModuleTests.test_SocketType_is_socketobject",
            "test_socket.GeneralModuleTests.test_socket_methods",
        ),
    ),
    Difference(
        "A weaker setting than the options'",
        "is a `ValueError`: cipher suites, groups, `maximum_version`, `check_hostname`",
        (
            "test_ssl.ThreadedTests.test_default_ecdh_curve",
            "test_ssl.ThreadedTests.test_dh_params",
            "test_ssl.ThreadedTests.test_ecdh_curve",
            "test_ssl.ThreadedTests.test_echo",
            "test_ssl.ThreadedTests.test_no_shared_ciphers",
            "test_ssl.ThreadedTests.test_session*",
            "test_ssl.ThreadedTests.test_shared_ciphers",
            "test_ssl.ThreadedTests.test_wrong_cert_tls12",
        ),
    ),
    Difference(
        "`verify_flags`",
        "a trusted certificate that is no root is trusted, too",
        ("test_ssl.ThreadedTests.test_crl_check",),
    ),
    Difference(
        "Common names",
        "are no host names (RFC 9525)",
        ("test_ssl.ThreadedTests.test_hostname_checks_common_name",),
    ),
    Difference(
        "ALPN without a protocol in common",
        "fails the handshake (RFC 7301), instead of going on without one",
        ("test_ssl.ThreadedTests.test_alpn_protocols",),
    ),
    Difference(
        "The channel binding `tls-unique`",
        "is `None` on TLS 1.3, where it is not defined (RFC 8446, appendix C.5)",
        ("test_ssl.ThreadedTests.test_tls_unique_channel_binding",),
    ),
    Difference(
        "`read` and `write` after `close`",
        "are a `SocketClosedError`, not a `ValueError`",
        ("test_ssl.ThreadedTests.test_read_write_after_close_raises_valuerror",),
    ),
)
