"""PROXY headers, byte by byte, and what they carry."""

from __future__ import annotations

import copy
import pickle
import socket
from socket import SOCK_DGRAM

import pytest
from twisted.internet.address import IPv4Address, UNIXAddress

from tests.support.forms import SIGNATURE, binary, tlv
from twisted_netsock import ProxyHeader, ProxyHeaderError, ProxyTLS, ProxyTLV, SocketAddress
from twisted_netsock._proxy_protocol.header import HEADER_LIMIT, header_end
from twisted_netsock._proxy_protocol.tlv import crc32c

pytestmark = pytest.mark.once

V4 = (("192.0.2.1", 56324), ("192.0.2.2", 443))
V6 = (("2001:db8::1", 56324), ("2001:db8::2", 443))

V4_BLOCK = socket.inet_aton("192.0.2.1") + socket.inet_aton("192.0.2.2") + b"\xdc\x04\x01\xbb"


# The forms, byte by byte


@pytest.mark.parametrize(
    ("header", "line"),
    [
        (ProxyHeader(*V4), b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n"),
        (ProxyHeader(*V6), b"PROXY TCP6 2001:db8::1 2001:db8::2 56324 443\r\n"),
        (
            ProxyHeader(V4[0], V6[1]),
            b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 56324 443\r\n",
        ),
        (ProxyHeader(), b"PROXY UNKNOWN\r\n"),
    ],
)
def test_version_1_is_a_line(header, line):
    assert header.encode("v1") == line
    assert ProxyHeader.parse(line) == header


@pytest.mark.parametrize(
    "header",
    [
        ProxyHeader(local=True),
        ProxyHeader(UNIXAddress(b"/a"), UNIXAddress(b"/b")),
        ProxyHeader(*V4, socket_type=SOCK_DGRAM),
    ],
)
def test_version_1_tells_unknown_of_what_it_has_no_form_for(header):
    assert header.encode("v1") == b"PROXY UNKNOWN\r\n"


@pytest.mark.parametrize(
    ("header", "encoded"),
    [
        (ProxyHeader(*V4), binary(0x21, 0x11, V4_BLOCK)),
        (ProxyHeader(*V4, socket_type=SOCK_DGRAM), binary(0x21, 0x12, V4_BLOCK)),
        (ProxyHeader(), binary(0x21, 0x00)),
        (ProxyHeader(local=True), binary(0x20, 0x00)),
        (
            ProxyHeader(UNIXAddress(b"/run/a"), UNIXAddress(b"\0b")),
            binary(0x21, 0x31, b"/run/a".ljust(108, b"\0") + b"\0b".ljust(108, b"\0")),
        ),
        (
            ProxyHeader(*V4, tlvs=[(2, b"example.com"), (0xE0, b"")]),
            binary(0x21, 0x11, V4_BLOCK + tlv(2, b"example.com") + tlv(0xE0, b"")),
        ),
    ],
)
def test_version_2_is_binary(header, encoded):
    assert header.encode("v2") == encoded
    assert ProxyHeader.parse(encoded) == header


def test_the_checksum_is_that_of_rfc_4960():
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA


@pytest.mark.parametrize("text", [b"::ffff:192.0.2.1", b"::FFFF:C000:201"])
def test_ipv4_that_is_mapped_into_ipv6_is_ipv4(text):
    header = ProxyHeader.parse(b"PROXY TCP6 " + text + b" 2001:db8::2 56324 443\r\n")
    assert header.source == SocketAddress(("192.0.2.1", 56324))
    assert header == ProxyHeader(V4[0], V6[1])


def test_what_stands_behind_unknown_is_ignored():
    longest = b"PROXY UNKNOWN " + b"f" * 91 + b"\r\n"
    assert len(longest) == 107
    assert ProxyHeader.parse(longest) == ProxyHeader()


@pytest.mark.parametrize("family", [0x00, 0x11, 0xFF])
def test_what_a_local_header_holds_is_ignored(family):
    assert ProxyHeader.parse(binary(0x20, family, b"anything")) == ProxyHeader(local=True)


@pytest.mark.parametrize(
    "data",
    [
        b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 56324\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443 1\r\n",
        b"PROXY TCP4  192.0.2.1 192.0.2.2 56324 443\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443 \r\n",
        b"PROXY TCP4 192.0.2.01 192.0.2.2 56324 443\r\n",
        b"PROXY TCP4 192.0.2 192.0.2.2 56324 443\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 056324 443\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 65536\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 -1\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 +1\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 56324 ٣\r\n".encode(),
        b"PROXY TCP4 2001:db8::1 2001:db8::2 56324 443\r\n",
        b"PROXY TCP6 192.0.2.1 192.0.2.2 56324 443\r\n",
        b"PROXY TCP6 fe80::1%lo fe80::2 56324 443\r\n",
        b"PROXY TCP6 ::/128 ::1 56324 443\r\n",
        b"PROXY UDP4 192.0.2.1 192.0.2.2 56324 443\r\n",
        b"PROXY UNKNOWNS\r\n",
        b"PROXY \r\n",
        b"proxy TCP4 192.0.2.1 192.0.2.2 56324 443\r\n",
        b"PROXY UNKNOWN " + b"f" * 92 + b"\r\n",
        binary(0x22, 0x11, V4_BLOCK),
        binary(0x11, 0x11, V4_BLOCK),
        binary(0x21, 0x10, V4_BLOCK),
        binary(0x21, 0x01, V4_BLOCK),
        binary(0x21, 0x13, V4_BLOCK),
        binary(0x21, 0x41, V4_BLOCK),
        binary(0x21, 0x11, V4_BLOCK[:-1]),
        binary(0x21, 0x21, V4_BLOCK),
        binary(0x21, 0x31, V4_BLOCK),
        binary(0x21, 0x11, V4_BLOCK, size=11),
        binary(0x21, 0x11, V4_BLOCK + b"\2"),
        binary(0x21, 0x11, V4_BLOCK + b"\2\0\5four"),
        binary(0x21, 0x11, V4_BLOCK + tlv(2, b"\xff")),
        binary(0x21, 0x11, V4_BLOCK + tlv(2, b"a") + tlv(2, b"b")),
        binary(0x21, 0x11, V4_BLOCK + tlv(5, bytes(129))),
        binary(0x21, 0x11, V4_BLOCK + tlv(0x20, b"\1\0\0\0")),
        binary(0x21, 0x11, V4_BLOCK + tlv(0x20, b"\1\0\0\0\0\x21")),
        binary(0x21, 0x11, V4_BLOCK + tlv(3, bytes(4))),
        binary(0x21, 0x11, V4_BLOCK + tlv(3, b"")),
        binary(0x21, 0x00, b"unspecified"),
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"",
    ],
)
def test_what_is_malformed_is_refused(data):
    with pytest.raises(ProxyHeaderError):
        ProxyHeader.parse(data)


def test_a_header_with_two_checksums_is_refused():
    encoded = ProxyHeader(*V4, checksum=True).encode("v2")
    doubled = binary(0x21, 0x11, encoded[16:] + encoded[-7:])
    with pytest.raises(ProxyHeaderError, match="CRC32C"):
        ProxyHeader.parse(doubled)


@pytest.mark.parametrize(
    ("data", "version"),
    [
        (b"G", "any"),
        (b"\x16", "any"),
        (b"PROXX", "any"),
        (b"\r\n\r\nX", "any"),
        (b"P", "v2"),
        (b"\r", "v1"),
        (SIGNATURE + b"\x11", "any"),
        (b"PROXY TCP4\n", "any"),
        (b"PROXY " + b"x" * 101, "any"),
        (binary(0x21, 0x11, size=HEADER_LIMIT - 15), "any"),
    ],
)
def test_what_cannot_become_a_header_is_refused_at_once(data, version):
    with pytest.raises(ProxyHeaderError):
        header_end(data, version)


def test_a_header_as_long_as_allowed_is_waited_for():
    assert header_end(b"PROXY " + b"x" * 100, "v1") is None
    assert header_end(binary(0x21, 0x11, size=HEADER_LIMIT - 16), "v2") == HEADER_LIMIT


# What it carries


def test_the_known_values_have_names():
    about = ProxyTLS(
        client=ProxyTLS.SSL | ProxyTLS.CERT_CONN,
        tlvs=[
            (ProxyTLV.SSL_VERSION, b"TLSv1.3"),
            (ProxyTLV.SSL_CN, "Jürgen".encode()),
            (ProxyTLV.SSL_CIPHER, b"TLS_AES_128_GCM_SHA256"),
        ],
    )
    header = ProxyHeader(
        *V4,
        tlvs=[
            (ProxyTLV.ALPN, b"h2"),
            (ProxyTLV.AUTHORITY, b"example.com"),
            (ProxyTLV.UNIQUE_ID, b"\0\1"),
            (ProxyTLV.SSL, about.encode()),
        ],
    )
    assert (header.alpn, header.authority, header.unique_id) == ("h2", "example.com", b"\0\1")
    assert header.tls == about
    assert (about.version, about.common_name) == ("TLSv1.3", "Jürgen")
    assert about.cipher == "TLS_AES_128_GCM_SHA256"
    assert about.verified


def test_what_is_not_told_is_none():
    header = ProxyHeader(*V4)
    assert (header.alpn, header.authority, header.unique_id, header.tls) == (None,) * 4
    assert (ProxyTLS().version, ProxyTLS().common_name, ProxyTLS().cipher) == (None,) * 3


@pytest.mark.parametrize(
    ("client", "verify", "verified"),
    [
        (ProxyTLS.SSL, 0, False),
        (ProxyTLS.SSL | ProxyTLS.CERT_CONN, 0, True),
        (ProxyTLS.SSL | ProxyTLS.CERT_SESS, 0, True),
        (ProxyTLS.SSL | ProxyTLS.CERT_CONN, 18, False),
    ],
)
def test_a_client_is_verified_only_with_a_certificate(client, verify, verified):
    """A proxy's verdict is 0 as well if its client showed none."""
    assert ProxyTLS(client=client, verify=verify).verified is verified


def test_addresses_are_taken_in_every_form():
    expected = ProxyHeader(*V4)
    assert ProxyHeader(SocketAddress(V4[0]), SocketAddress(V4[1])) == expected
    assert ProxyHeader(IPv4Address("TCP", *V4[0]), IPv4Address("TCP", *V4[1])) == expected
    zoned = ProxyHeader(("fe80::1%lo", 1), ("fe80::1", 1, 5, 7))
    assert zoned.source == zoned.destination == ("fe80::1", 1, 0, 0)


def test_a_header_is_a_value():
    header = ProxyHeader(*V4, tlvs=[(2, b"example.com")])
    assert header == ProxyHeader(*V4, tlvs=((ProxyTLV.AUTHORITY, b"example.com"),))
    assert hash(header) == hash(copy.deepcopy(header))
    assert pickle.loads(pickle.dumps(header)) == header
    with pytest.raises(AttributeError):
        header.local = True


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"source": ("192.0.2.1", 1)}, ValueError, "both or neither"),
        ({"source": ("example.com", 1)}, ValueError, "numeric"),
        ({"source": 5}, TypeError, "address"),
        ({"source": ("",), "destination": ("192.0.2.1", 1)}, ValueError, "one family"),
        ({"source": ("/" * 109,), "destination": ("",)}, ValueError, "does not fit"),
        ({"source": ("/a\0b",), "destination": ("",)}, ValueError, "does not fit"),
        ({"source": SocketAddress(()), "destination": ("",)}, ValueError, "says nothing"),
        ({"local": True, "tlvs": [(1, b"h2")]}, ValueError, "local=True"),
        ({"local": True, "checksum": True}, ValueError, "local=True"),
        ({"local": 1}, TypeError, "local"),
        ({"checksum": "yes"}, TypeError, "checksum"),
        ({"socket_type": 7}, ValueError, "socket_type"),
        ({"socket_type": SOCK_DGRAM}, ValueError, "socket_type"),
        ({"tlvs": b"\1\0\0"}, TypeError, "tlvs"),
        ({"tlvs": [(1, "h2")]}, TypeError, "tlvs"),
        ({"tlvs": [(True, b"h2")]}, TypeError, "tlvs"),
        ({"tlvs": [(1,)]}, TypeError, "tlvs"),
        ({"tlvs": [(256, b"")]}, ValueError, "256"),
        ({"tlvs": [(0xE0, bytes(65536))]}, ValueError, "65535"),
        ({"tlvs": [(0xE0, bytes(60000)), (0xE1, bytes(6000))]}, ValueError, "65535"),
        ({"tlvs": [(1, b"h2"), (1, b"h3")]}, ValueError, "more than once"),
        ({"tlvs": [(3, bytes(4))]}, ValueError, "checksum=True"),
        ({"tlvs": [(5, bytes(129))]}, ValueError, "128"),
        ({"tlvs": [(2, b"\xff")]}, ValueError, "UTF-8"),
        ({"tlvs": [(0x20, b"")]}, ValueError, "cut off"),
    ],
)
def test_what_does_not_fit_into_a_header_is_refused(fields, error, message):
    with pytest.raises(error, match=message):
        ProxyHeader(**fields)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"client": 256}, ValueError),
        ({"verify": -1}, ValueError),
        ({"verify": 2**32}, ValueError),
        ({"client": "1"}, TypeError),
        ({"verify": True}, TypeError),
    ],
)
def test_what_does_not_fit_into_a_word_about_tls_is_refused(fields, error):
    with pytest.raises(error, match=next(iter(fields))):
        ProxyTLS(**fields)


@pytest.mark.parametrize("fields", [{"tlvs": [(1, b"h2")]}, {"checksum": True}])
def test_version_1_loses_nothing_silently(fields):
    with pytest.raises(ValueError, match="'v2' has"):
        ProxyHeader(*V4, **fields).encode("v1")


@pytest.mark.parametrize("version", ["any", "v3", "", 1, None])
def test_there_is_no_other_version(version):
    with pytest.raises(ValueError, match="version="):
        ProxyHeader(*V4).encode(version)
