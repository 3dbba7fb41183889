"""What arrives at a server: bounds, and failures that nobody foresaw."""

from __future__ import annotations

import contextlib
import socket

import pytest
from twisted.internet import reactor
from twisted.internet.defer import fail
from twisted.internet.task import Clock
from twisted.logger import Logger

from tests.support.clocks import turns, until
from tests.support.protocols import (
    Kind,
    Protocols,
    client_context,
    listening,
    raw_client,
    raw_receive,
    tls_peer,
)
from twisted_netsock import ProxyHeader, SocketAddress, SocketOptions
from twisted_netsock._net.incoming import IncomingConnection, IncomingConnections
from twisted_netsock._text import FailureLog

HEADER = ProxyHeader(("192.0.2.1", 56324), ("192.0.2.2", 443)).encode("v1")


def raise_at_once(_: IncomingConnection):
    raise RuntimeError("nobody foresaw this")


def fail_later(_: IncomingConnection):
    return fail(RuntimeError("nobody foresaw this"))


@pytest.mark.parametrize("secure", [raise_at_once, fail_later])
async def test_an_error_that_nobody_foresaw_costs_one_connection(secure, logged_errors):
    delivered = []
    incoming = IncomingConnections(
        reactor,
        SocketOptions(),
        lambda *ready: delivered.append(ready),
        lambda: None,
        secure=secure,
    )
    ours, theirs = socket.socketpair()
    with theirs:
        ours.setblocking(False)
        incoming.begin(ours, SocketAddress(("",)))
        assert incoming.failed == 1
        assert theirs.recv(1) == b""
    assert not delivered
    [logged] = logged_errors
    assert logged["log_failure"].check(RuntimeError)
    logged_errors.clear()


async def test_an_error_of_whoever_it_is_delivered_to_is_logged(logged_errors):
    def deliver(incoming, descriptor):
        incoming.watch.close()
        descriptor.close()
        raise RuntimeError("not today")

    rooms = []
    incoming = IncomingConnections(
        reactor, SocketOptions(proxy_protocol="any"), deliver, lambda: rooms.append(incoming.full)
    )
    incoming.max_pending = 1
    ours, theirs = socket.socketpair()
    with theirs:
        ours.setblocking(False)
        incoming.begin(ours, SocketAddress(("",)))
        assert incoming.full
        theirs.send(HEADER)
        await until(lambda: not incoming.full)
    assert incoming.failed == 0
    assert rooms == [False]
    [logged] = logged_errors
    assert logged["log_failure"].check(RuntimeError)
    logged_errors.clear()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_a_port_leaves_what_is_too_much_to_the_kernel(tls, authority, monkeypatch):
    monkeypatch.setattr("twisted_netsock._net.incoming.MAX_INCOMING", 3)
    kind = Kind(authority, tls=tls)
    servers = Protocols()
    async with listening(kind.server(proxy_protocol="v1"), servers) as port:
        with contextlib.ExitStack() as stack:
            # One address alone would have one place.
            first, *_ = [
                stack.enter_context(raw_client(port, f"127.0.0.{number}")) for number in (2, 3, 4)
            ]
            await turns()
            sock = stack.enter_context(raw_client(port))
            sock.send(HEADER)
            await turns(20)
            assert servers.built == []
            first.close()
            if tls:
                stack.enter_context(await tls_peer(sock, client_context(authority), "localhost"))
            server = await servers.connected()
            assert server.transport.getPeer().host == "192.0.2.1"


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_what_is_too_much_of_one_address_waits_for_its_own(tls, authority, monkeypatch):
    monkeypatch.setattr("twisted_netsock._net.incoming.MAX_INCOMING", 4)
    kind = Kind(authority, tls=tls)
    servers = Protocols()
    options = kind.server(proxy_protocol=None if tls else "v1")
    hello = b"" if tls else HEADER
    async with listening(options, servers) as port:
        with contextlib.ExitStack() as stack:
            mute = [stack.enter_context(raw_client(port, "127.0.0.2")) for _ in range(4)]
            late = stack.enter_context(raw_client(port, "127.0.0.2"))
            late.sendall(hello)
            other = stack.enter_context(raw_client(port))
            other.sendall(hello)
            if tls:
                stack.enter_context(await tls_peer(other, client_context(authority), "localhost"))
            await servers.connected()
            assert len(servers.built) == 1
            for sock in mute:
                sock.close()
            if tls:
                stack.enter_context(await tls_peer(late, client_context(authority), "localhost"))
            await until(lambda: len(servers.built) == 2)


async def test_the_end_of_many_that_wait_is_no_recursion(authority, log_lines):
    servers = Protocols()
    async with listening(authority.server_options(), servers) as port:
        port._incoming.max_pending = 2
        clients = [
            socket.create_connection(("127.0.0.1", port.getHost().port)) for _ in range(100)
        ]
        await until(lambda: port._incoming._slots.waiting == 99)
        for client in clients:
            client.close()
        await until(lambda: port.failed_incoming == 100)
        places = port._incoming._slots
        assert (places.waiting, places._taken, places._queues) == (0, {}, {})


async def test_closing_ends_those_that_wait_as_well(authority):
    servers = Protocols()
    async with listening(authority.server_options(), servers) as port:
        port._incoming.max_pending = 2
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(raw_client(port)) for _ in range(10)]
            await until(lambda: port._incoming._slots.waiting == 9)
            port.stopListening()
            for client in clients:
                assert await raw_receive(client) == b""


def test_failures_of_a_minute_are_summed_up_behind_the_first(log_lines):
    clock = Clock()
    failures = FailureLog(clock, Logger())
    for number in range(500):
        failures.note("{peer} failed: {error}", peer=f"/x\x1b[2J\r\n{number}", error="no\nway")
    assert len(log_lines) == 10
    assert log_lines[0] == r"/x\x1b[2J\r\n0 failed: no\nway"
    clock.advance(60)
    failures.note("{peer} failed: {error}", peer="late", error="why")
    assert log_lines[10:] == [
        "490 more connections have failed within 60 s, without a line each",
        "late failed: why",
    ]
    failures.end()
    assert len(log_lines) == 12
    assert not clock.getDelayedCalls()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_strangers_do_not_fill_the_log(tls, authority, log_lines):
    kind = Kind(authority, tls=tls)
    options = kind.server(proxy_protocol=None if tls else "v1")
    async with listening(options, Protocols()) as port:
        for number in range(1, 101):
            with raw_client(port) as client:
                client.send(b"?")
            await until(lambda number=number: port.failed_incoming == number)
    told = "TLS handshake with" if tls else "connection from"
    assert sum(line.startswith(told) for line in log_lines) == 10
    assert any("90 more connections have failed" in line for line in log_lines)


async def test_closing_gives_no_room(log_lines):
    rooms = []
    incoming = IncomingConnections(
        reactor,
        SocketOptions(proxy_protocol="any"),
        lambda *_: None,
        lambda: rooms.append(True),
    )
    incoming.max_pending = 1
    ours, theirs = socket.socketpair()
    with theirs:
        ours.setblocking(False)
        incoming.begin(ours, SocketAddress(("",)))
        assert incoming.full
        incoming.close()
        await until(lambda: not incoming.full)
        assert theirs.recv(1) == b""
    assert not rooms
    assert incoming.failed == 0
    assert not [line for line in log_lines if "refused" in line]
