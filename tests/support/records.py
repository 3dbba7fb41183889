"""Option records for their tests: defaults, secrets, and what else a field needs."""

from __future__ import annotations

from datetime import timedelta
from socket import AF_UNSPEC, SOCK_STREAM
from ssl import TLSVersion
from typing import Any

import pytest

from twisted_netsock import ServerTLSSocketOptions, SocketOptions, TLSSocketOptions, VerifyResult

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
}
TLS_DEFAULTS = {
    **PLAIN_DEFAULTS,
    "handshake": True,
    "private_key": None,
    "private_key_password": None,
    "certificates": None,
    "certificate_verifier": None,
    "trusted_certificates": None,
    "sni": None,
    "alpn": None,
    "minimum_version": TLSVersion.TLSv1_2,
    "maximum_version": None,
    "handshake_timeout": timedelta(seconds=30),
    "close_timeout": timedelta(seconds=5),
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
    return {"certificates": "chain.pem"} if field == "private_key" else {}


SECRET_FIELDS = ("private_key", "private_key_password", "certificates", "trusted_certificates")

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
    told = ""
    while error is not None:
        told += f"{error} {error!r} "
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return told
