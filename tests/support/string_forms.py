"""Option records as endpoint strings: the way back from what the parsers make."""

from __future__ import annotations

import socket
import ssl
from datetime import timedelta
from typing import Any

from twisted.internet.endpoints import quoteStringArgument

from twisted_netsock import SocketOptions, TLSSocketOptions
from twisted_netsock._endpoints.string_keys import camel_case
from twisted_netsock.options import record_fields

_PREFIXES = {
    socket.SOL_SOCKET: "SO_",
    socket.IPPROTO_TCP: "TCP_",
    socket.IPPROTO_IP: "IP_",
    socket.IPPROTO_IPV6: "IPV6_",
    socket.IPPROTO_UDP: "UDP_",
}


def _items(items: tuple[str, ...]) -> str:
    return ",".join(item.replace(",", "\\,") for item in items)


def _flags(value: int) -> str:
    names = [name for name in dir(socket) if name.startswith("AI_")]
    return ",".join(name for name in names if getattr(socket, name) & value)


def _local_address(value: tuple[str, int]) -> str:
    host, port = value
    shown = f"[{host}]" if ":" in host else host
    return f"{shown}:{port}" if port else shown


def _microseconds(value: timedelta) -> str:
    return f"{value // timedelta(microseconds=1)}us"


_TEXTS: dict[str, Any] = {
    "boolean": lambda value: "yes" if value else "no",
    "duration": _microseconds,
    "family": lambda value: value.name.removeprefix("AF_").lower(),
    "flags": _flags,
    "integer": str,
    "local_address": _local_address,
    "names": _items,
    "path": str,
    "paths": _items,
    "protocols": _items,
    "proxy_protocol": str,
    "socktype": lambda value: value.name.removeprefix("SOCK_").lower(),
    "verifier": lambda value: "no" if value is False else None,
    "version": lambda value: {ssl.TLSVersion.TLSv1_2: "TLSv1.2"}.get(value, "TLSv1.3"),
}


def _option_key(level: int, number: int) -> str:
    prefix = _PREFIXES[level]
    return next(
        name for name in dir(socket) if name.startswith(prefix) and getattr(socket, name) == number
    )


def endpoint_string(
    options: SocketOptions, node: str | None, service: str | None, *more: str
) -> str:
    """Return the string of an endpoint with *options*, at *node* and *service*."""
    defaults = type(options)()
    parts = ["netsock-tls" if isinstance(options, TLSSocketOptions) else "netsock"]
    for key, place in (("node", node), ("service", service)):
        if place is not None:
            parts.append(f"{key}={quoteStringArgument(place)}")
    for field in record_fields(type(options)):
        value = getattr(options, field.name)
        if value != getattr(defaults, field.name) and field.metadata["kind"] is not None:
            text = _TEXTS[field.metadata["kind"]](value)
            parts.append(f"{camel_case(field.name)}={quoteStringArgument(text)}")
    parts += [
        f"{_option_key(level, number)}={value}" for level, number, value in options.socket_options
    ]
    return ":".join([*parts, *more])
