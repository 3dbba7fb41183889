"""
The relay with workers: one parent, several processes, one port.

Most of their time these tests wait for Python to start, three times and more.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessTerminated
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from tests.support.loopback import LOOPBACK
from tests.support.processes import free_port, needs, run, started, write_certificates
from tests.support.relay import (
    PLAIN,
    RELAY,
    TRACEBACK,
    client,
    echo_server,
    echoes,
    end_of,
    running_relay,
    status,
    wait_for,
)
from twisted_netsock.commands.relay.supervisor import Supervisor, _added, _Worker
from twisted_netsock.commands.relay.worker import Channel, Lines, WorkerPlace

pytestmark = pytest.mark.long


@pytest.fixture
def echo():
    with echo_server() as server:
        yield server


def children(child) -> list[int]:
    """Return the ids of the workers."""
    parent = child._process.pid
    listed = Path(f"/proc/{parent}/task/{parent}/children").read_text()
    return [int(number) for number in listed.split()]


def alive(number: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{number}/status").read_text()
    except OSError:
        return False


@contextlib.contextmanager
def working(directory, echo, *more, listen=PLAIN, count=2):
    """Run a relay with workers; yield it, its port, and that of its status."""
    number = free_port()
    with running_relay(
        directory, "--listen", listen, "--to", f"netsock:127.0.0.1:{echo.port}",
        "--workers", str(count), "--status", f"netsock:{number}:node=127.0.0.1", *more,
    ) as (child, [port, *_]):  # fmt: skip
        wait_for(lambda: status(number)["state"] == "running", child)
        yield child, port, number


def test_workers_share_a_port_that_the_kernel_has_chosen(tmp_path, echo):
    with working(tmp_path, echo, count=3) as (child, port, number):
        assert len(children(child)) == 3
        assert status(number)["listening"] == [f"127.0.0.1:{port}"]
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(client(port)) for _ in range(30)]
            assert all(echoes(sock) for sock in socks)
            assert status(number)["connections"]["open"] == 30
            # The kernel has spread them; one worker would hold them all otherwise.
            used = {
                pid for pid in children(child) if sum(1 for _ in sockets_of(pid, echo.port)) > 0
            }
            assert len(used) > 1
            assert not list(sockets_of(child._process.pid, echo.port))
        assert child.end() == 0
        assert TRACEBACK not in child.output


def sockets_of(pid: int, port: int):
    """Yield the sockets of a process that are connected to *port*."""
    inodes = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            inodes.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[2].endswith(f":{port:04X}") and f"socket:[{fields[9]}]" in inodes:
            yield line


def test_a_worker_that_dies_is_replaced_and_the_others_go_on(tmp_path, echo):
    with working(tmp_path, echo) as (child, port, number):
        first, second = before = children(child)
        with contextlib.ExitStack() as stack:
            for _ in range(100):
                if list(sockets_of(second, echo.port)):
                    break
                held = stack.enter_context(client(port))
                assert echoes(held)
            os.kill(first, signal.SIGKILL)
            child.wait_for_line("worker 1 has ended .*signal 9.* replaced in 0 s")
            assert echoes(held)
            wait_for(lambda: status(number)["workers"]["running"] == 2, child)
        assert status(number)["workers"]["restarts"] == 1
        after = children(child)
        assert second in after
        assert first not in after
        assert len(after) == len(before)
        for _ in range(10):
            with client(port) as sock:
                assert echoes(sock)
        assert child.end() == 0


def test_sigterm_is_passed_on_and_all_connections_finish(tmp_path, echo):
    with working(tmp_path, echo) as (child, port, _):
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(client(port)) for _ in range(10)]
            assert all(echoes(sock) for sock in socks)
            os.kill(child._process.pid, signal.SIGTERM)
            wait_for(lambda: child.output.count("no more connections are taken") == 2, child)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((LOOPBACK, port))
            for sock in socks:
                assert echoes(sock)
                sock.shutdown(socket.SHUT_WR)
                assert end_of(sock) == "end"
        assert child.wait() == 0
        assert TRACEBACK not in child.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_end_at_once_ends_all_workers(number, tmp_path, echo):
    with working(tmp_path, echo, "--drain", "1h") as (child, port, _):
        workers = children(child)
        with client(port) as sock:
            assert echoes(sock)
            os.kill(child._process.pid, signal.SIGTERM)
            wait_for(lambda: child.output.count("no more connections are taken") == 2, child)
            assert child.end(number) == -number
            assert end_of(sock) == "reset"
        assert not any(map(alive, workers))
        assert TRACEBACK not in child.output


@pytest.mark.parametrize("moment", ["2 workers relay from", "relaying from"])
def test_ctrl_c_at_a_terminal_is_quiet_even_while_workers_start(moment, tmp_path):
    """It reaches all processes of the terminal at once."""
    with started(
        *RELAY, "--listen", PLAIN, "--to", "netsock:127.0.0.1:1", "--workers", "2",
        output=tmp_path / "log", start_new_session=True,
    ) as child:  # fmt: skip
        child.wait_for_line(moment)
        os.killpg(child._process.pid, signal.SIGINT)
        assert child.wait() == -signal.SIGINT
        assert TRACEBACK not in child.output


def test_workers_whose_parent_is_killed_end(tmp_path, echo):
    with working(tmp_path, echo, "--drain", "100ms") as (child, port, _):
        workers = children(child)
        child._process.kill()
        child.wait()
        wait_for(lambda: not any(map(alive, workers)), child)
        assert "the parent is gone" in child.output
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((LOOPBACK, port))


@needs("openssl", "bash")
def test_sighup_is_passed_on(tmp_path, echo, authority):
    files = write_certificates(tmp_path, authority)
    certificate = tmp_path / "used.pem"
    shutil.copy(files.server, certificate)
    listen = f"netsock-tls:0:node=127.0.0.1:certificates={certificate}"
    with working(tmp_path, echo, listen=listen) as (child, port, _):

        def serials():
            """Ask often enough to reach both workers."""
            return {
                run(
                    "bash", "-c",
                    f"openssl s_client -connect 127.0.0.1:{port} </dev/null 2>/dev/null"
                    " | openssl x509 -noout -serial",
                ).output
                for _ in range(8)
            }  # fmt: skip

        before = serials()
        assert len(before) == 1
        certificate.write_bytes(authority.issue("localhost").pem)
        os.kill(child._process.pid, signal.SIGHUP)
        wait_for(lambda: child.output.count("have been read again") == 2, child)
        after = serials()
        assert len(after) == 1
        assert not after & before
        assert child.end() == 0


def test_workers_share_the_path_of_a_unix_socket(tmp_path, echo):
    path = tmp_path / "front"
    number = free_port()
    with running_relay(
        tmp_path, "--listen", f"netsock:{path}:aiFamily=unix", "--listen", PLAIN,
        "--to", f"netsock:127.0.0.1:{echo.port}", "--workers", "2",
        "--status", f"netsock:{number}:node=127.0.0.1",
    ) as (child, _):  # fmt: skip
        wait_for(lambda: status(number)["state"] == "running", child)
        for _ in range(10):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(10)
                sock.connect(str(path))
                assert echoes(sock)
        assert child.end() == 0
    assert not path.exists()


def test_a_port_that_is_taken_fails_the_parent(tmp_path, echo):
    with socket.create_server((LOOPBACK, 0)) as taken, started(
        *RELAY, "--listen", f"netsock:{taken.getsockname()[1]}:node=127.0.0.1",
        "--to", f"netsock:127.0.0.1:{echo.port}", "--workers", "2", output=tmp_path / "log",
    ) as child:  # fmt: skip
        assert child.wait() == 1
        assert "Address already in use" in child.output
        assert TRACEBACK not in child.output


def test_what_dies_at_once_is_replaced_ever_more_slowly(log_lines, monkeypatch):
    clock = Clock()
    supervisor = Supervisor(clock, None, failed=None, ready=None)
    supervisor.state = "running"
    replaced = []
    monkeypatch.setattr(supervisor, "_replace", replaced.append)
    pauses = []
    for lived in [1, 1, 1, 1, 1, 1, 1, 1, 1, 9.9, 10, 1, 1]:
        worker = _Worker(supervisor, 7)
        clock.advance(lived)
        before = clock.seconds()
        supervisor.on_ended(worker, Failure(ProcessTerminated(1)))
        (call,) = clock.getDelayedCalls()
        pauses.append(call.getTime() - before)
        clock.advance(pauses[-1])
    assert pauses == [0, 0.5, 1, 2, 4, 8, 16, 30, 30, 30, 0, 0.5, 1]
    assert replaced == [7] * len(pauses)
    assert len(log_lines) == len(pauses)


def test_a_worker_that_cannot_be_replaced_is_given_up_once_all_are_to_end(log_lines):
    clock = Clock()
    supervisor = Supervisor(clock, None, failed=None, ready=None)
    supervisor.running, supervisor.state = True, "draining"
    supervisor._pauses[7] = 1
    supervisor._not_replaced(Failure(OSError("no socket for it")), 7)
    assert clock.getDelayedCalls() == []
    assert len(log_lines) == 0


# What is between parent and worker


class Pipe:
    """What a parent has of a worker's process."""

    def __init__(self):
        self.told = []
        self.signals = []

    def writeToChild(self, number, data):
        Lines(self.told.append).feed(data)

    def signalProcess(self, name):  # noqa: N802
        self.signals.append(name)


@pytest.fixture
def parted():
    """A supervisor with a clock, and with one worker that is ready and a pipe to it."""
    settings = SimpleNamespace(workers=1)
    supervisor = Supervisor(Clock(), settings, failed=None, ready=lambda: None)
    worker = supervisor._workers[1] = _Worker(supervisor, 1)
    worker.transport = Pipe()
    hear(worker, {"ready": "", "reload": 0})
    return supervisor, worker


def hear(worker, message):
    worker.childDataReceived(4, Lines.encode(message))


def snapshots(supervisor, count):
    return [Deferred.fromCoroutine(supervisor.snapshot()) for _ in range(count)]


def test_a_worker_that_does_not_answer_is_asked_once(parted):
    supervisor, worker = parted
    for _ in range(3):
        for asking in snapshots(supervisor, 2):
            assert not asking.called
        supervisor.reactor.advance(2)
        assert worker._askers == []
        assert supervisor.reactor.getDelayedCalls() == []
    assert worker.transport.told == [{"ask": "status"}]


def test_all_who_ask_meanwhile_get_the_answer_and_the_next_asks_anew(parted):
    supervisor, worker = parted
    for _ in range(2):
        first, second = snapshots(supervisor, 2)
        hear(worker, {"answer": "status", "status": {"state": "running", "bytes": 7}})
        for asking in (first, second):
            assert asking.result["bytes"] == 7
            assert asking.result["workers"]["answering"] == 1
    assert worker.transport.told == [{"ask": "status"}] * 2


def test_what_answers_one_reload_does_not_answer_the_next(parted):
    supervisor, worker = parted
    results = []
    for _ in range(3):
        supervisor.reload().addCallback(results.append)
        supervisor.reactor.advance(9)
    hear(worker, {"ready": "", "reload": 0})
    assert results == []
    # It had begun with the first when it was told of the others, which it makes one.
    hear(worker, {"ready": "no key", "reload": 1})
    assert results == [["no key"]]
    hear(worker, {"ready": "", "reload": 3})
    assert results == [["no key"], [], []]
    assert worker.transport.told == [{"reload": number} for number in (1, 2, 3)]
    assert supervisor.reactor.getDelayedCalls() == []


def test_a_worker_that_was_starting_reads_again_and_keeps_no_later_reload_short(parted):
    supervisor, worker = parted
    worker.ready = False
    assert supervisor.reload().result == []
    hear(worker, {"ready": "", "reload": 0})
    assert worker.transport.told == [{"reload": 1}]
    second = supervisor.reload()
    hear(worker, {"ready": "", "reload": 1})
    assert not second.called
    hear(worker, {"ready": "no key", "reload": 2})
    assert second.result == ["no key"]
    assert supervisor.reactor.getDelayedCalls() == []


def test_a_reload_that_is_not_answered_is_forgotten(parted):
    supervisor, worker = parted
    hanging = supervisor.reload()
    supervisor.reactor.advance(30)
    assert hanging.result == ["worker 1 does not answer"]
    gone = supervisor.reload()
    worker.processEnded(Failure(ProcessTerminated(1)))
    assert gone.result == ["worker 1 does not answer"]
    assert worker._reloads == {}


def test_a_worker_tells_which_reload_it_has_begun_with():
    begun = []
    channel = Channel(dict, lambda: begun.append(True), lambda: None)
    channel.makeConnection(StringTransport())

    def told():
        answers = []
        Lines(answers.append).feed(channel.transport.value())
        channel.transport.clear()
        return answers

    channel.ready("")
    channel.dataReceived(Lines.encode({"reload": 1}))
    channel.reloading()
    channel.dataReceived(Lines.encode({"reload": 2}))
    channel.ready("no key")
    channel.reloading()
    channel.ready("")
    assert [(each["reload"], each["ready"]) for each in told()] == [
        (0, ""),
        (1, "no key"),
        (2, ""),
    ]
    assert begun == [True, True]


def test_a_worker_that_has_just_gone_does_not_answer(parted, log_lines):
    supervisor, worker = parted

    def gone(number, data):
        raise KeyError(number)

    worker.transport.writeToChild = gone
    (asking,) = snapshots(supervisor, 1)
    reloading = supervisor.reload()
    worker.processEnded(Failure(ProcessTerminated(1)))
    assert reloading.result == ["worker 1 does not answer"]
    assert asking.result["workers"]["answering"] == 0


def test_messages_are_put_together_again():
    found = []
    lines = Lines(found.append)
    sent = Lines.encode({"a": 1}) + Lines.encode({"b": "ü\n"})
    for place in range(len(sent)):
        lines.feed(sent[place : place + 1])
    assert found == [{"a": 1}, {"b": "ü\n"}]


def test_a_message_without_end_is_refused():
    lines = Lines(print)
    with pytest.raises(ValueError, match="too long"):
        for _ in range(3):
            lines.feed(b"x" * 1024 * 1024)


def test_a_worker_learns_its_place_and_nothing_of_the_supervisor(monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/x")
    monkeypatch.setenv("LISTEN_FDS", "1")
    place = WorkerPlace(2, ((5,), (6, 7)))
    environment = place.environment()
    assert not [name for name in environment if re.match("LISTEN|NOTIFY", name)]
    monkeypatch.setattr(os, "environ", environment)
    assert WorkerPlace.take() == place
    # The options are parsed twice where a command is run by another.
    assert WorkerPlace.take() == place
    monkeypatch.setattr(os, "environ", {})
    assert WorkerPlace.take() is None


def test_snapshots_are_added():
    first = {"n": 1, "s": "x", "d": {"a": 1}, "t": [{"name": "b", "failed": 1}], "l": ["h"]}
    second = {"n": 2, "s": "x", "d": {"a": 2}, "t": [{"name": "b", "failed": 3}], "l": ["h"]}
    assert _added(_added({}, first), second) == {
        "n": 3, "s": "x", "d": {"a": 3}, "t": [{"name": "b", "failed": 4}], "l": ["h"],
    }  # fmt: skip
