"""Option records: what they refuse, without showing a secret."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from socket import AF_INET, SOCK_STREAM, SocketKind
from ssl import TLSVersion
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from tests.support.forms import (
    MICROSECOND,
    PEM,
    PLAIN_DEFAULTS,
    SECOND,
    SECRET,
    SECRET_FIELDS,
    TLS_DEFAULTS,
    YEAR,
    beside,
    every_record,
    owner,
    refusal,
    whole_story,
)
from twisted_netsock import ServerTLSSocketOptions, SocketOptions, TLSSocketOptions

pytestmark = pytest.mark.once


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
    "certificate_profile": [None, True, 1, b"strict", ["strict"]],
    "server_identity": [1, b"example.com", True, ["example.com"]],
    "sni": [1, b"example.com", True, object()],
    "alpn": [1, b"h2", True, object()],
    "minimum_version": [None, 1.2, b"TLSv1.2", ["TLSv1.2"], object()],
    "maximum_version": [1.3, b"TLSv1.3", ["TLSv1.3"], object()],
    "handshake_timeout": DURATIONS,
    "close_timeout": [None, *DURATIONS],
    "suppress_ragged_eofs": BOOLEANS,
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

WRONG_SECRETS: dict[str, list[Any]] = {
    "private_key": [1, True, ["key.pem"], object()],
    "private_key_password": [1, True, ["x"], object(), bytearray(b"x")],
    "trusted_certificates_password": [1, True, ["x"], object(), bytearray(b"x")],
    "certificates": [1, True, [1], [None], [["chain.pem"]], object()],
    "trusted_certificates": [1, True, [1], [None], [["ca.pem"]], object()],
    "revocation_lists": [1, True, [1], [None], [["crl.pem"]], object()],
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
    "server_identity": [
        (name, "a host name, an address, or a URI")
        for name in ("", "*.example.com", "a b", "spiffe:", "spiffe://a b", "://example.com")
    ],
    "certificate_profile": [(name, "default, strict") for name in ("", "Strict", "strict ", "no")],
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
def test_a_wrong_type_of_what_may_be_secret_is_reported_by_its_type(field):
    for value in WRONG_SECRETS[field]:
        told = refusal(TLSSocketOptions, TypeError, **beside(field), **{field: value})
        assert told.startswith(f"{field} must be ")
        assert "<" in told


@pytest.mark.parametrize(
    "field", ["private_key", "certificates", "trusted_certificates", "revocation_lists"]
)
def test_a_source_without_content_or_name_is_a_value_error(field):
    for empty in "", b"", bytearray(), memoryview(b""), "a\0b":
        told = refusal(TLSSocketOptions, ValueError, **beside(field), **{field: empty})
        assert told.startswith(field)
        if field != "private_key":
            assert refusal(TLSSocketOptions, ValueError, **{field: ["x.pem", empty]}) == told


@pytest.mark.parametrize(
    "field", ["certificates", "trusted_certificates", "revocation_lists", "alpn"]
)
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


# Secrets

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


@pytest.mark.parametrize(
    "field", ["private_key", "certificates", "trusted_certificates", "revocation_lists"]
)
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
                trusted_certificates_password=SECRET,
                certificates=certificates,
                trusted_certificates=certificates,
                revocation_lists=PEM.encode(),
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
