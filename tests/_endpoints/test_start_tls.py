"""startTLS: from a plain dialogue to TLS on the same connection."""

from __future__ import annotations

from datetime import timedelta

import pytest
from twisted.internet import reactor
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import (
    IHandshakeListener,
    INegotiated,
    IPullProducer,
    ISSLTransport,
)
from zope.interface import implementer
from zope.interface.verify import verifyObject

from tests.support.clocks import turns, until
from tests.support.loopback import LOOPBACK
from tests.support.protocols import (
    BULK,
    HalfCloser,
    Kind,
    Listener,
    NegotiatingProtocols,
    Protocols,
    Recorder,
    connected,
    listening,
)
from twisted_netsock import (
    CertificateVerificationError,
    SocketConnectionTimeoutError,
    SocketOptions,
    TLSHandshakeError,
    client_context_factory,
    client_endpoint,
    server_context_factory,
)


@pytest.fixture
def plain():
    return Kind(None, tls=False)


class Factories:
    """The contextFactory objects of both sides."""

    def __init__(self, authority, client_fields=None, server_fields=None):
        self.client = client_context_factory(
            authority.client_options(**(client_fields or {})), LOOPBACK
        )
        self.server = server_context_factory(authority.server_options(**(server_fields or {})))

    def start(self, pair):
        """Have both sides speak TLS."""
        pair.server.transport.startTLS(self.server)
        pair.client.transport.startTLS(self.client)


@pytest.fixture
def factories(authority):
    return Factories(authority)


async def is_tls(pair):
    """Wait until both handshakes are done."""
    await until(lambda: all(ISSLTransport.providedBy(each.transport) for each in pair))


async def test_tls_begins_after_a_plain_dialogue(plain, factories):
    class Server(Recorder):
        def dataReceived(self, data):
            super().dataReceived(data)
            if data == b"STARTTLS\r\n":
                self.transport.write(b"OK\r\n")
                self.transport.startTLS(factories.server)
                self.transport.write(b"safe now")

    class Client(Recorder):
        def connectionMade(self):
            super().connectionMade()
            self.transport.write(b"STARTTLS\r\n")

        def dataReceived(self, data):
            super().dataReceived(data)
            if data == b"OK\r\n":
                self.transport.startTLS(factories.client)
                self.transport.write(b"a password")

    async with connected(plain, Client, Server) as pair:
        assert await pair.server.receives(20) == b"STARTTLS\r\na password"
        assert await pair.client.receives(12) == b"OK\r\nsafe now"
        await is_tls(pair)
        assert pair.client.transport.getHandle().get_protocol_version_name() == "TLSv1.3"


async def test_the_interfaces_change_with_the_handshake_and_not_before(plain, factories):
    """Mail protocols decide by them whether a password may be sent."""
    async with connected(plain) as pair:
        pair.server.transport.pauseProducing()
        pair.client.transport.startTLS(factories.client)
        await turns(20)
        assert not ISSLTransport.providedBy(pair.client.transport)
        assert not INegotiated.providedBy(pair.client.transport)
        pair.server.transport.startTLS(factories.server)
        await is_tls(pair)
        for protocol in pair:
            assert verifyObject(ISSLTransport, protocol.transport)
            assert verifyObject(INegotiated, protocol.transport)
        found = pair.client.transport.peer_certificate
        assert found.subject.rfc4514_string() == "CN=localhost"


async def test_what_is_written_during_the_handshake_goes_behind_it(plain, factories):
    async with connected(plain) as pair:
        factories.start(pair)
        pair.client.transport.write(BULK)
        pair.server.transport.writeSequence([b"a", b"b"])
        pair.client.transport.loseConnection()
        assert isinstance(await pair.server.loses(), ConnectionDone)
        assert pair.server.received == BULK
        assert isinstance(await pair.client.loses(), ConnectionDone)


async def test_nothing_written_during_the_handshake_leaves_in_plain_text(plain, factories):
    async with connected(plain) as pair:
        pair.client.transport.startTLS(factories.client)
        pair.client.transport.write(b"a password")
        await pair.server.receives(100)
        await turns(10)
        assert pair.server.received[:1] == b"\x16"
        assert b"password" not in pair.server.received


async def test_what_was_written_before_goes_first_in_plain_text(plain, factories):
    """However much it is."""
    greeting = BULK

    class Client(Recorder):
        def dataReceived(self, data):
            super().dataReceived(data)
            if len(self.received) == len(greeting):
                self.transport.startTLS(factories.client)

    async with connected(plain, Client) as pair:
        pair.server.transport.write(greeting)
        pair.server.transport.startTLS(factories.server)
        pair.server.transport.write(b"safe now")
        assert await pair.client.receives(len(greeting) + 8) == greeting + b"safe now"
        await is_tls(pair)


async def test_either_side_may_be_tls_s_client(plain, factories):
    """*normal* is `False` where the side that was connected to begins."""
    async with connected(plain) as pair:
        pair.client.transport.startTLS(factories.server, normal=False)
        pair.server.transport.startTLS(factories.client, normal=False)
        pair.client.transport.write(b"hello")
        assert await pair.server.receives(5) == b"hello"
        await is_tls(pair)
        assert pair.server.transport.peer_certificate is not None
        assert pair.client.transport.peer_certificate is None


async def test_the_factory_of_the_wrong_side_is_refused(plain, factories):
    async with connected(plain) as pair:
        for start, message in (
            (lambda: pair.client.transport.startTLS(factories.server), "client's side"),
            (lambda: pair.server.transport.startTLS(factories.client), "server's side"),
            (lambda: pair.client.transport.startTLS(factories.client, False), "server's side"),
            (lambda: pair.server.transport.startTLS(factories.server, False), "client's side"),
        ):
            with pytest.raises(ValueError, match=message):
                start()
        pair.client.transport.write(b"still plain")
        assert await pair.server.receives(11) == b"still plain"


async def test_tls_starts_once(plain, factories):
    async with connected(plain) as pair:
        factories.start(pair)
        with pytest.raises(ValueError, match="already"):
            pair.client.transport.startTLS(factories.client)
        await is_tls(pair)
        with pytest.raises(ValueError, match="already"):
            pair.client.transport.startTLS(factories.client)
        with pytest.raises(ValueError, match="already"):
            pair.server.transport.startTLS(factories.server)


@pytest.mark.parametrize("factory", [None, 17, "tls"], ids=repr)
async def test_something_else_is_no_context_factory(plain, factory):
    async with connected(plain) as pair:
        with pytest.raises(TypeError, match="client_context_factory"):
            pair.client.transport.startTLS(factory)
        pair.client.transport.write(b"still plain")
        assert await pair.server.receives(11) == b"still plain"


async def test_starting_on_a_lost_connection_does_nothing(plain, factories):
    async with connected(plain) as pair:
        transport = pair.client.transport
        transport.loseConnection()
        await pair.client.loses()
        transport.startTLS(factories.client)
        await turns()
        assert pair.client.events == ["made", "lost"]


async def test_handshake_listeners_hear_of_it(plain, factories):
    async with connected(plain, Listener, Listener) as pair:
        assert pair.client.events == ["made"]
        factories.start(pair)
        await is_tls(pair)
        assert pair.client.events == pair.server.events == ["made", "handshake"]


async def test_an_exception_of_a_handshake_listener_ends_the_connection(
    plain, factories, logged_errors
):
    @implementer(IHandshakeListener)
    class Failing(Recorder):
        def handshakeCompleted(self):
            raise ZeroDivisionError("cannot take this")

    async with connected(plain, server=Failing) as pair:
        factories.start(pair)
        assert isinstance(await pair.server.loses(), ZeroDivisionError)
        await pair.client.loses()
    assert [event["log_failure"].type for event in logged_errors] == [ZeroDivisionError]
    logged_errors.clear()


async def test_factories_negotiate_protocols(factories):
    servers, clients = NegotiatingProtocols(b"b", b"a"), NegotiatingProtocols(b"a", b"b")
    async with listening(SocketOptions(), servers) as port:
        client = await client_endpoint(reactor, LOOPBACK, port.getHost().port).connect(clients)
        server = await servers.connected()
        server.transport.startTLS(factories.server)
        client.transport.startTLS(factories.client)
        await is_tls([client, server])
        assert client.transport.negotiatedProtocol == b"b"
        assert server.transport.negotiatedProtocol == b"b"
        await clients.all_lost()


async def test_halves_are_closed_over_the_new_tls(plain, factories):
    async with connected(plain, HalfCloser, HalfCloser) as pair:
        factories.start(pair)
        pair.client.transport.write(b"question")
        pair.client.transport.loseWriteConnection()
        await until(lambda: "read lost" in pair.server.events)
        pair.server.transport.write(b"answer")
        pair.server.transport.loseConnection()
        assert isinstance(await pair.client.loses(), ConnectionDone)
        assert pair.server.received == b"question"
        assert pair.client.received == b"answer"


async def test_a_paused_transport_shakes_hands_and_stays_paused(plain, factories):
    async with connected(plain) as pair:
        pair.server.transport.pauseProducing()
        factories.start(pair)
        pair.client.transport.write(b"for later")
        await is_tls(pair)
        await turns(10)
        assert pair.server.received == b""
        pair.server.transport.resumeProducing()
        assert await pair.server.receives(9) == b"for later"


async def test_a_pull_producer_goes_on_over_the_new_tls(plain, factories):
    @implementer(IPullProducer)
    class Counting:
        count = 0

        def __init__(self, transport):
            self.transport = transport

        def resumeProducing(self):
            self.count += 1
            self.transport.write(b"%d," % self.count)
            if self.count == 50:
                self.transport.unregisterProducer()

        def stopProducing(self):
            pass

    expected = b"".join(b"%d," % number for number in range(1, 51))

    class Client(Recorder):
        def dataReceived(self, data):
            super().dataReceived(data)
            if not ISSLTransport.providedBy(self.transport):
                self.transport.startTLS(factories.client)

    async with connected(plain, Client) as pair:
        await turns()
        pair.server.transport.registerProducer(Counting(pair.server.transport), False)
        pair.server.transport.startTLS(factories.server)
        assert await pair.client.receives(len(expected)) == expected


# What goes wrong


async def test_a_server_that_is_not_verified_is_not_talked_to(plain, factories, other_authority):
    async with connected(plain) as pair:
        strict = client_context_factory(other_authority.client_options(), LOOPBACK)
        pair.server.transport.startTLS(factories.server)
        pair.client.transport.startTLS(strict)
        pair.client.transport.write(b"a password")
        assert isinstance(await pair.client.loses(), CertificateVerificationError)
        reason = await pair.server.loses()
        assert isinstance(reason, TLSHandshakeError)
        assert reason.alert == "unknown ca"
        assert pair.server.received == b""


async def test_a_peer_that_speaks_no_tls_fails_the_handshake(plain, factories):
    async with connected(plain) as pair:
        pair.client.transport.startTLS(factories.client)
        pair.server.transport.write(b"250 what do you mean?\r\n")
        assert isinstance(await pair.client.loses(), TLSHandshakeError)
        assert pair.client.events == ["made", "lost"]
        await pair.server.loses()


async def test_a_mute_peer_has_handshake_timeout(authority, plain, clocked):
    factories = Factories(authority, {"handshake_timeout": timedelta(seconds=7)})
    async with connected(plain, on=clocked) as pair:
        pair.client.transport.startTLS(factories.client)
        await until(clocked.getDelayedCalls)
        clocked.advance(6.9)
        await turns()
        assert pair.client.events == ["made"]
        clocked.advance(0.2)
        reason = await pair.client.loses()
        assert isinstance(reason, SocketConnectionTimeoutError)
        assert reason.stage == "handshake"


@pytest.mark.parametrize("side", ["client", "server"])
async def test_the_limit_counts_from_the_call_though_the_queue_never_goes(authority, plain, side):
    factories = Factories(authority, {"handshake_timeout": timedelta(milliseconds=20)})
    async with connected(plain) as pair:
        ours, theirs = (pair.client, pair.server)[:: 1 if side == "client" else -1]
        theirs.transport.pauseProducing()
        ours.transport.write(bytes(8_000_000))
        ours.transport.startTLS(getattr(factories, side))
        reason = await ours.loses()
        assert isinstance(reason, SocketConnectionTimeoutError)
        assert reason.stage == "handshake"


async def test_the_queue_and_the_handshake_share_the_limit(authority, plain, clocked):
    factories = Factories(authority, {"handshake_timeout": timedelta(seconds=7)})
    async with connected(plain, on=clocked) as pair:
        pair.server.transport.pauseProducing()
        pair.client.transport.write(bytes(8_000_000))
        pair.client.transport.startTLS(factories.client)
        clocked.advance(6)
        pair.server.transport.resumeProducing()
        await until(lambda: len(pair.server.received) > 8_000_000)
        clocked.advance(1.1)
        assert isinstance(await pair.client.loses(), SocketConnectionTimeoutError)


async def test_abort_during_the_handshake_leaves_nothing_behind(plain, factories, clocked):
    async with connected(plain, on=clocked) as pair:
        pair.client.transport.startTLS(factories.client)
        await until(clocked.getDelayedCalls)
        pair.client.transport.abortConnection()
        assert isinstance(await pair.client.loses(), ConnectionAborted)
        await pair.server.loses()
        assert clocked.getDelayedCalls() == []


async def test_lose_connection_during_the_handshake_waits_for_it(plain, factories):
    async with connected(plain) as pair:
        pair.server.transport.pauseProducing()
        pair.client.transport.startTLS(factories.client)
        pair.client.transport.write(b"last words")
        pair.client.transport.loseConnection()
        await turns(10)
        assert pair.client.events == ["made"]
        pair.server.transport.startTLS(factories.server)
        pair.server.transport.resumeProducing()
        assert isinstance(await pair.server.loses(), ConnectionDone)
        assert pair.server.received == b"last words"
        assert isinstance(await pair.client.loses(), ConnectionDone)


async def test_a_peer_that_leaves_during_the_handshake_is_a_loss(plain, factories):
    async with connected(plain) as pair:
        pair.client.transport.startTLS(factories.client)
        await pair.server.receives(1)
        pair.server.transport.loseConnection()
        assert isinstance(await pair.client.loses(), OSError)
        assert pair.client.events == ["made", "lost"]


async def test_a_client_factory_stops_after_a_failed_handshake(plain, factories):
    servers, clients = Protocols(), Protocols()
    async with listening(plain.server(), servers) as port:
        client = await client_endpoint(reactor, LOOPBACK, port.getHost().port).connect(clients)
        client.transport.startTLS(factories.client)
        (await servers.connected()).transport.loseConnection()
        await client.loses()
        await until(lambda: clients.life == ["start", "stop"])
