"""PROXY headers in bytes, as tests write them."""

from __future__ import annotations

import struct

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"

FULL = 65536


def binary(command: int, family: int, block: bytes = b"", size: int | None = None) -> bytes:
    length = len(block) if size is None else size
    return SIGNATURE + struct.pack("!BBH", command, family, length) + block


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value
