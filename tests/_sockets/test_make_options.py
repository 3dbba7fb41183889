"""What the options of a record come to on the sockets that the makers make, read back."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from tests.support.streams import World, finished, record_for, soon, together
from twisted_netsock import (
    HostNotFoundError,
    Socket,
    SocketOptions,
    make_client_socket,
    make_client_tls_socket,
    make_server_socket,
    make_server_tls_socket,
    socket_options_to_client_socket,
)
from twisted_netsock.testing import CertificateAuthority

Maker = Callable[..., Deferred[Any]]

# Of <linux/in.h> and <asm/socket.h>.
IPPROTO_MPTCP = 262
SO_PROTOCOL = 38

HOSTS = ["127.0.0.1", "::1"]
TCP_INFO_SIZE = 104
FREEBIND = (socket.IPPROTO_IP, 15, 1)


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def world(authority: CertificateAuthority, request: pytest.FixtureRequest) -> World:
    return World(authority, tls=request.param)


def tcp_info(sock: Socket) -> bytes:
    info: bytes = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_SIZE)
    return info


def window_scales(sock: Socket) -> tuple[int, int]:
    """Return the shifts of the peer's window and of ours, as agreed on by the first packets."""
    both = tcp_info(sock)[6]
    return both & 15, both >> 4


def queue_length(listener: Socket) -> int:
    """Return how many connections the kernel queues, what ``ss -ltn`` shows as Send-Q."""
    length: int = struct.unpack_from("=I", tcp_info(listener), 28)[0]
    return length


class TestListening:
    @pytest.mark.parametrize("backlog", [0, 1, 7, 128])
    @pytest.mark.parametrize("host", [*HOSTS, None])
    async def test_the_backlog_is_the_kernels(
        self, world: World, host: str | None, backlog: int
    ) -> None:
        async with await world.serve(host, 0, backlog=backlog) as server:
            assert queue_length(server) == backlog

    async def test_the_backlog_is_128_by_default(self, world: World) -> None:
        async with await world.serve("127.0.0.1", 0) as server:
            assert queue_length(server) == 128

    @pytest.mark.parametrize("v6_only", [False, True])
    async def test_every_interface_is_one_descriptor_on_one_port(
        self, world: World, v6_only: bool
    ) -> None:
        async with await world.serve(None, 0, v6_only=v6_only) as server:
            assert server.getsockname()[:1] == ("::",)
            assert server.getsockname().port
            only = server.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
            assert bool(only) is v6_only

    @pytest.mark.parametrize("reuse_port", [False, True])
    async def test_a_port_is_shared_if_the_record_says_so(
        self, world: World, reuse_port: bool
    ) -> None:
        async with await world.serve("127.0.0.1", 0, reuse_port=reuse_port) as server:
            assert bool(server.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)) is reuse_port
            assert server.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)

    async def test_socket_options_are_set_before_bind(self, world: World) -> None:
        # An address for documentation, which no host has.
        async with await world.serve("203.0.113.9", 0, socket_options=FREEBIND) as server:
            assert server.getsockname().host == "203.0.113.9"

    @pytest.mark.parametrize("host", HOSTS)
    async def test_socket_options_hold_from_the_first_packet_of_what_is_accepted(
        self, world: World, host: str
    ) -> None:
        small = {"socket_options": (socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)}
        async with await world.serve(host, 0, **small) as server:
            pair = await world.meet(server, host, server.getsockname().port)
            assert window_scales(pair[0])[0] == window_scales(pair[1])[1] == 0
            assert window_scales(pair[1])[0] == window_scales(pair[0])[1] > 0
            for each in pair:
                each.abort()


class TestConnecting:
    @pytest.mark.parametrize("host", HOSTS)
    async def test_socket_options_hold_from_the_first_packet(
        self, world: World, host: str
    ) -> None:
        """The window's scale and the segment's size are told in no other."""
        early = {
            "socket_options": [
                (socket.SOL_SOCKET, socket.SO_RCVBUF, 4096),
                (socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1300),
            ]
        }
        async with await world.serve(host, 0) as server:
            client, accepted = await world.meet(server, host, server.getsockname().port, **early)
            assert window_scales(client)[1] == window_scales(accepted)[0] == 0
            assert window_scales(accepted)[1] > 0
            assert 1200 < accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= 1300
            client.abort()
            accepted.abort()

    async def test_an_interface_can_be_chosen(self, world: World) -> None:
        loopback = {"socket_options": (socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")}
        async with await world.serve("127.0.0.1", 0) as server:
            pair = await world.meet(server, "127.0.0.1", server.getsockname().port, **loopback)
            assert pair[0].getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16) == b"lo\0"
            for each in pair:
                each.abort()

    @pytest.mark.parametrize(("host", "local"), [("127.0.0.1", "127.0.0.7"), ("::1", "::1")])
    async def test_the_local_port_is_chosen_by_the_record(
        self, world: World, host: str, local: str
    ) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.bind((local, 0))
            port = probe.getsockname()[1]
        async with await world.serve(host, 0) as server:
            there = server.getsockname().port
            pair = await world.meet(server, host, there, local_address=(local, port))
            assert pair[0].getsockname()[:2] == pair[1].getpeername()[:2] == (local, port)
            for each in pair:
                each.abort()

    async def test_the_record_alone_says_how(self, world: World) -> None:
        options = world.client_options(
            local_address="127.0.0.5",
            socket_options=(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        )
        async with await world.serve("127.0.0.1", 0) as server:
            port = server.getsockname().port
            client, accepted = await together(
                finished(socket_options_to_client_socket(options, "127.0.0.1", port)),
                finished(server.accept()),
            )
            assert type(client) is world.kind
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert accepted.getpeername().host == "127.0.0.5"
            client.abort()
            accepted.abort()


class TestLookUp:
    @pytest.mark.parametrize(
        ("flags", "node", "service"),
        [
            (socket.AI_NUMERICHOST, "localhost", 80),
            (socket.AI_NUMERICSERV, "127.0.0.1", "http"),
        ],
    )
    @pytest.mark.parametrize(
        "maker",
        [make_client_socket, make_client_tls_socket, make_server_socket, make_server_tls_socket],
    )
    async def test_flags_limit_it(
        self, authority: CertificateAuthority, maker: Maker, flags: int, node: str, service: Any
    ) -> None:
        with pytest.raises(HostNotFoundError) as caught:
            await soon(maker(node, service, record_for(authority, maker, ai_flags=flags)))
        assert caught.value.errno == socket.EAI_NONAME

    async def test_flags_that_are_met_change_nothing(self, world: World) -> None:
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        async with await world.serve("127.0.0.1", 0, ai_flags=flags | socket.AI_PASSIVE) as server:
            port = str(server.getsockname().port)
            for each in await world.meet(server, "127.0.0.1", port, ai_flags=flags):
                each.abort()


def has_mptcp() -> bool:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP).close()
    except OSError:
        return False
    return True


class TestMultipathTCP:
    @pytest.mark.skipif(not has_mptcp(), reason="the kernel has no Multipath TCP")
    @pytest.mark.parametrize("host", [*HOSTS, "localhost", None])
    async def test_it_is_a_protocol_number_away(self, world: World, host: str | None) -> None:
        async with await world.serve(host, 0, ai_protocol=IPPROTO_MPTCP) as server:
            port = server.getsockname().port
            pair = await world.meet(server, host or "::1", port, ai_protocol=IPPROTO_MPTCP)
            for each in (server, *pair):
                assert each.getsockopt(socket.SOL_SOCKET, SO_PROTOCOL) == IPPROTO_MPTCP
                each.abort()

    @pytest.mark.skipif(not has_mptcp(), reason="the kernel has no Multipath TCP")
    async def test_tcp_and_it_meet(self, world: World) -> None:
        for there, here in ((IPPROTO_MPTCP, 0), (0, IPPROTO_MPTCP)):
            async with await world.serve("127.0.0.1", 0, ai_protocol=there) as server:
                port = server.getsockname().port
                for each in await world.meet(server, "127.0.0.1", port, ai_protocol=here):
                    each.abort()

    async def test_a_protocol_that_is_none_of_the_type_is_refused(self, world: World) -> None:
        with pytest.raises(HostNotFoundError, match="ai_socktype"):
            await world.serve("127.0.0.1", 0, ai_protocol=socket.IPPROTO_UDP)
        with pytest.raises(HostNotFoundError, match="ai_socktype"):
            await world.connect("127.0.0.1", 1, ai_protocol=socket.IPPROTO_UDP)


class TestDatagrams:
    @pytest.mark.parametrize("host", [*HOSTS, "localhost"])
    async def test_both_sides_honour_the_type(self, host: str) -> None:
        options = SocketOptions(ai_socktype=socket.SOCK_DGRAM)
        async with await make_server_socket(host, 0, options) as server:
            address = server.getsockname()
            async with await make_client_socket(address.host, address.port, options) as client:
                for each in (client, server):
                    kind = each.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
                    assert kind == socket.SOCK_DGRAM
                assert await client.send(b"to you") == 6
                data, sender = await soon(server.recvfrom(100))
                assert (data, sender[:2]) == (b"to you", client.getsockname()[:2])
                await server.sendto(b"and back", sender)
                assert await soon(client.recv(100)) == b"and back"

    async def test_every_interface_of_both_families_is_one_port(self) -> None:
        options = SocketOptions(ai_socktype=socket.SOCK_DGRAM)
        async with await make_server_socket(None, 0, options) as server:
            port = server.getsockname().port
            for host in HOSTS:
                async with await make_client_socket(host, port, options) as client:
                    await client.send(host.encode())
                    data, sender = await soon(server.recvfrom(100))
                    assert (data.decode(), sender.host) == (host, host)

    @pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_RAW])
    def test_tls_is_for_streams(
        self, authority: CertificateAuthority, kind: socket.SocketKind
    ) -> None:
        for maker in (make_client_tls_socket, make_server_tls_socket):
            with pytest.raises(ValueError, match=r"ai_socktype=.*TLS is for SOCK_STREAM"):
                maker("127.0.0.1", 1, record_for(authority, maker, ai_socktype=kind))
        with pytest.raises(ValueError, match=r"TLS is for SOCK_STREAM"):
            make_client_tls_socket("127.0.0.1", 1, SocketOptions(ai_socktype=kind))

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root may open raw sockets")
    @pytest.mark.parametrize("service", [0, "0"])
    async def test_raw_sockets_are_made_too(self, service: Any) -> None:
        # A number for experiments (RFC 3692), which no kernel answers by itself.
        options = SocketOptions(ai_socktype=socket.SOCK_RAW, ai_protocol=253)
        async with (
            await make_server_socket("127.0.0.1", service, options) as server,
            await make_client_socket("127.0.0.1", service, options) as client,
        ):
            await client.send(b"a packet")
            packet, sender = await soon(server.recvfrom(100))
            assert (packet[20:], sender.host) == (b"a packet", "127.0.0.1")
