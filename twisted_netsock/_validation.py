"""
The checks of `twisted_netsock.options`, a function for each kind of field.

Each takes a value and the field's name and returns the value as the record
stores it. A wrong type is a `TypeError` and a wrong value a `ValueError`, and
both name the field, the value and what was expected; values that may be secret
are only ever described by their type.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterable, Mapping
from datetime import timedelta
from socket import AF_INET, AF_INET6, AF_UNIX, AF_UNSPEC, AddressFamily, SocketKind
from typing import TypeVar

from ._hostnames import is_host_name, is_ip_address
from ._proxies import ENVIRONMENT, parse_proxy

Member = TypeVar("Member", AddressFamily, SocketKind)

FAMILIES = (AF_UNSPEC, AF_INET, AF_INET6, AF_UNIX)
CERTIFICATE_PROFILES = ("default", "strict")
PROXY_PROTOCOLS = ("v1", "v2", "any")
_KINDS = (SocketKind.SOCK_STREAM, SocketKind.SOCK_DGRAM, SocketKind.SOCK_RAW)
_VERSIONS = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}
_SHORTEST_MICROSECONDS = 100_000
"""A tenth of a second: a smaller int was meant as seconds or milliseconds."""
_LONGEST_SHOWN = 80
"""Characters of a refused text that its error repeats: about one line."""
_LONGEST = timedelta(days=365)
"""A longer one is a mistake in the unit, and "never" is `None`."""
_PORT_LIMIT = 65536
_URI = re.compile(r"[a-z][a-z0-9+.-]*:/[!-~]+", re.ASCII | re.IGNORECASE)
_ALPN_LIMIT = 256
"""The name of a protocol goes behind one byte with its length (RFC 7301, section 3.1)."""
_HOST_AND_PORT = 2
_ENCODED = re.compile(r"M[A-P][A-Za-z0-9+/_-]{40,}={0,2}|30[0-9A-Fa-f]{60,}")
"""Base64 or hexadecimal digits of DER, all of which begins with the byte 0x30."""


def redacted(value: object) -> str:
    """Describe *value* so that nothing secret shows: a checked path as it is, the rest by type."""
    if isinstance(value, tuple):
        items = ", ".join(redacted(item) for item in value)
        return f"({items},)" if len(value) == 1 else f"({items})"
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, bytes):
        return "<bytes>"
    return f"<{type(value).__name__.lstrip('_')}>"


def _kind(value: object) -> str:
    """Describe *value* by its type alone."""
    return f"<{type(value).__name__}>"


def _wrong_type(value: object, name: str, expected: str) -> TypeError:
    return TypeError(f"{name} must be {expected}, not {value!r}")


def boolean(value: object, name: str) -> bool:
    """Take `True` and `False`."""
    if not isinstance(value, bool):
        raise _wrong_type(value, name, "True or False")
    return value


def _integer(value: object, name: str, expected: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong_type(value, name, expected)
    return value


def non_negative(value: object, name: str, least: int = 0) -> int:
    """Take a C int of at least 0, or *least*."""
    number = _integer(value, name, f"an integer of {least} or more")
    if not least <= number < 2**31:
        raise ValueError(f"{name}={number} must be an integer from {least} to {2**31 - 1}")
    return int(number)


def positive(value: object, name: str) -> int:
    """Take a C int of at least 1."""
    return non_negative(value, name, 1)


def byte_count(value: object, name: str) -> None:
    """Refuse what is no number of bytes."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a number of bytes, not {value!r}")
    if value < 0:
        raise ValueError(f"{name}={value} must not be negative")


def _one_of(members: tuple[Member, ...], value: object, name: str, expected: str) -> Member:
    number = _integer(value, name, expected)
    for member in members:
        if member == number:
            return member
    allowed = ", ".join(known.name for known in members)
    raise ValueError(f"{name}={value!r} must be one of {allowed}")


def family(value: object, name: str) -> AddressFamily:
    """Take one of the four families that this package knows."""
    return _one_of(FAMILIES, value, name, "an address family (AF_INET, …)")


def socket_kind(value: object, name: str) -> SocketKind:
    """Take one of the three types of socket that this package knows."""
    return _one_of(_KINDS, value, name, "a type of socket (SOCK_STREAM, …)")


def duration(value: object, name: str) -> timedelta:
    """Take a `timedelta` of more than nothing and at most a year."""
    if not isinstance(value, timedelta):
        raise _wrong_type(value, name, "a datetime.timedelta, such as timedelta(seconds=10)")
    return _in_a_year(value, f"{name}={value!r}")


def _in_a_year(value: timedelta, given: str) -> timedelta:
    if not timedelta(0) < value <= _LONGEST:
        raise ValueError(f"{given} must be more than 0 and at most {_LONGEST.days} days")
    return value


def optional_duration(value: object, name: str) -> timedelta | None:
    """Take what `duration` takes, or `None`."""
    return None if value is None else duration(value, name)


def in_seconds(value: timedelta | None) -> float | None:
    """Return a time of a record's as clocks have it."""
    return None if value is None else value.total_seconds()


_UNITS = {"us": "microseconds", "ms": "milliseconds", "s": "seconds", "m": "minutes",
          "h": "hours"}  # fmt: skip
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|m|h)", re.ASCII)


def shortened(text: str) -> str:
    """Return *text* as an error shows it: cut if it is very long."""
    return repr(text) if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]!r}…"


def duration_text(name: str, text: str) -> timedelta:
    """Read a time with its unit, as in ``10s``, of what `duration` takes."""
    matched = _DURATION.fullmatch(text)
    if matched is None:
        hint = f"; {text}s for seconds" if re.fullmatch(r"\d+(\.\d+)?", text) else ""
        raise ValueError(
            f"{name}={shortened(text)} must be a number with a unit, us, ms, s, m or h{hint}"
        )
    try:
        value = timedelta(**{_UNITS[matched[2]]: float(matched[1])})
    except OverflowError:
        value = timedelta.max
    return _in_a_year(value, f"{name}={shortened(text)}")


def wait(value: object, name: str) -> timedelta | None:
    """Take what `duration` takes, nothing at all (one try, no wait), or `None`."""
    if isinstance(value, timedelta) and not value:
        return value
    return optional_duration(value, name)


def connection_timeout(value: object, name: str) -> timedelta | None:
    """Take a `timedelta`, `None`, or the microseconds of ``(net socket)``."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value < _SHORTEST_MICROSECONDS:
            raise ValueError(
                f"{name}={value} would be {value} microseconds; an int must be at least "
                f"{_SHORTEST_MICROSECONDS}; for {value} seconds pass timedelta(seconds={value}), "
                f"for milliseconds timedelta(milliseconds={value})"
            )
        try:
            value = timedelta(microseconds=value)
        except OverflowError:
            raise ValueError(f"{name}={value} is more than {_LONGEST.days} days") from None
    elif not isinstance(value, timedelta | None):
        raise _wrong_type(value, name, "a datetime.timedelta, an int of microseconds or None")
    return optional_duration(value, name)


def certificate_profile(value: object, name: str) -> str:
    """Take the name of a profile."""
    if not isinstance(value, str):
        raise _wrong_type(value, name, f"one of {', '.join(CERTIFICATE_PROFILES)}")
    if value not in CERTIFICATE_PROFILES:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(CERTIFICATE_PROFILES)}")
    return value


def proxy_protocol(value: object, name: str) -> str | None:
    """Take a version of the PROXY protocol, ``"any"`` of them, or `None`."""
    if not isinstance(value, str | None):
        raise _wrong_type(value, name, f"one of {', '.join(PROXY_PROTOCOLS)}, or None")
    if value is not None and value not in PROXY_PROTOCOLS:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(PROXY_PROTOCOLS)}")
    return value


def proxy(value: object, name: str) -> str | None:
    """Take the URL of a proxy, ``"environment"``, or `None`; no error repeats the URL."""
    if value is None or value == ENVIRONMENT:
        return ENVIRONMENT if value else None
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a URL of a proxy or None, not {_kind(value)}")
    parse_proxy(value, name)
    return value


def local_address(value: object, name: str) -> tuple[str, int] | None:
    """Take a host, or a host and a port."""
    if value is None:
        return None
    expected = "a host, or a tuple of host and port"
    if isinstance(value, str):
        host, port = value, 0
    elif isinstance(value, tuple) and len(value) == _HOST_AND_PORT and isinstance(value[0], str):
        host, port = value[0], _integer(value[1], name, expected)
    else:
        raise _wrong_type(value, name, expected)
    if not host or "\0" in host.lstrip("\0"):
        raise ValueError(f"{name}={value!r} must be a numeric host, or a path for AF_UNIX")
    if not 0 <= port < _PORT_LIMIT:
        raise ValueError(f"{name}={value!r}: the port must be from 0 to {_PORT_LIMIT - 1}")
    return host, port


def socket_options(value: object, name: str) -> tuple[tuple[int, int, int | bytes], ...]:
    """Take one triple of level, name and value, or an iterable of them."""
    expected = "(level, name, value), an int or bytes as value, or an iterable of such"
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | bytearray):
        raise _wrong_type(value, name, expected)
    items = tuple(value)
    if items and isinstance(items[0], int):
        items = (items,)
    for item in items:
        match item:
            case (level, option, setting) if (
                _is_c_int(level)
                and _is_c_int(option)
                and (isinstance(setting, bytes) or _is_c_int(setting))
            ):
                continue
        raise _wrong_type(item, name, expected)
    return tuple((level, option, setting) for level, option, setting in items)


def _is_c_int(value: object) -> bool:
    return isinstance(value, int) and -(2**31) <= value < 2**31


def optional_path(value: object, name: str) -> str | None:
    """Take a path or `None`."""
    if value is None:
        return None
    if not isinstance(value, str | os.PathLike):
        raise _wrong_type(value, name, "a path or None")
    return _path(value, name)


def _path(value: str | os.PathLike[str], name: str) -> str:
    """Return a path as text; content that was passed as `str` is never repeated."""
    path = os.fspath(value)
    if not isinstance(path, str):
        raise TypeError(f"{name} must be a path of text")
    if "-----BEGIN" in path or "\n" in path or "\r" in path or _ENCODED.fullmatch(path):
        raise ValueError(f"{name}: a str is a path, and this one holds content: pass bytes")
    if not path or "\0" in path:
        raise ValueError(f"{name}={path!r} must be a path")
    return path


def _is_cryptography_object(value: object) -> bool:
    return any(base.__module__.startswith("cryptography.") for base in type(value).__mro__)


def _source(value: object, name: str, mark: str, expected: str) -> object:
    """Take a path, content, or an object of ``cryptography`` that has the attribute *mark*."""
    if isinstance(value, str | os.PathLike):
        return _path(value, name)
    if isinstance(value, bytes | bytearray | memoryview):
        if not value:
            raise ValueError(f"{name} must not be empty")
        return bytes(value)
    if _is_cryptography_object(value) and hasattr(value, mark):
        return value
    raise TypeError(f"{name} must be {expected} of cryptography, not {_kind(value)}")


def key_source(value: object, name: str) -> object:
    """Take a path, content, a ``cryptography`` private key or `None`."""
    if value is None:
        return None
    return _source(value, name, "private_bytes", "a path, bytes or a private key")


def certificate_sources(value: object, name: str) -> tuple[object, ...] | None:
    """Take one source of certificates or an iterable of them, or `None`."""
    return _sources(value, name, "not_valid_after_utc", "certificates")


def revocation_list_sources(value: object, name: str) -> tuple[object, ...] | None:
    """Take one source of revocation lists or an iterable of them, or `None`."""
    return _sources(value, name, "next_update_utc", "revocation lists")


def _sources(value: object, name: str, mark: str, kind: str) -> tuple[object, ...] | None:
    expected = f"paths, bytes or {kind}"
    if value is None:
        return None
    if isinstance(value, Mapping):
        raise TypeError(f"{name} must be {expected}, not {_kind(value)}")
    # A revocation list of cryptography can be iterated over.
    if isinstance(value, Iterable) and not (
        isinstance(value, str | bytes | bytearray | memoryview | os.PathLike)
        or _is_cryptography_object(value)
    ):
        sources = tuple(value)
    else:
        sources = (value,)
    if not sources:
        raise ValueError(f"{name} must not be an empty list; None is the default")
    return tuple(_source(source, name, mark, expected) for source in sources)


def password(value: object, name: str) -> bytes | None:
    """Take text or bytes, or `None`; no error shows any of it."""
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{name} cannot be encoded as UTF-8") from None
    if value is None or isinstance(value, bytes):
        return value
    raise TypeError(f"{name} must be str or bytes, not {_kind(value)}")


def verifier(value: object, name: str) -> object:
    """Take `None`, `False` or a callable."""
    if value is None or value is False or callable(value):
        return value
    raise _wrong_type(value, name, "None (verify), False (do not verify) or a callable")


def _names(value: object, name: str) -> tuple[str, ...] | None:
    """Take one name or an iterable of them, each once, or `None`."""
    if value is None:
        return None
    if isinstance(value, str):
        value = (value,)
    elif isinstance(value, bytes) or not isinstance(value, Iterable):
        raise _wrong_type(value, name, "a str or an iterable of str")
    names = tuple(value)
    for item in names:
        if not isinstance(item, str):
            raise _wrong_type(item, name, "a str or an iterable of str")
    if len(set(names)) < len(names):
        raise ValueError(f"{name}={names!r} must list each name once")
    return names


def server_names(value: object, name: str) -> tuple[str, ...] | None:
    """Take host names, the leftmost label possibly ``*``; ``()`` is kept."""
    names = _names(value, name)
    for item in names or ():
        if not is_host_name(item.removeprefix("*.")):
            raise ValueError(f"{name}={item!r} must be a host name")
    return names


def server_identity(value: object, name: str) -> str | None:
    """Take a URI with a scheme and a host or path, a host name, an address, or `None`."""
    if not isinstance(value, str | None):
        raise _wrong_type(value, name, "a name, an address or a URI, or None")
    if value is None or is_ip_address(value):
        return value
    is_name = is_host_name(value) and "/" not in value and ":" not in value
    if not is_name and _URI.fullmatch(value) is None:
        raise ValueError(
            f"{name}={value!r} must be a host name, an address, or a URI such as "
            "spiffe://example.com/web"
        )
    return value


def alpn_names(value: object, name: str) -> tuple[str, ...] | None:
    """Take protocol names of 1 to 255 bytes (RFC 7301, section 3.1)."""
    names = _names(value, name)
    if names == ():
        raise ValueError(f"{name} must not be an empty list; None is the default")
    for item in names or ():
        if not item.isascii() or not 0 < len(item) < _ALPN_LIMIT:
            raise ValueError(f"{name}={item!r} must be 1 to {_ALPN_LIMIT - 1} ASCII characters")
    return names


def tls_version(value: object, name: str) -> ssl.TLSVersion:
    """Take TLS 1.2 or 1.3, as text or of the standard library."""
    if not isinstance(value, str | ssl.TLSVersion):
        raise _wrong_type(value, name, f"one of {', '.join(_VERSIONS)}")
    version = _VERSIONS.get(value) if isinstance(value, str) else value
    if version is None or version not in _VERSIONS.values():
        raise ValueError(f"{name}={value!r} must be one of {', '.join(_VERSIONS)}")
    return version


def optional_tls_version(value: object, name: str) -> ssl.TLSVersion | None:
    """Take what `tls_version` takes, or `None`."""
    return None if value is None else tls_version(value, name)
