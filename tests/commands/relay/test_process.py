"""The relay under its operator: signals, systemd, its log, and what it tells over HTTP."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import time
from types import SimpleNamespace

import pytest
from twisted.application.service import Service
from twisted.internet import reactor
from twisted.internet.defer import succeed

from tests.support.loopback import LOOPBACK
from tests.support.processes import free_port, needs, run, started, write_certificates
from tests.support.relay import (
    PLAIN,
    RELAY,
    TRACEBACK,
    Peer,
    client,
    echo_server,
    echoes,
    end_of,
    get,
    running_relay,
    status,
    wait_for,
)
from twisted_netsock import server_endpoint
from twisted_netsock.commands.relay.options import Settings
from twisted_netsock.commands.relay.process import Notifier, Operation
from twisted_netsock.commands.relay.status import StatusService, metrics

pytestmark = pytest.mark.long


@pytest.fixture(scope="session")
def files(tmp_path_factory, authority):
    return write_certificates(tmp_path_factory.mktemp("operation"), authority)


@pytest.fixture
def echo():
    with echo_server() as server:
        yield server


def to(server, more=""):
    return f"netsock:127.0.0.1:{server.port}{more}"


def tls(certificate, more=""):
    return f"netsock-tls:0:node=127.0.0.1:certificates={certificate}{more}"


def serial(port) -> str:
    """Return the serial number of the certificate on *port*."""
    shown = run(
        "bash", "-c",
        f"openssl s_client -connect 127.0.0.1:{port} </dev/null 2>/dev/null"
        " | openssl x509 -noout -serial",
    )  # fmt: skip
    return shown.output.strip()


# Signals


def test_sigterm_lets_connections_finish_and_refuses_new_ones(tmp_path, echo):
    with running_relay(tmp_path, "--listen", PLAIN, "--to", to(echo)) as (child, [port]):
        with client(port) as sock:
            assert echoes(sock)
            os.kill(child._process.pid, signal.SIGTERM)
            child.wait_for_line("no more connections are taken; 1 may go on for 30 s")
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((LOOPBACK, port))
            assert echoes(sock, b"to the end")
            sock.shutdown(socket.SHUT_WR)
            assert end_of(sock) == "end"
        assert child.wait() == 0
        assert TRACEBACK not in child.output


def test_what_does_not_finish_within_the_drain_is_reset(tmp_path, echo):
    arguments = ("--listen", PLAIN, "--to", to(echo), "--drain", "200ms")
    with running_relay(tmp_path, *arguments) as (child, [port]), client(port) as sock:
        assert echoes(sock)
        assert child.end(signal.SIGTERM) == 0
        assert end_of(sock) == "reset"
        assert "connection drained" in child.output


def test_a_second_sigterm_ends_at_once(tmp_path, echo):
    arguments = ("--listen", PLAIN, "--to", to(echo), "--drain", "1h")
    with running_relay(tmp_path, *arguments) as (child, [port]), client(port) as sock:
        assert echoes(sock)
        os.kill(child._process.pid, signal.SIGTERM)
        child.wait_for_line("no more connections are taken")
        assert child.end(signal.SIGTERM) == -signal.SIGTERM
        assert end_of(sock) == "reset"
        assert TRACEBACK not in child.output


def test_ctrl_c_while_draining_ends_at_once(tmp_path, echo):
    arguments = ("--listen", PLAIN, "--to", to(echo), "--drain", "1h")
    with running_relay(tmp_path, *arguments) as (child, [port]), client(port) as sock:
        assert echoes(sock)
        os.kill(child._process.pid, signal.SIGTERM)
        child.wait_for_line("no more connections are taken")
        assert child.end(signal.SIGINT) == -signal.SIGINT
        assert TRACEBACK not in child.output


@needs("openssl", "bash")
def test_sighup_reads_the_certificates_again_and_connections_go_on(tmp_path, echo, authority):
    certificate = tmp_path / "server.pem"
    certificate.write_bytes(authority.issue("localhost").pem)
    arguments = ("--listen", tls(certificate), "--listen", PLAIN, "--to", to(echo))
    with running_relay(tmp_path, *arguments, listeners=2) as (child, [port, plain]):
        with client(plain) as sock:
            assert echoes(sock)
            before = serial(port)
            certificate.write_bytes(authority.issue("localhost").pem)
            assert serial(port) == before
            os.kill(child._process.pid, signal.SIGHUP)
            child.wait_for_line("certificates and keys have been read again")
            assert serial(port) not in {before, ""}
            assert echoes(sock)
        certificate.write_bytes(b"not a certificate")
        os.kill(child._process.pid, signal.SIGHUP)
        child.wait_for_line("keeps its certificates: .*server.pem")
        assert serial(port) not in {before, ""}
        assert child.end() == 0
        assert TRACEBACK not in child.output


@needs("openssl", "bash")
def test_changed_files_are_found_by_themselves(tmp_path, echo, authority):
    certificate = tmp_path / "server.pem"
    certificate.write_bytes(authority.issue("localhost").pem)
    arguments = ("--listen", tls(certificate), "--to", to(echo), "--reload-every", "100ms")
    with running_relay(tmp_path, *arguments) as (child, [port]):
        before = serial(port)
        certificate.write_bytes(authority.issue("localhost").pem)
        child.wait_for_line("has new certificates")
        assert serial(port) not in {before, ""}
        assert child.end() == 0


@needs("openssl")
def test_sighup_reads_the_files_of_the_other_side_too(tmp_path, authority, other_authority, files):
    """A backend of another authority is refused until that one is trusted."""
    strange = tmp_path / "strange.pem"
    strange.write_bytes(other_authority.issue("localhost").pem)
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(authority.certificate_pem)
    number = free_port()
    with started(
        "openssl", "s_server", "-accept", f"127.0.0.1:{number}", "-cert", strange, "-quiet",
        "-www", output=tmp_path / "openssl.log",
    ) as server:  # fmt: skip
        server.wait_for_port(number)
        backend = f"netsock-tls:localhost:{number}:aiFamily=inet:trustedCertificates={trusted}"
        with running_relay(tmp_path, "--listen", PLAIN, "--to", backend) as (child, [port]):
            with client(port) as sock:
                assert end_of(sock) == "reset"
            trusted.write_bytes(other_authority.certificate_pem)
            os.kill(child._process.pid, signal.SIGHUP)
            child.wait_for_line("have been read again")
            with client(port) as sock:
                sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
                assert sock.recv(100).startswith(b"HTTP/1.0 200")
            assert child.end() == 0


# systemd


class Supervisor:
    """The socket of NOTIFY_SOCKET, and what has come."""

    def __init__(self, address):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind("\0" + address[1:] if address.startswith("@") else address)
        self.sock.settimeout(10)
        self.environment = {**os.environ, "NOTIFY_SOCKET": address}

    def told(self):
        """Return the next message."""
        return dict(line.split("=", 1) for line in self.sock.recv(4096).decode().splitlines())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()


@pytest.mark.parametrize(("kind", "workers"), [("path", "1"), ("abstract", "2")])
def test_a_supervisor_learns_how_it_is(kind, workers, tmp_path, echo, files):
    address = (
        str(tmp_path / "notify") if kind == "path" else f"@netsock-{os.getpid()}-{time.time()}"
    )
    certificate = tmp_path / "server.pem"
    shutil.copy(files.server, certificate)
    arguments = ("--listen", tls(certificate), "--to", to(echo), "--workers", workers)
    with (
        Supervisor(address) as supervisor,
        running_relay(tmp_path, *arguments, env=supervisor.environment) as (child, _),
    ):
        assert supervisor.told() == {"READY": "1", "STATUS": "relaying from 1 endpoint"}
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        os.kill(child._process.pid, signal.SIGHUP)
        reloading = supervisor.told()
        assert reloading["RELOADING"] == "1"
        assert before < int(reloading["MONOTONIC_USEC"])
        assert supervisor.told()["READY"] == "1"
        certificate.write_bytes(b"nothing")
        os.kill(child._process.pid, signal.SIGHUP)
        assert supervisor.told()["RELOADING"] == "1"
        failed = supervisor.told()
        assert failed["READY"] == "1"
        assert "reload failed" in failed["STATUS"]
        assert child.end() == 0
        assert supervisor.told()["STOPPING"] == "1"


def test_a_reload_before_it_listens_does_not_tell_that_it_does(tmp_path, monkeypatch):
    class Starting(Service):
        def reload(self):
            return succeed([])

    running = SimpleNamespace(callWhenRunning=lambda function, *args: function(*args))
    address = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setattr(Operation, "_make_main", lambda *_: Starting())
    settings = Settings(
        listen=(None,), routes=None, access=None, limits=None, reload_every=None, workers=1,
        status=None, worker=None,
    )  # fmt: skip
    with Supervisor(address) as supervisor:
        operation = Operation(running, settings, failed=None)
        operation._reload()
        supervisor.sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            supervisor.told()
        operation._on_ready()
        assert supervisor.told() == {"READY": "1", "STATUS": "relaying from 1 endpoint"}
        operation._reload()
        assert supervisor.told()["RELOADING"] == "1"
        assert supervisor.told()["READY"] == "1"


def test_a_supervisor_that_is_gone_harms_nobody(tmp_path, log_lines):
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    notifier.ready("fine")
    notifier.stopping("bye")
    assert len(log_lines) == 1
    Notifier({}).ready("nobody to tell")


def activated(listener, *arguments):
    """Return a command that runs the relay with *listener* as systemd passes it."""
    moved = f'export LISTEN_PID=$$; exec "$@" 3<&{listener.fileno()}'
    return ("bash", "-c", moved, "-", *RELAY, *arguments)


@pytest.mark.parametrize(
    ("listen", "workers"),
    [
        ("netsock:systemd=web", "1"),
        ("netsock:systemd=0", "2"),
        ("systemd:INET:name=web", "1"),
    ],
)
def test_a_socket_of_systemd_is_listened_on(listen, workers, tmp_path, echo):
    with socket.create_server((LOOPBACK, 0)) as listener:
        port = listener.getsockname()[1]
        environment = {**os.environ, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "web"}
        with started(
            *activated(listener, "--listen", listen, "--to", to(echo), "--workers", workers),
            output=tmp_path / "log", env=environment, pass_fds=[listener.fileno()],
        ) as child, client(port) as sock:  # fmt: skip
            assert echoes(sock)
            sock.close()
            assert child.end() == 0
            assert TRACEBACK not in child.output


def test_a_plain_socket_of_systemd_beyond_loopback_is_refused(tmp_path):
    with (
        socket.create_server(("0.0.0.0", 0)) as listener,
        started(
            *activated(
                listener, "--listen", "netsock:systemd=web", "--to", "netsock-tls:example.com:443"
            ),
            output=tmp_path / "log",
            env={**os.environ, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "web"},
            pass_fds=[listener.fileno()],
        ) as child,
    ):
        assert child.wait() == 1
        assert "--unsafe-plain" in child.output


# What it tells


@needs("curl")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_status_tells_how_it_is(workers, tmp_path, echo):
    number = free_port()
    arguments = ("--listen", PLAIN, "--to", to(echo), "--workers", workers)
    told = ("--status", f"netsock:{number}:node=127.0.0.1")
    with running_relay(tmp_path, *arguments, *told) as (child, [port, *_]):
        with client(port) as sock:
            assert echoes(sock, b"twelve bytes")
            wait_for(lambda: get(number, "/healthz") == (200, "ok\n"), child)
            values = status(number)
            assert values["state"] == "running"
            assert values["connections"]["open"] == 1
            assert values["connections"]["accepted"] == 1
            assert values["bytes"] == {"received": 12, "sent": 12}
            assert values["targets"] == [{"name": to(echo), "connected": 1, "failed": 0}]
            assert values["listening"] == [f"127.0.0.1:{port}"]
            code, page = get(number, "/metrics")
            assert code == 200
            assert "netsock_relay_up 1.0" in page
            assert 'netsock_relay_bytes_total{direction="sent"} 12.0' in page
            assert 'netsock_relay_ended_total{reason="closed"} 0.0' in page
            assert f'netsock_relay_target_connected_total{{target="{to(echo)}"}} 1.0' in page
            assert get(number, "/elsewhere")[0] == 404
            os.kill(child._process.pid, signal.SIGTERM)
            wait_for(lambda: get(number, "/healthz") == (503, "draining\n"), child)
        wait_for(lambda: not child.running)
        assert child.wait() == 0
        assert TRACEBACK not in child.output


@pytest.mark.parametrize(
    ("request_line", "hosts", "code"),
    [
        ("GET /healthz HTTP/1.1", ["localhost"], 200),
        ("GET /healthz HTTP/1.1", ["LOCALHOST:8007"], 200),
        ("HEAD /healthz HTTP/1.1", ["127.0.0.1"], 200),
        ("GET /healthz HTTP/1.1", ["127.0.0.1:9999"], 200),
        ("GET /healthz HTTP/1.1", ["[::1]"], 200),
        ("GET /healthz HTTP/1.1", ["[::1]:8007"], 200),
        ("GET /healthz HTTP/1.0", [], 200),
        ("GET /healthz HTTP/1.1", [], 400),
        ("GET /healthz HTTP/1.1", ["localhost", "attacker.example"], 400),
        ("GET /healthz HTTP/1.1", ["attacker.example"], 421),
        ("GET /healthz HTTP/1.0", ["attacker.example"], 421),
        ("GET /status.json HTTP/1.1", ["attacker.example:8007"], 421),
        ("GET /metrics HTTP/1.1", ["127.0.0.1.attacker.example"], 421),
        ("GET /elsewhere HTTP/1.1", ["attacker.example"], 421),
        ("GET /healthz HTTP/1.1", ["localhost.attacker.example"], 421),
        ("GET /healthz HTTP/1.1", ["x.localhost"], 421),
        ("GET /healthz HTTP/1.1", ["0.0.0.0"], 421),
        ("GET /healthz HTTP/1.1", ["192.0.2.1"], 421),
        ("GET /healthz HTTP/1.1", ["attacker.example:80@localhost"], 421),
        ("GET /healthz HTTP/1.1", [""], 421),
    ],
)
async def test_the_status_is_for_requests_to_this_machine(request_line, hosts, code):
    service = StatusService(
        reactor, server_endpoint(reactor, "127.0.0.1", 0), lambda: {"state": "running"}, list
    )
    service.startService()
    sock = socket.create_connection(("127.0.0.1", service._port.getHost().port))
    peer = Peer(sock)
    try:
        lines = [request_line, *(f"Host: {host}" for host in hosts), "Connection: close", "", ""]
        await peer.send("\r\n".join(lines).encode())
        answer = await peer.receive()
    finally:
        sock.close()
        await service.stopService()
    assert answer.split(b" ")[1] == str(code).encode()
    assert (b"ok" in answer) == (code == 200 and request_line.startswith("GET"))


@needs("curl")
def test_the_status_can_be_a_unix_socket(tmp_path):
    path = tmp_path / "status.sock"
    arguments = ("--listen", PLAIN, "--to", "netsock:127.0.0.1:1")
    with running_relay(
        tmp_path, *arguments, "--status", f"netsock:{path}:aiFamily=unix"
    ) as (child, _):  # fmt: skip
        got = run("curl", "--silent", "--unix-socket", path, "http://relay/healthz")
        assert got.output == "ok\n"
        assert child.end() == 0
    assert not path.exists()


def test_without_prometheus_client_metrics_say_what_to_install(monkeypatch):
    from twisted_netsock.commands.relay.status import _metrics_page

    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    code, _, body = _metrics_page({"state": "running"})
    assert code == 501
    assert b"twisted-netsock[metrics]" in body


def test_before_workers_have_answered_there_are_metrics_nevertheless():
    names = {family.name for family in metrics({"state": "starting", "uptime": 0.0})}
    assert "netsock_relay_up" in names


def events(path):
    """Return the lines of a log in JSON."""
    return [
        json.loads(line.strip("\x1e"))
        for line in path.read_text().splitlines()
        if line.strip("\x1e").startswith("{")
    ]


@needs("openssl", "bash")
def test_each_connection_leaves_one_line_with_fields(tmp_path, echo, files, authority):
    shown = tmp_path / "client.pem"
    shown.write_bytes(authority.issue("client", common_name="the\nclient").pem)
    listen = tls(
        files.server,
        f":trustedCertificates={files.authority}:clientCertificateRequired=yes:alpn=echo",
    )
    log = tmp_path / "log"
    command = [part.replace("text", "json") for part in RELAY]
    with started(
        *command, "--listen", listen, "--to", to(echo), "--allow-dns", "client", output=log
    ) as child:
        child.wait_for_line("Starting reactor")
        port = wait_for(
            lambda: [e["host"] for e in events(log) if e["log_format"].startswith("relaying from")]
        )[0].rpartition(":")[2]
        said = run(
            "bash", "-c",
            f"(printf hello; sleep 0.5) | openssl s_client -connect 127.0.0.1:{port} -quiet"
            f" -no_ign_eof -servername 'evil\"name' -alpn echo -cert {shown}"
            f" -CAfile {files.authority}",
        )  # fmt: skip
        assert "hello" in said.output
        (line,) = wait_for(
            lambda: [e for e in events(log) if e["log_format"].startswith("connection ")]
        )
        assert child.end() == 0
    assert line["reason"] == "closed"
    assert line["received"] == line["sent"] == 5
    assert line["tls"] == "TLSv1.3"
    assert line["cipher"].startswith("TLS_")
    assert line["sni"] == 'evil"name'
    assert line["alpn"] == "echo"
    assert line["subject"] == "CN=the\\nclient"
    assert line["client"].startswith("127.0.0.1:")
    assert line["listener"] == f"127.0.0.1:{port}"
    assert line["backend"] == f"127.0.0.1:{echo.port}"
    assert line["seconds"] > 0
