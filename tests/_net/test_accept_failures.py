"""Taking connections in spite of failures: of one connection, of resources, of the listener."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from tests.support.clocks import the_reactor, turns, until
from tests.support.loopback import accepting, dialling, listening, run_script
from twisted_netsock import SocketConnectionLostError, SocketError
from twisted_netsock._io.poller import poller_for


class FlakyListener:
    """A listening socket whose `accept` gives each of some errors once, and then works."""

    def __init__(self, sock, *numbers):
        self._sock = sock
        self.numbers = list(numbers)

    def __getattr__(self, name):
        return getattr(self._sock, name)

    def accept(self):
        if self.numbers:
            number = self.numbers.pop(0)
            raise OSError(number, os.strerror(number))
        return self._sock.accept()


@pytest.fixture
def listener():
    with listening() as listener:
        yield listener


@pytest.fixture
def dial(listener):
    with dialling(listener) as dial:
        yield dial


@pytest.mark.parametrize(
    "number",
    [
        errno.ECONNABORTED,
        errno.EPROTO,
        errno.ENETDOWN,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.ENONET,
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.ETIMEDOUT,
    ],
    ids=errno.errorcode.get,
)
async def test_an_error_of_one_connection_is_passed_over(listener, dial, number, log_lines):
    flaky = FlakyListener(listener, number, number)
    for _ in range(2):
        dial()
    with accepting(flaky) as found:
        found.acceptor.start()
        await until(lambda: len(found.delivered) == 2)
        assert (flaky.numbers, found.lost) == ([], [])
    assert not any("accept" in line for line in log_lines)


async def test_many_errors_of_connections_do_not_hold_up_the_reactor(listener, dial):
    flaky = FlakyListener(listener, *[errno.ECONNABORTED] * 1000)
    dial()
    with accepting(flaky) as found:
        found.acceptor.start()
        found.acceptor.on_receive_ready()
        assert flaky.numbers
        await until(lambda: found.delivered)


class TiredListener(FlakyListener):
    """A listening socket that tells when it was asked for too many connections."""

    def accept(self):
        self.numbers.append(0)
        assert len(self.numbers) < 1000, "accept is called again and again"
        return self._sock.accept()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_socket_that_does_not_listen_cannot_accept(kind):
    with socket.socket(type=kind) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        with accepting(TiredListener(sock)) as found, pytest.raises(SocketError):
            found.acceptor.take()


def complaints(log_lines):
    return [line for line in log_lines if line.startswith("cannot accept connections")]


@pytest.mark.parametrize(
    "number",
    [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM],
    ids=errno.errorcode.get,
)
async def test_lack_of_resources_is_a_pause_that_is_logged_once(listener, dial, number, log_lines):
    flaky = FlakyListener(listener, *[number] * 3)
    dial()
    with accepting(flaky) as found:
        found.acceptor.start()
        for left in (2, 1, 0):
            await until(lambda left=left: len(flaky.numbers) == left)
            # Not tried again before the second is over.
            found.clock.advance(0.9)
            await turns(5)
            assert (len(flaky.numbers), found.delivered) == (left, [])
            found.clock.advance(0.2)
        await until(lambda: found.delivered)
        assert found.lost == []
        (line,) = complaints(log_lines)
        assert os.strerror(number) in line
        assert str(listener.getsockname()[1]) in line


async def test_each_outage_is_logged(listener, dial, log_lines):
    flaky = FlakyListener(listener)
    with accepting(flaky) as found:
        found.acceptor.start()
        for outage in (1, 2):
            flaky.numbers = [errno.EMFILE]
            dial()
            await until(lambda outage=outage: len(complaints(log_lines)) == outage)
            found.clock.advance(1.1)
            await until(lambda outage=outage: len(found.delivered) == outage)


def test_a_process_out_of_descriptors_recovers():
    lines = run_script(
        """
        import resource
        import socket
        from twisted.internet.task import Clock, deferLater
        from twisted_netsock._net.accept import Acceptor
        from twisted_netsock._io.poller import poller_for

        clock = Clock()
        delivered, lost = [], []
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        client = socket.create_connection(listener.getsockname())
        watch = poller_for(reactor).watch(listener.fileno())

        def deliver(connection, peer):
            delivered.append(connection)

        async def until(there):
            for _ in range(500):
                if there():
                    return
                await deferLater(reactor, 0.01)

        async def main():
            acceptor = Acceptor(clock, watch, listener, deliver, lost.append)
            acceptor.start()
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            lowest_free = os.dup(0)
            os.close(lowest_free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
            await until(clock.getDelayedCalls)
            print(len(clock.getDelayedCalls()), "pause,", len(delivered), "connections")
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            clock.advance(1.1)
            await until(lambda: delivered)
            print(len(delivered), "connections, lost:", lost)
            acceptor.stop()
            watch.close()
            for sock in (client, listener, *delivered):
                sock.close()

        run(main)
        """
    )
    assert lines == ["1 pause, 0 connections", "1 connections, lost: []"]


@pytest.mark.parametrize("again", [False, True])
async def test_stopping_ends_a_pause(listener, dial, log_lines, again):
    flaky = FlakyListener(listener, errno.EMFILE)
    dial()
    with accepting(flaky) as found:
        found.acceptor.start()
        await until(lambda: complaints(log_lines))
        found.acceptor.stop()
        assert found.clock.getDelayedCalls() == []
        if again:
            found.acceptor.start()
            await until(lambda: found.delivered)
        else:
            await turns(5)
            assert found.delivered == []


async def test_starting_during_a_pause_waits_for_its_end(listener, dial):
    """A connection was tried to be taken, before there was anything to wait for it."""
    flaky = FlakyListener(listener, errno.EMFILE)
    dial()
    with accepting(flaky) as found:
        assert found.acceptor.take() is None
        found.acceptor.start()
        await turns(5)
        assert found.delivered == []
        found.clock.advance(1.1)
        await until(lambda: found.delivered)


async def test_a_listener_that_fails_is_reported_once_and_is_the_end(listener):
    with accepting(listener) as found:
        found.acceptor.start()
        listener.shutdown(socket.SHUT_RDWR)
        await until(lambda: found.lost)
        await turns(5)
        (error,) = found.lost
        assert isinstance(error, SocketError)
        assert error.errno == errno.EINVAL
        with pytest.raises(SocketError):
            found.acceptor.take()
        assert not found.watch.receive


async def test_the_end_of_the_poller_is_reported_once(listener):
    with accepting(listener) as found:
        found.acceptor.start()
        poller_for(the_reactor()).lose_all()
        poller_for(the_reactor()).lose_all()
        assert [type(reason) for reason in found.lost] == [SocketConnectionLostError]
