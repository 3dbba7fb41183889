"""Messages: several buffers, ancillary data, descriptors."""

from __future__ import annotations

import array
import errno
import os
import socket
import struct
from pathlib import Path

import pytest
from twisted.internet import reactor
from twisted.internet.task import deferLater

from tests.support.loopback import Open, open_bound
from tests.support.streams import TLSStreams, read_to_end, soon
from twisted_netsock import Socket, SocketError, chibi, make_client_socket
from twisted_netsock.testing import CertificateAuthority

# Fixtures.
assert open_bound


class TestMessages:
    async def test_buffers_are_sent_as_one(self, open_bound: Open) -> None:
        one, other = open_bound(), open_bound()
        parts = [
            b"some ",
            bytearray(b"joined "),
            memoryview(b"..parts")[2:],
            array.array("B", b"!"),
        ]
        assert await soon(one.sendmsg(parts, address=other.getsockname())) == 18
        assert await soon(other.recvmsg(100)) == (b"some joined parts!", [], 0, one.getsockname())

    async def test_descriptors_pass(self) -> None:
        one, other = chibi.open_socket_pair()
        async with one, other:
            reader, writer = os.pipe()
            rights = array.array("i", [reader, writer])
            item = (socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)
            receiving = other.recvmsg(10, socket.CMSG_SPACE(rights.itemsize * 2))
            assert await soon(one.sendmsg([b"take"], [item])) == 4
            os.write(writer, b"through")
            os.close(reader)
            os.close(writer)
            data, [(level, kind, content)], flags, _ = await soon(receiving)
            assert (data, level, kind, flags & socket.MSG_CTRUNC) == (b"take", *item[:2], 0)
            passed = array.array("i", content)
            try:
                assert os.read(passed[0], 10) == b"through"
            finally:
                for descriptor in passed:
                    os.close(descriptor)

    async def test_ancillary_data_without_room_is_reported_as_cut(self) -> None:
        one, other = chibi.open_socket_pair(socket_type=socket.SOCK_DGRAM)
        async with one, other:
            item = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [one.fileno()]))
            await soon(one.sendmsg([b"take"], [item]))
            data, ancillary, flags, _ = await soon(other.recvmsg(10))
            assert (data, ancillary) == (b"take", [])
            assert flags & socket.MSG_CTRUNC

    async def test_a_passed_socket_can_be_adopted(self) -> None:
        one, other = chibi.open_socket_pair()
        near, far = chibi.open_socket_pair()
        async with one, other, near:
            item = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [far.fileno()]))
            await soon(one.sendmsg([b"."], [item]))
            far.close()
            [(_, _, content)] = (await soon(other.recvmsg(1, socket.CMSG_SPACE(4))))[1]
            async with Socket.from_socket(array.array("i", content)[0]) as adopted:
                await soon(adopted.sendall(b"from the other process"))
            assert await read_to_end(near) == b"from the other process"

    async def test_the_peer_of_a_unix_socket_is_known_to_the_kernel(self) -> None:
        one, other = chibi.open_socket_pair()
        async with one, other:
            told = one.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            assert struct.unpack("3i", told) == (os.getpid(), os.getuid(), os.getgid())

    async def test_a_tcp_stream_names_no_sender(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            one = await soon(make_client_socket(*listener.getsockname()))
            other = Socket.from_socket(listener.accept()[0])
        async with one, other:
            await one.sendall(b"012345")
            data, sender = await soon(other.recvfrom(2))
            assert (data, sender.family) == (b"01", socket.AF_UNSPEC)
            count, sender = await soon(other.recvfrom_into(bytearray(2)))
            assert (count, sender.family) == (2, socket.AF_UNSPEC)
            data, _, _, sender = await soon(other.recvmsg(2))
            assert (data, sender.family) == (b"45", socket.AF_UNSPEC)

    async def test_tls_has_no_datagrams_or_messages(self, authority: CertificateAuthority) -> None:
        async with TLSStreams(authority).pair() as (one, _):
            for refused in (
                one.recvfrom(1),
                one.recvfrom_into(bytearray(1)),
                one.recvmsg(1),
                one.sendto(b"x", ("127.0.0.1", 9)),
                one.sendmsg([b"x"]),
            ):
                with pytest.raises(SocketError, match="TLS has no datagrams") as caught:
                    await soon(refused)
                assert caught.value.errno == errno.EOPNOTSUPP


async def test_a_full_receiver_on_a_unix_socket_does_not_make_it_spin(tmp_path: Path) -> None:
    """The kernel calls the sender writable all the while."""
    one, other = (chibi.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2))
    async with one, other:
        other.bind((str(tmp_path / "full"),))
        target = other.getsockname()
        tries = 0
        while (sending := one.sendto(b"x", target)).called:
            tries += 1
        writer = one._writer
        assert writer is not None
        attempts = 0
        attempt = writer.attempt

        def counted() -> object:
            nonlocal attempts
            attempts += 1
            return attempt()

        writer.attempt = counted
        for _ in range(2000):
            await deferLater(reactor, 0)
        # Without a pause there would be one in each of these turns.
        assert attempts < 1000
        for _ in range(tries):
            await other.recv(1)
        assert await sending == 1
