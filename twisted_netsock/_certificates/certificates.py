"""
Reading certificates and keys: from what an option record names to values.

Everything here may read files, so it runs when a socket, endpoint or context is
made. Each failure is a `ValueError` that names the option and says what is
wrong with it, without repeating any of a key.
"""

from __future__ import annotations

import base64
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from enum import Enum
from functools import partial
from typing import Final, NamedTuple, TypeVar, cast

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import pkcs12
from twisted.logger import Logger

from ..options import (
    OF_FILES,
    CertificateSource,
    KeySource,
    ServerTLSSocketOptions,
    TLSSocketOptions,
)
from .der import SEQUENCE, Element, elements, without_warnings

__all__ = [
    "Identity",
    "file_paths",
    "file_signature",
    "load_authorities",
    "load_identity",
    "load_revocation_lists",
    "load_trusted",
    "next_update",
]

T = TypeVar("T")

_log = Logger()
_read_once: dict[tuple[str, int, int] | None, bytes] = {}
"""
What pipes held, which can be read once: FIFOs, and ``<(command)`` of a shell, ``/dev/fd/63``.
A record is read several times, when it is checked, used, and used again.
"""
_READ_ONCE_KEPT: Final = 16
_warned: set[str] = set()
"""Paths of keys that everybody can read, and of which a warning was logged."""

_PEM_BEGIN = re.compile(rb"^-----BEGIN ([A-Z0-9 ]+)-----[ \t]*$", re.MULTILINE)
"""The line that a block begins with; what stands between blocks is comment (RFC 7468, 2)."""
_WITH_SETTINGS: Final = b"TRUSTED CERTIFICATE"
"""OpenSSL's label of a certificate with its trust settings behind."""
_CERTIFICATES: Final = (b"CERTIFICATE", b"X509 CERTIFICATE", _WITH_SETTINGS)
_KEY: Final = b"PRIVATE KEY"
"""What the labels of keys end with."""
_REJECTED: Final = 0xA0
_SERVERS: Final = b"\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x01"
_CLIENTS: Final = b"\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x02"
_ANY_PURPOSE: Final = b"\x06\x04\x55\x1d\x25\x00"
"""Purposes: serverAuth, clientAuth, and any (RFC 5280, section 4.2.1.12)."""
_CURVES: Final = ("secp256r1", "secp384r1", "secp521r1", "brainpool")
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_UTF_16: Final = (b"\xff\xfe", b"\xfe\xff", b"-\0", b"\0-")
"""What a PEM file begins with that an editor or PowerShell has saved as UTF-16."""
_HASHED = re.compile(r"[0-9a-f]{8}\.[0-9]+", re.IGNORECASE)
"""Names of files in an OpenSSL CApath: the hash of the authority's subject, and a number."""

_SIZE_LIMIT = 16 * 1024 * 1024
"""
Bytes of one file. The platform's list of authorities has some 200 KiB, but a path may name a
device that never ends.
"""


_LIST: Final = b"X509 CRL"
_LISTS_LIMIT: Final = 8 * 1024 * 1024
"""
Bytes of all revocation lists of a record. OpenSSL hashes the list of each issuer in each
handshake, which takes it 0.6 ms for a million bytes.
"""


class Identity(NamedTuple):
    """
    A certificate, the others that lead to its authority, and its key.

    Its text form says whose it is and nothing of the key.

    Attributes:
        certificate: The one that is shown.
        intermediates: Sent with it.
        key: Its key.
        key_pem: The key as it was read, where that was PEM, and its password: OpenSSL knows
            kinds of keys that `cryptography` has no object for, as those of RSASSA-PSS alone.
    """

    certificate: x509.Certificate
    intermediates: tuple[x509.Certificate, ...]
    key: PrivateKeyTypes
    key_pem: tuple[bytes, bytes | None] | None = None

    def __repr__(self) -> str:
        return f"<Identity {_subject(self.certificate)}>"


def _subject(certificate: x509.Certificate) -> str:
    subject = _parsed(certificate.subject.rfc4514_string)
    return "a malformed name" if isinstance(subject, _Refusal) else subject


class _Material(NamedTuple):
    """What one source held; its text form says nothing of the key."""

    certificates: tuple[x509.Certificate, ...]
    key: PrivateKeyTypes | None
    key_pem: tuple[bytes, bytes | None] | None = None

    def __repr__(self) -> str:
        return f"<_Material {len(self.certificates)} certificates>"


def file_paths(options: TLSSocketOptions) -> list[str]:
    """Return the path of every file that *options* takes certificates or keys from."""
    paths: list[str] = []
    for field in OF_FILES:
        given = getattr(options, field)
        if isinstance(given, str):
            paths.append(given)
        elif isinstance(given, tuple):
            paths += [source for source in given if isinstance(source, str)]
    return paths


def _label(field: str, source: object) -> str:
    """Name a source in an error: paths as they are, never content."""
    return f"{field}={source!r}" if isinstance(source, str) else field


def _read(field: str, source: str | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        found = os.stat(source)
        once = (source, found.st_dev, found.st_ino) if stat.S_ISFIFO(found.st_mode) else None
        if once in _read_once:
            return _read_once[once]
        with open(source, "rb") as file:
            data = file.read(_SIZE_LIMIT + 1)
    except OSError as error:
        why = error.strerror or str(error)
        raise ValueError(f"{_label(field, source)} cannot be read: {why}") from None
    if not data.strip():
        raise ValueError(f"{_label(field, source)} is an empty file")
    if len(data) > _SIZE_LIMIT:
        raise ValueError(f"{_label(field, source)} is larger than {_SIZE_LIMIT} bytes")
    if once is not None:
        _read_once[once] = data
        if len(_read_once) > _READ_ONCE_KEPT:
            del _read_once[next(iter(_read_once))]
    return data


class _Refusal(Enum):
    """Why content cannot be parsed, in our words: parsers' messages repeat content."""

    MALFORMED = "it is malformed or cut off"
    LOCKED = "the password is missing or wrong"
    NEEDLESS = "a password is given, and it is not encrypted"
    UNSUPPORTED = "it is of a kind that is not supported"


def _refusal(error: BaseException, password: bytes | None) -> _Refusal:
    if isinstance(error, TypeError):
        # cryptography raises TypeError for a password that is missing, or not needed.
        return _Refusal.NEEDLESS if password else _Refusal.LOCKED
    if isinstance(error, UnsupportedAlgorithm | x509.InvalidVersion):
        return _Refusal.UNSUPPORTED
    return _Refusal.LOCKED if "password" in str(error).lower() else _Refusal.MALFORMED


def _parsed(parse: Callable[[], T], password: bytes | None = None) -> T | _Refusal:
    """
    Return what *parse* returns, or a `_Refusal`.

    The parser's exception is dropped, and the caller raises outside of its handler: as
    the context of another exception, loggers would show it, with parts of a key.
    """
    try:
        with without_warnings():
            return parse()
    except Exception as error:  # noqa: BLE001 - whatever it is, the content is unusable
        return _refusal(error, password)


def _load_key(label: str, data: bytes, password: bytes | None, *, pem: bool) -> PrivateKeyTypes:
    """Load one private key; *pem* says how *data* is encoded."""
    load = serialization.load_pem_private_key if pem else serialization.load_der_private_key
    key = _parsed(lambda: load(data, password), password)
    if not isinstance(key, _Refusal):
        return key
    if key is _Refusal.NEEDLESS:
        raise ValueError(f"{label} is not encrypted, yet private_key_password is given")
    if key is _Refusal.LOCKED and not password:
        raise ValueError(f"{label} is encrypted: give private_key_password")
    if password is not None and (key is _Refusal.LOCKED or b"ENCRYPTED" in data):
        raise ValueError(f"{label}: private_key_password does not decrypt it")
    raise ValueError(f"{label} holds no private key that can be used: {key.value}")


class _Block(NamedTuple):
    """A block of PEM: its label, and the whole of it, which its text form keeps to itself."""

    label: bytes
    whole: bytes

    def __repr__(self) -> str:
        return f"<_Block {self.label.decode()}>"

    def decoded(self) -> bytes:
        """Return what is encoded; one that is malformed raises ValueError."""
        lines = self.whole.split(b"\n")[1:-1]
        return base64.b64decode(b"".join(b"".join(lines).split()), validate=True)


def _blocks(label: str, data: bytes) -> Iterator[_Block]:
    """
    Yield the blocks of a PEM file.

    Raises:
        ValueError: One has no end. What stands behind it would be left out without a word.
    """
    at = 0
    while begin := _PEM_BEGIN.search(data, at):
        end = re.compile(rb"^-----END " + begin[1] + rb"-----[ \t]*$", re.MULTILINE)
        found = end.search(data, begin.end())
        another = _PEM_BEGIN.search(data, begin.end())
        if found is None or (another is not None and another.start() < found.start()):
            if begin[1] not in (*_CERTIFICATES, _LIST) and not begin[1].endswith(_KEY):
                at = begin.end()
                continue
            line = data.count(b"\n", 0, begin.start()) + 1
            what = begin[1].decode().lower()
            raise ValueError(f"{label} is cut off: the {what} of line {line} has no end")
        at = found.end()
        yield _Block(begin[1], data[begin.start() : at])


def _load_block(label: str, block: _Block, purpose: bytes | None) -> x509.Certificate | None:
    """Return the certificate in *block*; `None` if it is not trusted for *purpose*."""

    def parse() -> x509.Certificate | None:
        encoded, *settings = elements(block.decoded())
        if settings and block.label != _WITH_SETTINGS:
            raise ValueError("more than a certificate is in the block")
        if settings and purpose is not None and not _is_trusted(settings[0], purpose):
            return None
        return x509.load_der_x509_certificate(encoded.whole)

    found = _parsed(parse)
    if isinstance(found, _Refusal):
        raise ValueError(  # noqa: TRY004
            f"{label} holds a certificate that cannot be used: {found.value}"
        )
    return found


def _is_trusted(settings: Element, purpose: bytes) -> bool:
    """Return whether OpenSSL's trust settings, behind a certificate, trust it for *purpose*."""
    wanted = {purpose, _ANY_PURPOSE}
    # X509_CERT_AUX: what it is trusted for, and as [0] what it is rejected for.
    for purposes in elements(settings.content):
        listed = bool(wanted.intersection(each.whole for each in elements(purposes.content)))
        if purposes.tag == SEQUENCE and not listed:
            return False
        if purposes.tag == _REJECTED and listed:
            return False
    return True


def _load_pem(
    label: str, data: bytes, password: bytes | None, *, want_key: bool, purpose: bytes | None
) -> _Material:
    blocks = list(_blocks(label, data))
    found = [
        _load_block(label, block, purpose) for block in blocks if block.label in _CERTIFICATES
    ]
    keys = [block.whole for block in blocks if block.label.endswith(_KEY)]
    certificates = tuple(each for each in found if each is not None)
    if not (keys and want_key):
        return _Material(certificates, None)
    key = _load_key(label, keys[0], password, pem=True)
    return _Material(certificates, key, (keys[0], password))


def _load_der(label: str, data: bytes, password: bytes | None, *, want_key: bool) -> _Material:
    """Load a DER certificate, else PKCS#12, else (where a key is wanted) a DER key."""
    certificate = _parsed(lambda: x509.load_der_x509_certificate(data))
    if not isinstance(certificate, _Refusal):
        return _Material((certificate,), None)
    store = _parsed(lambda: pkcs12.load_pkcs12(data, password), password)
    if not isinstance(store, _Refusal):
        leaf = () if store.cert is None else (store.cert.certificate,)
        others = tuple(additional.certificate for additional in store.additional_certs)
        return _Material(leaf + others, store.key)
    locked = None
    if store is _Refusal.LOCKED:
        said = "does not decrypt it" if password is not None else "may be missing"
        which = "trusted_certificates" if label.startswith("trusted") else "private_key"
        locked = ValueError(f"{label}: {which}_password {said}")
    if want_key:
        try:
            return _Material((), _load_key(label, data, password, pem=False))
        except ValueError as error:
            if label.startswith("private_key"):
                raise (locked or error) from None
    raise locked or ValueError(
        f"{label} is neither PEM, nor a DER certificate, nor PKCS#12; as a certificate, "
        f"{certificate.value}"
    )


def _load(
    field: str,
    source: CertificateSource | KeySource | None,
    password: bytes | None,
    *,
    want_key: bool,
    purpose: bytes | None = None,
) -> _Material:
    """
    Load one source of any kind.

    Args:
        field: Names the source in errors.
        source: A path, content, or what it would hold.
        password: Decrypts it.
        want_key: A key that it holds is wanted, too.
        purpose: Left out is what OpenSSL's trust settings do not trust for it.
    """
    if isinstance(source, x509.Certificate):
        return _Material((source,), None)
    if not isinstance(source, str | bytes):
        # Records hold paths as str and content as bytes, so this is a key.
        return _Material((), cast("PrivateKeyTypes", source))
    label = _label(field, source)
    data = _read(field, source)
    text = _text(label, data)
    if text is not None:
        found = _load_pem(label, text, password, want_key=want_key, purpose=purpose)
    else:
        found = _load_der(label, data, password, want_key=want_key)
    if found.key is not None and isinstance(source, str) and source not in _warned:
        _warn_of_readers(label, source)
    return found


def _text(label: str, data: bytes) -> bytes | None:
    """Return *data* as PEM with the line ends of UNIX, or `None` if it is none."""
    if data.startswith(_UTF_16):
        raise ValueError(f"{label} is encoded in UTF-16: save it as UTF-8 or ASCII")
    text = data.removeprefix(_BYTE_ORDER_MARK).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return text if _PEM_BEGIN.search(text) else None


def _warn_of_readers(label: str, path: str) -> None:
    """Warn once of a key that everybody on this machine can read; a group may be meant to."""
    with suppress(OSError):
        mode = stat.S_IMODE(os.stat(path).st_mode)
        if mode & stat.S_IROTH:
            _warned.add(path)
            _log.warn(
                "{label} holds a private key and can be read by every user (mode {mode:04o}): "
                "chmod o-r it",
                label=label,
                mode=mode,
            )


def load_identity(options: TLSSocketOptions) -> Identity | None:
    """
    Return the certificate, chain and key that *options* names, or `None` for none.

    Raises:
        ValueError: A file cannot be read or is empty; what it holds is no
            certificate or key; the password is wrong or missing; there is no
            key; or the key is not the certificate's.
    """
    if options.certificates is None:
        return None
    password = options.private_key_password
    # A password is for the key alone if there is one, else for what is in the sources.
    apart = options.private_key is not None
    certificates: list[x509.Certificate] = []
    holder = _Material((), None)
    for source in options.certificates:
        want_key = not apart and holder.key is None
        found = _load("certificates", source, None if apart else password, want_key=want_key)
        certificates += found.certificates
        if holder.key is None:
            holder = found
        if not found.certificates and found.key is None:
            raise ValueError(f"{_label('certificates', source)} holds no certificate")
    if apart:
        holder = _load("private_key", options.private_key, password, want_key=True)
        if holder.key is None:
            raise ValueError(f"{_label('private_key', options.private_key)} holds no private key")
    if not certificates:
        raise ValueError("certificates holds a key, but no certificate")
    key = holder.key
    if key is None:
        raise ValueError(
            "certificates come without a private key: give private_key, or a file with both"
        )
    leaf, *intermediates = certificates
    if _public_bytes(key) != _public_bytes(leaf):
        raise ValueError(
            "private_key does not match certificates: it is not the key of the first one, "
            f"{_subject(leaf)!r}"
        )
    _check_kind(key)
    return Identity(leaf, tuple(intermediates), key, holder.key_pem)


def _check_kind(key: PrivateKeyTypes) -> None:
    """
    Refuse a key that no handshake could use: every one would fail.

    Raises:
        ValueError: TLS 1.3 has no signature for it (RFC 8446, section 4.2.3), and no cipher
            suite or group that is offered with TLS 1.2 has one.
    """
    curve = key.curve.name if isinstance(key, ec.EllipticCurvePrivateKey) else None
    kind = "DSA" if isinstance(key, dsa.DSAPrivateKey) else curve
    if kind == "DSA" or (curve is not None and not curve.startswith(_CURVES)):
        raise ValueError(
            f"certificates has a key of a kind ({kind}) that TLS does not use: take one with "
            "ECDSA on P-256, RSA or Ed25519"
        )


def _public_bytes(holder: PrivateKeyTypes | x509.Certificate) -> bytes:
    """Return the public key of a certificate or private key, in DER."""
    key = _parsed(holder.public_key)
    if isinstance(key, _Refusal):
        raise ValueError(  # noqa: TRY004
            f"certificates has a public key that cannot be used: {key.value}"
        )
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def load_trusted(options: TLSSocketOptions) -> tuple[x509.Certificate, ...] | None:
    """
    Return the certificates to trust, or `None` where *options* names none.

    Raises:
        ValueError: A file cannot be read, is empty, or holds no certificate.
    """
    if options.trusted_certificates is None:
        return None
    trusted: list[x509.Certificate] = []
    purpose = _CLIENTS if isinstance(options, ServerTLSSocketOptions) else _SERVERS
    password = options.trusted_certificates_password
    for source in options.trusted_certificates:
        found = _load("trusted_certificates", source, password, want_key=False, purpose=purpose)
        if not found.certificates:
            label = _label("trusted_certificates", source)
            raise ValueError(f"{label} holds no certificate that is to be trusted")
        trusted += found.certificates
    return tuple(trusted)


def load_revocation_lists(options: TLSSocketOptions) -> list[x509.CertificateRevocationList]:
    """
    Return the revocation lists that *options* names.

    Raises:
        ValueError: A file cannot be read, is empty, or holds no list; a list cannot be parsed,
            or has no number; or all of them are too large.
    """
    found: list[x509.CertificateRevocationList] = []
    for source in options.revocation_lists or ():
        label = _label("revocation_lists", source)
        lists = (
            _load_lists(label, _read("revocation_lists", source))
            if isinstance(source, str | bytes)
            else [cast("x509.CertificateRevocationList", source)]
        )
        for each in lists:
            _check_list(label, each)
            found.append(each)
    size = sum(len(each.tbs_certlist_bytes) for each in found)
    if size > _LISTS_LIMIT:
        raise ValueError(f"revocation_lists hold {size} bytes, more than {_LISTS_LIMIT}")
    return found


def _load_lists(label: str, data: bytes) -> list[x509.CertificateRevocationList]:
    """Return the lists in a PEM or DER file; at least one."""
    text = _text(label, data)
    if text is None:
        found = [_parsed(lambda: x509.load_der_x509_crl(data))]
    else:
        blocks = [block for block in _blocks(label, text) if block.label == _LIST]
        found = [_parsed(partial(_decoded_list, block)) for block in blocks]
    good = [each for each in found if not isinstance(each, _Refusal)]
    if not good or len(good) < len(found):
        raise ValueError(f"{label} holds no revocation list that can be used, PEM or DER")
    return good


def _decoded_list(block: _Block) -> x509.CertificateRevocationList:
    return x509.load_der_x509_crl(block.decoded())


def _check_list(label: str, found: x509.CertificateRevocationList) -> None:
    """Refuse a list without a number, which OpenSSL takes."""
    number = _parsed(lambda: found.extensions.get_extension_for_class(x509.CRLNumber))
    if isinstance(number, _Refusal):
        raise ValueError(  # noqa: TRY004
            f"{label} holds a revocation list without a number that can be read (RFC 5280, "
            "section 5.2.3)"
        )


def next_update(lists: Iterable[x509.CertificateRevocationList]) -> float:
    """Return when the first issuer's lists have all expired, in seconds since 1970."""
    due: dict[x509.Name, float] = {}
    for each in lists:
        moment = each.next_update_utc
        seconds = float("inf") if moment is None else moment.timestamp()
        due[each.issuer] = max(seconds, due.get(each.issuer, 0.0))
    return min(due.values(), default=float("inf"))


def load_authorities(places: Iterable[str]) -> list[x509.Certificate]:
    """
    Return the certificates in files and directories, the platform's, as OpenSSL finds them.

    What cannot be read or parsed is left out, as OpenSSL does.
    """
    found: list[x509.Certificate] = []
    for place in places:
        try:
            names = sorted(name for name in os.listdir(place) if _HASHED.fullmatch(name))
            files = [os.path.join(place, name) for name in names]
        except OSError:
            files = [place]
        for file in files:
            try:
                loaded = _load("platform", file, None, want_key=False, purpose=_SERVERS)
                found += loaded.certificates
            except ValueError:
                continue
    return found


def file_signature(paths: Iterable[str]) -> tuple[object, ...]:
    """
    Return a value that changes when one of the files at *paths* does.

    Of a directory of authorities, each file counts that OpenSSL would read; of another, each in
    it, and each in a directory there.
    """
    return tuple(_signature(path) for path in paths)


def _signature(path: str, depth: int = 0) -> tuple[object, ...]:
    try:
        found = os.stat(path)
        if stat.S_ISFIFO(found.st_mode):
            # To read it changes its times.
            return path, found.st_dev, found.st_ino
        if not stat.S_ISDIR(found.st_mode):
            # rsync and cp -p restore st_mtime, but nothing can set st_ctime.
            return path, found.st_mtime_ns, found.st_size, found.st_ino, found.st_ctime_ns
        there = sorted(name for name in os.listdir(path) if not name.startswith("."))
    except OSError as error:
        return path, error.errno
    # Most are links to files elsewhere, whose changes do not change the directory.
    names = [name for name in there if _HASHED.fullmatch(name)] or there
    if depth > 1:
        return path, *names
    return path, *(_signature(os.path.join(path, name), depth + 1) for name in names)
