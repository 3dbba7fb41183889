"""Certificates as facts: for a report, and for JSON."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ..._certificates.der import without_warnings

__all__ = ["CertificateFacts", "describe"]

_UNREADABLE: Final = "(cannot be read)"
_SECONDS_A_DAY: Final = 86400


class CertificateFacts(NamedTuple):
    """What is worth telling of a certificate; texts are as the certificate has them."""

    subject: str
    issuer: str
    names: list[str]
    serial: str
    not_before: str
    not_after: str
    days_left: int | None
    key: str
    signature: str
    authority: bool
    sha256: str
    pin_sha256: str
    pem: str


def _read(get: Callable[[], object], otherwise: object = _UNREADABLE) -> Any:
    """Return what *get* does, or *otherwise* where the certificate is malformed there."""
    try:
        with without_warnings():
            return get()
    except (ValueError, TypeError, x509.ExtensionNotFound, UnsupportedAlgorithm):
        return otherwise


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return [_general_name(name) for name in found.value]


def _general_name(name: x509.GeneralName) -> str:
    value: object = name.value
    if isinstance(name, x509.DNSName):
        return str(value)
    if isinstance(value, x509.Name):
        value = value.rfc4514_string()
    kind = type(name).__name__
    called = {"IPAddress": "address", "RFC822Name": "e-mail", "UniformResourceIdentifier": "URI"}
    return f"{called.get(kind, kind)} {value}"


def _name(name: x509.Name) -> str:
    return name.rfc4514_string()


def _key(certificate: x509.Certificate) -> str:
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA, {key.key_size} bits"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"EC, {key.curve.name}"
    if isinstance(key, ed25519.Ed25519PublicKey):
        return "Ed25519"
    return "Ed448" if isinstance(key, ed448.Ed448PublicKey) else type(key).__name__.lstrip("_")


def _signature(certificate: x509.Certificate) -> str:
    oid = certificate.signature_algorithm_oid
    return oid.dotted_string if oid._name == "Unknown OID" else oid._name


def _is_authority(certificate: x509.Certificate) -> bool:
    return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def _pin(certificate: x509.Certificate) -> str:
    public = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(public).digest()).decode()


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def days_left(certificate: x509.Certificate, now: datetime) -> int | None:
    """Return how many whole days *certificate* is still valid; negative once it has expired."""
    end = _read(lambda: certificate.not_valid_after_utc, None)
    return None if end is None else int((end - now).total_seconds() // _SECONDS_A_DAY)


def describe(certificate: x509.Certificate, now: datetime | None = None) -> CertificateFacts:
    """Return a description of *certificate*, which may be malformed anywhere."""
    der = certificate.public_bytes(Encoding.DER)
    return CertificateFacts(
        subject=_read(lambda: _name(certificate.subject)),
        issuer=_read(lambda: _name(certificate.issuer)),
        names=_read(lambda: _names(certificate), [_UNREADABLE]),
        serial=_read(lambda: f"{certificate.serial_number:x}"),
        not_before=_read(lambda: _time(certificate.not_valid_before_utc)),
        not_after=_read(lambda: _time(certificate.not_valid_after_utc)),
        days_left=days_left(certificate, now or datetime.now(UTC)),
        key=_read(lambda: _key(certificate)),
        signature=_read(lambda: _signature(certificate)),
        authority=_read(lambda: _is_authority(certificate), False),
        sha256=hashlib.sha256(der).hexdigest(),
        pin_sha256=_read(lambda: _pin(certificate)),
        pem=certificate.public_bytes(Encoding.PEM).decode("ascii"),
    )
