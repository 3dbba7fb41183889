"""Blocking sockets, plain and TLS: data, time-outs, closing, and several threads."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time
from datetime import timedelta
from typing import Any

import pytest
from threads import Background, eventually, plain_pair, threaded, tls_pair, waiting

from twisted_netsock import (
    SocketBusyError,
    SocketClosedError,
    SocketConnectionLostError,
    SocketError,
    SocketOptions,
    SocketReadTimeoutError,
    SocketWriteTimeoutError,
    TLSError,
    TLSTruncatedError,
    blocking,
)
from twisted_netsock.blocking._waiting import Waiter

SHORT = timedelta(milliseconds=30)
MUCH = 4_000_000


@pytest.fixture(params=["plain", "TLS 1.3", "TLS 1.2"])
def pair(request: pytest.FixtureRequest, authority: Any) -> Any:
    """Make two connected sockets."""
    if request.param == "plain":
        return plain_pair
    version = request.param.replace("TLS ", "TLSv")
    return lambda: tls_pair(authority, minimum_version=version, maximum_version=version)


def read_exactly(sock: Any, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = sock.recv(size - len(data))
        assert piece, "the stream ended"
        data += piece
    return bytes(data)


def fill(sock: Any) -> Background:
    """Have a thread send more than the kernel takes."""
    return waiting(lambda: sock.sendall(bytes(64 * MUCH)), sock, "_writer")


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
def test_the_end_is_told_and_the_other_direction_goes_on(pair):
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
def test_time_outs_are_those_of_the_record():
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


# Closing


@threaded
def test_closing_wakes_who_receives(pair):
    with pair() as (one, _):
        receiving = waiting(lambda: one.recv(1), one)
        one.close()
        assert isinstance(receiving.error(), SocketClosedError)


@threaded
def test_closing_wakes_who_sends(pair):
    with pair() as (one, other):
        sending = fill(one)
        other.abort()
        one.abort()
        assert isinstance(sending.error(), SocketError)


@threaded
def test_closing_wakes_who_accepts(authority):
    for make in (
        lambda: blocking.make_server_socket("127.0.0.1", 0),
        lambda: blocking.make_server_tls_socket("127.0.0.1", 0, authority.server_options()),
    ):
        server = make()
        accepting = waiting(server.accept, server)
        server.close()
        assert isinstance(accepting.error(), SocketClosedError)
        eventually(lambda s=server: s._gone)
        with pytest.raises(SocketClosedError):
            server.accept()


@threaded
def test_a_closed_socket_refuses_everything(pair):
    with pair() as (one, _):
        one.close()
        one.close()
        one.abort()
        assert one.closed
        assert one.fileno() == -1
        assert repr(one) == f"<{type(one).__name__} closed>"
        for call in (
            lambda: one.recv(1),
            lambda: one.sendall(b"x"),
            lambda: one.shutdown(socket.SHUT_WR),
            one.getsockname,
            one.getpeername,
            lambda: one.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE),
            lambda: one.makefile("rb"),
            lambda: one.input_port,
            lambda: one.output_port,
        ):
            with pytest.raises(SocketClosedError):
                call()


@threaded
def test_the_number_of_a_closed_socket_is_never_waited_for_or_used_again():
    """Who receives is still in poll(2) when it is closed, and the number is taken at once."""
    for _ in range(200):
        one, other = blocking.open_socket_pair()
        number = one.fileno()
        receiving = Background(lambda s=one: s.recv(100))
        eventually(lambda s=one: s._reader is not None)
        one.close()
        reused = [os.pipe() for _ in range(3)]
        try:
            for reading, writing in reused:
                os.write(writing, b"another's")
                assert os.read(reading, 100) == b"another's"
            error = receiving.error()
            assert isinstance(error, SocketClosedError)
            assert one.fileno() == -1
        finally:
            for numbers in reused:
                for each in numbers:
                    os.close(each)
            other.close()
    assert number > 2


@threaded
def test_the_number_stays_taken_until_the_last_user_has_left():
    one, other = blocking.open_socket_pair()
    number = one.fileno()
    with one._lock:
        # A receive is about to look at the socket again, and cannot.
        call = Background(lambda: one.recv(1))
        time.sleep(0.05)
    eventually(lambda: one._reader is not None)
    user = one._reader
    one._closed = True
    one._ending = True
    one._settle()
    os.fstat(number)
    assert not one._gone
    user.wake()
    assert isinstance(call.error(), SocketClosedError)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    other.close()


@threaded
def test_abort_resets_the_connection():
    with plain_pair() as (one, other):
        one.abort()
        with pytest.raises(SocketConnectionLostError):
            other.recv(1)


@threaded
def test_a_tls_peer_that_aborts_is_a_loss(authority):
    with tls_pair(authority) as (one, other):
        one.abort()
        with pytest.raises((SocketConnectionLostError, TLSTruncatedError)):
            other.recv(1)


@threaded
def test_nothing_is_lost_when_a_tls_socket_is_closed(authority):
    """Neither what was sent, nor the end: closing waits for the peer in the background."""
    data = os.urandom(MUCH)
    with tls_pair(authority) as (one, other):
        other.sendall(b"unread by the other end")
        sending = Background(lambda: (one.sendall(data), one.close()))
        assert read_exactly(other, MUCH) == data
        assert other.recv(1) == b""
        sending.result()
        other.sendall(b"too late, and no error")


@threaded
def test_a_socket_that_is_dropped_is_warned_about(pair):
    with pair() as (one, _), contextlib.ExitStack() as files:
        number = os.dup(one.fileno())
        files.callback(os.close, number)
        dropped = blocking.BlockingSocket.from_socket(os.dup(number))
        fd = dropped.fileno()
        with pytest.warns(ResourceWarning, match="was never closed"):
            del dropped
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)


# Threads


@threaded
def test_one_thread_may_receive_while_another_sends(pair):
    with pair() as (one, other):
        receiving = waiting(lambda: one.recv(1), one)
        for _ in range(100):
            one.sendall(b"while the other waits")
        other.sendall(b"x")
        assert receiving.result() == b"x"


@threaded
def test_two_receives_at_once_are_refused(pair):
    with pair() as (one, other):
        receiving = waiting(lambda: one.recv(1), one)
        for call in (lambda: one.recv(1), lambda: one.recv_into(bytearray(1))):
            with pytest.raises(SocketBusyError):
                call()
        other.sendall(b"x")
        assert receiving.result() == b"x"
        other.sendall(b"y")
        assert one.recv(1) == b"y"


@threaded
def test_two_sends_at_once_are_refused(pair):
    with pair() as (one, other):
        sending = fill(one)
        for call in (lambda: one.send(b"x"), lambda: one.sendall(b"x")):
            with pytest.raises(SocketBusyError):
                call()
        one.abort()
        assert isinstance(sending.error(), SocketError)
        other.abort()


@threaded
def test_many_threads_use_many_sockets(authority):
    def talk(index: int) -> None:
        with tls_pair(authority) if index % 2 else plain_pair() as (one, other):
            for count in range(50):
                text = b"%d of %d" % (count, index)
                one.sendall(text)
                assert read_exactly(other, len(text)) == text

    for talking in [Background(lambda i=index: talk(i)) for index in range(12)]:
        talking.result()


@threaded
def test_a_receive_that_finds_the_refusal_of_a_certificate_is_told(authority, other_authority):
    """The server refuses after the client's handshake: a send looks, a receive must hear of it."""
    record = authority.server_options(
        client_certificate_required=True, trusted_certificates=authority.certificate_pem
    )
    with blocking.make_server_tls_socket("127.0.0.1", 0, record) as server:
        accepting = waiting(server.accept, server)
        options = authority.client_options(certificates=other_authority.issue("client").pem)
        with blocking.make_client_tls_socket(
            "localhost", server.getsockname().port, options
        ) as one:
            receiving = Background(lambda: one.recv(1))
            with contextlib.suppress(TLSError, SocketConnectionLostError):
                for _ in range(20):
                    one.sendall(b"x")
                    time.sleep(0.005)
            assert isinstance(receiving.error(), TLSError)
        server.close()
        accepting.error()


@threaded
def test_threads_that_begin_and_end_leave_no_descriptor():
    one, other = blocking.open_socket_pair()
    with one, other:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(50):
            receiving = Background(lambda: one.recv(1))
            other.sendall(b"x")
            receiving.result()
        eventually(lambda: len(os.listdir("/proc/self/fd")) <= before + 2)


# Other kinds of sockets


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


# Accepting


@threaded
def test_connections_are_taken_in_a_loop_until_the_socket_is_closed():
    with blocking.make_server_socket("127.0.0.1", 0) as server:
        port = server.getsockname().port
        seen = []

        def loop() -> None:
            for connection in server:
                with connection:
                    seen.append(connection.recv(1))

        looping = Background(loop)
        for letter in (b"a", b"b"):
            with blocking.make_client_socket("127.0.0.1", port) as one:
                one.sendall(letter)
                assert one.recv(1) == b""
        server.close()
        assert looping.result() is None
        assert seen == [b"a", b"b"]


@threaded
def test_serve_runs_at_most_so_many_handlers_and_closes_what_they_leave(authority):
    record = authority.server_options()
    for server in (
        blocking.make_server_socket("127.0.0.1", 0),
        blocking.make_server_tls_socket("127.0.0.1", 0, record),
    ):
        running, most, lock = [0], [0], threading.Lock()

        def handle(
            connection: Any, running: Any = running, most: Any = most, lock: Any = lock
        ) -> None:
            with lock:
                running[0] += 1
                most[0] = max(most[0], running[0])
            connection.sendall(connection.recv(10))
            time.sleep(0.02)
            with lock:
                running[0] -= 1

        serving = Background(lambda s=server, h=handle: s.serve(h, limit=2))
        port = server.getsockname().port

        def ask(port: int = port, tls: bool = "TLS" in repr(server)) -> bytes:
            with (
                blocking.make_client_tls_socket("localhost", port, authority.client_options())
                if tls
                else blocking.make_client_socket("127.0.0.1", port)
            ) as one:
                one.sendall(b"hello")
                return one.recv(10) + one.recv(10)

        asking = [Background(ask) for _ in range(6)]
        assert [each.result() for each in asking] == [b"hello"] * 6
        assert most[0] == 2
        server.close()
        serving.result()
        assert running[0] == 0


@threaded
def test_serve_logs_what_a_handler_raises(logged_errors):
    with blocking.make_server_socket("127.0.0.1", 0) as server:

        def fail(connection: Any) -> None:
            raise LookupError("no such luck")

        serving = Background(lambda: server.serve(fail))
        for _ in range(2):
            with blocking.make_client_socket("127.0.0.1", server.getsockname().port) as one:
                assert one.recv(1) == b""
        server.close()
        serving.result()
    assert [str(event["log_failure"].value) for event in logged_errors] == ["no such luck"] * 2
    logged_errors.clear()


@threaded
def test_serve_ends_when_it_is_closed_while_it_is_full():
    release = threading.Event()
    with blocking.make_server_socket("127.0.0.1", 0) as server:
        serving = Background(lambda: server.serve(lambda _: release.wait(10), limit=1))
        with blocking.make_client_socket("127.0.0.1", server.getsockname().port):
            eventually(lambda: threading.active_count() and "netsock-connection" in names())
            server.close()
            time.sleep(0.02)
            assert serving.running
            release.set()
            serving.result()


def names() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize(
    ("limit", "error"), [(0, ValueError), (True, TypeError), ("2", TypeError)]
)
@threaded
def test_serve_refuses_a_limit_that_is_none(limit, error):
    with (
        blocking.make_server_socket("127.0.0.1", 0) as server,
        pytest.raises(error, match="limit"),
    ):
        server.serve(lambda _: None, limit=limit)


def test_who_is_gone_is_woken_no_more():
    """Its number may be somebody else's by then."""
    waiter = Waiter()
    reading, writing = os.pipe()
    number = waiter._writing
    waiter.__del__()
    os.dup2(writing, number)
    try:
        waiter.wake()
        os.set_blocking(reading, False)
        with pytest.raises(BlockingIOError):
            os.read(reading, 8)
    finally:
        for each in (reading, writing, number):
            os.close(each)
