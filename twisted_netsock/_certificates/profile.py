"""
The strict profile: what a valid path must fulfil beside, as certificates of public authorities do.

The rules are those of RFC 5280 and of the CA/Browser Forum's Baseline Requirements that neither
OpenSSL nor the validator of `cryptography` holds. Private authorities often break them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from .der import without_warnings

__all__ = ["broken_rule"]

E = TypeVar("E", bound=x509.ExtensionType)


def broken_rule(path: Sequence[x509.Certificate]) -> str | None:
    """Return which rule the valid *path*, its own certificate first, breaks; or `None`."""
    try:
        with without_warnings():
            for place, certificate in enumerate(path):
                # Parses all extensions: each must be readable, also those that nobody needs.
                extensions = certificate.extensions
                for why in _values(certificate, extensions):
                    return why
                for why in _identifiers(certificate, extensions, is_own=place == 0):
                    return why
    except Exception:  # noqa: BLE001 - parsers raise what they like
        return "a certificate of its chain has an extension that cannot be parsed"
    return None


def _values(certificate: x509.Certificate, extensions: x509.Extensions) -> Iterator[str]:
    """Yield the rules that what *certificate* says breaks."""
    if certificate.serial_number <= 0:
        yield "a serial number of its chain is not positive (RFC 5280, section 4.1.2.2)"
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey) and key.key_size % 8:
        yield "an RSA key of its chain has a size that is no multiple of 8 bits"
    names = _value(extensions, x509.SubjectAlternativeName)
    if names is not None and any("_" in each for each in names.get_values_for_type(x509.DNSName)):
        yield "a host name of its chain has an underscore (RFC 5280, section 4.2.1.6)"
    usage = _value(extensions, x509.ExtendedKeyUsage)
    if usage is not None:
        if ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in usage:
            yield "a certificate of its chain is for any purpose (anyExtendedKeyUsage)"
        if certificate.issuer == certificate.subject:
            yield "a root of its chain has an extended key usage"
    policies = _find(extensions, x509.PolicyConstraints)
    if policies is not None and not policies.critical:
        yield "policy constraints of its chain are not critical (RFC 5280, section 4.2.1.11)"


def _identifiers(
    certificate: x509.Certificate, extensions: x509.Extensions, *, is_own: bool
) -> Iterator[str]:
    """Yield the rules that the key identifiers of *certificate* break."""
    authority = _value(extensions, x509.AuthorityKeyIdentifier)
    subject = _value(extensions, x509.SubjectKeyIdentifier)
    if subject is None and not is_own:
        yield "a subject key identifier is missing in its chain (RFC 5280, section 4.2.1.2)"
    if certificate.issuer != certificate.subject:
        if authority is None:
            yield "an authority key identifier is missing in its chain (RFC 5280, section 4.2.1.1)"
    elif authority is not None:
        odd = authority.authority_cert_issuer or authority.authority_cert_serial_number
        own = None if subject is None else subject.digest
        if odd or authority.key_identifier not in (None, own):
            yield "the authority key identifier of a root of its chain is not its own"


def _find(extensions: x509.Extensions, kind: type[E]) -> x509.Extension[E] | None:
    try:
        return extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        return None


def _value(extensions: x509.Extensions, kind: type[E]) -> E | None:
    found = _find(extensions, kind)
    return None if found is None else found.value
