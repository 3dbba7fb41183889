"""Option records as values: copies with changes, equality, and any record at all."""

from __future__ import annotations

import copy
import re
from datetime import timedelta
from pathlib import Path
from socket import AF_INET, AF_INET6, AF_UNIX, AF_UNSPEC, SOCK_DGRAM, SOCK_RAW, SOCK_STREAM
from ssl import TLSVersion
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.forms import (
    DEFAULTS,
    MICROSECOND,
    PEM,
    PLAIN_DEFAULTS,
    RECORDS,
    SECOND,
    SECRET,
    YEAR,
    every_record,
    fields_of,
    refusal,
    verifier,
)
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
    "revocation_lists": st.none() | SOURCES,
    "certificate_profile": st.sampled_from(["default", "strict"]),
    "sni": st.none() | st.just(()) | HOST | HOST.map(lambda name: [name]),
    "alpn": st.none() | PROTOCOL | st.lists(PROTOCOL, min_size=1, max_size=3, unique=True),
    "handshake_timeout": st.none() | DURATION,
    "close_timeout": DURATION,
    "suppress_ragged_eofs": st.booleans(),
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
    if fields.get("certificate_verifier") is False:
        fields.pop("certificate_profile", None)
        fields.pop("revocation_lists", None)
    if cls is ServerTLSSocketOptions and fields.get("trusted_certificates") is None:
        fields.pop("revocation_lists", None)
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
