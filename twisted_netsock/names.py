"""Host names and addresses as text: what is which, and how it is written on the wire."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from functools import lru_cache

import idna

__all__ = [
    "distinguished_name",
    "host_to_ascii",
    "is_host_name",
    "is_ip_address",
    "reference_identity",
    "server_name_pattern",
    "strip_zone",
]

# RFC 1035, section 2.3.4, without the root's empty label.
_HOST_LIMIT = 253
_LABEL_LIMIT = 63

# Each connection asks the same of the same few names.
_remembered = lru_cache(maxsize=256)


def strip_zone(host: str) -> str:
    """Return *host* without an IPv6 zone (``fe80::1%eth0``; RFC 4007, section 11)."""
    return host.partition("%")[0]


@_remembered
def is_ip_address(host: str) -> bool:
    """Tell whether *host* is a numeric IPv4 or IPv6 address, with or without a zone."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def host_to_ascii(host: str) -> str:
    """
    Return the A-label form of *host*, in lower case.

    Names of ASCII characters are taken as they are: the DNS knows more of them
    (underscores) than IDNA does.

    Raises:
        ValueError: *host* is no name that IDNA (RFC 5891, by way of UTS 46) can encode.
    """
    if host.isascii():
        return host.lower()
    try:
        return idna.encode(host, uts46=True).decode("ascii")
    except idna.IDNAError as error:
        raise ValueError(f"{host!r} is not a valid host name: {error}") from None


@_remembered
def is_host_name(text: str) -> bool:
    """Tell whether *text* has the form of a host name or an address."""
    if is_ip_address(text):
        return True
    try:
        name = host_to_ascii(text).removesuffix(".")
    except ValueError:
        return False
    return len(name) <= _HOST_LIMIT and all(
        0 < len(label) <= _LABEL_LIMIT and all(map(_fits, label)) for label in name.split(".")
    )


def _fits(character: str) -> bool:
    return character.isprintable() and not character.isspace() and character != "*"


def server_name_pattern(name: str) -> str:
    """Return a name that a server answers, possibly a wildcard, as clients send it."""
    if name.startswith("*."):
        return "*." + reference_identity(name[2:])
    return reference_identity(name)


@_remembered
def reference_identity(host: str) -> str:
    """
    Return *host* as it is compared with a certificate and sent as SNI.

    That is without zone, without the trailing dot of an absolute name
    (RFC 6066, section 3), and as A-labels.
    """
    if is_ip_address(host):
        return str(ipaddress.ip_address(strip_zone(host)))
    return host_to_ascii(host).removesuffix(".")


def distinguished_name(components: Iterable[tuple[bytes, bytes]]) -> str:
    r"""
    Return a distinguished name as text, the most specific part first (RFC 4514).

    Bytes that are no UTF-8 are written as ``\xNN``.
    """
    parts = []
    for kind, raw in components:
        value = raw.decode("utf-8", "backslashreplace")
        # Section 2.4: what has a meaning in the text form.
        value = re.sub(r'([,+"\\<>;]|^[ #]| $)', r"\\\1", value)
        parts.append(f"{kind.decode('ascii', 'backslashreplace')}={value}")
    return ",".join(reversed(parts))
