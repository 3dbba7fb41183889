"""
Endpoint strings: ``netsock:`` and ``netsock-tls:``, from their parts to endpoints.

`twisted_netsock.string_keys` reads what stands behind keys. What is wrong with a
string is a `ValueError` of one line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from twisted.internet.endpoints import clientFromString, serverFromString

from ._validation import duration_text
from .activation import activated_sockets
from .client_endpoints import ClientEndpoint, client_endpoint
from .names import is_ip_address
from .options import OF_SOCKETS, ServerTLSSocketOptions, SocketOptions, TLSSocketOptions
from .server_endpoints import ServerEndpoint, server_endpoint
from .string_keys import (
    ENDPOINT,
    RELOAD_EVERY,
    SYSTEMD,
    bad_value,
    camel_case,
    check_keys,
    in_terms_of_keys,
    record_of,
)

__all__ = ["parse_client", "parse_server"]

T = TypeVar("T")

_OF_BOUND_SOCKETS: Final = {
    camel_case(field) for field in OF_SOCKETS - {"proxy_protocol", "socket_options"}
}
"""Keys that say how a socket is bound."""


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
        raise bad_value(ENDPOINT, text, "an endpoint string, with its colons escaped")
    try:
        return parse(text)
    except Exception as error:  # noqa: BLE001 - every parser has its own way to fail
        kind = text.partition(":")[0]
        why = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{ENDPOINT}={kind + ':…'!r} cannot be used: {why}") from None


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
    layered = tls and ENDPOINT in given
    names = ("node",) if unix or layered else ("node", "service")
    if layered:
        form = f"write {prefix}:NODE:endpoint=ENDPOINT:KEY=…, with NODE to verify"
    elif unix:
        form = f"write {prefix}:PATH:aiFamily=unix"
    else:
        form = f"write {prefix}:NODE:SERVICE:KEY=…"
    record = TLSSocketOptions if tls else SocketOptions
    place = _place(args, given, names, form)
    check_keys(record, given, ("node", "service", *((ENDPOINT,) if tls else ())))
    for name in names:
        if not place.get(name):
            raise ValueError(f"{name} is missing: {form}")
    endpoint = None
    if layered:
        endpoint = _inner(given.pop(ENDPOINT), lambda text: clientFromString(reactor, text))
    options = record_of(record, given)
    return in_terms_of_keys(
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
    layered = tls and ENDPOINT in given
    names: tuple[str, ...] = ("node",) if unix else ("service",)
    if layered:
        names, form = (), f"write {prefix}:endpoint=ENDPOINT:KEY=…"
    elif unix:
        form = f"write {prefix}:PATH:aiFamily=unix"
    else:
        form = f"write {prefix}:SERVICE:node=ADDRESS:KEY=…, with node= to bind one address"
    record = ServerTLSSocketOptions if tls else SocketOptions
    place = _place(args, given, names, form)
    extra = ("node", "service", SYSTEMD, *((RELOAD_EVERY, ENDPOINT) if tls else ()))
    check_keys(record, given, extra)
    if not unix and not layered and args and args[0].startswith("["):
        raise ValueError(f"{place['service']!r} is no service: {form}")
    activated = given.pop(SYSTEMD, None)
    if activated is not None:
        _check_activated(activated, place, given, layered=layered)
        names = ()
    for name in names:
        if not place.get(name):
            raise ValueError(f"{name} is missing: {form}")
    inner = None
    if layered:
        inner = _inner(given.pop(ENDPOINT), lambda text: serverFromString(reactor, text))
    reload_every = None
    if tls and RELOAD_EVERY in given:
        reload_every = duration_text(RELOAD_EVERY, given.pop(RELOAD_EVERY))
    options = record_of(record, given)
    endpoint = in_terms_of_keys(
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


def _check_activated(
    name: str, place: dict[str, str], given: dict[str, str], *, layered: bool
) -> None:
    """Refuse what would bind a socket beside one that is bound already."""
    if not name:
        raise ValueError(f"{SYSTEMD}={name!r} must be the name or the number of a socket")
    for key, value in place.items():
        raise ValueError(f"{key}={value!r}: with {SYSTEMD}= the socket is bound already")
    if layered:
        raise ValueError(f"{ENDPOINT}: with {SYSTEMD}= there is a socket to listen on already")
    for key, value in given.items():
        if key in _OF_BOUND_SOCKETS:
            raise ValueError(f"{key}={value!r}: with {SYSTEMD}= the socket is bound already")
