"""``twist netsock echo`` as a user runs it: a process, with curl, openssl, socat around it."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.loopback import LONGEST, LOOPBACK
from tests.support.processes import (
    TWIST,
    CertificateFiles,
    Child,
    needs,
    run,
    started,
    write_certificates,
)

pytestmark = pytest.mark.long

ECHO = (*TWIST, "netsock", "echo")
PLAIN = "netsock:0:node=127.0.0.1"
SAID = bytes(range(256)) * 4096


@pytest.fixture(scope="module")
def files(authority, tmp_path_factory) -> CertificateFiles:
    return write_certificates(tmp_path_factory.mktemp("echo-certificates"), authority)


@contextlib.contextmanager
def echo(
    directory: Path, *listen: str, more: tuple[str, ...] = ()
) -> Iterator[tuple[Child, list[int]]]:
    """Run the command; yield it with the ports that it listens on, in order."""
    options = [word for text in listen for word in ("--listen", text)]
    with started(*ECHO, *options, *more, output=directory / "echo.log") as child:
        child.wait_for_line("Starting reactor")
        ports = [
            int(line.rpartition(":")[2])
            for line in child.output.splitlines()
            if "] echo listening on" in line
        ]
        assert len(ports) == len(listen)
        yield child, ports


@pytest.fixture(scope="module")
def served(tmp_path_factory, files) -> Iterator[tuple[int, int]]:
    """The ports of an echo that listens twice: plain, and with TLS."""
    directory = tmp_path_factory.mktemp("echo")
    tls = f"netsock-tls:0:node=127.0.0.1:certificates={files.server}"
    with echo(directory, PLAIN, tls) as (child, [plain, secure]):
        yield plain, secure
        assert "Traceback" not in child.output


def piped(*arguments: str) -> bytes:
    """Run a client with `SAID` on its standard input, and return what it printed."""
    return subprocess.run(
        arguments, input=SAID, capture_output=True, check=True, timeout=3 * LONGEST
    ).stdout


@needs("socat")
def test_socat_gets_everything_back(served):
    assert piped("socat", "-t10", "-", f"TCP:{LOOPBACK}:{served[0]}") == SAID


@needs("socat")
def test_socat_gets_everything_back_over_tls(served, files):
    where = f"OPENSSL:{LOOPBACK}:{served[1]},cafile={files.authority},commonname=localhost"
    assert piped("socat", "-t10", "-", where) == SAID


@needs("openssl")
def test_openssl_verifies_and_gets_a_line_back(served, files):
    verifying = ("-CAfile", str(files.authority), "-verify_hostname", "localhost")
    to = ("-connect", f"{LOOPBACK}:{served[1]}", "-verify_return_error", "-quiet", "-ign_eof")
    with subprocess.Popen(
        ("openssl", "s_client", *to, *verifying),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as client:
        try:
            client.stdin.write(b"hello\n")
            client.stdin.flush()
            assert client.stdout.readline() == b"hello\n"
        finally:
            client.kill()


@needs("curl")
def test_curl_speaks_telnet_with_it(served, tmp_path):
    """The simplest that curl can do with a service that is no HTTP."""
    said = tmp_path / "said"
    said.write_bytes(b"hello over telnet\n")
    done = run("curl", "-sS", "--max-time", "1", "-T", said, f"telnet://{LOOPBACK}:{served[0]}")
    timed_out = 28
    assert (done.code, done.output) in {
        (0, "hello over telnet\n"),
        (timed_out, "hello over telnet\n"),
    }


@needs("curl")
def test_curl_gets_its_own_request_back(served, files):
    """Which is no answer: what it shows is that the TLS connection was verified."""
    done = run(
        "curl", "-v", "--max-time", "1", "--http0.9", "--http1.1", "--cacert", files.authority,
        f"https://localhost:{served[1]}/path", "--resolve", f"localhost:{served[1]}:{LOOPBACK}",
        "-H", "Connection: close", "--max-filesize", "20",
    )  # fmt: skip
    assert "SSL certificate verify ok" in done.errors


def test_it_is_ended_by_a_signal_with_clients_connected(tmp_path):
    with echo(tmp_path, PLAIN) as (child, [port]):
        with socket.create_connection((LOOPBACK, port), timeout=LONGEST) as client:
            client.sendall(b"hello")
            assert client.recv(10) == b"hello"
            assert child.end(signal.SIGTERM) == -signal.SIGTERM
            with pytest.raises(ConnectionResetError):
                client.recv(10)
        assert "Traceback" not in child.output


def test_idle_timeout_ends_a_silent_client(tmp_path):
    with (
        echo(tmp_path, PLAIN, more=("--idle-timeout", "100ms")) as (_, [port]),
        socket.create_connection((LOOPBACK, port), timeout=LONGEST) as client,
        pytest.raises(ConnectionResetError),
    ):
        client.recv(10)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--listen", "netsock:0:nodee=127.0.0.1"], "did you mean node?"),
        (["--listen", "netsock-tls:0:certificates=/nowhere.pem"], "/nowhere.pem"),
        (["--idle-timeout", "10"], "10s for seconds"),
    ],
)
def test_a_mistake_is_reported_in_one_line(arguments, said):
    done = run(*ECHO, *arguments)
    assert done.code != 0
    assert "Traceback" not in done.errors + done.output
    first, _, usage = done.errors.partition("\n")
    assert first.startswith(f"Error: {arguments[0]}")
    assert said in first
    assert usage.lstrip().startswith("Usage:")


def test_a_port_that_is_taken_fails_the_command():
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        done = run(*ECHO, "--listen", f"netsock:{port}:node=127.0.0.1")
    assert done.code == 1
    (line,) = (line for line in done.errors.splitlines() if "Address already in use" in line)
    assert str(port) in line
    assert "Traceback" not in done.errors + done.output
