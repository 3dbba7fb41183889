"""The guide's configurations of stunnel and ours give the same answers."""

from __future__ import annotations

import contextlib
import ssl

import pytest

from tests.project.test_documentation import ROOT, blocks, commands, with_ports
from tests.support.processes import NETSOCK, dialogue, find, free_port, needs, serving, started
from tests.support.relay import client, echo_server, echoes
from twisted_netsock.testing import CertificateAuthority

PAGE = ROOT / "docs" / "how-to" / "moving-to-the-relay.md"
NAME = "client.example.com"
pytestmark = [pytest.mark.once, needs("stunnel")]


@pytest.fixture(scope="module")
def stranger():
    return CertificateAuthority()


@contextlib.contextmanager
def running(which, number, place, names):
    """Run the guide's *number*th configuration, with *names* for the hosts in it."""
    words = commands(PAGE)[number][3:]
    configuration = blocks(PAGE, "text")[number].text
    for written, used in names.items():
        configuration = configuration.replace(written, used)
        words = [word.replace(written, used) for word in words]
    ports = {"8443": str(free_port()), "8007": str(free_port())}
    (place / "stunnel.conf").write_text(
        f"foreground = yes\npid =\n{with_ports(configuration, ports)}"
    )
    command = {
        "stunnel": (find("stunnel"), "stunnel.conf"),
        "netsock": (*NETSOCK, "relay", *(with_ports(word, ports) for word in words)),
    }[which]
    port = int(ports["8443" if "8443" in configuration else "8007"])
    with started(*command, output=place / "log", cwd=place) as child:
        child.wait_for_port(port)
        yield port


@pytest.mark.parametrize("which", ["stunnel", "netsock"])
def test_a_server_lets_in_the_same_clients(which, tmp_path, authority, stranger):
    (tmp_path / "server.pem").write_bytes(authority.issue("localhost").pem)
    (tmp_path / "clients-ca.pem").write_bytes(authority.certificate_pem)
    clients = {
        "named": authority.issue(NAME).pem,
        "another": authority.issue("other.example.com").pem,
        "longer": authority.issue(f"{NAME}.example.org").pem,
        "of a stranger": stranger.issue(NAME).pem,
        "without": None,
    }
    answers = {}
    with (
        echo_server() as backend,
        running(which, 0, tmp_path, {"127.0.0.1:8000": f"127.0.0.1:{backend.port}"}) as port,
    ):
        for name, pem in clients.items():
            context = ssl.create_default_context(cadata=authority.certificate_pem.decode())
            if pem is not None:
                (tmp_path / "client.pem").write_bytes(pem)
                context.load_cert_chain(tmp_path / "client.pem")
            answers[name] = False
            with (
                contextlib.suppress(OSError),
                client(port) as sock,
                context.wrap_socket(sock, server_hostname="localhost") as wrapped,
            ):
                answers[name] = echoes(wrapped)
    assert answers == dict.fromkeys(clients, False) | {"named": True}


def answering(pem, place):
    """Return a handler that answers over TLS, with the certificate *pem*."""
    (place / "server.pem").write_bytes(pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(place / "server.pem")

    def handle(connection):
        with context.wrap_socket(connection.dup(), server_side=True) as wrapped:
            wrapped.sendall(wrapped.recv(100).upper())

    return handle


@pytest.mark.parametrize("which", ["stunnel", "netsock"])
@pytest.mark.parametrize("server", ["named", "another", "of a stranger", "plain"])
def test_a_client_trusts_the_same_servers(which, server, tmp_path, authority, stranger):
    (tmp_path / "ca.pem").write_bytes(authority.certificate_pem)
    handle = {
        "named": answering(authority.issue("localhost").pem, tmp_path),
        "another": answering(authority.issue("example.org").pem, tmp_path),
        "of a stranger": answering(stranger.issue("localhost").pem, tmp_path),
        "plain": dialogue("220 this is no TLS", then=lambda _: None),
    }[server]
    with serving(handle) as backend:
        names = {"example.com:443": f"localhost:{backend}", "= example.com": "= localhost"}
        with running(which, 1, tmp_path, names) as port, client(port) as sock:
            sock.sendall(b"a question")
            answer = b""
            with contextlib.suppress(ConnectionResetError):
                answer = sock.recv(100)
    assert answer == (b"A QUESTION" if server == "named" else b"")
