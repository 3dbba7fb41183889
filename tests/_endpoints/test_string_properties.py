"""Endpoint strings at random: what is written comes back, and nothing else but ValueError."""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
import ssl
import tempfile
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.endpoints import clientFromString, quoteStringArgument, serverFromString

from twisted_netsock import ServerTLSSocketOptions, SocketOptions, TLSSocketOptions
from twisted_netsock._endpoints.strings import parse_client, parse_server

pytestmark = pytest.mark.once

EXAMPLES = settings(max_examples=60, deadline=None)

UNITS = {"us": 1, "ms": 1000, "s": 10**6, "m": 60 * 10**6, "h": 3600 * 10**6}
YEAR = 365 * 24 * 3600 * 10**6
WORDS = {True: ["yes", "true", "on", "1"], False: ["no", "false", "off", "0"]}
FLAGS = ["AI_NUMERICHOST", "AI_NUMERICSERV", "AI_ADDRCONFIG", "AI_V4MAPPED", "AI_ALL"]
SOCKET_OPTIONS = {
    "TCP_NODELAY": socket.IPPROTO_TCP,
    "SO_KEEPALIVE": socket.SOL_SOCKET,
    "IP_TTL": socket.IPPROTO_IP,
    "IPV6_UNICAST_HOPS": socket.IPPROTO_IPV6,
}


@st.composite
def durations(draw):
    """Draw a text with a unit, and the time that it says."""
    unit = draw(st.sampled_from(sorted(UNITS)))
    count = draw(st.integers(1, YEAR // UNITS[unit]))
    return f"{count}{unit}", timedelta(microseconds=count * UNITS[unit])


@st.composite
def booleans(draw):
    value = draw(st.booleans())
    word = draw(st.sampled_from(WORDS[value]))
    return draw(st.sampled_from([word, word.upper(), word.title()])), value


@st.composite
def flags(draw):
    names = draw(st.lists(st.sampled_from(FLAGS), min_size=1, unique=True))
    value = 0
    for name in names:
        value |= getattr(socket, name)
    shown = [
        draw(st.sampled_from([name, name.lower(), name.removeprefix("AI_")])) for name in names
    ]
    return ",".join(shown), value


@st.composite
def local_addresses(draw):
    """Draw an address, with a port or without."""
    port = draw(st.none() | st.integers(0, 65535))
    if draw(st.booleans()):
        host = str(draw(st.ip_addresses(v=6)))
        shown = f"[{host}]" if port is not None or draw(st.booleans()) else host
    else:
        host = shown = str(draw(st.ip_addresses(v=4)))
    return shown if port is None else f"{shown}:{port}", (host, port or 0)


def lists(items):
    """Draw some of *items*, as text with the commas inside them escaped."""
    drawn = st.lists(items, min_size=1, max_size=4, unique=True)
    return drawn.map(lambda all_: (",".join(each.replace(",", "\\,") for each in all_), all_))


def same(values):
    """Draw text that is the value itself."""
    return values.map(lambda value: (str(value), value))


# A backslash at the end would escape the comma that follows.
ASCII = st.characters(max_codepoint=127)
ALPN_NAMES = st.text(ASCII | st.sampled_from(",:\\="), min_size=1, max_size=20).filter(
    lambda name: not name.endswith("\\")
)
LABELS = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=10)
HOST_NAMES = st.lists(LABELS, min_size=2, max_size=4).map(lambda labels: ".".join([*labels, "x"]))
PATHS = st.text(
    st.characters(exclude_characters="\n\r\0", exclude_categories=["Cs"]), min_size=1, max_size=20
)

PLAIN = {
    "aiFamily": st.sampled_from(
        [
            ("inet", socket.AF_INET),
            ("AF_INET6", socket.AF_INET6),
            ("UNSPEC", socket.AF_UNSPEC),
        ]
    ),
    "aiSocktype": st.sampled_from([("stream", socket.SOCK_STREAM)]),
    "aiFlags": flags(),
    "aiProtocol": same(st.integers(0, 2**31 - 1)),
    "nonBlocking": st.sampled_from([(word, True) for word in WORDS[True]]),
    "connectionTimeout": durations(),
    "readTimeout": durations(),
    "writeTimeout": durations(),
    "localAddress": local_addresses(),
    "backlog": same(st.integers(0, 2**31 - 1)),
    "reusePort": booleans(),
    "v6Only": booleans(),
    "proxyProtocol": st.sampled_from([("v1", "v1"), ("V2", "v2")]),
}
TLS = {
    "certificateVerifier": st.sampled_from([("no", False), ("NO", False)]),
    "alpn": lists(ALPN_NAMES),
    "minimumVersion": st.sampled_from(
        [("TLSv1.2", ssl.TLSVersion.TLSv1_2), ("TLSv1.3", ssl.TLSVersion.TLSv1_3)]
    ),
    "maximumVersion": st.sampled_from([("TLSv1.3", ssl.TLSVersion.TLSv1_3)]),
    "handshakeTimeout": durations(),
    "closeTimeout": durations(),
    "suppressRaggedEofs": booleans(),
    "keylogFile": same(PATHS),
}
CLIENT = {"sni": same(HOST_NAMES)}
SERVER = {"sni": lists(HOST_NAMES | HOST_NAMES.map(lambda name: f"*.{name}"))}

FIELDS = {
    "aiFamily": "ai_family",
    "aiSocktype": "ai_socktype",
    "aiFlags": "ai_flags",
    "aiProtocol": "ai_protocol",
    "nonBlocking": "non_blocking",
    "connectionTimeout": "connection_timeout",
    "readTimeout": "read_timeout",
    "writeTimeout": "write_timeout",
    "localAddress": "local_address",
    "backlog": "backlog",
    "reusePort": "reuse_port",
    "v6Only": "v6_only",
    "proxyProtocol": "proxy_protocol",
    "certificateProfile": "certificate_profile",
    "serverIdentity": "server_identity",
    "certificateVerifier": "certificate_verifier",
    "alpn": "alpn",
    "minimumVersion": "minimum_version",
    "maximumVersion": "maximum_version",
    "handshakeTimeout": "handshake_timeout",
    "closeTimeout": "close_timeout",
    "suppressRaggedEofs": "suppress_ragged_eofs",
    "keylogFile": "keylog_file",
    "sni": "sni",
}


@st.composite
def settings_of(draw, kinds):
    """Draw keys in any order; return their text and the fields that they stand for."""
    chosen = draw(st.lists(st.sampled_from(sorted(kinds)), unique=True))
    parts, fields = [], {}
    for key in chosen:
        text, value = draw(kinds[key])
        parts.append(f"{key}={quoteStringArgument(text)}")
        fields[FIELDS[key]] = value
    options = []
    for name in draw(st.lists(st.sampled_from(sorted(SOCKET_OPTIONS)), unique=True)):
        number = draw(st.integers(-(2**31), 2**31 - 1))
        parts.append(f"{name}={number}")
        options.append((SOCKET_OPTIONS[name], getattr(socket, name), number))
    return ":".join(parts), {**fields, "socket_options": options}


def joined(*parts):
    """Return the string of *parts*, of which the last may be empty."""
    return ":".join(filter(None, parts))


# What is written comes back


@EXAMPLES
@given(settings_of(PLAIN))
def test_plain_options_come_back(drawn):
    keys, fields = drawn
    for parse, place in ((clientFromString, "x:80"), (serverFromString, "80")):
        endpoint = parse(reactor, joined("netsock", place, keys))
        assert endpoint.options == SocketOptions(**fields)


@EXAMPLES
@given(settings_of({**PLAIN, **TLS, **CLIENT}))
def test_options_of_tls_clients_come_back(drawn):
    keys, fields = drawn
    endpoint = clientFromString(reactor, joined("netsock-tls:x:80", keys))
    assert endpoint.options == TLSSocketOptions(**fields)


@pytest.fixture(scope="module")
def certificate(authority, tmp_path_factory):
    path = tmp_path_factory.mktemp("strings") / "both.pem"
    path.write_bytes(authority.issue("localhost").pem)
    return str(path)


@EXAMPLES
@given(settings_of({**PLAIN, **TLS, **SERVER}))
def test_options_of_tls_servers_come_back(certificate, drawn):
    keys, fields = drawn
    string = f"netsock-tls:80:certificates={quoteStringArgument(certificate)}"
    endpoint = serverFromString(reactor, joined(string, keys))
    assert endpoint.options == ServerTLSSocketOptions(certificates=certificate, **fields)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.text(",:\\=[] .aä-", min_size=1, max_size=8).filter(
            lambda name: not name.endswith("\\") and name.strip(".")
        ),
        min_size=1,
        max_size=3,
        unique=True,
    )
)
def test_lists_of_paths_come_back(certificate, names):
    with tempfile.TemporaryDirectory() as directory:
        paths = [os.path.join(directory, name) for name in names]
        for path in paths:
            shutil.copy(certificate, path)
        value = quoteStringArgument(",".join(path.replace(",", "\\,") for path in paths))
        endpoint = clientFromString(reactor, f"netsock-tls:x:443:trustedCertificates={value}")
        assert endpoint.options.trusted_certificates == tuple(paths)


@EXAMPLES
@given(
    st.ip_addresses(v=6).map(str) | st.ip_addresses(v=4).map(str) | HOST_NAMES,
    st.integers(1, 65535),
    st.sampled_from(["{0}:{1}", "{0}:service={1}", "node={0}:service={1}"]),
)
def test_places_come_back(host, port, form):
    string = "netsock:" + form.format(quoteStringArgument(host), port)
    assert repr(clientFromString(reactor, string)).startswith(f"<ClientEndpoint {host!r} '{port}'")


@EXAMPLES
@given(st.ip_addresses(v=6), st.integers(1, 65535))
def test_ipv6_literals_in_brackets_come_back(address, port):
    endpoint = clientFromString(reactor, f"netsock:[{address}]:{port}")
    assert repr(endpoint).startswith(f"<ClientEndpoint {str(address)!r} '{port}'")
    assert isinstance(address, ipaddress.IPv6Address)


# Nothing else but ValueError

KEYS = st.sampled_from(
    [
        *FIELDS,
        *SOCKET_OPTIONS,
        *("node", "service", "certificates", "privateKey", "privateKeyPasswordFile"),
        *("trustedCertificates", "clientCertificateRequired", "reloadEvery"),
        *("interface", "timeout", "read_timeout", "reactor", "self", "SO_NOTHING"),
    ]
)
ANY = st.text(st.characters(exclude_categories=[]), max_size=30)
NEARLY = st.sampled_from(
    [
        *("", "0", "-1", "1", "10s", "0s", "1h", "yes", "no", "inet", "unix", "[", "]", "[::1]"),
        *("::1", "::1]", "1.2.3.4:99999", "TLSv1.3", "h2,,", "\\", "\\,", "é", "xn--", "a..b"),
        *(".", "*", "%", "fe80::1%", "fe80::1%nosuch", "1" * 5000, "1e999s", "AI_", "af_"),
        *("AI_PASSIVE", "\0", "a\nb"),
    ]
)
VALUES = ANY | NEARLY
ARGS = st.lists(VALUES, max_size=4)


def outcome(parse, *args):
    """Return the text of the endpoint that is made, or of the ValueError."""
    try:
        return repr(parse(*args))
    except UnicodeError:
        # Somebody's codec speaks, and not we.
        raise
    except ValueError as error:
        return str(error)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([parse_client, parse_server]),
    st.booleans(),
    ARGS,
    st.dictionaries(KEYS | ANY, VALUES, max_size=4),
)
def test_random_parts_make_an_endpoint_or_a_value_error(parse, tls, args, kwargs):
    before = dict(kwargs)
    found = outcome(parse, reactor, tls, args, kwargs)
    assert found
    assert kwargs == before


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([parse_client, parse_server]),
    st.booleans(),
    ARGS,
    st.dictionaries(KEYS, VALUES, max_size=4),
)
def test_the_error_is_one_line(parse, tls, args, kwargs):
    found = outcome(parse, reactor, tls, args, kwargs)
    assert len(found.splitlines()) == 1


# Twisted itself stumbles over a backslash with nothing behind it.
@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([clientFromString, serverFromString]),
    st.sampled_from(["netsock", "netsock-tls"]),
    st.text(st.sampled_from(":=[]\\,ab1.\n %"), max_size=30).filter(lambda s: s[-1:] != "\\"),
)
def test_random_strings_make_an_endpoint_or_a_value_error(parse, prefix, rest):
    assert outcome(parse, reactor, f"{prefix}:{rest}")
