"""
The keys of endpoint strings: which there are, how values are read, and what of them is made.

A key is a field of an option record in camelCase, or a socket option by its C name.
Of keys and values comes a record; what is wrong with one is a `ValueError` of one
line that names the key, the value, what is allowed, and what was probably meant.
"""

from __future__ import annotations

import re
import socket as _socket
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, Final, NamedTuple, TypeVar

from .._proxies import has_password, with_password
from .._validation import CERTIFICATE_PROFILES, FAMILIES, PROXY_PROTOCOLS, duration_text, shortened
from ..options import (
    ServerTLSSocketOptions,
    SocketOptions,
    TLSSocketOptions,
    record_fields,
)

__all__ = [
    "DESCRIPTOR",
    "ENDPOINT",
    "PASSWORD_FILE",
    "RELOAD_EVERY",
    "SYSTEMD",
    "TWISTED_KEYS",
    "EndpointKind",
    "bad_value",
    "camel_case",
    "check_keys",
    "further_records",
    "in_terms_of_keys",
    "keys_of",
    "record_beside",
    "record_of",
]

T = TypeVar("T")

_TRUE: Final = frozenset({"yes", "true", "on", "1"})
_FALSE: Final = frozenset({"no", "false", "off", "0"})
_FAMILIES: Final = {family.name.removeprefix("AF_").lower(): family for family in FAMILIES}
_SOCKET_TYPES: Final = {"stream": _socket.SOCK_STREAM}
_LEVELS: Final = {
    "SO": _socket.SOL_SOCKET,
    "TCP": _socket.IPPROTO_TCP,
    "IP": _socket.IPPROTO_IP,
    "IPV6": _socket.IPPROTO_IPV6,
    "UDP": _socket.IPPROTO_UDP,
}
_TEXT_OPTIONS: Final = frozenset({"SO_BINDTODEVICE", "TCP_CONGESTION", "TCP_ULP"})
"""Those whose value is a name: of an interface, or of something in the kernel."""
_OPTION_NAME: Final = re.compile(rf"({'|'.join(_LEVELS)})_[A-Z0-9_]+")
_NO_TEXT: Final = re.compile(rf"[-+]?\d+|{'|'.join(_TRUE | _FALSE)}|", re.ASCII | re.IGNORECASE)
_DIGITS: Final = 5
PASSWORD_FILE: Final = "privateKeyPasswordFile"  # noqa: S105 - a key's name
PROXY_PASSWORD_FILE: Final = "proxyPasswordFile"  # noqa: S105 - a key's name
RELOAD_EVERY: Final = "reloadEvery"
ENDPOINT: Final = "endpoint"
SYSTEMD: Final = "systemd"
DESCRIPTOR: Final = "fd"
_PASSWORD_LIMIT: Final = 4096
"""Bytes: a wrong path, of a device or a log, must not fill the memory."""

_OTHER_KEYS: Final = {
    "node": (False, False),
    "service": (False, False),
    ENDPOINT: (True, False),
    PASSWORD_FILE: (True, False),
    PROXY_PASSWORD_FILE: (False, False),
    RELOAD_EVERY: (True, True),
    SYSTEMD: (False, True),
    DESCRIPTOR: (False, True),
}
"""Keys that stand for no field: whether they are for TLS alone, and for servers alone."""

TWISTED_KEYS: Final = {
    "interface": "node",
    "host": "node",
    "port": "service",
    "timeout": "connectionTimeout",
    "bindAddress": "localAddress",
    "certKey": "certificates",
    "certificate": "certificates",
    "extraCertChain": "certificates",
    "trustRoots": "trustedCertificates",
    "caCertsDir": "trustedCertificates",
    "sslmethod": "minimumVersion",
    "hostname": "sni",
}
"""What keys of Twisted's own endpoint strings are called here: hints, not aliases."""

_NO_KEYS: Final = {
    "handshake": "endpoints always perform the handshake",
    "socketOptions": "each socket option is a key of its own, such as SO_KEEPALIVE=1",
}
"""Why some fields of the records are none."""


def bad_value(key: str, value: str, allowed: str) -> ValueError:
    """Return the error for a value that is not *allowed*."""
    return ValueError(f"{key}={shortened(value)} must be {allowed}")


def _boolean(key: str, value: str) -> bool:
    if value.lower() in _TRUE:
        return True
    if value.lower() in _FALSE:
        return False
    raise bad_value(key, value, "yes or no (also true/false, on/off, 1/0)")


def _integer(key: str, value: str) -> int:
    if not re.fullmatch(r"-?\d{1,18}", value, re.ASCII):
        word = value.lower()
        hint = f"; {int(word in _TRUE)} for {value}" if word in _TRUE | _FALSE else ""
        raise bad_value(key, value, f"an integer{hint}")
    return int(value)


def _choice(choices: Mapping[str, object], prefix: str) -> Callable[[str, str], object]:
    def parse(key: str, value: str) -> object:
        chosen = choices.get(value.lower().removeprefix(prefix))
        if chosen is None:
            raise bad_value(key, value, f"one of {', '.join(choices)}")
        return chosen

    return parse


def _items(key: str, value: str) -> tuple[str, ...]:
    """Split at commas, except those behind a backslash."""
    items = [item.replace("\\,", ",") for item in re.split(r"(?<!\\),", value)]
    if value == "":
        return ()
    if "" in items:
        raise bad_value(key, value, "a list separated by commas, without empty items")
    return tuple(items)


def _some_items(one: str) -> Callable[[str, str], tuple[str, ...]]:
    """Return a parser of at least one item; *one* says what an item is."""

    def parse(key: str, value: str) -> tuple[str, ...]:
        items = _items(key, value)
        if not items:
            raise bad_value(key, value, f"{one}, or several separated by commas")
        return items

    return parse


def _flags(key: str, value: str) -> int:
    flags = 0
    for item in _items(key, value):
        name = item.upper() if item.upper().startswith("AI_") else f"AI_{item.upper()}"
        flag = getattr(_socket, name, None)
        if not isinstance(flag, int):
            raise bad_value(key, value, "names of look-up flags, such as AI_NUMERICHOST")
        flags |= flag
    return flags


def _verifier(key: str, value: str) -> bool:
    if value.lower() != "no":
        raise bad_value(key, value, "no (do not verify), or left out (verify)")
    return False


def _path(key: str, value: str) -> str:
    if not value:
        raise bad_value(key, value, "a path")
    return value


def _local_address(key: str, value: str) -> tuple[str, int]:
    matched = re.fullmatch(
        r"\[(?P<v6>[^]]*)\](?::(?P<p6>\d{1,5}))?", value, re.ASCII
    ) or re.fullmatch(r"(?P<v4>[^:]+):(?P<p4>\d{1,5})", value, re.ASCII)
    if not value:
        raise bad_value(key, value, "a numeric address, or one and a port")
    if matched is None:
        return value, 0
    groups = matched.groupdict()
    host = groups.get("v6") or groups.get("v4") or ""
    return host, int(groups.get("p6") or groups.get("p4") or 0)


def proxy_of(key: str, url: str, file_key: str, path: str | None) -> str:
    """
    Return the URL of a proxy, with the password that the file at *path* holds if there is one.

    Raises:
        ValueError: The URL has a password, or no user beside a file; or that cannot be read.
    """
    if has_password(url):
        raise ValueError(f"{key}: a password never stands in a string; use {file_key}")
    return url if path is None else with_password(url, _read_password(file_key, path), file_key)


_PARSERS: Final[dict[str, Callable[[str, str], object]]] = {
    "boolean": _boolean,
    "certificate_profile": _choice({name: name for name in CERTIFICATE_PROFILES}, ""),
    "duration": duration_text,
    "family": _choice(_FAMILIES, "af_"),
    "flags": _flags,
    "integer": _integer,
    "local_address": _local_address,
    "names": _items,
    "path": _path,
    "paths": _some_items("a path"),
    "protocols": _some_items("a protocol"),
    "proxy_protocol": _choice({name: name for name in PROXY_PROTOCOLS}, ""),
    "proxy": lambda key, value: proxy_of(key, value, PROXY_PASSWORD_FILE, None),
    "socktype": _choice(_SOCKET_TYPES, "sock_"),
    "text": lambda _key, value: value,
    "verifier": _verifier,
    # The number alone is customary elsewhere, and on our own command line.
    "version": lambda _key, value: re.sub(r"(?i)^(tlsv?)?(?=\d)", "TLSv", value),
}
"""How the text of each kind of field is read; `twisted_netsock.options` has the kinds."""


def camel_case(field: str) -> str:
    """Return the key of a field: ``connection_timeout`` is ``connectionTimeout``."""
    first, *rest = field.split("_")
    return first + "".join(word.capitalize() for word in rest)


def keys_of(record: type[SocketOptions]) -> dict[str, tuple[str, Callable[[str, str], object]]]:
    """Return the keys of a class of records, each with its field and its parser."""
    return {
        camel_case(field.name): (field.name, _PARSERS[field.metadata["kind"]])
        for field in record_fields(record)
        if field.metadata["kind"] is not None
    }


class EndpointKind(NamedTuple):
    """
    Which endpoints a string may describe, by its prefix and its side.

    Attributes:
        tls: Those of ``netsock-tls``.
        server: Those that listen.
    """

    tls: bool
    server: bool

    @property
    def prefix(self) -> str:
        """What the string begins with."""
        return "netsock-tls" if self.tls else "netsock"

    @property
    def record(self) -> type[SocketOptions]:
        """The class of the options."""
        if not self.tls:
            return SocketOptions
        return ServerTLSSocketOptions if self.server else TLSSocketOptions

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key that there is, beside the names of socket options."""
        others = (
            key
            for key, (for_tls, for_servers) in _OTHER_KEYS.items()
            if (self.tls or not for_tls) and (self.server or not for_servers)
        )
        return (*keys_of(self.record), *others)


_ALL_FIELDS: Final = {
    field.name: camel_case(field.name) for field in record_fields(ServerTLSSocketOptions)
}
_IN_STRINGS: Final = {
    **{name: key for name, key in _ALL_FIELDS.items() if "_" in name},
    "=True": "=yes",
    "=False": "=no",
    "TLSv1_2": "TLSv1.2",
    "TLSv1_3": "TLSv1.3",
    "AF_UNIX": "unix",
    "be None": "be left out",
}
"""What records say, and how it is said of strings."""

_SAID: Final = re.compile(
    r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\b(" + "|".join(_IN_STRINGS) + r")\b"
)
"""One of these, or a value in quotes, which is left alone."""


def _in_keys(message: str) -> str:
    """Rewrite a record's error in terms of keys."""
    return _SAID.sub(
        lambda matched: _IN_STRINGS[matched[1]] if matched[1] else matched[0], message
    )


def _unknown(kind: EndpointKind, key: str, value: str) -> ValueError:
    """Say that there is no such key, and which was probably meant."""
    if key in TWISTED_KEYS:
        meant = f"here it is called {TWISTED_KEYS[key]}"
    elif key in _NO_KEYS:
        meant = _NO_KEYS[key]
    elif key in kind._replace(server=True).keys:
        meant = "it is for servers"
    elif key in EndpointKind(tls=True, server=True).keys:
        meant = "it is for netsock-tls"
    elif _OPTION_NAME.fullmatch(key):
        meant = (
            "Python knows no such socket option here; its number serves, too, as in "
            f"{key.partition('_')[0]}_31=…"
        )
    else:
        known = {name.lower(): name for name in kind.keys}
        near = get_close_matches(key.lower(), known, n=1, cutoff=0.7)
        if near:
            meant = f"did you mean {known[near[0]]}?"
        else:
            meant = f"known are {', '.join(sorted(known.values()))}"
    if "password" in key.lower() and key not in (PASSWORD_FILE, PROXY_PASSWORD_FILE):
        # Whatever it is, it may be one.
        return ValueError(f"unknown key {_shown(key)}: passwords never stand here; {meant}")
    return ValueError(f"unknown key {_shown(key)}={shortened(value)}: {meant}")


def _shown(key: str) -> str:
    """Return a key as errors show it: on one line, whatever it holds."""
    return key if key.isidentifier() else repr(key)


def _socket_option(key: str, value: str) -> tuple[int, int, int | bytes] | None:
    """
    Return a socket option by its C name, or `None` if *key* is none.

    Where Python lacks the name, the number stands in its place, ``TCP_31`` for ``TCP_ULP``:
    what type its value has is known by the value alone then.
    """
    matched = _OPTION_NAME.fullmatch(key)
    if matched is None:
        return None
    digits = key.partition("_")[2]
    is_number = digits.isdigit() and len(digits) <= _DIGITS
    number = int(digits) if is_number else getattr(_socket, key, None)
    if not isinstance(number, int):
        return None
    if key in _TEXT_OPTIONS or (is_number and not _NO_TEXT.fullmatch(value)):
        if not value:
            raise bad_value(key, value, "a name")
        return _LEVELS[matched[1]], number, value.encode()
    setting = _integer(key, value)
    if not -(2**31) <= setting < 2**31:
        raise bad_value(key, value, "an integer of 32 bits")
    return _LEVELS[matched[1]], number, setting


def _read_password(key: str, path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            password = file.read(_PASSWORD_LIMIT + 1).rstrip(b"\r\n")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"{key}={path!r} cannot be read: {why}") from None
    if not 0 < len(password) <= _PASSWORD_LIMIT:
        raise ValueError(f"{key}={path!r} must hold a password of 1 to {_PASSWORD_LIMIT} bytes")
    return password


def check_keys(kind: EndpointKind, given: dict[str, str]) -> None:
    """Refuse keys that there are not."""
    known = kind.keys
    for key, value in given.items():
        if key not in known and _socket_option(key, value) is None:
            raise _unknown(kind, key, value)


def record_of(record: type[SocketOptions], given: dict[str, str]) -> SocketOptions:
    """Build a record from keys and values."""
    keys = keys_of(record)
    fields: dict[str, Any] = {}
    socket_options: list[tuple[int, int, int | bytes]] = []
    proxy: str | None = None
    for key, value in given.items():
        if key in keys:
            field, parse = keys[key]
            fields[field] = parse(key, value)
        elif key == PASSWORD_FILE:
            fields["private_key_password"] = _read_password(key, value)
        elif key == PROXY_PASSWORD_FILE:
            proxy = proxy_of("proxy", given.get("proxy", ""), key, value)
        else:
            option = _socket_option(key, value)
            assert option is not None  # `check_keys` has seen to that.
            socket_options.append(option)
    if proxy is not None:
        fields["proxy"] = proxy
    return in_terms_of_keys(lambda: record(**fields, socket_options=socket_options))


_NUMBERED: Final = re.compile(r"(\w*[a-zA-Z])([2-9]|[1-9]\d)", re.ASCII)
"""A key of a further record of a server: ``certificates2`` is the second one's."""
_OWN_KEYS: Final = ("certificates", "privateKey", PASSWORD_FILE, "sni")
"""What a further record does not share with the first one where it says nothing of it."""


def further_records(kind: EndpointKind, given: dict[str, str]) -> list[dict[str, str]]:
    """
    Take the keys of further records off *given*, and return those of each, by number.

    Only what may differ between the records of one server has numbers; what a record does not
    say is as the first one says.
    """
    if not (kind.tls and kind.server):
        return []
    several = {
        camel_case(field.name)
        for field in record_fields(kind.record)
        if field.metadata["of_names"]
    }
    numbered: dict[int, dict[str, str]] = {}
    for key in list(given):
        matched = _NUMBERED.fullmatch(key)
        if matched is not None and matched[1] in {*several, PASSWORD_FILE}:
            numbered.setdefault(int(matched[2]), {})[matched[1]] = given.pop(key)
    return [numbered[number] for number in sorted(numbered)]


def record_beside(
    record: type[SocketOptions], first: dict[str, str], own: dict[str, str]
) -> SocketOptions:
    """Build a further record of its *own* keys, and of what the *first* one says."""
    shared = {key: value for key, value in first.items() if key not in _OWN_KEYS}
    return record_of(record, {**shared, **own})


def in_terms_of_keys(make: Callable[[], T]) -> T:
    """Call *make*, and raise its errors in terms of keys."""
    try:
        return make()
    except (TypeError, ValueError) as error:
        raise ValueError(_in_keys(str(error))) from None
