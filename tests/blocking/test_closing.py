"""Blocking sockets that are closed, and used by several threads."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time

import pytest

from tests.support.threads import (
    MUCH,
    Background,
    eventually,
    fill,
    pair,
    plain_pair,
    read_exactly,
    threaded,
    tls_pair,
    waiting,
)
from twisted_netsock import (
    SocketBusyError,
    SocketClosedError,
    SocketConnectionLostError,
    SocketError,
    TLSError,
    TLSTruncatedError,
    blocking,
)
from twisted_netsock.blocking._bridge import in_reactor

pytestmark = pytest.mark.long

# Fixtures.
assert pair


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
def test_abort_resets_the_connection_before_its_tls_shutdown_has_begun_on_the_reactor(authority):
    with tls_pair(authority) as (one, other):
        held = threading.Event()
        in_reactor(lambda _: held.wait(10))
        one.close()
        one.abort()
        held.set()
        reset = select.poll()
        reset.register(other.fileno(), 0)
        assert reset.poll(10_000) == [(other.fileno(), select.POLLERR | select.POLLHUP)]


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
def test_a_receive_that_finds_the_refusal_of_a_certificate_is_reported(authority, other_authority):
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
