"""TLS sockets and clients whose certificates change under them."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import CancelledError

from tests.support.clocks import ClockedReactor, turns, until
from tests.support.protocols import Protocols, serving
from tests.support.streams import soon
from twisted_netsock import (
    CertificateVerificationError,
    ServerTLSSocketOptions,
    SocketClosedError,
    SocketError,
    SocketOptions,
    TLSSocket,
    client_endpoint,
    make_client_tls_socket,
    make_server_tls_socket,
    server_endpoint,
)
from twisted_netsock._certificates import certificates

LOOPBACK = "127.0.0.1"


class Files:
    """A certificate with its key, and a list of authorities, in files that are replaced whole."""

    def __init__(self, directory: Path) -> None:
        self.identity = directory / "identity.pem"
        self.trusted = directory / "trusted.pem"

    def write(self, path: Path, content: bytes) -> None:
        new = path.with_suffix(".new")
        new.write_bytes(content)
        new.replace(path)


@pytest.fixture
def issued(authority) -> list[Any]:
    return [authority.issue("localhost", LOOPBACK) for _ in range(3)]


@pytest.fixture
def files(tmp_path, issued) -> Files:
    made = Files(tmp_path)
    made.write(made.identity, issued[0].pem)
    return made


@pytest.fixture
def options(files) -> ServerTLSSocketOptions:
    return ServerTLSSocketOptions(certificates=files.identity)


async def shown(listener: TLSSocket, client: Any) -> Any:
    """Return the certificate that a new client of *listener* is shown."""
    accepting = listener.accept()
    accepting.addErrback(lambda _: None)
    try:
        one = await soon(make_client_tls_socket(LOOPBACK, listener.getsockname().port, client))
        other = await soon(accepting)
    finally:
        accepting.cancel()
    found = one.peer_certificate
    for sock in (one, other):
        sock.abort()
    return found


# Reloading


async def test_a_listening_socket_reads_its_files_again(authority, files, issued, options):
    client = authority.client_options()
    async with await make_server_tls_socket(LOOPBACK, 0, options) as listener:
        files.write(files.identity, issued[1].pem)
        assert await shown(listener, client) == issued[0].certificate
        assert await soon(listener.reload()) is None
        assert await shown(listener, client) == issued[1].certificate


BAD: dict[str, Callable[[Files, list[Any]], None]] = {
    "gone": lambda files, _: files.identity.unlink(),
    "half written": lambda files, issued: files.identity.write_bytes(issued[1].pem[:700]),
    "mismatched": lambda files, issued: files.write(
        files.identity, issued[1].certificate_pem + issued[2].private_key_pem
    ),
    "empty": lambda files, _: files.identity.write_bytes(b""),
    "a directory": lambda files, _: (files.identity.unlink(), files.identity.mkdir()),
}


@pytest.mark.parametrize("spoil", BAD.values(), ids=BAD)
async def test_a_file_that_cannot_be_used_changes_nothing(
    spoil, authority, files, issued, options
):
    client = authority.client_options()
    async with await make_server_tls_socket(LOOPBACK, 0, options) as listener:
        spoil(files, issued)
        with pytest.raises(ValueError, match="certificate"):
            await soon(listener.reload())
        assert await shown(listener, client) == issued[0].certificate


async def test_a_renewed_authority_is_believed_after_a_reload(
    authority, other_authority, files, options
):
    files.write(files.trusted, authority.certificate_pem)
    asks = options.replace(trusted_certificates=files.trusted, client_certificate_required=True)
    mine = authority.client_options(
        certificates=other_authority.issue("me").pem, maximum_version="TLSv1.2"
    )
    async with await make_server_tls_socket(LOOPBACK, 0, asks) as listener:
        with pytest.raises(SocketError):
            await shown(listener, mine)
        files.write(files.trusted, other_authority.certificate_pem)
        await soon(listener.reload())
        assert await shown(listener, mine) is not None


async def test_no_connection_is_lost_by_reloads_under_load(authority, files, issued, options):
    client = authority.client_options()

    async def echo(connection: TLSSocket) -> None:
        while data := await connection.recv(100):
            await connection.sendall(data)

    async with await make_server_tls_socket(LOOPBACK, 0, options) as listener:
        served = listener.serve(echo)
        port = listener.getsockname().port
        old = await soon(make_client_tls_socket(LOOPBACK, port, client))
        certificates = set()
        for number in range(12):
            files.write(files.identity, issued[number % 3].pem)
            reloading = listener.reload()
            new = await soon(make_client_tls_socket(LOOPBACK, port, client))
            certificates.add(new.peer_certificate)
            for sock in (old, new):
                await sock.sendall(b"%d" % number)
                assert await soon(sock.recv(10)) == b"%d" % number
            await soon(reloading)
            await soon(new.close())
        assert len(certificates) > 1
        assert listener.failed_handshakes == 0
        await soon(old.close())
    await soon(served)


async def test_reloads_at_once_end_with_the_last_files(authority, files, issued, options):
    client = authority.client_options()
    async with await make_server_tls_socket(LOOPBACK, 0, options) as listener:
        reloading = []
        for identity in issued:
            files.write(files.identity, identity.pem)
            reloading.append(listener.reload())
        for each in reloading:
            await soon(each)
        assert await shown(listener, client) == issued[2].certificate


async def test_a_cancelled_reload_changes_nothing(authority, files, issued, options):
    client = authority.client_options()
    async with await make_server_tls_socket(LOOPBACK, 0, options) as listener:
        files.write(files.identity, issued[1].pem)
        reloading = listener.reload()
        reloading.cancel()
        with pytest.raises(CancelledError):
            await soon(reloading)
        assert await shown(listener, client) == issued[0].certificate
        await soon(listener.reload())
        assert await shown(listener, client) == issued[1].certificate


async def test_what_does_not_listen_has_nothing_to_reload(authority, options):
    listener = await make_server_tls_socket(LOOPBACK, 0, options)
    accepting = listener.accept()
    port = listener.getsockname().port
    one = await soon(make_client_tls_socket(LOOPBACK, port, authority.client_options()))
    other = await soon(accepting)
    for sock in (one, other):
        with pytest.raises(SocketError, match="connection"):
            await sock.reload()
        sock.abort()
    await listener.close()
    with pytest.raises(SocketClosedError):
        await listener.reload()


# Watching


async def watched(options: ServerTLSSocketOptions) -> tuple[ClockedReactor, TLSSocket]:
    clock = ClockedReactor()
    # What the clock does not have.
    clock.getThreadPool = reactor.getThreadPool
    clock.callFromThread = reactor.callFromThread
    listener = await make_server_tls_socket(
        LOOPBACK, 0, options, reactor=clock, reload_every=timedelta(seconds=60)
    )
    return clock, listener


async def test_files_that_change_are_reloaded(authority, files, issued, options, log_lines):
    clock, listener = await watched(options)
    client = authority.client_options()
    files.write(files.identity, issued[1].pem)
    clock.advance(59)
    await turns()
    assert await shown(listener, client) == issued[0].certificate
    clock.advance(1)
    await until(lambda: any("has new certificates" in line for line in log_lines))
    assert await shown(listener, client) == issued[1].certificate
    listener.close()


async def test_a_file_that_cannot_be_used_is_reported_once(
    authority, files, issued, options, log_lines, logged_errors
):
    clock, listener = await watched(options)
    files.identity.write_bytes(issued[1].pem[:700])
    clock.advance(60)
    await until(lambda: any("keeps its certificates" in line for line in log_lines))
    for _ in range(3):
        clock.advance(60)
        await turns()
    assert len([line for line in log_lines if "keeps its certificates" in line]) == 1
    assert "private key" in next(line for line in log_lines if "keeps" in line)
    files.write(files.identity, issued[1].pem)
    clock.advance(60)
    await until(lambda: any("has new certificates" in line for line in log_lines))
    assert await shown(listener, authority.client_options()) == issued[1].certificate
    logged_errors.clear()
    listener.close()


async def test_a_file_that_could_not_be_read_is_tried_again_though_it_has_not_changed(
    authority, files, issued, options, log_lines, logged_errors, monkeypatch
):
    clock, listener = await watched(options)
    read, problem = certificates._read, ["no descriptor left"]

    def failing(field: str, source: str) -> bytes:
        if problem:
            raise ValueError(problem[0])
        return read(field, source)

    monkeypatch.setattr(certificates, "_read", failing)
    files.write(files.identity, issued[1].pem)
    clock.advance(60)
    await until(lambda: any("no descriptor left" in line for line in log_lines))
    problem.clear()
    await turns()
    clock.advance(60)
    await until(lambda: any("has new certificates" in line for line in log_lines))
    assert await shown(listener, authority.client_options()) == issued[1].certificate
    logged_errors.clear()
    listener.close()


@pytest.mark.parametrize("end", ["closed", "dropped"])
async def test_nobody_looks_at_the_files_of_a_socket_that_is_gone(end, options):
    clock, listener = await watched(options)
    assert clock.getDelayedCalls()
    if end == "closed":
        listener.close()
    else:
        del listener
        with pytest.warns(ResourceWarning):
            gc.collect()
    assert clock.getDelayedCalls() == []


async def test_what_changes_before_an_endpoint_listens_is_noticed(
    authority, files, issued, options, log_lines
):
    where = server_endpoint(reactor, LOOPBACK, 0, options, reload_every=timedelta(milliseconds=20))
    files.write(files.identity, issued[1].pem)
    os.utime(files.identity, (1, 1))
    async with serving(where, Protocols()) as port:
        await until(lambda: any("has new certificates" in line for line in log_lines))
        client = authority.client_options()
        one = await soon(make_client_tls_socket(LOOPBACK, port.getHost().port, client))
        assert one.peer_certificate == issued[1].certificate
        one.abort()


@pytest.mark.parametrize("options", [None, SocketOptions()])
async def test_without_tls_there_is_nothing_to_reload(options):
    with pytest.raises(ValueError, match="reload_every"):
        server_endpoint(reactor, LOOPBACK, 0, options, reload_every=timedelta(hours=1))


@pytest.mark.parametrize("wrong", [5, timedelta(0), timedelta(seconds=-1)])
async def test_a_wrong_interval_is_refused(wrong, options):
    with pytest.raises((TypeError, ValueError), match="reload_every"):
        await make_server_tls_socket(LOOPBACK, 0, options, reload_every=wrong)


# Clients


async def test_a_client_endpoint_believes_other_authorities_after_a_reload(
    authority, other_authority, files
):
    files.write(files.trusted, authority.certificate_pem)
    server = other_authority.server_options(LOOPBACK)
    async with await make_server_tls_socket(LOOPBACK, 0, server) as listener:
        options = authority.client_options(handshake_timeout=None).replace(
            trusted_certificates=files.trusted
        )
        where = client_endpoint(reactor, LOOPBACK, listener.getsockname().port, options)
        served = listener.serve(lambda connection: connection.recv(1))
        with pytest.raises(CertificateVerificationError):
            await soon(where.connect(Protocols()))
        files.write(files.trusted, other_authority.certificate_pem)
        assert await soon(where.reload()) is None
        clients = Protocols()
        await soon(where.connect(clients))
        await clients.all_lost()
    await soon(served)


async def test_a_plain_client_endpoint_has_nothing_to_reload():
    assert await client_endpoint(reactor, LOOPBACK, 1).reload() is None
