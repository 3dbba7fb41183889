"""Option records: what they take, in which units, and what they say about it."""

from __future__ import annotations

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

import attrs
import pytest

from tests.support.forms import (
    DEFAULTS,
    MICROSECOND,
    RECORDS,
    SECOND,
    WRONG_HOST_NAMES,
    YEAR,
    every_record,
    fields_of,
    owner,
    refusal,
    verifier,
)
from twisted_netsock import ServerTLSSocketOptions, SocketOptions, TLSSocketOptions

pytestmark = pytest.mark.once


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
    ("proxy", "environment", "environment"),
    ("proxy", "http://me:secret@h:1", "http://me:secret@h:1"),
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
    ("revocation_lists", [b"\x30", Path("crl.pem")], (b"\x30", "crl.pem")),
    ("certificate_profile", "default", "default"),
    ("certificate_profile", "strict", "strict"),
    ("server_identity", "spiffe://example.com/web", "spiffe://example.com/web"),
    ("server_identity", "b\u00fccher.example", "b\u00fccher.example"),
    ("server_identity", "::1", "::1"),
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


def test_a_server_identity_is_for_clients_that_verify():
    told = refusal(ServerTLSSocketOptions, ValueError, server_identity="example.com")
    assert "is for clients" in told
    told = refusal(
        TLSSocketOptions, ValueError, server_identity="example.com", certificate_verifier=False
    )
    assert "not be verified" in told


def test_what_says_how_to_verify_verifies():
    for fields in {"certificate_profile": "strict"}, {"revocation_lists": "crl.pem"}:
        told = refusal(TLSSocketOptions, ValueError, **fields, certificate_verifier=False)
        assert "verify nothing" in told
    told = refusal(ServerTLSSocketOptions, ValueError, revocation_lists="crl.pem")
    assert "needs trusted_certificates on a server" in told


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
def test_an_int_that_was_meant_in_another_unit_gets_the_timedelta_that_was_meant(number):
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
