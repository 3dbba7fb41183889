"""What users write on command lines: where to connect to, how long, and how to speak TLS."""

from __future__ import annotations

import os
import re
from datetime import timedelta
from typing import Any, Final, NamedTuple

from twisted.python import usage

from ... import _validation as check
from ..._endpoints.string_keys import proxy_of
from ..._hostnames import host_and_port, is_host_name, is_ip_address, numeric_service
from ..._tls.client import client_context_factory
from ..._tls.context import open_key_log
from ...options import SocketOptions, TLSSocketOptions

__all__ = [
    "PROXY_PARAMETERS",
    "TLS_FLAGS",
    "TLS_PARAMETERS",
    "Target",
    "parse_target",
    "parse_time",
    "proxy_fields",
    "tls_options",
]

TLS_PARAMETERS: Final[list[list[str | None]]] = [
    ["ca", None, None, "Trust the authorities in this file (PEM) instead of the platform's."],
    ["sni", None, None, "The name to ask for and to verify, instead of the host."],
    ["identity", None, None, "Verify this name, address or URI (spiffe://...), not the host."],
    ["alpn", None, None, "Application protocols to offer, separated by commas: h2,http/1.1."],
    ["cert", None, None, "A client certificate to show (PEM, its key may be in it)."],
    ["key", None, None, "The key of --cert."],
    ["min-tls", None, None, "The oldest version to speak: 1.2 or 1.3."],
    ["max-tls", None, None, "The newest version to speak: 1.2 or 1.3."],
    ["keylog", None, None, "Append the secrets of the session to this file, for Wireshark."],
]
PROXY_PARAMETERS: Final[list[list[str | None]]] = [
    [
        "proxy",
        None,
        None,
        "Connect through socks5://[USER@]HOST:PORT, http://..., https://..., or environment.",
    ],
    ["proxy-ca", None, None, "A file with the authorities to believe of an https:// proxy."],
    ["proxy-password-file", None, None, "The file with the password of the user in --proxy."],
]
TLS_FLAGS: Final[list[list[str | None]]] = [
    ["no-sni", None, "Ask for no name; the host is verified nevertheless."],
    ["strict", None, "Judge certificates by the rules for public authorities."],
]

_DAYS: Final = re.compile(r"(\d{1,5})d", re.ASCII)


class Target(NamedTuple):
    """A host and a port, or the name of a service."""

    host: str
    service: str | int

    def __str__(self) -> str:
        return host_and_port(self.host, self.service)


def parse_target(text: str, default: int | None) -> Target:
    """
    Read ``HOST``, ``HOST:PORT``, ``[ADDRESS]:PORT`` or an address.

    Args:
        text: What the user wrote.
        default: The port where there is none; `None` if there must be one.

    Raises:
        usage.UsageError: It is none of these.
    """
    if "/" in text:
        raise usage.UsageError(f"{text}: give HOST or HOST:PORT, not a URL or a path")
    host, service = _split(text)
    if not is_host_name(host):
        raise usage.UsageError(f"{text}: {host!r} is no name or address of a host")
    if service:
        return Target(host, _service(text, service))
    if default is None:
        raise usage.UsageError(f"{text}: the port is missing; give HOST:PORT")
    return Target(host, default)


def _split(text: str) -> tuple[str, str]:
    """Return the host and the service, which may be empty."""
    if is_ip_address(text):
        return text, ""
    if matched := re.fullmatch(r"\[([^]]+)\](?::(.+))?", text):
        if not is_ip_address(matched[1]):
            raise usage.UsageError(f"{text}: brackets are for IPv6 addresses")
        return matched[1], matched[2] or ""
    host, colon, service = text.partition(":")
    if colon and not service:
        raise usage.UsageError(f"{text}: the port is missing")
    return host, service


def _service(text: str, service: str) -> str | int:
    try:
        port = numeric_service(service)
    except ValueError as error:
        raise usage.UsageError(f"{text}: {error}") from None
    if port == 0:
        raise usage.UsageError(f"{text}: the port must be from 1 to 65535")
    if port is None and not re.fullmatch(r"[a-zA-Z0-9][\w-]*", service, re.ASCII):
        raise usage.UsageError(f"{text}: {service!r} is no port and no name of a service")
    return service if port is None else port


def parse_time(option: str, text: str, *, days: bool = False) -> timedelta:
    """
    Read a time with its unit: ``250ms``, ``10s``, ``5m``, ``1h``, with *days* also ``30d``.

    Raises:
        usage.UsageError: It is none.
    """
    matched = _DAYS.fullmatch(text) if days else None
    if matched is not None:
        return timedelta(days=int(matched[1]))
    try:
        return check.duration_text(f"--{option}", text)
    except ValueError as error:
        more = " (also d, for days)" if days else ""
        raise usage.UsageError(f"{error}{more}") from None


def proxy_fields(given: usage.Options) -> dict[str, Any]:
    """
    Return what the user gave for `PROXY_PARAMETERS`, as fields of a record.

    Raises:
        usage.UsageError: It is no proxy, has a password, or the file cannot be read.
    """
    url, path, ca = given["proxy"], given["proxy-password-file"], given["proxy-ca"]
    if url is None and path is None and ca is None:
        return {}
    try:
        proxy = proxy_of("--proxy", url or "", "--proxy-password-file", path)
        fields = {"proxy": check.proxy(proxy, "--proxy"), "proxy_trusted_certificates": ca}
        SocketOptions(**fields)
    except ValueError as error:
        text = str(error).replace("proxy_trusted_certificates", "--proxy-ca")
        raise usage.UsageError(text.replace("proxy=", "--proxy ")) from None
    return fields


def tls_options(given: usage.Options, host: str, **fields: Any) -> TLSSocketOptions:
    """
    Make a record of what the user gave for `TLS_PARAMETERS` and `TLS_FLAGS`.

    Raises:
        usage.UsageError: A value, or a file, is not good.
    """
    fields |= _fields(given)
    try:
        options = TLSSocketOptions(**fields)
        # The files are read now, so that a mistake is reported before anything runs.
        client_context_factory(options, host)
    except ValueError as error:
        raise usage.UsageError(_in_options(str(error))) from None
    if options.keylog_file is not None:
        _check_writable("keylog", options.keylog_file)
    return options


def _check_writable(option: str, path: str) -> None:
    try:
        os.close(open_key_log(path))
    except OSError as error:
        raise usage.UsageError(f"--{option} {path}: {error.strerror}") from None


def _fields(given: usage.Options) -> dict[str, object]:
    """Return the fields of a record that the user gave."""
    if given["no-sni"] and given["sni"] is not None:
        raise usage.UsageError("--sni and --no-sni: give one of them")
    if given["key"] is not None and given["cert"] is None:
        raise usage.UsageError("--key needs --cert: a key proves nothing without a certificate")
    fields: dict[str, object] = {
        field: given[option] for option, field in _PLAIN.items() if given[option] is not None
    }
    if given["no-sni"]:
        fields["sni"] = ()
    if given["strict"]:
        fields["certificate_profile"] = "strict"
    if given["alpn"] is not None:
        fields["alpn"] = given["alpn"].split(",")
    for option, field in _VERSIONS.items():
        if given[option] is not None:
            if given[option] not in {"1.2", "1.3"}:
                raise usage.UsageError(f"--{option} {given[option]}: it must be 1.2 or 1.3")
            fields[field] = f"TLSv{given[option]}"
    return fields


_PLAIN: Final = {
    "ca": "trusted_certificates",
    "sni": "sni",
    "identity": "server_identity",
    "cert": "certificates",
    "key": "private_key",
    "keylog": "keylog_file",
}
_VERSIONS: Final = {"min-tls": "minimum_version", "max-tls": "maximum_version"}

_CALLED: Final = {
    field: f"--{option}" for option, field in {**_PLAIN, **_VERSIONS, "alpn": "alpn"}.items()
}


def _in_options(message: str) -> str:
    """Rewrite the error of a record in terms of options."""
    return re.sub(rf"\b({'|'.join(_CALLED)})\b(?!')", lambda matched: _CALLED[matched[1]], message)
