"""
Early data of TLS 1.3 (RFC 8446, section 2.3): it can be replayed, and is neither taken nor sent.

The peers are libssl, which sends it with a session of ours that it was made to
take for one that allows it.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest

from tests.support.faults import ANSWER, QUESTION
from tests.support.loopback import LOOPBACK
from tests.support.peers import (
    EARLY_DATA_NOT_SENT,
    EARLY_DATA_REJECTED,
    PEER_SECONDS,
    OpenSSLError,
    OpenSSLPeer,
    needs_libssl,
    until,
)
from tests.support.streams import in_thread
from tests.support.ways_in import ASKING, SERVING
from twisted_netsock import ServerTLSSocketOptions
from twisted_netsock.testing import CertificateAuthority

pytestmark = [pytest.mark.long, needs_libssl]

EARLY = b"to be replayed"
ALLOWED = 16384
"""Bytes of early data that OpenSSL reads over before it takes them for an attack."""

every_way_to_serve = pytest.mark.parametrize("way", SERVING)


def dialled(port: int, **how: Any) -> OpenSSLPeer:
    sock = socket.create_connection((LOOPBACK, port), PEER_SECONDS)
    return OpenSSLPeer(sock, "TLSv1.3", None, **how)


def session_of(port: int) -> int:
    """Visit the server at *port*, and return the session that it grants."""
    with dialled(port) as peer:
        peer.send(QUESTION)
        assert peer.read_exactly(len(ANSWER)) == ANSWER
        session = peer.take_session()
        peer.shutdown()
        assert peer.recv() == b""
    return session


def say_early(port: int, session: int, early: bytes, pieces: int = 1) -> tuple[bool, int]:
    """Offer *session*, send *early* before and a question after the handshake, and end."""
    with dialled(port, handshake=False) as peer:
        peer.resume(session, pieces * len(early))
        for _ in range(pieces):
            peer.send_early(early)
        peer.perform_handshake()
        peer.send(QUESTION)
        assert peer.read_exactly(len(ANSWER)) == ANSWER
        peer.shutdown()
        assert peer.recv() == b""
        return peer.resumed, peer.early_data


@every_way_to_serve
@pytest.mark.parametrize("known", [True, False], ids=["resumed", "of another server"])
@pytest.mark.parametrize("early", [EARLY, QUESTION], ids=["some", "a question"])
async def test_early_data_reaches_no_application_and_the_rest_does(
    way: str, known: bool, early: bytes, authority: CertificateAuthority
) -> None:
    options = authority.server_options()
    async with SERVING[way](options) as served:
        session = await in_thread(session_of, served.port)
        await until(lambda: served.seen == [QUESTION])
        if known:
            reported = await in_thread(say_early, served.port, session, early)
            await until(lambda: len(served.seen) > 1)
    if not known:
        async with SERVING[way](options) as served:
            reported = await in_thread(say_early, served.port, session, early)
            await until(lambda: served.seen)
    assert reported == (known, EARLY_DATA_REJECTED)
    assert set(served.seen) == {QUESTION}


@every_way_to_serve
async def test_too_much_early_data_ends_the_handshake(
    way: str, authority: CertificateAuthority, log_lines: list[str]
) -> None:
    async with SERVING[way](authority.server_options()) as served:
        session = await in_thread(session_of, served.port)
        await until(lambda: served.seen == [QUESTION])
        with pytest.raises(OpenSSLError):
            await in_thread(say_early, served.port, session, bytes(ALLOWED), 20)
        await until(lambda: any("TLS handshake with" in line for line in log_lines))
        assert served.seen == [QUESTION]


def _say_early_and_no_more(port: int, session: int) -> None:
    with dialled(port, handshake=False) as peer:
        peer.resume(session, ALLOWED)
        peer.send_early(QUESTION)
        with contextlib.suppress(OSError):
            # Reset by then, perhaps.
            peer.plain.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while peer.plain.recv(65536):
                pass


@every_way_to_serve
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, None], ids=["TLSv1.2", "TLSv1.3"])
async def test_early_data_without_a_handshake_reaches_no_application(
    way: str, version: Any, authority: CertificateAuthority, log_lines: list[str]
) -> None:
    """A server of TLS 1.2 alone takes it for garbage."""
    options: ServerTLSSocketOptions = authority.server_options()
    async with SERVING[way](options) as granting:
        session = await in_thread(session_of, granting.port)
        await until(lambda: granting.seen)
    async with SERVING[way](options.replace(maximum_version=version)) as served:
        await in_thread(_say_early_and_no_more, served.port, session)
        await until(lambda: any("TLS handshake with" in line for line in log_lines))
        assert served.seen == []


def _answer_early(listener: socket.socket, identity: Path, visits: int) -> list[Any]:
    """Answer as a server that allows early data; return that, and how the session was resumed."""
    reported: list[Any] = []
    for _ in range(visits):
        sock, _ = listener.accept()
        with OpenSSLPeer(sock, "TLSv1.3", identity, early=ALLOWED, handshake=False) as peer:
            early = peer.read_early()
            peer.perform_handshake()
            assert peer.read_exactly(len(QUESTION)) == QUESTION
            peer.send(ANSWER)
            peer.shutdown()
            assert peer.recv() == b""
            reported.append((early, peer.early_data, peer.resumed))
    return reported


@pytest.mark.parametrize("way", ASKING)
async def test_a_client_sends_none_though_the_server_would_take_it(
    way: str, authority: CertificateAuthority, tmp_path: Path
) -> None:
    identity = tmp_path / "identity.pem"
    identity.write_bytes(authority.issue("localhost", LOOPBACK).pem)
    with socket.create_server((LOOPBACK, 0)) as listener:
        listener.settimeout(PEER_SECONDS)
        answering = in_thread(_answer_early, listener, identity, 2)
        options = authority.client_options()
        for _ in range(2):
            assert await ASKING[way](LOOPBACK, listener.getsockname()[1], options) == ANSWER
        reported = await answering
    assert [(early, status) for early, status, _ in reported] == [(b"", EARLY_DATA_NOT_SENT)] * 2
