"""startTLS with contextFactory objects that are not of this package."""

from __future__ import annotations

from datetime import timedelta

import pytest
from OpenSSL import SSL, crypto
from twisted.internet import ssl
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHandshakeListener, INegotiated, ISSLTransport
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer
from zope.interface.verify import verifyObject

from tests.support.clocks import turns, until
from tests.support.loopback import LOOPBACK
from tests.support.protocols import (
    BULK,
    Kind,
    Protocols,
    Recorder,
    connected,
    listening,
    raw_client,
)
from twisted_netsock import (
    SocketConnectionTimeoutError,
    SocketReadTimeoutError,
    client_context_factory,
    server_context_factory,
)

pytestmark = pytest.mark.filterwarnings(
    # Twisted's own objects use what pyOpenSSL will do without.
    "ignore:Passing pyOpenSSL:DeprecationWarning",
    "ignore:X509:DeprecationWarning",
)


class Certified:
    """The contextFactory objects of both sides, of one kind."""

    def __init__(self, kind, authority, name=LOOPBACK):
        issued = authority.issue("localhost", LOOPBACK)
        if kind == "ours":
            self.client = client_context_factory(authority.client_options(), name)
            self.server = server_context_factory(authority.server_options())
        elif kind == "twisted":
            root = ssl.trustRootFromCertificates(
                [ssl.Certificate.loadPEM(authority.certificate_pem)]
            )
            self.client = ssl.optionsForClientTLS(name, trustRoot=root)
            self.server = ssl.PrivateCertificate.loadPEM(issued.pem).options()
        else:
            self.client = ssl.ClientContextFactory()
            self.server = OldStyle(issued)


class OldStyle(ssl.ContextFactory):
    """What a contextFactory was before there were interfaces for its connections."""

    def __init__(self, issued):
        self.issued = issued

    def getContext(self):  # noqa: N802
        context = SSL.Context(SSL.TLS_METHOD)
        context.use_certificate(self.issued.certificate)
        key = crypto.load_privatekey(crypto.FILETYPE_PEM, self.issued.pem)
        context.use_privatekey(key.to_cryptography_key())
        return context


@pytest.fixture
def plain():
    return Kind(None, tls=False)


@pytest.fixture(params=["twisted", "old"])
def foreign(request, authority):
    return Certified(request.param, authority)


@pytest.fixture(params=["foreign client", "foreign server", "both foreign"])
def mixed(request, authority):
    """Objects of Twisted's on one side or both, of ours on the other."""
    theirs, ours = Certified("twisted", authority), Certified("ours", authority)
    if request.param == "foreign client":
        theirs.server = ours.server
    elif request.param == "foreign server":
        theirs.client = ours.client
    return theirs


def start(pair, factories):
    pair.server.transport.startTLS(factories.server)
    pair.client.transport.startTLS(factories.client)


async def test_bytes_go_both_ways_after_a_plain_dialogue(plain, mixed):
    async with connected(plain) as pair:
        pair.client.transport.write(b"plain question")
        assert await pair.server.receives(14) == b"plain question"
        pair.server.transport.write(b"plain answer")
        assert await pair.client.receives(12) == b"plain answer"
        start(pair, mixed)
        pair.client.transport.write(BULK)
        with pytest.raises(TypeError, match="data must be bytes, not str"):
            pair.server.transport.writeSequence([b"not this", "text"])
        pair.server.transport.writeSequence([b"a", b"b"])
        assert await pair.client.receives(14) == b"plain answerab"
        pair.client.transport.loseConnection()
        assert isinstance(await pair.server.loses(), ConnectionDone)
        assert isinstance(await pair.client.loses(), ConnectionDone)
        assert pair.server.received == b"plain question" + BULK


async def test_old_objects_serve(plain, foreign):
    async with connected(plain) as pair:
        start(pair, foreign)
        pair.client.transport.write(b"question")
        assert await pair.server.receives(8) == b"question"


async def test_what_has_get_context_and_no_interface_serves_with_twisted_s_warning(
    plain, authority
):
    class Bare:
        def getContext(self):  # noqa: N802
            return SSL.Context(SSL.TLS_METHOD)

    async with connected(plain) as pair:
        pair.server.transport.startTLS(Certified("twisted", authority).server)
        with pytest.warns(Warning, match="does not explicitly provide"):
            pair.client.transport.startTLS(Bare())
        pair.client.transport.write(b"question")
        assert await pair.server.receives(8) == b"question"


async def test_another_protocol_may_take_the_place_of_the_first(plain, authority):
    async with connected(plain) as pair:
        start(pair, Certified("twisted", authority))
        transport, other = pair.server.transport, Recorder()
        assert transport.wrappedProtocol is pair.server
        transport.wrappedProtocol = other
        other.makeConnection(transport)
        pair.client.transport.write(b"question")
        assert await other.receives(8) == b"question"
        transport.wrappedProtocol = pair.server


async def test_either_side_may_be_tls_s_client(plain, authority):
    factories = Certified("twisted", authority)
    async with connected(plain) as pair:
        pair.client.transport.startTLS(factories.server, normal=False)
        pair.server.transport.startTLS(factories.client, normal=False)
        pair.client.transport.write(b"question")
        assert await pair.server.receives(8) == b"question"
        assert pair.client.transport.getPeerCertificate() is None
        assert pair.server.transport.getPeerCertificate() is not None


async def test_the_transport_provides_what_one_of_tls_does_from_then_on(plain, authority):
    factories = Certified("twisted", authority)
    async with connected(plain) as pair:
        for protocol in pair:
            assert not ISSLTransport.providedBy(protocol.transport)
            assert not INegotiated.providedBy(protocol.transport)
        start(pair, factories)
        for protocol in pair:
            assert verifyObject(ISSLTransport, protocol.transport)
            assert isinstance(protocol.transport, TLSMemoryBIOProtocol)
            assert verifyObject(INegotiated, protocol.transport)
        pair.client.transport.write(b"x")
        await pair.server.receives(1)
        transport = pair.client.transport
        found = transport.peer_certificate
        assert found.subject.rfc4514_string() == "CN=localhost"
        assert transport.getPeerCertificate().to_cryptography() == found
        assert transport.getHandle().get_protocol_version_name() == "TLSv1.3"
        assert transport.negotiatedProtocol is None
        transport.abortConnection()
        await pair.client.loses()
        assert transport.getPeerCertificate() is None


async def test_handshake_listeners_hear_of_it(plain, mixed):
    @implementer(IHandshakeListener)
    class Listening(Recorder):
        def handshakeCompleted(self):
            self.events.append("handshake")

    async with connected(plain, Listening, Listening) as pair:
        start(pair, mixed)
        for protocol in pair:
            await until(lambda protocol=protocol: "handshake" in protocol.events)


async def test_what_is_queued_in_plain_text_goes_first(plain, authority):
    factories = Certified("twisted", authority)
    async with connected(plain) as pair:
        pair.server.transport.pauseProducing()
        pair.client.transport.write(BULK)
        pair.client.transport.startTLS(factories.client)
        pair.client.transport.write(b"protected")
        await turns(10)

        def upgrade(data):
            pair.server.received += data
            if len(pair.server.received) >= len(BULK):
                # What follows in the same piece belongs to TLS: a client of this kind
                # waits for an answer before it starts.
                pair.server.transport.pauseProducing()

        pair.server.dataReceived = upgrade
        pair.server.transport.resumeProducing()
        await until(lambda: len(pair.server.received) > len(BULK))
        assert pair.server.received[: len(BULK)] == BULK
        assert pair.server.received[len(BULK)] == 0x16
        assert b"protected" not in pair.server.received


async def test_the_limit_counts_from_the_call_though_the_queue_never_goes(
    plain, authority, clocked
):
    factories = Certified("twisted", authority)
    async with connected(plain, on=clocked) as pair:
        pair.server.transport.pauseProducing()
        pair.client.transport.write(bytes(8_000_000))
        pair.client.transport.startTLS(factories.client)
        clocked.advance(29.9)
        await turns()
        assert pair.client.events == ["made"]
        clocked.advance(0.2)
        clocked.advance(0)
        assert isinstance(await pair.client.loses(), SocketConnectionTimeoutError)


async def test_plain_bytes_behind_starttls_are_never_delivered(plain, mixed):
    """What an attacker sends ahead of the handshake must not pass for protected."""
    servers = Protocols()
    async with listening(plain.server(), servers) as port:
        with raw_client(port) as sock:
            server = await servers.connected()
            sock.send(b"STARTTLS\r\n")
            await server.receives(10)
            server.transport.startTLS(mixed.server)
            sock.send(b"DELETE EVERYTHING\r\n")
            assert not isinstance(await server.loses(), ConnectionDone)
            assert server.received == b"STARTTLS\r\n"


async def test_plain_bytes_that_wait_in_the_kernel_are_never_delivered(plain, mixed):
    servers = Protocols()
    async with listening(plain.server(), servers) as port:
        with raw_client(port) as sock:
            server = await servers.connected()
            server.transport.pauseProducing()
            sock.send(b"DELETE EVERYTHING\r\n")
            await turns(5)
            server.transport.startTLS(mixed.server)
            server.transport.resumeProducing()
            assert not isinstance(await server.loses(), ConnectionDone)
            assert server.received == b""


@pytest.mark.parametrize("name", ["other.example"])
async def test_a_server_that_is_not_verified_is_not_talked_to(name, plain, authority):
    factories = Certified("twisted", authority, name)
    async with connected(plain) as pair:
        start(pair, factories)
        pair.client.transport.write(b"a password")
        reason = await pair.client.loses()
        assert "verif" in repr(reason).lower() or isinstance(reason, SSL.Error)
        await pair.server.loses()
        assert pair.server.received == b""


async def test_a_wrong_object_is_refused_before_anything_happens(plain, authority):
    factories = Certified("twisted", authority)
    async with connected(plain) as pair:
        transport = pair.client.transport
        with pytest.raises(TypeError, match="contextFactory must be"):
            transport.startTLS(object())
        with pytest.raises(ValueError, match="client's side"):
            transport.startTLS(server_context_factory(authority.server_options()))
        assert not ISSLTransport.providedBy(transport)
        start(pair, factories)
        with pytest.raises(ValueError, match="started already"):
            transport.startTLS(factories.client)
        transport.write(b"x")
        assert await pair.server.receives(1) == b"x"


async def test_an_object_that_fails_leaves_no_plain_connection(plain):
    class Failing(ssl.ContextFactory):
        def getContext(self):  # noqa: N802
            raise RuntimeError("the object's own")

    async with connected(plain) as pair:
        with pytest.raises(RuntimeError, match="the object's own"):
            pair.client.transport.startTLS(Failing())
        pair.client.transport.write(b"a password")
        assert isinstance(await pair.client.loses(), ConnectionAborted)
        await pair.server.loses()
        assert pair.server.received == b""


async def test_a_lost_connection_starts_nothing(plain, authority):
    factories = Certified("twisted", authority)
    async with connected(plain) as pair:
        transport = pair.client.transport
        transport.abortConnection()
        await pair.client.loses()
        transport.startTLS(factories.client)
        assert not ISSLTransport.providedBy(transport)


class Pushing:
    """Writes as long as it may."""

    def __init__(self, transport):
        self.transport = transport
        self.paused = self.stopped = False
        self.written = 0

    def resumeProducing(self):
        self.paused = False
        while not self.paused and self.written < 40_000_000:
            self.written += 50_000
            self.transport.write(b"x" * 50_000)

    def pauseProducing(self):
        self.paused = True

    def stopProducing(self):
        self.stopped = True


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_producer_is_paused_and_goes_on(when, plain, authority):
    factories = Certified("twisted", authority)
    async with connected(plain) as pair:
        transport = pair.client.transport
        producer = Pushing(transport)
        if when == "before":
            transport.registerProducer(producer, True)
        start(pair, factories)
        if when == "after":
            transport.registerProducer(producer, True)
        pair.server.transport.write(b"x")
        await pair.client.receives(1)
        pair.server.transport.pauseProducing()
        producer.resumeProducing()
        await until(lambda: producer.paused)
        assert producer.written < 40_000_000
        pair.server.transport.resumeProducing()
        await until(lambda: not producer.paused)
        await until(lambda: len(pair.server.received) == 40_000_000)
        transport.loseConnection()
        assert transport.connected
        transport.unregisterProducer()
        assert isinstance(await pair.client.loses(), ConnectionDone)


async def test_a_pull_producer_is_asked_until_it_ends(plain, authority):
    class Pulled(Pushing):
        def resumeProducing(self):
            self.written += 1
            if self.written <= 20:
                self.transport.write(b"x" * 50_000)
            else:
                self.transport.unregisterProducer()
                self.transport.loseConnection()

    factories = Certified("twisted", authority)
    async with connected(plain) as pair:
        start(pair, factories)
        pair.client.transport.registerProducer(Pulled(pair.client.transport), False)
        await pair.server.loses()
        assert pair.server.received == b"x" * 1_000_000


async def test_abort_is_reported_once(plain, authority):
    factories = Certified("twisted", authority)
    async with connected(plain) as pair:
        start(pair, factories)
        pair.client.transport.write(b"x")
        await pair.server.receives(1)
        pair.client.transport.abortConnection()
        pair.client.transport.abortConnection()
        pair.client.transport.write(b"too late")
        reason = await pair.client.loses()
        assert isinstance(reason, ConnectionAborted | ConnectionLost)
        assert pair.client.events.count("lost") == 1
        assert isinstance(await pair.server.loses(), ConnectionLost)


async def test_text_is_no_data(plain, authority):
    async with connected(plain) as pair:
        start(pair, Certified("twisted", authority))
        with pytest.raises(TypeError, match="data must be bytes"):
            pair.client.transport.write("text")


# Limits


@pytest.mark.parametrize(("side", "seconds"), [("client", 30), ("server", 10)])
async def test_a_mute_peer_is_given_up(side, seconds, plain, authority, clocked):
    factories = Certified("twisted", authority)
    async with connected(plain, on=clocked) as pair:
        protocol = getattr(pair, side)
        protocol.transport.startTLS(getattr(factories, side))
        await turns(5)
        clocked.advance(seconds - 1)
        await turns(5)
        assert protocol.reason is None
        clocked.advance(1)
        reason = await protocol.loses()
        assert isinstance(reason, SocketConnectionTimeoutError)
        assert reason.stage == "handshake"


async def test_a_tls_shutdown_that_is_not_answered_ends(plain, authority, clocked):
    factories = Certified("twisted", authority)
    async with connected(plain, on=clocked) as pair:
        start(pair, factories)
        pair.client.transport.write(b"x")
        await pair.server.receives(1)
        pair.server.transport.pauseProducing()
        pair.client.transport.loseConnection()
        await turns(5)
        assert pair.client.reason is None
        clocked.advance(5)
        await pair.client.loses()


async def test_read_timeout_holds(plain, authority):
    factories = Certified("twisted", authority)
    fields = {"read_timeout": timedelta(milliseconds=50)}
    async with connected(plain, client_fields=fields) as pair:
        start(pair, factories)
        assert isinstance(await pair.client.loses(), SocketReadTimeoutError)
