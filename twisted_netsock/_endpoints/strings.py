"""
Endpoint strings: ``netsock:`` and ``netsock-tls:``, from their parts to endpoints.

`twisted_netsock._endpoints.string_keys` reads what stands behind keys. What is wrong with a
string is a `ValueError` of one line.
"""

from __future__ import annotations

import re
import socket as _socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from difflib import get_close_matches
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from twisted.internet.endpoints import clientFromString, quoteStringArgument, serverFromString
from twisted.internet.interfaces import (
    IStreamClientEndpointStringParserWithReactor,
    IStreamServerEndpointStringParser,
)
from twisted.plugin import getPlugins

from .._hostnames import is_ip_address
from .._net.activation import activated_sockets, adopted_sockets
from .._validation import duration_text
from ..errors import SocketBindError
from ..options import OF_SOCKETS
from .client import ClientEndpoint, client_endpoint
from .server import ServerEndpoint, server_endpoint
from .string_keys import (
    DESCRIPTOR,
    ENDPOINT,
    RELOAD_EVERY,
    SYSTEMD,
    EndpointKind,
    bad_value,
    camel_case,
    check_keys,
    further_records,
    in_terms_of_keys,
    record_beside,
    record_of,
)

__all__ = ["endpoint_from", "parse_client", "parse_server"]

T = TypeVar("T")

_OF_BOUND_SOCKETS: Final = {
    camel_case(field) for field in OF_SOCKETS if field not in ("proxy_protocol", "socket_options")
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
        if any(part.startswith("//") for part in positional):
            # Of a URL that was cut at its colons, and may hold a password.
            raise ValueError(
                "the colons of a URL are escaped in a string, such as proxy=socks5\\://HOST\\:PORT"
            )
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


class _Parts(NamedTuple):
    """
    A string, taken apart; of its keys each is one that there is.

    Attributes:
        names: What has no key in a string like this, in order.
        form: How one is written, for errors.
        place: Node and service, those that are given.
        given: All other keys, with their values.
    """

    names: tuple[str, ...]
    form: str
    place: dict[str, str]
    given: dict[str, str]

    def check_place(self) -> None:
        """Refuse a string that lacks one of the *names*."""
        for name in self.names:
            if not self.place.get(name):
                hint = "; a path needs aiFamily=unix" if "/" in self.place.get("node", "") else ""
                raise ValueError(f"{name} is missing: {self.form}{hint}")


def _take_apart(kind: EndpointKind, args: Sequence[str], kwargs: dict[str, str]) -> _Parts:
    given = dict(kwargs)
    names: tuple[str, ...]
    if kind.tls and ENDPOINT in given:
        if kind.server:
            names, form = (), "endpoint=ENDPOINT:KEY=…"
        else:
            names, form = ("node",), "NODE:endpoint=ENDPOINT:KEY=…, with NODE to verify"
    elif _is_unix(given):
        names, form = ("node",), "PATH:aiFamily=unix"
    elif kind.server:
        names, form = ("service",), "SERVICE:node=ADDRESS:KEY=…, with node= to bind one address"
    else:
        names, form = ("node", "service"), "NODE:SERVICE:KEY=…"
    form = f"write {kind.prefix}:{form}"
    place = _place(args, given, names, form)
    check_keys(kind, given)
    return _Parts(names, form, place, given)


def endpoint_from(make: Callable[[Any, str], T], reactor: object, text: str) -> T:
    """
    Make an endpoint of what a user wrote.

    Args:
        make: `clientFromString` or `serverFromString`.
        reactor: For the endpoint.
        text: The endpoint string; where it has no type that there is, the error has what was
            probably meant.

    Raises:
        ValueError: Something is wrong; so say our parsers, and Twisted. Others raise what
            they like.
    """
    try:
        return make(reactor, text)
    except ValueError as error:
        kind = text.partition(":")[0].lower()
        known = _types(make)
        if kind in known:
            raise
        hint = _near(kind, known) or _place_meant(make, reactor, text)
        raise ValueError(f"{error}; {hint}") from None


def _types(make: object) -> set[str]:
    """Return the types of endpoints that *make* knows."""
    parsers: list[IStreamClientEndpointStringParserWithReactor | IStreamServerEndpointStringParser]
    if make is serverFromString:
        parsers = [*getPlugins(IStreamServerEndpointStringParser)]
    else:
        parsers = [*getPlugins(IStreamClientEndpointStringParserWithReactor)]
    # Twisted's own first ones are no plugins.
    return {"tcp", "ssl", "unix", *(each.prefix.lower() for each in parsers)}


def _near(kind: str, known: Iterable[str]) -> str:
    near = get_close_matches(kind, known, n=1, cutoff=0.8)
    return f"did you mean {near[0]}:?" if near else ""


def _place_meant(make: Callable[[Any, str], object], reactor: object, text: str) -> str:
    """Say how a place is written that stands without a type, by trying what it may mean."""
    scheme, is_url, rest = text.partition("://")
    where = rest.partition("/")[0] if is_url else text
    host, _, port = where.rpartition(":")
    host = quoteStringArgument(host.removeprefix("[").removesuffix("]"))
    if "/" in where:
        meant = [f"netsock:{where}:aiFamily=unix"]
    elif make is serverFromString:
        meant = [f"netsock:{where}", f"netsock:{port}:node={host}", f"netsock:{port}"]
    else:
        usual = {"https": 443, "wss": 443, "http": 80, "ws": 80}.get(scheme, "")
        meant = [f"netsock:{where}", f"netsock:{where}:{usual}", f"netsock:localhost:{where}"]
        if not where[:1].isdigit():
            meant.pop()
    for each in meant:
        with suppress(ValueError):
            make(reactor, each)
            return f"write {each}, or the same with netsock-tls for TLS"
    form = "netsock:PORT" if make is serverFromString else "netsock:HOST:PORT"
    return f"an endpoint begins with its type, as in {form}"


def _inner(given: dict[str, str], parse: partial[T]) -> T | None:
    """
    Take the string in the string, if there is one, off *given*, and make its endpoint.

    The error says what is wrong, and of the string itself only the type: the rest
    may hold secrets.
    """
    text = given.pop(ENDPOINT, None)
    if text is None:
        return None
    if not text:
        raise bad_value(ENDPOINT, text, "an endpoint string, with its colons escaped")
    try:
        return parse(text)
    except Exception as error:  # noqa: BLE001 - every parser has its own way to fail
        kind = text.partition(":")[0]
        why = " ".join(str(error).split()) or type(error).__name__
        known = _types(parse.func)
        if kind.lower() not in known and (hint := _near(kind.lower(), known)):
            why += f"; {hint}"
        raise ValueError(f"{ENDPOINT}={kind + ':…'!r} cannot be used: {why}") from None


def parse_client(
    reactor: object, tls: bool, args: Sequence[str], kwargs: dict[str, str]
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
    kind = EndpointKind(tls, server=False)
    parts = _take_apart(kind, args, kwargs)
    parts.check_place()
    place, given = parts.place, parts.given
    inner = _inner(given, partial(clientFromString, reactor))
    options = record_of(kind.record, given)
    return in_terms_of_keys(
        lambda: client_endpoint(
            reactor, place["node"], place.get("service"), options, endpoint=inner
        )
    )


def parse_server(
    reactor: object, tls: bool, args: Sequence[str], kwargs: dict[str, str]
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
    kind = EndpointKind(tls, server=True)
    kwargs = dict(kwargs)
    further = further_records(kind, kwargs)
    parts = _take_apart(kind, args, kwargs)
    place, given = parts.place, parts.given
    if parts.names == ("service",) and args and args[0].startswith("["):
        raise ValueError(f"{place['service']!r} is no service: {parts.form}")
    adopt = _adoption(place, given)
    if adopt is None:
        parts.check_place()
    inner = _inner(given, partial(serverFromString, reactor))
    reload_every = None
    if RELOAD_EVERY in given:
        reload_every = duration_text(RELOAD_EVERY, given.pop(RELOAD_EVERY))
    records = [record_of(kind.record, given)]
    records += [record_beside(kind.record, given, own) for own in further]
    options: Any = records if further else records[0]
    endpoint = in_terms_of_keys(
        lambda: server_endpoint(
            reactor,
            place.get("node"),
            place.get("service") if adopt is None else 0,
            options,
            reload_every=reload_every,
            endpoint=inner,
        )
    )
    return endpoint if adopt is None else endpoint.adopting(adopt)


def _adoption(
    place: dict[str, str], given: dict[str, str]
) -> Callable[[], list[_socket.socket]] | None:
    """
    Take the key of a socket that is bound already off *given*, and return what adopts that.

    What the process was started with shows when it listens, not when a string is checked.

    Raises:
        ValueError: Something else would bind a socket beside it.
    """
    keys = [key for key in (SYSTEMD, DESCRIPTOR) if key in given]
    if not keys:
        return None
    if len(keys) > 1:
        raise ValueError(f"{SYSTEMD} and {DESCRIPTOR}: give one of them")
    (key,) = keys
    value = given.pop(key)
    for other, said in {**place, **given}.items():
        if other in place or other in _OF_BOUND_SOCKETS:
            raise ValueError(f"{other}={said!r}: with {key}= the socket is bound already")
    if ENDPOINT in given:
        raise ValueError(f"{ENDPOINT}: with {key}= there is a socket to listen on already")
    if key == DESCRIPTOR:
        if not re.fullmatch(r"\d{1,9}", value, re.ASCII):
            raise bad_value(key, value, "the number of a descriptor")
        return _once(partial(adopted_sockets, [int(value)], f"{key}={value}"), f"{key}={value}")
    if not value:
        raise bad_value(key, value, "the name or the number of a socket")
    return _once(partial(activated_sockets, value), f"{key}={value}")


def _once(
    adopt: Callable[[], list[_socket.socket]], called: str
) -> Callable[[], list[_socket.socket]]:
    """Return *adopt*, which fails from the second call on: the number is another file's then."""
    left = [adopt]

    def take() -> list[_socket.socket]:
        if not left:
            raise SocketBindError(called, None, strerror="it was listened on already")
        return left.pop()()

    return take
