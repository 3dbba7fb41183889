"""Hosts and services as text: what is a name and what a number, and the form on the wire."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from functools import lru_cache

import idna

__all__ = [
    "distinguished_name",
    "host_and_port",
    "host_to_ascii",
    "host_to_look_up",
    "is_host_name",
    "is_ip_address",
    "numeric_service",
    "reference_identity",
    "server_name_pattern",
    "strip_zone",
]

# RFC 1035, section 2.3.4, without the root's empty label.
_HOST_LIMIT = 253
_LABEL_LIMIT = 63

# One part of what inet_aton(3) takes: "127.1", "0x7f.1", "017700000001" and "0" are addresses
# to the C library, though not to programs that compare them as text.
_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+", re.ASCII | re.IGNORECASE)

_PORT_LIMIT = 65536

# Names as RFC 6335 has them (section 5.1), and the odd ones of /etc/services ("whois++",
# "z39.50"). Whatever has no letter is a port to the C library's strtoul(3), or nothing:
# it takes " 80" and "+80" for 80, and "*" for 0.
_SERVICE_NAME = re.compile(r"[0-9._+-]*[a-z][a-z0-9._+-]*", re.ASCII | re.IGNORECASE)

# What separates labels (RFC 3490, section 3.1): the full stops of Chinese and Japanese as well.
_DOTS = re.compile("[.\u3002\uff0e\uff61]")

# Each connection asks the same of the same few names.
_remembered = lru_cache(maxsize=256)


def strip_zone(host: str) -> str:
    """Return *host* without an IPv6 zone (``fe80::1%eth0``; RFC 4007, section 11)."""
    return host.partition("%")[0]


@_remembered
def is_ip_address(host: str) -> bool:
    """Return whether *host* is a numeric IPv4 or IPv6 address, with or without a zone."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def host_and_port(host: str, port: int | str) -> str:
    """Return the two as people and URLs have them: ``[::1]:80`` (RFC 3986, section 3.2.2)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def host_to_ascii(host: str) -> str:
    """
    Return the A-label form of *host*, in lower case.

    Labels of ASCII characters are taken as they are: the DNS knows more of them
    (underscores) than IDNA does.

    Raises:
        ValueError: *host* is no name that IDNA (RFC 5891, by way of UTS 46) can encode.
    """
    if host.isascii():
        return host.lower()
    try:
        labels = [
            label.lower() if label.isascii() else idna.encode(label, uts46=True).decode("ascii")
            for label in _DOTS.split(host)
        ]
    except idna.IDNAError as error:
        raise ValueError(f"{host!r} is not a valid host name: {error}") from None
    name = ".".join(labels)
    if not _has_lengths(name.removesuffix(".")):
        raise ValueError(f"{host!r} is not a valid host name: a label is empty, or it is too long")
    return name


def _has_lengths(name: str) -> bool:
    """Return whether the labels of *name* are as long as the DNS has them."""
    return len(name) <= _HOST_LIMIT and all(
        0 < len(label) <= _LABEL_LIMIT for label in name.split(".")
    )


@_remembered
def is_host_name(text: str) -> bool:
    """
    Return whether *text* has the form of a host name or an address.

    Numbers alone are no host name (RFC 1123, section 2.1), and "*" is none.
    """
    if is_ip_address(text):
        return True
    try:
        name = host_to_ascii(text).removesuffix(".")
    except ValueError:
        return False
    return _has_lengths(name) and _may_be_looked_up(name)


def _may_be_looked_up(name: str) -> bool:
    """Return whether *name* has only characters of names, and more than numbers."""
    labels = name.removesuffix(".").split(".")
    return all(map(_fits, name)) and not all(map(_NUMBER.fullmatch, labels))


def _fits(character: str) -> bool:
    return character.isprintable() and not character.isspace() and character != "*"


def host_to_look_up(node: str) -> str:
    """
    Return *node*, a host name or a numeric address, as resolvers take it.

    The C library takes more for an address than a reader of the name does: "*" is any,
    "0" and "127.1" are this machine. A program that chooses hosts by their names could
    not see that, so no resolver is asked.

    Raises:
        ValueError: *node* is no host name, nor an address in its usual form.
    """
    if is_ip_address(node):
        return node
    name = host_to_ascii(node)
    if "/" in name:
        raise ValueError(f"node={node!r} is no host name; a path needs ai_family=AF_UNIX")
    if not name or not _may_be_looked_up(name):
        hint = "; write IPv4 addresses in full, as 127.0.0.1" if name[:1].isdigit() else ""
        hint = "; a server on every interface has node=None" if name == "*" else hint
        raise ValueError(f"node={node!r} must be a host name or an address{hint}")
    return name


def numeric_service(service: str | int | None) -> int | None:
    """
    Return *service* as a port if it is a number, and `None` if it is a name.

    Raises:
        TypeError: *service* is no str, int or `None`.
        ValueError: The number is no port.
    """
    if service.__class__ is int and 0 <= service < _PORT_LIMIT:
        # The way of most, first: this is asked several times for each connection.
        return service
    if service is None:
        return 0
    if isinstance(service, bool) or not isinstance(service, int | str):
        raise TypeError(f"service must be a name or a port, not {service!r}")
    if isinstance(service, str):
        if not (service.isascii() and service.isdigit()):
            if _SERVICE_NAME.fullmatch(service) is None:
                hint = "; a path needs ai_family=AF_UNIX" if "/" in service else ""
                raise ValueError(
                    f"service={service!r} must be a port, or a service's name, such as 'https'"
                    + hint
                )
            return None
        service = int(service)
    if not 0 <= service < _PORT_LIMIT:
        raise ValueError(f"service={service} must be a port from 0 to {_PORT_LIMIT - 1}")
    return service


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
