"""Transports as consumers: push and pull producers, and what becomes of them at the end."""

from __future__ import annotations

import pytest
from twisted.internet import reactor
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IPullProducer, IPushProducer
from twisted.internet.protocol import Protocol
from zope.interface import implementer

from tests.support.clocks import turns, until
from tests.support.loopback import LOOPBACK
from tests.support.protocols import BULK, Kind, Protocols, Recorder, connected, listening
from twisted_netsock import client_context_factory, client_endpoint

MOST_CALLS = 10_000


@implementer(IPushProducer)
class Push:
    """Notes its calls, and produces when asked."""

    def __init__(self, consumer):
        self.consumer = consumer
        self.calls = []
        consumer.registerProducer(self, True)

    def pauseProducing(self):
        self.calls.append("pause")

    def resumeProducing(self):
        self.calls.append("resume")

    def stopProducing(self):
        self.calls.append("stop")

    def fill(self):
        """Write until it is paused, and return what was written."""
        written = bytearray()
        self.calls.clear()
        for number in range(MOST_CALLS):
            if self.calls:
                break
            piece = b"%07d," % number * 512
            self.consumer.write(piece)
            written += piece
        assert self.calls == ["pause"]
        return bytes(written)


@implementer(IPullProducer)
class Pull:
    """Produces *pieces*, one a call, and then unregisters."""

    def __init__(self, consumer, pieces):
        self.consumer = consumer
        self.pieces = list(pieces)
        self.stopped = 0
        consumer.registerProducer(self, False)

    def resumeProducing(self):
        if self.pieces:
            self.consumer.write(self.pieces.pop(0))
        else:
            self.consumer.unregisterProducer()

    def stopProducing(self):
        self.stopped += 1


# Push


async def test_a_push_producer_is_paused_and_resumed(kind):
    async with connected(kind) as pair:
        pair.server.transport.pauseProducing()
        producer = Push(pair.client.transport)
        written = producer.fill()
        await turns(20)
        while producer.calls != ["pause"]:
            # On a busy machine the kernel takes more a moment later.
            written += producer.fill()
            await turns(20)
        pair.server.transport.resumeProducing()
        await until(lambda: producer.calls == ["pause", "resume"])
        assert await pair.server.receives(len(written)) == written
        again = producer.fill()
        assert await pair.server.receives(len(written + again)) == written + again
        await until(lambda: producer.calls == ["pause", "resume"])
        pair.client.transport.unregisterProducer()


async def test_a_push_producer_is_paused_above_64_kib_and_not_below(authority):
    """While a handshake is under way all is queued, whatever the kernel would take."""
    async with connected(Kind(authority, tls=False)) as pair:
        transport = pair.client.transport
        transport.startTLS(client_context_factory(authority.client_options(), LOOPBACK))
        producer = Push(transport)
        for _ in range(64):
            transport.write(b"x" * 1024)
        assert producer.calls == []
        transport.write(b"x")
        assert producer.calls == ["pause"]


async def test_a_push_producer_may_come_late(kind):
    """It is paused at its first write if the queue is full already."""
    async with connected(kind) as pair:
        pair.server.transport.pauseProducing()
        pair.client.transport.write(BULK)
        producer = Push(pair.client.transport)
        assert producer.calls == []
        pair.client.transport.write(b"x")
        assert producer.calls == ["pause"]
        pair.server.transport.resumeProducing()
        await until(lambda: producer.calls == ["pause", "resume"])


async def test_a_paused_producer_is_paused_once(kind):
    async with connected(kind) as pair:
        pair.server.transport.pauseProducing()
        producer = Push(pair.client.transport)
        producer.fill()
        for _ in range(5):
            pair.client.transport.write(b"x" * 65536)
        assert producer.calls == ["pause"]


async def test_lose_connection_waits_for_a_push_producer(kind):
    async with connected(kind) as pair:
        producer = Push(pair.client.transport)
        pair.client.transport.loseConnection()
        await turns(20)
        assert pair.client.events == pair.server.events == ["made"]
        pair.client.transport.write(b"last words")
        pair.client.transport.unregisterProducer()
        assert isinstance(await pair.client.loses(), ConnectionDone)
        assert isinstance(await pair.server.loses(), ConnectionDone)
        assert pair.server.received == b"last words"
        assert producer.calls == []


async def test_lose_connection_waits_for_a_paused_push_producer(kind):
    async with connected(kind) as pair:
        pair.server.transport.pauseProducing()
        producer = Push(pair.client.transport)
        written = producer.fill()
        pair.client.transport.loseConnection()
        pair.server.transport.resumeProducing()
        await until(lambda: producer.calls == ["pause", "resume"])
        pair.client.transport.write(b"last words")
        pair.client.transport.unregisterProducer()
        assert isinstance(await pair.server.loses(), ConnectionDone)
        assert pair.server.received == written + b"last words"
        await pair.client.loses()


async def test_lose_write_connection_waits_for_a_push_producer(kind):
    async with connected(kind) as pair:
        Push(pair.client.transport)
        pair.client.transport.loseWriteConnection()
        pair.client.transport.write(b"last words")
        await turns(20)
        assert "lost" not in pair.server.events
        pair.client.transport.unregisterProducer()
        assert isinstance(await pair.server.loses(), ConnectionDone)
        assert pair.server.received == b"last words"
        await pair.client.loses()


async def test_a_transport_produces_for_another(kind):
    """A relay of two connections, each the other's producer, holds up who is too fast."""

    class Side(Protocol):
        other = None

        def connectionMade(self):
            self.transport.pauseProducing()

        def dataReceived(self, data):
            self.other.transport.write(data)

        def connectionLost(self, reason=None):
            self.other.transport.unregisterProducer()
            self.other.transport.loseConnection()

    clients, origins, fronts, backs = Protocols(), Protocols(), Protocols(Side), Protocols(Side)
    async with (
        listening(kind.server(), origins) as origin,
        listening(kind.server(), fronts) as port,
    ):
        where = client_endpoint(reactor, LOOPBACK, port.getHost().port, kind.client())
        client = await where.connect(clients)
        onward = client_endpoint(reactor, LOOPBACK, origin.getHost().port, kind.client())
        front, back = await fronts.connected(), await onward.connect(backs)
        front.other, back.other = back, front
        for one, other in ((front, back), (back, front)):
            one.transport.registerProducer(other.transport, True)
            other.transport.resumeProducing()
        client.transport.write(BULK)
        server = await origins.connected()
        assert await server.receives(len(BULK)) == BULK
        server.transport.write(BULK)
        assert await client.receives(len(BULK)) == BULK
        client.transport.loseConnection()
        assert isinstance(await server.loses(), ConnectionDone)
        await clients.all_lost()
        await backs.all_lost()


# Pull


@pytest.mark.parametrize("size", [1, 1000, 300_000])
async def test_a_pull_producer_is_asked_until_it_unregisters(kind, size):
    pieces = [bytes([number]) * size for number in range(20)]
    async with connected(kind) as pair:
        producer = Pull(pair.client.transport, pieces)
        assert len(producer.pieces) == 19
        assert await pair.server.receives(20 * size) == b"".join(pieces)
        await until(lambda: pair.client.transport.producer is None)
        assert producer.stopped == 0


async def test_a_pull_producer_is_asked_for_no_more_than_the_peer_takes(kind):
    async with connected(kind) as pair:
        pair.server.transport.pauseProducing()
        producer = Pull(pair.client.transport, [b"x" * 1_000_000] * 50)
        await turns(50)
        left = len(producer.pieces)
        assert left > 25
        await turns(50)
        assert len(producer.pieces) == left
        pair.server.transport.resumeProducing()
        assert len(await pair.server.receives(50_000_000)) == 50_000_000


async def test_lose_connection_waits_for_a_pull_producer(kind):
    pieces = [b"%d," % number for number in range(100)]
    async with connected(kind) as pair:
        Pull(pair.client.transport, pieces)
        pair.client.transport.loseConnection()
        assert isinstance(await pair.client.loses(), ConnectionDone)
        assert isinstance(await pair.server.loses(), ConnectionDone)
        assert pair.server.received == b"".join(pieces)


# The end of a producer


@pytest.mark.parametrize("streaming", [True, False], ids=["push", "pull"])
async def test_a_second_producer_is_refused(kind, streaming):
    async with connected(kind) as pair:
        Push(pair.client.transport)
        with pytest.raises(RuntimeError, match="never unregistered"):
            pair.client.transport.registerProducer(object(), streaming)


@pytest.mark.parametrize("make", [Push, lambda t: Pull(t, [])], ids=["push", "pull"])
async def test_a_producer_of_a_lost_connection_is_stopped_at_once(kind, make):
    async with connected(kind) as pair:
        pair.client.transport.loseConnection()
        await pair.client.loses()
        producer = make(pair.client.transport)
        assert getattr(producer, "calls", None) == ["stop"] or producer.stopped == 1
        pair.client.transport.unregisterProducer()


async def test_a_producer_is_stopped_when_the_connection_is_lost(kind):
    async with connected(kind) as pair:
        producer = Push(pair.client.transport)
        pair.server.transport.abortConnection()
        await pair.client.loses()
        assert producer.calls == ["stop"]


async def test_a_producer_that_was_let_go_is_not_called(kind):
    async with connected(kind) as pair:
        producer = Push(pair.client.transport)
        pair.client.transport.unregisterProducer()
        pair.client.transport.write(BULK)
        await pair.server.receives(len(BULK))
        pair.client.transport.loseConnection()
        await pair.client.loses()
        assert producer.calls == []


async def test_an_exception_of_a_producer_is_logged_and_ends_the_connection(kind, logged_errors):
    class Failing(Push):
        def resumeProducing(self):
            raise ZeroDivisionError("nothing left")

    async with connected(kind) as pair:
        pair.server.transport.pauseProducing()
        producer = Failing(pair.client.transport)
        producer.fill()
        pair.server.transport.resumeProducing()
        assert isinstance(await pair.client.loses(), ZeroDivisionError)
        await pair.server.loses()
    assert [event["log_failure"].type for event in logged_errors] == [ZeroDivisionError]
    logged_errors.clear()


async def test_an_exception_while_stopping_hides_no_loss(kind, logged_errors):
    class Failing(Push):
        def stopProducing(self):
            raise ZeroDivisionError("cannot stop")

    async with connected(kind) as pair:
        Failing(pair.client.transport)
        pair.client.transport.abortConnection()
        assert isinstance(await pair.client.loses(), ConnectionAborted)
    assert [event["log_failure"].type for event in logged_errors] == [ZeroDivisionError]
    logged_errors.clear()


async def test_a_protocol_may_be_its_own_producer(kind):
    """As Twisted's FileSender is used: registered in connectionMade, closed when done."""

    @implementer(IPullProducer)
    class Sender(Recorder):
        left = 10

        def connectionMade(self):
            super().connectionMade()
            self.transport.registerProducer(self, False)

        def resumeProducing(self):
            self.left -= 1
            self.transport.write(b"%d" % self.left)
            if not self.left:
                self.transport.unregisterProducer()
                self.transport.loseConnection()

        def stopProducing(self):
            raise AssertionError("it has unregistered")

    async with connected(kind, Sender) as pair:
        assert isinstance(await pair.server.loses(), ConnectionDone)
        assert pair.server.received == b"9876543210"
        assert isinstance(await pair.client.loses(), ConnectionDone)


async def test_consuming_can_be_stopped(kind):
    async with connected(kind) as pair:
        pair.client.transport.write(b"the last")
        pair.client.transport.stopConsuming()
        assert await pair.server.receives(8) == b"the last"
        await pair.client.loses()
