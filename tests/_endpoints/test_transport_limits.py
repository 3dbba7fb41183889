"""Transports and time: read_timeout, write_timeout, close_timeout, on a clock."""

from __future__ import annotations

import ssl
from datetime import timedelta

from twisted.internet.error import ConnectionAborted, ConnectionDone

from tests.support.clocks import turns, until
from tests.support.protocols import (
    BULK,
    HalfCloser,
    Protocols,
    Recorder,
    accepted,
    client_context,
    connected,
    listening,
    raw_client,
    raw_listener,
    raw_receive,
    server_context,
    tls_peer,
)
from twisted_netsock import (
    SocketOptions,
    SocketReadTimeoutError,
    SocketWriteTimeoutError,
    client_endpoint,
)

READ = {"read_timeout": timedelta(seconds=10)}
WRITE = {"write_timeout": timedelta(seconds=10)}


def reading(kind, clocked, server=Recorder):
    """Connect a client to a server with a read time-out."""
    return connected(kind, server=server, server_fields=READ, on=clocked)


# Reading


async def test_a_silent_peer_is_given_up_after_read_timeout(kind, clocked):
    async with reading(kind, clocked) as pair:
        clocked.advance(9.9)
        await turns()
        assert pair.server.events == ["made"]
        clocked.advance(0.2)
        reason = await pair.server.loses()
        assert isinstance(reason, SocketReadTimeoutError)
        assert isinstance(reason, TimeoutError)
        await pair.client.loses()


async def test_every_arrival_begins_the_time_anew(kind, clocked):
    async with reading(kind, clocked) as pair:
        for count in range(1, 6):
            clocked.advance(9)
            pair.client.transport.write(b"x")
            await pair.server.receives(count)
        clocked.advance(9.9)
        await turns()
        assert "lost" not in pair.server.events
        clocked.advance(0.2)
        assert isinstance(await pair.server.loses(), SocketReadTimeoutError)


async def test_what_this_side_sends_does_not_count_as_an_arrival(kind, clocked):
    async with reading(kind, clocked) as pair:
        for _ in range(2):
            pair.server.transport.write(b"are you there?")
            clocked.advance(5.1)
        assert isinstance(await pair.server.loses(), SocketReadTimeoutError)


async def test_a_paused_protocol_waits_for_nobody(kind, clocked):
    async with reading(kind, clocked) as pair:
        pair.server.transport.pauseProducing()
        for _ in range(5):
            clocked.advance(30)
            await turns()
        assert pair.server.events == ["made"]
        pair.server.transport.resumeProducing()
        clocked.advance(9)
        await turns()
        assert pair.server.events == ["made"]
        clocked.advance(30)
        assert isinstance(await pair.server.loses(), SocketReadTimeoutError)


async def test_a_closed_half_is_not_waited_for(kind, clocked):
    async with reading(kind, clocked, HalfCloser) as pair:
        pair.client.transport.loseWriteConnection()
        await until(lambda: "read lost" in pair.server.events)
        clocked.advance(60)
        await turns()
        pair.server.transport.write(b"still here")
        assert await pair.client.receives(10) == b"still here"


async def test_read_timeout_does_not_cut_short_what_is_being_sent(kind, clocked):
    """After loseConnection nothing is read, so nothing can be late."""
    async with reading(kind, clocked) as pair:
        pair.client.transport.pauseProducing()
        pair.server.transport.write(BULK)
        pair.server.transport.loseConnection()
        clocked.advance(9)
        await turns()
        clocked.advance(9)
        await turns()
        pair.client.transport.resumeProducing()
        assert isinstance(await pair.client.loses(), ConnectionDone)
        assert pair.client.received == BULK
        assert isinstance(await pair.server.loses(), ConnectionDone)


async def test_a_client_has_a_read_timeout_of_its_own(kind, clocked):
    async with connected(kind, client_fields=READ, on=clocked) as pair:
        clocked.advance(10.1)
        assert isinstance(await pair.client.loses(), SocketReadTimeoutError)
        await pair.server.loses()


async def test_no_timer_runs_without_a_timeout(kind, clocked):
    async with connected(kind, on=clocked) as pair:
        pair.client.transport.write(BULK)
        assert await pair.server.receives(len(BULK)) == BULK
        assert clocked.getDelayedCalls() == []


# Writing


async def test_a_peer_that_takes_nothing_is_given_up_after_write_timeout(kind, clocked):
    async with connected(kind, client_fields=WRITE, on=clocked) as pair:
        pair.server.transport.pauseProducing()
        pair.client.transport.write(BULK)
        await turns(50)
        clocked.advance(9.9)
        await turns()
        assert pair.client.events == ["made"]
        clocked.advance(0.2)
        reason = await pair.client.loses()
        assert isinstance(reason, SocketWriteTimeoutError)
        assert isinstance(reason, TimeoutError)
        pair.server.transport.resumeProducing()
        await pair.server.loses()
        assert len(pair.server.received) < len(BULK)


async def test_a_peer_that_takes_little_is_not_given_up(kind, clocked):
    """It takes two megabytes every four seconds."""

    class Sipping(Recorder):
        wanted = 0

        def dataReceived(self, data):
            super().dataReceived(data)
            if len(self.received) >= self.wanted:
                self.transport.pauseProducing()

    async with connected(kind, server=Sipping, client_fields=WRITE, on=clocked) as pair:
        pair.client.transport.write(BULK)
        for _ in range(5):
            clocked.advance(4)
            pair.server.wanted += 2_000_000
            pair.server.transport.resumeProducing()
            await pair.server.receives(min(pair.server.wanted, len(BULK)))
            await turns()
        assert pair.client.events == ["made"]
        pair.server.wanted = len(BULK)
        pair.server.transport.resumeProducing()
        assert await pair.server.receives(len(BULK)) == BULK


async def test_write_timeout_holds_for_a_connection_that_is_being_closed(kind, clocked):
    async with connected(kind, client_fields=WRITE, on=clocked) as pair:
        pair.server.transport.pauseProducing()
        pair.client.transport.write(BULK)
        pair.client.transport.loseConnection()
        await turns(50)
        clocked.advance(10.1)
        assert isinstance(await pair.client.loses(), SocketWriteTimeoutError)


async def test_write_timeout_does_not_run_while_nothing_is_queued(kind, clocked):
    async with connected(kind, client_fields=WRITE, on=clocked) as pair:
        pair.client.transport.write(BULK)
        assert await pair.server.receives(len(BULK)) == BULK
        await until(lambda: not clocked.getDelayedCalls())
        clocked.advance(60)
        pair.client.transport.write(b"x")
        clocked.advance(60)
        await pair.server.receives(len(BULK) + 1)
        assert pair.client.events == ["made"]


# Closing TLS. Of the standard library's sockets b"" is a close_notify: the end of the TCP
# stream without one is an exception.


async def tls_server(listener, authority, tmp_path):
    """Shake hands as a server of the standard library's, with a certificate for us."""
    issued = authority.issue("127.0.0.1")
    return await tls_peer(await accepted(listener), server_context(issued, tmp_path))


async def test_a_peer_that_ignores_close_notify_has_close_timeout(authority, clocked):
    servers = Protocols()
    async with listening(authority.server_options(), servers, on=clocked) as port:
        with (
            raw_client(port) as sock,
            await tls_peer(sock, client_context(authority), "localhost") as peer,
        ):
            server = await servers.connected()
            server.transport.write(b"last words")
            server.transport.loseConnection()
            assert await raw_receive(peer) == b"last words"
            assert await raw_receive(peer) == b""
            clocked.advance(4.9)
            await turns()
            assert server.events == ["made"]
            clocked.advance(0.2)
            assert isinstance(await server.loses(), ConnectionDone)


async def test_close_timeout_holds_for_clients_too(authority, clocked, tmp_path):
    clients = Protocols()
    options = authority.client_options(close_timeout=timedelta(seconds=2))
    with raw_listener() as listener:
        connecting = client_endpoint(clocked, *listener.getsockname(), options).connect(clients)
        with await tls_server(listener, authority, tmp_path):
            client = await connecting
            client.transport.loseConnection()
            await turns()
            clocked.advance(1.9)
            await turns()
            assert client.events == ["made"]
            clocked.advance(0.2)
            assert isinstance(await client.loses(), ConnectionDone)
    assert clients.life == ["start", "stop"]


async def test_a_peer_that_answers_close_notify_is_not_waited_for(authority, clocked):
    servers = Protocols()
    async with listening(authority.server_options(), servers, on=clocked) as port:
        with (
            raw_client(port) as sock,
            await tls_peer(sock, client_context(authority), "localhost") as peer,
        ):
            server = await servers.connected()
            server.transport.loseConnection()
            assert await raw_receive(peer) == b""
            assert server.events == ["made"]
            peer.unwrap()
            assert isinstance(await server.loses(), ConnectionDone)


async def test_a_peer_that_just_goes_on_sending_is_not_listened_to_for_ever(authority, clocked):
    servers = Protocols()
    async with listening(authority.server_options(), servers, on=clocked) as port:
        with (
            raw_client(port) as sock,
            await tls_peer(sock, client_context(authority), "localhost") as peer,
        ):
            server = await servers.connected()
            server.transport.loseConnection()
            for _ in range(1000):
                if server.reason:
                    break
                try:
                    peer.send(b"x" * 16384)
                except (ssl.SSLWantWriteError, ssl.SSLEOFError, OSError):
                    await turns(1)
            assert isinstance(await server.loses(), ConnectionDone)
            assert server.received == b""


async def test_a_tls_shutdown_can_be_cut_short_by_abort(authority, clocked):
    servers = Protocols()
    async with listening(authority.server_options(), servers, on=clocked) as port:
        with (
            raw_client(port) as sock,
            await tls_peer(sock, client_context(authority), "localhost"),
        ):
            server = await servers.connected()
            server.transport.loseConnection()
            await until(clocked.getDelayedCalls)
            server.transport.abortConnection()
            assert isinstance(await server.loses(), ConnectionAborted)


async def test_a_write_during_the_tls_shutdown_harms_nothing(authority, clocked):
    servers = Protocols()
    async with listening(authority.server_options(), servers, on=clocked) as port:
        with (
            raw_client(port) as sock,
            await tls_peer(sock, client_context(authority), "localhost") as peer,
        ):
            server = await servers.connected()
            server.transport.loseConnection()
            assert await raw_receive(peer) == b""
            server.transport.write(b"too late")
            server.transport.writeSequence([b"far", b"too", b"late"])
            server.transport.loseWriteConnection()
            server.transport.loseConnection()
            await turns()
            assert server.events == ["made"]
            peer.unwrap()
            assert isinstance(await server.loses(), ConnectionDone)


async def test_pausing_during_the_tls_shutdown_changes_nothing(authority, clocked):
    servers = Protocols()
    async with listening(authority.server_options(), servers, on=clocked) as port:
        with (
            raw_client(port) as sock,
            await tls_peer(sock, client_context(authority), "localhost") as peer,
        ):
            server = await servers.connected()
            server.transport.loseConnection()
            assert await raw_receive(peer) == b""
            server.transport.pauseProducing()
            server.transport.resumeProducing()
            server.transport.pauseProducing()
            peer.unwrap()
            assert isinstance(await server.loses(), ConnectionDone)


async def test_read_timeout_does_not_run_during_the_tls_shutdown(authority, clocked):
    servers = Protocols()
    options = authority.server_options(close_timeout=timedelta(seconds=60), **READ)
    async with listening(options, servers, on=clocked) as port:
        with (
            raw_client(port) as sock,
            await tls_peer(sock, client_context(authority), "localhost") as peer,
        ):
            server = await servers.connected()
            server.transport.loseConnection()
            assert await raw_receive(peer) == b""
            clocked.advance(30)
            await turns()
            peer.unwrap()
            assert isinstance(await server.loses(), ConnectionDone)


async def test_a_plain_connection_needs_no_time_to_close(clocked):
    servers = Protocols()
    async with listening(SocketOptions(), servers, on=clocked) as port:
        with raw_client(port) as peer:
            server = await servers.connected()
            server.transport.write(b"last words")
            server.transport.loseConnection()
            assert isinstance(await server.loses(), ConnectionDone)
            assert await raw_receive(peer) == b"last words"
            assert await raw_receive(peer) == b""
