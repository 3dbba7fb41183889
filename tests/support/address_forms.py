"""Addresses as the standard library writes them."""

from __future__ import annotations

from hypothesis import strategies as st

from twisted_netsock.addresses import SocketAddress

V4 = SocketAddress(("192.0.2.1", 80))
V6 = SocketAddress(("2001:db8::1", 443, 7, 3))
UNIX = SocketAddress(("/run/x.sock",))
ABSTRACT = SocketAddress(("\0netsock",))
UNNAMED = SocketAddress(("",))
NOTHING = SocketAddress(())

PORTS = st.integers(0, 65535)
V4_HOSTS = st.ip_addresses(v=4).map(str)
V6_HOSTS = st.ip_addresses(v=6).filter(lambda ip: ip.ipv4_mapped is None).map(str)
V4_TUPLES = st.tuples(V4_HOSTS, PORTS)
V6_TUPLES = st.tuples(V6_HOSTS, PORTS, st.integers(0, 2**20 - 1), st.integers(0, 2**31))
PATHS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=50)
UNIX_TUPLES = st.tuples(st.one_of(PATHS, PATHS.map("\0".__add__)))
NATIVE = st.one_of(V4_TUPLES, V6_TUPLES, UNIX_TUPLES)
