"""Taking connections: how many at a time, what they are, and until when."""

from __future__ import annotations

import socket

import pytest

from tests.support.clocks import the_reactor, turns, until
from tests.support.loopback import accepting, dialling, listening
from twisted_netsock import SocketOptions
from twisted_netsock._net.listen import listen


@pytest.fixture
def listener():
    with listening() as listener:
        yield listener


@pytest.fixture
def dial(listener):
    with dialling(listener) as dial:
        yield dial


async def test_connections_are_handed_on_with_their_peers(listener, dial):
    clients = [dial(), dial()]
    with accepting(listener) as found:
        found.acceptor.start()
        assert found.delivered == []
        await until(lambda: len(found.delivered) == 2)
        clients.append(dial())
        await until(lambda: len(found.delivered) == 3)
        for (connection, peer), client in zip(found.delivered, clients, strict=True):
            assert tuple(peer) == client.getsockname()
            assert not connection.getblocking()
            client.sendall(b"hello")
            await until(lambda connection=connection: can_read(connection))
            assert connection.recv(10) == b"hello"


def can_read(sock):
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


async def test_64_connections_are_taken_at_a_time(listener, dial):
    for _ in range(100):
        dial()
    with accepting(listener) as found:
        found.acceptor.start()
        found.acceptor.on_receive_ready()
        assert len(found.delivered) == 64
        await until(lambda: len(found.delivered) == 100)


async def test_starting_again_changes_nothing(listener, dial):
    with accepting(listener) as found:
        found.acceptor.start()
        found.acceptor.start()
        dial()
        await until(lambda: found.delivered)
        await turns(3)
        assert len(found.delivered) == 1


async def test_stopping_leaves_connections_in_the_queue_of_the_kernel(listener, dial):
    with accepting(listener) as found:
        found.acceptor.start()
        await turns(2)
        found.acceptor.stop()
        client = dial()
        await turns(5)
        assert found.delivered == []
        connection, peer = listener.accept()
        with connection:
            assert peer == client.getsockname()


async def test_the_callback_may_stop_accepting(listener, dial):
    for _ in range(5):
        dial()

    def stop():
        found.acceptor.stop()

    with accepting(listener, on_delivery=stop) as found:
        found.acceptor.start()
        await until(lambda: found.delivered)
        await turns(5)
        assert len(found.delivered) == 1
        found.acceptor.start()
        await until(lambda: len(found.delivered) == 2)


async def test_a_callback_that_raises_does_not_end_accepting(listener, dial, logged_errors):
    def fail():
        if len(found.delivered) == 1:
            raise ZeroDivisionError

    for _ in range(3):
        dial()
    with accepting(listener, on_delivery=fail) as found:
        found.acceptor.start()
        await until(lambda: len(found.delivered) == 3)
    assert [event["log_failure"].type for event in logged_errors] == [ZeroDivisionError]
    logged_errors.clear()


async def test_one_connection_is_taken_where_one_is_there(listener, dial):
    with accepting(listener) as found:
        assert found.acceptor.take() is None
        client = dial()
        await until(lambda: can_accept(found))
        _, peer = found.delivered[0]
        assert tuple(peer) == client.getsockname()


def can_accept(found):
    taken = found.acceptor.take()
    if taken is not None:
        found.delivered.append(taken)
    return taken


# What the connections are


@pytest.mark.parametrize("no_delay", [None, 0, 1])
async def test_tcp_no_delay_is_on_unless_an_option_turns_it_off(no_delay):
    given = () if no_delay is None else ((socket.IPPROTO_TCP, socket.TCP_NODELAY, no_delay),)
    options = SocketOptions(socket_options=given)
    (sock,) = await listen(the_reactor(), "127.0.0.1", 0, options)
    with sock, socket.create_connection(sock.getsockname()), accepting(sock) as found:
        found.acceptor.start()
        await until(lambda: found.delivered)
        connection, _ = found.delivered[0]
        is_set = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert bool(is_set) is (no_delay != 0)


async def test_a_peer_over_ipv4_of_a_listener_of_both_families_is_ipv4():
    (sock,) = await listen(the_reactor(), None, 0, SocketOptions())
    address = ("127.0.0.1", sock.getsockname()[1])
    with sock, socket.create_connection(address) as client, accepting(sock) as found:
        found.acceptor.start()
        await until(lambda: found.delivered)
        _, peer = found.delivered[0]
        assert tuple(peer) == client.getsockname()


async def test_unix_sockets_are_accepted(tmp_path):
    with socket.socket(socket.AF_UNIX) as sock, socket.socket(socket.AF_UNIX) as client:
        sock.bind(str(tmp_path / "socket"))
        sock.listen()
        sock.setblocking(False)
        client.connect(sock.getsockname())
        with accepting(sock) as found:
            found.acceptor.start()
            await until(lambda: found.delivered)
            connection, peer = found.delivered[0]
            assert peer.family == socket.AF_UNIX
            client.sendall(b"hello")
            assert connection.recv(10) == b"hello"
