"""Peers that the kernel has stopped, and a process that may open no more descriptors."""

from __future__ import annotations

import contextlib
import errno
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from twisted.internet import reactor

from tests.commands.relay.test_limits import descriptors_left
from tests.support.clocks import until
from tests.support.faults import ANSWER, QUESTION, good_client
from tests.support.loopback import LOOPBACK
from tests.support.processes import Child, started
from tests.support.protocols import Protocols, client_context
from tests.support.streams import in_thread
from tests.support.threads import no_descriptors
from tests.support.ways_in import ASKING, SERVING, EndedByRelayError, relaying
from twisted_netsock import (
    SocketConnectionError,
    SocketConnectionLostError,
    SocketConnectionTimeoutError,
    SocketError,
    SocketOptions,
    SocketReadTimeoutError,
    SocketWriteTimeoutError,
    blocking,
    client_endpoint,
    make_client_socket,
    server_endpoint,
    socket_options_to_client_socket,
)
from twisted_netsock.commands.relay.limits import Limits

pytestmark = pytest.mark.long

SOON = timedelta(seconds=0.2)

PEER = """
import socket
import ssl
import sys

context = None
if len(sys.argv) > 1:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[1])
listener = socket.create_server(("127.0.0.1", 0))
print("port", listener.getsockname()[1], flush=True)
while True:
    sock, _ = listener.accept()
    if context is not None:
        sock = context.wrap_socket(sock, server_side=True)
    print("connected", flush=True)
    while data := sock.recv(65536):
        sock.sendall(data)
    sock.close()
"""


@contextlib.contextmanager
def peer_process(directory: Path, *arguments: Path) -> Iterator[tuple[Child, int]]:
    """Run an echo server of the standard library, and yield it with its port."""
    output = directory / "peer.log"
    with started(sys.executable, "-c", PEER, *arguments, output=output) as child:
        yield child, int(child.wait_for_line(r"port (\d+)")[1])


# Stopped peers


@pytest.mark.parametrize("way", ASKING)
async def test_a_stopped_server_is_given_up_in_the_handshake(way, authority, tmp_path):
    """Its kernel still takes connections."""
    identity = tmp_path / "server.pem"
    identity.write_bytes(authority.issue("localhost", LOOPBACK).pem)
    with peer_process(tmp_path, identity) as (peer, port):
        peer.send_signal(signal.SIGSTOP)
        options = authority.client_options(handshake_timeout=SOON)
        with pytest.raises((SocketConnectionTimeoutError, EndedByRelayError)) as caught:
            await ASKING[way](LOOPBACK, port, options)
    if way == "relay":
        assert caught.value.reason == "unreachable"
    else:
        assert caught.value.stage == "handshake"


async def test_what_was_sent_to_a_stopped_peer_arrives_when_it_goes_on(tmp_path):
    with peer_process(tmp_path) as (peer, port):
        async with await make_client_socket(LOOPBACK, port) as sock:
            await sock.sendall(b"one")
            assert await sock.recv(100) == b"one"
            peer.send_signal(signal.SIGSTOP)
            await sock.sendall(b"two")
            sock.read_timeout = SOON
            with pytest.raises(SocketReadTimeoutError):
                await sock.recv(100)
            sock.read_timeout = None
            peer.send_signal(signal.SIGCONT)
            assert await sock.recv(100) == b"two"


async def test_a_blocking_socket_waits_for_a_stopped_peer_no_longer_than_it_may(tmp_path):
    def work(peer: Child, port: int) -> None:
        with blocking.make_client_socket(LOOPBACK, port, SocketOptions()) as sock:
            sock.settimeout(SOON)
            peer.send_signal(signal.SIGSTOP)
            sock.sendall(b"two")
            with pytest.raises(SocketReadTimeoutError):
                sock.recv(100)
            with pytest.raises(SocketWriteTimeoutError):
                sock.sendall(bytes(100_000_000))
            peer.send_signal(signal.SIGCONT)
            sock.settimeout(None)
            assert sock.recv(3) == b"two"
            sock.abort()

    with peer_process(tmp_path) as (peer, port):
        await in_thread(work, peer, port)
    await no_descriptors()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_a_send_to_a_stopped_peer_takes_no_longer_than_it_may(tls, authority, tmp_path):
    identity = []
    options = SocketOptions(write_timeout=SOON)
    if tls:
        identity = [tmp_path / "server.pem"]
        identity[0].write_bytes(authority.issue("localhost", LOOPBACK).pem)
        options = authority.client_options(write_timeout=SOON, close_timeout=SOON)
    with peer_process(tmp_path, *identity) as (peer, port):
        sock = await socket_options_to_client_socket(options, LOOPBACK, port)
        peer.send_signal(signal.SIGSTOP)
        with pytest.raises(SocketWriteTimeoutError):
            await sock.sendall(bytes(100_000_000))
        assert await sock.close() is None


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("limit", ["read_timeout", "write_timeout"])
async def test_a_protocol_whose_peer_is_stopped_loses_its_connection(
    tls, limit, authority, tmp_path
):
    identity = []
    fields = {limit: SOON}
    options = SocketOptions(**fields)
    if tls:
        identity = [tmp_path / "server.pem"]
        identity[0].write_bytes(authority.issue("localhost", LOOPBACK).pem)
        options = authority.client_options(close_timeout=SOON, **fields)
    with peer_process(tmp_path, *identity) as (peer, port):
        endpoint = client_endpoint(reactor, LOOPBACK, port, options)
        protocol = await endpoint.connect(Protocols())
        peer.send_signal(signal.SIGSTOP)
        protocol.transport.write(bytes(100 if limit == "read_timeout" else 100_000_000))
        reason = await protocol.loses()
    expected = SocketReadTimeoutError if limit == "read_timeout" else SocketWriteTimeoutError
    assert isinstance(reason, expected)


async def test_a_relay_gives_up_a_stopped_backend(tmp_path):
    front = server_endpoint(reactor, LOOPBACK, 0)
    with peer_process(tmp_path) as (peer, port):
        back = client_endpoint(reactor, LOOPBACK, port)
        async with relaying(front, back, Limits(idle=1)) as relay:
            async with await make_client_socket(LOOPBACK, relay.port) as sock:
                await sock.sendall(b"one")
                assert await sock.recv(100) == b"one"
                peer.send_signal(signal.SIGSTOP)
                await sock.sendall(b"two")
                with pytest.raises(SocketConnectionLostError):
                    await sock.recv(100)
            await until(lambda: relay.ended == {"idle": 1})


# No more descriptors


@pytest.mark.parametrize("way", ["socket", "endpoint", "thread"])
async def test_without_descriptors_a_connection_fails_and_the_next_one_does_not(way, tmp_path):
    threads = threading.active_count()
    with peer_process(tmp_path) as (_, port):
        for _ in range(2):
            assert await ASKING[way](LOOPBACK, port, SocketOptions(), True) == QUESTION
            # The descriptor that a thread has for itself goes with it.
            await until(lambda: threading.active_count() <= threads)
            with descriptors_left(0), pytest.raises(SocketConnectionError) as caught:
                await ASKING[way](LOOPBACK, port, SocketOptions(), True)
            assert caught.value.errno == errno.EMFILE
        assert await ASKING[way](LOOPBACK, port, SocketOptions(), True) == QUESTION


async def test_a_thread_that_cannot_wait_for_lack_of_descriptors_says_so(tmp_path):
    """Each thread that waits has one of its own."""
    threads = threading.active_count()
    with peer_process(tmp_path) as (_, port):
        assert await ASKING["thread"](LOOPBACK, port, SocketOptions(), True) == QUESTION
        await until(lambda: threading.active_count() <= threads)
        with descriptors_left(1), pytest.raises(SocketError) as caught:
            await ASKING["thread"](LOOPBACK, port, SocketOptions(), True)
        assert caught.value.errno == errno.EMFILE
        assert await ASKING["thread"](LOOPBACK, port, SocketOptions(), True) == QUESTION


@pytest.mark.parametrize("way", SERVING)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_a_server_without_descriptors_takes_clients_when_there_are_some_again(
    way, tls, authority, log_lines
):
    context = client_context(authority) if tls else None
    options = authority.server_options() if tls else SocketOptions()
    async with SERVING[way](options) as served:
        assert await in_thread(good_client, served.port, context) == ANSWER
        with socket.socket() as waiting:
            with descriptors_left(0):
                waiting.connect((LOOPBACK, served.port))
                await until(lambda: any("Too many open files" in line for line in log_lines))
            waiting.close()
        assert await in_thread(good_client, served.port, context) == ANSWER
