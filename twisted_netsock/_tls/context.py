"""
What the TLS contexts of clients and servers have in common.

A context is built whole, from a record and the files that it names, and never
changed once it has made a connection.
"""

from __future__ import annotations

import errno
import os
import ssl as _ssl
import stat
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from OpenSSL import SSL, crypto
from twisted.internet.interfaces import IProtocolNegotiationFactory
from twisted.logger import Logger

from .._certificates.certificates import Identity, file_signature
from .._certificates.der import without_warnings
from .._certificates.paths import MAX_DEPTH
from .._certificates.verification import Verification
from ..errors import CertificateVerificationError
from ..options import TLSSocketOptions
from .openssl import Connection, default_verify_paths, report_missing, verification_text
from .sessions import Resumption

if TYPE_CHECKING:
    from _typeshed import StrOrBytesPath
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

__all__ = [
    "ConnectionState",
    "StatefulConnection",
    "base_context",
    "negotiated_protocols",
    "reporting",
    "trust",
]

CIPHERS_1_2: Final = b"ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2: forward secrecy and AEAD only (RFC 9325, section 4.2)."""

# Compression leaks secrets (CRIME). Renegotiation lets a client make a server work, and TLS 1.3
# has none. The server's order of cipher suites keeps clients from choosing the worst.
_OPTIONS: Final = SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE
VERSIONS: Final = {
    _ssl.TLSVersion.TLSv1_2: SSL.TLS1_2_VERSION,
    _ssl.TLSVersion.TLSv1_3: SSL.TLS1_3_VERSION,
}

_log = Logger()


class ConnectionState:
    """
    What our OpenSSL callbacks need to know of a connection.

    Attributes:
        verification: Judges the peer's certificate.
        extra_protocols: For ALPN, those of the protocol factory.
        protocols: All that this side offers, preferred first: the factory's, then the record's.
        resumption: The session to resume and to keep, on a client that may resume one.
    """

    __slots__ = ("extra_protocols", "protocols", "resumption", "verification")

    def __init__(
        self,
        verification: Verification,
        protocols: Sequence[bytes],
        extra_protocols: Sequence[bytes] = (),
    ) -> None:
        self.verification = verification
        self.resumption: Resumption | None = None
        self.extra_protocols = tuple(extra_protocols)
        self.set_protocols(protocols)

    def set_protocols(self, protocols: Sequence[bytes]) -> None:
        """Speak the factory's protocols, then these, a record's, each once."""
        self.protocols = tuple(dict.fromkeys((*self.extra_protocols, *protocols)))


class StatefulConnection(Connection):
    """
    A connection with its `ConnectionState`.

    Not in its app data, which Twisted's TLS protocol sets to an object of its own.
    """

    state: ConnectionState


class ReportedVerificationError(CertificateVerificationError, SSL.Error):
    """A refused certificate in a form that Twisted's TLS protocol passes on."""

    default_strerror = "certificate verify failed"
    """OpenSSL's words, for programs that look for them."""

    def __init__(self, refusal: CertificateVerificationError) -> None:
        super().__init__(
            refusal.depth,
            refusal.verify_message,
            refusal.certificate,
            code=refusal.verify_code,
        )
        # It looks in these for OpenSSL's errors, and takes what has none for the end of the
        # stream.
        self.args = ([("SSL routines", "", self.strerror)],)


class ReportingConnection(StatefulConnection):
    """A connection for Twisted's TLS protocol, which reports errors of OpenSSL's and no others."""

    def do_handshake(self) -> None:
        """Continue the handshake; raise why the peer's certificate was refused, if it was."""
        try:
            super().do_handshake()
        except SSL.Error:
            refusal = self.state.verification.failure
            if refusal is None:
                raise
            raise ReportedVerificationError(refusal) from None


def reporting(connection: StatefulConnection) -> SSL.Connection:
    """Return *connection* as a `ReportingConnection`."""
    connection.__class__ = ReportingConnection
    return connection


def alpn_protocols(options: TLSSocketOptions) -> tuple[bytes, ...]:
    return tuple(name.encode("ascii") for name in options.alpn or ())


def factory_protocols(tls_protocol: object) -> tuple[bytes, ...]:
    """Return the ALPN protocols of the factory behind Twisted's TLS protocol."""
    factory = getattr(getattr(tls_protocol, "factory", None), "wrappedFactory", None)
    return negotiated_protocols(factory)


def negotiated_protocols(factory: object) -> tuple[bytes, ...]:
    """Return the ``acceptableProtocols`` of *factory*, if it negotiates any."""
    if not IProtocolNegotiationFactory.providedBy(factory):
        return ()
    return tuple(factory.acceptableProtocols())


class Context(SSL.Context):
    """
    A context that remembers where the platform's authorities were loaded from.

    Attributes:
        platform_places: The files and directories, in order.
        platform_signature: What each was like just before it was loaded.
    """

    def __init__(self) -> None:
        super().__init__(SSL.TLS_METHOD)
        self.platform_places: list[str] = []
        self.platform_signature: tuple[object, ...] = ()

    def trust_platform(self) -> None:
        """Trust the platform's authorities."""
        self._note(default_verify_paths())
        self.set_default_verify_paths()

    def load_verify_locations(
        self, cafile: StrOrBytesPath | None, capath: StrOrBytesPath | None = None
    ) -> None:
        """
        Load authorities.

        pyOpenSSL calls this where OpenSSL was built for paths that do not exist, as in
        cryptography's wheels, with the first of some well-known ones that does.
        """
        self._note([os.fsdecode(place) for place in (cafile, capath) if place is not None])
        super().load_verify_locations(cafile, capath)

    def _note(self, places: Sequence[str]) -> None:
        self.platform_places += places
        self.platform_signature += file_signature(places)


def base_context(options: TLSSocketOptions, identity: Identity | None) -> Context:
    """
    Return a context for *options* that shows *identity* and verifies nothing yet.

    Raises:
        ValueError: The certificate or key cannot be used for TLS.
    """
    report_missing()
    context = Context()
    context.set_options(_OPTIONS)
    context.set_verify_depth(MAX_DEPTH)
    if options.suppress_ragged_eofs:
        context.set_options(SSL.OP_IGNORE_UNEXPECTED_EOF)
    # An idle connection keeps no buffers of OpenSSL's, some 34 KiB (SSL_CTX_set_mode(3)).
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_cipher_list(CIPHERS_1_2)
    context.set_min_proto_version(VERSIONS[options.minimum_version])
    if options.maximum_version is not None:
        context.set_max_proto_version(VERSIONS[options.maximum_version])
    # Clients keep sessions themselves, see `sessions`; servers hand out tickets, which need none.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    if identity is not None:
        try:
            context.use_certificate(identity.certificate)
            for certificate in identity.intermediates:
                context.add_extra_chain_cert(certificate)
            _use_key(context, identity)
        except (SSL.Error, crypto.Error) as error:
            raise ValueError(f"certificates cannot be used for TLS: {_reasons(error)}") from None
    if options.keylog_file is not None:
        _check_key_log(options.keylog_file)
        context.set_keylog_callback(_keylog_writer(options.keylog_file))
    return context


def _use_key(context: SSL.Context, identity: Identity) -> None:
    """Give *context* the key of *identity*, which may be of a kind that only OpenSSL knows."""
    try:
        # pyOpenSSL raises TypeError for kinds that it does not list, such as ML-DSA.
        context.use_privatekey(identity.key)  # type: ignore[arg-type]
        context.check_privatekey()
    except (TypeError, SSL.Error):
        encoded, password = identity.key_pem or (_in_pem(identity.key), None)
        with without_warnings():
            # Of objects of pyOpenSSL's own, which it would rather not be given.
            key = crypto.load_privatekey(crypto.FILETYPE_PEM, encoded, password or b"")
            # OpenSSL has dropped it, if the key seemed to be another's.
            context.use_certificate(identity.certificate)
            context.use_privatekey(key)
        context.check_privatekey()


def _in_pem(key: PrivateKeyTypes) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _reasons(error: Exception) -> str:
    """Return OpenSSL's reasons."""
    return "; ".join(str(reason[-1]) for reason in error.args[0]) or "no reason given"


_MAX_AUTHORITIES: Final = 48 * 1024
"""
Bytes of the names of authorities in a server's request for a certificate. Their length has 16
bits, and clients take 64 to 100 KiB of a message; OpenSSL fails each handshake beyond that.
"""
_OTHERS: Final = 0o077
"""The permissions of a group and of everybody."""


def _key_log_problem(found: os.stat_result) -> str | None:
    """Return why no secrets may be written to a file that exists; `None` if they may."""
    if stat.S_ISLNK(found.st_mode):
        return "it is a symbolic link: name the file itself"
    if not stat.S_ISREG(found.st_mode):
        return "it is no regular file"
    if found.st_uid != os.geteuid():
        return "it belongs to another user"
    if found.st_mode & _OTHERS:
        mode = stat.S_IMODE(found.st_mode)
        return f"others may use it (mode {mode:04o}): chmod 600 it, or remove it"
    return None


def _check_key_log(path: str) -> None:
    """
    Refuse a file at *path* that secrets may not be written to.

    Raises:
        ValueError: It is there, and not for its owner alone.
    """
    try:
        problem = _key_log_problem(os.lstat(path))
    except OSError:
        # It does not exist, or cannot be looked at: the writer creates it, or logs the error.
        return
    if problem is not None:
        raise ValueError(f"keylog_file={path!r} is refused: {problem}")


def open_key_log(path: str) -> int:
    """
    Open *path* to append secrets to, for its owner alone; return the descriptor.

    Raises:
        OSError: It cannot be opened, or is not for its owner alone.
    """
    # O_NONBLOCK, because to open a FIFO would block; O_NOFOLLOW, because in a directory that
    # others can write to, a link may lead to their file.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    problem = _key_log_problem(os.fstat(descriptor))
    if problem is not None:
        os.close(descriptor)
        raise PermissionError(errno.EACCES, problem, path)
    return descriptor


def _keylog_writer(path: str) -> Callable[[object, bytes], None]:
    """Return a callback that appends OpenSSL's secrets to *path*, as ``SSLKEYLOGFILE``."""
    complained = False

    def write(_connection: object, line: bytes) -> None:
        nonlocal complained
        try:
            with os.fdopen(open_key_log(path), "ab") as file:
                file.write(line + b"\n")
        except OSError as error:
            # Logged once: each handshake has several secrets, and a server many handshakes.
            if not complained:
                complained = True
                _log.error("cannot write keylog_file {path}: {error}", path=path, error=error)
        else:
            complained = False

    return write


def trust(context: SSL.Context, trusted: Iterable[x509.Certificate]) -> None:
    """Trust *trusted* and no others, authorities or not."""
    store = context.get_cert_store()
    assert store is not None
    for certificate in trusted:
        try:
            store.add_cert(crypto.X509.from_cryptography(certificate))
        except crypto.Error as error:
            raise ValueError(
                f"trusted_certificates holds one that cannot be used: {_reasons(error)}"
            ) from None
    # Without this flag OpenSSL takes only self-signed certificates for trust anchors.
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)


def name_authorities(context: SSL.Context, trusted: Sequence[x509.Certificate]) -> None:
    """
    Have a server name the authorities that a client may choose its certificate by.

    More than the message holds are left out, all of them: then a client shows what it has, which
    is verified as ever (RFC 8446, section 4.2.4: the list is a hint).
    """
    size = sum(len(certificate.subject.public_bytes()) + 2 for certificate in trusted)
    if size <= _MAX_AUTHORITIES:
        for certificate in trusted:
            context.add_client_ca(certificate)


def check_revocation(
    context: SSL.Context, lists: Iterable[x509.CertificateRevocationList]
) -> None:
    """Demand a valid one of *lists* of each issuer in a peer's chain."""
    store = context.get_cert_store()
    assert store is not None
    for each in lists:
        store.add_crl(each)
    store.set_flags(crypto.X509StoreFlags.CRL_CHECK | crypto.X509StoreFlags.CRL_CHECK_ALL)


def require_handshake(options: TLSSocketOptions) -> None:
    if not options.handshake:
        raise ValueError(
            "handshake=False is for sockets, whose handshake method the caller calls; "
            "here it would never be called"
        )


_REJECTED: Final = 28
"""X509_V_ERR_CERT_REJECTED, which OpenSSL answers with the alert bad_certificate."""


def verify_callback(connection: SSL.Connection, certificate: bytes, code: int, depth: int) -> int:
    """
    Call the `Verification` in the connection's state; return 0 to accept *certificate*, in DER.

    Any other number is OpenSSL's code of why not, which decides on the alert (RFC 8446, section
    6.2). Never raises: OpenSSL would lose the exception.
    """
    verification = getattr(getattr(connection, "state", None), "verification", None)
    if not isinstance(verification, Verification):
        return _REJECTED
    text = verification_text(code) if code else None
    if verification.judge(certificate, code, depth, connection.get_peer_cert_chain, text):
        return 0
    failure = verification.failure
    # Code 1 stands for what OpenSSL has no code for, and would become internal_error.
    return failure.verify_code if failure is not None and failure.verify_code > 1 else _REJECTED
