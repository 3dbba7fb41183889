"""Plain sockets: the contract of streams, and what only they have."""

from __future__ import annotations

import array
import errno
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock

from tests.support.clocks import ClockedReactor, turns
from tests.support.streams import (
    TCPStreams,
    failure_of,
    read_exactly,
    read_to_end,
    soon,
    together,
)
from twisted_netsock import (
    Socket,
    SocketAddress,
    SocketBindError,
    SocketBusyError,
    SocketClosedError,
    SocketConnectionError,
    SocketConnectionLostError,
    SocketConnectionRefusedError,
    SocketError,
)
from twisted_netsock.testing import connected_pair


def fresh(family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> Socket:
    return Socket.from_socket(socket.socket(family, kind))


def local_pair(kind: int = socket.SOCK_STREAM) -> tuple[Socket, Socket]:
    one, other = socket.socketpair(socket.AF_UNIX, kind)
    return Socket.from_socket(one), Socket.from_socket(other)


@contextmanager
def full_listener() -> Iterator[Any]:
    """Give the address of a listener whose queue takes no more connections."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        first = socket.create_connection(listener.getsockname())
        with first:
            yield listener.getsockname()


class TestFromSocket:
    async def test_an_object_is_taken_over_and_spent(self) -> None:
        plain, peer = socket.socketpair()
        number = plain.fileno()
        with peer:
            async with Socket.from_socket(plain) as adopted:
                assert plain.fileno() == -1
                assert adopted.fileno() == number
                assert not os.get_blocking(number)
                assert (adopted.node, adopted.service) == (None, None)
                peer.sendall(b"hello")
                assert await soon(adopted.recv(10)) == b"hello"
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(number)

    async def test_a_number_is_taken_over_and_closed(self) -> None:
        plain, peer = socket.socketpair()
        number = plain.detach()
        with peer:
            async with Socket.from_socket(number) as adopted:
                await adopted.sendall(b"hello")
                assert peer.recv(10) == b"hello"
            assert peer.recv(10) == b""

    def test_what_is_no_open_socket_is_an_os_error(self) -> None:
        closed = socket.socket()
        closed.close()
        reading, writing = os.pipe()
        try:
            for refused in (closed, reading, -1):
                with pytest.raises(OSError):
                    Socket.from_socket(refused)
            os.fstat(reading)
        finally:
            os.close(reading)
            os.close(writing)

    def test_a_reactor_that_cannot_wait_is_refused_and_the_socket_stays(self) -> None:
        with socket.socket() as plain:
            with pytest.raises(TypeError, match="does not provide IReactorFDSet"):
                Socket.from_socket(plain, reactor=Clock())
            assert plain.fileno() >= 0

    async def test_a_detached_descriptor_goes_on_elsewhere(self) -> None:
        one, other = connected_pair()
        number = one.detach()
        assert one.closed
        assert one.fileno() == -1
        with pytest.raises(SocketClosedError):
            one.detach()
        async with Socket.from_socket(number) as again, other:
            await again.sendall(b"still there")
            assert await read_exactly(other, 11) == b"still there"

    async def test_a_socket_in_use_is_not_detached(self) -> None:
        one, other = connected_pair()
        async with one, other:
            receiving = one.recv(1)
            with pytest.raises(SocketBusyError) as caught:
                one.detach()
            assert caught.value.socket is one
            await other.sendall(b"x")
            assert await soon(receiving) == b"x"


class TestConnecting:
    @pytest.mark.parametrize("form", [tuple, SocketAddress])
    async def test_a_numeric_address_is_connected_to(self, form: type[tuple[Any, ...]]) -> None:
        async with fresh() as listener, fresh() as client:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            await soon(client.connect(form(listener.getsockname())))
            accepted = await soon(listener.accept())
            async with accepted:
                await client.sendall(b"connected")
                assert await read_exactly(accepted, 9) == b"connected"

    async def test_a_refusal_has_its_own_error(self) -> None:
        with socket.socket() as unheard:
            unheard.bind(("127.0.0.1", 0))
            async with fresh() as client:
                with pytest.raises(SocketConnectionRefusedError) as caught:
                    await soon(client.connect(unheard.getsockname()))
                assert caught.value.socket is client
                assert caught.value.errno == errno.ECONNREFUSED

    async def test_a_path_where_nobody_is_cannot_be_connected_to(self, tmp_path: Path) -> None:
        async with fresh(socket.AF_UNIX) as client:
            with pytest.raises(SocketConnectionError) as caught:
                await soon(client.connect((str(tmp_path / "nobody"),)))
            assert caught.value.errno == errno.ENOENT

    async def test_a_full_queue_of_a_unix_listener_is_an_error(self, tmp_path: Path) -> None:
        path = str(tmp_path / "full")
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
            listener.bind(path)
            listener.listen(0)
            first.connect(path)
            async with fresh(socket.AF_UNIX) as client:
                with pytest.raises(SocketConnectionError) as caught:
                    await soon(client.connect((path,)))
                assert caught.value.errno == errno.EAGAIN

    @pytest.mark.parametrize("address", [("localhost", 80), ("::1", 80), ("127.0.0.1", 70000)])
    async def test_names_and_other_families_are_refused(self, address: tuple[str, int]) -> None:
        async with fresh() as client:
            for call in (client.connect, client.bind):
                with pytest.raises(ValueError, match="address="):
                    call(address)

    async def test_sending_waits_for_a_connection_under_way(self) -> None:
        with full_listener() as address:
            async with fresh() as client:
                connecting = client.connect(address)
                await turns()
                assert not connecting.called
                for call in (lambda: client.connect(address), lambda: client.send(b"x")):
                    with pytest.raises(SocketBusyError):
                        await soon(call())
                connecting.cancel()
                assert failure_of(connecting) is CancelledError
                assert not client.closed

    async def test_closing_ends_a_connection_under_way(self) -> None:
        with full_listener() as address:
            client = fresh()
            connecting = client.connect(address)
            await turns(1)
            client.close()
            assert failure_of(connecting) is SocketClosedError


class TestListening:
    async def test_an_address_that_is_taken_is_a_bind_error(self) -> None:
        async with fresh() as first, fresh() as second:
            first.bind(("127.0.0.1", 0))
            first.listen()
            with pytest.raises(SocketBindError) as caught:
                second.bind(first.getsockname())
            error = caught.value
            assert error.errno == errno.EADDRINUSE
            assert (error.interface, error.port) == tuple(first.getsockname())
            assert isinstance(error.socketError, OSError)
            assert error.socket is second

    async def test_datagrams_cannot_be_listened_for(self) -> None:
        async with fresh(kind=socket.SOCK_DGRAM) as sock:
            with pytest.raises(SocketError) as caught:
                sock.listen()
            assert caught.value.errno == errno.EOPNOTSUPP

    async def test_no_delay_is_inherited_by_what_is_accepted(self) -> None:
        for setting in (1, 0):
            async with fresh() as listener:
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, setting)
                listener.bind(("127.0.0.1", 0))
                listener.listen()
                with socket.create_connection(listener.getsockname()):
                    async with await soon(listener.accept()) as accepted:
                        found = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                        assert bool(found) is bool(setting)

    async def test_without_descriptors_accepting_pauses_and_goes_on(
        self, log_lines: list[str]
    ) -> None:
        clock = ClockedReactor()
        async with await TCPStreams().listen(reactor=clock) as listener:
            with socket.create_connection(listener.getsockname()) as client:
                with no_more_descriptors():
                    accepting = listener.accept()
                    for _ in range(3):
                        await turns()
                        assert not accepting.called
                        clock.advance(1)
                    await turns()
                complaints = [line for line in log_lines if "cannot accept connections" in line]
                assert len(complaints) == 1
                clock.advance(1)
                async with await soon(accepting) as accepted:
                    assert accepted.getpeername() == client.getsockname()
        assert clock.getDelayedCalls() == []


@contextmanager
def no_more_descriptors() -> Iterator[None]:
    """Have the kernel refuse new descriptors to this process."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


class TestFlags:
    async def test_a_peek_leaves_the_data(self) -> None:
        one, other = connected_pair()
        async with one, other:
            await one.sendall(b"look")
            assert await soon(other.recv(10, socket.MSG_PEEK)) == b"look"
            buffer = bytearray(2)
            assert await soon(other.recv_into(buffer, 0, socket.MSG_PEEK)) == 2
            assert await soon(other.recv(10)) == b"look"

    async def test_urgent_data_is_sent_out_of_band(self) -> None:
        one, other = connected_pair()
        async with one, other:
            assert await one.send(b"!", socket.MSG_OOB) == 1
            await turns()
            assert await soon(other.recv(1, socket.MSG_OOB)) == b"!"

    async def test_a_count_beyond_the_data_is_refused(self) -> None:
        one, other = local_pair(socket.SOCK_DGRAM)
        async with one, other:
            with pytest.raises(ValueError, match="MSG_TRUNC needs a buffer"):
                one.recv(1, socket.MSG_TRUNC)


class TestDatagrams:
    async def test_they_tell_who_sent_them(self) -> None:
        async with fresh(kind=socket.SOCK_DGRAM) as one, fresh(kind=socket.SOCK_DGRAM) as other:
            one.bind(("127.0.0.1", 0))
            other.bind(("127.0.0.1", 0))
            receiving = other.recvfrom(100)
            assert await one.sendto(b"datagram", other.getsockname()) == 8
            assert await soon(receiving) == (b"datagram", one.getsockname())
            await one.sendto(b"", other.getsockname())
            assert await soon(other.recvfrom(100)) == (b"", one.getsockname())

    async def test_they_come_whole_however_long(self) -> None:
        one, other = local_pair(socket.SOCK_DGRAM)
        async with one, other:
            for receive in (
                lambda: other.recv(200_000),
                lambda: other.recvfrom(200_000),
                lambda: other.recvmsg(200_000),
            ):
                await soon(one.send(bytes(100_000)))
                received = await soon(receive())
                data = received if isinstance(received, bytes) else received[0]
                assert len(data) == 100_000

    async def test_a_datagram_longer_than_its_buffer_is_cut(self) -> None:
        one, other = local_pair(socket.SOCK_DGRAM)
        async with one, other:
            for _ in range(4):
                await one.send(b"0123456789")
            buffer = bytearray(4)
            assert await soon(other.recv(4)) == b"0123"
            assert (await soon(other.recvfrom_into(buffer)))[0] == 4
            assert (await soon(other.recvfrom_into(buffer, 0, socket.MSG_TRUNC)))[0] == 10
            data, _, flags, _ = await soon(other.recvmsg(4))
            assert data == bytes(buffer) == b"0123"
            assert flags & socket.MSG_TRUNC

    async def test_a_name_or_another_family_is_refused(self) -> None:
        async with fresh(kind=socket.SOCK_DGRAM) as sock:
            for address in (("localhost", 80), ("::1", 80)):
                with pytest.raises(ValueError, match="address="):
                    sock.sendto(b"x", address)
                with pytest.raises(ValueError, match="address="):
                    sock.sendmsg([b"x"], address=address)

    async def test_messages_carry_descriptors(self) -> None:
        one, other = local_pair()
        reading, writing = os.pipe()
        async with one, other:
            rights = array.array("i", [writing])
            item = (socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)
            assert await one.sendmsg([b"two ", b"parts"], [item]) == 9
            os.close(writing)
            size = socket.CMSG_SPACE(rights.itemsize)
            data, ancillary, _, _ = await soon(other.recvmsg(100, size))
            assert data == b"two parts"
            [(level, kind, passed)] = ancillary
            assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            [number] = array.array("i", passed)
            os.write(number, b"through")
            assert os.read(reading, 100) == b"through"
            os.close(number)
        os.close(reading)


async def test_an_accept_that_finds_a_connection_fires_at_once() -> None:
    async with await TCPStreams().listen() as listener:
        with socket.create_connection(listener.getsockname()) as client:
            accepting = listener.accept()
            assert accepting.called
            async with await accepting as accepted:
                client.sendall(b"early")
                client.close()
                assert await read_to_end(accepted) == b"early"


async def test_many_listen_and_talk_at_once() -> None:
    async with await TCPStreams().listen() as listener:

        async def talk(number: int) -> bytes:
            async with await soon(TCPStreams().connect(listener)) as client:
                await client.sendall(b"%d" % number)
                await client.shutdown(socket.SHUT_WR)
                return await read_to_end(client)

        async def echo() -> None:
            for _ in range(50):
                async with await soon(listener.accept()) as accepted:
                    await soon(accepted.sendall(await read_to_end(accepted)))

        results = await together(echo(), *(talk(number) for number in range(50)))
        assert results[1:] == [b"%d" % number for number in range(50)]


async def test_a_connection_that_was_reset_cannot_be_shut_down_and_that_is_a_loss() -> None:
    one, other = connected_pair()
    one.abort()
    with pytest.raises(SocketConnectionLostError):
        await other.shutdown(socket.SHUT_WR)
    await other.close()
