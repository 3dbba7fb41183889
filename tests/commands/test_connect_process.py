"""``netsock connect`` as an operator runs it: pipes, files and terminals, both ways."""

from __future__ import annotations

import hashlib
import os
import shlex
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol
from zope.interface import implementer

from tests.support.loopback import LONGEST, LOOPBACK, reset
from tests.support.processes import (
    NETSOCK,
    TWIST,
    drain,
    free_port,
    netsock,
    one_line,
    run,
    serving,
    tls,
    write_authority,
)
from tests.support.streams import in_thread
from twisted_netsock.testing import CertificateAuthority

pytestmark = pytest.mark.once

MEGABYTE = 1024 * 1024


@pytest.fixture
def ca(tmp_path: Path, authority: CertificateAuthority) -> Path:
    return write_authority(tmp_path, authority)


@contextmanager
def connecting(*arguments: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``netsock connect`` with pipes."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([*NETSOCK, "connect", *map(str, arguments)], bufsize=0, **pipes)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        for pipe in (process.stdin, process.stdout, process.stderr):
            pipe.close()
        process.wait(LONGEST)


# What passes


@implementer(IHalfCloseableProtocol)
class Echo(Protocol):
    """Sends back what it gets, to the end, and no faster than it is taken."""

    def connectionMade(self) -> None:
        self.transport.registerProducer(self.transport, True)

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)

    def readConnectionLost(self) -> None:
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        pass

    def connectionLost(self, reason: Any) -> None:
        pass


async def echoed(given: bytes, server: str, *arguments: object) -> Any:
    """Return how ``netsock connect`` ends, and what an echo server sends back to it."""
    factory = Factory.forProtocol(Echo)
    factory.noisy = False
    listening = await serverFromString(reactor, server).listen(factory)
    written = [str(each).format(port=listening.getHost().port) for each in arguments]

    def run() -> Any:
        return subprocess.run(
            [*NETSOCK, "connect", *written],
            input=given, capture_output=True, check=False, timeout=25,
        )  # fmt: skip

    try:
        return await in_thread(run)
    finally:
        await listening.stopListening()


@pytest.mark.parametrize("kind", ["plain", "tls"])
async def test_fifty_megabytes_pass_both_ways_whole(kind, tmp_path, authority, ca):
    given = os.urandom(50 * MEGABYTE)
    if kind == "tls":
        pem = tmp_path / "server.pem"
        pem.write_bytes(authority.issue("127.0.0.1").pem)
        server = f"netsock-tls:0:node=127.0.0.1:certificates={pem}"
        more = ("--tls", "--ca", ca)
    else:
        server, more = "netsock:0:node=127.0.0.1", ()
    done = await echoed(given, server, "127.0.0.1:{port}", "--quiet", *more)
    assert (done.returncode, done.stderr) == (0, b"")
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(given).digest()


@pytest.mark.parametrize(
    ("server", "client"),
    [
        ("tcp:0:interface=127.0.0.1", "tcp:127.0.0.1:{port}"),
        ("netsock:0:node=127.0.0.1", "netsock:127.0.0.1:{port}"),
        ("netsock:0:node=127.0.0.1", "127.0.0.1:{port}"),
    ],
)
async def test_any_endpoint_will_do_and_half_closes(server, client):
    done = await echoed(b"a question\n", server, client)
    assert (done.returncode, done.stdout) == (0, b"a question\n")
    assert done.stderr.startswith(b"netsock: connected to 127.0.0.1, port ")


async def test_what_twisted_cannot_half_close_still_answers(tmp_path, authority, ca):
    roots = tmp_path / "roots"
    roots.mkdir()
    (roots / "ca.pem").write_bytes(authority.certificate_pem)
    good = tls_answering(authority.issue("localhost").pem, tmp_path)
    with serving(good) as port:
        client = f"tls:localhost:{port}:trustRoots={roots}:endpoint=tcp\\:127.0.0.1\\:{port}"
        done = await in_thread(lambda: netsock("connect", client, given=b"question\n"))
    assert (done.code, done.output) == (0, "answer to question\n")
    assert "cannot be told that the input has ended" in done.errors


def tls_answering(pem: bytes, directory: Path) -> Any:
    path = directory / "answering.pem"
    path.write_bytes(pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)

    def handle(connection: socket.socket) -> None:
        with context.wrap_socket(connection.dup(), server_side=True) as wrapped:
            wrapped.sendall(b"answer to " + wrapped.recv(100))
            wrapped.unwrap().close()

    return handle


def test_files_are_read_and_written(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(MEGABYTE + 1))
    received: list[bytes] = []

    def handle(connection: socket.socket) -> None:
        received.append(drain(connection))
        connection.sendall(received[0][::-1])

    with serving(handle) as port, source.open("rb") as given, target.open("wb") as output:
        done = subprocess.run(
            [*NETSOCK, "connect", "-q", f"127.0.0.1:{port}"],
            stdin=given, stdout=output, stderr=subprocess.PIPE, check=False, timeout=LONGEST,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert received == [source.read_bytes()]
    assert target.read_bytes() == received[0][::-1]


def test_pipes_that_somebody_has_made_non_blocking_serve():
    """O_NONBLOCK belongs to all that have the pipe: another process may have set it."""
    data = os.urandom(MEGABYTE)

    def handle(connection: socket.socket) -> None:
        connection.sendall(drain(connection))

    with serving(handle) as port:
        for_input, our_input = os.pipe()
        our_output, for_output = os.pipe()
        os.set_blocking(for_input, False)
        os.set_blocking(for_output, False)
        process = subprocess.Popen(
            [*NETSOCK, "connect", "-q", f"127.0.0.1:{port}"], stdin=for_input, stdout=for_output
        )
        os.close(for_input)
        os.close(for_output)
        with open(our_input, "wb") as pipe:
            pipe.write(data)
        with open(our_output, "rb") as pipe:
            received = pipe.read()
        assert process.wait(LONGEST) == 0
    assert received == data


# Back-pressure

ENOUGH = 64 * MEGABYTE
MOST = 24 * MEGABYTE
"""More than all buffers of kernel and command hold together, far less than `ENOUGH`."""


def taken(write: Any, data: bytes) -> int:
    """Write until nothing is taken for a while, and return how much was."""
    count, quiet = 0, 0
    while quiet < 25 and count < ENOUGH:
        try:
            count += write(data) or 0
            quiet = 0
        except BlockingIOError:
            quiet += 1
            time.sleep(0.02)
    return count


def resident(process: subprocess.Popen[bytes]) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def test_standard_input_is_not_read_faster_than_the_peer_takes():
    done = threading.Event()

    def handle(connection: socket.socket) -> None:
        assert done.wait(LONGEST)
        reset(connection)

    with serving(handle) as port, connecting(f"127.0.0.1:{port}") as process:
        process.stderr.readline()
        before = resident(process)
        os.set_blocking(process.stdin.fileno(), False)
        count = taken(lambda data: os.write(process.stdin.fileno(), data), bytes(65536))
        grown = resident(process) - before
        done.set()
    assert count < MOST
    assert grown < 8 * MEGABYTE


def test_standard_output_that_blocks_makes_the_peer_wait():
    counts: list[int] = []
    done = threading.Event()

    def handle(connection: socket.socket) -> None:
        connection.setblocking(False)
        try:
            counts.append(taken(connection.send, bytes(65536)))
        finally:
            done.set()

    with serving(handle) as port, connecting(f"127.0.0.1:{port}") as process:
        process.stderr.readline()
        before = resident(process)
        assert done.wait(LONGEST)
        assert counts[0] < MOST
        assert resident(process) - before < 8 * MEGABYTE
        process.stdin.close()
        assert len(process.stdout.read()) == counts[0]
        assert process.wait(LONGEST) == 0


# How it ends


@pytest.mark.parametrize("idle", [[], ["--idle", "1h"]])
def test_the_peers_end_is_the_end_when_no_more_input_comes(idle):
    with (
        serving(lambda connection: connection.sendall(b"bye\n")) as port,
        connecting(f"127.0.0.1:{port}", "--quiet", "--linger", "200ms", *idle) as process,
    ):
        assert process.stdout.read() == b"bye\n"
        assert process.wait(LONGEST) == 0
        assert process.stderr.read() == b""


def test_what_is_sent_after_the_peers_end_arrives():
    received: list[bytes] = []

    def handle(connection: socket.socket) -> None:
        connection.shutdown(socket.SHUT_WR)
        received.append(drain(connection))

    with serving(handle) as port, connecting(f"127.0.0.1:{port}") as process:
        process.stderr.readline()
        for number in range(3):
            time.sleep(0.1)
            process.stdin.write(b"%d" % number)
        process.stdin.close()
        assert process.wait(LONGEST) == 0
    assert received == [b"012"]


def test_a_peer_that_has_ended_may_take_its_time_to_read():
    data = os.urandom(16 * MEGABYTE)
    received: list[bytes] = []

    def handle(connection: socket.socket) -> None:
        connection.shutdown(socket.SHUT_WR)
        time.sleep(0.7)
        received.append(drain(connection))

    with serving(handle) as port:
        done = netsock("connect", "-q", "--linger", "200ms", f"127.0.0.1:{port}", given=data)
    assert (done.code, done.errors) == (0, "")
    assert received == [data]


def test_a_peer_that_has_ended_and_takes_nothing_is_left_where_that_is_wanted():
    done = threading.Event()

    def handle(connection: socket.socket) -> None:
        connection.shutdown(socket.SHUT_WR)
        assert done.wait(LONGEST)
        reset(connection)

    with serving(handle) as port:
        try:
            limits = ("--idle", "600ms", "--linger", "200ms")
            ended = netsock("connect", "-q", *limits, f"127.0.0.1:{port}", given=bytes(ENOUGH))
        finally:
            done.set()
    assert ended.code == 9
    assert one_line(ended) == "netsock: nothing was sent or received for 0.6 s"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_standard_descriptors_that_are_closed_are_nothing_else(closed):
    """Else a socket of ours would get their numbers."""
    received: list[bytes] = []

    def handle(connection: socket.socket) -> None:
        connection.sendall(b"hello\n")
        received.append(drain(connection))

    with serving(handle) as port:
        command = shlex.join([*NETSOCK, "connect", "-q", f"127.0.0.1:{port}"])
        done = run("bash", "-c", f"{command} {closed}")
    assert (done.code, done.errors) == (0, "")
    assert received == [b""]
    assert done.output == ("" if ">&-" in closed.replace("2>&-", "") else "hello\n")


def test_silence_ends_it_where_that_is_wanted():
    with (
        serving(drain) as port,
        connecting(f"127.0.0.1:{port}", "--idle", "300ms", "-q") as process,
    ):
        assert process.wait(LONGEST) == 9
        assert process.stderr.read() == b"netsock: nothing was sent or received for 0.3 s\n"


def test_a_reader_that_is_gone_ends_it_quietly():
    def handle(connection: socket.socket) -> None:
        while True:
            connection.sendall(b"y\n" * 1000)

    with serving(handle) as port, connecting(f"127.0.0.1:{port}", "-q") as process:
        assert process.stdout.read(2) == b"y\n"
        process.stdout.close()
        assert process.wait(LONGEST) == 141
        assert process.stderr.read() == b""


SIGNALS = [(signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGTERM, 143)]


@pytest.mark.parametrize(("number", "status"), SIGNALS)
def test_a_signal_ends_it_at_once(number, status):
    def handle(connection: socket.socket) -> None:
        while True:
            connection.sendall(bytes(65536))

    with serving(handle) as port, connecting(f"127.0.0.1:{port}") as process:
        process.stderr.readline()
        assert process.stdout.read(100) == bytes(100)
        # Its standard output is full, and nobody reads it.
        process.send_signal(number)
        assert process.wait(LONGEST) == status
        assert process.stderr.read() == b""


@pytest.mark.parametrize(("number", "status"), SIGNALS)
def test_a_server_sees_an_orderly_end_where_a_signal_ends_it(
    tmp_path, authority, ca, number, status
):
    path = tmp_path / "server.pem"
    path.write_bytes(authority.issue("localhost").pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    seen: list[object] = []

    def handle(connection: socket.socket) -> None:
        with context.wrap_socket(
            connection.dup(), server_side=True, suppress_ragged_eofs=False
        ) as wrapped:
            wrapped.sendall(b"ready")
            try:
                seen.append(wrapped.recv(10))
            except OSError as error:
                seen.append(error)

    with (
        serving(handle) as port,
        connecting("-q", f"localhost:{port}", "--tls", "--ca", ca) as process,
    ):
        assert process.stdout.read(5) == b"ready"
        process.send_signal(number)
        assert process.wait(LONGEST) == status
    assert seen == [b""]


def slam(connection: socket.socket) -> None:
    connection.recv(1)
    reset(connection)


def test_a_connection_that_breaks_is_no_end():
    with serving(slam) as port:
        done = netsock("connect", "-q", f"127.0.0.1:{port}", given=b"x")
    assert done.code == 8
    assert "reset" in one_line(done)


def test_tls_without_an_end_may_have_been_cut_off(tmp_path, authority, ca):
    path = tmp_path / "cut.pem"
    path.write_bytes(authority.issue("localhost").pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)

    def handle(connection: socket.socket) -> None:
        with context.wrap_socket(connection.dup(), server_side=True) as wrapped:
            wrapped.sendall(b"half")
            drain(wrapped)

    with serving(handle) as port:
        done = netsock("connect", "-q", f"localhost:{port}", "--tls", "--ca", ca)
    assert (done.code, done.output) == (8, "half")
    assert "without close_notify" in one_line(done)


def test_a_server_that_cannot_be_believed_gets_nothing(tmp_path, other_authority, ca):
    with serving(tls(other_authority.issue("localhost").pem, tmp_path)) as port:
        done = netsock("connect", f"localhost:{port}", "--tls", "--ca", ca, given=b"secret")
    assert (done.code, done.output) == (6, "")
    assert "certificate was refused" in one_line(done)


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "tcp:127.0.0.1:{}", "netsock:127.0.0.1:{}"])
def test_a_port_that_refuses_is_unreachable(form):
    done = netsock("connect", form.format(free_port()))
    assert done.code == 4
    assert "refused" in one_line(done)


def test_a_host_that_is_not_there_is_not_found():
    assert netsock("connect", "nowhere.invalid:1", "--timeout", "8s").code in {3, 4}


def test_a_mute_tls_server_is_left_in_bounded_time(ca):
    with serving(drain) as port:
        done = netsock("connect", f"localhost:{port}", "--tls", "--ca", ca, "-t", "900ms")
        assert done.code == 5
        assert "timed out during the handshake" in one_line(done)
        string = f"netsock-tls:localhost:{port}:trustedCertificates={ca}"
        done = netsock("connect", string, "-t", "900ms")
        assert done.code == 4
        assert "timed out" in one_line(done)


# Under twist


def test_under_twist_the_end_of_the_connection_ends_the_reactor():
    def handle(connection: socket.socket) -> None:
        connection.sendall(b"hello, " + drain(connection))

    with serving(handle) as port:
        done = subprocess.run(
            [*TWIST, "netsock", "connect", f"netsock:127.0.0.1:{port}"],
            input=b"twist\n", capture_output=True, check=False, timeout=3 * LONGEST,
        )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, b"hello, twist\n")
    assert b"Starting reactor" in done.stderr


def test_under_twist_a_failure_is_one_for_the_shell():
    done = subprocess.run(
        [*TWIST, "netsock", "connect", f"{LOOPBACK}:{free_port()}"],
        stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=3 * LONGEST,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (4, b"")
