"""What the commands that listen write to their log: lines for people, and objects of JSON."""

from __future__ import annotations

import json
import os
import re
import socket
import sys

import pytest
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from tests.support.loopback import LOOPBACK
from tests.support.processes import free_port, run, started
from tests.support.relay import echo_server, echoes, wait_for
from twisted_netsock.commands._common.holders import holder_of
from twisted_netsock.commands._common.logs import json_line, text_line

pytestmark = pytest.mark.once

NETSOCK = (sys.executable, "-m", "twisted_netsock")
LISTEN = ("--listen", "netsock:0:node=127.0.0.1")
FIELDS = {
    "time", "level", "event", "client", "listener", "target", "backend", "sni", "tls", "cipher",
    "alpn", "subject", "received", "sent", "seconds", "reason", "error",
}  # fmt: skip


def event(format_, *, level=LogLevel.info, namespace="twisted_netsock.commands.x", **fields):
    events = []
    log = Logger(namespace, observer=events.append)
    failure = fields.pop("failure", None)
    if failure is None:
        log.emit(level, format_, **fields)
    else:
        log.failure(format_, failure, level, **fields)
    return events[0]


@pytest.mark.parametrize("line", [text_line, json_line])
def test_of_others_there_are_warnings_and_errors_alone(line):
    ports = {"namespace": "twisted_netsock._endpoints.listening_port"}
    assert line(event("starting", **ports)) is None
    assert "hello" in line(event("hello", namespace="twisted_netsock._text"))
    other = {"namespace": "twisted.internet"}
    assert line(event("hello", **other)) is None
    assert "hello" in line(event("hello", level=LogLevel.warn, **other))
    assert "hello" in line(event("hello"))


def test_a_line_has_the_time_the_level_and_what_it_says():
    line = text_line(event("{a} and {b}", a=1, b="two", level=LogLevel.error))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} error 1 and two\n", line)


def test_an_object_is_flat_and_has_none_of_twisteds_own_keys():
    found = json.loads(json_line(event("it is {a}", a=1, b=[2], c=None)))
    assert found.pop("time")
    assert found == {
        "level": "info", "event": "message", "message": "it is 1", "a": 1, "c": None,
    }  # fmt: skip


def test_what_failed_is_shown_with_its_traceback():
    failure = Failure(ArithmeticError("wrong"))
    failed = event("sums", failure=failure, level=LogLevel.critical)
    assert "ArithmeticError: wrong" in text_line(failed)
    assert "ArithmeticError: wrong" in json.loads(json_line(failed))["traceback"]


@pytest.fixture(params=["text", "json"])
def form(request):
    return request.param


def test_a_relay_logs_what_was_asked_for(form, tmp_path):
    path = tmp_path / "log"
    with (
        echo_server() as server,
        started(
            *NETSOCK, "relay", *LISTEN, "--to", f"netsock:{LOOPBACK}:{server.port}",
            *(["--log-format=json"] if form == "json" else []), output=path,
        ) as child,
    ):  # fmt: skip
        port = int(
            wait_for(lambda: re.search(r"relaying from .*?:(\d+) to", child.output), child)[1]
        )
        with socket.create_connection((LOOPBACK, port)) as client:
            assert echoes(client)
        wait_for(lambda: "closed" in child.output, child)
        assert child.end() == 0
    lines = path.read_text().splitlines()
    assert len(lines) == 3
    if form == "json":
        (account,) = [each for each in map(json.loads, lines) if each["event"] == "connection"]
        assert set(account) == FIELDS
        assert (account["reason"], account["received"], account["sent"]) == ("closed", 17, 17)
    else:
        assert all(re.match(r"\S+ info \w", line) for line in lines)
        assert "<" not in child.output


@pytest.mark.parametrize("where", ["before", "behind"])
def test_the_format_may_stand_before_the_command_too(where, tmp_path):
    form = ("--log-format", "json")
    words = (*form, "echo") if where == "before" else ("echo", *form)
    with started(*NETSOCK, *words, *LISTEN, output=tmp_path / "log") as child:
        wait_for(lambda: "listening on" in child.output, child)
        assert json.loads(child.output.splitlines()[0])["event"] == "message"


@pytest.mark.parametrize("command", ["relay", "echo"])
def test_quiet_says_nothing_of_what_is_in_order(command, tmp_path):
    more = ("--to", f"netsock:{LOOPBACK}:9") if command == "relay" else ()
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
    listen = ("--listen", f"netsock:{port}:node={LOOPBACK}")
    with started(*NETSOCK, command, "-q", *listen, *more, output=tmp_path / "log") as child:

        def connects():
            with socket.socket() as client:
                return client.connect_ex((LOOPBACK, port)) == 0

        wait_for(connects, child)
        assert "listening on" not in child.output
        assert "relaying from" not in child.output


def test_another_format_is_refused():
    done = run(*NETSOCK, "echo", "--log-format", "xml")
    assert "--log-format xml: must be text or json" in done.errors


def test_a_handshake_that_fails_is_logged(tmp_path, authority):
    path = tmp_path / "server.pem"
    path.write_bytes(authority.issue("localhost").pem)
    listen = ("--listen", f"netsock-tls:0:node={LOOPBACK}:certificates={path}")
    with started(*NETSOCK, "echo", *listen, output=tmp_path / "log") as child:
        found = wait_for(lambda: re.search(r"listening on .*?:(\d+)", child.output), child)
        with socket.create_connection((LOOPBACK, int(found[1]))) as client:
            client.send(b"no TLS")
        child.wait_for_line("handshake")


def test_an_error_that_says_what_is_wrong_gets_no_other_advice(tmp_path):
    (tmp_path / "file").write_text("no socket")
    listen = ("--listen", f"netsock:{tmp_path}/file:aiFamily=unix")
    done = run(*NETSOCK, "echo", *listen)
    assert done.code == 1
    assert "ss -ltnp" not in done.errors


@pytest.mark.parametrize("command", ["relay", "echo"])
def test_what_prevents_the_start_is_one_line_that_says_what_to_do(command):
    more = ("--to", f"netsock:{LOOPBACK}:9") if command == "relay" else ()
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        listen = ("--listen", f"netsock:{port}:node={LOOPBACK}")
        done = run(*NETSOCK, command, *listen, *more)
    assert done.code == 1
    (line,) = done.errors.splitlines()
    assert line.startswith(f"netsock: --listen: cannot listen on {LOOPBACK}, port {port}")
    assert line.endswith(f", process {os.getpid()} has it")


def test_a_port_that_nobody_shows_to_have_has_no_holder():
    assert holder_of(free_port()) is None
