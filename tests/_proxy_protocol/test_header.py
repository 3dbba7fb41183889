"""PROXY headers as values: how they are written, read, and compared with what Twisted reads."""

from __future__ import annotations

import socket
from socket import SOCK_DGRAM, SOCK_STREAM

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.protocols.haproxy._exceptions import InvalidProxyHeader
from twisted.protocols.haproxy._v1parser import V1Parser
from twisted.protocols.haproxy._v2parser import V2Parser

from tests.support.forms import FULL, SIGNATURE, binary
from twisted_netsock import ProxyHeader, ProxyHeaderError, ProxyTLS, ProxyTLV
from twisted_netsock._proxy_protocol.header import HEADER_LIMIT, header_end
from twisted_netsock.addresses import to_twisted_address

pytestmark = pytest.mark.once

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


# What headers there are

PORTS = st.integers(0, 65535)
INET = st.tuples(st.ip_addresses(v=4).map(str), PORTS)
INET6 = st.tuples(st.ip_addresses(v=6).map(str), PORTS)
PATHS = st.one_of(
    st.just(b""),
    st.binary(min_size=1, max_size=108).filter(lambda path: b"\0" not in path),
    st.binary(min_size=1, max_size=107)
    .filter(lambda name: not name.endswith(b"\0"))
    .map(b"\0".__add__),
).map(UNIXAddress)
CUSTOM = st.tuples(st.integers(0xE0, 0xFF), st.binary(max_size=50))
TLS_TLVS = st.fixed_dictionaries(
    {},
    optional={
        ProxyTLV.SSL_VERSION: st.just(b"TLSv1.3"),
        ProxyTLV.SSL_CN: st.text(max_size=20).map(str.encode),
        ProxyTLV.SSL_CIPHER: st.just(b"TLS_AES_128_GCM_SHA256"),
    },
).map(lambda found: tuple(found.items()))
TLS = st.builds(
    ProxyTLS, client=st.integers(0, 255), verify=st.integers(0, 2**32 - 1), tlvs=TLS_TLVS
)
KNOWN = st.fixed_dictionaries(
    {},
    optional={
        ProxyTLV.ALPN: st.sampled_from([b"h2", b"http/1.1"]),
        ProxyTLV.AUTHORITY: st.text(max_size=30).map(str.encode),
        ProxyTLV.UNIQUE_ID: st.binary(max_size=128),
        ProxyTLV.SSL: TLS.map(ProxyTLS.encode),
        ProxyTLV.NETNS: st.just(b"blue"),
        ProxyTLV.NOOP: st.binary(max_size=4),
    },
).map(lambda found: tuple(found.items()))
TLVS = st.builds(tuple.__add__, KNOWN, st.lists(CUSTOM, max_size=3).map(tuple))


@st.composite
def headers(draw: st.DrawFn, *, binary_form: bool = True) -> ProxyHeader:
    """Draw any header that version 2, or version 1, can tell."""
    if not binary_form:
        if draw(st.booleans()):
            return ProxyHeader(draw(INET | INET6), draw(INET | INET6))
        return ProxyHeader()
    what = draw(st.sampled_from(["local", "unknown", "inet", "unix"]))
    if what == "local":
        return ProxyHeader(local=True)
    ends = {"unknown": st.none(), "inet": INET | INET6, "unix": PATHS}[what]
    kinds = st.just(SOCK_STREAM) if what == "unknown" else st.sampled_from([1, 2])
    return ProxyHeader(
        draw(ends),
        draw(ends),
        tlvs=draw(TLVS),
        checksum=draw(st.booleans()),
        socket_type=socket.SocketKind(draw(kinds)),
    )


ENCODED = st.one_of(
    headers().map(lambda header: header.encode("v2")),
    headers(binary_form=False).map(lambda header: header.encode("v1")),
)


@patient
@given(header=headers(), behind=st.binary(max_size=40))
def test_a_header_of_version_2_comes_back(header, behind):
    encoded = header.encode("v2")
    assert ProxyHeader.parse(encoded) == header
    assert header_end(encoded + behind, "v2", limit=FULL) == len(encoded)
    assert header_end(encoded + behind, "any", limit=FULL) == len(encoded)


@patient
@given(header=headers(binary_form=False), behind=st.binary(max_size=40))
def test_a_header_of_version_1_comes_back(header, behind):
    encoded = header.encode("v1")
    assert len(encoded) <= 107
    assert ProxyHeader.parse(encoded) == header
    assert header_end(encoded + behind, "v1") == len(encoded)
    assert header_end(encoded + behind, "any") == len(encoded)


@patient
@given(encoded=ENCODED, data=st.data())
def test_no_part_of_a_header_is_a_header(encoded, data):
    """And where it ends is never reported wrongly on the way."""
    size = data.draw(st.integers(0, len(encoded) - 1))
    part = encoded[:size]
    assert header_end(part, "any", limit=FULL) in {None, len(encoded)}
    with pytest.raises(ProxyHeaderError):
        ProxyHeader.parse(part)


@patient
@given(encoded=ENCODED, data=st.data())
def test_a_flipped_byte_is_an_error_or_another_header(encoded, data):
    place = data.draw(st.integers(0, len(encoded) - 1))
    broken = bytearray(encoded)
    broken[place] ^= data.draw(st.integers(1, 255))
    try:
        found = ProxyHeader.parse(bytes(broken))
    except ProxyHeaderError:
        return
    assert isinstance(found, ProxyHeader)


@patient
@given(header=headers().filter(lambda each: each.checksum), data=st.data())
def test_with_a_checksum_a_flipped_byte_is_never_taken_for_the_same_header(header, data):
    encoded = bytearray(header.encode("v2"))
    place = data.draw(st.integers(0, len(encoded) - 1))
    encoded[place] ^= data.draw(st.integers(1, 255))
    try:
        found = ProxyHeader.parse(bytes(encoded))
    except ProxyHeaderError:
        return
    # It is the proxy's own now, or the type of the checksum was hit.
    assert found.local or not found.checksum


@patient
@given(noise=st.binary(max_size=300), beginning=st.sampled_from([b"", b"PROXY ", SIGNATURE]))
def test_noise_raises_nothing_else(noise, beginning):
    for version in ("v1", "v2", "any"):
        try:
            end = header_end(beginning + noise, version)
        except ProxyHeaderError:
            continue
        assert end is None or end <= HEADER_LIMIT
    try:
        ProxyHeader.parse(beginning + noise)
    except ProxyHeaderError:
        pass


@patient
@given(command=st.integers(0, 255), family=st.integers(0, 255), block=st.binary(max_size=260))
def test_any_block_of_version_2_is_a_header_or_an_error(command, family, block):
    try:
        found = ProxyHeader.parse(binary(command, family, block))
    except ProxyHeaderError:
        return
    assert found == ProxyHeader.parse(found.encode("v2"))


# Compared with Twisted's parsers


def twisted_ends(header: ProxyHeader):
    if header.source is None or header.destination is None:
        return None, None
    return tuple(
        to_twisted_address(each, header.socket_type)
        for each in (header.source, header.destination)
    )


def unmapped(address):
    """Return an address of Twisted's as we have it: IPv4 that is mapped is IPv4."""
    if isinstance(address, IPv4Address | IPv6Address):
        [found, _] = twisted_ends(
            ProxyHeader(
                address,
                address,
                socket_type=SOCK_DGRAM if address.type == "UDP" else SOCK_STREAM,
            )
        )
        return found
    if isinstance(address, UNIXAddress):
        return UNIXAddress(address.name or None)
    return address


@patient
@given(header=headers(), behind=st.binary(max_size=40))
def test_twisted_reads_version_2_as_we_do(header, behind):
    info, rest = V2Parser().feed(header.encode("v2") + behind)
    assert rest == behind
    assert (unmapped(info.source), unmapped(info.destination)) == twisted_ends(header)


@patient
@given(
    header=headers(binary_form=False).filter(lambda each: each.source),
    behind=st.binary(max_size=40),
)
def test_twisted_reads_version_1_as_we_do(header, behind):
    info, rest = V1Parser().feed(header.encode("v1") + behind)
    assert rest == behind
    assert (unmapped(info.source), unmapped(info.destination)) == twisted_ends(header)


@patient
@given(command=st.integers(0, 0x2F), family=st.integers(0, 0x33), block=st.binary(max_size=230))
def test_what_we_take_of_version_2_twisted_takes_too(command, family, block):
    data = binary(command, family, block)
    try:
        ours = ProxyHeader.parse(data)
    except ProxyHeaderError:
        return
    info = V2Parser.parse(data)
    if b"\0" not in block[:216] or family < 0x30:
        # Twisted keeps what stands behind a path's end.
        assert (unmapped(info.source), unmapped(info.destination)) == twisted_ends(ours)


WORDS = st.sampled_from(
    ["PROXY", "TCP4", "TCP6", "UNKNOWN", "192.0.2.1", "2001:db8::1", "0", "80", "080", "65536", ""]
)


@patient
@given(words=st.lists(WORDS, min_size=1, max_size=7))
def test_what_we_take_of_version_1_twisted_takes_too(words):
    data = " ".join(words).encode() + b"\r\n"
    try:
        ours = ProxyHeader.parse(data)
    except ProxyHeaderError:
        return
    try:
        info = V1Parser.parse(data[:-2])
    except InvalidProxyHeader:
        # It wants a space behind UNKNOWN, and the specification does not.
        assert data == b"PROXY UNKNOWN\r\n"
        return
    assert (unmapped(info.source), unmapped(info.destination)) == twisted_ends(ours)
