"""contextFactory objects: what they refuse, ciphers, clients' certificates, key logs, files."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from OpenSSL import SSL
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
)
from zope.interface.verify import verifyObject

from tests.support.clocks import the_reactor, until
from tests.support.peers import (
    ANSWER,
    PEER_SECONDS,
    ask,
    make_entity,
    make_hierarchy,
    perform_handshake,
    s_client,
    serving,
    standard_server,
)
from tests.support.streams import in_thread
from twisted_netsock import (
    NetsockError,
    ServerTLSSocketOptions,
    SocketOptions,
    TLSHandshakeError,
    TLSSocketOptions,
    client_context_factory,
    client_endpoint,
    make_client_tls_socket,
    server_context_factory,
)

NAME = "service.example"


# What they are, and refuse


def test_they_provide_what_twisted_asks_for(authority):
    client = client_context_factory(authority.client_options(), NAME)
    server = server_context_factory(authority.server_options())
    assert verifyObject(IOpenSSLClientConnectionCreator, client)
    assert verifyObject(IOpenSSLServerConnectionCreator, server)
    assert NAME in repr(client)
    assert "ServerTLSSocketOptions" in repr(server)


def test_a_client_takes_no_other_record_and_says_what_to_use(authority):
    with pytest.raises(TypeError, match="server_context_factory"):
        client_context_factory(authority.server_options(), NAME)
    for wrong in (SocketOptions(), None, {}):
        with pytest.raises(TypeError, match="TLSSocketOptions"):
            client_context_factory(wrong, NAME)


def test_a_server_takes_no_other_record_and_says_what_to_use(authority):
    for wrong in (TLSSocketOptions(), [TLSSocketOptions()]):
        with pytest.raises(TypeError, match="client_context_factory"):
            server_context_factory(wrong)
    for wrong in (SocketOptions(), None, 1, [None], [authority.server_options(), SocketOptions()]):
        with pytest.raises(TypeError):
            server_context_factory(wrong)


def test_a_handshake_that_nobody_would_make_is_refused(authority):
    with pytest.raises(ValueError, match="handshake=False"):
        client_context_factory(authority.client_options(handshake=False), NAME)
    with pytest.raises(ValueError, match="handshake=False"):
        server_context_factory(authority.server_options(handshake=False))


def test_a_server_needs_a_certificate():
    with pytest.raises(ValueError, match="certificates"):
        server_context_factory(ServerTLSSocketOptions())


@pytest.mark.parametrize("node", ["", "a b", "\u2028", "a\0b", "x" * 300])
def test_a_node_that_is_no_name_is_a_value_error(node, authority):
    with pytest.raises(ValueError):
        client_context_factory(authority.client_options(), node)


# Cipher policy

POLICY = {
    "TLS 1.1": ["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
    "TLS 1.0": ["-tls1", "-cipher", "ALL:@SECLEVEL=0"],
    "static RSA": ["-tls1_2", "-cipher", "AES128-GCM-SHA256:AES256-GCM-SHA384"],
    "CBC": ["-tls1_2", "-cipher", "ECDHE-RSA-AES128-SHA256:ECDHE-RSA-AES256-SHA384"],
    "CBC with SHA-1": ["-tls1_2", "-cipher", "ECDHE-RSA-AES128-SHA:ECDHE-RSA-AES256-SHA"],
    "finite-field DHE": ["-tls1_2", "-cipher", "DHE-RSA-AES128-GCM-SHA256"],
    "anonymous": ["-tls1_2", "-cipher", "aNULL:@SECLEVEL=0"],
    "no encryption": ["-tls1_2", "-cipher", "eNULL:@SECLEVEL=0"],
}


@pytest.fixture(scope="module")
def rsa_server() -> ServerTLSSocketOptions:
    entity = make_entity("rsa", NAME, key=rsa.generate_private_key(65537, 2048))
    return ServerTLSSocketOptions(certificates=entity.pem)


@pytest.mark.parametrize("what", POLICY)
async def test_old_versions_and_weak_ciphers_are_refused(what, rsa_server):
    async with serving(rsa_server) as server:
        said = await s_client(server.port, *POLICY[what])
        assert re.search(r"alert (protocol version|handshake failure)", said.text)
        assert "hello" not in said.text
        assert server.connections == []


@pytest.mark.parametrize(
    ("arguments", "chosen"),
    [
        (["-tls1_2"], "TLSv1.2, Cipher is ECDHE-RSA-"),
        (["-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"], "ECDHE-RSA-AES128-GCM-SHA256"),
        (["-tls1_2", "-cipher", "ECDHE-RSA-CHACHA20-POLY1305"], "ECDHE-RSA-CHACHA20-POLY1305"),
        (["-tls1_3"], "TLSv1.3, Cipher is TLS_"),
        ([], "TLSv1.3, Cipher is TLS_"),
    ],
)
async def test_modern_ciphers_are_spoken(arguments, chosen, rsa_server):
    async with serving(rsa_server) as server:
        said = await s_client(server.port, *arguments)
    assert chosen in said.text
    assert "Compression: NONE" in said.text
    assert "Secure Renegotiation IS" in said.text
    assert "hello" in said.text


def test_a_client_offers_modern_ciphers_alone(authority):
    client = client_context_factory(authority.client_options(), NAME).connection(None)
    offered = client.get_cipher_list()
    assert offered
    for cipher in offered:
        assert cipher.startswith("TLS_") or re.fullmatch(r"ECDHE-.*(GCM|POLY1305).*", cipher)


@pytest.mark.parametrize(
    ("fields", "argument", "spoken"),
    [
        ({"minimum_version": "TLSv1.3"}, "-tls1_2", False),
        ({"minimum_version": "TLSv1.3"}, "-tls1_3", True),
        ({"maximum_version": "TLSv1.2"}, "-tls1_3", False),
        ({"maximum_version": "TLSv1.2"}, "-tls1_2", True),
    ],
)
async def test_a_server_keeps_to_its_versions(fields, argument, spoken, authority):
    async with serving(authority.server_options(**fields)) as server:
        said = await s_client(server.port, argument)
    assert ("hello" in said.text) is spoken
    assert ("alert protocol version" in said.text) is not spoken


@pytest.mark.parametrize(
    ("fields", "version", "spoken"),
    [
        ({"minimum_version": "TLSv1.3"}, "TLSv1.2", False),
        ({"minimum_version": "TLSv1.3"}, "TLSv1.3", True),
        ({"maximum_version": "TLSv1.2"}, "TLSv1.3", False),
        ({"maximum_version": "TLSv1.2"}, "TLSv1.2", True),
    ],
)
async def test_a_client_keeps_to_its_versions(fields, version, spoken, authority, tmp_path):
    identity = authority.issue("127.0.0.1").pem
    async with standard_server(tmp_path, identity, version=version) as server:
        endpoint = client_endpoint(
            the_reactor(), "127.0.0.1", server.port, authority.client_options(**fields)
        )
        if spoken:
            assert await ask(endpoint) == ANSWER
        else:
            with pytest.raises(TLSHandshakeError):
                await ask(endpoint)


def _renegotiate(port: int) -> str:
    """Ask a server for another handshake, as TLS 1.2 allows, and return what came of it."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    with socket.create_connection(("127.0.0.1", port)) as plain:
        plain.settimeout(None)
        # Blocking for OpenSSL, and yet not for ever.
        seconds = int(PEER_SECONDS).to_bytes(8, "little") + bytes(8)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, seconds)
        connection = SSL.Connection(context, plain)
        connection.set_connect_state()
        connection.do_handshake()
        connection.send(b"before")
        assert connection.recv(100) == ANSWER
        assert connection.renegotiate()
        try:
            connection.do_handshake()
            connection.send(b"after")
            return f"renegotiated, {connection.recv(100)!r}"
        except SSL.Error as error:
            return str(error)


async def test_a_renegotiation_is_refused(authority):
    async with serving(authority.server_options(), greeting=None) as server:
        assert "no renegotiation" in await in_thread(_renegotiate, server.port)
        assert server.received == b"before"


@pytest.mark.parametrize("careful", [True, False])
def test_a_client_does_not_renegotiate_for_a_server(careful):
    entity = make_entity("server", NAME)
    context = SSL.Context(SSL.TLS_METHOD)
    context.use_certificate(entity.certificate)
    context.use_privatekey(entity.key)
    server = SSL.Connection(context, None)
    server.set_accept_state()
    options = TLSSocketOptions(trusted_certificates=entity.certificate, maximum_version="TLSv1.2")
    client = client_context_factory(options, NAME).connection(None)
    if not careful:
        # A client that would, so that this test can fail.
        context = SSL.Context(SSL.TLS_METHOD)
        context.set_max_proto_version(SSL.TLS1_2_VERSION)
        client = SSL.Connection(context, None)
        client.set_connect_state()
    perform_handshake(client, server)
    server.renegotiate()
    for _ in range(4):
        for one, other in ((server, client), (client, server)):
            # The server has nothing to read yet, or learns that there is no renegotiation.
            with contextlib.suppress(SSL.Error):
                server.do_handshake()
            with contextlib.suppress(SSL.WantReadError):
                other.bio_write(one.bio_read(65536))
            with contextlib.suppress(SSL.Error):
                other.recv(1)
    assert client.total_renegotiations() == (0 if careful else 1)


# Certificates of clients


@pytest.fixture(scope="module")
def clients(authority: Any, other_authority: Any, tmp_path_factory: Any) -> dict[str, list[str]]:
    """The arguments of s_client that show a certificate, by what is to be said of it."""
    directory = tmp_path_factory.mktemp("clients")
    arguments: dict[str, list[str]] = {"none": []}
    for name, issued in {
        "good": authority.issue("a client"),
        "another authority": other_authority.issue("a client"),
        "expired": authority.issue("a client", expired=True),
        "self-signed": authority.issue("a client", self_signed=True),
    }.items():
        file = directory / f"{name}.pem"
        file.write_bytes(issued.pem)
        arguments[name] = ["-cert", str(file), "-key", str(file)]
    return arguments


VERSION_ARGUMENTS = pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
ALERTS = {
    "none": "handshake failure|certificate required",
    "another authority": "unknown ca",
    "expired": "certificate expired",
    "self-signed": "unknown ca|bad certificate",
}


@VERSION_ARGUMENTS
@pytest.mark.parametrize("client", ["good", *ALERTS])
@pytest.mark.parametrize("policy", ["not asked", "optional", "required"])
async def test_which_clients_are_accepted(policy, client, version, authority, clients):
    """The table of client_certificate_required and trusted_certificates."""
    fields = {
        "not asked": {},
        "optional": {"trusted_certificates": authority.certificate_pem},
        "required": {
            "trusted_certificates": authority.certificate_pem,
            "client_certificate_required": True,
        },
    }[policy]
    welcome = (
        policy == "not asked" or client == "good" or (policy == "optional" and client == "none")
    )
    async with serving(authority.server_options(**fields)) as server:
        said = await s_client(server.port, version, *clients[client])
        assert ("hello" in said.text) is welcome
        assert len(server.connections) == welcome
    names = "Acceptable client certificate CA names\nCN = throw-away authority"
    assert (names in said.text) is (policy != "not asked")
    if not welcome:
        assert re.search(f"alert ({ALERTS[client]})", said.text), "the client has the alert"


@VERSION_ARGUMENTS
async def test_the_certificate_of_a_client_is_there_to_be_seen(version, authority):
    issued = authority.issue("a client")
    options = authority.server_options(
        trusted_certificates=authority.certificate, client_certificate_required=True
    )
    client = authority.client_options(
        certificates=issued.pem, maximum_version=version.replace("-tls1_", "TLSv1.")
    )
    async with serving(options, greeting=None) as server:
        connection = await make_client_tls_socket("127.0.0.1", server.port, client)
        await until(lambda: server.connections)
        [seen] = server.connections
        assert seen.transport.peer_certificate == issued.certificate
        await connection.close()


async def test_a_client_with_an_intermediate_certificate_comes_in(authority):
    chain = make_hierarchy()
    options = authority.server_options(
        trusted_certificates=chain.root.certificate, client_certificate_required=True
    )
    client = authority.client_options(certificates=chain.leaf.pem)
    async with serving(options, greeting=None) as server:
        assert (
            await ask(client_endpoint(the_reactor(), "127.0.0.1", server.port, client)) == ANSWER
        )


def test_to_require_certificates_and_trust_nobody_is_refused(authority):
    pem_of_server = authority.issue(NAME).pem
    with pytest.raises(ValueError, match="trusted_certificates"):
        ServerTLSSocketOptions(certificates=pem_of_server, client_certificate_required=True)
    with pytest.raises(ValueError, match="certificate_verifier=False"):
        ServerTLSSocketOptions(
            certificates=pem_of_server,
            client_certificate_required=True,
            trusted_certificates=authority.certificate,
            certificate_verifier=False,
        )


@VERSION_ARGUMENTS
async def test_a_verifier_alone_decides_about_clients_and_compares_no_name(
    version, authority, clients
):
    asked = []

    def verifier(depth: int, result: Any, certificate: Any) -> bool | None:
        asked.append((depth, result.code))
        return True if "CN=a client" in certificate.subject.rfc4514_string() else None

    options = authority.server_options(
        certificate_verifier=verifier, client_certificate_required=True
    )
    async with serving(options) as server:
        assert "hello" not in (await s_client(server.port, version)).text
        assert asked == []
        assert "hello" in (await s_client(server.port, version, *clients["self-signed"])).text
        assert {code for _, code in asked} <= {0, 18, 20, 21}
        stranger = make_entity("a stranger")
        client = authority.client_options(certificates=stranger.pem)
        with pytest.raises(NetsockError):
            await ask(client_endpoint(the_reactor(), "127.0.0.1", server.port, client))


async def test_clients_that_are_asked_and_not_verified_are_warned_about(
    authority, clients, log_lines
):
    options = authority.server_options(
        trusted_certificates=authority.certificate, certificate_verifier=False
    )
    assert "UNVERIFIED" in repr(options)
    async with serving(options) as server:
        for client in clients.values():
            assert "hello" in (await s_client(server.port, *client)).text
    assert [line for line in log_lines if "UNVERIFIED" in line]


# Key logs


async def test_a_keylog_is_written_for_its_owner_alone(authority, tmp_path):
    before = os.umask(0)
    try:
        sides = {"client": tmp_path / "client.keys", "server": tmp_path / "server.keys"}
        options = authority.server_options(keylog_file=sides["server"])
        async with serving(options, greeting=None) as server:
            client = authority.client_options(keylog_file=sides["client"])
            for _ in range(2):
                endpoint = client_endpoint(the_reactor(), "127.0.0.1", server.port, client)
                assert await ask(endpoint) == ANSWER
    finally:
        os.umask(before)
    contents = [set(file.read_text().splitlines()) for file in sides.values()]
    assert contents[0] == contents[1]
    assert len({line for line in contents[0] if line.startswith("CLIENT_TRAFFIC_SECRET_0 ")}) == 2
    for file in sides.values():
        assert file.stat().st_mode & 0o777 == 0o600


def widen(path):
    path.touch()
    path.chmod(0o640)


def link(path):
    path.with_name("elsewhere").touch(0o600)
    path.symlink_to("elsewhere")


UNSAFE = {
    "group": widen,
    "link": link,
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "FIFO": lambda path: os.mkfifo(path, 0o600),
    "directory": lambda path: path.mkdir(0o700),
}


@pytest.mark.parametrize("kind", UNSAFE)
def test_a_keylog_that_others_may_use_is_refused(kind, authority, tmp_path):
    path = tmp_path / "keys"
    UNSAFE[kind](path)
    for make in (
        lambda: server_context_factory(authority.server_options(keylog_file=path)),
        lambda: client_context_factory(authority.client_options(keylog_file=path), NAME),
    ):
        with pytest.raises(ValueError, match=r"keylog_file=.+ is refused"):
            make()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_keylog_of_another_user_is_refused(authority, tmp_path):
    path = tmp_path / "keys"
    path.touch(0o600)
    os.chown(path, 12345, -1)
    with pytest.raises(ValueError, match="another user"):
        server_context_factory(authority.server_options(keylog_file=path))


@pytest.mark.parametrize("kind", UNSAFE)
async def test_nothing_is_written_to_a_keylog_that_others_may_use_later(
    kind, authority, tmp_path, log_lines
):
    path = tmp_path / "keys"
    options = authority.client_options(keylog_file=path)
    async with serving(authority.server_options(), greeting=None) as server:
        endpoint = client_endpoint(the_reactor(), "127.0.0.1", server.port, options)
        UNSAFE[kind](path)
        assert await ask(endpoint) == ANSWER
    assert sum("cannot write keylog_file" in line for line in log_lines) == 1
    assert not any(each.stat().st_size for each in tmp_path.iterdir() if each.is_file())


async def test_no_keylog_is_written_unless_the_record_asks_for_it(
    authority, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    async with serving(authority.server_options(), greeting=None) as server:
        options = authority.client_options()
        assert (
            await ask(client_endpoint(the_reactor(), "127.0.0.1", server.port, options)) == ANSWER
        )
    assert list(tmp_path.iterdir()) == []


async def test_a_keylog_that_cannot_be_written_is_logged_once_and_costs_no_connection(
    authority, tmp_path, log_lines
):
    path = tmp_path / "missing" / "keys"

    def logged():
        return [line for line in log_lines if "cannot write keylog_file" in line]

    async with serving(authority.server_options(), greeting=None) as server:
        options = authority.client_options(keylog_file=path)
        endpoint = client_endpoint(the_reactor(), "127.0.0.1", server.port, options)
        for _ in range(2):
            assert await ask(endpoint) == ANSWER
        (line,) = logged()
        assert line.endswith(f"{path}: [Errno 2] No such file or directory: '{path}'")
        path.parent.mkdir()
        assert await ask(endpoint) == ANSWER
        path.unlink()
        path.parent.rmdir()
        assert await ask(endpoint) == ANSWER
    assert logged() == [line] * 2


# Files that change


def test_a_changed_file_is_noticed_by_the_next_client(authority, other_authority, tmp_path):
    file = tmp_path / "trusted.pem"
    options = TLSSocketOptions(trusted_certificates=file)
    identity = authority.issue(NAME).pem
    server = server_context_factory(ServerTLSSocketOptions(certificates=identity))

    def shake(factory: Any) -> None:
        perform_handshake(factory.connection(None), server.connection(None))

    file.write_bytes(other_authority.certificate_pem)
    first = client_context_factory(options, NAME)
    with pytest.raises(SSL.Error, match="certificate verify failed"):
        shake(first)
    file.write_bytes(authority.certificate_pem + other_authority.certificate_pem)
    shake(client_context_factory(options, NAME))
    with pytest.raises(SSL.Error, match="certificate verify failed"):
        shake(first)
    file.unlink()
    with pytest.raises(ValueError, match="No such file"):
        client_context_factory(options, NAME)


def test_a_replaced_key_and_certificate_are_noticed_by_the_next_client(authority, tmp_path):
    file = tmp_path / "client.pem"
    options = authority.client_options(certificates=file)
    seen = []
    server = server_context_factory(
        authority.server_options(
            NAME, trusted_certificates=authority.certificate, client_certificate_required=True
        )
    )
    for name in ("one client", "another client"):
        replacement = tmp_path / "replacement"
        replacement.write_bytes(authority.issue(name).pem)
        replacement.rename(file)
        connection = server.connection(None)
        perform_handshake(client_context_factory(options, NAME).connection(None), connection)
        peer = connection.get_peer_certificate(as_cryptography=True)
        seen.append(peer.subject.rfc4514_string())
    assert seen == ["CN=one client", "CN=another client"]


def test_a_context_is_shared_while_nothing_changes(authority, tmp_path):
    file = tmp_path / "trusted.pem"
    file.write_bytes(authority.certificate_pem)
    contexts = [
        client_context_factory(TLSSocketOptions(trusted_certificates=file), node)
        .connection(None)
        .get_context()
        for node in (NAME, "other.example")
    ]
    assert contexts[0] is contexts[1]
    others = TLSSocketOptions(trusted_certificates=file, alpn="h2", read_timeout=timedelta(1))
    assert client_context_factory(others, NAME).connection(None).get_context() is not contexts[0]
