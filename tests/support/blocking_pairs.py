"""Pairs of connected blocking sockets, and what tests do with them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tests.support.threads import Background, plain_pair, tls_pair, waiting

SHORT = timedelta(milliseconds=30)
MUCH = 4_000_000


@pytest.fixture(params=["plain", "TLS 1.3", "TLS 1.2"])
def pair(request: pytest.FixtureRequest, authority: Any) -> Any:
    """Make two connected sockets."""
    if request.param == "plain":
        return plain_pair
    version = request.param.replace("TLS ", "TLSv")
    return lambda: tls_pair(authority, minimum_version=version, maximum_version=version)


def read_exactly(sock: Any, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = sock.recv(size - len(data))
        assert piece, "the stream ended"
        data += piece
    return bytes(data)


def fill(sock: Any) -> Background:
    """Have a thread send more than the kernel takes."""
    return waiting(lambda: sock.sendall(bytes(64 * MUCH)), sock, "_writer")
