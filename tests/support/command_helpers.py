"""What the tests of ``netsock probe`` and ``netsock connect`` share: servers, and the command."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support.processes import LONGEST, LOOPBACK, Ran
from twisted_netsock.testing import CertificateAuthority

REACTOR = os.environ.get("NETSOCK_REACTOR", "epoll").replace("uvloop", "asyncio")
NETSOCK = (sys.executable, "-W", "error", "-m", "twisted_netsock", f"--reactor={REACTOR}")
"""The command ``netsock``, on the reactor that the tests run on."""

Handler = Callable[[socket.socket], None]


def netsock(*arguments: str | Path, given: bytes = b"", **options: Any) -> Ran:
    """Run ``netsock`` to its end."""
    done = subprocess.run(
        [*NETSOCK, *map(str, arguments)],
        input=given,
        capture_output=True,
        check=False,
        timeout=3 * LONGEST,
        **options,
    )
    return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())


def one_line(done: Ran) -> str:
    """Return the one line that a command has written to standard error."""
    assert "Traceback" not in done.errors
    [line] = done.errors.splitlines()
    return line


# Servers


@contextlib.contextmanager
def serving(handle: Handler) -> Iterator[int]:
    """Serve each connection with *handle*, one after the other, in a thread; yield the port."""
    with socket.create_server((LOOPBACK, 0)) as listener:
        listener.settimeout(0.05)
        ended = threading.Event()

        def serve() -> None:
            while not ended.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                with connection:
                    connection.settimeout(LONGEST)
                    with contextlib.suppress(OSError):
                        handle(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            ended.set()
            thread.join(LONGEST)
            assert not thread.is_alive()


def drain(connection: socket.socket) -> bytes:
    """Read to the end."""
    pieces = []
    while piece := connection.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


def tls(pem: bytes, directory: Path, **changes: Any) -> Handler:
    """Return what shakes hands with the certificate *pem*, waits for the end, and ends."""
    path = directory / f"{abs(hash(pem))}.pem"
    path.write_bytes(pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    for name, value in changes.items():
        if name == "client_authority":
            context.load_verify_locations(cadata=value)
        elif name == "alpn":
            context.set_alpn_protocols(value)
        else:
            setattr(context, name, value)

    def handle(connection: socket.socket) -> None:
        with context.wrap_socket(connection.dup(), server_side=True) as wrapped:
            drain(wrapped)
            wrapped.unwrap().close()

    return handle


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def dialogue(*steps: str | tuple[str, ...], then: Handler) -> Handler:
    """Return what says the lines, reads a line in between, and goes on with *then*."""

    def handle(connection: socket.socket) -> None:
        with connection.makefile("rb", buffering=0) as reader:
            for number, lines in enumerate(steps):
                if number:
                    reader.readline()
                for line in (lines,) if isinstance(lines, str) else lines:
                    connection.sendall(line.encode() + b"\r\n")
            then(connection)

    return handle


def mute_after(arrived: threading.Event) -> Handler:
    """Return what says nothing, and tells when it has been spoken to."""

    def handle(connection: socket.socket) -> None:
        connection.recv(1)
        arrived.set()
        drain(connection)

    return handle


# Files


def write_authority(directory: Path, authority: CertificateAuthority) -> Path:
    path = directory / "ca.pem"
    path.write_bytes(authority.certificate_pem)
    return path


# Terminals


class Terminal:
    """A command in a terminal of its own; made by `in_terminal`."""

    def __init__(self, arguments: tuple[str, ...], env: dict[str, str] | None) -> None:
        self._ours, theirs = os.openpty()
        try:
            self._process = subprocess.Popen(
                ["setsid", "--ctty", "--wait", *arguments],
                stdin=theirs,
                stdout=theirs,
                stderr=theirs,
                env={**os.environ, "TERM": "xterm", **(env or {})},
            )
        finally:
            os.close(theirs)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def sees(self, pattern: str) -> str:
        """Wait until *pattern* is on the screen."""
        end = time.monotonic() + LONGEST
        while time.monotonic() < end:
            found = re.search(pattern, self.shown)
            if found is not None:
                return found[0]
            if not self._read():
                break
        raise AssertionError(f"{pattern!r} does not appear:\n{self.shown!r}")

    def _read(self) -> bool:
        if not select.select([self._ours], [], [], 0.05)[0]:
            return True
        try:
            data = os.read(self._ours, 65536)
        except OSError:
            # Nobody has the terminal open any more.
            return False
        self.shown += data.decode(errors="replace")
        return bool(data)

    def ends(self) -> int:
        """Wait until the command ends, and return its exit status."""
        end = time.monotonic() + LONGEST
        while self._process.poll() is None and time.monotonic() < end:
            self._read()
        while self._process.poll() is not None and self._read() and time.monotonic() < end:
            if not select.select([self._ours], [], [], 0)[0]:
                break
        code = self._process.poll()
        assert code is not None, f"it does not end:\n{self.shown!r}"
        return code

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait(LONGEST)
        os.close(self._ours)


@contextlib.contextmanager
def in_terminal(*arguments: str | Path, env: dict[str, str] | None = None) -> Iterator[Terminal]:
    """Run ``netsock`` in a terminal."""
    terminal = Terminal((*NETSOCK, *map(str, arguments)), env)
    try:
        yield terminal
    finally:
        terminal.close()
