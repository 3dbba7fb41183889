"""
Peers that say, within a handshake whose keys are right, what its rules do not allow.

tlslite-ng speaks, and each of its messages is left out, repeated, cut, moved, or led by
what does not belong there, before it is encrypted and counted in the transcript: the
peer's Finished agrees with all that it has said.
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import pytest
from tlslite.errors import BaseTLSException
from tlslite.messages import Message
from tlslite.tlsconnection import TLSConnection
from tlslite.utils.keyfactory import parsePEMKey
from tlslite.x509certchain import X509CertChain

from tests.hostile.test_hostile_encrypted import settings_for as hostile_settings
from tests.hostile.test_hostile_tls import OURS, VERSIONS, count_refused, forgers_listener, naming
from tests.support.faults import ANSWER, QUESTION
from tests.support.forgers import (
    ALERT,
    APPLICATION_DATA,
    CHANGE_CIPHER_SPEC,
    HANDSHAKE,
    USER_CANCELED,
    WARNING,
)
from tests.support.loopback import LOOPBACK
from tests.support.peers import PEER_SECONDS, until
from tests.support.streams import in_thread, noise
from tests.support.ways_in import ASKING, SERVING
from twisted_netsock import ServerTLSSocketOptions
from twisted_netsock.testing import CertificateAuthority, IssuedCertificate

pytestmark = [pytest.mark.long, pytest.mark.once]

WAYS = pytest.mark.parametrize("way", ["socket", "endpoint"])
"""The facade and the relay leave handshakes to these."""
ONE_WAY = pytest.mark.parametrize("way", ["socket"])
"""What takes its time: the handshake of both is one."""

NAMES = {
    1: "ClientHello",
    2: "ServerHello",
    8: "EncryptedExtensions",
    11: "Certificate",
    12: "ServerKeyExchange",
    13: "CertificateRequest",
    14: "ServerHelloDone",
    15: "CertificateVerify",
    16: "ClientKeyExchange",
    20: "Finished",
}
SENT_BY = {
    ("client", "TLSv1.2"): (1, 11, 16, 15, 20),
    ("client", "TLSv1.3"): (1, 11, 15, 20),
    ("server", "TLSv1.2"): (2, 11, 12, 13, 14, 20),
    ("server", "TLSv1.3"): (2, 8, 13, 11, 15, 20),
}
"""The kinds of messages, by who sends them and by version."""

Said = tuple[int, bytes]
"""A kind of content, and the content."""

Forge = Callable[[bytes], list[Said]]
"""Returns what is said instead of a message."""


def settings_for(version: str) -> Any:
    settings = hostile_settings(version)
    # It would compress a certificate also for who has not offered to take that.
    settings.certificate_compression_send = []
    settings.certificate_compression_receive = []
    return settings


def written(kind: int, content: bytes, size: int | None = None) -> Said:
    length = len(content) if size is None else size
    return HANDSHAKE, bytes([kind]) + length.to_bytes(3, "big") + content


def whole(message: bytes) -> Said:
    return HANDSHAKE, message


def led_by(*said: Said) -> Forge:
    return lambda message: [*said, whole(message)]


def saying_its_size(change: int) -> Forge:
    return lambda message: [written(message[0], message[4:], len(message) - 4 + change)]


def behind_the_next(_: bytes) -> list[Said]:
    """Stand for a message that is held back, until another has been said."""
    return []


FORGERIES: dict[str, Forge] = {
    "left out": lambda _: [],
    "behind the one that follows": behind_the_next,
    "twice": lambda message: [whole(message)] * 2,
    "without content": lambda message: [written(message[0], b"")],
    "cut off": lambda message: [written(message[0], message[4 : 2 + len(message) // 2])],
    "cut off, and no more said": lambda message: [whole(message[: len(message) // 2])],
    "with more at its end": lambda message: [written(message[0], message[4:] + b"\0more")],
    "that says it is longer": saying_its_size(1),
    "that says it is shorter": saying_its_size(-1),
    "that says it is 16 MB long": lambda message: [written(message[0], message[4:], 2**24 - 1)],
    "of noise": lambda message: [written(message[0], noise(len(message) - 4))],
    "of another kind": lambda message: [written(77, message[4:])],
    "after a Finished": led_by(written(20, noise(12))),
    "after an empty certificate": led_by(written(11, b"\0\0\0\0")),
    "after new keys": led_by(written(24, b"\1")),
    "after a ticket": led_by(written(4, noise(60))),
    "after the end of early data": led_by(written(5, b"")),
    "after a change of ciphers": led_by((CHANGE_CIPHER_SPEC, b"\1")),
    "after data": led_by((APPLICATION_DATA, QUESTION)),
    "after many warnings": led_by(*[(ALERT, bytes([WARNING, USER_CANCELED]))] * 2000),
    "after the end": led_by((ALERT, bytes([WARNING, 0]))),
}

NOTHING_SAID = {("TLSv1.3", "after a change of ciphers")}
"""This says nothing, and may come at any time (RFC 8446, section 5)."""

NOTHING_CHANGED = {
    ("ServerHelloDone", "without content"),
    ("ServerHelloDone", "cut off"),
    ("ServerHelloDone", "of noise"),
    ("ServerHelloDone", "that says it is shorter"),
    ("Finished", "twice"),
}
"""ServerHelloDone has no content; after the first Finished the handshake is done."""

QUIET_SECONDS = 0.2
"""So long after a forgery the forger waits for an answer before it ends."""


class Ending:
    """A socket that ends, once it is naming to hurry, rather than wait for long."""

    def __init__(self, plain: socket.socket) -> None:
        self._plain = plain
        self.hurried = False

    def recv(self, size: int) -> bytes:
        if self.hurried and not select.select([self._plain], [], [], QUIET_SECONDS)[0]:
            self._plain.shutdown(socket.SHUT_WR)
        return self._plain.recv(size)

    def close(self) -> None:
        """Leave it open: an alert may still come."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plain, name)


class ForgingConnection(TLSConnection):  # type: ignore[misc]
    """Says something else than each message of one kind."""

    def __init__(self, plain: socket.socket, kinds: tuple[int, ...], forge: Forge) -> None:
        self._ending = Ending(plain)
        super().__init__(self._ending)
        self._kinds = kinds
        self._forge = forge
        self._held_back: list[Any] = []

    @property
    def forged(self) -> bool:
        return self._ending.hurried

    def _instead_of(self, message: Any) -> list[Any]:
        if message.contentType != HANDSHAKE or message.write()[0] not in self._kinds:
            held_back, self._held_back = self._held_back, []
            return [message, *held_back]
        self._ending.hurried = True
        if self._forge is behind_the_next:
            self._held_back.append(message)
        said = self._forge(bytes(message.write()))
        return [Message(kind, bytearray(content)) for kind, content in said]

    def _sendMsg(  # noqa: N802 - tlslite-ng owns the name
        self, msg: Any, *arguments: bool, update_hashes: bool = True, **others: bool
    ) -> Generator[int]:
        # What was queued has been through here.
        for each in self._instead_of(msg) if update_hashes else [msg]:
            yield from super()._sendMsg(each, *arguments, update_hashes=update_hashes, **others)

    def _queue_message(self, msg: Any) -> None:
        for each in self._instead_of(msg):
            if each.contentType == HANDSHAKE:
                super()._queue_message(each)
                continue
            if self._buffer:
                self._exhaust(self._queue_flush())
            self._exhaust(super()._sendMsg(each))

    @staticmethod
    def _exhaust(sending: Generator[int]) -> None:
        for _ in sending:
            raise AssertionError("the socket blocks")

    def _queue_flush(self) -> Generator[int]:
        if self._buffer:
            yield from super()._queue_flush()


class Credentials(NamedTuple):
    """A certificate, and a key, as tlslite-ng has them."""

    chain: Any
    key: Any

    @classmethod
    def of(cls, issued: IssuedCertificate, key: bytes | None = None) -> Credentials:
        chain = X509CertChain()
        chain.parsePemList(issued.certificate_pem.decode())
        pem = issued.private_key_pem if key is None else key
        return cls(chain, parsePEMKey(pem.decode(), private=True))


class Outcome(NamedTuple):
    """What came of a forgery: whether it was made, and what the other side said then."""

    forged: bool
    heard: bytes


def talk(plain: socket.socket, tls: ForgingConnection, shake: Callable[[], object]) -> Outcome:
    """Perform the handshake, say the question, and take what comes until the end."""
    plain.settimeout(PEER_SECONDS)
    heard = b""
    with plain, contextlib.suppress(OSError, BaseTLSException):
        try:
            shake()
            tls.write(QUESTION)
            heard = bytes(tls.read(max=100, min=1))
        finally:
            with contextlib.suppress(OSError):
                plain.shutdown(socket.SHUT_WR)
                while plain.recv(65536):
                    pass
    return Outcome(tls.forged, heard)


def come(
    port: int, version: str, credentials: Credentials | None, kinds: tuple[int, ...], forge: Forge
) -> Outcome:
    """Be a client, who shows *credentials*."""
    plain = socket.create_connection((LOOPBACK, port), PEER_SECONDS)
    tls = ForgingConnection(plain, kinds, forge)
    chain, key = credentials or (None, None)
    return talk(
        plain,
        tls,
        lambda: tls.handshakeClientCert(chain, key, settings=settings_for(version)),
    )


def serve(
    listener: socket.socket,
    version: str,
    credentials: Credentials,
    kinds: tuple[int, ...],
    forge: Forge,
) -> Outcome:
    """Be a server, to one client."""
    plain, _ = listener.accept()
    tls = ForgingConnection(plain, kinds, forge)
    chain, key = credentials
    asks = 13 in kinds
    return talk(
        plain,
        tls,
        lambda: tls.handshakeServer(
            certChain=chain, privateKey=key, settings=settings_for(version), reqCert=asks
        ),
    )


def every_forgery(side: str, version: str) -> list[tuple[str, tuple[int, ...], Forge]]:
    return [
        (f"{NAMES[kind]} {name}", (kind,), forge)
        for kind in SENT_BY[side, version]
        for name, forge in FORGERIES.items()
        if (version, name) not in NOTHING_SAID and (NAMES[kind], name) not in NOTHING_CHANGED
    ]


def requiring(authority: CertificateAuthority) -> ServerTLSSocketOptions:
    """Return a record of a server that requires a certificate of *authority*."""
    return authority.server_options(
        client_certificate_required=True, trusted_certificates=authority.certificate_pem
    )


@pytest.fixture(autouse=True)
def _a_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each failure logged with a line of its own, of which there are many here."""
    monkeypatch.setattr("twisted_netsock._text._LINES_A_PERIOD", 100_000)


class Server:
    """A server of ours that requires certificates, and what forgers make of it."""

    def __init__(self, served: Any, log_lines: list[str], version: str) -> None:
        self._served = served
        self._log_lines = log_lines
        self._version = version

    async def refuses(
        self, credentials: Credentials | None, kinds: tuple[int, ...], forge: Forge
    ) -> None:
        before = count_refused(self._log_lines)
        outcome = await in_thread(
            come, self._served.port, self._version, credentials, kinds, forge
        )
        await until(lambda: count_refused(self._log_lines) > before)
        assert outcome == (bool(kinds), b"")
        assert self._served.seen == []


@VERSIONS
class TestServers:
    @ONE_WAY
    async def test_a_message_that_is_not_as_it_must_be_ends_the_handshake(
        self,
        way: str,
        version: str,
        authority: CertificateAuthority,
        log_lines: list[str],
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        options = requiring(authority)
        credentials = Credentials.of(authority.issue("a client"))
        async with SERVING[way](options) as served:
            server = Server(served, log_lines, version)
            for name, kinds, forge in every_forgery("client", version):
                with naming(name):
                    await server.refuses(credentials, kinds, forge)
            # All that was amiss is what was forged.
            unforged = in_thread(come, served.port, version, credentials, (), FORGERIES["twice"])
            assert await unforged == (False, ANSWER)
        assert capfd.readouterr() == ("", "")

    @WAYS
    async def test_a_client_that_proves_nothing_is_refused(
        self,
        way: str,
        version: str,
        authority: CertificateAuthority,
        log_lines: list[str],
    ) -> None:
        issued, other = authority.issue("a client"), authority.issue("another")
        stolen = Credentials.of(issued, other.private_key_pem)
        options = requiring(authority)
        left_out = FORGERIES["left out"]
        async with SERVING[way](options) as served:
            server = Server(served, log_lines, version)
            for name, credentials, kinds in (
                ("no certificate", None, ()),
                ("the certificate of somebody else", stolen, ()),
                ("no message of a certificate", Credentials.of(issued), (11, 15)),
                ("no proof", Credentials.of(issued), (15,)),
                ("nothing but keys", Credentials.of(issued), (11, 15, 20)),
            ):
                with naming(name):
                    await server.refuses(credentials, kinds, left_out)


@VERSIONS
class TestClients:
    @ONE_WAY
    async def test_a_message_that_is_not_as_it_must_be_ends_the_handshake(
        self,
        way: str,
        version: str,
        authority: CertificateAuthority,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        credentials = Credentials.of(authority.issue("localhost", LOOPBACK))
        for name, kinds, forge in every_forgery("server", version):
            with naming(name):
                await self.refuses(way, version, authority, credentials, kinds, forge)
        # All that was amiss is what was forged.
        with pytest.raises(AssertionError, match=QUESTION.decode()):
            await self.refuses(way, version, authority, credentials, (), FORGERIES["twice"])
        assert capfd.readouterr() == ("", "")

    @staticmethod
    async def refuses(
        way: str,
        version: str,
        authority: CertificateAuthority,
        credentials: Credentials,
        kinds: tuple[int, ...],
        forge: Forge,
    ) -> Exception:
        with forgers_listener() as listener:
            serving = in_thread(serve, listener, version, credentials, kinds, forge)
            with pytest.raises(OURS) as caught:
                await ASKING[way](*listener.getsockname(), authority.client_options())
            outcome = await serving
        assert outcome == (bool(kinds), b"")
        return caught.value

    @WAYS
    async def test_a_server_that_proves_nothing_is_refused(
        self, way: str, version: str, authority: CertificateAuthority
    ) -> None:
        issued, other = authority.issue("localhost", LOOPBACK), authority.issue("another")
        stolen = Credentials.of(issued, other.private_key_pem)
        left_out = FORGERIES["left out"]
        for name, credentials, kinds in (
            ("the certificate of somebody else", stolen, ()),
            ("no certificate", Credentials.of(issued), (11, 15)),
            ("no proof", Credentials.of(issued), (12, 15)),
            ("nothing but keys", Credentials.of(issued), (11, 12, 15)),
        ):
            with naming(name):
                await self.refuses(way, version, authority, credentials, kinds, left_out)


@WAYS
@pytest.mark.parametrize("extension", [42, 16], ids=["early data", "ALPN"])
async def test_a_client_refuses_extensions_that_it_has_not_asked_for(
    way: str, extension: int, authority: CertificateAuthority
) -> None:
    """A client that believes the server would send early data (RFC 8446, section 4.2)."""
    credentials = Credentials.of(authority.issue("localhost", LOOPBACK))
    content = b"\0\4" + extension.to_bytes(2, "big") + b"\0\0"
    error: Any = await TestClients.refuses(
        way, "TLSv1.3", authority, credentials, (8,), lambda _: [written(8, content)]
    )
    assert error.reason == "unsolicited extension"


@WAYS
async def test_a_client_notices_that_its_versions_were_cut(
    way: str, authority: CertificateAuthority
) -> None:
    """A server of TLS 1.3 that was made to speak 1.2 says so (RFC 8446, section 4.1.3)."""

    def mark(message: bytes) -> list[Said]:
        return [whole(message[:30] + b"DOWNGRD\1" + message[38:])]

    credentials = Credentials.of(authority.issue("localhost", LOOPBACK))
    error: Any = await TestClients.refuses(way, "TLSv1.2", authority, credentials, (2,), mark)
    assert error.reason == "inappropriate fallback"
