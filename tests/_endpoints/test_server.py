"""Server endpoints: listening, stopping, and peers that behave badly."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from datetime import timedelta

import pytest
from twisted.internet import reactor
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

from tests.support.clocks import turns, until
from tests.support.loopback import LOOPBACK, reset, resolving
from tests.support.protocols import (
    Kind,
    NegotiatingProtocols,
    Protocols,
    Recorder,
    client_context,
    connected,
    listening,
    raw_client,
    raw_receive,
)
from twisted_netsock import (
    SocketBindError,
    SocketClosedError,
    SocketOptions,
    TLSHandshakeError,
    client_endpoint,
    server_endpoint,
)


async def greet(kind, port, servers, count=1, node=LOOPBACK):
    """Connect to *port* and say hello to the protocol that is built."""
    clients = Protocols()
    options = kind.client(sni="localhost") if kind.tls else kind.client()
    client = await client_endpoint(reactor, node, port.getHost().port, options).connect(clients)
    client.transport.write(b"hello")
    server = await servers.connected(count)
    assert await server.receives(5) == b"hello"
    await clients.all_lost()
    return server


# Listening


async def test_port_0_is_a_port_that_the_kernel_chooses(kind):
    servers = Protocols()
    async with (
        listening(kind.server(), servers) as one,
        listening(kind.server(), servers) as other,
    ):
        assert isinstance(one.getHost(), IPv4Address)
        assert 0 not in {one.getHost().port, other.getHost().port}
        assert one.getHost() != other.getHost()


async def test_one_endpoint_has_several_listeners(kind):
    where = server_endpoint(reactor, LOOPBACK, 0, kind.server())
    one_factory, other_factory = Protocols(), Protocols()
    one = await where.listen(one_factory)
    other = await where.listen(other_factory)
    await one.stopListening()
    await greet(kind, other, other_factory)
    await other.stopListening()
    assert one_factory.built == []
    assert one_factory.life == other_factory.life == ["start", "stop"]
    await other_factory.all_lost()


async def test_node_none_is_every_interface_of_both_families(kind):
    servers = Protocols()
    async with listening(kind.server(), servers, node=None) as port:
        assert port.getHost() == IPv6Address("TCP", "::", port.getHost().port, 0, 0)
        await greet(kind, port, servers, 1, LOOPBACK)
        await greet(kind, port, servers, 2, "::1")
    assert [type(each) for each in servers.addresses] == [IPv4Address, IPv6Address]
    assert [each.host for each in servers.addresses] == [LOOPBACK, "::1"]


async def test_an_ipv4_peer_of_a_dual_stack_port_looks_like_any_other():
    servers = Protocols()
    async with listening(SocketOptions(), servers, node=None) as port:
        with raw_client(port):
            transport = (await servers.connected()).transport
            assert transport.getHost() == IPv4Address("TCP", LOOPBACK, port.getHost().port)
            assert isinstance(transport.getPeer(), IPv4Address)


async def test_v6_only_leaves_ipv4_alone():
    servers = Protocols()
    async with listening(SocketOptions(v6_only=True), servers, node=None) as port:
        where = client_endpoint(reactor, LOOPBACK, port.getHost().port)
        with pytest.raises(ConnectionRefusedError):
            await where.connect(Protocols())


async def test_every_address_of_a_name_is_bound_on_one_port(kind):
    servers = Protocols()
    with resolving({"two.example": [LOOPBACK, "127.0.0.2"]}):
        async with listening(kind.server(), servers, node="two.example") as port:
            assert port.getHost().host == LOOPBACK
            await greet(kind, port, servers, 1, LOOPBACK)
            await greet(kind, port, servers, 2, "127.0.0.2")


async def test_reuse_port_lets_two_ports_share_an_address():
    options = SocketOptions(reuse_port=True)
    async with listening(options, Protocols()) as port:
        again = port.getHost().port
        async with listening(options, Protocols(), service=again) as other:
            assert other.getHost() == port.getHost()


async def test_accepted_connections_send_small_writes_at_once(kind):
    async with connected(kind) as pair:
        assert pair.client.transport.getTcpNoDelay()
        assert pair.server.transport.getTcpNoDelay()


async def test_socket_options_can_turn_that_off(kind):
    fields = {"socket_options": (socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)}
    async with connected(kind, server_fields=fields, client_fields=fields) as pair:
        assert not pair.client.transport.getTcpNoDelay()
        assert not pair.server.transport.getTcpNoDelay()


async def test_read_timeout_of_a_server_holds_for_its_connections(kind, clocked):
    servers = Protocols()
    options = kind.server(read_timeout=timedelta(seconds=5))
    async with listening(options, servers, on=clocked) as port:
        clocked.advance(60)
        clients = Protocols()
        where = client_endpoint(reactor, LOOPBACK, port.getHost().port, kind.client())
        await where.connect(clients)
        server = await servers.connected()
        clocked.advance(6)
        assert isinstance(await server.loses(), TimeoutError)
        await clients.all_lost()


# Stopping


async def test_stopping_frees_the_port_at_once(kind):
    port = await server_endpoint(reactor, LOOPBACK, 0, kind.server()).listen(Protocols())
    number = port.getHost().port
    stopped = port.stopListening()
    assert stopped.called
    with socket.create_server((LOOPBACK, number)):
        pass


async def test_stopping_twice_is_stopping_once(kind):
    servers = Protocols()
    port = await server_endpoint(reactor, LOOPBACK, 0, kind.server()).listen(servers)
    await port.stopListening()
    await port.stopListening()
    port.loseConnection()
    assert servers.life == ["start", "stop"]


async def test_starting_a_port_that_listens_changes_nothing(kind):
    servers = Protocols()
    async with listening(kind.server(), servers) as port:
        port.startListening()
        await greet(kind, port, servers)
    assert servers.life == ["start", "stop"]


async def test_a_port_that_has_stopped_cannot_start_again():
    port = await server_endpoint(reactor, LOOPBACK, 0).listen(Protocols())
    await port.stopListening()
    with pytest.raises(SocketClosedError, match="cannot start again"):
        port.startListening()


async def test_a_port_tells_its_address_and_state_also_when_stopped():
    port = await server_endpoint(reactor, LOOPBACK, 0).listen(Protocols())
    where = port.getHost()
    assert f"listening on {LOOPBACK}:{where.port}" in repr(port)
    await port.stopListening()
    assert port.getHost() == where
    assert "stopped" in repr(port)


async def test_the_log_has_a_port_as_twisted_has_it(kind, log_lines):
    port = await server_endpoint(reactor, LOOPBACK, 0, kind.server()).listen(Protocols())
    number = port.getHost().port
    begun = "Protocols (TLS)" if kind.tls else "Protocols"
    assert f"{begun} starting on {number}" in log_lines
    closed = f"({'TLS' if kind.tls else 'TCP'} Port {number} Closed)"
    assert closed not in log_lines
    await port.stopListening()
    await port.stopListening()
    assert log_lines.count(closed) == 1


async def test_the_log_has_a_unix_port_as_twisted_has_it(tmp_path, log_lines):
    path = str(tmp_path / "sock")
    options = SocketOptions(ai_family=socket.AF_UNIX)
    ours = await server_endpoint(reactor, path, None, options).listen(Protocols())
    await ours.stopListening()
    ours_said = list(log_lines)
    theirs = reactor.listenUNIX(path, Protocols())
    await theirs.stopListening()
    assert ours_said == log_lines[len(ours_said) :]


async def test_connections_go_on_after_stopping(kind):
    servers, clients = Protocols(), Protocols()
    async with listening(kind.server(), servers) as port:
        where = client_endpoint(reactor, LOOPBACK, port.getHost().port, kind.client())
        client = await where.connect(clients)
        server = await servers.connected()
        await port.stopListening()
        client.transport.write(b"still there?")
        assert await server.receives(12) == b"still there?"
        server.transport.write(b"yes")
        assert await client.receives(3) == b"yes"
        await clients.all_lost()


async def test_a_handshake_that_is_not_done_ends_with_the_port(authority):
    servers = Protocols()
    async with listening(authority.server_options(), servers) as port:
        with raw_client(port) as mute:
            await turns(10)
            await port.stopListening()
            with contextlib.suppress(ConnectionResetError):
                assert await raw_receive(mute) == b""
    assert servers.built == []


def is_there(path):
    return os.path.exists(path)


async def test_a_unix_path_is_gone_after_stopping(tmp_path, kind):
    path = str(tmp_path / "socket")
    unix = kind.server(ai_family=socket.AF_UNIX)
    port = await server_endpoint(reactor, path, None, unix).listen(Protocols())
    assert port.getHost() == UNIXAddress(path.encode())
    assert is_there(path)
    with pytest.raises(SocketBindError):
        await server_endpoint(reactor, path, None, unix).listen(Protocols())
    assert is_there(path)
    await port.stopListening()
    assert not is_there(path)


async def test_an_abstract_unix_name_is_no_path():
    name = f"\0netsock-test-{os.getpid()}"
    servers, clients = Protocols(), Protocols()
    unix = SocketOptions(ai_family=socket.AF_UNIX)
    async with listening(unix, servers, node=name, service=None):
        client = await client_endpoint(reactor, name, None, unix).connect(clients)
        client.transport.write(b"hello")
        assert await (await servers.connected()).receives(5) == b"hello"
        await clients.all_lost()


# Factories


async def test_a_server_factory_starts_and_stops_with_its_port(kind):
    servers = Protocols()
    async with listening(kind.server(), servers) as port:
        assert servers.life == ["start"]
        await greet(kind, port, servers)
        assert servers.life == ["start"]
        await port.stopListening()
        assert servers.life == ["start", "stop"]


class Unwilling(NegotiatingProtocols):
    """A factory that raises when it is to be used, the first time."""

    def __init__(self, where):
        super().__init__()
        self._where = where

    def _raise_in(self, name):
        if self._where == name:
            self._where = None
            raise RuntimeError(f"not today: {name}")

    def startFactory(self):
        self._raise_in("startFactory")
        super().startFactory()

    def acceptableProtocols(self):
        self._raise_in("acceptableProtocols")
        return []


@pytest.mark.parametrize("where", ["startFactory", "acceptableProtocols"])
async def test_what_a_factory_raises_leaves_the_port_free(where, authority):
    options = authority.server_options()
    with socket.create_server((LOOPBACK, 0)) as free:
        number = free.getsockname()[1]
    place = server_endpoint(reactor, LOOPBACK, number, options)
    servers = Unwilling(where)
    # What holds the traceback holds the sockets.
    with pytest.raises(RuntimeError, match=where) as caught:
        await place.listen(servers)
    port = await place.listen(servers)
    await port.stopListening()
    assert servers.life == ["start", "stop"]
    assert caught


async def test_what_a_factory_raises_at_its_start_leaves_no_path(tmp_path):
    path = str(tmp_path / "socket")
    unix = SocketOptions(ai_family=socket.AF_UNIX)
    with pytest.raises(RuntimeError):
        await server_endpoint(reactor, path, None, unix).listen(Unwilling("startFactory"))
    assert not is_there(path)


async def test_a_factory_that_builds_nothing_drops_the_connection_quietly(kind, log_lines):
    servers, clients = Protocols(lambda: None), Protocols()
    async with listening(kind.server(), servers) as port:
        where = client_endpoint(reactor, LOOPBACK, port.getHost().port, kind.client())
        client = await where.connect(clients)
        await client.loses()
        assert len(servers.addresses) == 1
    assert not any("Traceback" in line for line in log_lines)


class FailsWhenMade(Recorder):
    """Raises from connectionMade, the first time."""

    failures = 0

    def connectionMade(self):
        super().connectionMade()
        if not FailsWhenMade.failures:
            FailsWhenMade.failures += 1
            raise ZeroDivisionError("not made for this")


def fails_once():
    """Return a callable that raises at its first call."""
    calls = []

    def make():
        calls.append(None)
        if len(calls) == 1:
            raise ZeroDivisionError("no protocol today")
        return Recorder()

    return make


async def test_an_exception_of_build_protocol_costs_that_connection_alone(kind, logged_errors):
    servers, clients = Protocols(fails_once()), Protocols()
    async with listening(kind.server(), servers) as port:
        where = client_endpoint(reactor, LOOPBACK, port.getHost().port, kind.client())
        await (await where.connect(clients)).loses()
        await greet(kind, port, servers)
    assert [event["log_failure"].type for event in logged_errors] == [ZeroDivisionError]
    logged_errors.clear()


async def test_an_exception_of_connection_made_costs_that_connection_alone(kind, logged_errors):
    FailsWhenMade.failures = 0
    servers, clients = Protocols(FailsWhenMade), Protocols()
    async with listening(kind.server(), servers) as port:
        where = client_endpoint(reactor, LOOPBACK, port.getHost().port, kind.client())
        client = await where.connect(clients)
        await greet(kind, port, servers, 2)
        await client.loses()
    assert [event["log_failure"].type for event in logged_errors] == [ZeroDivisionError]
    logged_errors.clear()


# Peers


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\x16",
        b"GET / HTTP/1.1\r\n\r\n",
        bytes(range(256)) * 80,
        b"\x16\x03\x01\xff\xff" * 99,
    ],
    ids=["nothing", "a byte", "HTTP", "noise", "a long record"],
)
async def test_a_bad_tls_peer_disturbs_no_other(authority, said):
    kind, servers = Kind(authority, tls=True), Protocols()
    async with listening(kind.server(), servers) as port:
        with contextlib.ExitStack() as stack:
            peers = [stack.enter_context(raw_client(port)) for _ in range(3)]
            for peer in peers:
                peer.send(said)
            await greet(kind, port, servers)
            assert len(servers.built) == 1


async def test_a_slow_tls_peer_is_served_in_the_end(authority):
    """Its handshake comes byte by byte, while others connect."""
    kind, servers = Kind(authority, tls=True), Protocols()
    async with listening(kind.server(), servers) as port:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = client_context(authority).wrap_bio(incoming, outgoing, server_hostname="localhost")
        with raw_client(port) as slow:
            with pytest.raises(ssl.SSLWantReadError):
                tls.do_handshake()
            await dribble(slow, outgoing.read(20))
            await greet(kind, port, servers)
            await dribble(slow, outgoing.read())
            for _ in range(10):
                incoming.write(await raw_receive(slow))
                with contextlib.suppress(ssl.SSLWantReadError):
                    tls.do_handshake()
                    break
            tls.write(b"hello")
            await dribble(slow, outgoing.read())
            assert await (await servers.connected(2)).receives(5) == b"hello"


async def dribble(sock, data):
    """Send *data* byte by byte, each in a reactor iteration of its own."""
    for byte in data:
        sock.send(bytes([byte]))
        await turns(1)


async def test_a_mute_tls_peer_is_dropped_after_handshake_timeout(authority, clocked, log_lines):
    servers = Protocols()
    async with listening(authority.server_options(), servers, on=clocked) as port:
        with raw_client(port) as mute:
            await until(clocked.getDelayedCalls)
            clocked.advance(9.9)
            await turns()
            with pytest.raises(BlockingIOError):
                mute.recv(1)
            clocked.advance(0.2)
            assert await raw_receive(mute) == b""
            where = mute.getsockname()
    assert servers.built == []
    assert any(f"{where[0]}:{where[1]}" in line and "handshake" in line for line in log_lines)


async def test_a_failed_handshake_is_reported_with_address_and_reason(authority, log_lines):
    servers = Protocols()
    async with listening(authority.server_options(), servers) as port:
        with raw_client(port) as peer:
            peer.send(b"GET / HTTP/1.1\r\n\r\n")
            where = peer.getsockname()
            line = await until(
                lambda: next((line for line in log_lines if "handshake with" in line), None)
            )
    assert f"{where[0]}:{where[1]}" in line
    assert "http request" in line


async def test_a_peer_that_resets_at_once_disturbs_no_other(kind):
    servers = Protocols()
    async with listening(kind.server(), servers) as port:
        for _ in range(3):
            with raw_client(port) as peer:
                reset(peer)
        clients = Protocols()
        where = client_endpoint(reactor, LOOPBACK, port.getHost().port, kind.client())
        client = await where.connect(clients)
        client.transport.write(b"hello")
        await until(lambda: any(each.received == b"hello" for each in servers.built))
        await clients.all_lost()


async def test_many_clients_at_once_are_all_served(kind):
    servers, clients = Protocols(), Protocols()
    async with listening(kind.server(), servers) as port:
        where = client_endpoint(reactor, LOOPBACK, port.getHost().port, kind.client())
        waiting = [where.connect(clients) for _ in range(50)]
        for number, connecting in enumerate(waiting):
            (await connecting).transport.write(b"%d" % number)
        await until(lambda: len(servers.built) == 50 and all(s.received for s in servers.built))
        assert sorted(int(s.received) for s in servers.built) == list(range(50))
        await clients.all_lost()


async def test_clients_are_asked_for_certificates(authority, other_authority):
    """A refusal reaches the client at the latest with its first read."""
    trusted = authority.certificate_pem
    options = authority.server_options(
        client_certificate_required=True, trusted_certificates=trusted
    )
    servers = Protocols()
    async with listening(options, servers) as port:
        issued = authority.issue("a client")
        clients = Protocols()
        good = authority.client_options(certificates=issued.pem)
        where = client_endpoint(reactor, LOOPBACK, port.getHost().port, good)
        await where.connect(clients)
        server = await servers.connected()
        assert server.transport.peer_certificate == issued.certificate
        assert server.transport.getPeerCertificate().to_cryptography() == issued.certificate
        for bad in (
            authority.client_options(),
            authority.client_options(certificates=other_authority.issue("x").pem),
        ):
            where = client_endpoint(reactor, LOOPBACK, port.getHost().port, bad)
            try:
                reason = await (await where.connect(clients)).loses()
            except TLSHandshakeError as error:
                reason = error
            assert reason.alert in {"certificate required", "unknown ca"}
        await clients.all_lost()
    assert len(servers.built) == 1
