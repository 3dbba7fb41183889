"""Values for tests: option records and their strings, addresses, PROXY headers in bytes."""

from __future__ import annotations

import socket
import ssl
import struct
from datetime import timedelta
from socket import AF_UNSPEC, SOCK_STREAM
from ssl import TLSVersion
from typing import Any

import pytest
from hypothesis import strategies as st
from twisted.internet.endpoints import quoteStringArgument

from twisted_netsock import ServerTLSSocketOptions, SocketOptions, TLSSocketOptions, VerifyResult
from twisted_netsock._endpoints.string_keys import camel_case
from twisted_netsock.addresses import SocketAddress
from twisted_netsock.options import record_fields

V4 = SocketAddress(("192.0.2.1", 80))
V6 = SocketAddress(("2001:db8::1", 443, 7, 3))
UNIX = SocketAddress(("/run/x.sock",))
ABSTRACT = SocketAddress(("\0netsock",))
UNNAMED = SocketAddress(("",))
NOTHING = SocketAddress(())

PORTS = st.integers(0, 65535)
V4_HOSTS = st.ip_addresses(v=4).map(str)
V6_HOSTS = st.ip_addresses(v=6).filter(lambda ip: ip.ipv4_mapped is None).map(str)
V4_TUPLES = st.tuples(V4_HOSTS, PORTS)
V6_TUPLES = st.tuples(V6_HOSTS, PORTS, st.integers(0, 2**20 - 1), st.integers(0, 2**31))
PATHS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=50)
UNIX_TUPLES = st.tuples(st.one_of(PATHS, PATHS.map("\0".__add__)))
NATIVE = st.one_of(V4_TUPLES, V6_TUPLES, UNIX_TUPLES)


SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"

FULL = 65536


def binary(command: int, family: int, block: bytes = b"", size: int | None = None) -> bytes:
    length = len(block) if size is None else size
    return SIGNATURE + struct.pack("!BBH", command, family, length) + block


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


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
    "certificate_profile": str,
    "text": str,
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


RECORDS = (SocketOptions, TLSSocketOptions, ServerTLSSocketOptions)
every_record = pytest.mark.parametrize("cls", RECORDS)

SECRET = "hunter2"
PEM = f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----\n"
SECOND = timedelta(seconds=1)
MICROSECOND = timedelta(microseconds=1)
YEAR = timedelta(days=365)


def verifier(depth: int, verdict: VerifyResult, certificate: object) -> None:
    """Keep the verdict."""


PLAIN_DEFAULTS = {
    "ai_family": AF_UNSPEC,
    "ai_socktype": SOCK_STREAM,
    "ai_flags": 0,
    "ai_protocol": 0,
    "non_blocking": True,
    "connection_timeout": None,
    "read_timeout": None,
    "write_timeout": None,
    "local_address": None,
    "socket_options": (),
    "backlog": 128,
    "reuse_port": False,
    "v6_only": False,
    "proxy_protocol": None,
    "proxy": None,
    "proxy_trusted_certificates": None,
}
TLS_DEFAULTS = {
    **PLAIN_DEFAULTS,
    "handshake": True,
    "private_key": None,
    "private_key_password": None,
    "certificates": None,
    "certificate_verifier": None,
    "trusted_certificates": None,
    "trusted_certificates_password": None,
    "certificate_profile": "default",
    "server_identity": None,
    "revocation_lists": None,
    "sni": None,
    "alpn": None,
    "minimum_version": TLSVersion.TLSv1_2,
    "maximum_version": None,
    "handshake_timeout": timedelta(seconds=30),
    "close_timeout": timedelta(seconds=5),
    "suppress_ragged_eofs": False,
    "keylog_file": None,
}
SERVER_DEFAULTS = {
    **TLS_DEFAULTS,
    "client_certificate_required": False,
    "handshake_timeout": timedelta(seconds=10),
}
DEFAULTS = dict(zip(RECORDS, (PLAIN_DEFAULTS, TLS_DEFAULTS, SERVER_DEFAULTS), strict=True))


def owner(field: str) -> type[SocketOptions]:
    """Return the first class that has *field*."""
    return next(cls for cls in RECORDS if field in DEFAULTS[cls])


def fields_of(options: SocketOptions) -> dict[str, Any]:
    return {name: getattr(options, name) for name in DEFAULTS[type(options)]}


def refusal(cls: type[SocketOptions], error: type[Exception], **fields: Any) -> str:
    """Return what *cls* says when it refuses *fields* with exactly *error*."""
    with pytest.raises(error) as caught:
        cls(**fields)
    return str(caught.value)


def beside(field: str) -> dict[str, Any]:
    """Return the fields that *field* needs beside it."""
    if field == "trusted_certificates_password":
        return {"trusted_certificates": "trusted.p12"}
    return {"certificates": "chain.pem"} if field == "private_key" else {}


SECRET_FIELDS = (
    "private_key",
    "private_key_password",
    "certificates",
    "trusted_certificates",
    "trusted_certificates_password",
    "revocation_lists",
)

WRONG_HOST_NAMES = [
    "",
    ".",
    "*",
    "*.",
    "example.*.com",
    "**.example.com",
    "w*.example.com",
    "exa mple.com",
    "example.com\n",
    "exa\0mple.com",
    "bücher..example",
    "example..com",
    "x" * 64 + ".example",
    ".".join(["x" * 62] * 5),
]


def whole_story(error: BaseException | None) -> str:
    """Return all that an error and those behind it could show."""
    text = ""
    while error is not None:
        text += f"{error} {error!r} "
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return text
