"""The page of the relay's status that people look at."""

from __future__ import annotations

import html
import re
import socket

import pytest

from tests.support.loopback import LOOPBACK
from tests.support.processes import needs, run, write_certificates
from tests.support.relay import (
    EchoServer,
    check,
    client,
    echo_server,
    echoes,
    get,
    running_relay,
    wait_for,
)
from twisted_netsock.commands._common.page import bars, page, table
from twisted_netsock.commands.relay.status import _front

pytestmark = pytest.mark.once

EVIL = "<script>alert('\"&')</script>"


@pytest.fixture
def served(tmp_path, authority):
    """A relay with a backend that answers and one that does not, and the port of its status."""
    path = tmp_path / "server.pem"
    path.write_bytes(authority.issue("localhost").pem)
    with socket.create_server((LOOPBACK, 0)) as closed:
        nobody = closed.getsockname()[1]
    with (
        echo_server() as server,
        running_relay(
            tmp_path,
            "--listen", f"netsock-tls:0:node={LOOPBACK}:certificates={path}",
            "--listen", f"netsock:0:node={LOOPBACK}", "--unsafe-plain",
            "--to", f"netsock:{LOOPBACK}:{nobody}", "--to", f"netsock:{LOOPBACK}:{server.port}",
            "--status", f"netsock:0:node={LOOPBACK}", listeners=2,
        ) as (child, ports),
    ):  # fmt: skip
        found = wait_for(lambda: re.search(r"status on .*port=(\d+)", child.output), child)
        with client(ports[1]) as sock:
            assert echoes(sock)
        yield int(found[1]), ports, nobody, server, path


def test_it_shows_what_there_is(served):
    port, ports, nobody, server, path = served
    code, body = get(port, "/")
    assert code == 200
    shown(html.unescape(body), ports, nobody, server, path)
    assert 'href="/status.json"' in body
    assert 'http-equiv="refresh"' in body


def shown(body: str, ports: list[int], nobody: int, server: EchoServer, path: object) -> None:
    for port in ports:
        assert f"{LOOPBACK}:{port}" in body
    assert re.search(rf"netsock:{LOOPBACK}:{nobody}\W.*?down", body, re.DOTALL)
    assert re.search(rf"netsock:{LOOPBACK}:{server.port}\W.*?up", body, re.DOTALL)
    assert str(path) in body
    assert "Connection refused" in body


@needs("curl")
def test_beyond_loopback_it_is_for_those_with_a_certificate(tmp_path, authority):
    files = write_certificates(tmp_path, authority)
    (tmp_path / "client.pem").write_bytes(authority.issue("client").pem)
    status = (
        f"netsock-tls:0:node=0.0.0.0:certificates={files.server}"
        f":trustedCertificates={files.authority}:clientCertificateRequired=yes"
    )
    relay = ("--listen", f"netsock:0:node={LOOPBACK}", "--to", f"netsock:{LOOPBACK}:1")
    with running_relay(tmp_path, *relay, "--status", status) as (child, _):
        found = wait_for(lambda: re.search(r"status on .*port=(\d+)", child.output), child)
        url = f"https://localhost:{found[1]}/healthz"
        ask = ("curl", "--silent", "--ipv4", "--cacert", files.authority, url)
        assert run(*ask).code != 0
        # By whatever name.
        done = run(*ask, "--cert", tmp_path / "client.pem", "--header", "Host: relay.example")
        assert (done.code, done.output) == (0, "ok\n")
    refused = check(*relay, "--status", status.removesuffix(":clientCertificateRequired=yes"))
    assert "demand certificates" in refused.errors


@needs("chromium")
@pytest.mark.parametrize("size", ["390,844", "1280,800"], ids=["phone", "desktop"])
def test_a_browser_shows_it_and_runs_no_script(served, size):
    port, *there = served
    done = run(
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        f"--window-size={size}", "--dump-dom", f"http://{LOOPBACK}:{port}/",
    )  # fmt: skip
    assert "<script" not in done.output
    shown(html.unescape(re.sub(r"<(?!/?td)[^>]*>", "", done.output)), *there)


def test_another_host_gets_none(served):
    port, *_ = served
    done = run(
        "curl", "--silent", "--write-out", "%{http_code}", "--header", "Host: evil.example",
        f"http://{LOOPBACK}:{port}/",
    )  # fmt: skip
    assert done.output.endswith("421")


def test_whatever_is_shown_is_escaped():
    target = {"name": EVIL, "connected": 0, "failed": 1}
    error = {"time": EVIL, "target": EVIL, "error": EVIL}
    expiry = {"endpoint": EVIL, "source": EVIL, "not_after": EVIL, "days_left": -1}
    values = {
        "state": EVIL, "uptime": 0.0, "listening": [EVIL], "targets": [target],
        "errors": [error], "certificates": [expiry],
    }  # fmt: skip
    _, kind, body = _front(values, [])
    assert kind.startswith("text/html")
    assert b"<script" not in body
    assert EVIL in html.unescape(body.decode())
    assert b"<script" not in page(
        EVIL, [(EVIL, table((EVIL,), [(("bad", EVIL),)]))], "", seconds=5
    )


def test_bars_are_as_high_as_there_were():
    drawn = bars([0, 5, 10], "connections")
    assert re.findall(r'height="([\d.]+)"', drawn) == ["0.0", "50.0", "100.0"]
    assert "none" in table(("a",), [])


@pytest.mark.parametrize("state", ["starting", "draining"])
def test_a_supervisor_without_answers_has_a_page_too(state):
    code, _, body = _front({"state": state, "uptime": 1.0, "workers": {}}, [0])
    assert code == 200
    assert state in body.decode()
