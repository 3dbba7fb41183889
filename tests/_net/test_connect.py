"""Connecting: when each address is tried, which one is used, and how failures are reported."""

from __future__ import annotations

import errno
import socket
from socket import AF_INET, AF_INET6, AF_UNIX, IPPROTO_TCP

import pytest

from tests.support.clocks import the_reactor, turns, until
from tests.support.loopback import (
    NO_ROUTE,
    Connections,
    full,
    one_port,
    open_sockets,
    port_of,
    reactor_for,
)
from twisted_netsock import (
    HostNotFoundError,
    SocketConnectionError,
    SocketConnectionRefusedError,
    SocketConnectionTimeoutError,
    SocketOptions,
    chibi,
)
from twisted_netsock._io.descriptor import set_linger_reset
from twisted_netsock._net import happy_eyeballs
from twisted_netsock._net.connect import connect
from twisted_netsock._net.open_socket import check_target, open_socket


def peer_of(established):
    return established.descriptor.sock.getpeername()[0]


def tried(error):
    """Return the hosts that were tried, with the class of the error of each."""
    return [(address.host, type(why)) for address, why in error.attempts]


@pytest.fixture
def start():
    with Connections() as connections:
        yield connections.start


# Happy Eyeballs


async def test_the_first_address_that_answers_is_the_only_one_connected_to(start):
    with one_port("127.0.0.2", "127.0.0.3") as (first, second):
        first.listen()
        second.listen()
        second.setblocking(False)
        reactor = reactor_for("127.0.0.2", "127.0.0.3")
        established = await start(reactor, port_of(first))
        assert peer_of(established) == "127.0.0.2"
        assert reactor.clock.getDelayedCalls() == []
        with pytest.raises(BlockingIOError):
            second.accept()


async def test_the_next_address_is_tried_at_once_when_one_refuses(start):
    with one_port("127.0.0.2", "127.0.0.3", "::1", "127.0.0.4") as socks:
        socks[-1].listen()
        reactor = reactor_for("127.0.0.2", "::1", "127.0.0.3", "127.0.0.4")
        # The clock stands still.
        established = await start(reactor, port_of(socks[0]))
        assert peer_of(established) == "127.0.0.4"


async def test_the_next_address_is_tried_at_once_when_one_has_no_route(start):
    with one_port("127.0.0.2") as (good,):
        good.listen()
        reactor = reactor_for(NO_ROUTE, NO_ROUTE, "127.0.0.2")
        established = await start(reactor, port_of(good))
        assert peer_of(established) == "127.0.0.2"


async def test_the_next_address_is_tried_after_250_ms_without_an_answer(start):
    with one_port("127.0.0.2", "127.0.0.3") as (mute, good), full(mute):
        good.listen()
        reactor = reactor_for("127.0.0.2", "127.0.0.3")
        connecting = start(reactor, port_of(mute))
        await until(reactor.clock.getDelayedCalls)
        reactor.clock.advance(0.24)
        await turns(5)
        assert not connecting.called
        reactor.clock.advance(0.01)
        assert peer_of(await connecting) == "127.0.0.3"


async def test_a_failure_at_once_does_not_wait_for_attempts_that_still_run(start):
    with one_port("127.0.0.2", "127.0.0.3") as (mute, good), full(mute):
        good.listen()
        reactor = reactor_for("127.0.0.2", NO_ROUTE, "127.0.0.3")
        connecting = start(reactor, port_of(mute))
        await until(reactor.clock.getDelayedCalls)
        # Time for the second attempt, and not for another one.
        reactor.clock.advance(0.25)
        await turns(20)
        assert connecting.called
        assert peer_of(await connecting) == "127.0.0.3"


async def test_a_refusal_does_not_wait_for_attempts_that_still_run(start):
    with one_port("127.0.0.2", "127.0.0.3", "127.0.0.4") as (mute, _, good), full(mute):
        good.listen()
        reactor = reactor_for("127.0.0.2", "127.0.0.3", "127.0.0.4")
        connecting = start(reactor, port_of(mute))
        await until(reactor.clock.getDelayedCalls)
        reactor.clock.advance(0.25)
        assert peer_of(await connecting) == "127.0.0.4"


async def test_the_delay_begins_anew_with_each_attempt(start):
    with one_port("127.0.0.2", "127.0.0.3", "127.0.0.4") as (mute, mute_too, good):
        good.listen()
        with full(mute), full(mute_too):
            reactor = reactor_for("127.0.0.2", "127.0.0.3", "127.0.0.4")
            connecting = start(reactor, port_of(mute))
            await until(reactor.clock.getDelayedCalls)
            for _ in range(2):
                assert not connecting.called
                (timer,) = reactor.clock.getDelayedCalls()
                assert timer.getTime() - reactor.clock.seconds() == pytest.approx(0.25)
                reactor.clock.advance(0.25)
                await turns(2)
            assert peer_of(await connecting) == "127.0.0.4"


async def test_the_winner_closes_the_losers(start):
    hosts = ["127.0.0.2", "127.0.0.3", "127.0.0.4"]
    with one_port(*hosts) as (mute, mute_too, good), full(mute), full(mute_too):
        good.listen()
        reactor = reactor_for(*hosts)
        before = open_sockets()
        connecting = start(reactor, port_of(good))
        await until(reactor.clock.getDelayedCalls)
        reactor.clock.advance(0.25)
        assert open_sockets() == before + 2
        reactor.clock.advance(0.25)
        established = await connecting
        assert open_sockets() == before + 1
        assert reactor.clock.getDelayedCalls() == []
        established.close()
        assert open_sockets() == before


async def test_an_early_attempt_can_still_win_after_later_ones_began(start):
    with one_port("127.0.0.2", "127.0.0.3") as (slow, mute), full(mute):
        with full(slow):
            reactor = reactor_for("127.0.0.2", "127.0.0.3")
            connecting = start(reactor, port_of(slow))
            await until(reactor.clock.getDelayedCalls)
            reactor.clock.advance(0.25)
            await turns(3)
            assert not connecting.called
            slow.accept()[0].close()
        # The kernel sends the first one's SYN again after a second.
        assert peer_of(await connecting) == "127.0.0.2"


async def test_the_families_are_tried_in_turn(start):
    with one_port("127.0.0.2", "127.0.0.3", "127.0.0.4", "::1") as (closed, *_):
        reactor = reactor_for("127.0.0.2", "127.0.0.3", "127.0.0.4", "::1")
        with pytest.raises(SocketConnectionRefusedError) as caught:
            await start(reactor, port_of(closed))
    assert [host for host, _ in tried(caught.value)] == [
        "127.0.0.2",
        "::1",
        "127.0.0.3",
        "127.0.0.4",
    ]


@pytest.mark.parametrize(("family", "host"), [(AF_INET, "127.0.0.2"), (AF_INET6, "::1")])
async def test_only_the_family_asked_for_is_tried(start, family, host):
    with one_port("127.0.0.2", "::1") as socks:
        for sock in socks:
            sock.listen()
        options = SocketOptions(ai_family=family)
        reactor = reactor_for("127.0.0.2", "::1")
        assert peer_of(await start(reactor, port_of(socks[0]), options)) == host


# Failures


async def test_refused_by_all_tells_every_attempt(start):
    with one_port("127.0.0.2", "::1") as (closed, _):
        port = port_of(closed)
        before = open_sockets()
        with pytest.raises(SocketConnectionRefusedError) as caught:
            await start(reactor_for("127.0.0.2", "::1"), port)
        assert open_sockets() == before
    error = caught.value
    assert tried(error) == [
        ("127.0.0.2", SocketConnectionRefusedError),
        ("::1", SocketConnectionRefusedError),
    ]
    assert error.errno == errno.ECONNREFUSED
    assert f"127.0.0.2:{port}" in str(error)
    assert f"[::1]:{port}" in str(error)


async def test_an_address_without_a_route_does_not_hide_that_the_others_refused(start):
    with (
        one_port("127.0.0.2") as (closed,),
        pytest.raises(SocketConnectionRefusedError) as caught,
    ):
        await start(reactor_for("127.0.0.2", NO_ROUTE), port_of(closed))
    assert [host for host, _ in tried(caught.value)] == ["127.0.0.2", NO_ROUTE]


async def test_no_route_to_any_address_is_an_error_of_its_own(start):
    with pytest.raises(SocketConnectionError) as caught:
        await start(reactor_for(NO_ROUTE), 80)
    assert type(caught.value) is SocketConnectionError
    assert caught.value.errno == errno.ENETUNREACH


async def test_different_failures_are_reported_together(start):
    # The kernel refuses this option on IPv4, and the closed port the connection on IPv6.
    options = SocketOptions(socket_options=(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1))
    with (
        one_port("127.0.0.2", "::1") as (closed, _),
        pytest.raises(SocketConnectionError) as caught,
    ):
        await start(reactor_for("127.0.0.2", "::1"), port_of(closed), options)
    assert type(caught.value) is SocketConnectionError
    (first, why), (second, refused) = tried(caught.value)
    assert (first, second, refused) == ("127.0.0.2", "::1", SocketConnectionRefusedError)
    assert why is not SocketConnectionRefusedError


async def test_the_kernel_giving_up_is_a_timeout(start):
    """Takes the second that the kernel waits before it looks at the limit."""
    options = SocketOptions(socket_options=(IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 100))
    with (
        one_port("127.0.0.2") as (mute,),
        full(mute),
        pytest.raises(SocketConnectionTimeoutError) as caught,
    ):
        await start(reactor_for("127.0.0.2"), port_of(mute), options)
    assert caught.value.stage == "connect"
    assert tried(caught.value) == [("127.0.0.2", SocketConnectionTimeoutError)]


async def test_a_name_that_is_not_found_fails_before_any_attempt(start):
    with pytest.raises(HostNotFoundError, match=r"other\.invalid"):
        await start(reactor_for("127.0.0.1"), 80, node="other.invalid")


# Arguments


UNIX = SocketOptions(ai_family=AF_UNIX)


@pytest.mark.parametrize(
    ("node", "service", "options", "error"),
    [
        (None, 80, SocketOptions(), TypeError),
        (b"host", 80, SocketOptions(), TypeError),
        ("", 80, SocketOptions(), ValueError),
        ("ho\0st", 80, SocketOptions(), ValueError),
        ("host", None, SocketOptions(), ValueError),
        ("host", 0, SocketOptions(), ValueError),
        ("host", "0", SocketOptions(), ValueError),
        ("host", 65536, SocketOptions(), ValueError),
        ("host", True, SocketOptions(), TypeError),
        ("", None, UNIX, ValueError),
        ("/path", 80, UNIX, ValueError),
        (None, None, UNIX, TypeError),
    ],
)
def test_what_cannot_be_connected_to_is_refused(node, service, options, error):
    with pytest.raises(error, match=r"node|service"):
        check_target(node, service, options)


@pytest.mark.parametrize(
    ("node", "service", "options"),
    [
        ("host", 80, SocketOptions()),
        ("host", "http", SocketOptions()),
        ("::1", "80", SocketOptions()),
        ("host", 0, SocketOptions(ai_socktype=socket.SOCK_DGRAM)),
        ("/path", None, UNIX),
        ("\0abstract", None, UNIX),
    ],
)
def test_what_can_be_connected_to_is_taken(node, service, options):
    check_target(node, service, options)


# Connections with themselves


def port_of_nobody():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return port_of(server)


def connected_with_themselves(monkeypatch, port, times):
    """Have the first sockets get the very port that they are connected to, as the kernel may."""
    left = [times]

    def open_on_the_same_port(*kind):
        sock = open_socket(*kind)
        if left[0]:
            left[0] -= 1
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", port))
        return sock

    monkeypatch.setattr(happy_eyeballs, "open_socket", open_on_the_same_port)
    return left


@pytest.mark.parametrize("times", [1, 2, 3])
async def test_a_connection_with_itself_is_refused(monkeypatch, times):
    """It is made again, twice at most, and nobody listens there."""
    port = port_of_nobody()
    left = connected_with_themselves(monkeypatch, port, times)
    with pytest.raises(SocketConnectionRefusedError) as caught:
        await connect(the_reactor(), "127.0.0.1", port, SocketOptions())
    assert left == [0]
    assert ("with itself" in str(caught.value)) is (times > 2)
    # Its pair of addresses is not in TIME_WAIT.
    with socket.socket() as server:
        server.bind(("127.0.0.1", port))


async def test_a_connection_with_itself_is_kept_where_it_was_asked_for():
    port = port_of_nobody()
    options = SocketOptions(local_address=("127.0.0.1", port))
    established = await connect(the_reactor(), "127.0.0.1", port, options)
    sock = established.descriptor.sock
    assert sock.getsockname() == sock.getpeername()
    set_linger_reset(sock)
    established.close()


async def test_a_bound_socket_may_be_connected_with_itself():
    async with chibi.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.bind(("127.0.0.1", 0))
        await sock.connect(sock.getsockname())
        await sock.sendall(b"hello")
        assert await sock.recv(9) == b"hello"
        sock.abort()
