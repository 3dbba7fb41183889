"""The relay as a process, and small clients and backends for it."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support.processes import LONGEST, LOOPBACK, TWIST, Child, Ran, run, started

RELAY = (*TWIST, "netsock", "relay")
TRACEBACK = "Traceback"
PLAIN = "netsock:0:node=127.0.0.1"


@contextlib.contextmanager
def running_relay(
    directory: Path, *arguments: str | Path, listeners: int = 1, **options: Any
) -> Iterator[tuple[Child, list[int]]]:
    """Run a relay with *arguments*; yield it, and the ports that it has told."""
    with started(*RELAY, *arguments, output=directory / "relay.log", **options) as child:
        child.wait_for_line("Starting reactor")
        wait_for(lambda: len(relayed_ports(child)) >= listeners, child)
        yield child, relayed_ports(child)


def relayed_ports(child: Child) -> list[int]:
    return [int(port) for port in re.findall(r"relay(?:ing)? from .*?:(\d+) to", child.output)]


def wait_for(condition: Callable[[], Any], child: Child | None = None) -> Any:
    """Wait until *condition* holds, and return what it returned."""
    end = time.monotonic() + LONGEST
    while time.monotonic() < end:
        result = condition()
        if result:
            return result
        time.sleep(0.02)
    raise AssertionError("it did not happen:\n" + (child.output if child else ""))


def check(*arguments: str | Path) -> Ran:
    """Run the relay with ``--check``."""
    return run(*RELAY, *arguments, "--check")


def get(port: int, path: str) -> tuple[int, str]:
    """Ask for a page of the status."""
    done = run(
        "curl", "--silent", "--output", "-", "--write-out", "\n%{http_code}",
        f"http://{LOOPBACK}:{port}{path}",
    )  # fmt: skip
    body, _, code = done.output.rpartition("\n")
    return int(code), body


def status(port: int) -> Any:
    return json.loads(get(port, "/status.json")[1])


class EchoServer:
    """Sends back what it gets, in threads; says *name* first, if it has one."""

    def __init__(self, name: bytes = b"") -> None:
        self._name = name
        self._listener = socket.create_server((LOOPBACK, 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        accepting = threading.Thread(target=self._accept, daemon=True)
        self._threads.append(accepting)
        accepting.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections.append(connection)
            serving = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(serving)
            serving.start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.sendall(self._name)
            while data := connection.recv(65536):
                connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(LONGEST)
        for connection in self.connections:
            connection.close()


@contextlib.contextmanager
def echo_server(name: bytes = b"") -> Iterator[EchoServer]:
    server = EchoServer(name)
    try:
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def client(port: int) -> Iterator[socket.socket]:
    with socket.create_connection((LOOPBACK, port), timeout=LONGEST) as sock:
        yield sock


def echoes(sock: socket.socket, data: bytes = b"is anybody there?") -> bool:
    """Tell whether *sock* leads to an `EchoServer`."""
    sock.sendall(data)
    received = b""
    while len(received) < len(data):
        chunk = sock.recv(65536)
        if not chunk:
            return False
        received += chunk
    return received == data


def end_of(sock: socket.socket) -> str:
    """Return how the stream ends: in order, or by a reset."""
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        return "reset"
    return "end"
