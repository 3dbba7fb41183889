"""``twist netsock relay`` as a user runs it: a process, with nginx, curl and openssl around it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import html
import os
import re
import signal
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.loopback import LOOPBACK
from tests.support.package_sources import ROOT
from tests.support.processes import (
    TWIST,
    CertificateFiles,
    Child,
    Ran,
    find,
    free_port,
    needs,
    run,
    started,
    write_certificates,
)
from twisted_netsock.testing import CertificateAuthority

pytestmark = pytest.mark.long

RELAY = (*TWIST, "netsock", "relay")
TRACEBACK = "Traceback"
SIZE = 100 * 1024 * 1024


@pytest.fixture(scope="session")
def certificate_files(
    tmp_path_factory: pytest.TempPathFactory, authority: CertificateAuthority
) -> CertificateFiles:
    return write_certificates(tmp_path_factory.mktemp("process-certificates"), authority)


@contextlib.contextmanager
def relay(directory: Path, listen: str, to: str) -> Iterator[tuple[Child, int]]:
    """Run a relay, on a port that the kernel chooses where *listen* says 0; yield that port."""
    arguments = (*RELAY, "--listen", listen, "--to", to)
    with started(*arguments, output=directory / "relay.log") as child:
        child.wait_for_line("Starting reactor")
        port = child.wait_for_line(r"relaying from .*?(?:port=|:)(\d+)")[1]
        yield child, int(port)


# The demonstration


@pytest.fixture(scope="module")
def demonstration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    output = tmp_path_factory.mktemp("demonstration") / "output"
    with started(*RELAY, output=output) as child:
        child.wait_for_line("Starting reactor")
        yield child


def printed(child: Child, pattern: str) -> str:
    return child.wait_for_line(pattern)[1]


ADDRESS = r"^TLS on 127\.0\.0\.1 port (\d+)"


@needs("curl", "openssl", "bash")
def test_the_demonstration_prints_lines_that_work_as_they_stand(demonstration):
    port = printed(demonstration, ADDRESS)
    fingerprint = printed(demonstration, r"^  ((?:[0-9A-F]{2}:){31}[0-9A-F]{2})$")
    lines = re.findall(r"^  (?=curl|openssl)(.*)$", demonstration.output, re.MULTILINE)
    assert len(lines) == 2
    assert all(f"127.0.0.1:{port}" in line for line in lines)
    curl, openssl = (run("bash", "-c", line) for line in lines)
    assert curl.code == 0
    assert curl.output == "Hello from behind the relay. You asked for /\n"
    assert openssl.code == 0
    assert openssl.output.partition("=")[2].strip() == fingerprint
    assert TRACEBACK not in demonstration.output
    # No object of Python's either.
    assert "<" not in demonstration.output.replace("</dev/null", "")


def test_the_picture_of_the_demonstration_shows_what_it_prints(demonstration):
    """`nox -s picture` draws it anew."""

    def fixed(text: str) -> str:
        """Leave out what differs from run to run, and where lines break."""
        text = re.sub(r"(?:[0-9A-F]{2}:)+[0-9A-F]{2}|sha256//[^']+|\d+", "", text)
        return "".join(text.split())

    svg = (ROOT / "docs" / "_static" / "relay.svg").read_text()
    drawn = "".join(re.findall(r"<text [^>]*>([^<]*)</text>", svg))
    printed, _, _ = demonstration.output.partition("Ctrl-C ends it.")
    _, _, said = printed.partition("Starting reactor")
    assert fixed(said.partition("\n")[2]) in fixed(html.unescape(drawn))


@needs("curl", "bash")
def test_the_key_that_the_demonstration_prints_is_checked(demonstration):
    """The line would be worth nothing if it went with any key."""
    line = printed(demonstration, r"^  (curl .*)$")
    pin = printed(demonstration, r"^  curl .*sha256//([^']+)")
    other = base64.b64encode(hashlib.sha256(b"another key").digest()).decode()
    pinned_key_differs = 90
    assert run("bash", "-c", line.replace(pin, other)).code == pinned_key_differs


def test_the_demonstration_listens_on_loopback_alone(demonstration):
    port = int(printed(demonstration, ADDRESS))
    with socket.create_connection((LOOPBACK, port)):
        pass
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=2)


def test_a_second_demonstration_takes_another_port(demonstration, tmp_path):
    with started(*RELAY, output=tmp_path / "second.log") as second:
        assert printed(second, ADDRESS) != printed(demonstration, ADDRESS)


@needs("setsid")
def test_ctrl_c_at_a_terminal_ends_the_demonstration_quietly(tmp_path):
    ours, theirs = os.openpty()
    try:
        with started(
            "setsid", "--ctty", *RELAY, output=tmp_path / "terminal.log", stdin=theirs
        ) as child:
            child.wait_until_it_serves(int(printed(child, ADDRESS)))
            os.write(ours, b"\x03")
            assert child.wait() == -signal.SIGINT
            assert TRACEBACK not in child.output
    finally:
        os.close(ours)
        os.close(theirs)


# Between real programs


@pytest.fixture(scope="module")
def shared_memory() -> Iterator[Path]:
    """A directory for big files: in memory, where there is such a place."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


class BigFile(NamedTuple):
    path: Path
    digest: str


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.fixture(scope="module")
def big_file(shared_memory: Path) -> BigFile:
    path = shared_memory / "big"
    path.write_bytes(os.urandom(SIZE))
    return BigFile(path, digest(path))


NGINX = """
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log stderr;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_max_body_size 0;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    sendfile on;
    server {{
        listen 127.0.0.1:{plain};
        listen 127.0.0.1:{tls} ssl;
        ssl_certificate {certificate};
        ssl_certificate_key {certificate};
        root {directory}/root;
        location / {{ dav_methods PUT; }}
    }}
}}
"""


@pytest.fixture(scope="module")
def nginx(
    shared_memory: Path, certificate_files: CertificateFiles
) -> Iterator[tuple[Path, dict[str, int]]]:
    """Run nginx on loopback; yield its root, and its ports, plain and TLS."""
    if "http_dav_module" not in run(find("nginx"), "-V").errors:
        pytest.skip("this nginx takes no uploads: it has no http_dav_module")
    directory = shared_memory / "nginx"
    (directory / "root").mkdir(parents=True)
    ports = {"plain": free_port(), "tls": free_port()}
    configuration = directory / "nginx.conf"
    configuration.write_text(
        NGINX.format(directory=directory, certificate=certificate_files.server, **ports)
    )
    with started(
        find("nginx"), "-e", "stderr", "-c", configuration, "-p", directory,
        output=directory / "nginx.log",
    ) as child:  # fmt: skip
        child.wait_for_port(ports["plain"])
        child.wait_for_port(ports["tls"])
        yield directory / "root", ports


FRONTS = {
    "plain": "netsock:0:node=127.0.0.1",
    "tls": "netsock-tls:0:node=127.0.0.1:certificates={files.server}",
}
BACKS = {
    "plain": "netsock:127.0.0.1:{port}",
    "tls": "netsock-tls:localhost:{port}:trustedCertificates={files.authority}",
}


@needs("nginx", "curl")
@pytest.mark.parametrize("back", ["plain", "tls"])
@pytest.mark.parametrize("front", ["plain", "tls"])
def test_curl_and_nginx_exchange_big_files(
    front, back, nginx, big_file, certificate_files, tmp_path, shared_memory
):
    root, ports = nginx
    listen = FRONTS[front].format(files=certificate_files)
    to = BACKS[back].format(files=certificate_files, port=ports[back])
    fetched, name = shared_memory / "fetched", f"{front}-{back}"
    with relay(tmp_path, listen, to) as (child, port):
        scheme = "https" if front == "tls" else "http"
        curl: tuple[Any, ...] = (
            "curl", "--silent", "--show-error", "--fail", "--cacert", certificate_files.authority,
            f"{scheme}://localhost:{port}/{name}", "--ipv4",
        )  # fmt: skip
        sent = run(*curl, "--upload-file", big_file.path)
        assert (sent.code, sent.errors) == (0, "")
        got = run(*curl, "--output", fetched)
        assert (got.code, got.errors) == (0, "")
        try:
            assert digest(root / name) == big_file.digest
            assert digest(fetched) == big_file.digest
        finally:
            fetched.unlink()
            (root / name).unlink()
        assert child.end() == 0
        assert TRACEBACK not in child.output


@needs("nginx", "curl")
def test_curl_is_refused_where_the_certificate_of_nginx_is_not_trusted(
    nginx, certificate_files, other_authority, tmp_path
):
    strange = tmp_path / "strange.pem"
    strange.write_bytes(other_authority.certificate_pem)
    to = f"netsock-tls:localhost:{nginx[1]['tls']}:trustedCertificates={strange}"
    with relay(tmp_path, FRONTS["plain"], to) as (child, port):
        got = run("curl", "--silent", "--ipv4", f"http://localhost:{port}/")
        # Which code depends on when the reset comes.
        assert got.code != 0
        assert got.output == ""
        line = child.wait_for_line("cannot connect .*")[0]
        assert "certificate" in line
        assert TRACEBACK not in child.output


def test_endpoints_of_twisted_and_unix_sockets_work_as_well(tmp_path):
    path = tmp_path / "front"
    with socket.create_server((LOOPBACK, 0)) as backend:
        backend.settimeout(10)
        to = f"tcp:127.0.0.1:{backend.getsockname()[1]}"
        arguments = (*RELAY, "--listen", f"netsock:{path}:aiFamily=unix", "--to", to)
        with started(*arguments, output=tmp_path / "relay.log") as child:
            child.wait_for_line("Starting reactor")
            assert stat.S_ISSOCK(path.stat().st_mode)
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(10)
                client.connect(str(path))
                client.sendall(b"a question")
                client.shutdown(socket.SHUT_WR)
                server, _ = backend.accept()
                with server:
                    server.settimeout(10)
                    assert server.recv(100) == b"a question"
                    assert server.recv(100) == b""
                    server.sendall(b"an answer")
                assert client.recv(100) == b"an answer"
                assert client.recv(100) == b""
            child.end()
        assert not path.exists()


# The end


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 0)]
)
def test_a_signal_ends_an_idle_relay(number, status, tmp_path):
    """After SIGINT the exit status tells the signal, as shells expect it."""
    with relay(tmp_path, FRONTS["plain"], "netsock:127.0.0.1:1") as (child, port):
        child.wait_until_it_serves(port)
        assert child.end(number) == status
        assert TRACEBACK not in child.output


@pytest.mark.parametrize(
    ("listen", "to"),
    [("netsock:0:node=127.0.0.1", "netsock:127.0.0.1:{}"),
     ("tcp:0:interface=127.0.0.1", "tcp:127.0.0.1:{}")],
    ids=["ours", "twisted"],
)  # fmt: skip
def test_ctrl_c_cuts_off_what_a_relay_is_passing_on(listen, to, tmp_path):
    """Half of something must not look like the whole to either side."""
    with (
        socket.create_server((LOOPBACK, 0)) as backend,
        relay(tmp_path, listen, to.format(backend.getsockname()[1])) as (child, port),
        contextlib.ExitStack() as stack,
    ):
        peers = []
        # Several, for the order in which they end is not given.
        for _ in range(8):
            client = stack.enter_context(socket.create_connection((LOOPBACK, port), timeout=10))
            server = stack.enter_context(backend.accept()[0])
            server.settimeout(10)
            client.sendall(b"half of something")
            assert server.recv(100) == b"half of something"
            peers += [client, server]
        assert child.end(signal.SIGINT) == -signal.SIGINT
        assert [ends_with(peer) for peer in peers] == [ConnectionResetError] * 16
        assert TRACEBACK not in child.output


def ends_with(sock: socket.socket) -> object:
    """Return what comes next: bytes, or the class of an error."""
    try:
        return sock.recv(100)
    except OSError as error:
        return type(error)


def test_a_handshake_that_hangs_does_not_hold_up_the_end(certificate_files, tmp_path):
    listen = FRONTS["tls"].format(files=certificate_files)
    with (
        relay(tmp_path, listen, "netsock:127.0.0.1:1") as (child, port),
        socket.create_connection((LOOPBACK, port)) as mute,
    ):
        mute.sendall(b"\x16\x03\x01")
        child.wait_until_it_serves(port)
        assert child.end(signal.SIGINT) == -signal.SIGINT
        assert TRACEBACK not in child.output


# Mistakes


def refused(*arguments: str) -> str:
    """Run the relay with wrong arguments, and return the line that says what is wrong."""
    done = run(*RELAY, *arguments)
    assert done.code != 0
    assert TRACEBACK not in done.errors + done.output
    first, _, usage = done.errors.partition("\n")
    assert usage.lstrip().startswith("Usage:")
    return first


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--listen", "netsock:0"], ["--to is missing"]),
        (["--listen", "netsock:0:nodee=127.0.0.1", "--to", "tcp:127.0.0.1:80"],
         ["--listen netsock:0:nodee=127.0.0.1", "nodee", "did you mean node?"]),
        (["--listen", "netsock-tls:0:certificates=/nowhere.pem", "--to", "tcp:127.0.0.1:80"],
         ["/nowhere.pem", "No such file"]),
        (["--bogus"], ["bogus"]),
    ],
    ids=["missing", "key", "file", "option"],
)  # fmt: skip
def test_a_mistake_is_reported_in_one_line(arguments, said):
    line = refused(*arguments)
    assert line.startswith("Error: ")
    for text in said:
        assert text in line


@pytest.fixture(
    scope="module",
    params=["netsock:{}:node=127.0.0.1", "netsock:{}:node=localhost:aiFamily=inet",
            "tcp:{}:interface=127.0.0.1"],
    ids=["address", "name", "twisted"],
)  # fmt: skip
def on_a_taken_port(request: pytest.FixtureRequest) -> tuple[int, Ran]:
    """A port that is taken, and what the relay did when it was told to listen there."""
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        listen = request.param.format(port)
        return port, run(*RELAY, "--listen", listen, "--to", "tcp:127.0.0.1:80")


def test_a_port_that_is_taken_is_reported(on_a_taken_port):
    port, done = on_a_taken_port
    (line,) = (
        line
        for line in (done.errors + done.output).splitlines()
        if "Address already in use" in line
    )
    assert "listen on" in line
    assert str(port) in line
    assert TRACEBACK not in done.errors + done.output


def test_a_port_that_is_taken_fails_the_command(on_a_taken_port):
    """Who started it, a supervisor say, must not take it for a success."""
    assert on_a_taken_port[1].code != 0


@pytest.mark.parametrize("to", ["netsock:127.0.0.1:{}", "tcp:127.0.0.1:{}"])
def test_the_log_says_which_backend_cannot_be_connected(to, tmp_path):
    with socket.create_server((LOOPBACK, 0)) as closed:
        target = closed.getsockname()[1]
    with relay(tmp_path, FRONTS["plain"], to.format(target)) as (child, port):
        child.wait_until_it_serves(port)
        line = child.wait_for_line("cannot connect .*")[0]
        assert str(target) in line
        assert "refused" in line


def test_help_has_one_line_of_usage():
    done = run(*RELAY, "--help")
    assert (done.code, done.errors) == (0, "")
    assert "--listen" in done.output
    assert done.output.count("Usage:") == 1
