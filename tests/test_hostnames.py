"""Host names and addresses as text."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twisted_netsock._hostnames import (
    host_to_ascii,
    host_to_look_up,
    is_host_name,
    is_ip_address,
    reference_identity,
    strip_zone,
)

pytestmark = pytest.mark.once

LABELS = st.from_regex(r"[a-z0-9_]([a-z0-9_-]{0,20}[a-z0-9_])?", fullmatch=True)
NAMES = (
    st.lists(LABELS, min_size=2, max_size=5).map(".".join).filter(lambda n: not n[-1].isdigit())
)
ADDRESSES = st.ip_addresses().map(str)
ZONES = st.from_regex(r"[a-z][a-z0-9]{0,14}", fullmatch=True)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "0.0.0.0", "::", "::1", "FE80::1", "::ffff:1.2.3.4"]
)
def test_a_numeric_host_is_an_address(host):
    assert is_ip_address(host)


@pytest.mark.parametrize("zone", ["eth0", "lo", "1", "br-4f2a", "wlan0.100"])
def test_an_ipv6_address_may_have_a_zone(zone):
    assert is_ip_address(f"fe80::1%{zone}")
    assert strip_zone(f"fe80::1%{zone}") == "fe80::1"


@pytest.mark.parametrize(
    "host",
    [
        "",
        "%lo",
        "localhost",
        "example.com",
        "127.1",
        "127.0.0.1.",
        "127.0.0.01",
        "127.0.0.256",
        " 127.0.0.1",
        "127.0.0.1:80",
        "[::1]",
        "::1::",
        "12345",
    ],
)
def test_anything_else_is_no_address(host):
    assert not is_ip_address(host)


@pytest.mark.parametrize("host", ["127.0.0.1%lo", "127.0.0.1%", "fe80::1%"])
def test_only_ipv6_has_zones_and_they_are_not_empty(host):
    """The system takes any of these for a name and looks it up."""
    assert not is_ip_address(host)


@pytest.mark.parametrize(
    "host",
    ["", "*", "0", "1", "127.1", "127.0.0.01", "0x7f.1", "0X7F.1", "0x7f000001", "017700000001",
     "2130706433", "1.2.3.4.5", "127.0.0.1.", "0x", " ", " 127.0.0.1", "127.0.0.1 ", "\t1", "a b",
     "a\0b", "*.example.com", "\N{FULLWIDTH ASTERISK}", "\N{FULLWIDTH DIGIT ONE}27.1",
     "127\N{IDEOGRAPHIC FULL STOP}0\N{IDEOGRAPHIC FULL STOP}0\N{IDEOGRAPHIC FULL STOP}1"],
)  # fmt: skip
def test_what_the_c_library_reads_as_an_address_is_no_host_name(host):
    assert not is_host_name(host)
    with pytest.raises(ValueError, match="host name"):
        host_to_look_up(host)


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("Example.COM.", "example.com."),
        ("web.1", "web.1"),
        ("1.example", "1.example"),
        ("0xcafe.org", "0xcafe.org"),
        ("b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher.example", "xn--bcher-kva.example"),
        ("_srv.my_host", "_srv.my_host"),
    ],
)
def test_names_and_addresses_are_looked_up(host, name):
    assert is_host_name(host)
    assert host_to_look_up(host) == name


@given(address=ADDRESSES)
@settings(deadline=None)
def test_every_address_is_one(address):
    assert is_ip_address(address)
    assert strip_zone(address) == address


@given(address=st.ip_addresses(v=6).map(str), zone=ZONES)
@settings(deadline=None)
def test_a_zone_is_stripped_from_any_ipv6_address(address, zone):
    assert strip_zone(f"{address}%{zone}") == address
    assert reference_identity(f"{address}%{zone}") == reference_identity(address)


@pytest.mark.parametrize(
    ("host", "ascii_form"),
    [
        ("example.com", "example.com"),
        ("EXAMPLE.Com", "example.com"),
        ("_sip._tcp.Example.com", "_sip._tcp.example.com"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("bu\u0308cher.example", "xn--bcher-kva.example"),
        ("straße.example", "xn--strae-oqa.example"),
        ("例え.テスト", "xn--r8jz45g.xn--zckzah"),
        ("例え。テスト", "xn--r8jz45g.xn--zckzah"),
        ("bücher.example.", "xn--bcher-kva.example."),
    ],
)
def test_a_name_is_written_as_lower_case_a_labels(host, ascii_form):
    assert host_to_ascii(host) == ascii_form


@pytest.mark.parametrize(
    "host",
    [
        pytest.param("bücher..example", id="an empty label"),
        pytest.param("ü" * 64 + ".example", id="a label too long"),
        pytest.param(".".join(["bücher"] * 40), id="a name too long"),
        pytest.param("bücher example", id="a space"),
        pytest.param("-bücher.example", id="a hyphen in front"),
        pytest.param("☃.example", id="a symbol"),
    ],
)
def test_a_name_that_idna_cannot_encode_is_a_value_error_that_shows_it(host):
    with pytest.raises(ValueError, match="not a valid host name") as caught:
        host_to_ascii(host)
    assert repr(host) in str(caught.value)


@given(name=NAMES)
@settings(deadline=None)
def test_an_ascii_name_stays_as_it_is_but_for_case(name):
    assert host_to_ascii(name) == name
    assert host_to_ascii(name.upper()) == name
    assert reference_identity(name.upper() + ".") == name


@given(name=NAMES.map(lambda name: "ü" + name.replace("_", "a").replace("--", "aa")))
@settings(deadline=None)
def test_encoding_twice_is_encoding_once(name):
    once = host_to_ascii(name)
    assert once.isascii()
    assert host_to_ascii(once) == once


@pytest.mark.parametrize(
    ("host", "identity"),
    [
        ("Example.COM", "example.com"),
        ("example.com.", "example.com"),
        ("bücher.example.", "xn--bcher-kva.example"),
        ("bücher。example。", "xn--bcher-kva.example"),
        ("127.0.0.1", "127.0.0.1"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
    ],
)
def test_an_identity_has_neither_zone_nor_final_dot_nor_capitals(host, identity):
    assert reference_identity(host) == identity


def test_an_identity_is_a_name_that_idna_can_encode():
    with pytest.raises(ValueError, match="not a valid host name"):
        reference_identity("bücher..example")


@given(address=st.ip_addresses())
@settings(deadline=None)
def test_every_form_of_an_ipv6_address_has_one_identity(address):
    identity = reference_identity(str(address))
    assert ipaddress.ip_address(identity) == address
    assert reference_identity(address.exploded.upper()) == identity
