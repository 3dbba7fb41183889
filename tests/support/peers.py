"""TLS peers that are not ours, and the certificates that they present."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import ipaddress
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    NoEncryption,
    pkcs12,
)
from cryptography.x509.oid import NameOID
from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol

from tests.support.clocks import the_reactor, until
from tests.support.loopback import LONGEST
from tests.support.streams import finished, in_thread, together
from twisted_netsock import (
    ServerTLSSocketOptions,
    TLSSocketOptions,
    client_context_factory,
    make_client_tls_socket,
    make_server_tls_socket,
    server_context_factory,
    server_endpoint,
)
from twisted_netsock.testing import CertificateAuthority

PEER_SECONDS = 10.0
"""What no peer outlives."""

QUESTION = b"a secret that only the right server may read"
ANSWER = b"welcome"


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
    hashing = isinstance(
        signer, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | dsa.DSAPrivateKey
    )
    algorithm = hashes.SHA256() if hashing else None
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


NAME = "service.example"


def perform_handshake(client: SSL.Connection, server: SSL.Connection) -> None:
    """Carry a handshake between two connections on memory buffers to its end."""
    pending = {client, server}
    for _ in range(20):
        for one, other in ((client, server), (server, client)):
            if one in pending:
                try:
                    one.do_handshake()
                    pending.discard(one)
                except SSL.WantReadError:
                    pass
            with contextlib.suppress(SSL.WantReadError):
                other.bio_write(one.bio_read(65536))
        if not pending:
            return
    raise AssertionError("the handshake does not end")


def verify_by_handshake(ours: Any, theirs: SSL.Connection) -> None:
    """Carry a handshake to its end, and raise why *ours* refuses the peer's certificate."""
    try:
        perform_handshake(ours, theirs)
    except SSL.Error:
        if ours.state.verification.failure is None:
            raise
        raise ours.state.verification.failure from None
    ours.state.verification.conclude()


def presented(root: x509.Certificate, **fields: Any) -> list[x509.Certificate]:
    """Return the chain that a server with *fields* shows to a client that believes *root*."""
    server = server_context_factory(ServerTLSSocketOptions(**fields)).connection(None)
    options = TLSSocketOptions(trusted_certificates=root)
    client = client_context_factory(options, NAME).connection(None)
    perform_handshake(client, server)
    return list(client.get_peer_cert_chain(as_cryptography=True))


def problem_of(**fields: Any) -> str:
    """Return the message of the ValueError that *fields* give on both sides."""
    with pytest.raises(ValueError) as caught:
        client_context_factory(TLSSocketOptions(**fields), NAME)
    with pytest.raises(ValueError) as on_server:
        server_context_factory(ServerTLSSocketOptions(**fields))
    assert str(on_server.value) == str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def store(
    entity: Entity,
    password: bytes | None = None,
    *,
    key: bool = True,
    certificate: bool = True,
) -> bytes:
    """Return *entity* as PKCS#12."""
    return pkcs12.serialize_key_and_certificates(
        b"a name",
        entity.key if key else None,
        entity.certificate if certificate else None,
        entity.intermediates,
        NoEncryption() if password is None else BestAvailableEncryption(password),
    )


# Of <openssl/ssl.h>.
KEY_UPDATE_NOT_REQUESTED = 0
KEY_UPDATE_REQUESTED = 1
_CTRL_SET_MAX_PROTO_VERSION = 124
_VERSIONS = {"TLSv1.2": 0x0303, "TLSv1.3": 0x0304}
_FILETYPE_PEM = 1
_ERROR_ZERO_RETURN = 6
_READ_EARLY_DATA_ERROR = 0
EARLY_DATA_NOT_SENT, EARLY_DATA_REJECTED, EARLY_DATA_ACCEPTED = range(3)

_name = ctypes.util.find_library("ssl")

needs_libssl = pytest.mark.skipif(
    _name is None or not _name.endswith(".so.3"), reason="there is no libssl.so.3"
)


def _load() -> Any:
    library = ctypes.CDLL(_name)
    pointer, number = ctypes.c_void_p, ctypes.c_int
    size, sizes = ctypes.c_size_t, ctypes.POINTER(ctypes.c_size_t)
    for name, result, arguments in (
        ("TLS_method", pointer, []),
        ("SSL_CTX_new", pointer, [pointer]),
        ("SSL_CTX_free", None, [pointer]),
        ("SSL_CTX_set_max_early_data", number, [pointer, ctypes.c_uint32]),
        ("SSL_CTX_ctrl", ctypes.c_long, [pointer, number, ctypes.c_long, pointer]),
        ("SSL_CTX_use_certificate_chain_file", number, [pointer, ctypes.c_char_p]),
        ("SSL_CTX_use_PrivateKey_file", number, [pointer, ctypes.c_char_p, number]),
        ("SSL_new", pointer, [pointer]),
        ("SSL_free", None, [pointer]),
        ("SSL_set_fd", number, [pointer, number]),
        ("SSL_set_accept_state", None, [pointer]),
        ("SSL_set_connect_state", None, [pointer]),
        ("SSL_do_handshake", number, [pointer]),
        ("SSL_read", number, [pointer, pointer, number]),
        ("SSL_write", number, [pointer, ctypes.c_char_p, number]),
        ("SSL_shutdown", number, [pointer]),
        ("SSL_get_error", number, [pointer, number]),
        ("SSL_key_update", number, [pointer, number]),
        ("SSL_renegotiate", number, [pointer]),
        ("SSL_new_session_ticket", number, [pointer]),
        ("SSL_verify_client_post_handshake", number, [pointer]),
        ("SSL_session_reused", number, [pointer]),
        ("SSL_get1_session", pointer, [pointer]),
        ("SSL_set_session", number, [pointer, pointer]),
        ("SSL_SESSION_set_max_early_data", number, [pointer, ctypes.c_uint32]),
        ("SSL_SESSION_free", None, [pointer]),
        ("SSL_write_early_data", number, [pointer, ctypes.c_char_p, size, sizes]),
        ("SSL_read_early_data", number, [pointer, pointer, size, sizes]),
        ("SSL_get_early_data_status", number, [pointer]),
    ):
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    return library


class OpenSSLError(Exception):
    """A call of libssl failed."""


class OpenSSLPeer:
    """One TLS connection of libssl; its calls block, for a bounded time each."""

    def __init__(
        self,
        plain: socket.socket,
        version: str,
        identity: Path | None,
        *,
        early: int = 0,
        handshake: bool = True,
    ) -> None:
        """
        Take *plain* over, and perform the handshake.

        Args:
            plain: Owned from here on.
            version: The newest that is spoken.
            identity: A PEM file; with it this is the server.
            early: Bytes of early data that the tickets of a server allow.
            handshake: If not, `perform_handshake` is the caller's to call.
        """
        self._library = _load()
        self.plain = plain
        plain.settimeout(None)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        seconds = int(LONGEST).to_bytes(8, "little") + bytes(8)
        for name in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            plain.setsockopt(socket.SOL_SOCKET, name, seconds)
        self._context = self._library.SSL_CTX_new(self._library.TLS_method())
        limit = _VERSIONS[version]
        self._library.SSL_CTX_ctrl(self._context, _CTRL_SET_MAX_PROTO_VERSION, limit, None)
        if identity is not None:
            path = str(identity).encode()
            self._library.SSL_CTX_use_certificate_chain_file(self._context, path)
            self._library.SSL_CTX_use_PrivateKey_file(self._context, path, _FILETYPE_PEM)
        self._library.SSL_CTX_set_max_early_data(self._context, early)
        self._ssl = self._library.SSL_new(self._context)
        self._library.SSL_set_fd(self._ssl, plain.fileno())
        side = "connect" if identity is None else "accept"
        getattr(self._library, f"SSL_set_{side}_state")(self._ssl)
        if handshake:
            self.perform_handshake()

    def perform_handshake(self) -> None:
        self.check("SSL_do_handshake")

    def check(self, name: str, *arguments: Any) -> int:
        """Call the function *name*, which must succeed."""
        result: int = getattr(self._library, name)(self._ssl, *arguments)
        if result <= 0:
            raise OpenSSLError(name, self._library.SSL_get_error(self._ssl, result))
        return result

    def send(self, data: bytes) -> None:
        """Send all of *data*."""
        self.check("SSL_write", data, len(data))

    def recv(self, size: int = 65536) -> bytes:
        """Receive some; ``b""`` is close_notify."""
        buffer = ctypes.create_string_buffer(size)
        try:
            count = self.check("SSL_read", buffer, size)
        except OpenSSLError as error:
            if error.args[1] == _ERROR_ZERO_RETURN:
                return b""
            raise
        return buffer.raw[:count]

    def read_exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = self.recv(size - len(data))
            assert piece, f"the stream ended after {len(data)} of {size} bytes"
            data += piece
        return bytes(data)

    def update_keys(self, kind: int) -> None:
        """Send new keys, and ask for the peer's where *kind* says so."""
        self.check("SSL_key_update", kind)
        self.check("SSL_do_handshake")

    def shutdown(self) -> None:
        """Send close_notify."""
        self._library.SSL_shutdown(self._ssl)

    # Sessions, and what is sent before a handshake is done (RFC 8446, section 2.3)

    @property
    def resumed(self) -> bool:
        return bool(self._library.SSL_session_reused(self._ssl))

    @property
    def early_data(self) -> int:
        """What became of the early data: not sent, rejected or accepted."""
        status: int = self._library.SSL_get_early_data_status(self._ssl)
        return status

    def take_session(self) -> int:
        """Return the session, to be given to `resume`."""
        session: int = self._library.SSL_get1_session(self._ssl)
        return session

    def resume(self, session: int, early: int) -> None:
        """Offer *session*, which is freed, as one that allows *early* bytes of early data."""
        self._library.SSL_SESSION_set_max_early_data(session, early)
        self.check("SSL_set_session", session)
        self._library.SSL_SESSION_free(session)

    def send_early(self, data: bytes) -> None:
        """Send *data* as early data; the handshake is not done then."""
        self.check("SSL_write_early_data", data, len(data), ctypes.byref(ctypes.c_size_t()))

    def read_early(self) -> bytes:
        """Read the early data of a client, if it sends any, and go on to the handshake."""
        buffer, size = ctypes.create_string_buffer(65536), ctypes.c_size_t()
        status = self._library.SSL_read_early_data(
            self._ssl, buffer, len(buffer), ctypes.byref(size)
        )
        assert status != _READ_EARLY_DATA_ERROR
        return buffer.raw[: size.value]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._library.SSL_free(self._ssl)
        self._library.SSL_CTX_free(self._context)
        self.plain.close()


@asynccontextmanager
async def meet_openssl(
    authority: CertificateAuthority, side: str, directory: Path, version: str = "TLSv1.3"
) -> AsyncIterator[tuple[Any, OpenSSLPeer]]:
    """Connect a socket of ours, on *side*, with an `OpenSSLPeer`."""
    if side == "server":
        options = authority.server_options()
        async with await make_server_tls_socket("127.0.0.1", 0, options) as listener:
            address = listener.getsockname()

            def dial() -> OpenSSLPeer:
                return OpenSSLPeer(socket.create_connection(address), version, None)

            ours, theirs = await together(finished(listener.accept()), finished(in_thread(dial)))
    else:
        identity = directory / "identity.pem"
        identity.write_bytes(authority.issue("127.0.0.1").pem)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(LONGEST)
            address = listener.getsockname()

            def answer() -> OpenSSLPeer:
                return OpenSSLPeer(listener.accept()[0], version, identity)

            ours, theirs = await together(
                finished(
                    make_client_tls_socket(*listener.getsockname(), authority.client_options())
                ),
                finished(in_thread(answer)),
            )
    try:
        with theirs:
            yield ours, theirs
    finally:
        ours.abort()
