"""
Headers of the PROXY protocol as values, and their two forms on the wire; no I/O.

A proxy sends such a header before anything else. It names the client on whose
behalf the proxy connects. The names are those of HAProxy's specification ("The PROXY protocol",
versions 1 and 2). `twisted.protocols.haproxy` parses headers, too, once a
transport has delivered them; here they are taken off the descriptor before a
TLS handshake, so it must be known where a header ends before it is read.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket as _socket
import struct
from socket import AF_INET, AF_INET6, AF_UNIX, SOCK_DGRAM, SOCK_STREAM, SocketKind
from typing import Final, Self, TypeAlias

import attrs
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

from .. import _validation as check
from .._hostnames import strip_zone
from .._public import public_in
from ..addresses import Address, SocketAddress, as_socket_address
from ..errors import ProxyHeaderError
from .tlv import (
    CRC_SIZE,
    MOST_BYTES,
    TLV,
    TLV_HEAD,
    ProxyTLS,
    ProxyTLV,
    as_text,
    check_crc,
    checked_tlvs,
    crc32c,
    encode_tlvs,
    first_value,
    malformed,
    parse_tlvs,
)

__all__ = ["ProxyHeader"]

HEADER_LIMIT: Final = 4096
"""
The most bytes of a header that are read from a connection. Version 2 has room for 64 KiB, which
any client that reaches the port could have us hold.
"""

_LINE_LIMIT: Final = 107
"""The longest header of version 1, with its CRLF (section 2.1)."""

_WORD: Final = b"PROXY"
_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED: Final = 16
"""Bytes of version 2 whose last two say how many follow."""

# Version 2 in the upper four bits, the command in the lower ones (section 2.2).
_LOCAL: Final = 0x20
_PROXY: Final = 0x21
_UNSPEC: Final = 0x00
_UNIX_PATH: Final = 108
"""Bytes of a path, which the protocol fills up with NUL."""
_UNIQUE_ID_LIMIT: Final = 128
"""Section 2.2.5."""
_WORDS_OF_TCP: Final = 6
"""``PROXY TCP4`` and two addresses and ports; ``PROXY UNKNOWN`` may have anything behind it."""
_PORT: Final = re.compile(rb"0|[1-9][0-9]{0,4}")
_PORT_LIMIT: Final = 65536

_FAMILIES: Final = {0x10: AF_INET, 0x20: AF_INET6, 0x30: AF_UNIX}
_KINDS: Final = {0x1: SOCK_STREAM, 0x2: SOCK_DGRAM}

_V4_MAPPED: Final = b"\0" * 10 + b"\xff" * 2


AnyAddress: TypeAlias = "Address | IPv4Address | IPv6Address | UNIXAddress | None"


def _address(given: AnyAddress) -> SocketAddress | None:
    """Take an address as the wire has it: without zones, IPv4 as IPv4."""
    match given:
        case None:
            return None
        case IPv4Address() | IPv6Address():
            address = SocketAddress((strip_zone(given.host), given.port))
        case UNIXAddress():
            address = SocketAddress((os.fsdecode(given.name or b""),))
        case _:
            address = as_socket_address(given)
    if address.family == AF_UNIX:
        path = os.fsencode(address.host)
        if len(path) > _UNIX_PATH or _unix_path(path) != path:
            raise ValueError(f"address={address!r}: the path does not fit into a header")
        return address
    if address.family not in (AF_INET, AF_INET6):
        raise ValueError(f"address={address!r} says nothing")
    return _inet(_packed(address), address.port)


def _packed(address: SocketAddress) -> bytes:
    """Return the four or sixteen bytes of a host, without its zone."""
    return ipaddress.ip_address(strip_zone(address.host)).packed


def _inet(packed: bytes, port: int) -> SocketAddress:
    """Name an address and a port; IPv4 that is mapped into IPv6 is IPv4."""
    if packed.startswith(_V4_MAPPED) and len(packed) > CRC_SIZE:
        packed = packed[len(_V4_MAPPED) :]
    family = AF_INET if len(packed) == 4 else AF_INET6  # noqa: PLR2004 - bytes of IPv4
    return SocketAddress((_socket.inet_ntop(family, packed), port))


def _unix_path(field: bytes) -> bytes:
    """Return the path that a field of 108 bytes holds; abstract names begin with NUL."""
    if field.startswith(b"\0"):
        return field.rstrip(b"\0")
    return field.partition(b"\0")[0]


@public_in("twisted_netsock")
@attrs.frozen
class ProxyHeader:
    """
    What a proxy reports about the client on whose behalf it connects.

    Source and destination are both there or both missing: then the proxy does
    not know, and the connection's own addresses hold. IPv4 addresses that are
    mapped into IPv6 are IPv4 here; zones and flow labels are not passed on.

    Attributes:
        source: The address of the client. A `SocketAddress`, tuple or address of
            Twisted's will do as an argument.
        destination: The address that the client connected to.
        tlvs: Types, which may be of `ProxyTLV`, and values; version 2 only.
        local: The connection is the proxy's own, such as a health check; it
            has neither addresses nor TLVs.
        checksum: With a CRC32C, which was right, or is added when it is sent;
            version 2 only.
        socket_type: ``SOCK_STREAM``, or ``SOCK_DGRAM`` where the source sent
            datagrams to the proxy.

    Raises:
        TypeError: An argument is of another type.
        ValueError: The arguments do not fit together or into a header.
    """

    source: SocketAddress | None = attrs.field(default=None, converter=_address)
    destination: SocketAddress | None = attrs.field(default=None, converter=_address)
    tlvs: tuple[TLV, ...] = attrs.field(default=(), converter=checked_tlvs, kw_only=True)
    local: bool = attrs.field(default=False, kw_only=True)
    checksum: bool = attrs.field(default=False, kw_only=True)
    socket_type: SocketKind = attrs.field(default=SOCK_STREAM, kw_only=True)

    def __attrs_post_init__(self) -> None:
        """Check what concerns more than one field, and the values of known types."""
        check.boolean(self.local, "local")
        check.boolean(self.checksum, "checksum")
        if self.socket_type not in _KINDS.values():
            raise ValueError(f"socket_type={self.socket_type!r} must be SOCK_STREAM or SOCK_DGRAM")
        if (self.source is None) is not (self.destination is None):
            raise ValueError("source and destination belong together: give both or neither")
        if self.source is None and self.socket_type != SOCK_STREAM:
            raise ValueError("socket_type needs a source and a destination")
        if self.local and (self.source is not None or self.tlvs or self.checksum):
            raise ValueError("local=True: such a header has no addresses and no TLVs")
        if self.source is not None and self.destination is not None:
            unix = [each.family == AF_UNIX for each in (self.source, self.destination)]
            if any(unix) and not all(unix):
                raise ValueError(
                    f"source={self.source!r} and destination={self.destination!r} "
                    "must be of one family"
                )
        self._check_tlvs()

    def _check_tlvs(self) -> None:
        if first_value(self.tlvs, ProxyTLV.CRC32C) is not None:
            raise ValueError("tlvs: the CRC32C is computed: give checksum=True instead")
        if len(self.unique_id or b"") > _UNIQUE_ID_LIMIT:
            raise ValueError(f"tlvs: UNIQUE_ID holds at most {_UNIQUE_ID_LIMIT} bytes")
        authority = first_value(self.tlvs, ProxyTLV.AUTHORITY)
        try:
            (authority or b"").decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"tlvs: AUTHORITY must be UTF-8, not {authority!r}") from None
        secured = first_value(self.tlvs, ProxyTLV.SSL)
        if secured is not None:
            ProxyTLS.parse(secured)
        if self._size() > MOST_BYTES:
            raise ValueError(f"tlvs: a header holds at most {MOST_BYTES} bytes")

    def _size(self) -> int:
        size = 2 * _UNIX_PATH + (TLV_HEAD + CRC_SIZE)
        return size + sum(TLV_HEAD + len(value) for _, value in self.tlvs)

    @property
    def alpn(self) -> str | None:
        """The application protocol that the proxy negotiated."""
        return as_text(first_value(self.tlvs, ProxyTLV.ALPN))

    @property
    def authority(self) -> str | None:
        """The host name that the client asked for, over TLS its server name."""
        return as_text(first_value(self.tlvs, ProxyTLV.AUTHORITY))

    @property
    def unique_id(self) -> bytes | None:
        """The proxy's name for this connection."""
        return first_value(self.tlvs, ProxyTLV.UNIQUE_ID)

    @property
    def tls(self) -> ProxyTLS | None:
        """What the proxy reports about its client's TLS."""
        value = first_value(self.tlvs, ProxyTLV.SSL)
        return None if value is None else ProxyTLS.parse(value)

    def encode(self, version: str) -> bytes:
        """
        Return the header as it is sent.

        Version 1 knows TCP over IPv4 and IPv6 only, and sends ``UNKNOWN`` for
        everything else.

        Args:
            version: ``"v1"`` or ``"v2"``.

        Raises:
            ValueError: *version* is neither, or ``"v1"`` and there are TLVs or
                a checksum.
        """
        if version == "v2":
            return self._encode_binary()
        if version != "v1":
            raise ValueError(f"version={version!r} must be 'v1' or 'v2'")
        if self.tlvs or self.checksum:
            raise ValueError(f"version={version!r} has no TLVs and no checksum: 'v2' has")
        return self._encode_line()

    def _encode_line(self) -> bytes:
        source, destination = self.source, self.destination
        if (
            source is None
            or destination is None
            or source.family == AF_UNIX
            or self.socket_type != SOCK_STREAM
        ):
            return b"PROXY UNKNOWN\r\n"
        family, hosts = _one_family(source, destination)
        written = " ".join(_socket.inet_ntop(family, host) for host in hosts)
        name = "TCP4" if family == AF_INET else "TCP6"
        return f"PROXY {name} {written} {source.port} {destination.port}\r\n".encode()

    def _encode_binary(self) -> bytes:
        command = _LOCAL if self.local else _PROXY
        family, block = self._block()
        block += encode_tlvs(self.tlvs)
        if not self.checksum:
            return _SIGNATURE + struct.pack("!BBH", command, family, len(block)) + block
        block += encode_tlvs([(ProxyTLV.CRC32C, bytes(CRC_SIZE))])
        header = _SIGNATURE + struct.pack("!BBH", command, family, len(block)) + block
        return header[:-CRC_SIZE] + struct.pack("!I", crc32c(header))

    def _block(self) -> tuple[int, bytes]:
        """Return the byte for family and transport, and the addresses."""
        source, destination = self.source, self.destination
        if source is None or destination is None:
            return _UNSPEC, b""
        kind = 0x1 if self.socket_type == SOCK_STREAM else 0x2
        if source.family == AF_UNIX:
            paths = (os.fsencode(each.host) for each in (source, destination))
            return 0x30 | kind, b"".join(path.ljust(_UNIX_PATH, b"\0") for path in paths)
        family, hosts = _one_family(source, destination)
        ports = struct.pack("!HH", source.port, destination.port)
        return (0x10 if family == AF_INET else 0x20) | kind, b"".join(hosts) + ports

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """
        Read a header of either version.

        Args:
            data: The whole header, and nothing behind it.

        Raises:
            ProxyHeaderError: It is malformed, incomplete, or its checksum wrong.
        """
        end = header_end(data, "any", limit=_FIXED + MOST_BYTES)
        if end is None or end > len(data):
            raise ProxyHeaderError(f"it is incomplete after {len(data)} bytes")
        if end < len(data):
            raise ProxyHeaderError(f"it ends after {end} bytes, and more follow")
        try:
            return cls._parse_line(data) if data[:1] == b"P" else cls._parse_binary(data)
        except ValueError as error:
            raise malformed(error) from None

    @classmethod
    def _parse_line(cls, line: bytes) -> Self:
        words = line[:-2].split(b" ")
        if words[1] == b"UNKNOWN":
            # Whatever stands behind it is to be ignored.
            return cls()
        family = {b"TCP4": AF_INET, b"TCP6": AF_INET6}.get(words[1])
        if family is None or len(words) != _WORDS_OF_TCP:
            raise ProxyHeaderError(f"it cannot be understood: {line!r}")
        source, destination = (_parse_host(word, family, line) for word in words[2:4])
        from_port, to_port = (_parse_port(word, line) for word in words[4:])
        return cls(_inet(source, from_port), _inet(destination, to_port))

    @classmethod
    def _parse_binary(cls, header: bytes) -> Self:
        command, family = header[12], header[13]
        if command == _LOCAL:
            # What it holds is to be ignored, its family, too.
            return cls(local=True)
        source, destination, size = _parse_block(family, header[_FIXED:])
        found = parse_tlvs(header[_FIXED + size :])
        tlvs = [(kind, value) for kind, value in found if kind != ProxyTLV.CRC32C]
        if len(tlvs) < len(found):
            check_crc(header, _FIXED + size)
        return cls(
            source,
            destination,
            tlvs=tlvs,
            checksum=len(tlvs) < len(found),
            socket_type=_KINDS.get(family & 0xF, SOCK_STREAM),
        )


def _one_family(
    source: SocketAddress, destination: SocketAddress
) -> tuple[_socket.AddressFamily, list[bytes]]:
    """Return two hosts as bytes, IPv4 mapped into IPv6 where only one of them is IPv4."""
    hosts = [_packed(source), _packed(destination)]
    if source.family == destination.family:
        return source.family, hosts
    width = 16
    return AF_INET6, [host if len(host) == width else _V4_MAPPED + host for host in hosts]


def _parse_host(word: bytes, family: int, line: bytes) -> bytes:
    kind = ipaddress.IPv4Address if family == AF_INET else ipaddress.IPv6Address
    try:
        # A zone, which the module would take, says nothing to another machine.
        return kind(word.replace(b"%", b"/").decode("ascii")).packed
    except ValueError:
        raise ProxyHeaderError(f"{word!r} is no address of its family: {line!r}") from None


def _parse_port(word: bytes, line: bytes) -> int:
    if not _PORT.fullmatch(word) or int(word) >= _PORT_LIMIT:
        raise ProxyHeaderError(f"{word!r} is no port: {line!r}")
    return int(word)


def _parse_block(
    byte: int, block: bytes
) -> tuple[SocketAddress | None, SocketAddress | None, int]:
    """Return source, destination, and how many bytes they take."""
    if byte == _UNSPEC:
        return None, None, 0
    family = _FAMILIES.get(byte & 0xF0)
    if family is None or byte & 0xF not in _KINDS:
        raise ProxyHeaderError(f"there is no family and transport {byte:#04x}")
    layout = {AF_INET: "!4s4sHH", AF_INET6: "!16s16sHH", AF_UNIX: "!108s108s"}[family]
    size = struct.calcsize(layout)
    if len(block) < size:
        raise ProxyHeaderError("its addresses are cut off")
    source, destination, *ports = struct.unpack_from(layout, block)
    if family == AF_UNIX:
        paths = [os.fsdecode(_unix_path(field)) for field in (source, destination)]
        return SocketAddress((paths[0],)), SocketAddress((paths[1],)), size
    return _inet(source, ports[0]), _inet(destination, ports[1]), size


# Where a header ends


def header_end(data: bytes, version: str, *, limit: int = HEADER_LIMIT) -> int | None:
    """
    Return where the header ends that *data* begins with.

    Args:
        data: What has come so far, be it a part of the header or more.
        version: ``"v1"``, ``"v2"``, or ``"any"`` for either.
        limit: The longest header to take, in bytes.

    Returns:
        The header's length, be it here already or not; `None` if that is not
        known yet: then all of *data* belongs to it.

    Raises:
        ProxyHeaderError: This is not the beginning of such a header.
    """
    if version != "v2" and _begins(data, _WORD + b" "):
        return _line_end(data, limit)
    if version != "v1" and _begins(data, _SIGNATURE):
        return _binary_end(data, limit)
    wanted = "a PROXY header" if version == "any" else f"a PROXY header of version {version[1:]}"
    raise ProxyHeaderError(f"it is not there: {wanted} was expected, not {data[:16]!r}")


def _begins(data: bytes, beginning: bytes) -> bool:
    return data.startswith(beginning) or (
        len(data) < len(beginning) and beginning.startswith(data)
    )


def _line_end(data: bytes, limit: int) -> int | None:
    most = min(limit, _LINE_LIMIT)
    end = data.find(b"\n", 0, most) + 1
    if end == 0:
        if len(data) >= most:
            raise ProxyHeaderError(f"it is longer than {most} bytes")
        return None
    if not data.endswith(b"\r\n", 0, end):
        raise ProxyHeaderError("its line does not end with CR and LF")
    return end


def _binary_end(data: bytes, limit: int) -> int | None:
    place = len(_SIGNATURE)
    if len(data) > place and data[place] not in (_LOCAL, _PROXY):
        raise ProxyHeaderError(f"there is no version and command {data[place]:#04x}")
    if len(data) < _FIXED:
        return None
    end = _FIXED + int.from_bytes(data[_FIXED - 2 : _FIXED], "big")
    if end > limit:
        raise ProxyHeaderError(f"it is longer than {limit} bytes")
    return end
