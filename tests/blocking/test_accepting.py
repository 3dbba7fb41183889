"""Blocking sockets that accept."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections import deque
from typing import Any

import pytest

from tests.support.threads import Background, eventually, threaded, waiting
from twisted_netsock import SocketBusyError, blocking
from twisted_netsock.blocking._waiting import Waiter, _Alarm


@threaded
def test_connections_are_taken_in_a_loop_until_the_socket_is_closed():
    with blocking.make_server_socket("127.0.0.1", 0) as server:
        port = server.getsockname().port
        seen = []

        def loop() -> None:
            for connection in server:
                with connection:
                    seen.append(connection.recv(1))

        looping = Background(loop)
        for letter in (b"a", b"b"):
            with blocking.make_client_socket("127.0.0.1", port) as one:
                one.sendall(letter)
                assert one.recv(1) == b""
        server.close()
        assert looping.result() is None
        assert seen == [b"a", b"b"]


class AlwaysTaken(deque):
    """Connections that are there when somebody looks, and that another thread takes first."""

    def __bool__(self) -> bool:
        return True


@threaded
def test_who_comes_too_late_for_a_connection_that_was_left_over_accepts_as_if_there_were_none():
    with blocking.make_server_socket("127.0.0.1", 0) as server:
        accepting = waiting(server.accept, server)
        server._unowned = AlwaysTaken()
        with pytest.raises(SocketBusyError):
            server.accept()
        server._unowned = deque()
        with blocking.make_client_socket("127.0.0.1", server.getsockname().port):
            accepting.result().close()


@threaded
def test_serve_runs_at_most_so_many_handlers_and_closes_what_they_leave(authority):
    record = authority.server_options()
    for server in (
        blocking.make_server_socket("127.0.0.1", 0),
        blocking.make_server_tls_socket("127.0.0.1", 0, record),
    ):
        running, most, lock = [0], [0], threading.Lock()

        def handle(
            connection: Any, running: Any = running, most: Any = most, lock: Any = lock
        ) -> None:
            with lock:
                running[0] += 1
                most[0] = max(most[0], running[0])
            connection.sendall(connection.recv(10))
            time.sleep(0.02)
            with lock:
                running[0] -= 1

        serving = Background(lambda s=server, h=handle: s.serve(h, limit=2))
        port = server.getsockname().port

        def ask(port: int = port, tls: bool = "TLS" in repr(server)) -> bytes:
            with (
                blocking.make_client_tls_socket("localhost", port, authority.client_options())
                if tls
                else blocking.make_client_socket("127.0.0.1", port)
            ) as one:
                one.sendall(b"hello")
                return one.recv(10) + one.recv(10)

        asking = [Background(ask) for _ in range(6)]
        assert [each.result() for each in asking] == [b"hello"] * 6
        assert most[0] == 2
        server.close()
        serving.result()
        assert running[0] == 0


class Unusual(BaseException):
    """As greenlets and test runners have them."""


@pytest.mark.parametrize(
    "kind",
    [LookupError, SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, Unusual],
)
@threaded
def test_serve_logs_what_a_handler_raises(kind, logged_errors):
    with blocking.make_server_socket("127.0.0.1", 0) as server:

        def fail(connection: Any) -> None:
            raise kind("no such luck")

        serving = Background(lambda: server.serve(fail))
        for _ in range(2):
            with blocking.make_client_socket("127.0.0.1", server.getsockname().port) as one:
                assert one.recv(1) == b""
        server.close()
        serving.result()
    assert [str(event["log_failure"].value) for event in logged_errors] == ["no such luck"] * 2
    logged_errors.clear()


@threaded
def test_peers_that_reset_are_lines_in_the_log_the_first_ten_and_then_a_number(log_lines):
    handled = []

    def handle(connection: Any) -> None:
        try:
            connection.recv(1)
        finally:
            handled.append(connection)

    with blocking.make_server_socket("127.0.0.1", 0) as server:
        serving = Background(lambda: server.serve(handle))
        for _ in range(12):
            with blocking.make_client_socket("127.0.0.1", server.getsockname().port) as one:
                one.abort()
        eventually(lambda: len(handled) == 12)
        server.close()
    serving.result()
    lines = [line for line in log_lines if line.startswith("serving 127.0.0.1")]
    assert len(lines) == 10
    assert all("ended: " in line for line in lines)
    assert any(line.startswith("2 more connections have failed") for line in log_lines)


@threaded
def test_serve_ends_when_it_is_closed_while_it_is_full():
    release = threading.Event()
    with blocking.make_server_socket("127.0.0.1", 0) as server:
        serving = Background(lambda: server.serve(lambda _: release.wait(10), limit=1))
        with blocking.make_client_socket("127.0.0.1", server.getsockname().port):
            eventually(lambda: threading.active_count() and "netsock-connection" in names())
            server.close()
            time.sleep(0.02)
            assert serving.running
            release.set()
            serving.result()


@threaded
def test_serve_goes_on_when_a_thread_cannot_be_started(monkeypatch, log_lines):
    start = threading.Thread.start
    refusals = [RuntimeError("can't start new thread")] * 2

    def start_or_refuse(thread: threading.Thread) -> None:
        if thread.name == "netsock-connection" and refusals:
            raise refusals.pop()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_or_refuse)
    with blocking.make_server_socket("127.0.0.1", 0) as server:
        serving = Background(lambda: server.serve(lambda connection: connection.sendall(b"x")))
        got = []
        for _ in range(3):
            with blocking.make_client_socket("127.0.0.1", server.getsockname().port) as one:
                got.append(one.recv(1))
        assert got == [b"", b"", b"x"]
        server.close()
        serving.result()
    assert len([line for line in log_lines if "can't start new thread" in line]) == 2


def names() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize(
    ("limit", "error"), [(0, ValueError), (True, TypeError), ("2", TypeError)]
)
@threaded
def test_serve_refuses_a_limit_that_is_none(limit, error):
    with (
        blocking.make_server_socket("127.0.0.1", 0) as server,
        pytest.raises(error, match="limit"),
    ):
        server.serve(lambda _: None, limit=limit)


def test_who_is_gone_is_woken_no_more():
    """The number of its alarm may be somebody else's when that is closed."""
    found: list[Waiter | None] = []

    class Noting(_Alarm):
        def __del__(self) -> None:
            found.append(gone())
            super().__del__()

    waiter = Waiter()
    gone = weakref.ref(waiter)
    waiter._alarm = Noting()
    del waiter
    gc.collect()
    assert found == [None]
