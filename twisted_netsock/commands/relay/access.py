"""
Access rules of the relay, by the certificate that a client has presented.

A connection is let in if one rule fits its certificate, whose chain TLS has
verified by then. The rules are those of ghostunnel, and pins beside them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Final

import attrs
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from ..._certificates.der import SEQUENCE, content, elements
from ..._certificates.identity import DNS_NAME, URI, alternative_names

__all__ = ["KINDS", "Access", "fingerprint", "uri_pattern"]

KINDS: Final = ("cn", "ou", "dns", "uri", "spki")
"""What rules look at; ``--allow-`` and this is the option."""

_DIGEST_BYTES: Final = 32

# Of a TBSCertificate (RFC 5280, section 4.1): the tag of the version, which may be missing,
# and serial number, signature, issuer, validity and subject, which stand before the key.
_VERSION: Final = 0xA0
_FIELDS_BEFORE_KEY: Final = 5


def uri_pattern(pattern: str) -> re.Pattern[str]:
    """
    Return what matches the URIs that *pattern* stands for.

    A segment ``*`` stands for any one segment, a last segment ``**`` for any
    number of segments, and a slash at the end makes no difference.

    Raises:
        ValueError: A wildcard is a part of a segment, or ``**`` is not the last.
    """
    segments = pattern.removesuffix("/").split("/")
    expression = ""
    for place, segment in enumerate(segments):
        if segment == "**":
            if place != len(segments) - 1 or not place:
                raise ValueError("** must be the last segment, behind another")
            return re.compile(f"{expression}(?:/.*)?", re.DOTALL)
        if "*" in segment and segment != "*":
            raise ValueError(f"{segment!r}: a wildcard must be a whole segment, * or **")
        expression += ("/" if place else "") + ("[^/]+" if segment == "*" else re.escape(segment))
    return re.compile(f"{expression}/?", re.DOTALL)


def fingerprint(text: str) -> bytes:
    """
    Read the SHA-256 of a public key, as ``sha256//BASE64`` (curl's form) or in hexadecimal.

    Raises:
        ValueError: It is neither.
    """
    try:
        if text.startswith("sha256//"):
            digest = base64.b64decode(text.removeprefix("sha256//"), validate=True)
        else:
            digest = bytes.fromhex(text.replace(":", ""))
    except (binascii.Error, ValueError):
        digest = b""
    if len(digest) != _DIGEST_BYTES:
        raise ValueError("must be sha256//BASE64 or 64 hexadecimal digits")
    return digest


def _exact(text: str) -> str:
    if not text:
        raise ValueError("must not be empty")
    if "*" in text:
        raise ValueError("is compared as it stands: wildcards are for --allow-uri")
    return text


@attrs.frozen
class Access:
    """
    The rules of a relay.

    Attributes:
        everyone: Every client whose certificate is verified.
        names: The common names of subjects.
        units: Their organizational units.
        hosts: DNS names of subjectAltNames, in lower case.
        uris: Patterns for URIs of subjectAltNames.
        keys: SHA-256 of public keys (SubjectPublicKeyInfo).
    """

    everyone: bool = False
    names: frozenset[str] = frozenset()
    units: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()
    uris: tuple[re.Pattern[str], ...] = ()
    keys: frozenset[bytes] = frozenset()

    @property
    def given(self) -> bool:
        """Whether there is any rule."""
        return self.everyone or self.restricts

    @property
    def restricts(self) -> bool:
        """Whether there is a rule that looks at certificates."""
        return bool(self.names or self.units or self.hosts or self.uris or self.keys)

    def with_rule(self, kind: str, text: str) -> Access:
        """
        Return these rules and one more.

        Args:
            kind: One of `KINDS`.
            text: What is allowed.

        Raises:
            ValueError: It is no such thing; says what must be.
        """
        match kind:
            case "cn":
                return attrs.evolve(self, names=self.names | {_exact(text)})
            case "ou":
                return attrs.evolve(self, units=self.units | {_exact(text)})
            case "dns":
                return attrs.evolve(self, hosts=self.hosts | {_exact(text).lower()})
            case "uri":
                if "://" not in text:
                    raise ValueError("must be a URI, such as spiffe://example.com/*")
                return attrs.evolve(self, uris=(*self.uris, uri_pattern(text)))
            case _:
                return attrs.evolve(self, keys=self.keys | {fingerprint(text)})

    def allows(self, certificate: x509.Certificate | None) -> bool:
        """
        Return whether a client may connect; any rule needs a certificate.

        Args:
            certificate: The client's, verified; `None` if it has shown none, or
                none that was verified.
        """
        if not self.given:
            return True
        if certificate is None:
            return False
        if self.everyone:
            return True
        try:
            return self._fits(certificate)
        except Exception:  # noqa: BLE001 - parsers raise what they like about odd certificates
            # Names that cannot be parsed are nobody's.
            return False

    def _fits(self, certificate: x509.Certificate) -> bool:
        if self.keys and public_key_digest(certificate) in self.keys:
            return True
        if self.names.intersection(_subject(certificate, NameOID.COMMON_NAME)):
            return True
        if self.units.intersection(_subject(certificate, NameOID.ORGANIZATIONAL_UNIT_NAME)):
            return True
        if not (self.hosts or self.uris):
            return False
        names = alternative_names(certificate.public_bytes(Encoding.DER))
        return any(
            value.lower() in self.hosts
            if tag == DNS_NAME
            else tag == URI and any(pattern.fullmatch(value) for pattern in self.uris)
            for tag, value in ((tag, raw.decode("ascii")) for tag, raw in names if raw.isascii())
        )


def _subject(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> list[str]:
    """Return the values of one attribute of the subject."""
    return [
        attribute.value
        for attribute in certificate.subject.get_attributes_for_oid(oid)
        if isinstance(attribute.value, str)
    ]


def common_name(certificate: x509.Certificate) -> str | None:
    """Return the first common name of the subject, or `None`."""
    try:
        found = _subject(certificate, NameOID.COMMON_NAME)
    except ValueError:
        return None
    return found[0] if found else None


def public_key_digest(certificate: x509.Certificate) -> bytes:
    """
    Return the SHA-256 of a certificate's SubjectPublicKeyInfo, as it stands there.

    Decoded and encoded again it may be another (RSA-PSS, compressed points), and keys
    of kinds that the library does not know could not be decoded at all.

    Raises:
        ValueError: The certificate is cut off.
    """
    fields = elements(content(certificate.tbs_certificate_bytes, SEQUENCE))
    keys = [field.whole for field in fields if field.tag != _VERSION][_FIELDS_BEFORE_KEY:]
    if not keys:
        raise ValueError("the certificate is cut off")
    return hashlib.sha256(keys[0]).digest()
