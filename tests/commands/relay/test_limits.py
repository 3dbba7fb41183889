"""The limits of a relay: how many connections, and how long."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import ssl
from datetime import timedelta

import pytest
from twisted.internet import reactor
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import maybeDeferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.task import Clock

from tests.support.clocks import turns, until
from tests.support.loopback import LOOPBACK
from tests.support.protocols import Protocols
from tests.support.relay import Peer
from twisted_netsock import (
    ServerTLSSocketOptions,
    SocketAddress,
    SocketConnectionLostError,
    SocketOptions,
    TLSSocketOptions,
    client_endpoint,
    server_endpoint,
)
from twisted_netsock.commands.relay.limits import ConnectionLimits, Limits, raise_descriptor_limit
from twisted_netsock.commands.relay.routes import Routes, Target
from twisted_netsock.commands.relay.service import RelayService

pytestmark = pytest.mark.long

LATER = (BlockingIOError,)


class End:
    """A non-blocking socket of a test."""

    def __init__(self, sock):
        sock.setblocking(False)
        self.sock = sock

    async def receives(self, count=100):
        found = []

        def attempt():
            try:
                found.append(self.sock.recv(count))
            except BlockingIOError:
                return False
            except ConnectionResetError:
                found.append("reset")
            return True

        await until(attempt)
        return found[0]


class Running:
    """A relay, its backend, and the sockets of both sides."""

    def __init__(self, service, port, listener, stack):
        self.service, self.port, self.listener, self.stack = service, port, listener, stack

    @property
    def connection_limits(self):
        return self.service._factory.connection_limits

    def connect(self):
        return End(self.stack.enter_context(socket.create_connection((LOOPBACK, self.port))))

    async def accept(self):
        found = []

        def attempt():
            try:
                found.append(self.listener.accept()[0])
            except BlockingIOError:
                return False
            return True

        await until(attempt)
        return End(self.stack.enter_context(found[0]))

    async def pair(self):
        one = self.connect()
        return one, await self.accept()

    def is_served(self):
        try:
            self.stack.enter_context(self.listener.accept()[0])
        except BlockingIOError:
            return False
        return True


@contextlib.asynccontextmanager
async def running(limits, *, listen=None, to=None):
    addresses = []
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server((LOOPBACK, 0)))
        listener.setblocking(False)
        back = client_endpoint(reactor, LOOPBACK, listener.getsockname()[1])
        front = listen or server_endpoint(reactor, LOOPBACK, 0)
        service = RelayService(
            reactor, front, back if to is None else to(back), addresses.append, limits=limits
        )
        service.startService()
        await until(lambda: addresses)
        try:
            yield Running(service, addresses[0].port, listener, stack)
        finally:
            await maybeDeferred(service.stopService)
    await turns()


def reasons(log_lines):
    return [line.split()[1].rstrip(":") for line in log_lines if line.startswith("connection ")]


# Time


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(idle=0.5), "idle"),
        (Limits(lifetime=0.5), "lifetime"),
        (Limits(idle=0.5, lifetime=60), "idle"),
    ],
)
async def test_a_connection_that_lasts_too_long_is_reset(limits, reason, log_lines):
    async with running(limits) as relay:
        one, other = await relay.pair()
        assert await one.receives() == "reset"
        assert await other.receives() == "reset"
    assert reasons(log_lines) == [reason]


async def test_half_a_connection_has_a_limit_of_its_own(log_lines):
    async with running(Limits(idle=60, half_closed=0.2)) as relay:
        one, other = await relay.pair()
        one.sock.shutdown(socket.SHUT_WR)
        assert await other.receives() in {b"", "reset"}
        assert await one.receives() == "reset"
    assert reasons(log_lines) == ["half-closed"]


async def test_a_backend_that_does_not_answer_is_given_up_and_the_next_one_tried(log_lines):
    with socket.create_server((LOOPBACK, 0)) as mute:
        slow = client_endpoint(
            reactor, LOOPBACK, mute.getsockname()[1],
            TLSSocketOptions(certificate_verifier=False, handshake_timeout=None),
        )  # fmt: skip

        def both(back):
            return Routes(default=(Target(slow, "slow"), Target(back, "next")))

        async with running(Limits(connect=1), to=both) as relay:
            one, other = await relay.pair()
            other.sock.sendall(b"hello")
            assert await one.receives() == b"hello"
            told = relay.service.snapshot()["targets"]
            assert told == [
                {"name": "slow", "connected": 0, "failed": 1},
                {"name": "next", "connected": 1, "failed": 0},
            ]
    assert any("to slow: it was not connected within 1 s" in line for line in log_lines)


async def test_when_no_backend_is_left_the_client_is_reset(log_lines):
    closed = socket.create_server((LOOPBACK, 0))
    number = closed.getsockname()[1]
    closed.close()
    back = client_endpoint(reactor, LOOPBACK, number)
    both = Routes(default=(Target(back, "first"), Target(back, "second")))
    async with running(Limits(), to=lambda _: both) as relay:
        assert await relay.connect().receives() == "reset"
    assert [line.split(" to ")[1][:6] for line in log_lines if "cannot connect" in line] == [
        "first:", "second",
    ]  # fmt: skip
    assert reasons(log_lines) == ["unreachable"]


@pytest.mark.parametrize("kind", ["link", "TLS", "transport", "TLS transport", "Twisted's"])
async def test_what_is_taken_before_there_is_a_backend_is_bounded(kind, authority, log_lines):
    options = authority_options(authority) if kind.startswith("TLS") else SocketOptions()
    if kind.endswith("transport"):
        options = options.replace(read_timeout=timedelta(minutes=1))
    listen = server_endpoint(reactor, LOOPBACK, 0, options)
    if kind == "Twisted's":
        listen = TCP4ServerEndpoint(reactor, 0, interface=LOOPBACK)
    with socket.create_server((LOOPBACK, 0)) as mute:
        slow = client_endpoint(
            reactor, LOOPBACK, mute.getsockname()[1],
            TLSSocketOptions(certificate_verifier=False, handshake_timeout=None),
        )  # fmt: skip
        async with running(Limits(), listen=listen, to=lambda _: slow) as relay:
            peer = Peer(relay.connect().sock)
            if kind.startswith("TLS"):
                await peer.perform_handshake(client_context(authority), "localhost")
            await peer.send_until_stalled(bytes(16 * 1024 * 1024))
            taken = relay.service.snapshot()["bytes"]["received"]
            assert taken == 64 * 1024 if kind != "Twisted's" else 0 < taken <= 64 * 1024
            peer.sock.close()


# Connections


@pytest.mark.parametrize(
    "listen",
    [None, TCP4ServerEndpoint(reactor, 0, interface=LOOPBACK)],
    ids=["ours", "twisted"],
)
async def test_at_the_limit_connections_wait_in_the_kernel(listen):
    async with running(Limits(connections=2), listen=listen) as relay:
        first, second = await relay.pair(), await relay.pair()
        third = relay.connect()
        third.sock.sendall(b"patience")
        await turns(30)
        assert relay.service.snapshot()["state"] == "paused"
        assert not relay.is_served()
        for one in first:
            one.sock.close()
        # It was never dropped: what it has said arrives.
        assert await (await relay.accept()).receives() == b"patience"
        second[0].sock.sendall(b"unharmed")
        assert await second[1].receives() == b"unharmed"
        await until(lambda: relay.connection_limits.entered_now == 2)


async def test_handshakes_count_as_connections(authority):
    options = authority_options(authority)
    listen = server_endpoint(reactor, LOOPBACK, 0, options)
    async with running(Limits(connections=2), listen=listen) as relay:
        mute = [relay.connect(), relay.connect()]
        await until(lambda: relay.connection_limits.full)
        assert relay.service.snapshot()["connections"]["open"] == 0
        mute[0].sock.close()
        await until(lambda: not relay.connection_limits.full)
        assert relay.connection_limits.entered_now == 1


def client_context(authority):
    return ssl.create_default_context(cadata=authority.certificate_pem.decode())


def authority_options(authority):
    return ServerTLSSocketOptions(certificates=authority.issue("localhost").pem)


async def test_more_handshakes_than_allowed_wait(authority):
    listen = server_endpoint(reactor, LOOPBACK, 0, authority_options(authority))
    async with running(Limits(handshakes=1), listen=listen) as relay:
        first, _second = relay.connect(), relay.connect()
        await until(lambda: relay.connection_limits.entered_now == 1)
        await turns(30)
        assert relay.connection_limits.entered_now == 1
        first.sock.sendall(b"this is no TLS\r\n\r\n")
        await until(lambda: relay.service.snapshot()["failed_handshakes"] == 1)
        await until(lambda: relay.connection_limits.entered_now == 1)


@pytest.mark.parametrize(
    "listen",
    [None, TCP4ServerEndpoint(reactor, 0, interface=LOOPBACK)],
    ids=["ours", "twisted"],
)
async def test_one_address_cannot_take_everything(listen, log_lines):
    async with running(Limits(per_client=1), listen=listen) as relay:
        one, other = await relay.pair()
        second = relay.connect()
        assert await second.receives() in {b"", "reset"}
        assert relay.connection_limits.turned_away == 1
        for each in one, other:
            each.sock.close()
        await until(lambda: not relay.connection_limits.entered_now)
        await relay.pair()
    assert sum("has 1 connections already" in line for line in log_lines) == 1


async def test_what_cannot_be_paused_is_closed_at_the_limit(authority):
    inner = TCP4ServerEndpoint(reactor, 0, interface=LOOPBACK)
    listen = server_endpoint(reactor, None, None, authority_options(authority), endpoint=inner)
    context = TLSSocketOptions(certificate_verifier=False)
    async with running(Limits(connections=1), listen=listen) as relay:
        back = client_endpoint(reactor, LOOPBACK, relay.port, context)
        clients = Protocols()
        try:
            first = await back.connect(clients)
            await relay.accept()
            with pytest.raises(SocketConnectionLostError):
                await back.connect(Protocols())
            assert not first.transport.disconnected
            assert relay.connection_limits.entered_now == 1
        finally:
            await clients.all_lost()
        await until(lambda: not relay.connection_limits.entered_now)


def mute_listeners(authority):
    """Return listeners on which a client can be silent before the relay knows of it."""
    tls = authority_options(authority)
    return {
        "TLS": server_endpoint(reactor, LOOPBACK, 0, tls),
        "PROXY header": server_endpoint(reactor, LOOPBACK, 0, SocketOptions(proxy_protocol="v1")),
        "both": server_endpoint(reactor, LOOPBACK, 0, tls.replace(proxy_protocol="v1")),
        "inner": server_endpoint(
            reactor, None, None, tls, endpoint=server_endpoint(reactor, LOOPBACK, 0)
        ),
        "Twisted's": server_endpoint(
            reactor, None, None, tls, endpoint=TCP4ServerEndpoint(reactor, 0, interface=LOOPBACK)
        ),
    }


@pytest.mark.parametrize("kind", ["TLS", "PROXY header", "both", "inner", "Twisted's"])
@pytest.mark.parametrize("per_client", [None, 2])
async def test_mute_clients_of_one_address_keep_no_other_waiting(
    kind, per_client, authority, log_lines, monkeypatch
):
    monkeypatch.setattr("twisted_netsock._endpoints.inner_port.MOST_HANDSHAKES", 8)
    limits = Limits(per_client=per_client, handshakes=8)
    async with running(limits, listen=mute_listeners(authority)[kind]) as relay:
        where = (LOOPBACK, relay.port)
        for _ in range(8):
            relay.stack.enter_context(socket.create_connection(where))
        await turns(30)
        sock = relay.stack.enter_context(
            socket.create_connection(where, source_address=("127.0.0.2", 0))
        )
        if kind in {"PROXY header", "both"}:
            sock.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 443\r\n")
        peer = Peer(sock)
        if kind != "PROXY header":
            await peer.perform_handshake(client_context(authority), "localhost")
        await peer.send(b"x")
        assert await (await relay.accept()).receives() == b"x"
        peer.sock.close()


@pytest.mark.parametrize("kind", ["TLS", "both", "inner", "Twisted's"])
async def test_clients_count_from_the_moment_that_they_are_accepted(kind, authority, log_lines):
    limits = Limits(per_client=2)
    async with running(limits, listen=mute_listeners(authority)[kind]) as relay:
        ends = [relay.connect() for _ in range(6)]
        if kind == "both":
            for end in ends:
                end.sock.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 443\r\n")
        await until(lambda: relay.connection_limits.turned_away == 4)
        assert relay.connection_limits.entered_now == 2
        for end in ends:
            end.sock.close()
        await until(lambda: not relay.connection_limits.entered_now)
        assert not relay.connection_limits._admitted


async def test_a_burst_of_one_address_is_served_in_turn(authority):
    listen = server_endpoint(reactor, LOOPBACK, 0, authority_options(authority))
    async with running(Limits(handshakes=2), listen=listen) as relay:
        peers = [Peer(relay.connect().sock) for _ in range(20)]
        await turns(30)
        context = client_context(authority)
        for peer in peers:
            await peer.perform_handshake(context, "localhost")
        for peer in peers:
            await peer.send(b"x")
            assert await (await relay.accept()).receives() == b"x"
            peer.sock.close()


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (IPv4Address("TCP", "192.0.2.1", 1), IPv4Address("TCP", "192.0.2.1", 2), True),
        (IPv4Address("TCP", "192.0.2.1", 1), IPv4Address("TCP", "192.0.2.2", 1), False),
        (IPv6Address("TCP", "2001:db8::1", 1), IPv6Address("TCP", "2001:db8::ffff", 1), True),
        (IPv6Address("TCP", "2001:db8::1", 1), IPv6Address("TCP", "2001:db8:0:1::1", 1), False),
        (IPv6Address("TCP", "fe80::1%lo", 1), IPv6Address("TCP", "fe80::2%lo", 1), True),
        (SocketAddress(("::ffff:192.0.2.1", 1)), SocketAddress(("192.0.2.1", 1)), True),
        (SocketAddress(("::ffff:192.0.2.1", 1)), SocketAddress(("::ffff:192.0.2.2", 1)), False),
        (UNIXAddress(b"/tmp/x"), UNIXAddress(b"/tmp/x"), False),
    ],
)
def test_addresses_of_one_customer_are_counted_together(first, second, same, log_lines):
    connection_limits = ConnectionLimits(Clock(), Limits(per_client=1))
    connection_limits.entered()
    assert connection_limits.admits(first)
    assert connection_limits.admits(second) is not same
    connection_limits.left(first)
    assert connection_limits.admits(first)


def test_nothing_is_kept_of_clients_that_are_gone(log_lines):
    connection_limits = ConnectionLimits(Clock(), Limits(per_client=1))
    address = IPv4Address("TCP", "192.0.2.1", 1)
    connection_limits.entered()
    assert connection_limits.admits(address)
    connection_limits.entered()
    assert not connection_limits.admits(address)
    connection_limits.left(None)
    connection_limits.left(address)
    assert not connection_limits._admitted
    assert connection_limits.entered_now == 0


def test_refusals_are_logged_now_and_then(log_lines):
    clock = Clock()
    connection_limits = ConnectionLimits(clock, Limits(per_client=1))
    address = IPv4Address("TCP", "192.0.2.1", 1)
    assert connection_limits.admits(address)
    for _ in range(100):
        assert not connection_limits.admits(address)
        clock.advance(0.2)
    assert connection_limits.turned_away == 100
    assert len(log_lines) == 2


def test_the_descriptor_limit_is_raised_as_far_as_it_goes():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1]))
        raise_descriptor_limit(500, only_check=True)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 512
        raise_descriptor_limit(500)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 1064
        raise_descriptor_limit(10)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 1064
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# Out of descriptors


@contextlib.contextmanager
def descriptors_left(count):
    """Let the process open *count* more descriptors, and no more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = {int(name) for name in os.listdir("/proc/self/fd")}
    with contextlib.ExitStack() as stack:
        most = max(taken) + 1 + count
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, before[1]))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        # The gaps below are taken as well.
        spare = []
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                spare.append(stack.enter_context(open(os.devnull)))
        for _ in range(count):
            spare.pop().close()
        yield


async def test_without_descriptors_for_the_backend_others_go_on_and_it_recovers(log_lines):
    async with running(Limits()) as relay:
        one, other = await relay.pair()
        with descriptors_left(2):
            # One for this end, one for the relay's; none for the backend.
            assert await relay.connect().receives() == "reset"
            assert relay.connection_limits.rests == 1
            one.sock.sendall(b"going on")
            assert await other.receives() == b"going on"
            assert relay.service.snapshot()["state"] == "paused"
        late = relay.connect()
        late.sock.sendall(b"patience")
        await until(lambda: relay.service.snapshot()["state"] == "running")
        assert await (await relay.accept()).receives() == b"patience"


async def test_without_descriptors_for_clients_others_go_on_and_it_recovers(log_lines):
    async with running(Limits()) as relay:
        one, other = await relay.pair()
        with descriptors_left(1):
            late = relay.connect()
            late.sock.sendall(b"patience")
            await until(lambda: any("for lack of resources" in line for line in log_lines))
            one.sock.sendall(b"going on")
            assert await other.receives() == b"going on"
            lines = len(log_lines)
            await turns(50)
            assert len(log_lines) == lines
        assert await (await relay.accept()).receives() == b"patience"


# Draining


async def test_draining_lets_connections_finish(log_lines):
    async with running(Limits(drain=20)) as relay:
        one, other = await relay.pair()
        draining = relay.service.drain()
        await turns(5)
        with pytest.raises(ConnectionRefusedError):
            relay.connect()
        one.sock.sendall(b"to the end")
        assert await other.receives() == b"to the end"
        assert not draining.called
        one.sock.close()
        other.sock.close()
        await draining
    assert reasons(log_lines) == ["closed"]


async def test_what_does_not_finish_is_cut_off(log_lines):
    async with running(Limits(drain=0.1)) as relay:
        one, other = await relay.pair()
        await relay.service.drain()
        assert await one.receives() == "reset"
        assert await other.receives() == "reset"
    assert reasons(log_lines) == ["drained"]


async def test_draining_lets_handshakes_finish(authority, log_lines):
    listen = server_endpoint(reactor, LOOPBACK, 0, authority_options(authority))
    async with running(Limits(drain=20), listen=listen) as relay:
        one = relay.connect()
        await until(lambda: relay.connection_limits.entered_now == 1)
        draining = relay.service.drain()
        await turns(30)
        assert not draining.called
        one.sock.close()
        await draining


async def test_a_plain_options_record_is_all_that_a_relay_needs():
    plain = server_endpoint(reactor, LOOPBACK, 0, SocketOptions())
    async with running(None, listen=plain) as relay:
        one, other = await relay.pair()
        one.sock.sendall(b"x")
        assert await other.receives() == b"x"
