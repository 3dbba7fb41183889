"""Datagrams: UDP, UNIX datagrams, abstract names."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred

from tests.support.clocks import ClockedReactor, turns
from tests.support.loopback import Open, is_there, open_bound, udp, unix
from tests.support.streams import noise, soon
from twisted_netsock import (
    SocketBindError,
    SocketBusyError,
    SocketConnectionRefusedError,
    SocketError,
    SocketOptions,
    SocketReadTimeoutError,
    chibi,
    make_client_socket,
    make_server_socket,
)

# Fixtures.
assert open_bound


class TestDatagrams:
    async def test_a_datagram_arrives_with_its_sender(self, open_bound: Open) -> None:
        one, other = open_bound(), open_bound()
        receiving = other.recvfrom(100)
        await turns()
        assert not receiving.called
        assert await one.sendto(b"question", other.getsockname()) == 8
        data, sender = await soon(receiving)
        assert (data, sender) == (b"question", one.getsockname())
        assert sender.family == one.family
        assert await other.sendto(b"answer", sender) == 6
        buffer = bytearray(b"." * 10)
        assert await soon(one.recvfrom_into(buffer)) == (6, other.getsockname())
        assert buffer == b"answer...."

    async def test_each_receive_gives_one_datagram(self, open_bound: Open) -> None:
        one, other = open_bound(), open_bound()
        for data in (b"first", b"second", b"third"):
            await soon(one.sendto(data, other.getsockname()))
        assert await soon(other.recv(100)) == b"first"
        assert (await soon(other.recvfrom(100)))[0] == b"second"
        assert await soon(other.recv_into(bytearray(100))) == 5

    async def test_an_empty_datagram_is_one(self, open_bound: Open) -> None:
        one, other = open_bound(), open_bound()
        target = other.getsockname()
        for data in (b"", b"", b"", b"not the end"):
            assert await soon(one.sendto(data, target)) == len(data)
        assert await soon(other.recvfrom(10)) == (b"", one.getsockname())
        assert await soon(other.recvfrom_into(bytearray(10))) == (0, one.getsockname())
        assert await soon(other.recv(10)) == b""
        assert await soon(other.recv(100)) == b"not the end"

    async def test_a_connected_socket_sends_and_receives_without_addresses(
        self, open_bound: Open
    ) -> None:
        one, other, third = open_bound(), open_bound(), open_bound()
        await soon(one.connect(other.getsockname()))
        await soon(other.connect(one.getsockname()))
        assert one.getpeername() == other.getsockname()
        assert await soon(one.send(b"sent")) == 4
        await soon(one.sendall(b"all sent"))
        assert await soon(other.recv(10)) == b"sent"
        assert await soon(other.recv(10)) == b"all sent"
        # From somebody else it is no longer taken.
        stray = third.sendto(b"stray", one.getsockname())
        # A UNIX socket hears of it, UDP does not.
        await soon(stray.addErrback(lambda failure: failure.trap(SocketError)))
        await soon(other.send(b"mine"))
        assert await soon(one.recv(10)) == b"mine"

    async def test_a_peeked_datagram_stays(self, open_bound: Open) -> None:
        one, other = open_bound(), open_bound()
        await soon(one.sendto(b"looked at", other.getsockname()))
        sender = one.getsockname()
        assert await soon(other.recvfrom(6, socket.MSG_PEEK)) == (b"looked", sender)
        assert await soon(other.recvfrom_into(bytearray(6), 0, socket.MSG_PEEK)) == (6, sender)
        assert await soon(other.recvmsg(100)) == (b"looked at", [], 0, sender)

    async def test_a_cancelled_receive_leaves_the_datagram(self, open_bound: Open) -> None:
        one, other = open_bound(), open_bound()
        receives: list[Callable[[], Deferred[Any]]] = [
            lambda: other.recvfrom(10),
            lambda: other.recvfrom_into(bytearray(10)),
            lambda: other.recvmsg(10),
        ]
        for receive in receives:
            waiting = receive()
            with pytest.raises(SocketBusyError):
                await soon(receive())
            await soon(one.sendto(b"kept", other.getsockname()))
            waiting.cancel()
            with pytest.raises(CancelledError):
                await waiting
            assert await soon(other.recv(10)) == b"kept"

    async def test_the_read_timeout_holds_for_datagrams(self, open_bound: Open) -> None:
        clock = ClockedReactor()
        sock = open_bound(reactor=clock)
        sock.read_timeout = timedelta(seconds=3)
        receives = [lambda: sock.recvfrom(1), lambda: sock.recvmsg(1)]
        for receive in receives:
            waiting = receive()
            clock.advance(3)
            with pytest.raises(SocketReadTimeoutError):
                await soon(waiting)

    async def test_a_datagram_needs_a_numeric_address_of_the_family(
        self, open_bound: Open
    ) -> None:
        sock = open_bound()
        wrong = ("127.0.0.1", 9) if sock.family == socket.AF_UNIX else ("/nowhere",)
        for address in (wrong, ("localhost", 9)):
            with pytest.raises(ValueError, match="address="):
                sock.sendto(b"x", address)
            with pytest.raises(ValueError, match="address="):
                sock.sendmsg([b"x"], address=address)

    async def test_one_that_is_too_large_is_refused_and_the_socket_goes_on(
        self, open_bound: Open
    ) -> None:
        one, other = open_bound(), open_bound()
        with pytest.raises(SocketError) as caught:
            await soon(one.sendto(bytes(10_000_000), other.getsockname()))
        assert caught.value.errno == errno.EMSGSIZE
        assert caught.value.socket is one
        await soon(one.sendto(b"fits", other.getsockname()))
        assert await soon(other.recv(10)) == b"fits"


class TestTruncation:
    async def test_what_does_not_fit_is_cut_off(self, open_bound: Open) -> None:
        one, other = open_bound(), open_bound()
        for data in (b"0123456789", b"abcdefghij", b"whole"):
            await soon(one.sendto(data, other.getsockname()))
        assert (await soon(other.recvfrom(4)))[0] == b"0123"
        buffer = bytearray(3)
        assert await soon(other.recv_into(buffer)) == 3
        assert buffer == b"abc"
        assert await soon(other.recv(10)) == b"whole"

    async def test_recvmsg_tells_that_it_was_cut(self, open_bound: Open) -> None:
        one, other = open_bound(), open_bound()
        for _ in range(2):
            await soon(one.sendto(b"0123456789", other.getsockname()))
        data, ancillary, flags, sender = await soon(other.recvmsg(4))
        assert (data, ancillary, sender) == (b"0123", [], one.getsockname())
        assert flags & socket.MSG_TRUNC
        assert not (await soon(other.recvmsg(10)))[2] & socket.MSG_TRUNC

    async def test_msg_trunc_counts_what_was_cut(self, open_bound: Open) -> None:
        one, other = open_bound(), open_bound()
        for _ in range(2):
            await soon(one.sendto(b"0123456789", other.getsockname()))
        buffer = bytearray(b"." * 6)
        room = memoryview(buffer)[:4]
        assert await soon(other.recv_into(room, 0, socket.MSG_TRUNC)) == 10
        assert buffer == b"0123.."
        count, sender = await soon(other.recvfrom_into(room, 0, socket.MSG_TRUNC))
        assert (count, sender) == (10, one.getsockname())
        assert buffer == b"0123.."

    async def test_msg_trunc_without_a_buffer_is_refused(self, open_bound: Open) -> None:
        one, other = open_bound(), open_bound()
        await soon(one.sendto(b"0123456789", other.getsockname()))
        for flags in (socket.MSG_TRUNC, socket.MSG_TRUNC | socket.MSG_PEEK):
            for call in (other.recv, other.recvfrom):
                with pytest.raises(ValueError, match="MSG_TRUNC needs a buffer"):
                    call(4, flags)
        assert await soon(other.recv(10)) == b"0123456789"

    @pytest.mark.parametrize("n", [150_000, 200_000])
    async def test_a_large_datagram_comes_whole(self, n: int) -> None:
        data = noise(150_000)
        one, other = chibi.open_socket_pair(socket_type=socket.SOCK_DGRAM)
        async with one, other:
            for receive in (other.recv, other.recvfrom, other.recvmsg):
                await soon(one.send(data))
                assert await soon(other.recv(n, socket.MSG_PEEK)) == data
                got = await soon(receive(n))
                assert (got if isinstance(got, bytes) else got[0]) == data
            buffer = bytearray(n)
            await soon(one.send(data))
            assert await soon(other.recv_into(buffer)) == len(data)
            assert buffer[: len(data)] == data

    async def test_a_large_message_of_a_sequence_comes_whole(self) -> None:
        data = noise(150_000)
        one, other = chibi.open_socket_pair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        async with one, other:
            await soon(one.send(data))
            assert await soon(other.recv(200_000)) == data
            one.close()
            assert await soon(other.recv(200_000)) == b""


class TestUNIX:
    @pytest.mark.parametrize("connected", [True, False])
    async def test_a_send_waits_while_the_peer_takes_nothing(
        self, tmp_path: Path, connected: bool
    ) -> None:
        async with unix() as one, unix() as other:
            other.bind((str(tmp_path / "other"),))
            if connected:
                await soon(one.connect(other.getsockname()))
            for number in range(10_000):
                data = b"%d" % number
                sending = one.send(data) if connected else one.sendto(data, other.getsockname())
                if not sending.called:
                    break
            await turns()
            assert not sending.called
            for expected in range(number):
                assert await soon(other.recv(10)) == b"%d" % expected
            assert await soon(sending) == len(data)
            assert await soon(other.recv(10)) == data

    async def test_a_datagram_to_nobody_is_refused(self, tmp_path: Path) -> None:
        async with unix() as sock:
            with pytest.raises(SocketError) as caught:
                await soon(sock.sendto(b"x", (str(tmp_path / "nobody"),)))
            assert caught.value.errno == errno.ENOENT

    async def test_an_unnamed_sender_has_an_empty_path(self, tmp_path: Path) -> None:
        async with unix() as one, unix() as other:
            other.bind((str(tmp_path / "other"),))
            await soon(one.sendto(b"x", other.getsockname()))
            assert await soon(other.recvfrom(10)) == (b"x", ("",))

    @pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
    async def test_an_abstract_name_needs_no_file(self, kind: socket.SocketKind) -> None:
        name = f"\0twisted_netsock test {os.getpid()} {kind}"
        options = SocketOptions(ai_family=socket.AF_UNIX, ai_socktype=kind)
        bound = await soon(make_server_socket(name, None, options))
        async with bound:
            assert bound.getsockname() == (name,)
            assert str(bound.getsockname()) == "unix:@" + name[1:]
            async with await soon(make_client_socket(name, None, options)) as client:
                assert client.getpeername() == (name,)
                await soon(client.sendall(b"hello"))
                if kind == socket.SOCK_DGRAM:
                    assert await soon(bound.recv(10)) == b"hello"
                else:
                    async with await soon(bound.accept()) as accepted:
                        assert await soon(accepted.recv(10)) == b"hello"
        with pytest.raises(SocketConnectionRefusedError):
            await soon(make_client_socket(name, None, options))

    async def test_the_kernel_chooses_a_name_for_an_empty_one(self) -> None:
        async with unix() as one, unix() as other:
            other.bind(("",))
            name = other.getsockname()
            assert name.host.startswith("\0")
            await soon(one.sendto(b"found", name))
            assert await soon(other.recv(10)) == b"found"


class TestUDP:
    async def test_a_connected_socket_hears_that_nobody_listens(self) -> None:
        async with udp() as sock:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
                unused.bind(("127.0.0.1", 0))
                nobody = unused.getsockname()
            await soon(sock.connect(nobody))
            receiving = sock.recv(10)
            await soon(sock.send(b"anybody?"))
            with pytest.raises(SocketConnectionRefusedError) as caught:
                await soon(receiving)
            assert caught.value.errno == errno.ECONNREFUSED
            assert caught.value.socket is sock
            await soon(sock.send(b"anybody?"))
            await turns()
            with pytest.raises(SocketConnectionRefusedError):
                await soon(sock.send(b"anybody?"))
            # It goes on: somebody may listen later.
            async with udp(*nobody) as late:
                await soon(sock.send(b"anybody?"))
                assert await soon(late.recv(10)) == b"anybody?"

    async def test_an_address_is_never_reused_unasked(self) -> None:
        options = SocketOptions(ai_socktype=socket.SOCK_DGRAM)
        async with (
            await soon(make_server_socket("127.0.0.1", 0, options)) as bound,
            udp() as other,
        ):
            for sock in (bound, other):
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 0
                with pytest.raises(SocketBindError) as caught:
                    udp(*sock.getsockname())
                assert caught.value.errno == errno.EADDRINUSE
                with pytest.raises(SocketBindError):
                    await soon(make_server_socket(*sock.getsockname(), options))

    async def test_makers_make_connected_and_bound_sockets(self) -> None:
        options = SocketOptions(ai_socktype=socket.SOCK_DGRAM)
        async with (
            await soon(make_server_socket("127.0.0.1", 0, options)) as bound,
            await soon(make_client_socket(*bound.getsockname(), options)) as client,
        ):
            await soon(client.send(b"question"))
            assert await soon(bound.recvfrom(10)) == (b"question", client.getsockname())
            await soon(bound.sendto(b"answer", client.getsockname()))
            assert await soon(client.recv(10)) == b"answer"

    async def test_ipv4_peers_of_a_dual_socket_appear_as_ipv4(self) -> None:
        if not is_there("::1"):
            pytest.skip("this host has no IPv6 loopback")
        options = SocketOptions(ai_socktype=socket.SOCK_DGRAM)
        async with await soon(make_server_socket(None, 0, options)) as bound, udp() as client:
            await soon(client.sendto(b"question", ("127.0.0.1", bound.getsockname().port)))
            data, sender = await soon(bound.recvfrom(10))
            assert (data, sender) == (b"question", client.getsockname())
            await soon(bound.sendto(b"answer", sender))
            assert await soon(client.recv(10)) == b"answer"

    async def test_broadcasting_needs_permission(self) -> None:
        async with udp() as one, udp("127.255.255.255") as other:
            with pytest.raises(SocketError) as caught:
                await soon(one.sendto(b"all", other.getsockname()))
            assert caught.value.errno == errno.EACCES
            one.setsockopt(chibi.LEVEL_SOCKET, chibi.SOCKET_OPT_BROADCAST, 1)
            assert one.getsockopt(chibi.LEVEL_SOCKET, chibi.SOCKET_OPT_BROADCAST) == 1
            assert await soon(one.sendto(b"all", other.getsockname())) == 3
            assert await soon(other.recvfrom(10)) == (b"all", one.getsockname())

    async def test_a_member_of_a_group_receives_what_is_sent_to_it(self) -> None:
        group = "239.255.77.77"
        loopback = socket.inet_aton("127.0.0.1")
        async with udp(group) as member, udp() as sender:
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, loopback)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 0)
            membership = socket.inet_aton(group) + loopback
            target = member.getsockname()
            await soon(sender.sendto(b"before", target))
            member.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
            await soon(sender.sendto(b"joined", target))
            assert await soon(member.recvfrom(10)) == (b"joined", sender.getsockname())
            member.setsockopt(socket.IPPROTO_IP, socket.IP_DROP_MEMBERSHIP, membership)
            receiving = member.recv(10)
            await soon(sender.sendto(b"left", target))
            await turns()
            assert not receiving.called
            receiving.cancel()
            with pytest.raises(CancelledError):
                await receiving
