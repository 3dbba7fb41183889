"""
The other ends of the tests: certificates, servers and clients that are not our own code.

Servers of the standard library and the openssl command run in threads or
processes beside the reactor, each for a bounded time.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol

from tests.support.clocks import the_reactor, until
from twisted_netsock import ServerTLSSocketOptions, server_endpoint
from twisted_netsock.testing import ScriptedResolver

PEER_SECONDS = 10.0
"""What no peer outlives."""

QUESTION = b"a secret that only the right server may read"
ANSWER = b"welcome"


def in_thread(function: Callable[..., Any], *arguments: object) -> Deferred[Any]:
    """Call *function* in a thread of its own, and fire with what it returns."""
    reactor = the_reactor()
    done: Deferred[Any] = Deferred()

    def work() -> None:
        try:
            outcome = function(*arguments)
        except BaseException as error:  # noqa: BLE001 - the test hears of it
            reactor.callFromThread(done.errback, error)
        else:
            reactor.callFromThread(done.callback, outcome)

    threading.Thread(target=work, daemon=True).start()
    return done


# Certificates


@dataclass(frozen=True)
class Entity:
    """A certificate with its key and the intermediate ones above it."""

    certificate: x509.Certificate
    key: Any
    intermediates: tuple[x509.Certificate, ...] = ()

    @property
    def certificate_pem(self) -> bytes:
        return pem(self.certificate)

    @property
    def chain_pem(self) -> bytes:
        return b"".join(map(pem, (self.certificate, *self.intermediates)))

    @property
    def key_pem(self) -> bytes:
        return key_bytes(self.key)

    @property
    def pem(self) -> bytes:
        return self.chain_pem + self.key_pem


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def key_bytes(
    key: Any,
    encoding: serialization.Encoding = serialization.Encoding.PEM,
    form: serialization.PrivateFormat = serialization.PrivateFormat.PKCS8,
    password: bytes | None = None,
) -> bytes:
    encryption: Any = serialization.NoEncryption()
    if password is not None:
        encryption = serialization.BestAvailableEncryption(password)
    return key.private_bytes(encoding, form, encryption)


def general_name(name: str | x509.GeneralName) -> x509.GeneralName:
    """Take an address or a DNS name; the name as it stands, be it nonsense."""
    if isinstance(name, x509.GeneralName):
        return name
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def make_entity(
    common_name: str,
    *names: str | x509.GeneralName,
    issuer: Entity | None = None,
    key: Any = None,
    is_authority: bool = False,
    days: float = 10,
) -> Entity:
    """Make a certificate signed by *issuer*, or by itself."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    signer = issuer.key if issuer else key
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    if names:
        san = x509.SubjectAlternativeName([general_name(name) for name in names])
        builder = builder.add_extension(san, critical=False)
    algorithm = None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    above = ()
    if issuer is not None and issuer.certificate.issuer != issuer.certificate.subject:
        above = (issuer.certificate, *issuer.intermediates)
    return Entity(builder.sign(signer, algorithm), key, above)


class Hierarchy(NamedTuple):
    """An authority, another below it, and a server below that."""

    root: Entity
    middle: Entity
    leaf: Entity


def make_hierarchy(*names: str) -> Hierarchy:
    root = make_entity("the root", is_authority=True)
    middle = make_entity("the intermediate", issuer=root, is_authority=True)
    return Hierarchy(root, middle, make_entity("the leaf", *names, issuer=middle))


# Names


@contextlib.contextmanager
def resolving(names: Mapping[str, Sequence[str]]) -> Iterator[ScriptedResolver]:
    """Have the reactor look names up in *names*."""
    resolver = ScriptedResolver(names)
    before = resolver.install()
    try:
        yield resolver
    finally:
        the_reactor().installNameResolver(before)


# Servers


class Served(NamedTuple):
    """What one connection of a `StandardServer` came to: data, or the error of its TLS."""

    data: bytes
    error: OSError | None


@dataclass
class StandardServer:
    """
    A TLS server of the standard library, for one connection.

    Answers the first data with `ANSWER`, and then ends in order.
    """

    port: int
    outcome: Deferred[Served]
    names: list[str | None] = field(default_factory=list)
    """The server names that clients sent."""


def _serve_once(listener: socket.socket, context: ssl.SSLContext) -> Served:
    data = b""
    try:
        plain, _ = listener.accept()
        plain.settimeout(PEER_SECONDS)
        with plain, context.wrap_socket(plain, server_side=True) as tls:
            data = tls.recv(4096)
            if data:
                tls.sendall(ANSWER)
            with contextlib.suppress(OSError):
                tls.unwrap()
    except OSError as error:
        return Served(data, error)
    return Served(data, None)


@contextlib.asynccontextmanager
async def standard_server(
    directory: Path, identity_pem: bytes, *, version: str | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[StandardServer]:
    """Run a `StandardServer` with *identity_pem*, of the TLS *version* alone."""
    file = directory / "standard-server.pem"
    file.write_bytes(identity_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    if version is not None:
        context.minimum_version = context.maximum_version = ssl.TLSVersion[
            version.replace(".", "_")
        ]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        listener.settimeout(PEER_SECONDS)
        server = StandardServer(listener.getsockname()[1], Deferred())
        context.sni_callback = lambda _socket, name, _context: server.names.append(name)
        served = in_thread(_serve_once, listener, context)
        served.addBoth(server.outcome.callback)
        try:
            yield server
        finally:
            with contextlib.suppress(OSError):
                # Wakes an accept that nobody has come to.
                listener.shutdown(socket.SHUT_RDWR)
            await served


class Recorder(Protocol):
    """A server's end: greets or answers, and keeps what it was sent."""

    def __init__(self, server: Recording) -> None:
        self.server = server
        self.lost = False

    def connectionMade(self) -> None:
        self.server.connections.append(self)
        if self.server.greeting is not None:
            self.transport.write(self.server.greeting)
            self.transport.loseConnection()

    def dataReceived(self, data: bytes) -> None:
        self.server.received += data
        self.transport.write(ANSWER)

    def connectionLost(self, reason: Any) -> None:
        self.lost = True


class Recording(Factory):
    """Builds a `Recorder` for each connection."""

    noisy = False

    def __init__(self, greeting: bytes | None = None) -> None:
        self.greeting = greeting
        self.connections: list[Recorder] = []
        self.received = b""
        self.port = 0

    def buildProtocol(self, address: object) -> Recorder:
        return Recorder(self)

    async def end(self) -> None:
        """Abort what is left."""
        for connection in self.connections:
            if not connection.lost:
                connection.transport.abortConnection()
        await until(lambda: all(connection.lost for connection in self.connections))


@contextlib.asynccontextmanager
async def serving(
    options: ServerTLSSocketOptions | Sequence[ServerTLSSocketOptions],
    *,
    greeting: bytes | None = b"hello\n",
    factory: Recording | None = None,
) -> AsyncIterator[Recording]:
    """
    Serve *options* with our own endpoint on 127.0.0.1.

    With *greeting* the server says that much and ends the connection, without
    it answers each piece of data with `ANSWER`.
    """
    recording = factory or Recording(greeting)
    endpoint = server_endpoint(the_reactor(), "127.0.0.1", 0, options)
    port = await endpoint.listen(recording)
    recording.port = port.getHost().port
    try:
        yield recording
    finally:
        await port.stopListening()
        await recording.end()


# Clients


class Said(NamedTuple):
    """What a program printed, to both outputs, and how it ended."""

    text: str
    code: int


def _run(arguments: Sequence[str], given: bytes) -> Said:
    done = subprocess.run(
        arguments,
        input=given,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=PEER_SECONDS,
        check=False,
    )
    return Said(done.stdout.decode("utf-8", "replace"), done.returncode)


async def s_client(port: int, *arguments: str) -> Said:
    """Connect with ``openssl s_client``, and listen until the server ends."""
    to = ("-connect", f"127.0.0.1:{port}", "-ign_eof")
    return await in_thread(_run, ("openssl", "s_client", *to, *arguments), b"")


async def openssl(*arguments: str, given: bytes = b"") -> Said:
    """Run an ``openssl`` command that ends by itself."""
    return await in_thread(_run, ("openssl", *arguments), given)


class ClientEnd(Protocol):
    """A client's end: asks `QUESTION` as soon as it may, and waits for the answer."""

    def __init__(self) -> None:
        self.answer: Deferred[bytes] = Deferred()
        self.lost: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self.transport.write(QUESTION)

    def dataReceived(self, data: bytes) -> None:
        if not self.answer.called:
            self.answer.callback(data)
            self.transport.loseConnection()

    def connectionLost(self, reason: Any) -> None:
        if not self.answer.called:
            self.answer.errback(reason)
        self.lost.callback(None)


async def ask(endpoint: Any) -> bytes:
    """Connect a `ClientEnd` to *endpoint*; return the answer, or raise why there is none."""
    end: ClientEnd = await endpoint.connect(Factory.forProtocol(ClientEnd))
    try:
        return await end.answer
    finally:
        await end.lost
