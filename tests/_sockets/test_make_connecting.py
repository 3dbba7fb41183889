"""The makers: what they connect, how that fails, and how it is cancelled."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred

from tests.support.clocks import ClockedReactor, the_reactor, turns, until
from tests.support.streams import World, failure_of, finished, record_for, soon, together
from twisted_netsock import (
    CertificateVerificationError,
    HostNotFoundError,
    Socket,
    SocketBindError,
    SocketConnectionError,
    SocketConnectionRefusedError,
    SocketConnectionTimeoutError,
    SocketError,
    SocketOptions,
    TLSSocket,
    TLSSocketOptions,
    make_client_socket,
    make_client_tls_socket,
    make_server_socket,
    make_server_tls_socket,
    socket_options_to_client_socket,
)
from twisted_netsock.testing import CertificateAuthority, ScriptedResolver

Maker = Callable[..., Deferred[Any]]

CLIENTS = [make_client_socket, make_client_tls_socket]
SERVERS = [make_server_socket, make_server_tls_socket]


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def world(authority: CertificateAuthority, request: pytest.FixtureRequest) -> World:
    return World(authority, tls=request.param)


class TestAddresses:
    async def test_sockets_know_what_they_were_made_for(self, world: World) -> None:
        async with await world.serve("127.0.0.1", 0) as server:
            assert (server.node, server.service) == ("127.0.0.1", 0)
            port = server.getsockname().port
            client, accepted = await world.meet(server, "127.0.0.1", str(port))
            assert (client.node, client.service) == ("127.0.0.1", str(port))
            assert (accepted.node, accepted.service) == tuple(client.getsockname())
            client.abort()
            accepted.abort()

    async def test_localhost_is_found(self, world: World) -> None:
        async with await world.serve("localhost", 0) as server:
            port = server.getsockname().port
            client, accepted = await world.meet(server, "localhost", port)
            assert client.node == "localhost"
            client.abort()
            accepted.abort()

    async def test_without_a_node_both_families_are_served(self, world: World) -> None:
        async with await world.serve(None, 0) as server:
            assert server.family == socket.AF_INET6
            port = server.getsockname().port
            for host in ("127.0.0.1", "::1"):
                client, accepted = await world.meet(server, host, port)
                # IPv4 peers appear as IPv4, not as addresses mapped into IPv6.
                assert accepted.getpeername() == client.getsockname()
                assert accepted.getsockname() == client.getpeername()
                assert accepted.getpeername().host == accepted.node == host
                assert f"from {client.getpeername()} to {client.getsockname()}" in repr(accepted)
                client.abort()
                accepted.abort()

    async def test_an_ipv4_peer_is_logged_as_one(
        self, authority: CertificateAuthority, log_lines: list[str]
    ) -> None:
        async with await make_server_tls_socket(None, 0, authority.server_options()) as server:
            accepting = server.accept()
            with socket.create_connection(("127.0.0.1", server.getsockname().port)) as peer:
                port = peer.getsockname()[1]
            await until(lambda: server.failed_handshakes)
            accepting.cancel()
            assert failure_of(accepting) is CancelledError
        assert any(f"handshake with 127.0.0.1:{port} failed" in line for line in log_lines)

    @pytest.mark.parametrize(
        ("node", "fields", "refused", "taken"),
        [
            (None, {"v6_only": True}, "127.0.0.1", "::1"),
            (None, {"ai_family": socket.AF_INET}, "::1", "127.0.0.1"),
            (None, {"ai_family": socket.AF_INET6}, "127.0.0.1", "::1"),
            ("::", {}, "127.0.0.1", "::1"),
            ("127.0.0.1", {}, "::1", "127.0.0.1"),
        ],
    )
    async def test_one_family_only_can_be_asked_for(
        self, world: World, node: str | None, fields: dict[str, Any], refused: str, taken: str
    ) -> None:
        async with await world.serve(node, 0, **fields) as server:
            port = server.getsockname().port
            with pytest.raises(SocketConnectionRefusedError) as caught:
                await soon(world.connect(refused, port))
            assert [address.host for address, _ in caught.value.attempts] == [refused]
            for each in await world.meet(server, taken, port):
                each.abort()

    @pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
    async def test_unix_sockets_have_paths_or_abstract_names(
        self, world: World, tmp_path: Path, abstract: bool
    ) -> None:
        node = f"\0{tmp_path.name}-{id(self)}" if abstract else str(tmp_path / "socket")
        fields: dict[str, Any] = {"ai_family": socket.AF_UNIX}
        if world.tls:
            fields["sni"] = "localhost"
        async with await world.serve(node, None, ai_family=socket.AF_UNIX) as server:
            assert server.getsockname() == (node,)
            client, accepted = await world.meet(server, node, None, **fields)
            assert client.family == accepted.family == socket.AF_UNIX
            assert client.getpeername() == (node,)
            assert (client.node, client.service) == (node, None)
            client.abort()
            accepted.abort()

    async def test_an_address_that_is_taken_is_a_bind_error(self, world: World) -> None:
        async with await world.serve("127.0.0.1", 0) as server:
            port = server.getsockname().port
            with pytest.raises(SocketBindError) as caught:
                await world.serve("127.0.0.1", port)
            assert (caught.value.interface, caught.value.port) == ("127.0.0.1", port)

    async def test_datagrams_are_bound_and_connected(self) -> None:
        options = SocketOptions(ai_socktype=socket.SOCK_DGRAM)
        async with (
            await make_server_socket("127.0.0.1", 0, options) as server,
            await make_client_socket("127.0.0.1", server.getsockname().port, options) as client,
        ):
            await client.send(b"a datagram")
            assert await soon(server.recvfrom(100)) == (b"a datagram", client.getsockname())


class TestOptions:
    @pytest.mark.parametrize("setting", [None, 0])
    async def test_no_delay_is_on_unless_it_is_turned_off(
        self, world: World, setting: int | None
    ) -> None:
        no_delay = (socket.IPPROTO_TCP, socket.TCP_NODELAY)
        fields = {} if setting is None else {"socket_options": (*no_delay, setting)}
        async with await world.serve("127.0.0.1", 0, **fields) as server:
            pair = await world.meet(server, "127.0.0.1", server.getsockname().port, **fields)
            for each in pair:
                assert bool(each.getsockopt(*no_delay)) is (setting is None)
                each.abort()

    async def test_a_refused_socket_option_is_named(self, world: World) -> None:
        bad = {"socket_options": (socket.SOL_SOCKET, 9999, 1)}
        with pytest.raises(SocketError, match=r"socket_options=\(1, 9999, 1\)"):
            await world.serve("127.0.0.1", 0, **bad)
        with pytest.raises(SocketError, match=r"socket_options=\(1, 9999, 1\)"):
            await world.connect("127.0.0.1", 1, **bad)

    async def test_the_local_address_is_bound_before_connecting(self, world: World) -> None:
        async with await world.serve("127.0.0.1", 0) as server:
            port = server.getsockname().port
            pair = await world.meet(server, "127.0.0.1", port, local_address="127.0.0.2")
            assert pair[1].getpeername().host == "127.0.0.2"
            for each in pair:
                each.abort()

    async def test_a_port_can_be_shared(self, world: World) -> None:
        async with await world.serve("127.0.0.1", 0, reuse_port=True) as first:
            port = first.getsockname().port
            async with await world.serve("127.0.0.1", port, reuse_port=True) as second:
                assert second.getsockname() == first.getsockname()

    async def test_timeouts_come_from_the_record(self, world: World) -> None:
        limit = timedelta(seconds=9)
        async with await world.serve("127.0.0.1", 0, read_timeout=limit) as server:
            port = server.getsockname().port
            client, accepted = await world.meet(server, "127.0.0.1", port, write_timeout=limit)
            assert (client.read_timeout, client.write_timeout) == (None, limit)
            assert (accepted.read_timeout, accepted.write_timeout) == (limit, None)
            client.abort()
            accepted.abort()

    async def test_the_records_class_chooses_the_socket(self, world: World) -> None:
        async with await world.serve("127.0.0.1", 0) as server:
            options = world.client_options()
            port = server.getsockname().port
            client, accepted = await together(
                finished(socket_options_to_client_socket(options, "127.0.0.1", port)),
                finished(server.accept()),
            )
            assert type(client) is world.kind
            client.abort()
            accepted.abort()

    async def test_of_several_records_the_servers_name_chooses(
        self, authority: CertificateAuthority
    ) -> None:
        names = ("one.example", "two.example")
        records = [authority.server_options(name, sni=name) for name in names]
        async with await make_server_tls_socket("127.0.0.1", 0, records) as server:
            port = server.getsockname().port
            for name in names:
                client, accepted = await together(
                    finished(
                        make_client_tls_socket(
                            "127.0.0.1", port, authority.client_options(sni=name)
                        )
                    ),
                    finished(server.accept()),
                )
                assert accepted.server_name == name
                client.abort()
                accepted.abort()

    async def test_a_plain_record_makes_a_verified_tls_socket(
        self, authority: CertificateAuthority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trusted = tmp_path / "trusted.pem"
        trusted.write_bytes(authority.certificate_pem)
        async with await make_server_tls_socket(
            "127.0.0.1", 0, authority.server_options()
        ) as server:
            accepting = server.accept()
            port = server.getsockname().port
            with pytest.raises(CertificateVerificationError):
                await soon(make_client_tls_socket("127.0.0.1", port, SocketOptions()))
            # Now the platform's list is one that has the authority.
            monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
            limited = SocketOptions(read_timeout=timedelta(seconds=8))
            client = await soon(make_client_tls_socket("127.0.0.1", port, limited))
            assert isinstance(client, TLSSocket)
            assert client.read_timeout == timedelta(seconds=8)
            (await soon(accepting)).abort()
            client.abort()


class TestFailing:
    @pytest.fixture
    def clock(self) -> Iterator[ClockedReactor]:
        clock = ClockedReactor()
        yield clock
        assert clock.getDelayedCalls() == []

    @pytest.mark.parametrize("maker", [*CLIENTS, make_server_socket])
    async def test_an_unknown_name_or_service_is_not_found(self, maker: Maker) -> None:
        before = ScriptedResolver({}).install()
        try:
            for node, service in (("nowhere.invalid", 80), ("127.0.0.1", "no-such-service")):
                with pytest.raises(HostNotFoundError) as caught:
                    await soon(maker(node, service))
                assert (caught.value.node, caught.value.service) == (node, service)
        finally:
            restore(before)

    @pytest.mark.parametrize("maker", [*CLIENTS, make_server_socket])
    @pytest.mark.parametrize(
        ("node", "family"), [("::1", socket.AF_INET), ("127.0.0.1", socket.AF_INET6)]
    )
    async def test_an_address_of_another_family_is_not_found(
        self, maker: Maker, node: str, family: int
    ) -> None:
        record = TLSSocketOptions if maker is make_client_tls_socket else SocketOptions
        # Nobody has to be asked, and nevertheless it is the Deferred that tells.
        making = maker(node, 80, record(ai_family=family))
        with pytest.raises(HostNotFoundError) as caught:
            await soon(making)
        assert (caught.value.node, caught.value.service) == (node, 80)

    async def test_a_refusal_names_every_address(self, world: World) -> None:
        with socket.socket() as unheard:
            unheard.bind(("127.0.0.1", 0))
            host, port = unheard.getsockname()
            with pytest.raises(SocketConnectionRefusedError) as caught:
                await soon(world.connect(host, port))
            [(address, error)] = caught.value.attempts
            assert address == (host, port)
            assert isinstance(error, SocketConnectionRefusedError)

    @pytest.mark.parametrize(
        ("maker", "stage"),
        [
            (make_client_socket, "look-up"),
            (make_client_socket, "connect"),
            (make_client_tls_socket, "look-up"),
            (make_client_tls_socket, "connect"),
            (make_client_tls_socket, "handshake"),
        ],
    )
    @pytest.mark.parametrize("ending", ["cancel", "timeout"])
    async def test_nothing_is_left_of_a_connection_at_any_stage(
        self,
        clock: ClockedReactor,
        authority: CertificateAuthority,
        maker: Maker,
        stage: str,
        ending: str,
    ) -> None:
        options = record_for(authority, maker, connection_timeout=timedelta(seconds=3))
        clock.nameResolver = ScriptedResolver({}, reactor=clock, delay=None)
        backlog = 0 if stage == "connect" else 10
        with socket.create_server(("127.0.0.1", 0), backlog=backlog) as listener:
            filler = socket.create_connection(listener.getsockname())
            node = "localhost" if stage == "look-up" else "127.0.0.1"
            making = maker(node, listener.getsockname()[1], options, reactor=clock)
            await turns()
            assert not making.called
            if ending == "cancel":
                making.cancel()
                assert failure_of(making) is CancelledError
            else:
                clock.advance(3)
                with pytest.raises(SocketConnectionTimeoutError) as caught:
                    await soon(making)
                assert caught.value.stage == stage
                assert isinstance(caught.value, SocketConnectionError)
            filler.close()

    @pytest.mark.parametrize("maker", SERVERS)
    async def test_listening_can_be_cancelled_during_look_up(
        self, clock: ClockedReactor, authority: CertificateAuthority, maker: Maker
    ) -> None:
        clock.nameResolver = resolver = ScriptedResolver({}, reactor=clock, delay=None)
        making = maker("localhost", 0, record_for(authority, maker), reactor=clock)
        assert resolver.asked == ["localhost"]
        making.cancel()
        assert failure_of(making) is CancelledError


def restore(resolver: Any) -> None:
    from twisted.internet import reactor

    reactor.installNameResolver(resolver)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX], ids=["tcp", "unix"])
@pytest.mark.parametrize("made", [False, True], ids=["connect", "maker"])
async def test_connects_that_are_done_at_once_let_others_have_their_turn(
    family: int, made: bool, tmp_path: Path
) -> None:
    """Within one machine no connect has to wait, so whoever makes many would never give way."""
    place: Any = (str(tmp_path / "socket"), None)
    with socket.socket(family) as listener:
        listener.bind(("127.0.0.1", 0) if family == socket.AF_INET else place[0])
        listener.listen(1000)
        if family == socket.AF_INET:
            place = listener.getsockname()
        turn_after: list[int] = []
        done = 0
        the_reactor().callLater(0, lambda: turn_after.append(done))
        for _ in range(300):
            if made:
                sock = await make_client_socket(*place, SocketOptions(ai_family=family))
            else:
                sock = Socket.from_socket(socket.socket(family))
                await sock.connect(listener.getsockname())
            sock.close()
            done += 1
    assert turn_after
    assert turn_after[0] < 300
