"""What a client's handshake takes of pyOpenSSL's inner parts, and what it does without them."""

from __future__ import annotations

from typing import Any

from stream_helpers import TLSStreams, soon

from twisted_netsock import handshake_records, tls
from twisted_netsock.testing import CertificateAuthority


def test_pyopenssl_has_the_parts_that_are_used() -> None:
    """When this fails, a server can hold up a client's reactor during the handshake."""
    assert handshake_records.can_carry_records()


async def test_without_them_a_handshake_runs_on_the_descriptor(
    authority: CertificateAuthority, monkeypatch: Any
) -> None:
    monkeypatch.setattr(tls, "can_carry_records", lambda: False)
    async with TLSStreams(authority).pair() as (one, other):
        await one.sendall(b"hello")
        assert await soon(other.recv(10)) == b"hello"
