"""
Names in certificates, and whether one of them is the peer's (RFC 9525).

Only the entries of the subjectAltName that could match are compared; the others, however odd,
refuse nothing (section 6.3). The common name is never looked at (section 2).

Entries are read from the DER, not from the parsed certificate: `cryptography` parses every
extension or none, so one that it does not know how to read would hide the names. It is also
quicker: 1.2 ms for 2,048 names, where parsing them and comparing by service-identity took 20.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from functools import lru_cache
from typing import Final, NamedTuple

from cryptography import x509

from .._hostnames import host_to_ascii, is_ip_address, reference_identity

__all__ = ["alternative_names", "is_for", "server_identity"]

_EXTENSIONS: Final = 0xA3
"""The tag of a certificate's extensions (RFC 5280, section 4.1)."""
_SEQUENCE: Final = 0x30
_OCTETS: Final = 0x04
_SUBJECT_ALT_NAME: Final = b"\x06\x03\x55\x1d\x11"
"""Its object identifier, 2.5.29.17, encoded (RFC 5280, section 4.2.1.6)."""
URI: Final = 0x86
DNS_NAME: Final = 0x82
IP_ADDRESS: Final = 0x87
"""Tags of general names: those that a server's identity can be (RFC 5280, section 4.2.1.6)."""

_MATCHES_KEPT: Final = 128
"""Certificates whose match is remembered, for those who connect to the same server again."""


class _Element(NamedTuple):
    """A value of DER: its tag, its content, and the whole of it."""

    tag: int
    content: bytes
    whole: bytes


def _elements(data: bytes) -> Iterator[_Element]:
    """Yield the values in *data*, one behind the other (X.690, section 8.1)."""
    at = 0
    while at < len(data):
        head = data[at : at + 2]
        if len(head) != 2 or head[0] & 0x1F == 0x1F:  # noqa: PLR2004 - X.690, 8.1.2.4
            raise ValueError("this is no DER that certificates are made of")
        start, length = at + 2, head[1]
        if length & 0x80:
            start += length & 0x7F
            length = int.from_bytes(data[at + 2 : start], "big")
        if start + length > len(data):
            raise ValueError("a value of the certificate is cut short")
        yield _Element(head[0], data[start : start + length], data[at : start + length])
        at = start + length


def _content(data: bytes, tag: int) -> bytes:
    """Return the content of the first value in *data*, which must have the *tag*."""
    for element in _elements(data):
        if element.tag == tag:
            return element.content
        break
    raise ValueError(f"the certificate has no value of type {tag:#04x} where one belongs")


def alternative_names(certificate: bytes) -> list[tuple[int, bytes]]:
    """
    Return the entries of the subjectAltName of a certificate in DER, as tags and contents.

    Raises:
        ValueError: They cannot be parsed, or there are two subjectAltNames.
    """
    signed = _content(_content(certificate, _SEQUENCE), _SEQUENCE)
    names: list[tuple[int, bytes]] | None = None
    for part in _elements(signed):
        if part.tag != _EXTENSIONS:
            continue
        for extension in _elements(_content(part.content, _SEQUENCE)):
            identifier, *_, value = _elements(extension.content)
            if identifier.whole != _SUBJECT_ALT_NAME:
                continue
            if names is not None or value.tag != _OCTETS:
                raise ValueError("the certificate's subjectAltName is malformed")
            entries = _elements(_content(value.content, _SEQUENCE))
            names = [(entry.tag, entry.content) for entry in entries]
    return names or []


def server_identity(text: str) -> str:
    """Return a host name, an address or a URI as it is compared with a certificate."""
    return text if ":/" in text else reference_identity(text)


@lru_cache(maxsize=_MATCHES_KEPT)
def is_for(certificate: bytes, identity: str | None) -> bool:
    """
    Return whether a certificate, in DER, is for *identity*, of `server_identity`.

    `None` is nobody in particular: then the certificate need only be readable.

    The result depends on nothing else, not even on time, so it can be kept.

    Raises:
        ValueError: The names cannot be parsed.
        cryptography.x509.InvalidVersion: The version is none that there is.
    """
    x509.load_der_x509_certificate(certificate)  # All but the extensions must be readable.
    if identity is None:
        return True
    if ":/" in identity:
        wanted = {(URI, identity.encode())}
    elif is_ip_address(identity):
        wanted = {(IP_ADDRESS, ipaddress.ip_address(identity).packed)}
    else:
        name = host_to_ascii(identity).encode()
        wanted = {(DNS_NAME, name)}
        _, _, parent = name.partition(b".")
        # A wildcard is the whole first label, and stands for one (RFC 9525, section 6.3);
        # one for a whole top-level domain is refused, as OpenSSL and browsers do.
        if b"." in parent:
            wanted.add((DNS_NAME, b"*." + parent))
    return any(
        (tag, value.lower() if tag == DNS_NAME else value) in wanted
        for tag, value in alternative_names(certificate)
    )
