"""Any transport of Twisted's as a descriptor and a watch."""

from __future__ import annotations

import socket

import pytest
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableDescriptor, ISSLTransport
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import alsoProvides

from twisted_netsock import SocketClosedError, SocketConnectionLostError, SocketError
from twisted_netsock._io.adapter import TransportDescriptor
from twisted_netsock._io.drive import drive
from twisted_netsock._io.poller import WANT_READ, WANT_WRITE

LIMIT = 5


class Transport:
    """Notes what it is asked for; a full buffer, data and the end are the test's to report."""

    def __init__(self):
        self.asked = []
        self.written = b""
        self.on_write = None

    def registerProducer(self, producer, streaming):
        assert streaming
        self.producer = producer

    def unregisterProducer(self):
        self.producer = None

    def write(self, data):
        assert type(data) is bytes
        self.written += data
        if self.on_write is not None:
            self.on_write()

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda: self.asked.append(name)


class Owner:
    """Receives and sends as it is told, and notes the reports."""

    def __init__(self, on_receive=lambda: None, on_send=lambda: None):
        self.reports = []
        self._on_receive = on_receive
        self._on_send = on_send

    def on_receive_ready(self):
        self.reports.append("receive")
        self._on_receive()

    def on_send_ready(self):
        self.reports.append("send")
        self._on_send()


@pytest.fixture
def clock():
    clock = Clock()
    yield clock
    assert clock.getDelayedCalls() == []


@pytest.fixture
def transport():
    transport = Transport()
    alsoProvides(transport, IHalfCloseableDescriptor)
    return transport


@pytest.fixture
def descriptor(clock, transport):
    descriptor = TransportDescriptor(clock, LIMIT)
    descriptor.makeConnection(transport)
    return descriptor


def end(descriptor, error=None):
    descriptor.connectionLost(Failure(error or ConnectionDone()))


# Receiving


def test_receives_what_was_delivered(descriptor):
    assert descriptor.try_recv(10) is WANT_READ
    descriptor.dataReceived(b"hello")
    descriptor.dataReceived(b"world")
    assert descriptor.try_recv(2) == b"he"
    room = bytearray(10)
    assert descriptor.try_recv_into(memoryview(room)) == 8
    assert bytes(room[:8]) == b"lloworld"
    assert descriptor.try_recv_into(memoryview(room)) is WANT_READ


def test_pauses_a_transport_that_delivers_faster_than_it_is_read(descriptor, transport):
    descriptor.dataReceived(bytes(65536))
    assert transport.asked == []
    descriptor.dataReceived(b"more")
    assert transport.asked == ["pauseProducing"]
    descriptor.try_recv(65536)
    assert transport.asked == ["pauseProducing"]
    descriptor.try_recv(4)
    assert transport.asked == ["pauseProducing", "resumeProducing"]


def test_the_end_comes_behind_the_data(descriptor):
    descriptor.dataReceived(b"last")
    descriptor.readConnectionLost()
    assert not descriptor.finished
    assert descriptor.try_recv(10) == b"last"
    assert descriptor.finished
    assert descriptor.try_recv(10) == b""


def test_a_loss_comes_behind_the_data(descriptor):
    descriptor.dataReceived(b"last")
    end(descriptor, ConnectionLost("cut off"))
    assert not descriptor.failed
    assert descriptor.try_recv(10) == b"last"
    assert descriptor.failed
    with pytest.raises(SocketConnectionLostError, match="cut off"):
        descriptor.try_recv(10)
    with pytest.raises(SocketConnectionLostError, match="cut off"):
        descriptor.try_recv_into(bytearray(10))


def test_an_end_in_order_is_the_end_of_the_stream(descriptor):
    end(descriptor)
    assert descriptor.try_recv(10) == b""
    assert not descriptor.failed
    with pytest.raises(SocketConnectionLostError):
        descriptor.try_send(b"data")


def test_a_loss_that_is_an_error_of_ours_stays_that(descriptor):
    end(descriptor, SocketConnectionLostError(strerror="ours"))
    with pytest.raises(SocketConnectionLostError, match="ours"):
        descriptor.try_recv(1)


# Sending


def test_sends_a_copy_of_a_bounded_piece(descriptor, transport):
    assert descriptor.try_send(memoryview(bytes(2_000_000))) == 1024 * 1024
    assert len(transport.written) == 1024 * 1024
    assert descriptor.try_flush() is None


def test_a_full_buffer_makes_a_send_wait(descriptor, transport):
    transport.producer.pauseProducing()
    assert descriptor.try_send(b"data") is WANT_WRITE
    transport.producer.resumeProducing()
    assert descriptor.try_send(b"data") == 4


# Reports


def test_reports_both_directions(descriptor, clock, transport):
    watch = descriptor.watch
    owner = watch.owner = Owner(lambda: descriptor.try_recv(10), watch.stop_send)
    watch.want_receive()
    clock.advance(0)
    assert owner.reports == []
    descriptor.dataReceived(b"data")
    assert owner.reports == ["receive"]
    transport.producer.pauseProducing()
    watch.want_send()
    clock.advance(0)
    assert owner.reports == ["receive"]
    transport.producer.resumeProducing()
    assert owner.reports == ["receive", "send"]
    watch.close()


def test_reports_what_was_there_before_in_the_next_iteration(descriptor, clock):
    descriptor.dataReceived(b"data")
    owner = descriptor.watch.owner = Owner(lambda: descriptor.try_recv(10))
    descriptor.watch.want_receive()
    assert owner.reports == []
    clock.advance(0)
    assert owner.reports == ["receive"]
    descriptor.watch.close()


def test_reports_each_slot_that_crosses_directions(descriptor, clock, transport):
    watch = descriptor.watch
    owner = watch.owner = Owner(watch.stop_receive, watch.stop_send)
    transport.producer.pauseProducing()
    watch.want_receive(WANT_WRITE)
    watch.want_send(WANT_READ)
    clock.advance(0)
    assert owner.reports == []
    descriptor.dataReceived(b"data")
    assert owner.reports == ["send"]
    transport.producer.resumeProducing()
    assert owner.reports == ["send", "receive"]
    watch.close()


def test_an_owner_that_takes_nothing_does_not_hold_the_reactor(descriptor, clock):
    owner = descriptor.watch.owner = Owner()
    descriptor.watch.want_receive()
    descriptor.dataReceived(b"data")
    assert 1 < len(owner.reports) < 100
    # The rest is for the next iteration.
    assert len(clock.getDelayedCalls()) == 1
    descriptor.watch.close()


def test_what_a_write_delivers_is_reported_later(descriptor, clock, transport):
    owner = descriptor.watch.owner = Owner(lambda: descriptor.try_recv(10))
    descriptor.watch.want_receive()
    transport.on_write = lambda: descriptor.dataReceived(b"echo")
    descriptor.try_send(b"echo")
    assert owner.reports == []
    clock.advance(0)
    assert owner.reports == ["receive"]
    descriptor.watch.close()


def test_drive_waits_on_it(descriptor, clock):
    received = []
    drive(clock, descriptor.watch, lambda: descriptor.try_recv(10)).addCallback(received.append)
    assert received == []
    descriptor.dataReceived(b"data")
    assert received == [b"data"]


# The end


def test_shuts_down_writing_alone(descriptor, transport):
    descriptor.try_shutdown(socket.SHUT_WR)
    assert transport.asked == ["loseWriteConnection"]
    assert transport.producer is None
    with pytest.raises(SocketClosedError, match="shut down for writing"):
        descriptor.try_send(b"data")
    descriptor.dataReceived(b"data")
    assert descriptor.try_recv(10) == b"data"


@pytest.mark.parametrize("blocked", [False, True])
def test_closes_in_order_what_cannot_shut_down_writing_alone(
    descriptor, clock, transport, blocked
):
    alsoProvides(transport, ISSLTransport)
    if blocked:
        transport.producer.pauseProducing()
    descriptor.try_shutdown(socket.SHUT_WR)
    assert transport.asked == ["loseConnection"]
    clock.advance(LIMIT)
    assert transport.asked == ["loseConnection", "abortConnection"]
    end(descriptor, ConnectionAborted())
    clock.advance(LIMIT)


def test_shuts_down_reading_here_alone(descriptor, transport):
    descriptor.dataReceived(b"data")
    descriptor.try_shutdown(socket.SHUT_RD)
    descriptor.dataReceived(b"more")
    assert descriptor.try_recv(10) == b""
    assert transport.asked == []


@pytest.mark.parametrize("paused", [False, True])
def test_closes_in_order(descriptor, transport, paused):
    if paused:
        descriptor.dataReceived(bytes(70_000))
    gone = []
    descriptor.gone().addCallback(gone.append)
    descriptor.close()
    descriptor.close()
    expected = ["pauseProducing", "resumeProducing"] if paused else []
    assert transport.asked == [*expected, "loseConnection"]
    with pytest.raises(SocketClosedError):
        descriptor.try_send(b"data")
    with pytest.raises(SocketClosedError):
        descriptor.try_recv(1)
    assert gone == []
    end(descriptor)
    assert gone == [None]
    descriptor.gone().addCallback(gone.append)
    assert gone == [None, None]


def test_a_full_buffer_is_sent_before_the_end_but_has_a_limit(descriptor, clock, transport):
    transport.producer.pauseProducing()
    descriptor.close()
    assert transport.asked == ["loseConnection"]
    clock.advance(LIMIT)
    assert transport.asked == ["loseConnection", "abortConnection"]
    end(descriptor, ConnectionAborted())


def test_resets_at_once_even_while_it_closes(descriptor, transport):
    descriptor.close()
    descriptor.reset()
    assert transport.asked == ["loseConnection", "abortConnection"]
    end(descriptor, ConnectionAborted())
    descriptor.reset()
    assert transport.asked == ["loseConnection", "abortConnection"]


def test_gone_can_be_cancelled(descriptor):
    gone = descriptor.gone()
    gone.addErrback(lambda _: None)
    gone.cancel()
    end(descriptor)


def test_is_unusable_in_a_forked_child(descriptor):
    descriptor.on_fork()
    assert descriptor.failed
    with pytest.raises(SocketError, match="fork"):
        descriptor.try_recv(1)
    with pytest.raises(SocketError, match="fork"):
        descriptor.try_send(b"data")
