"""The end of a connection: in order, by halves, and by abortion."""

from __future__ import annotations

import socket
import ssl

import pytest
from twisted.internet import reactor
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost

from tests.support.clocks import turns, until
from tests.support.loopback import reset
from tests.support.protocols import (
    BULK,
    HalfCloser,
    Kind,
    Protocols,
    Recorder,
    Viewer,
    accepted,
    client_context,
    connected,
    listening,
    raw_client,
    raw_listener,
    raw_receive,
    tls_peer,
)
from twisted_netsock import (
    SocketConnectionLostError,
    SocketOptions,
    TLSError,
    TLSTruncatedError,
    client_endpoint,
)

# In order


async def test_lose_connection_sends_everything_first(kind):
    async with connected(kind) as pair:
        pair.client.transport.write(BULK)
        pair.client.transport.loseConnection()
        assert isinstance(await pair.server.loses(), ConnectionDone)
        assert isinstance(await pair.client.loses(), ConnectionDone)
        assert pair.server.received == BULK
        assert pair.server.events == ["made", "data", "lost"]


async def test_lose_connection_tells_nothing_from_within(kind):
    async with connected(kind) as pair:
        pair.client.transport.loseConnection()
        pair.client.transport.loseConnection()
        assert pair.client.events == ["made"]
        assert pair.client.transport.disconnecting
        assert isinstance(await pair.client.loses(), ConnectionDone)
        assert not pair.client.transport.disconnecting


@pytest.mark.parametrize("end", ["loseConnection", "abortConnection"])
async def test_a_connection_may_end_in_connection_made(kind, end):
    class Leaving(Recorder):
        def connectionMade(self):
            super().connectionMade()
            self.transport.write(b"good bye")
            getattr(self.transport, end)()
            assert self.events == ["made"]

    async with connected(kind, server=Leaving) as pair:
        await pair.server.loses()
        await pair.client.loses()
        assert pair.server.events == ["made", "lost"]
        if end == "loseConnection":
            assert pair.client.received == b"good bye"


async def test_a_client_may_end_the_connection_in_connection_made(kind):
    class Leaving(Recorder):
        def connectionMade(self):
            super().connectionMade()
            self.transport.abortConnection()

    async with connected(kind, client=Leaving) as pair:
        assert isinstance(await pair.client.loses(), ConnectionAborted)
        await pair.server.loses()


async def test_nothing_is_delivered_after_lose_connection(kind):
    async with connected(kind) as pair:
        pair.client.transport.loseConnection()
        pair.server.transport.write(b"too late")
        await pair.client.loses()
        await pair.server.loses()
        assert pair.client.received == b""


async def test_a_tls_peer_that_is_still_sending_does_not_lose_what_was_said(authority):
    """A close with unread data would reset the connection, and the last words with it."""
    async with connected(Kind(authority, tls=True)) as pair:
        pair.server.transport.write(BULK[:500_000])
        pair.client.transport.write(b"last words")
        pair.client.transport.loseConnection()
        assert isinstance(await pair.server.loses(), ConnectionDone)
        assert pair.server.received == b"last words"
        await pair.client.loses()


async def test_the_end_of_the_stream_is_connection_done(kind):
    async with connected(kind) as pair:
        pair.server.transport.write(b"all there is")
        pair.server.transport.loseWriteConnection()
        assert isinstance(await pair.client.loses(), ConnectionDone)
        assert isinstance(await pair.server.loses(), ConnectionDone)
        assert pair.client.received == b"all there is"


# By halves


async def test_each_half_is_reported_on_both_sides(kind):
    async with connected(kind, HalfCloser, HalfCloser) as pair:
        pair.client.transport.write(b"question")
        pair.client.transport.loseWriteConnection()
        await until(lambda: "read lost" in pair.server.events)
        assert pair.server.events == ["made", "data", "read lost"]
        assert pair.client.events == ["made", "write lost"]
        pair.server.transport.write(b"answer")
        assert await pair.client.receives(6) == b"answer"
        pair.server.transport.loseWriteConnection()
        assert isinstance(await pair.server.loses(), ConnectionDone)
        assert isinstance(await pair.client.loses(), ConnectionDone)
        assert pair.client.events == ["made", "write lost", "data", "read lost", "lost"]
        assert pair.server.events == ["made", "data", "read lost", "write lost", "lost"]


async def test_a_half_is_closed_when_all_is_sent(kind):
    async with connected(kind, HalfCloser, HalfCloser) as pair:
        pair.client.transport.write(BULK)
        pair.client.transport.loseWriteConnection()
        pair.client.transport.loseWriteConnection()
        await until(lambda: "read lost" in pair.server.events)
        assert pair.server.received == BULK
        assert pair.client.events == ["made", "write lost"]


@pytest.mark.parametrize("size", [1, 16383, 16384, 16385, 49152, 65536, 81920])
@pytest.mark.parametrize("protocol", [Recorder, HalfCloser, Viewer])
async def test_the_end_is_noticed_whatever_comes_with_it(kind, protocol, size):
    """Also where what was sent fills TLS records, or the receiver's buffer, to the last byte."""
    async with connected(kind, HalfCloser, protocol) as pair:
        pair.server.transport.pauseProducing()
        pair.client.transport.write(BULK[:size])
        pair.client.transport.loseWriteConnection()
        await until(lambda: "write lost" in pair.client.events)
        await turns()
        pair.server.transport.resumeProducing()
        await until(lambda: pair.server.events[-1] in {"lost", "read lost"})
        assert pair.server.received == BULK[:size]
        pair.server.transport.loseConnection()
        assert isinstance(await pair.client.loses(), ConnectionDone)


async def test_nothing_can_be_written_into_a_closed_half(kind):
    async with connected(kind, HalfCloser, HalfCloser) as pair:
        pair.client.transport.loseWriteConnection()
        await until(lambda: "write lost" in pair.client.events)
        pair.client.transport.write(b"too late")
        pair.server.transport.write(b"answer")
        assert await pair.client.receives(6) == b"answer"
        assert pair.server.received == b""
        assert "lost" not in pair.client.events


async def test_bulk_goes_on_in_the_other_half(kind):
    async with connected(kind, HalfCloser, HalfCloser) as pair:
        pair.client.transport.loseWriteConnection()
        await until(lambda: "read lost" in pair.server.events)
        pair.server.transport.write(BULK)
        pair.server.transport.loseConnection()
        assert isinstance(await pair.client.loses(), ConnectionDone)
        assert pair.client.received == BULK
        assert isinstance(await pair.server.loses(), ConnectionDone)


async def test_the_writing_half_may_be_closed_first_and_then_all(kind):
    """As a protocol does that has nothing more to say, and then hears enough."""
    async with connected(kind, HalfCloser, HalfCloser) as pair:
        pair.client.transport.loseWriteConnection()
        await until(lambda: "write lost" in pair.client.events)
        pair.client.transport.loseConnection()
        pair.server.transport.loseConnection()
        assert isinstance(await pair.client.loses(), ConnectionDone)
        assert isinstance(await pair.server.loses(), ConnectionDone)


async def test_closing_inside_the_callbacks_of_halves(kind):
    class Answering(HalfCloser):
        def readConnectionLost(self):
            super().readConnectionLost()
            self.transport.write(b"answer")
            self.transport.loseWriteConnection()

        def writeConnectionLost(self):
            super().writeConnectionLost()
            self.transport.loseConnection()

    async with connected(kind, HalfCloser, Answering) as pair:
        pair.client.transport.loseWriteConnection()
        assert isinstance(await pair.client.loses(), ConnectionDone)
        assert isinstance(await pair.server.loses(), ConnectionDone)
        assert pair.client.received == b"answer"


async def test_a_tls_peer_half_closes_by_close_notify(authority):
    """The peer is the standard library's."""
    servers = Protocols(HalfCloser)
    async with listening(authority.server_options(), servers) as port:
        with (
            raw_client(port) as sock,
            await tls_peer(sock, client_context(authority), "localhost") as peer,
        ):
            server = await servers.connected()
            peer.send(b"question")
            with pytest.raises(ssl.SSLWantReadError):
                peer.unwrap()
            await until(lambda: "read lost" in server.events)
            server.transport.write(b"answer")
            assert await raw_receive(peer) == b"answer"
            server.transport.loseWriteConnection()
            assert isinstance(await server.loses(), ConnectionDone)
            assert server.received == b"question"
            with pytest.raises(ssl.SSLZeroReturnError):
                await raw_receive(peer)


# By abortion


async def test_abort_is_connection_aborted_here_and_a_loss_there(kind):
    async with connected(kind) as pair:
        pair.client.transport.abortConnection()
        assert pair.client.events == ["made"]
        assert isinstance(await pair.client.loses(), ConnectionAborted)
        reason = await pair.server.loses()
        assert isinstance(reason, SocketConnectionLostError)
        assert isinstance(reason, ConnectionLost)
        assert isinstance(reason, ConnectionResetError)


async def test_abort_may_be_called_any_number_of_times(kind):
    async with connected(kind) as pair:
        pair.client.transport.abortConnection()
        pair.client.transport.abortConnection()
        pair.client.transport.loseConnection()
        assert isinstance(await pair.client.loses(), ConnectionAborted)
        pair.client.transport.abortConnection()
        await turns()
        assert pair.client.events == ["made", "lost"]


async def test_abort_drops_what_is_queued(kind):
    async with connected(kind) as pair:
        pair.server.transport.pauseProducing()
        pair.client.transport.write(BULK)
        pair.client.transport.loseConnection()
        await turns()
        pair.client.transport.abortConnection()
        pair.client.transport.write(b"never")
        assert isinstance(await pair.client.loses(), ConnectionAborted)
        pair.server.transport.resumeProducing()
        assert isinstance(await pair.server.loses(), ConnectionLost)
        assert len(pair.server.received) < len(BULK)


async def test_abort_stops_deliveries(kind):
    class Enough(Recorder):
        def dataReceived(self, data):
            super().dataReceived(data)
            self.transport.abortConnection()

    async with connected(kind, server=Enough) as pair:
        pair.client.transport.write(BULK)
        assert isinstance(await pair.server.loses(), ConnectionAborted)
        assert len(pair.server.received) <= 65536
        assert isinstance(await pair.client.loses(), ConnectionLost)


async def test_a_reset_by_the_peer_is_a_lost_connection():
    servers = Protocols(HalfCloser)
    async with listening(SocketOptions(), servers) as port:
        with raw_client(port) as peer:
            server = await servers.connected()
            reset(peer)
            assert isinstance(await server.loses(), SocketConnectionLostError)
    assert server.events == ["made", "lost"]


def ends(sock):
    """End the TCP stream of a raw TLS socket, without a word of TLS."""
    sock.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("protocol", [Recorder, HalfCloser])
@pytest.mark.parametrize("end", [ends, reset])
async def test_a_tls_peer_without_manners_is_a_lost_connection(authority, end, protocol):
    """An attacker can end a TCP connection: only close_notify is an end of the stream."""
    servers = Protocols(protocol)
    async with listening(authority.server_options(), servers) as port:
        with (
            raw_client(port) as sock,
            await tls_peer(sock, client_context(authority), "localhost") as peer,
        ):
            server = await servers.connected()
            peer.send(b"half a messa")
            assert await server.receives(12) == b"half a messa"
            end(peer)
            reason = await server.loses()
            assert isinstance(reason, ConnectionLost)
            assert isinstance(reason, TLSTruncatedError) is (end is not reset)
    assert server.events == ["made", "data", "lost"]


@pytest.mark.parametrize("size", [16384, 49152, 50000])
async def test_a_broken_record_is_noticed_whatever_comes_before_it(authority, size):
    """What came before is delivered, and the connection is lost though TCP still stands."""
    servers = Protocols()
    async with listening(authority.server_options(), servers) as port:
        with (
            raw_client(port) as sock,
            await tls_peer(sock, client_context(authority), "localhost") as peer,
        ):
            server = await servers.connected()
            server.transport.pauseProducing()
            peer.send(BULK[:size])
            # Past the TLS of the peer, onto its socket.
            socket.socket.send(peer, b"\x17\x03\x03\x00\x20" + b"x" * 32)
            await turns()
            server.transport.resumeProducing()
            assert isinstance(await server.loses(), TLSError)
            assert server.received == BULK[:size]


async def test_a_plain_peer_that_ends_its_stream_is_done():
    clients = Protocols()
    with raw_listener() as listener:
        where = client_endpoint(reactor, *listener.getsockname())
        client = await where.connect(clients)
        with await accepted(listener) as peer:
            peer.send(b"bye")
            peer.shutdown(socket.SHUT_WR)
            assert isinstance(await client.loses(), ConnectionDone)
            assert client.received == b"bye"
            assert await raw_receive(peer) == b""
