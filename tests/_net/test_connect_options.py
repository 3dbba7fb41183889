"""Connecting: options, the local address, and UNIX sockets."""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack
from socket import AF_UNIX, IPPROTO_TCP, SOL_SOCKET, TCP_NODELAY

import pytest

from tests.support.clocks import the_reactor
from tests.support.loopback import Connections, one_port, open_sockets, port_of, reactor_for
from twisted_netsock import (
    SocketBindError,
    SocketConnectionError,
    SocketConnectionRefusedError,
    SocketError,
    SocketOptions,
)
from twisted_netsock._net.open_socket import apply_options


@pytest.fixture
def start():
    with Connections() as connections:
        yield connections.start


# Options


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


async def test_options_are_set(start, listener):
    wanted = [
        (SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (IPPROTO_TCP, socket.TCP_KEEPIDLE, 77),
        (SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\3\0\0\0"),
    ]
    options = SocketOptions(socket_options=wanted)
    sock = (await start(the_reactor(), port_of(listener), options, "127.0.0.1")).descriptor
    for level, name, value in wanted:
        size = (len(value),) if isinstance(value, bytes) else ()
        assert sock.sock.getsockopt(level, name, *size) == value


@pytest.mark.parametrize("no_delay", [None, 0, 1])
async def test_tcp_no_delay_is_on_unless_it_is_turned_off(start, listener, no_delay):
    given = () if no_delay is None else ((IPPROTO_TCP, TCP_NODELAY, no_delay),)
    options = SocketOptions(socket_options=given)
    established = await start(the_reactor(), port_of(listener), options, "127.0.0.1")
    is_set = established.descriptor.sock.getsockopt(IPPROTO_TCP, TCP_NODELAY)
    assert bool(is_set) is (no_delay != 0)


async def test_options_are_set_before_connecting(start, listener):
    # The segment size is told to the peer in the first packet only.
    options = SocketOptions(socket_options=(IPPROTO_TCP, socket.TCP_MAXSEG, 600))
    await start(the_reactor(), port_of(listener), options, "127.0.0.1")
    accepted, _ = listener.accept()
    with accepted:
        assert accepted.getsockopt(IPPROTO_TCP, socket.TCP_MAXSEG) <= 600


async def test_an_option_that_the_kernel_refuses_is_named(start, listener):
    before = open_sockets()
    options = SocketOptions(socket_options=(IPPROTO_TCP, 9999, 1))
    with pytest.raises(SocketConnectionError, match=rf"socket_options=\({IPPROTO_TCP:d}, 9999, 1"):
        await start(the_reactor(), port_of(listener), options, "127.0.0.1")
    assert open_sockets() == before


async def test_an_option_that_the_kernel_refuses_is_named_as_in_c(start, listener):
    options = SocketOptions(socket_options=(IPPROTO_TCP, socket.TCP_CONGESTION, b"nosuch"))
    with pytest.raises(SocketConnectionError, match=r"b'nosuch'\) \(TCP_CONGESTION\): No such"):
        await start(the_reactor(), port_of(listener), options, "127.0.0.1")


class Refusing(socket.socket):
    """A socket of a kernel that shares nothing: some do so with UNIX sockets."""

    def setsockopt(self, *_):
        raise OSError(errno.EOPNOTSUPP, "No")


def test_a_port_that_cannot_be_shared_is_reported_by_the_option_that_asked_for_it():
    options = SocketOptions(ai_family=AF_UNIX, reuse_port=True)
    with (
        Refusing(AF_UNIX) as sock,
        pytest.raises(SocketError, match=r"^\[Errno \d+\] reuse_port=True: No$"),
    ):
        apply_options(sock, AF_UNIX, socket.SOCK_STREAM, options)


# The local address


async def test_the_local_address_is_bound(start, listener):
    options = SocketOptions(local_address="127.0.0.9")
    established = await start(the_reactor(), port_of(listener), options, "127.0.0.1")
    accepted, peer = listener.accept()
    with accepted:
        assert peer == established.descriptor.sock.getsockname()
        assert peer[0] == "127.0.0.9"


async def test_the_local_port_is_bound(start, listener):
    with one_port("127.0.0.9") as (taken,):
        port = port_of(taken)
    options = SocketOptions(local_address=("127.0.0.9", port))
    established = await start(the_reactor(), port_of(listener), options, "127.0.0.1")
    assert established.descriptor.sock.getsockname() == ("127.0.0.9", port)


async def test_a_local_port_that_is_taken_is_a_bind_error(start, listener):
    before = open_sockets()
    with one_port("127.0.0.9") as (taken,):
        options = SocketOptions(local_address=("127.0.0.9", port_of(taken)))
        with pytest.raises(SocketBindError) as caught:
            await start(the_reactor(), port_of(listener), options, "127.0.0.1")
        error = caught.value
        assert (error.interface, error.port) == ("127.0.0.9", port_of(taken))
    assert error.errno == errno.EADDRINUSE
    assert open_sockets() == before


async def test_the_local_address_decides_which_families_are_tried(start):
    with one_port("::1", "127.0.0.2") as socks:
        for sock in socks:
            sock.listen()
        options = SocketOptions(local_address="127.0.0.9")
        established = await start(reactor_for("::1", "127.0.0.2"), port_of(socks[0]), options)
        assert established.descriptor.sock.getpeername()[0] == "127.0.0.2"


async def test_a_local_address_of_a_family_that_the_node_has_not_is_reported(start):
    options = SocketOptions(local_address="127.0.0.9")
    with pytest.raises(SocketConnectionError, match=r"local_address='127\.0\.0\.9'"):
        await start(reactor_for("::1"), 80, options)


# UNIX sockets


UNIX = SocketOptions(ai_family=AF_UNIX)


@pytest.mark.parametrize("abstract", [False, True])
async def test_unix_sockets_are_connected_to_by_path(start, tmp_path, abstract):
    path = f"\0{tmp_path}" if abstract else str(tmp_path / "socket")
    with socket.socket(AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        established = await start(the_reactor(), None, UNIX, node=path)
        assert established.descriptor.sock.family == AF_UNIX


@pytest.mark.parametrize(
    ("there", "kind", "number"),
    [
        ("nothing", SocketConnectionError, errno.ENOENT),
        ("bound", SocketConnectionRefusedError, errno.ECONNREFUSED),
        ("full", SocketConnectionError, errno.EAGAIN),
    ],
)
async def test_a_unix_socket_that_takes_no_connection_fails_at_once(
    start, tmp_path, there, kind, number
):
    path = str(tmp_path / "socket")
    with ExitStack() as stack:
        if there != "nothing":
            listener = stack.enter_context(socket.socket(AF_UNIX))
            listener.bind(path)
        if there == "full":
            listener.listen(0)
            filler = stack.enter_context(socket.socket(AF_UNIX))
            filler.connect(path)
        with pytest.raises(kind) as caught:
            await start(the_reactor(), None, UNIX, node=path)
    assert type(caught.value) is kind
    assert caught.value.errno == number
    assert [str(address) for address, _ in caught.value.attempts] == [f"unix:{path}"]
