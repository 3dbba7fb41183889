"""Which proxy a connection goes through: URLs, and the environment as curl reads it."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote, unquote_to_bytes

import attrs

from ._hostnames import host_and_port, host_to_look_up, is_ip_address, strip_zone

__all__ = [
    "ENVIRONMENT",
    "HTTPS",
    "Proxy",
    "may_speak_tls",
    "parse_proxy",
    "proxy_for",
    "with_password",
]

ENVIRONMENT: Final = "environment"
"""The value of `proxy` that leaves the choice to the environment."""

SOCKS5: Final = "socks5"
HTTP: Final = "http"
HTTPS: Final = "https"
_SCHEMES: Final = {"socks5": SOCKS5, "socks5h": SOCKS5, "http": HTTP, "https": HTTPS}

_PORTS: Final = {SOCKS5: 1080, HTTP: 1080, HTTPS: 443}
"""Where none is given: SOCKS's own, which curl takes for HTTP as well."""
_PORT_LIMIT: Final = 65536

_URL: Final = re.compile(
    r"(?:(?P<scheme>[a-z][a-z0-9+.-]*)://)?(?:(?P<user>[^/@:]*)(?::(?P<password>[^/@]*))?@)?"
    r"(?P<host>\[[^]/@]*\]|[^]\[/@:?#]+)(?::(?P<port>[0-9]{1,5}))?/?",
    re.ASCII | re.IGNORECASE,
)

_CREDENTIAL_LIMIT: Final = 255
"""Bytes of a user's name and of a password: a length of SOCKS is one byte (RFC 1929)."""

_EXPECTED: Final = (
    "must be socks5://HOST:PORT, http://HOST:PORT or https://HOST:PORT, with USER:PASSWORD@ "
    "before the host where the proxy asks for them, or 'environment'"
)


@attrs.frozen
class Proxy:
    """
    A proxy, as its URL names it.

    Attributes:
        scheme: ``"socks5"``, ``"http"`` or ``"https"``.
        host: A name or a numeric address.
        port: Its port.
        user: The user's name, if it asks for one.
        password: Beside the name.
    """

    scheme: str
    host: str
    port: int
    user: bytes | None = attrs.field(default=None, repr=False)
    password: bytes = attrs.field(default=b"", repr=False)

    def __str__(self) -> str:
        """Return the URL without credentials."""
        return f"{self.scheme}://{host_and_port(self.host, self.port)}"

    @property
    def url(self) -> str:
        """The URL, with the credentials if it has some."""
        if self.user is None:
            return str(self)
        user, password = (quote(each, safe="") for each in (self.user, self.password))
        return str(self).replace("//", f"//{user}:{password}@")


def parse_proxy(text: str, name: str, *, default_scheme: str | None = None) -> Proxy:
    """
    Return the proxy that a URL names.

    Args:
        text: The URL.
        name: What holds it, for errors: they do not repeat it, for it may have a password.
        default_scheme: What a URL without a scheme has.

    Raises:
        ValueError: It is none, or of another scheme.
    """
    matched = _URL.fullmatch(text)
    if matched is None:
        raise ValueError(f"{name} {_EXPECTED}")
    given = (matched["scheme"] or default_scheme or "").lower()
    if given not in _SCHEMES:
        raise ValueError(f"{name}: the scheme {given!r} is not supported: it {_EXPECTED}")
    port = int(matched["port"] or _PORTS[_SCHEMES[given]])
    if not 0 < port < _PORT_LIMIT:
        raise ValueError(f"{name}: {port} is no port: it {_EXPECTED}")
    bracketed = matched["host"].startswith("[")
    host = matched["host"].strip("[]")
    if bracketed and not (":" in host and is_ip_address(host)):
        raise ValueError(f"{name}: {host!r} is no IPv6 address: it {_EXPECTED}")
    try:
        host_to_look_up(host)
    except ValueError:
        raise ValueError(f"{name}: {host!r} is no host: it {_EXPECTED}") from None
    scheme = _SCHEMES[given]
    if matched["user"] is None:
        return Proxy(scheme, host, port)
    user, password = (unquote_to_bytes(matched[each] or "") for each in ("user", "password"))
    _check_credentials(scheme, user, password, name)
    return Proxy(scheme, host, port, user, password)


def _check_credentials(scheme: str, user: bytes, password: bytes, name: str) -> None:
    if not user or max(len(user), len(password)) > _CREDENTIAL_LIMIT:
        raise ValueError(f"{name}: user and password must have 1 to {_CREDENTIAL_LIMIT} bytes")
    if scheme == SOCKS5 and not password:
        raise ValueError(f"{name}: a user of a SOCKS proxy needs a password")
    if scheme != SOCKS5 and b":" in user:
        raise ValueError(f"{name}: a user's name must not have a colon in HTTP")


def with_password(text: str, password: bytes, name: str) -> str:
    """
    Return the URL *text* with *password* beside its user.

    Raises:
        ValueError: It has no user, or a password.
    """
    matched = _URL.fullmatch(text)
    if matched is None or not matched["user"]:
        raise ValueError(f"{name} needs proxy=…://USER@HOST:PORT")
    end = matched.end("user")
    return f"{text[:end]}:{quote(password, safe='')}{text[end:]}"


def may_speak_tls(text: str | None) -> bool:
    """Return whether the proxy of this option may be one that shows a certificate."""
    return text is not None and (text == ENVIRONMENT or parse_proxy(text, "proxy").scheme == HTTPS)


def has_password(text: str) -> bool:
    """Return whether a URL has a password, or something in its place."""
    return ":" in text.partition("://")[2].rpartition("@")[0]


def without_credentials(text: str) -> str:
    """Return a URL, or an endpoint string with one, as it may be shown."""
    return re.sub(r"(//|proxy=)[^/@]*@", r"\1", text)


def proxy_for(
    text: str, node: str, *, tls: bool, environ: Mapping[str, str] = os.environ
) -> Proxy | None:
    """
    Return the proxy for a connection to *node*, or `None` for a direct one.

    Args:
        text: The value of the option: a URL, or ``"environment"``.
        node: What the connection goes to.
        tls: It speaks TLS, so that it is as one for an ``https`` URI to curl.
        environ: The environment.

    Raises:
        ValueError: A variable of the environment is no URL of a proxy.
    """
    if text != ENVIRONMENT:
        return parse_proxy(text, "proxy")
    # As curl, which reads no HTTP_PROXY: CGI sets that from a header of the request.
    names = ("https_proxy", "HTTPS_PROXY") if tls else ("http_proxy",)
    for name in (*names, "all_proxy", "ALL_PROXY"):
        if environ.get(name):
            if _is_exempt(node, environ.get("no_proxy") or environ.get("NO_PROXY") or ""):
                return None
            return parse_proxy(environ[name], name, default_scheme=HTTP)
    return None


def _is_exempt(node: str, no_proxy: str) -> bool:
    """Return whether *no_proxy* lists *node*: it, a domain that it is in, or its network."""
    if no_proxy.strip() == "*":
        return True
    listed = [each for each in re.split(r"[,\s]+", no_proxy) if each]
    if is_ip_address(node):
        address = ipaddress.ip_address(strip_zone(node))
        return any(_is_in(address, each) for each in listed)
    name = host_to_look_up(node).removesuffix(".")
    domains = [each.lower().removesuffix(".").removeprefix(".") for each in listed]
    return any(name == each or name.endswith(f".{each}") for each in domains if each)


def _is_in(address: ipaddress.IPv4Address | ipaddress.IPv6Address, network: str) -> bool:
    try:
        return address in ipaddress.ip_network(network.strip("[]"), strict=False)
    except ValueError:
        return False
