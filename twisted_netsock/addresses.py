"""
Socket addresses and address information as values; no I/O.

`SocketAddress` is the standard library's tuple with names on it;
`AddressInfo` is one result of a look-up and the head of the list of those that
follow, as the ``addrinfo`` of ``(chibi net)``.
"""

from __future__ import annotations

import ipaddress
import os
import socket as _socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from socket import AF_INET, AF_INET6, AF_UNIX, AF_UNSPEC, AddressFamily, SocketKind
from typing import Any, Literal, Self, TypeAlias

import attrs
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress

from ._hostnames import strip_zone

__all__ = [
    "AddressInfo",
    "SocketAddress",
    "address_info_list",
    "as_socket_address",
    "interleave_families",
    "is_address_info",
    "is_sockaddr",
    "make_address_info",
    "make_sockaddr",
    "network_of",
    "to_twisted_address",
]

_V4_MAPPED = "::ffff:"
_V6_NETWORK = 64
"""Bits of an IPv6 address that one customer of a provider has in common."""
_NETWORKS_KEPT = 1024
"""Clients that come again are found without parsing; others must not fill the memory."""
_HOST_AND_PORT = 2
_HOST_PORT_FLOW_SCOPE = 4
_PORT_LIMIT = 65536
_FLOWINFO_LIMIT = 2**20
"""A flow label has 20 bits (RFC 8200, section 3); the standard library takes no more."""
_SCOPE_LIMIT = 2**32

# The C structures, for `AddressInfo.address_length`: sockaddr_in, sockaddr_in6, and
# the offset of sun_path in sockaddr_un.
_INET_LENGTH = 16
_INET6_LENGTH = 28
_UNIX_PATH_OFFSET = struct.calcsize("H")

NativeAddress: TypeAlias = "str | tuple[object, ...]"
"""What the standard library takes and gives as an address: a path, or a tuple."""


def _checked(address: tuple[object, ...]) -> tuple[object, ...]:
    """Return the parts of an address as the standard library has them, or raise."""
    match address:
        case ():
            return ()
        case (str() | bytes() as path,):
            return (os.fsdecode(path),)
        case (str() as host, port):
            flowinfo = scope_id = 0
        case (str() as host, port, flowinfo) if ":" in host:
            scope_id = 0
        case (str() as host, port, flowinfo, scope_id) if ":" in host:
            pass
        case _:
            raise TypeError(
                f"address={address!r} must be a path, or a numeric host (text) and a port, "
                "for IPv6 also flowinfo and scope_id"
            )
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        raise ValueError(
            f"address={address!r}: the host must be numeric; look names up with get_address_info"
        ) from None
    _check_number(address, "port", port, _PORT_LIMIT)
    if version == 4:  # noqa: PLR2004 - the IP version
        return host, port
    _check_number(address, "flowinfo", flowinfo, _FLOWINFO_LIMIT)
    _check_number(address, "scope_id", scope_id, _SCOPE_LIMIT)
    zone = host.partition("%")[2]
    if zone and not scope_id:
        scope_id = _scope_id(address, zone)
    return strip_zone(host), port, flowinfo, scope_id


def _check_number(address: tuple[object, ...], name: str, value: object, limit: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < limit:
        raise ValueError(f"address={address!r}: the {name} must be an int from 0 to {limit - 1}")


def _scope_id(address: tuple[object, ...], zone: str) -> int:
    """Return the number of a zone, which may be an interface's name."""
    if zone.isascii() and zone.isdigit():
        number = int(zone)
        _check_number(address, "scope_id", number, _SCOPE_LIMIT)
        return number
    try:
        return _socket.if_nametoindex(zone)
    except OSError:
        raise ValueError(f"address={address!r}: there is no interface {zone!r}") from None


def _zone(scope_id: int) -> str:
    """Return the name of an interface, or its number if it is gone, or elsewhere."""
    try:
        return _socket.if_indextoname(scope_id)
    except (OSError, OverflowError):
        return str(scope_id)


class SocketAddress(tuple[Any, ...]):
    """
    A socket's address: the standard library's tuple, with names.

    ``(host, port)`` for IPv4, ``(host, port, flowinfo, scope_id)`` for IPv6 and
    ``(path,)`` for UNIX sockets. Compares and hashes as the tuple does. An
    IPv4 peer of a dual-stack socket appears as IPv4.
    """

    __slots__ = ()

    def __new__(cls, parts: Iterable[object] = ()) -> Self:
        """
        Name *parts*: a path, a numeric host and a port, or nothing.

        Raises:
            TypeError: A part is of another type.
            ValueError: The host is a name, the port out of range, or the parts
                are no address.
        """
        return tuple.__new__(cls, _checked(tuple(parts)))

    @property
    def family(self) -> AddressFamily:
        """``AF_INET``, ``AF_INET6`` or ``AF_UNIX``; ``AF_UNSPEC`` for an empty address."""
        match len(self):
            case 1:
                return AF_UNIX
            case 2:
                return AF_INET
            case 4:
                return AF_INET6
            case _:
                return AF_UNSPEC

    @property
    def host(self) -> str:
        """
        The numeric host, or the path of a UNIX socket (abstract names begin with NUL).

        A link-local IPv6 host has its zone (``fe80::1%eth0``; RFC 4007, section 11), without
        which no connection to it is possible; in the tuple that is the `scope_id` alone.
        """
        if not self:
            return ""
        return f"{self[0]}%{_zone(self.scope_id)}" if self._has_zone else str(self[0])

    @property
    def _has_zone(self) -> bool:
        if not self.scope_id:
            return False
        address = ipaddress.IPv6Address(self[0])
        return address.is_link_local or address.is_multicast

    @property
    def port(self) -> int:
        """The port, or 0 where there is none."""
        return int(self[1]) if len(self) >= _HOST_AND_PORT else 0

    @property
    def flowinfo(self) -> int:
        """The IPv6 flow label, or 0."""
        return int(self[2]) if len(self) >= _HOST_PORT_FLOW_SCOPE else 0

    @property
    def scope_id(self) -> int:
        """The index of the interface of a link-local IPv6 address, or 0."""
        return int(self[3]) if len(self) >= _HOST_PORT_FLOW_SCOPE else 0

    def __str__(self) -> str:
        """Write it as people do: ``127.0.0.1:80``, ``[::1]:80``, ``unix:/run/x``."""
        match len(self):
            case 2:
                return f"{self[0]}:{self[1]}"
            case 4:
                return f"[{self.host}]:{self[1]}"
            case 1:
                return "unix:" + self.host.replace("\0", "@", 1)
            case _:
                return "unnamed"

    def __repr__(self) -> str:
        return f"SocketAddress{tuple(self)!r}"

    @classmethod
    def of(cls, family: int, native: object) -> SocketAddress:
        """
        Name what the standard library gave for a socket of *family*.

        An IPv4 address mapped into IPv6 (RFC 4291, section 2.5.5.2) becomes IPv4.
        """
        if isinstance(native, tuple):
            if (
                family == AF_INET6
                and isinstance(native[0], str)
                and native[0].startswith(_V4_MAPPED)
                and "." in native[0]
            ):
                return tuple.__new__(cls, (native[0][len(_V4_MAPPED) :], native[1]))
            return tuple.__new__(cls, native)
        if isinstance(native, bytes):
            native = os.fsdecode(native)
        if native is None and family != AF_UNIX:
            return tuple.__new__(cls, ())
        return tuple.__new__(cls, (native or "",))

    @classmethod
    def named(cls, native: object) -> SocketAddress:
        """Do as `of` for a stream socket, whose family follows from the form of *native*."""
        if not isinstance(native, tuple):
            return cls.of(AF_UNIX, native)
        if len(native) == _HOST_AND_PORT:
            return tuple.__new__(cls, native)
        return cls.of(AF_INET6, native)

    def native(self, family: int) -> NativeAddress:
        """
        Return what the standard library takes for a socket of *family*.

        Raises:
            ValueError: The address is of another family.
        """
        if family == AF_UNIX and len(self) == 1:
            return self.host
        if family == AF_INET6 and len(self) == _HOST_AND_PORT:
            return (_V4_MAPPED + self.host, self.port, 0, 0)
        if self.family != family:
            raise ValueError(
                f"address={self!r} is of {self.family.name}, the socket of "
                f"{AddressFamily(family).name}"
            )
        return tuple(self)


def _native_length(address: SocketAddress) -> int:
    if address.family == AF_UNIX:
        path = os.fsencode(address.host)
        ends_with_nul = bool(path) and not path.startswith(b"\0")
        return _UNIX_PATH_OFFSET + len(path) + ends_with_nul
    return {AF_INET: _INET_LENGTH, AF_INET6: _INET6_LENGTH}.get(address.family, 0)


@attrs.frozen(repr=False)
class AddressInfo:
    """
    One way to reach a node, and the next one (the ``addrinfo`` of ``(chibi net)``).

    Iterating over it gives itself and its successors.

    Attributes:
        family: ``AF_INET``, ``AF_INET6`` or ``AF_UNIX``.
        socket_type: ``SOCK_STREAM``, ``SOCK_DGRAM`` or ``SOCK_RAW``; in a record
            of hints possibly 0, for any.
        protocol: A protocol number, or 0.
        address: Where, or `None` in a record of hints.
        canonname: The canonical name, where ``AI_CANONNAME`` asked for it.
        flags: ``AI_…`` flags.
        next: The next result, or `None`.
    """

    family: AddressFamily
    socket_type: int
    protocol: int
    address: SocketAddress | None = None
    canonname: str = ""
    flags: int = 0
    next: AddressInfo | None = attrs.field(default=None, eq=False)

    @property
    def address_length(self) -> int:
        """The size of the address in bytes, as the C structure has it; 0 without one."""
        return 0 if self.address is None else _native_length(self.address)

    def __iter__(self) -> Iterator[AddressInfo]:
        info: AddressInfo | None = self
        while info is not None:
            yield info
            info = info.next

    def __repr__(self) -> str:
        more = sum(1 for _ in self) - 1
        return (
            f"<AddressInfo {self.family.name} {self.socket_type!r} "
            f"protocol {self.protocol} {self.address}{f' and {more} more' if more else ''}>"
        )


@lru_cache(maxsize=_NETWORKS_KEPT)
def network_of(host: object) -> str | None:
    """
    Return what *host* counts as where one client is to have no more than its share.

    An IPv4 address is itself, also where it is mapped into IPv6, and another IPv6
    address its network of 64 bits, any address of which one client may have. `None`
    for what is no address: the path of a UNIX socket, or something of another library's.
    """
    if not isinstance(host, str):
        return None
    try:
        parsed = ipaddress.ip_address(strip_zone(host))
    except ValueError:
        return None
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, _V6_NETWORK), strict=False))


Address: TypeAlias = SocketAddress | AddressInfo | tuple[object, ...]
"""What stands for an address in a call: numeric ``(host, port)``, never a name."""


def address_info_list(infos: Sequence[AddressInfo]) -> AddressInfo | None:
    """Chain *infos*, in order, and return the first of them."""
    head: AddressInfo | None = None
    for info in reversed(infos):
        head = attrs.evolve(info, next=head)
    return head


def make_address_info(family: int, socket_type: int, protocol: int, hints: int = 0) -> AddressInfo:
    """
    Make a record of hints for a look-up (``make-address-info``).

    Args:
        family: ``AF_UNSPEC``, ``AF_INET``, ``AF_INET6`` or ``AF_UNIX``.
        socket_type: ``SOCK_STREAM``, ``SOCK_DGRAM``, ``SOCK_RAW``, or 0 for any.
        protocol: A protocol number, or 0 for any.
        hints: ``AI_…`` flags.

    Raises:
        ValueError: A number is none of those.
    """
    for name, number in (("protocol", protocol), ("hints", hints)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise ValueError(f"{name}={number!r} must be an int of 0 or more")
    # SocketKind has no member for "any", yet the C structure has.
    kind = SocketKind(socket_type) if socket_type else 0
    return AddressInfo(AddressFamily(family), kind, protocol, flags=hints)


def is_address_info(o: object) -> bool:
    """Return whether *o* is an `AddressInfo` (``address-info?``)."""
    return isinstance(o, AddressInfo)


def is_sockaddr(o: object) -> bool:
    """Return whether *o* is a `SocketAddress` (``sockaddr?``)."""
    return isinstance(o, SocketAddress)


def make_sockaddr(family: int = AF_UNSPEC, host: str = "", port: int = 0) -> SocketAddress:
    """
    Make a socket address (``make-sockaddr``).

    Args:
        family: ``AF_INET``, ``AF_INET6``, ``AF_UNIX``, or ``AF_UNSPEC`` to go by
            the form of *host*.
        host: A numeric address, empty for any; for ``AF_UNIX`` the path.
        port: 0 to 65535.

    Raises:
        ValueError: *host* is no numeric address of the family, or *port* none.
    """
    if family == AF_UNIX:
        return SocketAddress((host,))
    if family == AF_UNSPEC and not host:
        if port != 0:
            raise ValueError(f"port={port!r} needs a host or a family")
        return SocketAddress(())
    if not host:
        host = "::" if family == AF_INET6 else "0.0.0.0"  # noqa: S104 - INADDR_ANY
    address = as_socket_address((host, port))
    if family not in (AF_UNSPEC, address.family):
        raise ValueError(f"host={host!r} is no address of {AddressFamily(family).name}")
    return address


def as_socket_address(address: Address) -> SocketAddress:
    """
    Return *address* as a `SocketAddress`.

    Takes an `AddressInfo`, a `SocketAddress`, a tuple whose host is numeric, or the
    path of a UNIX socket.

    Raises:
        TypeError: *address* is none of those.
        ValueError: A name where a numeric address is needed: no call looks a
            name up behind its caller's back; or a port out of range.
    """
    if isinstance(address, SocketAddress):
        return address
    if isinstance(address, AddressInfo):
        if address.address is None:
            raise ValueError(f"address={address!r} is a record of hints, without an address")
        return address.address
    if isinstance(address, str | bytes):
        return SocketAddress((address,))
    if not isinstance(address, tuple) or not address:
        raise TypeError(f"address must be a SocketAddress, AddressInfo or tuple, not {address!r}")
    return SocketAddress(address)


def interleave_families(infos: Sequence[AddressInfo]) -> list[AddressInfo]:
    """
    Order *infos* for connection attempts: families in turn, the first one's first.

    RFC 8305, section 4; within a family the resolver's order (RFC 6724) stays.
    """
    queues: dict[AddressFamily, list[AddressInfo]] = {}
    for info in infos:
        queues.setdefault(info.family, []).append(info)
    ordered: list[AddressInfo] = []
    while queues:
        for family in list(queues):
            ordered.append(queues[family].pop(0))
            if not queues[family]:
                del queues[family]
    return ordered


def to_twisted_address(address: SocketAddress, kind: int = SocketKind.SOCK_STREAM) -> IAddress:
    """
    Return *address* as Twisted's ``IPv4Address``, ``IPv6Address`` or ``UNIXAddress``.

    As in Twisted, a link-local host has its zone.
    """
    protocol: Literal["TCP", "UDP"] = "UDP" if kind == SocketKind.SOCK_DGRAM else "TCP"
    match address.family:
        case _socket.AF_INET:
            return IPv4Address(protocol, address.host, address.port)
        case _socket.AF_INET6:
            return IPv6Address(
                protocol, address.host, address.port, address.flowinfo, address.scope_id
            )
        case _:
            return UNIXAddress(os.fsencode(address.host) if address.host else None)
