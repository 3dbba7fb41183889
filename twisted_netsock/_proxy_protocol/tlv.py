"""
What a header of the PROXY protocol carries beside addresses: TLVs, as values; no I/O.

The names are those of HAProxy's specification ("The PROXY protocol", section 2.2).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from enum import IntEnum
from functools import cache
from typing import Final, Self, TypeAlias

import attrs

from .._public import public_in
from ..errors import ProxyHeaderError

__all__ = ["ProxyTLS", "ProxyTLV"]

MOST_BYTES: Final = 0xFFFF
"""The most bytes that a length field of the protocol can hold."""

TLV_HEAD: Final = 3
"""Bytes of a TLV before its value: type and length."""

CRC_SIZE: Final = 4


@public_in("twisted_netsock")
class ProxyTLV(IntEnum):
    """Types of what a header of version 2 may carry beside addresses (section 2.2)."""

    ALPN = 0x01
    AUTHORITY = 0x02
    CRC32C = 0x03
    NOOP = 0x04
    UNIQUE_ID = 0x05
    SSL = 0x20
    SSL_VERSION = 0x21
    SSL_CN = 0x22
    SSL_CIPHER = 0x23
    SSL_SIG_ALG = 0x24
    SSL_KEY_ALG = 0x25
    NETNS = 0x30


TLV: TypeAlias = "tuple[int, bytes]"
"""A type, which may be one of `ProxyTLV`, and a value."""


def checked_tlvs(given: Iterable[TLV]) -> tuple[TLV, ...]:
    """Take types and values, each known type at most once."""
    expected = "tlvs must be an iterable of a type (int) and a value (bytes) each, not"
    if isinstance(given, bytes | str):
        raise TypeError(f"{expected} {given!r}")
    found: list[TLV] = []
    for item in given:
        if not isinstance(item, tuple | list) or len(item) != 2:  # noqa: PLR2004 - type and value
            raise TypeError(f"{expected} {item!r}")
        kind, value = item
        if isinstance(kind, bool) or not isinstance(kind, int) or not isinstance(value, bytes):
            raise TypeError(f"{expected} {item!r}")
        if not 0 <= kind <= 0xFF:  # noqa: PLR2004 - a byte
            raise ValueError(f"tlvs: the type {kind} must be from 0 to 255")
        if len(value) > MOST_BYTES:
            raise ValueError(f"tlvs: the value of type {kind} is longer than {MOST_BYTES} bytes")
        found.append((ProxyTLV(kind) if kind in _KNOWN else kind, value))
    kinds = [kind for kind, _ in found if kind in _KNOWN and kind != ProxyTLV.NOOP]
    for kind in kinds:
        if kinds.count(kind) > 1:
            raise ValueError(f"tlvs: {kind!r} stands there more than once")
    return tuple(found)


_KNOWN: Final = frozenset(map(int, ProxyTLV))


def first_value(tlvs: tuple[TLV, ...], kind: ProxyTLV) -> bytes | None:
    """Return the value of the TLV of this type, or `None`."""
    return next((value for each, value in tlvs if each == kind), None)


def encode_tlvs(tlvs: Iterable[TLV]) -> bytes:
    """Return types and values as they are sent."""
    return b"".join(struct.pack("!BH", kind, len(value)) + value for kind, value in tlvs)


def parse_tlvs(data: bytes) -> list[TLV]:
    """
    Take types and values apart.

    Raises:
        ProxyHeaderError: They do not end where *data* does.
    """
    found = []
    place = 0
    while place < len(data):
        if len(data) - place < TLV_HEAD:
            raise ProxyHeaderError("a TLV is cut off")
        kind, size = struct.unpack_from("!BH", data, place)
        place += TLV_HEAD + size
        if place > len(data):
            raise ProxyHeaderError("a TLV is longer than what holds it")
        found.append((kind, data[place - size : place]))
    return found


def as_text(value: bytes | None) -> str | None:
    """Return a value that is text by its type, whatever its sender has put there."""
    return None if value is None else value.decode("utf-8", "backslashreplace")


def _unsigned(most: int) -> Callable[[object, attrs.Attribute[int], int], None]:
    def validate(_: object, field: attrs.Attribute[int], value: int) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{field.name} must be an int, not {value!r}")
        if not 0 <= value <= most:
            raise ValueError(f"{field.name}={value} must be from 0 to {most}")

    return validate


@public_in("twisted_netsock")
@attrs.frozen(kw_only=True)
class ProxyTLS:
    """
    What a proxy reports about the TLS of its client (``PP2_TYPE_SSL``, section 2.2.6).

    Attributes:
        client: Flags: ``SSL`` (the client spoke TLS), ``CERT_CONN`` (it showed a
            certificate on this connection), ``CERT_SESS`` (it did in this session).
        verify: The proxy's verdict on that certificate, 0 if it is good. Some
            proxies send 0 without a certificate, too: see `verified`.
        tlvs: Types, of those that begin with ``SSL_`` in `ProxyTLV`, and values.
    """

    SSL = 0x01
    CERT_CONN = 0x02
    CERT_SESS = 0x04

    client: int = attrs.field(default=0x01, validator=_unsigned(0xFF))
    verify: int = attrs.field(default=0, validator=_unsigned(0xFFFFFFFF))
    tlvs: tuple[TLV, ...] = attrs.field(default=(), converter=checked_tlvs)

    @property
    def verified(self) -> bool:
        """Whether the client showed a certificate, and the proxy found it good."""
        return self.verify == 0 and bool(self.client & (self.CERT_CONN | self.CERT_SESS))

    @property
    def version(self) -> str | None:
        """The version of TLS, such as ``"TLSv1.3"``."""
        return as_text(first_value(self.tlvs, ProxyTLV.SSL_VERSION))

    @property
    def common_name(self) -> str | None:
        """The common name in the client's certificate, be it good or not."""
        return as_text(first_value(self.tlvs, ProxyTLV.SSL_CN))

    @property
    def cipher(self) -> str | None:
        """The name of the cipher suite."""
        return as_text(first_value(self.tlvs, ProxyTLV.SSL_CIPHER))

    def encode(self) -> bytes:
        """Return the value of a TLV of type `ProxyTLV.SSL`."""
        return struct.pack("!BI", self.client, self.verify) + encode_tlvs(self.tlvs)

    @classmethod
    def parse(cls, value: bytes) -> Self:
        """
        Read the value of a TLV of type `ProxyTLV.SSL`.

        Raises:
            ProxyHeaderError: It is malformed.
        """
        size = struct.calcsize("!BI")
        if len(value) < size:
            raise ProxyHeaderError("the TLV about TLS is cut off")
        client, verify = struct.unpack_from("!BI", value)
        try:
            return cls(client=client, verify=verify, tlvs=parse_tlvs(value[size:]))
        except ValueError as error:
            raise malformed(error) from None


def malformed(error: ValueError) -> ProxyHeaderError:
    """Return what an argument from the wire was refused for as an error of the header."""
    return error if isinstance(error, ProxyHeaderError) else ProxyHeaderError(str(error))


# Checksums


@cache
def _crc_table() -> tuple[int, ...]:
    """Return the table of CRC32C, the polynomial reflected (RFC 4960, Appendix B)."""
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


def crc32c(data: bytes) -> int:
    """Return the CRC32C of *data*."""
    table = _crc_table()
    value = 0xFFFFFFFF
    for byte in data:
        value = table[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFFFFFF


def check_crc(header: bytes, start: int) -> None:
    """Refuse a checksum among the TLVs from *start* on that is wrong, or not the only one."""
    blank = bytearray(header)
    found: list[bytes] = []
    position = start
    for kind, value in parse_tlvs(header[start:]):
        position += TLV_HEAD
        if kind == ProxyTLV.CRC32C:
            found.append(value)
            blank[position : position + len(value)] = bytes(len(value))
        position += len(value)
    if found != [struct.pack("!I", crc32c(bytes(blank)))]:
        raise ProxyHeaderError("its CRC32C is wrong")
