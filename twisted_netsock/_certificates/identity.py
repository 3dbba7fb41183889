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
from functools import lru_cache
from typing import Final

from .._hostnames import host_to_ascii, is_ip_address, reference_identity
from .der import SEQUENCE, content, elements, extension, parse_certificate

__all__ = ["DNS_NAME", "IP_ADDRESS", "URI", "alternative_names", "is_for", "server_identity"]

_SUBJECT_ALT_NAME: Final = b"\x06\x03\x55\x1d\x11"
"""Its object identifier, 2.5.29.17, encoded (RFC 5280, section 4.2.1.6)."""
URI: Final = 0x86
DNS_NAME: Final = 0x82
IP_ADDRESS: Final = 0x87
"""Tags of general names: those that a server's identity can be (RFC 5280, section 4.2.1.6)."""

_MATCHES_KEPT: Final = 128
"""Certificates whose match is remembered, for those who connect to the same server again."""


def alternative_names(certificate: bytes) -> list[tuple[int, bytes]]:
    """
    Return the entries of the subjectAltName of a certificate in DER, as tags and contents.

    Raises:
        ValueError: They cannot be parsed, or there are two subjectAltNames.
    """
    names = extension(certificate, _SUBJECT_ALT_NAME)
    if names is None:
        return []
    return [(entry.tag, entry.content) for entry in elements(content(names, SEQUENCE))]


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
    parse_certificate(certificate)  # All but the extensions must be readable.
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
