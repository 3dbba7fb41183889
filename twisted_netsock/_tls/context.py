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
from collections.abc import Iterable, Sequence
from typing import Any, Final

from cryptography import x509
from OpenSSL import SSL, crypto
from twisted.internet.interfaces import IProtocolNegotiationFactory
from twisted.logger import Logger

from ..options import TLSSocketOptions
from .certificates import Identity, file_signature
from .openssl import Connection, default_verify_paths, report_missing
from .sessions import Resumption
from .verification import Verification

__all__ = [
    "ConnectionState",
    "StatefulConnection",
    "base_context",
    "negotiated_protocols",
    "trust",
]

_CIPHERS_1_2: Final = b"ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2: forward secrecy and AEAD only (RFC 9325, section 4.2)."""

_OPTIONS: Final = SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE
VERSIONS: Final = {
    _ssl.TLSVersion.TLSv1_2: SSL.TLS1_2_VERSION,
    _ssl.TLSVersion.TLSv1_3: SSL.TLS1_3_VERSION,
}

_log = Logger()


class ConnectionState:
    """
    What our callbacks need to know of a connection.

    Attributes:
        verification: Judges the peer's certificate.
        extra_protocols: Of what this side speaks, for ALPN, what the record does not say:
            the factory's.
        protocols: All that it speaks, the preferred first: the factory's, then the record's.
        resumption: What sessions have to do with it, on a client that may resume one.
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
    A connection, with what our callbacks need to know of it.

    Not as its app data, which Twisted sets to an object of its own.
    """

    state: ConnectionState


def alpn_protocols(options: TLSSocketOptions) -> tuple[bytes, ...]:
    return tuple(name.encode("ascii") for name in options.alpn or ())


def factory_protocols(tls_protocol: Any) -> tuple[bytes, ...]:
    """Return what the factory behind Twisted's TLS protocol negotiates, as HTTP/2 does."""
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
        """Believe the authorities that the platform names."""
        self._note(default_verify_paths())
        self.set_default_verify_paths()

    def load_verify_locations(self, cafile: Any, capath: Any = None) -> None:
        """
        Load authorities.

        pyOpenSSL calls this where OpenSSL has been built for places that no machine has,
        as that of the wheels is, with the first of some places that exists.
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
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_cipher_list(_CIPHERS_1_2)
    context.set_min_proto_version(VERSIONS[options.minimum_version])
    if options.maximum_version is not None:
        context.set_max_proto_version(VERSIONS[options.maximum_version])
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    if identity is not None:
        try:
            context.use_certificate(identity.certificate)
            for certificate in identity.intermediates:
                context.add_extra_chain_cert(certificate)
            context.use_privatekey(identity.key)
            context.check_privatekey()
        except (SSL.Error, crypto.Error) as error:
            raise ValueError(f"certificates cannot be used for TLS: {_reasons(error)}") from None
    if options.keylog_file is not None:
        _check_key_log(options.keylog_file)
        context.set_keylog_callback(_keylog_writer(options.keylog_file))
    return context


def _reasons(error: Exception) -> str:
    """Return OpenSSL's reasons, in its words."""
    return "; ".join(str(reason[-1]) for reason in error.args[0]) or "no reason given"


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
        # It may be there later, or is made; until then the writer logs why not.
        return
    if problem is not None:
        raise ValueError(f"keylog_file={path!r} is refused: {problem}")


def open_key_log(path: str) -> int:
    """
    Open *path* to append secrets to, for its owner alone; return the descriptor.

    Raises:
        OSError: It cannot be opened, or is not for its owner alone.
    """
    # Without waiting, which a FIFO would make this do, and never where a link leads: in
    # a directory that others write to, it may be theirs.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    problem = _key_log_problem(os.fstat(descriptor))
    if problem is not None:
        os.close(descriptor)
        raise PermissionError(errno.EACCES, problem, path)
    return descriptor


def _keylog_writer(path: str) -> Any:
    """Append what OpenSSL tells to *path*, in the format of ``SSLKEYLOGFILE``."""
    complained = False

    def write(_connection: object, line: bytes) -> None:
        nonlocal complained
        try:
            with os.fdopen(open_key_log(path), "ab") as file:
                file.write(line + b"\n")
        except OSError as error:
            # Each handshake has several secrets, and a server many handshakes.
            if not complained:
                complained = True
                _log.error("cannot write keylog_file {path}: {error}", path=path, error=error)
        else:
            complained = False

    return write


def trust(context: SSL.Context, trusted: Iterable[x509.Certificate]) -> None:
    """Believe *trusted* and nobody else, authorities or not."""
    store = context.get_cert_store()
    assert store is not None
    for certificate in trusted:
        try:
            store.add_cert(crypto.X509.from_cryptography(certificate))
        except crypto.Error as error:
            raise ValueError(
                f"trusted_certificates holds one that cannot be used: {_reasons(error)}"
            ) from None
    # What is named explicitly is an anchor, also if it is an intermediate or a leaf.
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)


def require_handshake(options: TLSSocketOptions) -> None:
    if not options.handshake:
        raise ValueError(
            "handshake=False is for sockets, whose handshake method the caller calls; "
            "here nobody would"
        )
