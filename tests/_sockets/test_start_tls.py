"""`start_tls`: TLS on a connection that was plain until now."""

from __future__ import annotations

import contextlib
import socket as standard
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, gatherResults

from tests.support.clocks import turns, until
from tests.support.streams import (
    in_thread,
    noise,
    python_client_context,
    python_server_context,
    read_exactly,
    read_to_end,
    shrink_buffers,
    soon,
)
from twisted_netsock import (
    CertificateVerificationError,
    ServerTLSSocketOptions,
    Socket,
    SocketBusyError,
    SocketClosedError,
    SocketConnectionLostError,
    SocketConnectionTimeoutError,
    SocketError,
    SocketOptions,
    SocketPortError,
    TLSHandshakeError,
    TLSSocket,
    TLSSocketOptions,
    chibi,
    client_context_factory,
    make_client_socket,
    make_server_socket,
    server_context_factory,
    start_tls,
)
from twisted_netsock.testing import CertificateAuthority, connected_pair


@pytest.fixture
def server(authority: CertificateAuthority) -> ServerTLSSocketOptions:
    return authority.server_options("localhost", "127.0.0.1")


@pytest.fixture
def client(authority: CertificateAuthority) -> TLSSocketOptions:
    return authority.client_options()


@contextlib.asynccontextmanager
async def pair(**fields: Any) -> AsyncIterator[tuple[Socket, Socket]]:
    """Connect two plain sockets that know each other's addresses, and abort them at the end."""
    options = SocketOptions(**fields)
    async with await make_server_socket("127.0.0.1", 0, options) as listener:
        accepting = listener.accept()
        one = await make_client_socket("127.0.0.1", listener.getsockname().port, options)
        other = await accepting
    try:
        yield one, other
    finally:
        one.abort()
        other.abort()


@contextlib.asynccontextmanager
async def upgraded(client: Any, server: Any) -> AsyncIterator[tuple[TLSSocket, TLSSocket]]:
    async with (
        pair() as (one, other),
        both(start_tls(one, client), start_tls(other, server)) as (
            here,
            there,
        ),
    ):
        yield here, there


@contextlib.asynccontextmanager
async def both(*upgrading: Deferred[TLSSocket]) -> AsyncIterator[list[TLSSocket]]:
    ends = await soon(gatherResults(upgrading))
    try:
        yield ends
    finally:
        for end in ends:
            end.abort()


async def failure(deferred: Deferred[Any]) -> BaseException:
    with pytest.raises(Exception) as caught:
        await soon(deferred)
    return caught.value


# Upgrading


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
async def test_both_sides_upgrade(version, client, server):
    data = noise(300_000)
    async with upgraded(client.replace(maximum_version=version), server) as (one, other):
        assert one.tls_version == other.tls_version == version
        sending = one.sendall(data)
        assert await read_exactly(other, len(data)) == data
        await soon(sending)
        await other.sendall(b"and back")
        assert await soon(one.recv(100)) == b"and back"
        closing = one.close()
        assert await soon(other.recv(100)) == b""
        await soon(other.close())
        await soon(closing)


async def test_the_new_socket_keeps_node_and_service_and_has_the_new_options(client, server):
    async with (
        pair() as (one, other),
        both(start_tls(one, client), start_tls(other, server)) as (
            here,
            there,
        ),
    ):
        assert (here.node, here.service) == (one.node, one.service)
        assert (there.node, there.service) == (other.node, other.service)
        assert here.options is client
        assert there.options is server


async def test_timeouts_that_the_options_leave_open_stay_as_they_were(client, server):
    minute, hour = timedelta(minutes=1), timedelta(hours=1)
    async with pair(read_timeout=minute, write_timeout=minute) as (one, other):
        upgrading = start_tls(one, client.replace(read_timeout=hour)), start_tls(other, server)
        async with both(*upgrading) as (here, there):
            assert (here.read_timeout, here.write_timeout) == (hour, minute)
            assert (there.read_timeout, there.write_timeout) == (minute, minute)


async def test_the_plain_socket_is_spent_at_the_call(client, server):
    async with pair() as (one, other):
        upgrading = [start_tls(one, client), start_tls(other, server)]
        assert one.closed
        assert one.fileno() == -1
        for call in (one.recv(1), one.send(b"x"), start_tls(one, client)):
            assert isinstance(await failure(call), SocketClosedError)
        one.abort()
        await one.close()
        async with both(*upgrading) as (here, there):
            await here.sendall(b"it lives")
            assert await soon(there.recv(10)) == b"it lives"


async def test_a_server_of_several_records_chooses_by_name(authority, client):
    records = [authority.server_options(name, sni=name) for name in ("a.example", "b.example")]
    async with upgraded(client.replace(sni="b.example"), records) as (one, _):
        assert "b.example" in str(one.peer_certificate.subject)


async def test_context_factories_serve_instead_of_records(client, server):
    factories = client_context_factory(client, "localhost"), server_context_factory(server)
    for _ in range(2):
        async with upgraded(*factories) as (one, other):
            await other.sendall(b"x")
            assert await soon(one.recv(1)) == b"x"


async def test_a_session_of_the_same_service_is_resumed(client, server):
    factories = client_context_factory(client, "localhost"), server_context_factory(server)
    resumed = []
    async with await make_server_socket("127.0.0.1", 0) as listener:
        for _ in range(2):
            accepting = listener.accept()
            one = await make_client_socket("127.0.0.1", listener.getsockname().port)
            upgrading = start_tls(one, factories[0]), start_tls(await accepting, factories[1])
            async with both(*upgrading) as (here, there):
                await there.sendall(b"x")
                await soon(here.recv(1))
                resumed.append(here.resumed)
                closing = here.close()
                await soon(there.close())
                await soon(closing)
    assert resumed == [False, True]


async def test_what_is_verified_may_be_named(client, authority):
    server = authority.server_options("mail.example")
    async with pair() as (one, other):
        upgrading = start_tls(one, client, "mail.example"), start_tls(other, server)
        async with both(*upgrading) as (here, there):
            assert here.node == "mail.example"
            assert there.server_name == "mail.example"


async def test_the_handshake_may_be_left_to_the_caller(client, server):
    lazy = {"handshake": False}
    async with upgraded(client.replace(**lazy), server.replace(**lazy)) as (one, other):
        assert "handshake" in str(await failure(one.recv(1)))
        await soon(gatherResults([one.handshake(), other.handshake()]))
        await one.sendall(b"now")
        assert await soon(other.recv(10)) == b"now"


# Bytes before


async def test_what_the_output_port_holds_goes_first(client, server):
    """As much as the kernel does not take at once; and who waits for it is told."""
    data = noise(2_000_000)
    async with pair() as (one, other):
        shrink_buffers(one, other)
        writing = one.output_port.write(data)
        flushing = one.output_port.flush()
        assert not flushing.called
        upgrading = start_tls(one, client)
        assert await read_exactly(other, len(data)) == data
        async with both(upgrading, start_tls(other, server)) as (here, there):
            await soon(writing)
            await soon(flushing)
            await here.sendall(b"protected")
            assert await soon(there.recv(100)) == b"protected"


async def test_who_waits_for_the_output_port_hears_that_the_peer_went(client):
    async with pair() as (one, other):
        shrink_buffers(one, other)
        flushing = gatherResults(
            [one.output_port.write(bytes(2_000_000)), one.output_port.flush()],
            consumeErrors=True,
        )
        upgrading = start_tls(one, client)
        other.abort()
        assert isinstance(await failure(upgrading), SocketConnectionLostError)
        assert "lost" in str(await failure(flushing)).lower()


async def test_unread_bytes_in_the_input_port_are_refused(client):
    """Bytes that came with the answer to STARTTLS are not protected, and would seem to be."""
    async with pair() as (one, other):
        await other.sendall(b"220 go ahead\r\n250 injected\r\n")
        assert await soon(one.input_port.readline()) == b"220 go ahead\r\n"
        error = await failure(start_tls(one, client))
        assert isinstance(error, SocketPortError)
        assert not one.closed
        assert await soon(one.input_port.readline()) == b"250 injected\r\n"


@pytest.mark.parametrize("side", ["client", "server"])
async def test_plain_bytes_that_the_kernel_holds_end_the_handshake(side, client, server):
    async with pair() as (one, other):
        await other.sendall(b"250 injected\r\n")
        await turns()
        error = await failure(start_tls(one, client if side == "client" else server))
        assert isinstance(error, TLSHandshakeError)


# Refusals


@pytest.mark.parametrize("wrong", [None, 7, "tls", SocketOptions()])
async def test_what_is_no_record_for_tls_is_refused(wrong):
    async with pair() as (one, _):
        with pytest.raises(TypeError, match="must be"):
            start_tls(one, wrong)
        assert not one.closed


async def test_a_name_is_refused_where_nobody_would_verify_it(client, server):
    async with pair() as (one, _):
        for options in (server, [server], client_context_factory(client, "localhost")):
            with pytest.raises(ValueError, match="node='somebody'"):
                start_tls(one, options, "somebody")
        assert not one.closed


async def test_without_a_name_there_is_nothing_to_verify(client):
    one, other = connected_pair()
    with pytest.raises(ValueError, match="node=None"):
        start_tls(one, client)
    for end in (one, other):
        end.close()


async def test_what_is_no_plain_socket_is_refused(client, server):
    with standard.socket() as sock, pytest.raises(TypeError, match=r"twisted_netsock\.Socket"):
        start_tls(sock, client)
    async with upgraded(client, server) as (one, _):
        with pytest.raises(TypeError, match="TLS already"):
            start_tls(one, client)


@pytest.mark.parametrize("kind", [standard.SOCK_STREAM, standard.SOCK_DGRAM])
async def test_a_socket_without_a_peer_or_a_stream_is_refused(kind, client):
    async with chibi.socket(standard.AF_INET, kind) as sock:
        assert isinstance(await failure(start_tls(sock, client, "localhost")), SocketError)
        assert not sock.closed


async def test_a_socket_that_somebody_uses_is_refused(client):
    async with pair() as (one, other):
        receiving = one.recv(10)
        assert isinstance(await failure(start_tls(one, client)), SocketBusyError)
        await other.sendall(b"still plain")
        assert await soon(receiving) == b"still plai"


async def test_non_blocking_false_is_refused(client):
    async with pair() as (one, _):
        with pytest.raises(ValueError, match="non_blocking"):
            start_tls(one, client.replace(non_blocking=False))


# Failures


async def test_a_peer_that_is_not_whom_it_should_be_ends_the_connection(client, other_authority):
    async with pair() as (one, other):
        theirs = start_tls(other, other_authority.server_options("127.0.0.1"))
        assert isinstance(await failure(start_tls(one, client)), CertificateVerificationError)
        assert isinstance(await failure(theirs), TLSHandshakeError)


@pytest.mark.parametrize(
    "limit", [{"handshake_timeout": timedelta(milliseconds=20)}, {"connection_timeout": 100_000}]
)
async def test_a_mute_peer_is_given_up(limit, client):
    async with pair() as (one, other):
        error = await failure(start_tls(one, client.replace(**limit)))
        assert isinstance(error, SocketConnectionTimeoutError)
        assert error.stage == "handshake"
        assert (await read_to_end(other))[:1] == b"\x16"


async def test_a_peer_that_takes_nothing_is_given_up(client):
    async with pair() as (one, other):
        shrink_buffers(one, other)
        writing = one.output_port.write(bytes(2_000_000))
        error = await failure(
            start_tls(one, client.replace(handshake_timeout=timedelta(milliseconds=20)))
        )
        assert isinstance(error, SocketConnectionTimeoutError)
        assert isinstance(await failure(writing), SocketConnectionTimeoutError)


async def test_what_is_to_be_sent_and_the_handshake_share_one_time(authority, clocked):
    """A server's, which has no `connection_timeout`."""
    server = authority.server_options("127.0.0.1").replace(handshake_timeout=timedelta(seconds=7))
    async with pair() as (one, other):
        shrink_buffers(one, other)
        one._reactor = clocked
        writing = one.output_port.write(bytes(500_000))
        upgrading = start_tls(one, server)
        clocked.advance(6)
        assert len(await read_exactly(other, 500_000)) == 500_000
        await soon(writing)
        assert not upgrading.called
        clocked.advance(1.1)
        assert isinstance(await failure(upgrading), SocketConnectionTimeoutError)


@pytest.mark.parametrize("stage", ["flush", "handshake"])
async def test_cancelling_closes_the_connection(stage, client):
    async with pair() as (one, other):
        shrink_buffers(one, other)
        writing = one.output_port.write(bytes(2_000_000) if stage == "flush" else b"x")
        upgrading = start_tls(one, client)
        await turns()
        upgrading.cancel()
        assert isinstance(await failure(upgrading), CancelledError)
        if stage == "flush":
            assert isinstance(await failure(writing), CancelledError)
        with contextlib.suppress(SocketConnectionLostError):
            await read_to_end(other)


# Python's own


async def test_the_standard_library_upgrades_with_us(client, server, authority, tmp_path):
    def serve(sock: standard.socket) -> bytes:
        context = python_server_context(authority, tmp_path)
        with context.wrap_socket(sock, server_side=True) as tls:
            tls.sendall(b"from the standard library")
            return tls.recv(100)

    def visit(sock: standard.socket) -> bytes:
        context = python_client_context(authority)
        with context.wrap_socket(sock, server_hostname="localhost") as tls:
            tls.sendall(b"from the standard library")
            return tls.recv(100)

    for theirs, options in ((serve, client), (visit, server)):
        ours, peer = standard.socketpair()
        peer.settimeout(10)
        sock = Socket.from_socket(ours)
        running = in_thread(theirs, peer)
        node = "localhost" if theirs is serve else None
        async with await soon(start_tls(sock, options, node)) as tls:
            assert await soon(tls.recv(100)) == b"from the standard library"
            await tls.sendall(b"from us")
            assert await soon(running) == b"from us"


# In an accept loop


@pytest.mark.parametrize("how", ["done", "failed", "cancelled"])
async def test_serve_closes_what_a_connection_has_become(how, client, server, logged_errors):
    upgraded_there: list[TLSSocket] = []

    async def handle(connection: Socket) -> None:
        tls = await start_tls(connection, server)
        if how == "failed":
            raise RuntimeError("a mistake")
        upgraded_there.append(tls)
        if how == "cancelled":
            await tls.recv(1)

    listener = await make_server_socket("127.0.0.1", 0)
    served = listener.serve(handle)
    plain = await make_client_socket("127.0.0.1", listener.getsockname().port)
    async with await soon(start_tls(plain, client)) as tls:
        if how == "cancelled":
            await until(lambda: upgraded_there)
            served.cancel()
            assert isinstance(await failure(served), CancelledError)
        assert await soon(tls.recv(1)) == b""
    listener.close()
    if how != "cancelled":
        await soon(served)
    assert len(logged_errors) == (how == "failed")
    logged_errors.clear()


async def test_a_peer_that_fails_the_handshake_is_a_line_in_the_log(server, log_lines):
    async def handle(connection: Socket) -> None:
        await start_tls(connection, server)

    async with await make_server_socket("127.0.0.1", 0) as listener:
        served = listener.serve(handle)
        async with await make_client_socket("127.0.0.1", listener.getsockname().port) as plain:
            await plain.sendall(b"this is no TLS, this is no TLS, this is no TLS")
            with contextlib.suppress(SocketConnectionLostError):
                await soon(plain.input_port.read_all())
    await soon(served)
    assert [line for line in log_lines if line.startswith("serving 127.0.0.1")]
