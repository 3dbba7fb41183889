"""
Endpoint strings: ``netsock:`` and ``netsock-tls:``, to options, to endpoints.

The keys are the fields of the option records in camelCase, plus socket options
by their C names. The parsers raise a `ValueError` of one line that names the
key, the value, what is allowed, and what was probably meant.
"""

from __future__ import annotations

import re
import socket as _socket
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any, Final, TypeVar

from twisted.internet.endpoints import clientFromString, serverFromString

from ._validation import duration_text, shortened
from .activation import activated_sockets
from .client_endpoints import ClientEndpoint, client_endpoint
from .names import is_ip_address
from .options import (
    ServerTLSSocketOptions,
    SocketOptions,
    TLSSocketOptions,
    record_fields,
)
from .server_endpoints import ServerEndpoint, server_endpoint

__all__ = ["parse_client", "parse_server"]

T = TypeVar("T")

_TRUE: Final = frozenset({"yes", "true", "on", "1"})
_FALSE: Final = frozenset({"no", "false", "off", "0"})
_FAMILIES: Final = {
    "unspec": _socket.AF_UNSPEC,
    "inet": _socket.AF_INET,
    "inet6": _socket.AF_INET6,
    "unix": _socket.AF_UNIX,
}
_SOCKET_TYPES: Final = {"stream": _socket.SOCK_STREAM}
_OPTION_NAME: Final = re.compile(r"(SO|TCP|IP|IPV6|UDP)_[A-Z0-9_]+")
_LEVELS: Final = {
    "SO": _socket.SOL_SOCKET,
    "TCP": _socket.IPPROTO_TCP,
    "IP": _socket.IPPROTO_IP,
    "IPV6": _socket.IPPROTO_IPV6,
    "UDP": _socket.IPPROTO_UDP,
}
_PASSWORD_FILE: Final = "privateKeyPasswordFile"  # noqa: S105 - a key's name
_RELOAD_EVERY: Final = "reloadEvery"
_ENDPOINT: Final = "endpoint"
_SYSTEMD: Final = "systemd"
_PASSWORD_LIMIT: Final = 4096

_TWISTED_KEYS: Final = {
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
    "handshake": "endpoints always shake hands",
    "socketOptions": "each socket option is a key of its own, such as SO_KEEPALIVE=1",
}
"""Why some fields of the records are none."""


def _bad(key: str, value: str, allowed: str) -> ValueError:
    return ValueError(f"{key}={shortened(value)} must be {allowed}")


def _boolean(key: str, value: str) -> bool:
    if value.lower() in _TRUE:
        return True
    if value.lower() in _FALSE:
        return False
    raise _bad(key, value, "yes or no (also true/false, on/off, 1/0)")


def _integer(key: str, value: str) -> int:
    if not re.fullmatch(r"-?\d{1,18}", value, re.ASCII):
        word = value.lower()
        hint = f"; {int(word in _TRUE)} for {value}" if word in _TRUE | _FALSE else ""
        raise _bad(key, value, f"an integer{hint}")
    return int(value)


def _choice(choices: dict[str, Any], prefix: str) -> Callable[[str, str], Any]:
    def parse(key: str, value: str) -> Any:
        chosen = choices.get(value.lower().removeprefix(prefix))
        if chosen is None:
            raise _bad(key, value, f"one of {', '.join(choices)}")
        return chosen

    return parse


def _items(key: str, value: str) -> tuple[str, ...]:
    """Split at commas, except those behind a backslash."""
    items = [item.replace("\\,", ",") for item in re.split(r"(?<!\\),", value)]
    if value == "":
        return ()
    if "" in items:
        raise _bad(key, value, "a list separated by commas, without empty items")
    return tuple(items)


def _flags(key: str, value: str) -> int:
    flags = 0
    for item in _items(key, value):
        name = item.upper() if item.upper().startswith("AI_") else f"AI_{item.upper()}"
        flag = getattr(_socket, name, None)
        if not isinstance(flag, int):
            raise _bad(key, value, "names of look-up flags, such as AI_NUMERICHOST")
        flags |= flag
    return flags


def _verifier(key: str, value: str) -> bool:
    if value.lower() != "no":
        raise _bad(key, value, "no (do not verify), or left out (verify)")
    return False


def _names(key: str, value: str) -> tuple[str, ...]:
    names = _items(key, value)
    if not names and key == "alpn":
        raise _bad(key, value, "a protocol, or several separated by commas")
    return names


def _path(key: str, value: str) -> str:
    if not value:
        raise _bad(key, value, "a path")
    return value


def _paths(key: str, value: str) -> tuple[str, ...]:
    paths = _items(key, value)
    if not paths:
        raise _bad(key, value, "a path, or several separated by commas")
    return paths


def _local_address(key: str, value: str) -> tuple[str, int]:
    matched = re.fullmatch(
        r"\[(?P<v6>[^]]*)\](?::(?P<p6>\d{1,5}))?", value, re.ASCII
    ) or re.fullmatch(r"(?P<v4>[^:]+):(?P<p4>\d{1,5})", value, re.ASCII)
    if not value:
        raise _bad(key, value, "a numeric address, or one and a port")
    if matched is None:
        return value, 0
    groups = matched.groupdict()
    host = groups.get("v6") or groups.get("v4") or ""
    return host, int(groups.get("p6") or groups.get("p4") or 0)


_PARSERS: Final[dict[str, Callable[[str, str], Any]]] = {
    "boolean": _boolean,
    "duration": duration_text,
    "family": _choice(_FAMILIES, "af_"),
    "flags": _flags,
    "integer": _integer,
    "local_address": _local_address,
    "names": _names,
    "path": _path,
    "paths": _paths,
    "proxy_protocol": _choice({"v1": "v1", "v2": "v2", "any": "any"}, ""),
    "socktype": _choice(_SOCKET_TYPES, "sock_"),
    "verifier": _verifier,
    "version": lambda _key, value: value,
}
"""How the text of each kind of field is read; `twisted_netsock.options` has the kinds."""


def camel_case(field: str) -> str:
    """Return the key of a field: ``connection_timeout`` is ``connectionTimeout``."""
    first, *rest = field.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _keys(record: type[SocketOptions]) -> dict[str, tuple[str, Callable[[str, str], Any]]]:
    """Return the keys of a class of records, each with its field and its parser."""
    return {
        camel_case(field.name): (field.name, _PARSERS[field.metadata["kind"]])
        for field in record_fields(record)
        if field.metadata["kind"] is not None
    }


_ALL_FIELDS: Final = {
    field.name: camel_case(field.name) for field in record_fields(ServerTLSSocketOptions)
}
_IN_STRINGS: Final = {
    **{name: key for name, key in _ALL_FIELDS.items() if "_" in name},
    "=True": "=yes",
    "=False": "=no",
    "TLSv1_2": "TLSv1.2",
    "TLSv1_3": "TLSv1.3",
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


def _unknown(
    key: str, value: str, record: type[SocketOptions], others: Iterable[str]
) -> ValueError:
    """Say that there is no such key, and which was probably meant."""
    servers_only = {_SYSTEMD}
    tls_only = {*_keys(ServerTLSSocketOptions), _PASSWORD_FILE, _RELOAD_EVERY, _ENDPOINT}
    if key in _TWISTED_KEYS:
        meant = f"here it is called {_TWISTED_KEYS[key]}"
    elif key in _NO_KEYS:
        meant = _NO_KEYS[key]
    elif key in tls_only and not issubclass(record, TLSSocketOptions):
        meant = "it is for netsock-tls"
    elif key in tls_only or key in servers_only:
        meant = "it is for servers"
    elif _OPTION_NAME.fullmatch(key):
        meant = "this system has no such socket option"
    else:
        known = {name.lower(): name for name in others}
        near = get_close_matches(key.lower(), known, n=1, cutoff=0.7)
        if near:
            meant = f"did you mean {known[near[0]]}?"
        else:
            meant = f"known are {', '.join(sorted(known.values()))}"
    if "password" in key.lower() and key != _PASSWORD_FILE:
        # Whatever it is, it may be one.
        return ValueError(f"unknown key {_shown(key)}: passwords never stand here; {meant}")
    return ValueError(f"unknown key {_shown(key)}={shortened(value)}: {meant}")


def _shown(key: str) -> str:
    """Return a key as it is told: on one line, whatever it holds."""
    return key if key.isidentifier() else repr(key)


def _socket_option(key: str, value: str) -> tuple[int, int, int] | None:
    """Return a socket option by its C name, or `None` if *key* is none."""
    matched = _OPTION_NAME.fullmatch(key)
    number = getattr(_socket, key, None)
    if matched is None or not isinstance(number, int):
        return None
    setting = _integer(key, value)
    if not -(2**31) <= setting < 2**31:
        raise _bad(key, value, "an integer of 32 bits")
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


def _options(record: type[SocketOptions], given: dict[str, str]) -> SocketOptions:
    """Build a record from keys and values."""
    keys = _keys(record)
    fields: dict[str, Any] = {}
    socket_options: list[tuple[int, int, int]] = []
    for key, value in given.items():
        if key in keys:
            field, parse = keys[key]
            fields[field] = parse(key, value)
        elif key == _PASSWORD_FILE:
            fields["private_key_password"] = _read_password(key, value)
        else:
            option = _socket_option(key, value)
            assert option is not None
            socket_options.append(option)
    return _build(lambda: record(**fields, socket_options=socket_options))


def _check_keys(record: type[SocketOptions], given: dict[str, str], extra: Sequence[str]) -> None:
    """Refuse keys that there are not."""
    password = (_PASSWORD_FILE,) if issubclass(record, TLSSocketOptions) else ()
    known = (*_keys(record), *extra, *password)
    for key, value in given.items():
        if key not in known and _socket_option(key, value) is None:
            raise _unknown(key, value, record, known)


def _join_brackets(args: Sequence[str]) -> list[str]:
    """Put an IPv6 literal in brackets, which the tokenizer took apart, together again."""
    joined: list[str] = []
    open_literal = False
    for arg in args:
        if open_literal:
            joined[-1] += ":" + arg
        else:
            joined.append(arg)
        open_literal = joined[-1].startswith("[") and not joined[-1].endswith("]")
    if open_literal:
        raise ValueError(f"{joined[-1]!r}: a bracket is opened and never closed")
    return [arg[1:-1] if arg.startswith("[") and arg.endswith("]") else arg for arg in joined]


def _check_stray_bracket(key: str, value: str, args: Sequence[str]) -> None:
    """Refuse an IPv6 literal with brackets behind a key: it was cut at its first colon."""
    if value.startswith("["):
        literal = _literal(value, args)
        escaped = literal.replace(":", "\\:")
        raise ValueError(
            f"{key}={value!r}: behind a key an IPv6 address is written without brackets and "
            f"with its colons escaped, such as {key}={escaped}"
        )


def _literal(value: str, args: Sequence[str]) -> str:
    """Put an address together again whose rest stands among the positional parts."""
    if value.endswith("]"):
        return value[1:-1]
    for count in range(1, len(args) + 1):
        whole = ":".join((value, *args[-count:]))
        if whole.endswith("]") and is_ip_address(whole[1:-1]):
            return whole[1:-1]
    return "::1"


def _place(
    args: Sequence[str], kwargs: dict[str, str], names: Sequence[str], form: str
) -> dict[str, str]:
    """Take node and service, positional or spelled out, off *kwargs*."""
    if _is_unix(kwargs):
        # A path may begin with a bracket.
        positional = list(args)
    else:
        for key in ("node", "service", "localAddress"):
            if key in kwargs and not (key == "localAddress" and "]" in kwargs[key]):
                _check_stray_bracket(key, kwargs[key], args)
        positional = _join_brackets(args)
    if len(positional) > len(names):
        raise ValueError(f"{':'.join(positional)!r}: too many parts without a key; {form}")
    place: dict[str, str] = {}
    for name, value in zip(names, positional, strict=False):
        if name in kwargs:
            raise ValueError(f"{name} is given twice: {value!r} and {kwargs[name]!r}")
        place[name] = value
    for name in ("node", "service"):
        if name in kwargs:
            place[name] = kwargs.pop(name)
    return place


def _is_unix(kwargs: dict[str, str]) -> bool:
    return kwargs.get("aiFamily", "").lower().removeprefix("af_") == "unix"


def _inner(text: str, parse: Callable[[str], T]) -> T:
    """
    Make the endpoint that a string in a string describes.

    What is wrong with it is told, and of the string itself only the type: the rest
    may hold what nobody should read.
    """
    if not text:
        raise _bad(_ENDPOINT, text, "an endpoint string, with its colons escaped")
    try:
        return parse(text)
    except Exception as error:  # noqa: BLE001 - every parser has its own way to fail
        kind = text.partition(":")[0]
        why = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{_ENDPOINT}={kind + ':…'!r} cannot be used: {why}") from None


def parse_client(
    reactor: Any, tls: bool, args: Sequence[str], kwargs: dict[str, str]
) -> ClientEndpoint:
    """
    Make a client endpoint of the parts of a string.

    Args:
        reactor: For the endpoint.
        tls: Whether the prefix was ``netsock-tls``.
        args: The positional parts: node and service.
        kwargs: The others.

    Raises:
        ValueError: Something is wrong; one line that says what.
    """
    given = dict(kwargs)
    prefix = "netsock-tls" if tls else "netsock"
    unix = _is_unix(given)
    layered = tls and _ENDPOINT in given
    names = ("node",) if unix or layered else ("node", "service")
    if layered:
        form = f"write {prefix}:NODE:endpoint=ENDPOINT:KEY=…, with NODE to verify"
    elif unix:
        form = f"write {prefix}:PATH:aiFamily=unix"
    else:
        form = f"write {prefix}:NODE:SERVICE:KEY=…"
    record = TLSSocketOptions if tls else SocketOptions
    place = _place(args, given, names, form)
    _check_keys(record, given, ("node", "service", *((_ENDPOINT,) if tls else ())))
    for name in names:
        if not place.get(name):
            raise ValueError(f"{name} is missing: {form}")
    endpoint = None
    if layered:
        endpoint = _inner(given.pop(_ENDPOINT), lambda text: clientFromString(reactor, text))
    options = _options(record, given)
    return _build(
        lambda: client_endpoint(
            reactor, place["node"], place.get("service"), options, endpoint=endpoint
        )
    )


def parse_server(
    reactor: Any, tls: bool, args: Sequence[str], kwargs: dict[str, str]
) -> ServerEndpoint:
    """
    Make a server endpoint of the parts of a string.

    Args:
        reactor: For the endpoint.
        tls: Whether the prefix was ``netsock-tls``.
        args: The positional part: the service, or the path of a UNIX socket.
        kwargs: The others.

    Raises:
        ValueError: Something is wrong; one line that says what.
    """
    given = dict(kwargs)
    prefix = "netsock-tls" if tls else "netsock"
    unix = _is_unix(given)
    layered = tls and _ENDPOINT in given
    names: tuple[str, ...] = ("node",) if unix else ("service",)
    if layered:
        names, form = (), f"write {prefix}:endpoint=ENDPOINT:KEY=…"
    elif unix:
        form = f"write {prefix}:PATH:aiFamily=unix"
    else:
        form = f"write {prefix}:SERVICE:node=ADDRESS:KEY=…, with node= to bind one address"
    record = ServerTLSSocketOptions if tls else SocketOptions
    place = _place(args, given, names, form)
    extra = ("node", "service", _SYSTEMD, *((_RELOAD_EVERY, _ENDPOINT) if tls else ()))
    _check_keys(record, given, extra)
    if not unix and not layered and args and args[0].startswith("["):
        raise ValueError(f"{place['service']!r} is no service: {form}")
    activated = given.pop(_SYSTEMD, None)
    if activated is not None:
        _check_activated(activated, place, unix=unix, layered=layered)
        names = ()
    for name in names:
        if not place.get(name):
            raise ValueError(f"{name} is missing: {form}")
    inner = None
    if layered:
        inner = _inner(given.pop(_ENDPOINT), lambda text: serverFromString(reactor, text))
    reload_every = None
    if tls and _RELOAD_EVERY in given:
        reload_every = duration_text(_RELOAD_EVERY, given.pop(_RELOAD_EVERY))
    options = _options(record, given)
    endpoint = _build(
        lambda: server_endpoint(
            reactor,
            place.get("node"),
            place.get("service") if activated is None else 0,
            options,
            reload_every=reload_every,
            endpoint=inner,
        )
    )
    if activated is None:
        return endpoint
    # What the process was started with shows when it listens, not when a string is checked.
    return endpoint.adopting(partial(activated_sockets, activated))


def _check_activated(name: str, place: dict[str, str], *, unix: bool, layered: bool) -> None:
    """Refuse what would bind a socket beside one that is bound already."""
    if not name:
        raise ValueError(f"{_SYSTEMD}={name!r} must be the name or the number of a socket")
    for key, value in place.items():
        raise ValueError(f"{key}={value!r}: with {_SYSTEMD}= the socket is bound already")
    if unix:
        raise ValueError(f"aiFamily: with {_SYSTEMD}= the socket has its family already")
    if layered:
        raise ValueError(f"{_ENDPOINT}: with {_SYSTEMD}= there is a socket to listen on already")


def _build(make: Callable[[], T]) -> T:
    """Call *make*, and tell its errors in terms of keys."""
    try:
        return make()
    except (TypeError, ValueError) as error:
        raise ValueError(_in_keys(str(error))) from None
