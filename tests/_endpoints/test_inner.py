"""TLS over other endpoints: what a protocol sees, on both sides."""

from __future__ import annotations

from datetime import timedelta

import pytest
from twisted.internet import reactor
from twisted.internet.error import ConnectionAborted, ConnectionDone, NoProtocol
from twisted.internet.interfaces import (
    INegotiated,
    IPullProducer,
    IPushProducer,
    ISSLTransport,
    ITCPTransport,
)
from twisted.protocols.tls import TLSMemoryBIOProtocol
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
    serving,
)
from tests.support.ways_in import KINDS, Inner, over
from twisted_netsock import (
    SocketReadTimeoutError,
    SocketWriteTimeoutError,
    client_endpoint,
    server_endpoint,
)
from twisted_netsock._endpoints.transport import TLSTransport
from twisted_netsock._tls.descriptor import TLSDescriptor
from twisted_netsock._tls.in_memory import TLSInMemory


@pytest.fixture
def tls(authority):
    return Kind(authority, tls=True)


@pytest.fixture(params=KINDS)
def inner(request, authority, tmp_path):
    return Inner(request.param, authority, tmp_path)


@pytest.fixture(params=["tcp", "netsock"])
def either(request, authority, tmp_path):
    """An inner endpoint on whose connections TLS runs on memory, and one of ours."""
    return Inner(request.param, authority, tmp_path)


async def test_bytes_go_both_ways_and_the_end_is_in_order(inner, tls):
    async with over(inner, tls) as pair:
        pair.client.transport.write(BULK)
        with pytest.raises(TypeError, match="data must be bytes, not str"):
            pair.server.transport.writeSequence([b"not this", "text"])
        pair.server.transport.writeSequence([b"an", b"swer"])
        assert await pair.server.receives(len(BULK)) == BULK
        assert await pair.client.receives(6) == b"answer"
        pair.client.transport.loseConnection()
        assert isinstance(await pair.server.loses(), ConnectionDone)
        assert isinstance(await pair.client.loses(), ConnectionDone)
        assert pair.client.events == ["made", "data", "lost"]


@pytest.mark.parametrize("end", ["loseConnection", "abortConnection"])
async def test_a_connection_is_lost_when_the_inner_one_is(end, authority, tmp_path, tls):
    class Looking(Recorder):
        def connectionLost(self, reason):
            self.inner = self.transport.tls.inner.lost
            super().connectionLost(reason)

    async with over(Inner("tcp", authority, tmp_path), tls, Looking, Looking) as pair:
        getattr(pair.client.transport, end)()
        for protocol in pair:
            await protocol.loses()
            assert protocol.inner is not None


async def test_what_is_written_before_the_end_arrives(inner, tls):
    async with over(inner, tls) as pair:
        pair.server.transport.write(BULK)
        pair.server.transport.loseConnection()
        assert isinstance(await pair.client.loses(), ConnectionDone)
        assert pair.client.received == BULK


async def test_tls_stays_on_the_descriptor_where_there_is_one_of_ours(inner, tls):
    async with over(inner, tls) as pair:
        for protocol in pair:
            ours = inner.name in {"netsock", "netsock-unix"}
            assert type(protocol.transport) is TLSTransport
            assert isinstance(protocol.transport, TLSMemoryBIOProtocol)
            assert type(protocol.transport.tls) is (TLSDescriptor if ours else TLSInMemory)


async def test_the_transport_provides_what_one_of_tls_does(inner, tls):
    async with over(
        inner, tls, client_fields={"alpn": "h2"}, server_fields={"alpn": "h2"}
    ) as pair:
        for protocol in pair:
            transport = protocol.transport
            for interface in (ISSLTransport, INegotiated, ITCPTransport, IPushProducer):
                assert verifyObject(interface, transport)
            assert transport.negotiatedProtocol == b"h2"
            assert transport.tls.tls_version == "TLSv1.3"
        found = pair.client.transport.getPeerCertificate().to_cryptography()
        assert found.subject.rfc4514_string() == "CN=localhost"
        assert pair.server.transport.getPeerCertificate() is None
        assert pair.client.transport.logPrefix() == "Recorder,client"
        assert pair.server.transport.logPrefix().startswith("Recorder,")
        assert "connected" in repr(pair.client.transport)


async def test_the_addresses_are_those_of_the_inner_connection(inner, tls):
    async with over(inner, tls) as pair:
        client, server = pair.client.transport, pair.server.transport
        if inner.name == "haproxy":
            assert (server.getPeer().host, server.getPeer().port) == ("192.0.2.7", 4711)
            assert (server.getHost().host, server.getHost().port) == ("192.0.2.8", 443)
            assert pair.server.factory.addresses == [server.getPeer()]
        elif "unix" not in inner.name:
            assert client.getPeer() == server.getHost()
            assert client.getHost() == server.getPeer()


async def test_tcp_options_are_those_of_the_inner_connection(inner, tls):
    async with over(inner, tls) as pair:
        transport = pair.client.transport
        for enabled in (True, False):
            transport.setTcpNoDelay(enabled)
            transport.setTcpKeepAlive(enabled)
            expected = enabled and "unix" not in inner.name
            assert transport.getTcpNoDelay() == transport.getTcpKeepAlive() == expected
        transport.abortConnection()
        await pair.client.loses()
        transport.setTcpNoDelay(True)
        assert not transport.getTcpNoDelay()
        assert transport.fileno() == -1


async def test_the_factory_names_protocols(either, authority):
    servers, clients = NegotiatingProtocols(b"two", b"one"), NegotiatingProtocols(b"one", b"two")
    listens = server_endpoint(
        reactor, None, None, authority.server_options(), endpoint=either.server()
    )
    async with serving(listens, servers) as port:
        connects = client_endpoint(
            reactor, LOOPBACK, None, authority.client_options(), endpoint=either.client(port)
        )
        protocol = await connects.connect(clients)
        assert protocol.transport.negotiatedProtocol == b"two"
        await clients.all_lost()


async def test_handshake_listeners_hear_of_it_after_connection_made(either, tls):
    async with over(either, tls, Listener, Listener) as pair:
        for protocol in pair:
            assert protocol.events == ["made", "handshake"]


async def test_halves_are_closed_one_by_one(either, tls):
    async with over(either, tls, HalfCloser, HalfCloser) as pair:
        pair.client.transport.write(b"question")
        pair.client.transport.loseWriteConnection()
        await until(lambda: "read lost" in pair.server.events)
        assert pair.server.received == b"question"
        await turns(10)
        pair.server.transport.write(BULK)
        assert await pair.client.receives(len(BULK)) == BULK
        pair.server.transport.loseWriteConnection()
        for protocol in pair:
            assert isinstance(await protocol.loses(), ConnectionDone)
        assert pair.client.events == ["made", "write lost", "data", "read lost", "lost"]


async def test_a_protocol_that_knows_no_halves_loses_the_connection(either, tls):
    async with over(either, tls, HalfCloser) as pair:
        pair.client.transport.loseWriteConnection()
        for protocol in pair:
            assert isinstance(await protocol.loses(), ConnectionDone)


async def test_a_paused_transport_holds_the_peer_back(inner, tls):
    async with over(inner, tls) as pair:
        pair.server.transport.pauseProducing()
        producer = Pushing(pair.client.transport)
        await until(lambda: producer.paused)
        assert producer.written < 30_000_000
        await turns(10)
        assert pair.server.received == b""
        producer.limit = producer.written
        pair.server.transport.resumeProducing()
        await pair.server.receives(producer.written)
        assert pair.server.received == b"x" * producer.written
        assert not producer.paused
        pair.client.transport.unregisterProducer()


@implementer(IPushProducer)
class Pushing:
    """Writes as long as it may."""

    def __init__(self, transport):
        self.transport = transport
        self.written = 0
        self.limit = 50_000_000
        self.paused = self.stopped = False
        transport.registerProducer(self, True)
        self.resumeProducing()

    def resumeProducing(self):
        self.paused = False
        while not self.paused and self.written < self.limit:
            self.written += 50_000
            self.transport.write(b"x" * 50_000)

    def pauseProducing(self):
        self.paused = True

    def stopProducing(self):
        self.stopped = True


@implementer(IPullProducer)
class Pulled:
    """Writes when it is asked, ten times."""

    def __init__(self, transport):
        self.transport = transport
        self.left = 10
        transport.registerProducer(self, False)

    def resumeProducing(self):
        if self.left:
            self.left -= 1
            self.transport.write(b"x" * 100_000)
        else:
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def stopProducing(self):
        self.left = 0


async def test_a_pull_producer_is_asked_until_it_ends(either, tls):
    async with over(either, tls) as pair:
        Pulled(pair.client.transport)
        assert isinstance(await pair.server.loses(), ConnectionDone)
        assert pair.server.received == b"x" * 1_000_000


async def test_a_producer_is_stopped_when_the_connection_is_lost(either, tls):
    async with over(either, tls) as pair:
        producer = Pushing(pair.client.transport)
        pair.server.transport.pauseProducing()
        await until(lambda: producer.paused)
        pair.server.transport.abortConnection()
        await pair.client.loses()
        assert producer.stopped


async def test_abort_tells_at_once_and_loses_what_is_queued(inner, tls):
    async with over(inner, tls) as pair:
        pair.server.transport.pauseProducing()
        pair.client.transport.write(BULK)
        pair.client.transport.abortConnection()
        pair.client.transport.abortConnection()
        assert pair.client.reason is None
        assert isinstance(await pair.client.loses(), ConnectionAborted)
        assert pair.client.events.count("lost") == 1
        pair.server.transport.resumeProducing()
        assert not isinstance(await pair.server.loses(), ConnectionDone)


async def test_abort_during_the_tls_shutdown_ends_it(either, tls):
    async with over(either, tls) as pair:
        pair.server.transport.pauseProducing()
        pair.client.transport.loseConnection()
        await turns(3)
        pair.client.transport.abortConnection()
        assert isinstance(await pair.client.loses(), ConnectionAborted)


async def test_a_connection_made_method_may_end_it(either, tls):
    class Refusing(Recorder):
        def connectionMade(self):
            super().connectionMade()
            self.transport.loseConnection()

    async with over(either, tls, server=Refusing) as pair:
        assert isinstance(await pair.client.loses(), ConnectionDone)


@pytest.mark.parametrize("method", ["connectionMade", "dataReceived"])
async def test_an_exception_of_a_protocol_costs_its_connection(method, either, tls, logged_errors):
    def raises(self, *_):
        raise RuntimeError("the protocol's own")

    class Raising(Recorder):
        pass

    setattr(Raising, method, raises)
    async with over(either, tls, server=Raising) as pair:
        pair.client.transport.write(b"x")
        await pair.client.loses()
    assert "the protocol's own" in str(logged_errors.pop().get("log_failure"))
    logged_errors.clear()


async def test_read_timeout_holds(either, tls):
    fields = {"read_timeout": timedelta(milliseconds=50)}
    async with over(either, tls, server_fields=fields) as pair:
        assert isinstance(await pair.server.loses(), SocketReadTimeoutError)
        await pair.client.loses()


async def test_write_timeout_holds(either, tls):
    fields = {"write_timeout": timedelta(milliseconds=50)}
    async with over(either, tls, client_fields=fields) as pair:
        pair.server.transport.pauseProducing()
        pair.client.transport.write(BULK)
        assert isinstance(await pair.client.loses(), SocketWriteTimeoutError)


async def test_close_timeout_ends_a_tls_shutdown_that_is_not_answered(either, tls):
    fields = {"close_timeout": timedelta(milliseconds=50)}
    async with over(either, tls, client_fields=fields) as pair:
        pair.server.transport.pauseProducing()
        pair.client.transport.loseConnection()
        await pair.client.loses()


async def test_a_factory_starts_and_stops_once(either, authority):
    servers, clients = Protocols(), Protocols()
    listens = server_endpoint(
        reactor, None, None, authority.server_options(), endpoint=either.server()
    )
    async with serving(listens, servers) as port:
        connects = client_endpoint(
            reactor, LOOPBACK, None, authority.client_options(), endpoint=either.client(port)
        )
        for _ in range(2):
            protocol = await connects.connect(clients)
            protocol.transport.loseConnection()
            await protocol.loses()
        assert servers.life == ["start"]
    assert servers.life == ["start", "stop"]
    assert clients.life == ["start", "stop"] * 2


async def test_a_factory_that_builds_none_drops_the_connection(either, authority):
    nothing = Protocols(lambda: None)
    servers = Protocols()
    listens = server_endpoint(
        reactor, None, None, authority.server_options(), endpoint=either.server()
    )
    async with serving(listens, servers) as port:
        connects = client_endpoint(
            reactor, LOOPBACK, None, authority.client_options(), endpoint=either.client(port)
        )
        with pytest.raises(NoProtocol):
            await connects.connect(nothing)
        await (await servers.connected()).loses()
        assert nothing.life == ["start", "stop"]


async def test_a_server_that_builds_none_sends_close_notify(either, authority):
    clients = Protocols()
    listens = server_endpoint(
        reactor, None, None, authority.server_options(), endpoint=either.server()
    )
    async with serving(listens, Protocols(lambda: None)) as port:
        connects = client_endpoint(
            reactor, LOOPBACK, None, authority.client_options(), endpoint=either.client(port)
        )
        protocol = await connects.connect(clients)
        assert isinstance(await protocol.loses(), ConnectionDone)


async def test_the_text_form_tells_of_the_inner_endpoint(authority):
    inner = client_endpoint(reactor, LOOPBACK, 1)
    shown = repr(
        client_endpoint(reactor, "example.com", None, authority.client_options(), endpoint=inner)
    )
    assert "'example.com' over <ClientEndpoint '127.0.0.1' 1" in shown
    inner = server_endpoint(reactor, LOOPBACK, 0)
    shown = repr(server_endpoint(reactor, None, None, authority.server_options(), endpoint=inner))
    assert "<ServerEndpoint over <ServerEndpoint '127.0.0.1'" in shown
