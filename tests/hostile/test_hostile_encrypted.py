"""Peers whose handshake is done, and that then say, encrypted, what TLS does not allow."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable
from typing import Any

import pytest
from tlslite.handshakesettings import HandshakeSettings
from tlslite.messages import Message
from tlslite.tlsconnection import TLSConnection
from tlslite.utils.keyfactory import parsePEMKey
from tlslite.x509certchain import X509CertChain

from tests.hostile.test_hostile_tls import VERSIONS, WORD, forgers_listener, naming, read_on
from tests.support.forgers import (
    ALERT,
    APPLICATION_DATA,
    CHANGE_CIPHER_SPEC,
    FATAL,
    HANDSHAKE,
    HEARTBEAT,
    USER_CANCELED,
    WARNING,
)
from tests.support.loopback import LONGEST, LOOPBACK
from tests.support.streams import finished, in_thread, noise, soon, together
from twisted_netsock import (
    TLSError,
    TLSTruncatedError,
    make_client_tls_socket,
    make_server_tls_socket,
)
from twisted_netsock.testing import CertificateAuthority

pytestmark = [pytest.mark.long, pytest.mark.once]

MANY = 20_000
"""Records of a flood; OpenSSL takes 32 that are empty."""

Record = tuple[int, bytes]


def message(kind: int, content: bytes, size: int | None = None) -> Record:
    length = len(content) if size is None else size
    return HANDSHAKE, bytes([kind]) + length.to_bytes(3, "big") + content


ATTACKS: dict[str, list[Record]] = {
    "a flood of empty data": [(APPLICATION_DATA, b"")] * MANY,
    "a flood of warnings": [(ALERT, bytes([WARNING, USER_CANCELED]))] * MANY,
    "a record that is too large": [(APPLICATION_DATA, bytes(20_000))],
    "a record of a kind that there is not": [(99, b"data")],
    "a heartbeat": [(HEARTBEAT, b"\1\x40\0" + bytes(16))],
    "a change of ciphers": [(CHANGE_CIPHER_SPEC, b"\1")],
    "an empty message": [(HANDSHAKE, b"")],
    "a message of a kind that there is not": [message(77, b"what?")],
    "a client's first message": [message(1, noise(200))],
    "a server's first message": [message(2, noise(80))],
    "another Finished": [message(20, noise(12))],
    "a malformed ticket": [message(4, b"\xff" * 20)],
    "a request for a certificate": [message(13, b"\0" * 9)],
    "a certificate": [message(11, b"\0\0\0\0")],
    "malformed new keys": [message(24, b"\7")],
    "new keys of no length": [message(24, b"")],
    "a message that is 16 MB long": [message(24, noise(100), 2**24 - 1)],
    "half a message, and data": [(HANDSHAKE, message(4, b"", 50)[1]), (APPLICATION_DATA, b"!")],
    "the end of early data": [message(5, b"")],
    "half an alert": [(ALERT, b"\2")],
    "a fatal alert of no kind": [(ALERT, bytes([FATAL, 222]))],
    "data after the end": [(ALERT, bytes([WARNING, 0])), (APPLICATION_DATA, b"after the end")],
}


def settings_for(version: str) -> Any:
    settings = HandshakeSettings()
    settings.minVersion = settings.maxVersion = (3, 3 if version == "TLSv1.2" else 4)
    return settings


def attack(plain: socket.socket, shake: Any, attack: Iterable[Record]) -> None:
    """Perform the handshake, send the records, then a word, and take what comes until the end."""
    plain.settimeout(LONGEST)
    with plain, contextlib.suppress(ConnectionError):
        tls = TLSConnection(plain)
        shake(tls)
        for kind, content in attack:
            for _ in tls._recordLayer.sendRecord(Message(kind, bytearray(content))):
                pass
        for _ in tls._recordLayer.sendRecord(Message(APPLICATION_DATA, bytearray(WORD))):
            pass
        with contextlib.suppress(OSError):
            # Reset by then, perhaps.
            plain.shutdown(socket.SHUT_WR)
        while plain.recv(65536):
            pass


IGNORED = {"an empty message", "a client's first message", "a change of ciphers"}
"""What OpenSSL may ignore: TLS 1.2 refuses new handshakes by a warning."""


def check(name: str, received: bytes, error: Exception) -> None:
    """Check that nothing is delivered after what is not allowed, and that the error says so."""
    if name in IGNORED:
        assert received in {b"", WORD}, (name, received, error)
    else:
        assert received == b"", (name, received, error)
        assert isinstance(error, TLSError), (name, error)
        assert not isinstance(error, TLSTruncatedError), (name, error)


async def read_to_failure(sock: Any, name: str) -> None:
    if name == "data after the end":
        await soon(sock.handshake())
        assert await soon(sock.recv(100)) == b""
        sock.abort()
        return
    received, error = await read_on(sock)
    check(name, received, error)


@VERSIONS
async def test_a_server_fails_with_our_errors(
    authority: CertificateAuthority, version: str, capfd: pytest.CaptureFixture[str]
) -> None:
    options = authority.server_options(handshake=False)
    async with await make_server_tls_socket(LOOPBACK, 0, options) as listener:
        where = tuple(listener.getsockname()[:2])
        for name, records in ATTACKS.items():
            with naming(name):

                def come(records: list[Record] = records) -> None:
                    attack(
                        socket.create_connection(where, timeout=LONGEST),
                        lambda tls: tls.handshakeClientCert(settings=settings_for(version)),
                        records,
                    )

                coming = in_thread(come)
                sock = await soon(listener.accept())
                await together(read_to_failure(sock, name), finished(coming))
    assert capfd.readouterr() == ("", "")


@VERSIONS
async def test_a_client_fails_with_our_errors(
    authority: CertificateAuthority, version: str, capfd: pytest.CaptureFixture[str]
) -> None:
    issued = authority.issue("localhost", LOOPBACK)
    chain = X509CertChain()
    chain.parsePemList(issued.certificate_pem.decode())
    key = parsePEMKey(issued.private_key_pem.decode(), private=True)
    options = authority.client_options(handshake=False)
    with forgers_listener() as listener:
        for name, records in ATTACKS.items():
            with naming(name):

                def serve(records: list[Record] = records) -> None:
                    attack(
                        listener.accept()[0],
                        lambda tls: tls.handshakeServer(
                            certChain=chain, privateKey=key, settings=settings_for(version)
                        ),
                        records,
                    )

                serving = in_thread(serve)
                sock = await make_client_tls_socket(*listener.getsockname(), options)
                await together(read_to_failure(sock, name), finished(serving))
    assert capfd.readouterr() == ("", "")
