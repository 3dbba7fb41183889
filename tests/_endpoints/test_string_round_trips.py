"""From options to a string and back: every field that a string can express, whatever it holds."""

from __future__ import annotations

import os
import socket
import ssl
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.endpoints import clientFromString, quoteStringArgument, serverFromString

from tests.support.forms import endpoint_string
from twisted_netsock import ServerTLSSocketOptions, SocketOptions, TLSSocketOptions
from twisted_netsock.options import record_fields

pytestmark = pytest.mark.once

EXAMPLES = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

AWKWARD = st.sampled_from(list(":,\\ ='\"[]%#~.ä漢a"))
# A backslash before the comma of a list would escape it.
NAMES = (
    st.text(AWKWARD, min_size=1, max_size=10)
    .filter(lambda name: name.strip(".") and not name.endswith("\\"))
    .filter(lambda name: len(name.encode()) < 100)
)
TIMES = st.integers(1, 365 * 24 * 3600 * 10**6).map(lambda count: timedelta(microseconds=count))
NUMBERS = st.integers(0, 2**31 - 1)
HOSTS = st.lists(st.text("abc123", min_size=1, max_size=5), min_size=2, max_size=3).map(
    lambda labels: ".".join([*labels, "example"])
)
SETTINGS = st.integers(-(2**31), 2**31 - 1)
SOCKET_OPTIONS = st.lists(
    st.sampled_from(
        [
            (socket.IPPROTO_TCP, socket.TCP_NODELAY),
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            (socket.SOL_SOCKET, socket.SO_RCVBUF),
            (socket.IPPROTO_IP, socket.IP_TTL),
            (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS),
        ]
    ),
    unique=True,
).flatmap(
    lambda names: st.tuples(*(st.tuples(st.just(lv), st.just(no), SETTINGS) for lv, no in names))
)
LOCAL = st.tuples(st.ip_addresses().map(str), st.integers(0, 65535))
FLAGS = st.lists(
    st.sampled_from([socket.AI_NUMERICHOST, socket.AI_NUMERICSERV, socket.AI_ADDRCONFIG])
).map(lambda flags: sum(set(flags)))

PLAIN: dict[str, Any] = {
    "ai_family": st.sampled_from([socket.AF_UNSPEC, socket.AF_INET, socket.AF_INET6]),
    "ai_flags": FLAGS,
    "ai_protocol": NUMBERS,
    "connection_timeout": TIMES,
    "read_timeout": TIMES,
    "write_timeout": TIMES,
    "local_address": LOCAL,
    "socket_options": SOCKET_OPTIONS,
    "backlog": NUMBERS,
    "reuse_port": st.booleans(),
    "v6_only": st.booleans(),
    "proxy_protocol": st.sampled_from(["v1", "v2"]),
}
TLS: dict[str, Any] = {
    **PLAIN,
    "certificate_profile": st.just("strict"),
    "certificate_verifier": st.just(False),
    "alpn": st.lists(
        st.text(AWKWARD.filter(str.isascii), min_size=1, max_size=10).filter(
            lambda name: not name.endswith("\\")
        ),
        min_size=1,
        max_size=3,
        unique=True,
    ),
    "minimum_version": st.just(ssl.TLSVersion.TLSv1_3),
    "maximum_version": st.just(ssl.TLSVersion.TLSv1_3),
    "handshake_timeout": TIMES,
    "close_timeout": TIMES,
    "suppress_ragged_eofs": st.booleans(),
    "keylog_file": NAMES,
}
PLAIN_NAMES = HOSTS | HOSTS.map(lambda name: f"*.{name}")
SNI = {
    "client": st.lists(HOSTS, max_size=1),
    "server": st.lists(PLAIN_NAMES, min_size=1, max_size=3, unique=True),
}
TRUST = {"trusted_certificates", "certificates", "private_key", "revocation_lists"}
NOT_IN_STRINGS = {"handshake", "private_key_password", "trusted_certificates_password"}
OF_CLIENTS = {"proxy", "proxy_trusted_certificates", "server_identity"}
ONE_VALUE = {"ai_socktype", "non_blocking"}
"""What strings have keys for, of which endpoints take no other value than the default."""


def records(cls: type[SocketOptions], fields: dict[str, Any]) -> Any:
    def make(given: dict[str, Any]) -> SocketOptions:
        if "certificate_profile" in given:
            # It verifies.
            given.pop("certificate_verifier", None)
        return cls(**given)

    return st.fixed_dictionaries({}, optional=fields).map(make)


def test_every_field_is_drawn_or_has_a_reason():
    drawn = {*TLS, "sni", "client_certificate_required", *TRUST}
    fields = {field.name for field in record_fields(ServerTLSSocketOptions)}
    assert fields - NOT_IN_STRINGS - OF_CLIENTS - ONE_VALUE <= drawn


@EXAMPLES
@given(records(SocketOptions, PLAIN), HOSTS | st.ip_addresses().map(str))
def test_plain_records_come_back(options, node):
    client = clientFromString(reactor, endpoint_string(options, node, "80"))
    server = serverFromString(reactor, endpoint_string(options, node, "80"))
    assert client.options == server.options == options
    assert repr(client).startswith(f"<ClientEndpoint {node!r} '80' ")
    assert repr(server).startswith(f"<ServerEndpoint {node!r} '80' ")


@EXAMPLES
@given(records(TLSSocketOptions, {**TLS, "sni": SNI["client"]}), HOSTS)
def test_records_of_tls_clients_come_back(options, node):
    assert clientFromString(reactor, endpoint_string(options, node, "443")).options == options


@pytest.fixture(scope="module")
def issued(authority):
    return authority.issue("localhost")


def write(directory: Path, name: str, content: bytes) -> str:
    path = directory / name
    path.write_bytes(content)
    return os.fspath(path)


@settings(EXAMPLES, max_examples=60)
@given(
    records(ServerTLSSocketOptions, {**TLS, "sni": SNI["server"]}),
    st.lists(NAMES, min_size=3, max_size=4, unique=True),
    st.booleans(),
)
def test_records_of_tls_servers_come_back(issued, tmp_path, options, names, required):
    certificate, key, *trusted = names
    options = options.replace(
        certificates=write(tmp_path, certificate, issued.certificate_pem),
        private_key=write(tmp_path, key, issued.private_key_pem),
        trusted_certificates=[write(tmp_path, name, issued.certificate_pem) for name in trusted],
        client_certificate_required=required and options.certificate_verifier is not False,
    )
    text = endpoint_string(options, "localhost", "443", "reloadEvery=90m")
    assert serverFromString(reactor, text).options == options


@EXAMPLES
@given(NAMES, st.booleans())
def test_unix_paths_come_back(path, tls):
    record = TLSSocketOptions(certificate_verifier=False) if tls else SocketOptions()
    options = record.replace(ai_family=socket.AF_UNIX, local_address=None)
    endpoint = clientFromString(reactor, endpoint_string(options, path, None))
    assert endpoint.options == options
    assert repr(endpoint).startswith(f"<ClientEndpoint {path!r} ")


@settings(EXAMPLES, max_examples=40)
@given(NAMES, st.binary(min_size=1, max_size=30).filter(lambda word: word.rstrip(b"\r\n")))
def test_passwords_come_back_from_their_file(issued, tmp_path, name, word):
    word = word.rstrip(b"\r\n")
    password = write(tmp_path, name, word + b"\n")
    options = TLSSocketOptions(certificate_verifier=False)
    more = f"privateKeyPasswordFile={quoteStringArgument(password)}"
    endpoint = clientFromString(reactor, endpoint_string(options, "localhost", "443", more))
    assert endpoint.options == options.replace(private_key_password=word)
