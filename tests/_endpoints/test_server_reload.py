"""Server endpoints whose certificates change under them: by reload(), and by reload_every."""

from __future__ import annotations

import os
from datetime import timedelta

import pytest
from twisted.internet import reactor

from tests.support.clocks import turns, until
from tests.support.loopback import LOOPBACK
from tests.support.protocols import Protocols, serving
from twisted_netsock import (
    CertificateVerificationError,
    ServerTLSSocketOptions,
    TLSHandshakeError,
    client_endpoint,
    server_endpoint,
)


class Files:
    """A certificate and its key in two files, and a record that names them."""

    def __init__(self, directory, issued):
        self.certificate = str(directory / "certificate.pem")
        self.key = str(directory / "key.pem")
        self.replace(issued)
        self.options = ServerTLSSocketOptions(certificates=self.certificate, private_key=self.key)

    def replace(self, issued):
        self.write(self.certificate, issued.certificate_pem)
        self.write(self.key, issued.private_key_pem)

    def write(self, path, content):
        """Replace a file as administrators do: at once, and by another one."""
        with open(path + ".new", "wb") as file:
            file.write(content)
        os.replace(path + ".new", path)


@pytest.fixture
def issued(authority):
    return [authority.issue("localhost", LOOPBACK) for _ in range(2)]


@pytest.fixture
def files(tmp_path, issued):
    return Files(tmp_path, issued[0])


async def shown(authority, port, **fields):
    """Return the certificate that a new connection to *port* is shown."""
    clients = Protocols()
    where = client_endpoint(
        reactor, LOOPBACK, port.getHost().port, authority.client_options(**fields)
    )
    protocol = await where.connect(clients)
    found = protocol.transport.peer_certificate
    await clients.all_lost()
    return found


async def test_files_are_read_when_the_endpoint_is_made(authority, files, issued):
    where = server_endpoint(reactor, LOOPBACK, 0, files.options)
    files.replace(issued[1])
    async with serving(where, Protocols()) as port:
        assert await shown(authority, port) == issued[0].certificate


async def test_reload_reads_changed_files(authority, files, issued):
    where = server_endpoint(reactor, LOOPBACK, 0, files.options)
    servers = Protocols()
    async with serving(where, servers) as port:
        assert await shown(authority, port) == issued[0].certificate
        files.replace(issued[1])
        assert await shown(authority, port) == issued[0].certificate
        assert await where.reload() is None
        assert await shown(authority, port) == issued[1].certificate


async def test_connections_go_on_through_a_reload(authority, files, issued):
    where = server_endpoint(reactor, LOOPBACK, 0, files.options)
    servers, clients = Protocols(), Protocols()
    async with serving(where, servers) as port:
        client = await client_endpoint(
            reactor, LOOPBACK, port.getHost().port, authority.client_options()
        ).connect(clients)
        server = await servers.connected()
        files.replace(issued[1])
        await where.reload()
        client.transport.write(b"hello")
        assert await server.receives(5) == b"hello"
        await clients.all_lost()


async def test_reload_reads_trusted_certificates_again(
    authority, other_authority, tmp_path, files
):
    trusted = str(tmp_path / "trusted.pem")
    files.write(trusted, authority.certificate_pem)
    options = files.options.replace(trusted_certificates=trusted, client_certificate_required=True)
    where = server_endpoint(reactor, LOOPBACK, 0, options)
    servers = Protocols()
    async with serving(where, servers) as port:
        mine = authority.issue("a client").pem
        await shown(authority, port, certificates=mine)
        await servers.connected(1)
        files.write(trusted, other_authority.certificate_pem)
        await where.reload()
        clients = Protocols()
        refused = client_endpoint(
            reactor,
            LOOPBACK,
            port.getHost().port,
            authority.client_options(certificates=mine),
        )
        try:
            reason = await (await refused.connect(clients)).loses()
        except TLSHandshakeError as error:
            reason = error
        assert reason.alert == "unknown ca"
        assert len(servers.built) == 1


MISHAPS = {
    "a mismatched pair": lambda f, new: f.write(f.certificate, new.certificate_pem),
    "a missing file": lambda f, new: os.unlink(f.key),
    "an empty file": lambda f, new: f.write(f.certificate, b""),
    "nonsense": lambda f, new: f.write(f.key, b"-----BEGIN NONSENSE-----\n"),
}


@pytest.mark.parametrize("mishap", MISHAPS.values(), ids=MISHAPS)
async def test_a_failed_reload_keeps_the_old_certificates(authority, files, issued, mishap):
    where = server_endpoint(reactor, LOOPBACK, 0, files.options)
    servers = Protocols()
    async with serving(where, servers) as port:
        mishap(files, issued[1])
        with pytest.raises(ValueError, match=r"private_key|certificates") as caught:
            await where.reload()
        assert "PRIVATE" not in str(caught.value)
        assert await shown(authority, port) == issued[0].certificate
        files.replace(issued[1])
        await where.reload()
        assert await shown(authority, port) == issued[1].certificate


async def test_a_plain_endpoint_has_nothing_to_reload():
    assert await server_endpoint(reactor, LOOPBACK, 0).reload() is None


async def test_contents_stay_what_they_are(authority, issued):
    options = ServerTLSSocketOptions(certificates=issued[0].pem)
    where = server_endpoint(reactor, LOOPBACK, 0, options)
    servers = Protocols()
    async with serving(where, servers) as port:
        await where.reload()
        assert await shown(authority, port) == issued[0].certificate


async def test_reload_reads_the_files_of_every_record(authority, tmp_path, files, issued):
    other = tmp_path / "other"
    other.mkdir()
    named = Files(other, authority.issue("b.example"))
    options = [files.options, named.options.replace(sni="b.example")]
    where = server_endpoint(reactor, LOOPBACK, 0, options)
    servers = Protocols()
    async with serving(where, servers) as port:
        changed = authority.issue("b.example")
        named.replace(changed)
        files.replace(issued[1])
        await where.reload()
        assert await shown(authority, port) == issued[1].certificate
        assert await shown(authority, port, sni="b.example") == changed.certificate


# By itself


async def test_reload_every_reads_changed_files(authority, files, issued, clocked):
    servers = Protocols()
    where = server_endpoint(clocked, LOOPBACK, 0, files.options, reload_every=timedelta(minutes=1))
    async with serving(where, servers) as port:
        files.replace(issued[1])
        clocked.advance(59)
        assert await shown(authority, port) == issued[0].certificate
        clocked.advance(2)
        for _ in range(500):
            found = await shown(authority, port)
            if found == issued[1].certificate:
                break
        assert found == issued[1].certificate


async def test_reload_every_tells_of_files_it_cannot_use(
    authority, files, issued, clocked, log_lines
):
    """The old certificates stay, and the next good ones are taken."""
    servers = Protocols()
    where = server_endpoint(clocked, LOOPBACK, 0, files.options, reload_every=timedelta(minutes=1))
    async with serving(where, servers) as port:
        files.write(files.certificate, issued[1].certificate_pem)
        clocked.advance(61)
        await until(lambda: any("keeps its certificates" in line for line in log_lines))
        assert any("does not match" in line for line in log_lines)
        assert await shown(authority, port) == issued[0].certificate
        files.write(files.key, issued[1].private_key_pem)
        clocked.advance(60)
        await until(lambda: any("has new certificates" in line for line in log_lines))
        assert await shown(authority, port) == issued[1].certificate


async def test_reload_every_reads_nothing_while_nothing_changes(files, clocked, log_lines):
    where = server_endpoint(clocked, LOOPBACK, 0, files.options, reload_every=timedelta(minutes=1))
    async with serving(where, Protocols()):
        for _ in range(3):
            clocked.advance(60)
            await turns()
        assert not any("certificates" in line for line in log_lines)


async def test_reload_every_ends_with_the_port(files, clocked):
    where = server_endpoint(clocked, LOOPBACK, 0, files.options, reload_every=timedelta(minutes=1))
    async with serving(where, Protocols()) as port:
        assert len(clocked.getDelayedCalls()) == 1
        await port.stopListening()
        assert clocked.getDelayedCalls() == []


async def test_a_verifier_of_the_client_sees_the_new_certificate(
    authority, other_authority, files
):
    """A certificate of another authority is refused after a reload, as at first."""
    where = server_endpoint(reactor, LOOPBACK, 0, files.options)
    servers = Protocols()
    async with serving(where, servers) as port:
        await shown(authority, port)
        files.replace(other_authority.issue("localhost", LOOPBACK))
        await where.reload()
        with pytest.raises(CertificateVerificationError):
            await shown(authority, port)
