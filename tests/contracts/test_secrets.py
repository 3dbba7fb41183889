"""
Nothing that the package shows contains a secret.

The secrets of every session are in the keylog of the test, those of tickets in what the
openssl command has been given. What is looked at is every event of the log at every level,
formatted and in all its fields; repr and str of what there is; messages, tracebacks and
pickles of errors; and the pages of the relay's status.
"""

from __future__ import annotations

import base64
import gc
import pickle
import re
import ssl
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.logger import LogEvent, formatEvent, formatEventAsClassicLogText, globalLogPublisher

from tests._certificates.test_certificate_secrets import assert_hides
from tests.support.clocks import until
from tests.support.faults import ANSWER, FAULTS, QUESTION, misbehaving_server
from tests.support.loopback import LOOPBACK
from tests.support.peers import Entity, key_bytes, make_entity, openssl, s_client, serving
from tests.support.streams import in_thread
from tests.support.ways_in import ASKING, SERVING, EndedByRelayError, relaying, serve_endpoint
from twisted_netsock import (
    CertificateVerificationError,
    NetsockError,
    ServerTLSSocketOptions,
    SocketConnectionLostError,
    TLSError,
    TLSSocketOptions,
    blocking,
    client_context_factory,
    client_endpoint,
    make_client_tls_socket,
    server_context_factory,
    server_endpoint,
)
from twisted_netsock.commands.relay import status

pytestmark = pytest.mark.long

PASSWORD = b"open-sesame-twice"
VERSIONS = pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])


def forms(secret: bytes) -> set[str]:
    """Return texts of *secret*, each long enough to be no coincidence."""
    part = secret[:24]
    return {
        part.hex(),
        part.hex().upper(),
        part.hex(":"),
        part.hex(" "),
        base64.b64encode(part).decode(),
        repr(part)[2:-1],
        str(int.from_bytes(secret)),
    }


def assert_hidden(text: str, secrets: list[bytes]) -> None:
    assert secrets
    for secret in secrets:
        assert len(secret) >= 12
        for form in forms(secret):
            assert form not in text


class Shown:
    """Everything that has been shown so far."""

    def __init__(self) -> None:
        self._events: list[LogEvent] = []
        self._texts: list[str] = []

    def __call__(self, event: LogEvent) -> None:
        self._events.append(event)

    def show(self, *things: object) -> None:
        for thing in things:
            self._texts += [repr(thing), str(thing)]

    def error(self, error: BaseException) -> None:
        """Take what an error and its causes show, also to the peer."""
        self.show(error)
        self._texts += traceback.format_exception(error)
        self._texts.append(repr(pickle.dumps(error)))
        self._texts.append(repr(vars(error)))

    @property
    def text(self) -> str:
        lines = [*self._texts]
        for event in self._events:
            lines += [formatEvent(event), formatEventAsClassicLogText(event) or ""]
            lines += [f"{name}={value!r} {value}" for name, value in event.items()]
            if "log_failure" in event:
                lines.append(event["log_failure"].getTraceback(detail="verbose"))
        return "\n".join(lines)

    @property
    def levels(self) -> set[str]:
        return {event["log_level"].name for event in self._events}


@pytest.fixture
def shown() -> Iterator[Shown]:
    shown = Shown()
    globalLogPublisher.addObserver(shown)
    yield shown
    globalLogPublisher.removeObserver(shown)


class Secretive:
    """Records of both sides with keys, a passphrase and a keylog, and the secrets so far."""

    def __init__(self, directory: Path, version: str) -> None:
        self.version = version
        self._keylog = directory / "keylog"
        self.root = make_entity("the root", is_authority=True)
        self.server_identity = make_entity("a server", "localhost", LOOPBACK, issuer=self.root)
        self.client_identity = make_entity("a client", issuer=self.root)
        self._common: dict[str, Any] = {
            "trusted_certificates": self.root.certificate,
            "maximum_version": version,
            "keylog_file": self._keylog,
            "private_key_password": PASSWORD,
        }

    @staticmethod
    def _identity(entity: Entity) -> dict[str, Any]:
        return {
            "certificates": entity.certificate,
            "private_key": key_bytes(entity.key, password=PASSWORD),
        }

    def server(self, **fields: Any) -> ServerTLSSocketOptions:
        return ServerTLSSocketOptions(
            **self._common, **self._identity(self.server_identity), **fields
        )

    def client(self, **fields: Any) -> TLSSocketOptions:
        return TLSSocketOptions(**self._common, **self._identity(self.client_identity), **fields)

    @property
    def session_secrets(self) -> list[bytes]:
        """The secrets of every session so far, from the keylog."""
        lines = self._keylog.read_text().splitlines() if self._keylog.exists() else []
        return [bytes.fromhex(line.split()[2]) for line in lines]

    def check(self, shown: Shown, *, handshaken: bool = True) -> None:
        """Check that nothing of keys, sessions and data has been shown."""
        text = shown.text
        secrets = self.session_secrets
        assert secrets or not handshaken
        assert_hidden(text, [*secrets, QUESTION, ANSWER])
        for entity in (self.server_identity, self.client_identity, self.root):
            assert_hides(text, entity, PASSWORD)


@pytest.fixture
def secretive(tmp_path: Path, version: str) -> Secretive:
    return Secretive(tmp_path, version)


# The search itself


@pytest.mark.parametrize("form", range(len(forms(b"x" * 32))))
def test_a_secret_is_found_in_every_form(form):
    secret = bytes(range(100, 132))
    leak = sorted(forms(secret))[form]
    with pytest.raises(AssertionError):
        assert_hidden(f"before {leak} after", [secret])
    with pytest.raises(AssertionError):
        assert_hidden("no secret was looked for", [])


def test_what_is_logged_is_searched_in_all_its_fields():
    shown = Shown()
    shown({"log_format": "quiet", "log_time": 0.0, "hidden": QUESTION})
    with pytest.raises(AssertionError):
        assert_hidden(shown.text, [QUESTION])


# What is shown


@VERSIONS
@pytest.mark.parametrize("serving", SERVING)
@pytest.mark.parametrize("asking", ["socket", "endpoint", "relay"])
async def test_connections_show_nothing(asking, serving, shown, secretive):
    """Two, so that a session is resumed."""
    async with SERVING[serving](secretive.server()) as served:
        for _ in range(2):
            answer = await ASKING[asking](LOOPBACK, served.port, secretive.client(), True)
            assert answer == ANSWER
        await until(lambda: served.seen == [QUESTION] * 2)
    secretive.check(shown)


def ours() -> list[object]:
    """Return every object of a class of the package."""
    return [
        each
        for each in gc.get_objects()
        if type(each).__module__.partition(".")[0] == "twisted_netsock"
    ]


@VERSIONS
async def test_objects_that_hold_secrets_do_not_show_them(shown, secretive):
    shown.show(
        client_context_factory(secretive.client(), "localhost"),
        server_context_factory(secretive.server()),
    )
    async with SERVING["socket"](secretive.server()) as served:
        for _ in range(2):
            async with await make_client_tls_socket(
                LOOPBACK, served.port, secretive.client()
            ) as sock:
                await sock.sendall(QUESTION)
                assert await sock.recv(100) == ANSWER
                found = ours()
                shown.show(*found)
            assert {"TLSSocket", "TLSDescriptor", "TLSSocketOptions"} < {
                type(each).__name__ for each in found
            }
    secretive.check(shown)


def blocking_objects(port: int, options: TLSSocketOptions) -> list[str]:
    with blocking.make_client_tls_socket(LOOPBACK, port, options) as sock:
        sock.sendall(QUESTION)
        assert sock.recv(100) == ANSWER
        return [f"{each!r} {each}" for each in (sock, sock.options, *ours())]


@VERSIONS
async def test_blocking_sockets_do_not_show_them(shown, secretive):
    async with SERVING["endpoint"](secretive.server()) as served:
        shown.show(*await in_thread(blocking_objects, served.port, secretive.client()))
        await until(lambda: served.seen)
    secretive.check(shown)


@VERSIONS
@pytest.mark.parametrize("way", ["socket", "endpoint", "relay"])
@pytest.mark.parametrize("stage", ["in the handshake", "connected"])
@pytest.mark.parametrize("fault", FAULTS[1:])
async def test_errors_of_clients_show_nothing(way, stage, fault, shown, secretive, tmp_path):
    identity = tmp_path / "server.pem"
    identity.write_bytes(secretive.server_identity.pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity)
    context.load_verify_locations(cadata=secretive.root.certificate_pem.decode())
    context.verify_mode = ssl.CERT_REQUIRED
    async with misbehaving_server(stage, fault, context) as port:
        with pytest.raises((NetsockError, EndedByRelayError)) as caught:
            await ASKING[way](LOOPBACK, port, secretive.client())
    shown.error(caught.value)
    secretive.check(shown, handshaken=stage == "connected")


@VERSIONS
@pytest.mark.parametrize("way", ["socket", "endpoint", "relay"])
async def test_refused_certificates_show_nothing(way, shown, secretive, other_authority):
    trusting = {"trusted_certificates": other_authority.certificate}
    async with SERVING["endpoint"](secretive.server()) as served:
        with pytest.raises((CertificateVerificationError, EndedByRelayError)) as caught:
            await ASKING[way](LOOPBACK, served.port, secretive.client().replace(**trusting))
    shown.error(caught.value)
    async with SERVING[way](secretive.server().replace(**trusting)) as served:
        with pytest.raises((TLSError, SocketConnectionLostError)) as refused:
            await ASKING["socket"](LOOPBACK, served.port, secretive.client())
    shown.error(refused.value)
    secretive.check(shown)


@VERSIONS
async def test_the_relay_s_status_shows_nothing(shown, secretive):
    front = server_endpoint(reactor, LOOPBACK, 0, secretive.server())
    async with serve_endpoint(secretive.server()) as behind:
        back = client_endpoint(reactor, LOOPBACK, behind.port, secretive.client())
        async with relaying(front, back) as relay:
            for _ in range(2):
                asked = ASKING["socket"](LOOPBACK, relay.port, secretive.client(), True)
                assert await asked == ANSWER
                snapshot = relay.service.snapshot()
                for page in (status._json, status._health, status._metrics_page):
                    code, _, body = page(snapshot)
                    assert code == 200
                    shown.show(body.decode())
            assert snapshot["bytes"]["received"] >= len(QUESTION)
        await until(lambda: len(behind.seen) == 2)
    assert any("connection closed" in line for line in shown.text.splitlines())
    secretive.check(shown)


@VERSIONS
async def test_tickets_and_what_resumes_with_them_are_not_shown(shown, secretive, tmp_path):
    """The openssl command prints what a client keeps: the ticket, and the key with it."""
    session = tmp_path / "session.pem"
    # With client certificates nothing is resumed.
    listener = secretive.server().replace(trusted_certificates=None)
    option = f"-{secretive.version.lower().replace('v', '').replace('.', '_')}"
    async with serving(listener) as served:
        for how in ("-sess_out", "-sess_in"):
            said = await s_client(served.port, option, how, str(session))
        shown.show(*ours())
    assert "Reused" in said.text
    printed = await openssl("sess_id", "-in", str(session), "-noout", "-text")
    keys = re.findall(r"(?:Resumption PSK|Master-Key): ([0-9A-F]{32,})", printed.text)
    dump = re.findall(r"^ +[0-9a-f]{4} - ((?:[0-9a-f]{2}[ -]){16})", printed.text, re.MULTILINE)
    tickets = [bytes.fromhex(line.replace("-", " ")) for line in dump[1:]]
    assert keys
    assert tickets
    assert_hidden(shown.text, [*map(bytes.fromhex, keys), *tickets])
    secretive.check(shown)
