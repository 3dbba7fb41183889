"""Option records: what they take, what they refuse and what they say about it."""

from __future__ import annotations

import copy
import os
import re
import socket
import ssl
from datetime import timedelta
from pathlib import Path, PurePosixPath
from socket import (
    AF_INET,
    AF_INET6,
    AF_UNIX,
    AF_UNSPEC,
    AI_NUMERICHOST,
    AI_PASSIVE,
    SO_KEEPALIVE,
    SO_RCVBUF,
    SOCK_DGRAM,
    SOCK_RAW,
    SOCK_STREAM,
    SOL_SOCKET,
    AddressFamily,
    SocketKind,
)
from ssl import TLSVersion
from typing import Any

import attrs
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from hypothesis import given, settings
from hypothesis import strategies as st

from twisted_netsock import (
    ServerTLSSocketOptions,
    SocketOptions,
    TLSSocketOptions,
    VerifyResult,
    is_server_tls_socket_options,
    is_socket_options,
    is_tls_socket_options,
)

pytestmark = pytest.mark.once

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


# What a record holds


@every_record
def test_the_defaults_are_as_documented(cls):
    assert fields_of(cls()) == DEFAULTS[cls]


@every_record
def test_a_record_has_no_other_fields(cls):
    assert {field.name for field in attrs.fields(cls)} == set(DEFAULTS[cls])


ACCEPTED = [
    *(("ai_family", it, it) for it in (AF_UNSPEC, AF_INET, AF_INET6, AF_UNIX)),
    ("ai_family", int(AF_INET6), AF_INET6),
    *(("ai_socktype", it, it) for it in (SOCK_STREAM, SOCK_DGRAM, SOCK_RAW)),
    ("ai_socktype", int(SOCK_DGRAM), SOCK_DGRAM),
    ("ai_flags", AI_PASSIVE | AI_NUMERICHOST, int(AI_PASSIVE | AI_NUMERICHOST)),
    ("ai_protocol", 262, 262),
    ("ai_protocol", socket.IPPROTO_TCP, 6),
    ("non_blocking", False, False),
    ("connection_timeout", None, None),
    ("connection_timeout", timedelta(milliseconds=1), timedelta(milliseconds=1)),
    ("connection_timeout", YEAR, YEAR),
    ("read_timeout", MICROSECOND, MICROSECOND),
    ("read_timeout", YEAR, YEAR),
    ("write_timeout", SECOND, SECOND),
    ("local_address", "127.0.0.1", ("127.0.0.1", 0)),
    ("local_address", ("::1", 8080), ("::1", 8080)),
    ("local_address", ("127.0.0.1", 65535), ("127.0.0.1", 65535)),
    ("socket_options", (SOL_SOCKET, SO_KEEPALIVE, 1), ((SOL_SOCKET, SO_KEEPALIVE, 1),)),
    ("socket_options", [SOL_SOCKET, SO_KEEPALIVE, 1], ((SOL_SOCKET, SO_KEEPALIVE, 1),)),
    (
        "socket_options",
        [(SOL_SOCKET, SO_KEEPALIVE, 1), [SOL_SOCKET, SO_RCVBUF, b"\0\0\1\0"]],
        ((SOL_SOCKET, SO_KEEPALIVE, 1), (SOL_SOCKET, SO_RCVBUF, b"\0\0\1\0")),
    ),
    ("socket_options", iter([(1, 2, 3)]), ((1, 2, 3),)),
    ("socket_options", [], ()),
    ("backlog", 0, 0),
    ("backlog", 2**31 - 1, 2**31 - 1),
    ("reuse_port", True, True),
    ("v6_only", True, True),
    ("proxy_protocol", "v1", "v1"),
    ("proxy_protocol", "any", "any"),
    ("handshake", False, False),
    ("private_key_password", "pässword", "pässword".encode()),
    ("private_key_password", b"\xff\0", b"\xff\0"),
    ("certificates", "chain.pem", ("chain.pem",)),
    ("certificates", PurePosixPath("/etc/chain.pem"), ("/etc/chain.pem",)),
    ("certificates", b"chain.pem", (b"chain.pem",)),
    ("certificates", bytearray(b"\x30"), (b"\x30",)),
    ("certificates", memoryview(b"\x30"), (b"\x30",)),
    ("certificates", ["leaf.pem", b"\x30", Path("ca.pem")], ("leaf.pem", b"\x30", "ca.pem")),
    ("certificates", iter(["leaf.pem"]), ("leaf.pem",)),
    ("certificate_verifier", None, None),
    ("certificate_verifier", False, False),
    ("certificate_verifier", verifier, verifier),
    ("trusted_certificates", "ca.pem", ("ca.pem",)),
    ("trusted_certificates", [b"\x30", "ca.pem"], (b"\x30", "ca.pem")),
    ("sni", "example.com", ("example.com",)),
    ("sni", ["example.com"], ("example.com",)),
    ("sni", (), ()),
    ("sni", "bücher.example", ("bücher.example",)),
    ("sni", "_service.example.com.", ("_service.example.com.",)),
    ("sni", "127.0.0.1", ("127.0.0.1",)),
    ("sni", "::1", ("::1",)),
    ("alpn", "h2", ("h2",)),
    ("alpn", ["h2", "http/1.1"], ("h2", "http/1.1")),
    ("alpn", iter(["h2"]), ("h2",)),
    ("alpn", "x" * 255, ("x" * 255,)),
    ("minimum_version", "TLSv1.3", TLSVersion.TLSv1_3),
    ("minimum_version", TLSVersion.TLSv1_3, TLSVersion.TLSv1_3),
    ("maximum_version", "TLSv1.2", TLSVersion.TLSv1_2),
    ("maximum_version", None, None),
    ("handshake_timeout", None, None),
    ("handshake_timeout", SECOND, SECOND),
    ("close_timeout", MICROSECOND, MICROSECOND),
    ("keylog_file", "/tmp/keys", "/tmp/keys"),
    ("keylog_file", PurePosixPath("/tmp/keys"), "/tmp/keys"),
]


def test_what_a_field_takes_is_stored_in_one_form():
    """A list is a tuple, a path is text, a number of the system's is its name."""
    for field, given_value, stored in ACCEPTED:
        value = getattr(owner(field)(**{field: given_value}), field)
        assert value == stored, field
        assert type(value) is type(stored), field


@pytest.mark.parametrize(
    ("field", "kind"), [("ai_family", AddressFamily), ("ai_socktype", SocketKind)]
)
def test_the_systems_numbers_have_their_names(field, kind):
    for cls in RECORDS:
        assert isinstance(getattr(cls(**{field: 2}), field), kind)


def test_bytes_that_change_later_do_not_change_the_record():
    content = bytearray(b"0123")
    options = TLSSocketOptions(private_key=content, certificates=content)
    content[:] = b"xxxx"
    assert options.private_key == b"0123"
    assert options.certificates == (b"0123",)


def test_a_list_that_changes_later_does_not_change_the_record():
    protocols = ["h2"]
    options = TLSSocketOptions(alpn=protocols)
    protocols.append("http/1.1")
    assert options.alpn == ("h2",)


def test_objects_of_cryptography_are_kept(authority):
    issued = authority.issue("example.com")
    options = TLSSocketOptions(
        private_key=issued.private_key,
        certificates=[issued.certificate, authority.certificate],
        trusted_certificates=authority.certificate,
    )
    assert options.private_key is issued.private_key
    assert options.certificates == (issued.certificate, authority.certificate)
    assert options.trusted_certificates == (authority.certificate,)


def test_no_file_is_read_before_it_is_needed(tmp_path):
    missing = tmp_path / "missing.pem"
    options = TLSSocketOptions(
        private_key=missing, certificates=missing, trusted_certificates=missing
    )
    assert options.private_key == str(missing)


# What a record refuses

BOOLEANS = [1, 0, "yes", None, []]
NUMBERS = ["1", 1.0, None, True, b"1", [1]]
DURATIONS = [10, 10.0, "10s", True, False, b"10", [SECOND]]
WRONG_TYPES: dict[str, list[Any]] = {
    "ai_family": ["inet", 2.0, None, True],
    "ai_socktype": ["stream", 1.0, None, True],
    "ai_flags": NUMBERS,
    "ai_protocol": NUMBERS,
    "non_blocking": BOOLEANS,
    "connection_timeout": [10.0, "10s", True, False, b"10", [SECOND]],
    "read_timeout": DURATIONS,
    "write_timeout": DURATIONS,
    "local_address": [
        80,
        b"127.0.0.1",
        ["127.0.0.1", 80],
        ("127.0.0.1",),
        ("127.0.0.1", "80"),
        ("127.0.0.1", True),
        ("127.0.0.1", 80, 0),
        (None, 80),
    ],
    "socket_options": [None, 1, "TCP_NODELAY", b"123"],
    "backlog": NUMBERS,
    "reuse_port": BOOLEANS,
    "v6_only": BOOLEANS,
    "proxy_protocol": [1, 2, True, b"v1", ["v1"]],
    "handshake": BOOLEANS,
    "certificate_verifier": [True, 0, 1, "no", []],
    "sni": [1, b"example.com", True, object()],
    "alpn": [1, b"h2", True, object()],
    "minimum_version": [None, 1.2, b"TLSv1.2", ["TLSv1.2"], object()],
    "maximum_version": [1.3, b"TLSv1.3", ["TLSv1.3"], object()],
    "handshake_timeout": DURATIONS,
    "close_timeout": [None, *DURATIONS],
    "keylog_file": [1, b"/tmp/keys", ["/tmp/keys"]],
    "client_certificate_required": BOOLEANS,
}
WRONG_ITEMS: dict[str, list[Any]] = {
    "socket_options": [
        [(1, 2)],
        [(1, 2, 3, 4)],
        [(1, 2, "3")],
        [("SOL_SOCKET", 2, 3)],
        [(1, None, 3)],
        [(1, 2, 3), 4],
        ["123"],
    ],
    "sni": [[b"example.com"], ["example.com", None]],
    "alpn": [[b"h2"], ["h2", None]],
}
SECRET_FIELDS = ("private_key", "private_key_password", "certificates", "trusted_certificates")
WRONG_SECRETS: dict[str, list[Any]] = {
    "private_key": [1, True, ["key.pem"], object()],
    "private_key_password": [1, True, ["x"], object(), bytearray(b"x")],
    "certificates": [1, True, [1], [None], [["chain.pem"]], object()],
    "trusted_certificates": [1, True, [1], [None], [["ca.pem"]], object()],
}
TOO_LONG = YEAR + MICROSECOND
WRONG_DURATIONS = [
    (timedelta(0), "more than 0"),
    (-SECOND, "more than 0"),
    (TOO_LONG, "365 days"),
    (timedelta.max, "365 days"),
]
WRONG_NUMBERS = [(-1, "from 0 to 2147483647"), (2**31, "from 0 to 2147483647")]
WRONG_VALUES: dict[str, list[tuple[Any, str]]] = {
    "ai_family": [(12345, "AF_UNSPEC, AF_INET, AF_INET6, AF_UNIX"), (-1, "AF_INET6")],
    "ai_socktype": [
        (12345, "SOCK_STREAM, SOCK_DGRAM, SOCK_RAW"),
        (SocketKind.SOCK_SEQPACKET, "SOCK_STREAM"),
        (SOCK_STREAM | socket.SOCK_NONBLOCK, "SOCK_STREAM"),
    ],
    "ai_flags": WRONG_NUMBERS,
    "ai_protocol": WRONG_NUMBERS,
    "connection_timeout": WRONG_DURATIONS,
    "read_timeout": WRONG_DURATIONS,
    "write_timeout": WRONG_DURATIONS,
    "local_address": [
        (("127.0.0.1", 65536), "0 to 65535"),
        (("127.0.0.1", -1), "0 to 65535"),
        (("", 80), "host"),
        ("", "host"),
        ("exa\0mple", "host"),
        ("example.com", "numeric host"),
        (("localhost", 80), "numeric host"),
    ],
    "backlog": WRONG_NUMBERS,
    "proxy_protocol": [("", "v1, v2, any"), ("V1", "v1, v2, any"), ("v3", "v1, v2, any")],
    "alpn": [
        ("", "1 to 255"),
        ("x" * 256, "1 to 255"),
        ("hé", "ASCII"),
        (["h2", ""], "1 to 255"),
        (["h2", "h2"], "once"),
        ([], "empty"),
    ],
    "minimum_version": [
        ("TLSv1", "TLSv1.2, TLSv1.3"),
        ("TLSv1.1", "TLSv1.2, TLSv1.3"),
        ("1.2", "TLSv1.2, TLSv1.3"),
        ("", "TLSv1.2, TLSv1.3"),
        (TLSVersion.SSLv3, "TLSv1.2, TLSv1.3"),
        (TLSVersion.MINIMUM_SUPPORTED, "TLSv1.2, TLSv1.3"),
    ],
    "maximum_version": [
        ("TLSv1.4", "TLSv1.2, TLSv1.3"),
        (TLSVersion.MAXIMUM_SUPPORTED, "TLSv1.2, TLSv1.3"),
    ],
    "handshake_timeout": WRONG_DURATIONS,
    "close_timeout": WRONG_DURATIONS,
    "keylog_file": [("", "path"), ("key\0log", "path")],
}
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


@pytest.mark.parametrize("field", sorted(WRONG_TYPES))
def test_a_wrong_type_is_a_type_error_that_names_field_and_value(field):
    for value in WRONG_TYPES[field]:
        told = refusal(owner(field), TypeError, **{field: value})
        assert told.startswith(f"{field} must be ")
        items = value if isinstance(value, tuple) else ()
        assert any(repr(each) in told for each in (value, *items))


@pytest.mark.parametrize("field", sorted(WRONG_ITEMS))
def test_a_wrong_item_is_a_type_error_that_names_field_and_item(field):
    for value in WRONG_ITEMS[field]:
        told = refusal(owner(field), TypeError, **{field: value})
        assert told.startswith(f"{field} must be ")
        assert any(repr(item) in told for item in value)


@pytest.mark.parametrize("field", sorted(WRONG_VALUES))
def test_a_wrong_value_is_a_value_error_that_says_what_is_allowed(field):
    for value, allowed in WRONG_VALUES[field]:
        told = refusal(owner(field), ValueError, **{field: value})
        assert told.startswith(field)
        assert allowed in told
        items = value if isinstance(value, list) else [value]
        assert not items or any(repr(item) in told or str(item) in told for item in items)


@pytest.mark.parametrize("field", sorted(WRONG_SECRETS))
def test_a_wrong_type_of_what_may_be_secret_is_told_by_its_type(field):
    for value in WRONG_SECRETS[field]:
        told = refusal(TLSSocketOptions, TypeError, **beside(field), **{field: value})
        assert told.startswith(f"{field} must be ")
        assert "<" in told


@pytest.mark.parametrize("field", ["private_key", "certificates", "trusted_certificates"])
def test_a_source_without_content_or_name_is_a_value_error(field):
    for empty in "", b"", bytearray(), memoryview(b""), "a\0b":
        told = refusal(TLSSocketOptions, ValueError, **beside(field), **{field: empty})
        assert told.startswith(field)
        if field != "private_key":
            assert refusal(TLSSocketOptions, ValueError, **{field: ["x.pem", empty]}) == told


@pytest.mark.parametrize("field", ["certificates", "trusted_certificates", "alpn"])
def test_an_empty_list_is_a_value_error_that_names_the_default(field):
    for empty in [], (), iter([]):
        for cls in TLSSocketOptions, ServerTLSSocketOptions:
            told = refusal(cls, ValueError, **{field: empty})
            assert told.startswith(field)
            assert "empty" in told
            assert "None" in told


class _BytesPath(os.PathLike):
    def __fspath__(self) -> bytes:
        return b"/tmp/x"


@pytest.mark.parametrize(
    "field", ["private_key", "certificates", "trusted_certificates", "keylog_file"]
)
def test_a_path_is_text(field):
    told = refusal(TLSSocketOptions, TypeError, **beside(field), **{field: _BytesPath()})
    assert told.startswith(f"{field} must be a path of text")


def test_certificates_are_certificates_and_keys_are_private_keys(authority):
    issued = authority.issue("example.com")
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(issued.certificate.subject)
        .sign(issued.private_key, hashes.SHA256())
    )
    public_key = issued.private_key.public_key()
    for field in "certificates", "trusted_certificates":
        for other in issued.private_key, public_key, request:
            told = refusal(TLSSocketOptions, TypeError, **{field: other})
            assert told.startswith(f"{field} must be ")
            assert f"<{type(other).__name__}>" in told
    for other in issued.certificate, public_key, request:
        told = refusal(
            TLSSocketOptions, TypeError, private_key=other, certificates=issued.certificate
        )
        assert told.startswith("private_key must be ")


@every_record
def test_an_unknown_field_is_a_type_error_that_names_it(cls):
    assert "read_time_out" in refusal(cls, TypeError, read_time_out=SECOND)
    with pytest.raises(TypeError, match="read_time_out"):
        cls().replace(read_time_out=SECOND)
    with pytest.raises(TypeError, match="read_time_out"):
        cls.from_options(SocketOptions(), read_time_out=SECOND)


def test_a_record_has_none_of_the_fields_of_richer_ones():
    for field in TLS_DEFAULTS.keys() - PLAIN_DEFAULTS.keys():
        assert field in refusal(SocketOptions, TypeError, **{field: None})
    told = refusal(TLSSocketOptions, TypeError, client_certificate_required=True)
    assert "client_certificate_required" in told


@every_record
def test_fields_are_given_by_name_only(cls):
    with pytest.raises(TypeError):
        cls(AF_INET)


# The units of time


@pytest.mark.parametrize(
    ("microseconds", "duration"),
    [
        (100_000, timedelta(milliseconds=100)),
        (1_500_000, timedelta(seconds=1.5)),
        (60_000_000, timedelta(minutes=1)),
        (YEAR // MICROSECOND, YEAR),
    ],
)
def test_an_int_of_connection_timeout_is_microseconds(microseconds, duration):
    options = SocketOptions(connection_timeout=microseconds)
    assert options.connection_timeout == duration
    assert options == SocketOptions(connection_timeout=duration)


@pytest.mark.parametrize("number", [99_999, 30_000, 30, 1])
def test_an_int_that_was_meant_in_another_unit_is_told_which_timedelta(number):
    told = refusal(SocketOptions, ValueError, connection_timeout=number)
    assert told.startswith(f"connection_timeout={number} ")
    assert "microseconds" in told
    assert "100000" in told
    assert f"timedelta(seconds={number})" in told
    assert f"timedelta(milliseconds={number})" in told


@pytest.mark.parametrize("number", [0, -1, -1_000_000])
def test_no_time_at_all_is_refused(number):
    assert refusal(SocketOptions, ValueError, connection_timeout=number).startswith(
        f"connection_timeout={number}"
    )


@pytest.mark.parametrize("number", [YEAR // MICROSECOND + 1, 10**30])
def test_an_int_of_more_than_a_year_is_refused(number):
    told = refusal(SocketOptions, ValueError, connection_timeout=number)
    assert told.startswith("connection_timeout=")
    assert "365 days" in told


@pytest.mark.parametrize(
    "field", ["read_timeout", "write_timeout", "handshake_timeout", "close_timeout"]
)
def test_no_other_time_takes_a_bare_number(field):
    for number in 1_000_000, 1.5:
        assert "timedelta" in refusal(ServerTLSSocketOptions, TypeError, **{field: number})


def test_a_short_timedelta_is_taken_where_a_short_int_is_not():
    options = SocketOptions(connection_timeout=timedelta(microseconds=99_999))
    assert options.connection_timeout == timedelta(microseconds=99_999)


# Secrets


def whole_story(error: BaseException | None) -> str:
    """Return all that an error and those behind it could show."""
    told = ""
    while error is not None:
        told += f"{error} {error!r} "
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return told


MISPLACED_SECRETS = [
    pytest.param(((PEM,),), id="tuples"),
    pytest.param([[PEM]], id="lists"),
    pytest.param([("key", PEM)], id="pairs"),
    pytest.param([{"key": PEM}], id="dict"),
    pytest.param((PEM.encode(), 1), id="bytes"),
    pytest.param([None, bytearray(PEM, "ascii")], id="bytearray"),
]


@pytest.mark.parametrize("value", MISPLACED_SECRETS)
def test_no_error_about_a_wrong_type_shows_a_secret(value):
    for field in SECRET_FIELDS:
        with pytest.raises(TypeError) as caught:
            TLSSocketOptions(**beside(field), **{field: value})
        assert str(caught.value).startswith(f"{field} must be ")
        assert SECRET not in whole_story(caught.value)


@pytest.mark.parametrize("field", ["private_key", "private_key_password"])
def test_no_error_about_a_list_where_one_thing_is_meant_shows_a_secret(field):
    for value in (PEM,), [PEM], {PEM}, {"key": PEM}, iter([PEM]):
        with pytest.raises(TypeError) as caught:
            TLSSocketOptions(**beside(field), **{field: value})
        assert str(caught.value).startswith(f"{field} must be ")
        assert SECRET not in whole_story(caught.value)


@pytest.mark.parametrize("field", ["private_key", "certificates", "trusted_certificates"])
def test_content_that_is_given_as_text_is_refused_and_not_repeated(field):
    for text in PEM, PEM.replace("\n", ""), PEM.replace("-", ""), PEM.replace("\n", "\r"):
        sources = [text] if field == "private_key" else [text, [text], ["chain.pem", text]]
        for source in sources:
            with pytest.raises(ValueError, match="pass bytes") as caught:
                TLSSocketOptions(**beside(field), **{field: source})
            assert str(caught.value).startswith(field)
            assert SECRET not in whole_story(caught.value)


def test_a_password_that_cannot_be_encoded_is_refused_and_not_repeated():
    """As a program gets it from a command line that is no UTF-8."""
    with pytest.raises(ValueError) as caught:
        TLSSocketOptions(private_key_password=f"{SECRET}\udcff")
    assert str(caught.value).startswith("private_key_password")
    assert SECRET not in whole_story(caught.value)


@pytest.mark.parametrize("cls", [TLSSocketOptions, ServerTLSSocketOptions])
def test_the_repr_shows_no_secret(cls, authority):
    issued = authority.issue("example.com")
    sources = [PEM.encode(), bytearray(PEM.encode())]
    for key, certificates in [(it, it) for it in sources] + [
        (issued.private_key, [issued.certificate, PEM.encode()])
    ]:
        told = repr(
            cls(
                private_key=key,
                private_key_password=SECRET,
                certificates=certificates,
                trusted_certificates=certificates,
            )
        )
        assert SECRET not in told
        assert "BEGIN" not in told
        for field in SECRET_FIELDS:
            assert f"{field}=" in told


def test_errors_about_a_record_show_no_secret():
    options = TLSSocketOptions(certificates=PEM.encode(), private_key_password=SECRET)
    for refuse in (
        lambda: options.replace(backlog=-1),
        lambda: options.replace(private_key=1),
        lambda: SocketOptions.from_options(options, backlog=-1),
        lambda: options.replace(minimum_version="TLSv1.3", maximum_version="TLSv1.2"),
    ):
        with pytest.raises((TypeError, ValueError)) as caught:
            refuse()
        assert SECRET not in whole_story(caught.value)


# The repr


@every_record
def test_the_repr_of_the_defaults_is_short(cls):
    assert repr(cls()) == f"{cls.__name__}()"


@every_record
def test_the_repr_shows_what_differs_from_the_defaults(cls):
    told = repr(cls(backlog=7, read_timeout=SECOND, v6_only=False))
    assert told == f"{cls.__name__}(read_timeout={SECOND!r}, backlog=7)"


def test_the_repr_shows_paths_and_names():
    told = repr(TLSSocketOptions(certificates="chain.pem", sni="example.com", keylog_file="/k"))
    for part in "chain.pem", "sni=('example.com',)", "keylog_file='/k'":
        assert part in told


@pytest.mark.parametrize("cls", [TLSSocketOptions, ServerTLSSocketOptions])
def test_only_the_repr_of_a_record_that_verifies_nothing_says_so(cls):
    assert "UNVERIFIED" in repr(cls(certificate_verifier=False))
    assert "UNVERIFIED" not in repr(cls(certificate_verifier=verifier))
    assert "UNVERIFIED" not in repr(cls())


# Certificates, keys and who asks for whose


@pytest.mark.parametrize("cls", [TLSSocketOptions, ServerTLSSocketOptions])
def test_a_private_key_needs_certificates(cls):
    told = refusal(cls, ValueError, private_key="key.pem")
    assert "private_key" in told
    assert "certificates" in told
    assert cls(private_key="key.pem", certificates="chain.pem").private_key == "key.pem"


@pytest.mark.parametrize("cls", [TLSSocketOptions, ServerTLSSocketOptions])
def test_certificates_may_bring_their_key(cls):
    assert cls(certificates="both.pem").private_key is None


@pytest.mark.parametrize(
    ("required", "trusted", "check"),
    [
        pytest.param(False, None, None, id="none is asked for"),
        pytest.param(False, "ca.pem", None, id="asked for"),
        pytest.param(True, "ca.pem", None, id="required"),
        pytest.param(True, "ca.pem", verifier, id="required and asked about"),
        pytest.param(True, None, verifier, id="required and left to a verifier"),
        pytest.param(False, None, False, id="not verified"),
        pytest.param(False, "ca.pem", False, id="asked for and not verified"),
    ],
)
def test_what_a_server_may_want_of_its_clients(required, trusted, check):
    options = ServerTLSSocketOptions(
        client_certificate_required=required,
        trusted_certificates=trusted,
        certificate_verifier=check,
    )
    assert options.client_certificate_required is required


@pytest.mark.parametrize("trusted", [None, "ca.pem"])
def test_a_required_certificate_that_nobody_verifies_is_refused(trusted):
    told = refusal(
        ServerTLSSocketOptions,
        ValueError,
        client_certificate_required=True,
        trusted_certificates=trusted,
        certificate_verifier=False,
    )
    assert "client_certificate_required=True" in told
    assert "certificate_verifier=False" in told


def test_a_server_never_trusts_the_platforms_list_for_clients():
    told = refusal(ServerTLSSocketOptions, ValueError, client_certificate_required=True)
    assert "client_certificate_required=True" in told
    assert "trusted_certificates" in told
    assert "certificate_verifier" in told


def test_the_rules_for_client_certificates_hold_in_copies_too():
    strict = ServerTLSSocketOptions(
        client_certificate_required=True, trusted_certificates="ca.pem"
    )
    for changes in {"trusted_certificates": None}, {"certificate_verifier": False}:
        with pytest.raises(ValueError, match="client_certificate_required"):
            strict.replace(**changes)
    with pytest.raises(ValueError, match="client_certificate_required"):
        ServerTLSSocketOptions.from_options(TLSSocketOptions(), client_certificate_required=True)


# Names, protocols and versions


@pytest.mark.parametrize("name", WRONG_HOST_NAMES)
def test_what_is_no_host_name_is_a_value_error_that_shows_it(name):
    for cls in TLSSocketOptions, ServerTLSSocketOptions:
        told = refusal(cls, ValueError, sni=name)
        assert told.startswith("sni")
        assert repr(name) in told


@pytest.mark.parametrize("cls", [TLSSocketOptions, ServerTLSSocketOptions])
def test_a_name_is_listed_once(cls):
    told = refusal(cls, ValueError, sni=["example.com", "example.com"])
    assert told.startswith("sni=('example.com', 'example.com')")
    assert "once" in told


def test_a_client_sends_one_name():
    told = refusal(TLSSocketOptions, ValueError, sni=["example.com", "example.org"])
    assert told.startswith("sni=('example.com', 'example.org')")
    assert "one name" in told


def test_a_client_cannot_ask_for_a_wildcard():
    told = refusal(TLSSocketOptions, ValueError, sni="*.example.com")
    assert told.startswith("sni=('*.example.com',)")
    assert "wildcard" in told


def test_a_server_answers_to_several_names_and_wildcards():
    names = ("example.com", "*.example.com", "bücher.example")
    assert ServerTLSSocketOptions(sni=names).sni == names


def test_a_server_lists_at_least_one_name_or_none_at_all():
    told = refusal(ServerTLSSocketOptions, ValueError, sni=())
    assert told.startswith("sni=()")
    assert "None" in told


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_server_is_never_asked_for_an_address(address):
    told = refusal(ServerTLSSocketOptions, ValueError, sni=["example.com", address])
    assert told.startswith("sni=")
    assert address in told
    assert "address" in told


@pytest.mark.parametrize("cls", [TLSSocketOptions, ServerTLSSocketOptions])
def test_the_newest_version_is_not_older_than_the_oldest(cls):
    told = refusal(cls, ValueError, minimum_version="TLSv1.3", maximum_version="TLSv1.2")
    for part in "minimum_version", "maximum_version", "TLSv1_3", "TLSv1_2":
        assert part in told


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3", TLSVersion.TLSv1_3])
def test_one_version_may_be_both_oldest_and_newest(version):
    options = TLSSocketOptions(minimum_version=version, maximum_version=version)
    assert options.minimum_version == options.maximum_version
    assert isinstance(options.minimum_version, ssl.TLSVersion)


# Copies with changes


@every_record
def test_replace_makes_a_changed_copy_of_the_same_class(cls):
    options = cls(backlog=7)
    changed = options.replace(read_timeout=SECOND)
    assert type(changed) is cls
    assert (changed.backlog, changed.read_timeout) == (7, SECOND)
    assert (options.backlog, options.read_timeout) == (7, None)


def test_replace_may_put_a_default_back():
    options = TLSSocketOptions(alpn="h2", certificates="chain.pem", private_key="key.pem")
    assert options.replace(alpn=None, certificates=None, private_key=None) == TLSSocketOptions()


@every_record
def test_replace_checks_and_converts(cls):
    assert cls().replace(connection_timeout=1_000_000).connection_timeout == SECOND
    with pytest.raises(ValueError, match="backlog=-1"):
        cls().replace(backlog=-1)
    with pytest.raises(TypeError, match="non_blocking must be"):
        cls().replace(non_blocking=1)


@every_record
@pytest.mark.parametrize("kind", [SOCK_DGRAM, SOCK_RAW])
def test_only_streams_begin_with_a_proxy_header(cls, kind):
    told = refusal(cls, ValueError, ai_socktype=kind, proxy_protocol="v2")
    assert "proxy_protocol='v2'" in told
    assert "SOCK_STREAM" in told


def test_replace_checks_fields_together():
    options = TLSSocketOptions(certificates="chain.pem", private_key="key.pem")
    with pytest.raises(ValueError, match="private_key needs certificates"):
        options.replace(certificates=None)
    with pytest.raises(ValueError, match="minimum_version"):
        TLSSocketOptions(maximum_version="TLSv1.2").replace(minimum_version="TLSv1.3")


def test_a_plain_record_becomes_one_for_tls():
    plain = SocketOptions(read_timeout=SECOND, backlog=7, ai_family=AF_INET6)
    for cls in TLSSocketOptions, ServerTLSSocketOptions:
        options = cls.from_options(plain, alpn="h2")
        assert options == cls(read_timeout=SECOND, backlog=7, ai_family=AF_INET6, alpn=("h2",))


def test_a_record_for_tls_becomes_a_plain_one():
    tls = TLSSocketOptions(read_timeout=SECOND, alpn="h2", certificates=PEM.encode())
    assert SocketOptions.from_options(tls) == SocketOptions(read_timeout=SECOND)
    server = ServerTLSSocketOptions(backlog=7, certificates="chain.pem", sni=["a.test", "b.test"])
    assert SocketOptions.from_options(server) == SocketOptions(backlog=7)


def test_a_servers_record_becomes_a_clients():
    server = ServerTLSSocketOptions(
        certificates="chain.pem",
        trusted_certificates="ca.pem",
        client_certificate_required=True,
        alpn=["h2"],
    )
    assert TLSSocketOptions.from_options(server) == TLSSocketOptions(
        certificates="chain.pem", trusted_certificates="ca.pem", alpn="h2"
    )


def test_a_servers_names_may_be_too_many_for_a_client():
    server = ServerTLSSocketOptions(sni=["example.com", "example.org"])
    with pytest.raises(ValueError, match="sni"):
        TLSSocketOptions.from_options(server)
    assert TLSSocketOptions.from_options(server, sni="example.org").sni == ("example.org",)


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        (SocketOptions(), TLSSocketOptions, 30),
        (SocketOptions(), ServerTLSSocketOptions, 10),
        (TLSSocketOptions(), ServerTLSSocketOptions, 10),
        (ServerTLSSocketOptions(), TLSSocketOptions, 30),
        (TLSSocketOptions(handshake_timeout=SECOND * 10), ServerTLSSocketOptions, 10),
        (TLSSocketOptions(handshake_timeout=SECOND * 12), ServerTLSSocketOptions, 12),
        (ServerTLSSocketOptions(handshake_timeout=SECOND * 30), TLSSocketOptions, 30),
        (ServerTLSSocketOptions(handshake_timeout=SECOND * 12), TLSSocketOptions, 12),
    ],
)
def test_what_is_at_its_default_takes_the_default_of_the_new_class(source, target, expected):
    assert target.from_options(source).handshake_timeout == timedelta(seconds=expected)


def test_no_limit_is_kept_where_the_new_class_has_one():
    source = TLSSocketOptions(handshake_timeout=None)
    assert ServerTLSSocketOptions.from_options(source).handshake_timeout is None


@every_record
def test_changes_win_over_the_source(cls):
    source = SocketOptions(backlog=7, read_timeout=SECOND)
    changed = cls.from_options(source, backlog=9, read_timeout=None)
    assert (changed.backlog, changed.read_timeout) == (9, None)


@every_record
def test_from_options_checks_and_converts_the_changes(cls):
    source = SocketOptions(backlog=7)
    assert cls.from_options(source, connection_timeout=1_000_000).connection_timeout == SECOND
    with pytest.raises(ValueError, match="backlog=-1"):
        cls.from_options(source, backlog=-1)


@every_record
def test_from_options_takes_records_only(cls):
    for other in None, {}, {"backlog": 7}, SocketOptions, "netsock":
        with pytest.raises(TypeError, match="options must be a SocketOptions") as caught:
            cls.from_options(other)
        assert repr(other) in str(caught.value)


# Records as values


@every_record
def test_a_record_cannot_be_changed(cls):
    options = cls()
    for field in DEFAULTS[cls]:
        with pytest.raises(AttributeError):
            setattr(options, field, None)
        with pytest.raises(AttributeError):
            delattr(options, field)
    with pytest.raises(AttributeError):
        options.anything = 1
    assert options == cls()


def test_records_are_equal_by_class_and_value():
    made = [
        *(cls() for cls in RECORDS),
        *(cls(backlog=7) for cls in RECORDS),
        *(cls(socket_options=(1, 2, 3)) for cls in RECORDS),
    ]
    for one in made:
        assert [other for other in made if one == other] == [one]
        assert [other for other in made if not one != other] == [one]  # noqa: SIM202
    assert len(set(made)) == len(made)


def test_the_form_in_which_a_value_was_given_makes_no_difference():
    one = TLSSocketOptions(
        connection_timeout=1_000_000,
        local_address="127.0.0.1",
        socket_options=(1, 2, 3),
        alpn=["h2"],
        sni="example.com",
        certificates=Path("chain.pem"),
        private_key_password="x",
        minimum_version="TLSv1.3",
    )
    other = TLSSocketOptions(
        connection_timeout=SECOND,
        local_address=("127.0.0.1", 0),
        socket_options=[[1, 2, 3]],
        alpn="h2",
        sni=("example.com",),
        certificates=["chain.pem"],
        private_key_password=b"x",
        minimum_version=TLSVersion.TLSv1_3,
    )
    assert one == other
    assert hash(one) == hash(other)
    assert {one: "found"}[other] == "found"


def test_a_record_is_unlike_anything_else():
    assert SocketOptions() != PLAIN_DEFAULTS
    assert SocketOptions() != "SocketOptions()"


@pytest.mark.parametrize(
    ("o", "plain", "tls", "server"),
    [
        (SocketOptions(), True, False, False),
        (TLSSocketOptions(), True, True, False),
        (ServerTLSSocketOptions(), True, True, True),
        (SocketOptions, False, False, False),
        (ServerTLSSocketOptions, False, False, False),
        (None, False, False, False),
        (PLAIN_DEFAULTS, False, False, False),
    ],
)
def test_the_predicates_tell_the_three_classes(o, plain, tls, server):
    assert is_socket_options(o) is plain
    assert is_tls_socket_options(o) is tls
    assert is_server_tls_socket_options(o) is server


def test_a_verdict_is_a_number_and_words():
    verdict = VerifyResult(10, "certificate has expired")
    assert verdict == (10, "certificate has expired")
    assert (verdict.code, verdict.text) == (10, "certificate has expired")


# Any record

DURATION = st.timedeltas(MICROSECOND, YEAR)
HOST = st.sampled_from(["example.com", "www.example.org.", "bücher.example", "_x.test", "a"])
ADDRESS = st.sampled_from(["127.0.0.1", "192.0.2.7", "::1", "fe80::1%lo"])
PATH = st.sampled_from(["x.pem", "/etc/x.pem", Path("y.pem"), "ünter.pem"])
SOURCE = st.one_of(PATH, st.just(PEM.encode()), st.just(bytearray(PEM, "ascii")))
SOURCES = st.one_of(SOURCE, st.lists(SOURCE, min_size=1, max_size=3))
NUMBER = st.integers(0, 2**31 - 1)
OPTION = st.tuples(NUMBER, NUMBER, st.one_of(NUMBER, st.binary(max_size=8)))
PROTOCOL = st.text(st.characters(codec="ascii"), min_size=1, max_size=20)
PLAIN_FIELDS = {
    "ai_family": st.sampled_from([AF_UNSPEC, AF_INET, AF_INET6, AF_UNIX, 2]),
    "ai_socktype": st.sampled_from([SOCK_STREAM, SOCK_DGRAM, SOCK_RAW, 2]),
    "ai_flags": NUMBER,
    "ai_protocol": NUMBER,
    "non_blocking": st.booleans(),
    "connection_timeout": st.none() | DURATION | st.integers(100_000, YEAR // MICROSECOND),
    "read_timeout": st.none() | DURATION,
    "write_timeout": st.none() | DURATION,
    "local_address": st.none() | ADDRESS | st.tuples(ADDRESS, st.integers(0, 65535)),
    "socket_options": OPTION | st.lists(OPTION, max_size=3),
    "backlog": NUMBER,
    "reuse_port": st.booleans(),
    "v6_only": st.booleans(),
    "proxy_protocol": st.sampled_from([None, "v1", "v2", "any"]),
}
VERSIONS = [
    ("TLSv1.2", None),
    ("TLSv1.2", "TLSv1.2"),
    ("TLSv1.2", TLSVersion.TLSv1_3),
    (TLSVersion.TLSv1_3, None),
    (TLSVersion.TLSv1_3, "TLSv1.3"),
]
TLS_FIELDS = {
    **PLAIN_FIELDS,
    "handshake": st.booleans(),
    "private_key_password": st.sampled_from([None, SECRET, SECRET.encode()]),
    "certificates": st.none() | SOURCES,
    "certificate_verifier": st.sampled_from([None, False, verifier]),
    "trusted_certificates": st.none() | SOURCES,
    "sni": st.none() | st.just(()) | HOST | HOST.map(lambda name: [name]),
    "alpn": st.none() | PROTOCOL | st.lists(PROTOCOL, min_size=1, max_size=3, unique=True),
    "handshake_timeout": st.none() | DURATION,
    "close_timeout": DURATION,
    "keylog_file": st.none() | PATH,
}
SERVER_FIELDS = {
    **TLS_FIELDS,
    "sni": st.none()
    | HOST
    | st.lists(HOST, min_size=1, max_size=3, unique=True)
    | HOST.map("*.".__add__),
}


def only_streams_are_proxied(fields: dict[str, Any]) -> dict[str, Any]:
    if fields.get("ai_socktype") in (SOCK_DGRAM, SOCK_RAW):
        fields.pop("proxy_protocol", None)
    return fields


@st.composite
def fields_for(draw: st.DrawFn, cls: type[SocketOptions]) -> dict[str, Any]:
    """Draw any fields that *cls* takes together."""
    if cls is SocketOptions:
        return only_streams_are_proxied(draw(st.fixed_dictionaries({}, optional=PLAIN_FIELDS)))
    kinds = TLS_FIELDS if cls is TLSSocketOptions else SERVER_FIELDS
    fields = only_streams_are_proxied(draw(st.fixed_dictionaries({}, optional=kinds)))
    if fields.get("certificates") is not None:
        fields["private_key"] = draw(st.none() | SOURCE)
    oldest, newest = draw(st.sampled_from(VERSIONS))
    fields |= {"minimum_version": oldest, "maximum_version": newest}
    if cls is ServerTLSSocketOptions and fields.get("certificate_verifier") is not False:
        answerable = any(
            fields.get(it) is not None for it in ("trusted_certificates", "certificate_verifier")
        )
        fields["client_certificate_required"] = draw(st.booleans()) and answerable
    return fields


def any_class_and_fields() -> st.SearchStrategy[tuple[type[SocketOptions], dict[str, Any]]]:
    return st.sampled_from(RECORDS).flatmap(lambda cls: st.tuples(st.just(cls), fields_for(cls)))


@given(made=any_class_and_fields())
@settings(deadline=None)
def test_replace_of_the_defaults_is_the_constructor(made):
    cls, fields = made
    assert cls().replace(**fields) == cls(**fields)


@given(made=any_class_and_fields())
@settings(deadline=None)
def test_replacing_with_the_same_changes_nothing(made):
    cls, fields = made
    options = cls(**fields)
    for same in (
        options.replace(),
        options.replace(**fields),
        options.replace(**fields_of(options)),
        cls(**fields_of(options)),
        cls.from_options(options),
        cls.from_options(options, **fields),
        copy.copy(options),
    ):
        assert type(same) is cls
        assert same == options
        assert hash(same) == hash(options)
        assert repr(same) == repr(options)


@given(made=any_class_and_fields())
@settings(deadline=None)
def test_the_repr_of_any_record_names_what_was_set_and_no_secret(made):
    cls, fields = made
    options = cls(**fields)
    told = repr(options)
    assert SECRET not in told
    for name, default in DEFAULTS[cls].items():
        differs = getattr(options, name) != default
        assert bool(re.search(rf"[( ]{name}=", told)) == differs


@given(fields=fields_for(SocketOptions), target=st.sampled_from(RECORDS))
@settings(deadline=None)
def test_going_up_the_tree_and_down_again_loses_nothing(fields, target):
    plain = SocketOptions(**fields)
    up = target.from_options(plain)
    assert type(up) is target
    assert {name: getattr(up, name) for name in PLAIN_DEFAULTS} == fields_of(plain)
    assert SocketOptions.from_options(up) == plain


@given(made=any_class_and_fields())
@settings(deadline=None)
def test_going_down_keeps_what_the_plain_record_has_and_nothing_else(made):
    cls, fields = made
    options = cls(**fields)
    down = SocketOptions.from_options(options)
    assert type(down) is SocketOptions
    assert fields_of(down) == {name: getattr(options, name) for name in PLAIN_DEFAULTS}


@given(number=st.integers(max_value=99_999))
@settings(deadline=None)
def test_every_short_int_of_connection_timeout_is_refused(number):
    with pytest.raises(ValueError, match=r"connection_timeout.*timedelta"):
        SocketOptions(connection_timeout=number)
