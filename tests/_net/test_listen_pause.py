"""Ports that are paused, guarded, or listen on sockets from elsewhere."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys

import pytest
from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString

from tests.support.clocks import turns, until
from tests.support.loopback import LOOPBACK
from tests.support.protocols import Protocols
from twisted_netsock import (
    ServerTLSSocketOptions,
    SocketBindError,
    SocketError,
    SocketOptions,
    server_endpoint,
)
from twisted_netsock._net.activation import activated_sockets


class Guard:
    """Counts, and lets in whom it is told to."""

    def __init__(self, *, admits=True):
        self.inside = self.total = 0
        self.admitted = admits
        self.admitted_and_gone = 0
        self.asked = []

    def admits(self, peer):
        self.asked.append(peer)
        return self.admitted

    def entered(self):
        self.inside += 1
        self.total += 1

    def left(self, peer):
        self.inside -= 1
        self.admitted_and_gone += peer is not None


@contextlib.asynccontextmanager
async def port_of(options=None, endpoint=None):
    protocols = Protocols()
    endpoint = endpoint or server_endpoint(reactor, LOOPBACK, 0, options)
    port = await endpoint.listen(protocols)
    try:
        yield port, protocols
    finally:
        await port.stopListening()
        await protocols.all_lost()


def connect(port):
    return socket.create_connection((LOOPBACK, port.getHost().port))


async def test_a_paused_port_leaves_connections_to_the_kernel():
    async with port_of() as (port, protocols):
        port.pause_accepting()
        port.pause_accepting()
        with connect(port) as client:
            client.sendall(b"patience")
            await turns(20)
            assert not protocols.built
            port.resume_accepting()
            port.resume_accepting()
            server = await protocols.connected()
            assert await server.receives(8) == b"patience"


async def test_a_port_that_has_stopped_is_not_resumed():
    async with port_of() as (port, protocols):
        port.pause_accepting()
        await port.stopListening()
        port.resume_accepting()
        with pytest.raises(ConnectionRefusedError):
            connect(port)
        assert not protocols.built


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_a_gate_sees_every_connection(tls, authority):
    options = ServerTLSSocketOptions(certificates=authority.issue("x").pem) if tls else None
    async with port_of(options) as (port, _):
        guard = Guard()
        port.guard(guard)
        with connect(port), connect(port):
            await until(lambda: guard.inside == 2)
        await until(lambda: guard.inside == 0)
        assert guard.total == guard.admitted_and_gone == 2


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_whom_a_gate_does_not_admit_is_closed(tls, authority, log_lines):
    options = ServerTLSSocketOptions(certificates=authority.issue("x").pem) if tls else None
    async with port_of(options) as (port, protocols):
        guard = Guard(admits=False)
        port.guard(guard)
        with connect(port) as client:
            client.setblocking(False)
            ends = []

            def ended():
                with contextlib.suppress(BlockingIOError):
                    ends.append(client.recv(1))
                return ends

            await until(ended)
            assert ends == [b""]
            assert [each[:2] for each in guard.asked] == [client.getsockname()]
        assert guard.inside == 0
        assert guard.admitted_and_gone == 0
        assert not protocols.built
        assert not any("failed" in line for line in log_lines)


async def test_a_gate_is_asked_about_whom_a_proxy_header_tells():
    async with port_of(SocketOptions(proxy_protocol="v1")) as (port, _):
        guard = Guard(admits=False)
        port.guard(guard)
        with connect(port) as client:
            client.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 443\r\n")
            await until(lambda: guard.asked)
            assert guard.asked == [("192.0.2.1", 1000)]
            await until(lambda: not guard.inside)


async def test_a_gate_may_pause_the_port_that_tells_it():
    async with port_of() as (port, protocols):

        class One(Guard):
            def entered(self):
                super().entered()
                port.pause_accepting()

        guard = One()
        port.guard(guard)
        with connect(port), connect(port):
            await until(lambda: protocols.built)
            await turns(20)
            assert guard.total == 1


async def test_stopping_to_accept_lets_handshakes_go_on(authority):
    options = ServerTLSSocketOptions(certificates=authority.issue("x").pem)
    async with port_of(options) as (port, _):
        guard = Guard()
        port.guard(guard)
        with connect(port):
            await until(lambda: guard.inside == 1)
            port.stop_accepting()
            port.stop_accepting()
            with pytest.raises(ConnectionRefusedError):
                connect(port)
            await turns(10)
            assert guard.inside == 1
            await port.stopListening()
            await until(lambda: guard.inside == 0)


# Sockets from elsewhere


async def test_bound_sockets_can_be_adopted():
    first = server_endpoint(reactor, LOOPBACK, 0)
    sockets = await first.bind()
    number = sockets[0].getsockname()[1]
    async with port_of(endpoint=first.adopting(lambda: sockets)) as (port, protocols):
        assert port.getHost().port == number
        with connect(port):
            await protocols.connected()


@pytest.mark.parametrize("no_delay", [1, 0])
async def test_what_adopted_sockets_accept_follows_the_options(no_delay):
    options = SocketOptions(
        socket_options=[
            (socket.IPPROTO_TCP, socket.TCP_NODELAY, no_delay),
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        ][1 if no_delay else 0 :]
    )
    bound = socket.create_server((LOOPBACK, 0))
    bound.setblocking(False)
    endpoint = server_endpoint(reactor, LOOPBACK, 0, options).adopting(lambda: [bound])
    async with port_of(endpoint=endpoint) as (port, protocols):
        with connect(port):
            made = await protocols.connected()
            assert made.transport.getTcpNoDelay() == bool(no_delay)
            assert made.transport.getTcpKeepAlive()


async def test_adopted_sockets_that_refuse_an_option_are_closed():
    bound = socket.create_server((LOOPBACK, 0))
    options = SocketOptions(socket_options=(socket.SOL_SOCKET, 9999, 1))
    with pytest.raises(SocketError, match="9999"):
        await (
            server_endpoint(reactor, LOOPBACK, 0, options)
            .adopting(lambda: [bound])
            .listen(Protocols())
        )
    assert bound.fileno() == -1


async def test_shared_sockets_have_one_port():
    endpoint = server_endpoint(reactor, LOOPBACK, 0)
    (one,) = await endpoint.bind(shared=True)
    (other,) = await endpoint.bind(one.getsockname()[1], shared=True)
    try:
        assert one.getsockname() == other.getsockname()
    finally:
        one.close()
        other.close()


async def test_an_adopted_path_stays(tmp_path):
    path = str(tmp_path / "socket")
    endpoint = server_endpoint(reactor, path, None, SocketOptions(ai_family=socket.AF_UNIX))
    sockets = await endpoint.bind()
    port = await endpoint.adopting(lambda: sockets).listen(Protocols())
    await port.stopListening()
    assert "socket" in [each.name for each in tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "without sockets"),
        ({"LISTEN_PID": "1", "LISTEN_FDS": "1"}, "without sockets"),
        ({"LISTEN_PID": "me", "LISTEN_FDS": "no"}, "without sockets"),
        ({"LISTEN_PID": "me", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "mail"}, "1 sockets (mail)"),
    ],
)
async def test_a_socket_that_systemd_has_not_passed_is_an_error(environment, said, monkeypatch):
    for name in "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES":
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, str(os.getpid()) if value == "me" else value)
    endpoint = serverFromString(reactor, "netsock:systemd=web")
    with pytest.raises(SocketBindError) as caught:
        await endpoint.listen(Protocols())
    assert said in str(caught.value)
    assert "systemd=web" in str(caught.value)


ACTIVATED = """
import os, socket, sys
from twisted_netsock._net.activation import activated_sockets

os.environ["LISTEN_PID"] = str(os.getpid())
for name in sys.argv[1:]:
    try:
        found = activated_sockets(name)
    except OSError as error:
        print(error)
        continue
    for sock in found:
        print((sock.fileno(), sock.getblocking(), os.get_inheritable(sock.fileno())), end="")
        sock.detach()
    print()
"""


def test_sockets_of_systemd_are_found_by_name_and_by_number():
    """In a process of its own: they begin at descriptor 3."""
    with (
        socket.create_server((LOOPBACK, 0)) as one,
        socket.create_server((LOOPBACK, 0)) as other,
        socket.socket() as deaf,
    ):
        numbers = [each.fileno() for each in (one, other, deaf)]
        # The shell puts them where systemd would.
        moves = " ".join(f"{3 + place}<&{number}" for place, number in enumerate(numbers))
        done = subprocess.run(
            ["bash", "-c", f'exec "$@" {moves}', "-", sys.executable, "-c", ACTIVATED,
             "web", "mail", "0", "chat"],
            env={**os.environ, "LISTEN_FDS": "3", "LISTEN_FDNAMES": "web:web:mail"},
            pass_fds=numbers,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[0] == "(3, False, False)(4, False, False)"
    assert "descriptor 5 is no stream socket that listens" in lines[1]
    assert lines[2] == "(3, False, False)"
    assert "none of that name" in lines[3]


def test_nothing_is_taken_where_nothing_was_passed(monkeypatch):
    monkeypatch.delenv("LISTEN_PID", raising=False)
    with pytest.raises(SocketBindError):
        activated_sockets("0")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("netsock:80:systemd=web", "service='80'"),
        ("netsock:systemd=web:node=127.0.0.1", "node='127.0.0.1'"),
        ("netsock:systemd=", "systemd=''"),
        ("netsock:systemd=web:aiFamily=unix", "aiFamily='unix'"),
        ("netsock:systemd=web:backlog=5", "backlog='5'"),
        ("netsock:systemd=web:reusePort=yes", "reusePort='yes'"),
        ("netsock:systemd=web:v6Only=yes", "v6Only='yes'"),
        ("netsock-tls:systemd=web:endpoint=tcp\\:80", "socket to listen on already"),
    ],
)
def test_a_socket_of_systemd_has_its_place_already(text, said):
    with pytest.raises(ValueError, match="systemd") as caught:
        serverFromString(reactor, text)
    assert said in str(caught.value)
