"""Sockets that come from elsewhere and go elsewhere: from_socket, detach, open_socket_pair."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta

import pytest
from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock

from tests.support.clocks import turns
from tests.support.loopback import is_open
from tests.support.streams import (
    TLSStreams,
    failure_of,
    fill,
    read_to_end,
    shrink_buffers,
    soon,
    stick,
)
from twisted_netsock import (
    Socket,
    SocketBusyError,
    SocketClosedError,
    SocketError,
    SocketPortError,
    chibi,
    make_server_tls_socket,
)
from twisted_netsock.testing import CertificateAuthority, connected_pair

Pair = tuple[socket.socket, socket.socket]


def is_non_blocking(number: int) -> bool:
    return bool(fcntl.fcntl(number, fcntl.F_GETFL) & os.O_NONBLOCK)


@pytest.fixture
def native() -> Iterator[Pair]:
    """Two connected sockets of the standard library, closed at the end if nobody took them."""
    with ExitStack() as stack:
        pair = socket.socketpair()
        for sock in pair:
            stack.enter_context(sock)
        yield pair


class TestFromSocket:
    async def test_a_socket_object_is_spent_and_its_descriptor_taken_over(
        self, native: Pair
    ) -> None:
        mine, peer = native
        number = mine.fileno()
        adopted = Socket.from_socket(mine)
        assert (mine.fileno(), adopted.fileno()) == (-1, number)
        assert is_non_blocking(number)
        peer.sendall(b"hello")
        assert await soon(adopted.recv(10)) == b"hello"
        adopted.close()
        assert adopted.fileno() == -1
        assert not is_open(number)
        assert peer.recv(10) == b""

    async def test_a_number_is_taken_over(self, native: Pair) -> None:
        mine, peer = native
        number = mine.detach()
        async with Socket.from_socket(number) as adopted:
            assert adopted.fileno() == number
            assert adopted.family == socket.AF_UNIX
            await soon(adopted.sendall(b"hello"))
            assert peer.recv(10) == b"hello"
            receiving = adopted.recv(10)
            await turns()
            assert not receiving.called
            peer.sendall(b"late")
            assert await soon(receiving) == b"late"
        assert not is_open(number)

    async def test_an_adopted_socket_knows_no_node_service_or_timeout(self, native: Pair) -> None:
        async with Socket.from_socket(native[0]) as adopted:
            assert (adopted.node, adopted.service) == (None, None)
            assert (adopted.read_timeout, adopted.write_timeout) == (None, None)
            adopted.read_timeout = timedelta(seconds=3)
            assert adopted.read_timeout == timedelta(seconds=3)

    async def test_a_listening_socket_can_be_adopted(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        address = listener.getsockname()
        async with Socket.from_socket(listener) as adopted:
            assert adopted.getsockname() == address
            with socket.create_connection(address) as client:
                async with await soon(adopted.accept()) as accepted:
                    assert accepted.getpeername() == client.getsockname()
                    assert is_non_blocking(accepted.fileno())

    async def test_a_datagram_socket_can_be_adopted(self) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        async with Socket.from_socket(sock) as adopted:
            await soon(adopted.sendto(b"to myself", adopted.getsockname()))
            assert await soon(adopted.recvfrom(10)) == (b"to myself", adopted.getsockname())

    @pytest.mark.parametrize("kind", ["object", "number", "-1"])
    async def test_what_is_closed_is_refused(self, kind: str) -> None:
        sock = socket.socket()
        closed = {"object": sock, "number": sock.fileno(), "-1": -1}[kind]
        sock.close()
        with pytest.raises(OSError) as caught:
            Socket.from_socket(closed)
        assert caught.value.errno == errno.EBADF

    async def test_what_is_no_socket_is_refused_and_left_alone(self) -> None:
        reader, writer = os.pipe()
        try:
            with pytest.raises(OSError, match="non-socket") as caught:
                Socket.from_socket(reader)
            assert caught.value.errno == errno.ENOTSOCK
            assert is_open(reader)
            assert not is_non_blocking(reader)
        finally:
            os.close(reader)
            os.close(writer)

    async def test_a_reactor_without_descriptors_is_refused_and_nothing_taken(
        self, native: Pair
    ) -> None:
        mine, peer = native
        mine.setblocking(True)
        with pytest.raises(TypeError, match="does not provide IReactorFDSet"):
            Socket.from_socket(mine, reactor=Clock())
        assert mine.fileno() != -1
        assert not is_non_blocking(mine.fileno())
        peer.sendall(b"still mine")
        assert mine.recv(10) == b"still mine"

    async def test_one_that_is_dropped_open_is_warned_about_and_closed(self, native: Pair) -> None:
        adopted = Socket.from_socket(native[0])
        number = adopted.fileno()
        with pytest.warns(ResourceWarning, match=f"descriptor {number} .*was never closed"):
            del adopted
        assert not is_open(number)


class TestDetach:
    async def test_the_descriptor_is_the_callers_then(self) -> None:
        one, other = connected_pair()
        await soon(one.sendall(b"before"))
        number = one.detach()
        with socket.socket(fileno=number) as native:
            assert one.closed
            assert one.fileno() == -1
            assert is_non_blocking(number)
            native.sendall(b" and after")
            for _ in range(2):
                assert await soon(one.close()) is None
            one.abort()
            assert is_open(number)
        assert await read_to_end(other) == b"before and after"
        other.close()

    async def test_a_detached_socket_can_be_adopted_again(self) -> None:
        one, other = connected_pair()
        # It has been in the poller, and is there no more.
        receiving = one.recv(10)
        await soon(other.sendall(b"first"))
        assert await soon(receiving) == b"first"
        async with other, Socket.from_socket(one.detach()) as again:
            receiving = again.recv(10)
            await turns()
            assert not receiving.called
            await soon(other.sendall(b"second"))
            assert await soon(receiving) == b"second"

    async def test_a_detached_socket_does_nothing_any_more(self) -> None:
        one, other = connected_pair()
        ports = one.input_port, one.output_port
        os.close(one.detach())
        for refused in (one.recv(1), one.send(b"x"), one.shutdown(socket.SHUT_WR)):
            with pytest.raises(SocketClosedError):
                await soon(refused)
        with pytest.raises(SocketClosedError):
            one.detach()
        assert [port.closed for port in ports] == [True, True]
        for port in (ports[0].read(1), ports[1].write(b"x")):
            with pytest.raises(SocketPortError):
                await soon(port)
        other.close()

    async def test_a_detached_socket_is_dropped_without_a_warning(self) -> None:
        one, other = connected_pair()
        number = one.detach()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del one
        assert not caught
        assert is_open(number)
        os.close(number)
        other.close()

    async def test_nothing_is_detached_while_somebody_waits(self) -> None:
        one, other = connected_pair()
        async with one, other:
            receiving = one.recv(10)
            with pytest.raises(SocketBusyError) as caught:
                one.detach()
            assert caught.value.socket is one
            receiving.cancel()
            with pytest.raises(CancelledError):
                await receiving
            shrink_buffers(one)
            _, sending = await fill(one, bytes(50_000))
            with pytest.raises(SocketBusyError):
                one.detach()
            sending.cancel()
            with pytest.raises(CancelledError):
                await sending
            os.close(one.detach())

    async def test_nothing_is_detached_while_an_accept_waits(self) -> None:
        listener = Socket.from_socket(socket.create_server(("127.0.0.1", 0)))
        async with listener:
            accepting = listener.accept()
            with pytest.raises(SocketBusyError):
                listener.detach()
            accepting.cancel()
            with pytest.raises(CancelledError):
                await accepting
            os.close(listener.detach())

    async def test_nothing_is_detached_while_a_port_holds_bytes(self) -> None:
        one, other = connected_pair()
        async with other:
            await soon(other.sendall(b"line\nrest"))
            assert await soon(one.input_port.readline()) == b"line\n"
            with pytest.raises(SocketPortError) as caught:
                one.detach()
            assert caught.value.port is one.input_port
            assert caught.value.socket is one
            assert await soon(one.input_port.read(10)) == b"rest"
            await stick(one)
            # Who sends is busy, too: either error is right.
            with pytest.raises((SocketPortError, SocketBusyError)):
                one.detach()
            assert not one.closed
            one.abort()

    async def test_a_tls_connection_is_not_detached(self, authority: CertificateAuthority) -> None:
        async with TLSStreams(authority).pair() as (one, other):
            with pytest.raises(SocketError, match="TLS"):
                one.detach()
            assert not one.closed
            await soon(one.sendall(b"goes on"))
            assert await soon(other.recv(10)) == b"goes on"

    async def test_a_tls_listener_is_not_detached(self, authority: CertificateAuthority) -> None:
        """It may hold connections whose handshake is done, or under way."""
        options = authority.server_options()
        listener = await soon(make_server_tls_socket("127.0.0.1", 0, options))
        async with listener:
            with pytest.raises(SocketError, match="TLS"):
                os.close(listener.detach())
            assert not listener.closed


class TestPairs:
    @pytest.mark.parametrize(
        "kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET]
    )
    async def test_a_pair_is_connected_with_each_other(self, kind: socket.SocketKind) -> None:
        one, other = chibi.open_socket_pair(socket.AF_UNIX, kind)
        async with one, other:
            for sender, receiver in ((one, other), (other, one)):
                receiving = receiver.recv(10)
                assert await soon(sender.send(b"ping")) == 4
                assert await soon(receiving) == b"ping"
                assert is_non_blocking(sender.fileno())
                assert sender.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == kind
                assert sender.getpeername() == ("",)

    async def test_closing_one_of_a_pair_ends_the_other(self) -> None:
        one, other = chibi.open_socket_pair()
        receiving = other.recv(10)
        one.close()
        assert await soon(receiving) == b""
        other.close()

    async def test_a_pair_that_the_kernel_does_not_make_is_refused(self) -> None:
        with pytest.raises(SocketError) as caught:
            chibi.open_socket_pair(socket.AF_INET)
        assert caught.value.errno == errno.EOPNOTSUPP

    async def test_a_pair_needs_a_reactor_with_descriptors(self) -> None:
        with pytest.raises(TypeError, match="IReactorFDSet"):
            chibi.open_socket_pair(reactor=Clock())

    async def test_a_closed_pair_fails_what_waits(self) -> None:
        one, other = chibi.open_socket_pair()
        waiting = [one.recv(1), other.recv(1)]
        one.close()
        other.close()
        assert failure_of(waiting[0]) is SocketClosedError
        # The other one was closed here, before anybody could look at its end.
        assert failure_of(waiting[1]) is SocketClosedError
