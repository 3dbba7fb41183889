"""Addresses as values."""

from __future__ import annotations

import copy
import os
import pickle
import socket
from socket import AF_INET, AF_INET6, AF_UNIX, AF_UNSPEC, SOCK_DGRAM, SOCK_STREAM

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

from tests.support.forms import (
    ABSTRACT,
    NATIVE,
    NOTHING,
    PORTS,
    UNIX,
    UNNAMED,
    V4,
    V4_TUPLES,
    V6,
    V6_HOSTS,
    V6_TUPLES,
)
from twisted_netsock._hostnames import strip_zone
from twisted_netsock.addresses import (
    AddressInfo,
    SocketAddress,
    as_socket_address,
    is_sockaddr,
    make_address_info,
    make_sockaddr,
    to_twisted_address,
)

pytestmark = pytest.mark.once


def loopback_interface() -> tuple[int, str]:
    return next((index, name) for index, name in socket.if_nameindex() if name.startswith("lo"))


# SocketAddress


@pytest.mark.parametrize(
    ("address", "family", "host", "port", "flowinfo", "scope_id"),
    [
        (V4, AF_INET, "192.0.2.1", 80, 0, 0),
        (V6, AF_INET6, "2001:db8::1", 443, 7, 3),
        (UNIX, AF_UNIX, "/run/x.sock", 0, 0, 0),
        (ABSTRACT, AF_UNIX, "\0netsock", 0, 0, 0),
        (UNNAMED, AF_UNIX, "", 0, 0, 0),
        (NOTHING, AF_UNSPEC, "", 0, 0, 0),
    ],
)
def test_an_address_has_names_for_its_parts(address, family, host, port, flowinfo, scope_id):
    assert address.family is family
    assert (address.host, address.port) == (host, port)
    assert (address.flowinfo, address.scope_id) == (flowinfo, scope_id)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (V4, "192.0.2.1:80"),
        (V6, "[2001:db8::1]:443"),
        (UNIX, "unix:/run/x.sock"),
        (ABSTRACT, "unix:@netsock"),
        (NOTHING, "unnamed"),
    ],
)
def test_an_address_is_written_as_people_write_it(address, text):
    assert str(address) == text
    assert f"{address}" == text


@pytest.mark.parametrize("address", [V4, V6, UNIX, ABSTRACT, NOTHING])
def test_the_repr_shows_the_tuple(address):
    assert repr(address) == f"SocketAddress{tuple(address)!r}"


@given(native=NATIVE)
@settings(deadline=None)
def test_an_address_is_the_standard_librarys_tuple(native):
    address = SocketAddress(native)
    assert isinstance(address, tuple)
    assert address == native
    assert hash(address) == hash(native)
    assert {address: 1}[native] == 1
    assert tuple(address) == native
    assert address != (*native, 1)


@given(native=NATIVE)
@settings(deadline=None)
def test_an_address_survives_copying_and_pickling(native):
    address = SocketAddress(native)
    for twin in (copy.copy(address), copy.deepcopy(address), pickle.loads(pickle.dumps(address))):
        assert type(twin) is SocketAddress
        assert twin == address


@pytest.mark.parametrize(
    ("parts", "address"),
    [
        (("::1", 80), ("::1", 80, 0, 0)),
        (("::1", 80, 7), ("::1", 80, 7, 0)),
        (["192.0.2.1", 80], ("192.0.2.1", 80)),
        ((b"/run/x.sock",), ("/run/x.sock",)),
        ((b"\0\xff",), ("\0\udcff",)),
        (V6, V6),
    ],
)
def test_an_address_is_filled_up_when_it_is_made(parts, address):
    assert tuple(SocketAddress(parts)) == address


@pytest.mark.parametrize(
    "parts",
    [
        ("localhost", 80),
        ("192.0.2.1", 65536),
        ("192.0.2.1", 80, 0, 0),
        ("::1", 80, 2**20, 0),
        ("::1", 80, 0, 2**32),
        ("::1", 80, 0, -1),
        (None, 80),
        (80,),
    ],
)
def test_nothing_else_becomes_an_address(parts):
    with pytest.raises((TypeError, ValueError), match="address") as caught:
        SocketAddress(parts)
    assert repr(parts) in str(caught.value)


def test_an_address_cannot_be_changed():
    with pytest.raises(TypeError):
        V4[1] = 8080
    with pytest.raises(AttributeError):
        V4.port = 8080
    with pytest.raises(AttributeError):
        V4.comment = "ours"


# What the standard library gives and takes


@given(native=V4_TUPLES)
@settings(deadline=None)
def test_an_ipv4_address_goes_to_the_standard_library_and_back(native):
    address = SocketAddress.of(AF_INET, native)
    assert (address.family, address.host, address.port) == (AF_INET, *native)
    assert address.native(AF_INET) == native
    assert type(address.native(AF_INET)) is tuple


@given(native=V6_TUPLES)
@settings(deadline=None)
def test_an_ipv6_address_goes_to_the_standard_library_and_back(native):
    address = SocketAddress.of(AF_INET6, native)
    assert address.family is AF_INET6
    assert strip_zone(address.host) == native[0]
    assert (address.port, address.flowinfo, address.scope_id) == native[1:]
    assert address.native(AF_INET6) == native


@given(native=V4_TUPLES)
@settings(deadline=None)
def test_an_ipv4_peer_of_an_ipv6_socket_appears_as_ipv4(native):
    host, port = native
    address = SocketAddress.of(AF_INET6, (f"::ffff:{host}", port, 0, 0))
    assert address == native
    assert address.family is AF_INET
    assert address.native(AF_INET6) == (f"::ffff:{host}", port, 0, 0)


@pytest.mark.parametrize("host", ["::ffff:0:1", "::1.2.3.4", "64:ff9b::1.2.3.4", "::ffff"])
def test_an_ipv6_address_that_only_looks_like_ipv4_stays_ipv6(host):
    address = SocketAddress.of(AF_INET6, (host, 80, 0, 0))
    assert address == (host, 80, 0, 0)
    assert address.family is AF_INET6


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="the kernel has no IPv6")
def test_the_kernels_form_of_an_ipv4_peer_is_recognised():
    with socket.create_server(("::", 0), family=AF_INET6, dualstack_ipv6=True) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            server, peer = listener.accept()
            with server:
                assert SocketAddress.of(AF_INET6, peer) == client.getsockname()
                assert SocketAddress.of(AF_INET6, server.getpeername()) == client.getsockname()
                assert SocketAddress.of(AF_INET6, server.getsockname()) == ("127.0.0.1", port)


@pytest.mark.parametrize(
    ("native", "address"),
    [
        ("/run/x.sock", UNIX),
        (b"\0netsock", ABSTRACT),
        ("", UNNAMED),
        (b"", UNNAMED),
        (None, UNNAMED),
    ],
)
def test_a_unix_address_is_named_as_the_standard_library_gives_it(native, address):
    assert SocketAddress.of(AF_UNIX, native) == address
    assert SocketAddress.of(AF_UNIX, native).family is AF_UNIX


@pytest.mark.parametrize("kind", [SOCK_STREAM, SOCK_DGRAM])
def test_an_abstract_name_binds_and_reads_back(kind):
    address = make_sockaddr(AF_UNIX, f"\0netsock-{os.getpid()}-{kind}")
    with socket.socket(AF_UNIX, kind) as sock:
        sock.bind(address.native(AF_UNIX))
        assert SocketAddress.of(AF_UNIX, sock.getsockname()) == address


def test_an_abstract_name_of_any_bytes_binds_and_reads_back():
    name = b"\0netsock-%d-\xff\xfe\0x" % os.getpid()
    address = SocketAddress.of(AF_UNIX, name)
    with socket.socket(AF_UNIX) as sock:
        sock.bind(address.native(AF_UNIX))
        assert sock.getsockname() == name


def test_a_path_binds_and_reads_back(tmp_path):
    address = make_sockaddr(AF_UNIX, str(tmp_path / "sörver"))
    with socket.socket(AF_UNIX) as sock:
        sock.bind(address.native(AF_UNIX))
        assert SocketAddress.of(AF_UNIX, sock.getsockname()) == address


def test_an_unbound_unix_socket_has_no_name():
    with socket.socket(AF_UNIX) as sock:
        assert SocketAddress.of(AF_UNIX, sock.getsockname()) == UNNAMED


@pytest.mark.parametrize(
    ("address", "family"),
    [(V4, AF_UNIX), (V6, AF_INET), (V6, AF_UNIX), (UNIX, AF_INET), (UNIX, AF_INET6)],
)
def test_an_address_of_another_family_is_refused_by_name(address, family):
    with pytest.raises(ValueError, match=f"{address.family.name}.*{family.name}") as caught:
        address.native(family)
    assert repr(address) in str(caught.value)


# as_socket_address


@pytest.mark.parametrize("address", [V4, V6, UNIX, ABSTRACT])
def test_an_address_is_taken_as_it_is(address):
    assert as_socket_address(address) is address


def test_the_address_of_an_address_info_is_taken():
    assert as_socket_address(AddressInfo(AF_INET, SOCK_STREAM, 0, V4)) is V4


def test_a_record_of_hints_is_no_address():
    with pytest.raises(ValueError, match="hints"):
        as_socket_address(make_address_info(AF_INET, SOCK_STREAM, 0))


@given(native=V4_TUPLES)
@settings(deadline=None)
def test_a_numeric_ipv4_tuple_is_taken(native):
    address = as_socket_address(native)
    assert isinstance(address, SocketAddress)
    assert address == native


@given(host=V6_HOSTS, port=PORTS, flowinfo=st.integers(0, 9), scope_id=st.integers(0, 9))
@settings(deadline=None)
def test_a_numeric_ipv6_tuple_is_taken_and_filled_up(host, port, flowinfo, scope_id):
    assert as_socket_address((host, port)) == (host, port, 0, 0)
    assert as_socket_address((host, port, flowinfo)) == (host, port, flowinfo, 0)
    whole = (host, port, flowinfo, scope_id)
    assert as_socket_address(whole) == whole
    assert as_socket_address(whole).family is AF_INET6


@pytest.mark.parametrize("path", ["/run/x.sock", b"/run/x.sock"])
def test_a_unix_path_in_a_tuple_is_taken(path):
    assert as_socket_address((path,)) == UNIX


@pytest.mark.parametrize("native", ["/run/x.sock", b"/run/x.sock"])
def test_a_unix_path_is_taken_as_the_standard_library_has_it(native):
    assert as_socket_address(native) == UNIX


def test_an_abstract_name_in_a_tuple_is_taken():
    assert as_socket_address((b"\0netsock",)) == as_socket_address(("\0netsock",)) == ABSTRACT


def test_a_zone_becomes_the_number_of_its_interface():
    index, name = loopback_interface()
    assert as_socket_address((f"fe80::1%{name}", 80)) == ("fe80::1", 80, 0, index)
    assert as_socket_address((f"fe80::1%{name}", 80, 5)) == ("fe80::1", 80, 5, index)
    assert make_sockaddr(AF_INET6, f"fe80::1%{name}", 80) == ("fe80::1", 80, 0, index)


def test_a_zone_may_be_a_number():
    assert as_socket_address(("fe80::1%7", 80)) == ("fe80::1", 80, 0, 7)


@pytest.mark.parametrize("host", ["fe80::1", "febf::1", "ff02::1"])
def test_a_link_local_host_has_its_zone(host):
    index, name = loopback_interface()
    address = SocketAddress((host, 80, 0, index))
    assert address[0] == host
    assert address.host == f"{host}%{name}"
    assert str(address) == f"[{host}%{name}]:80"
    assert as_socket_address((address.host, 80)) == address
    assert to_twisted_address(address) == IPv6Address("TCP", f"{host}%{name}", 80, 0, index)


def test_the_zone_of_an_interface_that_is_not_here_is_its_number():
    assert SocketAddress(("fe80::1", 80, 0, 2**32 - 1)).host == f"fe80::1%{2**32 - 1}"


def test_a_host_that_is_not_link_local_has_no_zone():
    assert SocketAddress(("2001:db8::1", 80, 0, 1)).host == "2001:db8::1"
    assert SocketAddress(("fe80::1", 80)).host == "fe80::1"


def test_a_scope_id_wins_over_a_zone():
    assert as_socket_address(("fe80::1%7", 80, 0, 9)) == ("fe80::1", 80, 0, 9)


@pytest.mark.parametrize("zone", ["nosuchzone", str(2**32), "\u00b2"])
def test_a_zone_of_no_interface_is_a_value_error_that_shows_it(zone):
    with pytest.raises(ValueError, match=f"address.*{zone}"):
        as_socket_address((f"fe80::1%{zone}", 80))


@pytest.mark.parametrize("host", ["localhost", "example.com", "127.1", "", "1", "[::1]", "::1%"])
def test_a_name_is_a_value_error_that_says_what_looks_names_up(host):
    with pytest.raises(ValueError, match="get_address_info") as caught:
        as_socket_address((host, 80))
    assert repr(host) in str(caught.value)


def test_an_ipv4_address_has_no_zone():
    """The system would take it for a name and look it up."""
    with pytest.raises(ValueError, match="get_address_info"):
        as_socket_address(("127.0.0.1%lo", 80))


def test_a_name_in_a_socket_address_is_refused_too():
    with pytest.raises(ValueError, match="get_address_info"):
        as_socket_address(SocketAddress(("localhost", 80)))


@pytest.mark.parametrize("port", [-1, 65536, "80", None, 80.0, True])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_out_of_range_is_a_value_error_that_says_the_range(host, port):
    with pytest.raises(ValueError, match="0 to 65535") as caught:
        as_socket_address((host, port))
    assert repr((host, port)) in str(caught.value)


@pytest.mark.parametrize("address", [None, 80, (), ["127.0.0.1", 80], {"127.0.0.1": 80}, object()])
def test_what_is_no_address_is_a_type_error(address):
    with pytest.raises(TypeError, match="address must be") as caught:
        as_socket_address(address)
    assert repr(address) in str(caught.value)


@pytest.mark.parametrize("host", [None, 2130706433, b"127.0.0.1"])
def test_a_host_that_is_no_text_is_a_type_error_that_shows_it(host):
    with pytest.raises(TypeError, match="address") as caught:
        as_socket_address((host, 80))
    assert repr(host) in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        ("::1", 80, "flow", 0),
        ("::1", 80, 0, "eth0"),
        ("::1", 80, 0, 0, 0),
        ("127.0.0.1", 80, 0, 0),
    ],
)
def test_a_tuple_of_another_shape_is_refused(address):
    with pytest.raises((TypeError, ValueError), match="address"):
        as_socket_address(address)


# make_sockaddr


@pytest.mark.parametrize(
    ("arguments", "address"),
    [
        ((), ()),
        ((AF_UNSPEC, "127.0.0.1", 80), ("127.0.0.1", 80)),
        ((AF_UNSPEC, "::1", 80), ("::1", 80, 0, 0)),
        ((AF_INET, "127.0.0.1", 80), ("127.0.0.1", 80)),
        ((AF_INET, "127.0.0.1"), ("127.0.0.1", 0)),
        ((AF_INET6, "::1", 80), ("::1", 80, 0, 0)),
        ((AF_INET,), ("0.0.0.0", 0)),
        ((AF_INET, "", 80), ("0.0.0.0", 80)),
        ((AF_INET6, "", 80), ("::", 80, 0, 0)),
        ((AF_UNIX, "/run/x.sock"), ("/run/x.sock",)),
        ((AF_UNIX, "\0netsock"), ("\0netsock",)),
        ((int(AF_INET), "127.0.0.1", 80), ("127.0.0.1", 80)),
    ],
)
def test_make_sockaddr_makes_an_address_of_any_family(arguments, address):
    made = make_sockaddr(*arguments)
    assert is_sockaddr(made)
    assert made == address


def test_make_sockaddr_takes_keywords():
    assert make_sockaddr(family=AF_INET, host="127.0.0.1", port=80) == ("127.0.0.1", 80)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((AF_INET, "::1", 80), "AF_INET"),
        ((AF_INET6, "127.0.0.1", 80), "AF_INET6"),
        ((AF_INET, "localhost", 80), "localhost"),
        ((AF_UNSPEC, "localhost", 80), "localhost"),
        ((AF_INET, "127.0.0.1", 65536), "65536"),
        ((AF_INET, "", -1), "-1"),
        ((AF_INET6, "", "http"), "http"),
        ((AF_UNSPEC, "", 65536), "65536"),
    ],
)
def test_make_sockaddr_refuses_what_is_no_address_of_the_family(arguments, told):
    with pytest.raises(ValueError, match=told):
        make_sockaddr(*arguments)


# to_twisted_address


@pytest.mark.parametrize(
    ("address", "kind", "expected"),
    [
        (V4, SOCK_STREAM, IPv4Address("TCP", "192.0.2.1", 80)),
        (V4, SOCK_DGRAM, IPv4Address("UDP", "192.0.2.1", 80)),
        (V6, SOCK_STREAM, IPv6Address("TCP", "2001:db8::1", 443, 7, 3)),
        (V6, SOCK_DGRAM, IPv6Address("UDP", "2001:db8::1", 443, 7, 3)),
        (UNIX, SOCK_STREAM, UNIXAddress(b"/run/x.sock")),
        (ABSTRACT, SOCK_STREAM, UNIXAddress(b"\0netsock")),
        (UNNAMED, SOCK_STREAM, UNIXAddress(None)),
    ],
)
def test_an_address_becomes_twisteds(address, kind, expected):
    assert to_twisted_address(address, kind) == expected


def test_twisteds_address_is_that_of_a_stream_by_default():
    assert to_twisted_address(V4).type == "TCP"


def test_twisteds_address_of_an_ipv4_peer_of_an_ipv6_socket_is_ipv4():
    peer = SocketAddress.of(AF_INET6, ("::ffff:192.0.2.1", 80, 0, 0))
    assert to_twisted_address(peer) == IPv4Address("TCP", "192.0.2.1", 80)


@given(native=NATIVE)
@settings(deadline=None)
def test_twisteds_address_has_the_same_parts(native):
    address = SocketAddress(native)
    theirs = to_twisted_address(address)
    if address.family is AF_UNIX:
        assert theirs.name == os.fsencode(address.host)
    else:
        assert (theirs.host, theirs.port) == (address.host, address.port)
    if address.family is AF_INET6:
        assert (theirs.flowInfo, theirs.scopeID) == (address.flowinfo, address.scope_id)
