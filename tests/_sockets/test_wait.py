"""Waiting for sockets: `wait_readable` and `wait_writable`."""

from __future__ import annotations

import socket
from datetime import timedelta

import pytest
from twisted.internet import reactor
from twisted.internet.defer import CancelledError
from twisted.internet.task import deferLater

from tests.support.clocks import turns
from tests.support.streams import (
    NO_TIME,
    SOON,
    TCPStreams,
    TLSStreams,
    fill,
    in_thread,
    pairs,
    python_client_context,
    raised,
    soon,
    tls_pair,
)
from twisted_netsock import (
    SocketBusyError,
    SocketClosedError,
    SocketConnectionLostError,
    chibi,
    make_server_socket,
    wait_readable,
    wait_writable,
)

# Fixtures.
assert pairs


# wait_readable


async def test_what_is_readable_already_is_reported_at_once(pairs):
    (one, other), (two, _), (three, third) = pairs(3)
    await other.sendall(b"x")
    await third.sendall(b"x")
    await turns()
    waiting = wait_readable(one, two, three)
    assert waiting.called
    assert await waiting == [one, three]


async def test_the_first_to_become_readable_is_reported(pairs):
    (one, _), (two, other) = pairs(2)
    waiting = wait_readable(one, two)
    assert not waiting.called
    await other.sendall(b"x")
    assert await soon(waiting) == [two]
    assert await soon(two.recv(10)) == b"x"


async def test_all_that_are_readable_are_reported_in_their_order(pairs):
    (one, first), (two, second), (three, _) = pairs(3)
    waiting = wait_readable(two, three, one)
    sending = first.sendall(b"x"), second.sendall(b"x")
    for each in sending:
        await each
    assert await soon(waiting) == [two, one]


async def test_nothing_is_reported_when_the_time_is_over(pairs):
    ((one, other),) = pairs(1)
    assert await soon(wait_readable(one, timeout=SOON)) == []
    await other.sendall(b"x")
    assert await soon(wait_readable(one, timeout=SOON)) == [one]


async def test_no_time_is_one_look(pairs):
    ((one, other),) = pairs(1)
    waiting = wait_readable(one, timeout=NO_TIME)
    assert waiting.called
    assert await waiting == []
    await other.sendall(b"x")
    await turns()
    assert await wait_readable(one, timeout=NO_TIME) == [one]


async def test_the_read_timeout_of_a_socket_means_nothing_here(pairs):
    ((one, other),) = pairs(1)
    one.read_timeout = timedelta(milliseconds=1)
    waiting = wait_readable(one)
    await deferLater(reactor, 0.01)
    await other.sendall(b"x")
    assert await soon(waiting) == [one]


async def test_nothing_is_received_by_waiting(pairs):
    ((one, other),) = pairs(1)
    await other.sendall(b"all of it")
    for _ in range(3):
        assert await soon(wait_readable(one)) == [one]
    assert await soon(one.recv(100)) == b"all of it"


async def test_one_that_is_given_twice_is_reported_once(pairs):
    ((one, other),) = pairs(1)
    waiting = wait_readable(one, one)
    await other.sendall(b"x")
    assert await soon(waiting) == [one]


async def test_the_end_of_the_stream_is_readable(pairs):
    ((one, other),) = pairs(1)
    waiting = wait_readable(one)
    other.close()
    assert await soon(waiting) == [one]
    assert await one.recv(1) == b""


async def test_a_socket_that_fails_counts_as_readable(pairs):
    ((one, other),) = pairs(1)
    waiting = wait_readable(one)
    other.abort()
    assert await soon(waiting) == [one]
    assert isinstance(await raised(one.recv(1)), SocketConnectionLostError)


async def test_a_socket_that_is_closed_meanwhile_counts_as_readable(pairs):
    (one, _), (two, _) = pairs(2)
    waiting = wait_readable(one, two)
    two.close()
    assert await soon(waiting) == [two]
    assert isinstance(await raised(two.recv(1)), SocketClosedError)


async def test_a_listening_socket_is_readable_when_somebody_connects():
    async with await make_server_socket("127.0.0.1", 0) as listener:
        assert await wait_readable(listener, timeout=NO_TIME) == []
        waiting = wait_readable(listener)
        with socket.create_connection(listener.getsockname()):
            assert await soon(waiting) == [listener]
            async with await soon(listener.accept()):
                pass


async def test_what_the_input_port_holds_is_readable(pairs):
    ((one, other),) = pairs(1)
    await other.sendall(b"one\ntwo\n")
    assert await soon(one.input_port.readline()) == b"one\n"
    assert await wait_readable(one, timeout=NO_TIME) == [one]


async def test_a_datagram_is_readable():
    one, other = chibi.open_socket_pair(socket.AF_UNIX, socket.SOCK_DGRAM)
    waiting = wait_readable(one)
    await other.send(b"")
    assert await soon(waiting) == [one]
    for sock in (one, other):
        await sock.close()


# TLS


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
async def test_decrypted_bytes_are_reported_at_once(version, authority):
    """They are nowhere that the kernel could see them."""
    async with tls_pair(authority, version) as (one, other):
        await other.sendall(b"many bytes")
        assert await soon(one.recv(1)) == b"m"
        assert await wait_readable(one, timeout=NO_TIME) == [one]
        assert await soon(one.recv(100)) == b"any bytes"
        assert await wait_readable(one, timeout=NO_TIME) == []


async def test_what_is_no_data_does_not_make_a_tls_socket_readable(authority):
    """The session tickets that a server sends after the handshake, for one."""
    async with tls_pair(authority) as (one, other):
        await turns()
        assert await soon(wait_readable(one, timeout=SOON)) == []
        waiting = wait_readable(one)
        await other.sendall(b"data")
        assert await soon(waiting) == [one]
        assert await one.recv(10) == b"data"


async def test_the_end_of_a_tls_stream_is_readable(authority):
    async with tls_pair(authority) as (one, other):
        waiting = wait_readable(one)
        await other.shutdown(socket.SHUT_WR)
        assert await soon(waiting) == [one]
        assert await one.recv(10) == b""
        assert await wait_readable(one, timeout=NO_TIME) == [one]


async def test_the_loss_of_a_tls_connection_is_readable(authority):
    async with tls_pair(authority) as (one, other):
        waiting = wait_readable(one)
        other.abort()
        assert await soon(waiting) == [one]
        for _ in range(2):
            assert isinstance(await raised(one.recv(1)), SocketConnectionLostError)


async def test_a_connection_that_is_ready_makes_a_tls_listener_readable(authority):
    """Its handshake was done when nobody waited for it any more."""
    context = python_client_context(authority)
    async with await TLSStreams(authority).listen() as listener:
        accepting = listener.accept()
        with socket.create_connection(listener.getsockname()) as sock:
            # It is taken from the kernel, and says nothing yet.
            await turns()
            accepting.cancel()
            assert isinstance(await raised(accepting), CancelledError)
            waiting = wait_readable(listener)
            assert not waiting.called
            tls = await soon(
                in_thread(lambda: context.wrap_socket(sock, server_hostname="localhost"))
            )
            assert await soon(waiting) == [listener]
            (await soon(listener.accept())).abort()
            tls.close()


# wait_writable


async def test_a_socket_with_room_is_writable(pairs):
    ((one, _),) = pairs(1)
    assert await wait_writable(one, timeout=NO_TIME) == [one]


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
async def test_a_full_socket_is_writable_when_the_peer_reads(tls, authority):
    streams = TLSStreams(authority) if tls else TCPStreams()
    async with streams.pair() as (one, other):
        _, sending = await fill(one, b"x" * 65536)
        sending.cancel()
        assert isinstance(await raised(sending), CancelledError)
        assert await soon(wait_writable(one, timeout=SOON)) == []
        waiting = wait_writable(one)
        assert not waiting.called
        for _ in range(1000):
            if waiting.called:
                break
            if await wait_readable(other, timeout=NO_TIME):
                await other.recv(65536)
            await turns(1)
        assert await waiting == [one]
        assert await soon(one.send(b"y")) == 1


async def test_a_socket_that_failed_counts_as_writable(pairs):
    ((one, other),) = pairs(1)
    _, sending = await fill(one, b"x" * 65536)
    sending.cancel()
    await raised(sending)
    waiting = wait_writable(one)
    other.abort()
    assert await soon(waiting) == [one]
    assert isinstance(await raised(one.send(b"y")), SocketConnectionLostError)


async def test_both_directions_can_be_waited_for_at_once(pairs):
    ((one, other),) = pairs(1)
    readable = wait_readable(one)
    assert await wait_writable(one) == [one]
    await one.sendall(b"x")
    await other.sendall(b"y")
    assert await soon(readable) == [one]


# Refusals, and cancelling


@pytest.mark.parametrize("wait", [wait_readable, wait_writable])
async def test_what_cannot_be_waited_for_is_refused(wait, pairs):
    ((one, _),) = pairs(1)
    with pytest.raises(ValueError, match="at least one"):
        wait()
    with pytest.raises(TypeError, match="socket=7"):
        wait(one, 7)
    with pytest.raises(TypeError, match="timeout"):
        wait(one, timeout=1)
    with pytest.raises(ValueError, match="timeout"):
        wait(one, timeout=timedelta(seconds=-1))


async def test_a_socket_that_somebody_receives_from_is_busy(pairs):
    (one, other), (two, second) = pairs(2)
    receiving = two.recv(10)
    assert isinstance(await raised(wait_readable(one, two)), SocketBusyError)
    await second.sendall(b"x")
    assert await soon(receiving) == b"x"
    await other.sendall(b"nothing waits any more")
    assert await soon(one.recv(100)) == b"nothing waits any more"


async def test_nobody_receives_from_a_socket_that_is_waited_for(pairs):
    ((one, other),) = pairs(1)
    waiting = wait_readable(one)
    assert isinstance(await raised(one.recv(10)), SocketBusyError)
    await other.sendall(b"x")
    assert await soon(waiting) == [one]


async def test_a_closed_socket_is_refused(pairs):
    (one, _), (two, _) = pairs(2)
    two.close()
    assert isinstance(await raised(wait_readable(one, two)), SocketClosedError)
    assert isinstance(await raised(wait_writable(two)), SocketClosedError)


async def test_cancelling_consumes_nothing(pairs):
    (one, other), (two, _) = pairs(2)
    waiting = wait_readable(one, two, timeout=timedelta(hours=1))
    waiting.cancel()
    assert isinstance(await raised(waiting), CancelledError)
    await other.sendall(b"x")
    assert await soon(one.recv(10)) == b"x"
