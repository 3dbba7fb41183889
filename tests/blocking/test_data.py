"""Data through blocking sockets: streams, datagrams, messages, and time-outs."""

from __future__ import annotations

import errno
import os
import socket
import time
from datetime import timedelta

import pytest

from tests.support.threads import (
    MUCH,
    SHORT,
    Background,
    pair,
    read_exactly,
    threaded,
    tls_pair,
    waiting,
)
from twisted_netsock import (
    SocketBusyError,
    SocketClosedError,
    SocketError,
    SocketOptions,
    SocketReadTimeoutError,
    SocketWriteTimeoutError,
    blocking,
)

# Fixtures.
assert pair


@threaded
def test_what_is_sent_arrives(pair):
    with pair() as (one, other):
        assert one.send(b"to the other") == 12
        assert other.recv(100) == b"to the other"
        assert other.sendall(memoryview(b"..and back")[2:]) is None
        buffer = bytearray(20)
        assert one.recv_into(memoryview(buffer)[3:]) == 8
        assert buffer == b"\0\0\0and back" + bytes(9)
        assert one.recv(0) == b""
        assert one.recv_into(bytearray()) == 0
        assert one.send(b"") == 0


@threaded
def test_much_goes_both_ways_at_once(pair):
    data = os.urandom(MUCH)
    with pair() as (one, other):
        calls = [Background(lambda s=sock: s.sendall(data)) for sock in (one, other)]
        reads = [Background(lambda s=sock: read_exactly(s, MUCH)) for sock in (one, other)]
        for call in calls:
            call.result()
        assert all(read.result() == data for read in reads)


@threaded
def test_a_receive_after_a_short_one_waits_for_more(pair):
    with pair() as (one, other):
        for text in (b"a", b"bb", b"ccc"):
            one.sendall(text)
            assert other.recv(100) == text
        receiving = waiting(lambda: other.recv(100), other)
        one.sendall(b"late")
        assert receiving.result() == b"late"


@threaded
def test_pieces_of_one_record_are_received_one_by_one(pair):
    """Over TLS they lie decrypted where poll(2) does not see them."""
    with pair() as (one, other):
        one.sendall(b"abcdef")
        assert [other.recv(2), other.recv(1), other.recv(100)] == [b"ab", b"c", b"def"]


@threaded
def test_the_end_is_reported_and_the_other_direction_goes_on(pair):
    with pair() as (one, other):
        one.sendall(b"last")
        one.shutdown(socket.SHUT_WR)
        assert [other.recv(10), other.recv(10), other.recv(10)] == [b"last", b"", b""]
        other.sendall(b"still here")
        assert one.recv(100) == b"still here"
        with pytest.raises(SocketClosedError):
            one.sendall(b"more")


@threaded
def test_a_receive_times_out_and_the_socket_is_usable(pair):
    with pair() as (one, other):
        one.read_timeout = SHORT
        with pytest.raises(SocketReadTimeoutError) as caught:
            one.recv(1)
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.socket is one
        other.sendall(b"x")
        assert one.recv(1) == b"x"


@threaded
def test_a_send_times_out_when_nothing_more_is_taken(pair):
    with pair() as (one, other):
        one.write_timeout = timedelta(milliseconds=200)
        with pytest.raises(SocketWriteTimeoutError):
            one.sendall(bytes(64 * MUCH))
        assert other.recv(10) == bytes(10)
        one.abort()


@threaded
def test_timeouts_are_those_of_the_record():
    options = SocketOptions(read_timeout=SHORT, write_timeout=timedelta(hours=1))
    with blocking.make_server_socket("127.0.0.1", 0, options) as server:
        accepting = Background(server.accept)
        port = server.getsockname().port
        with blocking.make_client_socket("127.0.0.1", port, options) as one:
            with accepting.result() as other, pytest.raises(SocketReadTimeoutError):
                other.recv(1)
            assert one.read_timeout == SHORT
            assert one.write_timeout == timedelta(hours=1)
            assert one.gettimeout() == 0.03


@pytest.mark.parametrize("value", [2, 2.0, timedelta(seconds=2)])
@threaded
def test_settimeout_sets_both_directions(value):
    one, other = blocking.open_socket_pair()
    with one, other:
        one.settimeout(value)
        assert one.read_timeout == one.write_timeout == timedelta(seconds=2)
        assert (one.gettimeout(), one.timeout, one.getblocking()) == (2.0, 2.0, True)
        one.settimeout(None)
        assert (one.read_timeout, one.write_timeout, one.gettimeout()) == (None, None, None)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (-1, ValueError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        (1e9, ValueError),
        ("1", TypeError),
        (True, TypeError),
        (timedelta(seconds=-1), ValueError),
    ],
)
@threaded
def test_settimeout_refuses_what_is_no_time(value, error):
    one, other = blocking.open_socket_pair()
    with one, other:
        with pytest.raises(error, match="value"):
            one.settimeout(value)
        assert one.gettimeout() is None


@threaded
def test_a_socket_that_does_not_wait_raises_blocking_io_errors(pair):
    with pair() as (one, other):
        one.setblocking(False)
        assert one.gettimeout() == 0.0
        for call in (lambda: one.recv(1), lambda: one.recv_into(bytearray(1))):
            with pytest.raises(BlockingIOError) as caught:
                call()
            assert caught.value.errno == errno.EAGAIN
        sent = 0
        with pytest.raises(BlockingIOError):
            while True:
                sent += one.send(bytes(100_000))
        received = Background(lambda: read_exactly(other, sent + 5))
        one.setblocking(True)
        one.sendall(b"after")
        assert received.result() == bytes(sent) + b"after"


@threaded
def test_a_listener_that_does_not_wait_raises_blocking_io_errors():
    with blocking.make_server_socket("127.0.0.1", 0) as server:
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()
        server.settimeout(0.03)
        with pytest.raises(SocketReadTimeoutError):
            server.accept()
        with blocking.make_client_socket("127.0.0.1", server.getsockname().port) as one:
            server.settimeout(5)
            with server.accept() as other:
                assert other.getpeername() == one.getsockname()
                assert other.gettimeout() is None


@threaded
def test_an_accept_that_timed_out_has_consumed_nothing():
    with blocking.make_server_socket("127.0.0.1", 0) as server:
        server.settimeout(0.02)
        for _ in range(20):
            accepting = Background(server.accept)
            time.sleep(0.019)
            with blocking.make_client_socket("127.0.0.1", server.getsockname().port) as one:
                try:
                    other = accepting.result()
                except SocketReadTimeoutError:
                    other = server.accept()
                with other:
                    assert other.getpeername() == one.getsockname()


@threaded
def test_datagrams_and_messages():
    with (
        blocking.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        blocking.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        other.bind(("127.0.0.1", 0))
        one.bind(("127.0.0.1", 0))
        assert one.sendto(b"to you", other.getsockname()) == 6
        assert other.recvfrom(100) == (b"to you", one.getsockname())
        assert one.sendmsg([b"two ", b"parts"], address=other.getsockname()) == 9
        buffer = bytearray(20)
        assert other.recvfrom_into(buffer) == (9, one.getsockname())
        one.connect(other.getsockname())
        one.send(b"")
        data, ancillary, _, sender = other.recvmsg(10, 100)
        assert (data, ancillary, sender) == (b"", [], one.getsockname())
        assert one.type == socket.SOCK_DGRAM
        assert one.family == socket.AF_INET


@threaded
def test_a_full_receiver_of_unix_datagrams_does_not_make_the_sender_spin(tmp_path):
    with (
        blocking.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one,
        blocking.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other,
    ):
        other.bind((str(tmp_path / "other"),))
        one.write_timeout = timedelta(milliseconds=150)
        before = time.thread_time()
        with pytest.raises(SocketWriteTimeoutError):
            while True:
                one.sendto(b"x", other.getsockname())
        assert time.thread_time() - before < 0.1


@threaded
def test_bsd_calls_one_by_one():
    with (
        blocking.socket(socket.AF_INET, socket.SOCK_STREAM) as server,
        blocking.socket(socket.AF_INET, socket.SOCK_STREAM) as one,
    ):
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        assert server.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 1
        server.bind(("127.0.0.1", 0))
        server.listen(5)
        one.connect(server.getsockname())
        with server.accept() as other:
            assert other.getpeername() == one.getsockname()
            assert other.node == "127.0.0.1"
            one.sendall(b"x")
            assert other.recv(1) == b"x"
        with pytest.raises(ValueError, match="numeric"):
            one.connect(("localhost", 1))


@threaded
def test_a_refused_connection_says_so():
    with socket.socket() as bound, blocking.socket(socket.AF_INET, socket.SOCK_STREAM) as one:
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            one.connect(bound.getsockname())
        with pytest.raises(ConnectionRefusedError):
            blocking.make_client_socket("127.0.0.1", bound.getsockname()[1])


@threaded
def test_a_descriptor_can_be_adopted_and_given_away():
    theirs, peer = socket.socketpair()
    with peer:
        sock = blocking.BlockingSocket.from_socket(theirs)
        assert theirs.fileno() == -1
        number = sock.detach()
        assert sock.closed
        assert sock.fileno() == -1
        with socket.socket(fileno=number) as back:
            peer.sendall(b"x")
            back.setblocking(True)
            assert back.recv(1) == b"x"


@threaded
def test_a_socket_in_use_is_not_given_away(authority):
    one, other = blocking.open_socket_pair()
    with one, other:
        receiving = waiting(lambda: one.recv(1), one)
        with pytest.raises(SocketBusyError):
            one.detach()
        other.sendall(b"x")
        receiving.result()
    with tls_pair(authority) as (one, _):
        with pytest.raises(SocketError, match="TLS"):
            one.detach()
        with pytest.raises(TypeError, match="adopt"):
            type(one).from_socket(one.fileno())
