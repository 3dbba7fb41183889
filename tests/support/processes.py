"""Child processes, the commands among them, and the servers and terminals that those meet."""

from __future__ import annotations

import contextlib
import os
import random
import re
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.loopback import LONGEST, LOOPBACK
from twisted_netsock.testing import CertificateAuthority

_PAUSE = 0.02
_SBIN = os.pathsep.join(("/usr/local/sbin", "/usr/sbin", "/sbin"))

_REACTOR = os.environ.get("NETSOCK_REACTOR", "epoll").replace("uvloop", "asyncio")

TWIST = (sys.executable, "-m", "twisted", f"--reactor={_REACTOR}", "--log-format=text")
"""The command ``twist`` of this environment, on the reactor that the tests run on."""


def find(command: str) -> str | None:
    """Return the path of an installed *command*, servers included."""
    return shutil.which(command, path=os.pathsep.join((os.environ.get("PATH", ""), _SBIN)))


def resolved(arguments: tuple[str | Path, ...]) -> list[str]:
    """Return a command line with the path of the command, which PATH may lack for a server."""
    command, *more = map(str, arguments)
    return [find(command) or command, *more]


def needs(*commands: str) -> pytest.MarkDecorator:
    """Skip a test where one of *commands* is not installed."""
    missing = [command for command in commands if find(command) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


# Running


class Child:
    """A command that runs beside the tests; made by `started`."""

    def __init__(self, arguments: tuple[str, ...], output: Path, options: dict) -> None:
        self.arguments = arguments
        self._output = output
        with output.open("wb") as file:
            self._process = subprocess.Popen(
                resolved(arguments),
                stdin=options.pop("stdin", subprocess.DEVNULL),
                stdout=file,
                stderr=subprocess.STDOUT,
                **options,
            )

    @property
    def output(self) -> str:
        """What it has printed, to both outputs."""
        return self._output.read_text(errors="backslashreplace")

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_for_line(self, pattern: str) -> re.Match[str]:
        """Wait until it prints a line in which *pattern* is found."""
        wanted = re.compile(pattern, re.MULTILINE)
        for _ in _moments():
            running = self.running
            found = wanted.search(self.output)
            if found is not None:
                return found
            if not running:
                break
        raise AssertionError(f"{self.arguments} did not print {pattern!r}:\n{self.output}")

    def wait_for_port(self, port: int) -> None:
        """Wait until it takes connections on *port* of loopback."""
        for _ in _moments():
            with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port)):
                return
            if not self.running:
                break
        raise AssertionError(f"{self.arguments} does not listen on {port}:\n{self.output}")

    def wait_until_it_serves(self, port: int) -> None:
        """
        Wait until it has refused what is no TLS, or has no backend, on *port* of loopback.

        Its reactor runs then: before that it would not handle a signal.
        """
        with (
            contextlib.suppress(ConnectionResetError, BrokenPipeError),
            socket.create_connection((LOOPBACK, port), timeout=LONGEST) as client,
        ):
            client.sendall(b"this is no TLS\r\n\r\n")
            while client.recv(1024):
                pass

    def send_signal(self, number: int) -> None:
        """Send the signal *number*."""
        self._process.send_signal(number)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send the signal *number*, and return the exit status: negative for a signal."""
        if self.running:
            self._process.send_signal(number)
        return self.wait()

    def say(self, line: str) -> None:
        """Write *line* to its standard input, which must be a pipe."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def wait(self, seconds: float = LONGEST) -> int:
        """Wait until it ends by itself, and return its exit status."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.arguments} does not end:\n{self.output}") from None

    def kill(self) -> None:
        """End it whatever it does, and reap it."""
        if self.running:
            self._process.kill()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(LONGEST)


def _moments() -> Iterator[None]:
    """Yield now and then, until `LONGEST` has passed."""
    end = time.monotonic() + LONGEST
    while time.monotonic() < end:
        yield
        time.sleep(_PAUSE)


@contextlib.contextmanager
def started(*arguments: str | Path, output: Path, **options: object) -> Iterator[Child]:
    """
    Run a command beside the test, which ends it, if it has not ended by itself.

    What it prints goes to the file *output*; *options* are those of
    `subprocess.Popen`.
    """
    child = Child(tuple(map(str, arguments)), output, dict(options))
    try:
        yield child
    finally:
        child.kill()


class Ran(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    output: str
    errors: str


def run(
    *arguments: str | Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    seconds: float = 3 * LONGEST,
) -> Ran:
    """Run a command to its end."""
    done = subprocess.run(
        resolved(arguments),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        text=True,
        timeout=seconds,
        env=None if env is None else dict(env),
        cwd=cwd,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def free_port() -> int:
    """Return a port of loopback that nobody uses, and that the kernel gives to nobody."""
    for _ in range(100):
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return port
    raise AssertionError("there is no free port")


# Files


class CertificateFiles(NamedTuple):
    """Paths of PEM files."""

    authority: Path
    """Whom clients trust."""
    server: Path
    """A certificate for localhost, with its key."""
    roots: Path
    """A directory with the authority alone, as Twisted's own endpoint strings take it."""


def write_certificates(directory: Path, authority: CertificateAuthority) -> CertificateFiles:
    """Issue a certificate for localhost, and write it to *directory*."""
    files = CertificateFiles(
        directory / "authority.pem", directory / "server.pem", directory / "roots"
    )
    files.authority.write_bytes(authority.certificate_pem)
    files.server.write_bytes(authority.issue("localhost", LOOPBACK).pem)
    files.roots.mkdir()
    (files.roots / "authority.pem").write_bytes(authority.certificate_pem)
    return files


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
    """Return a handler: a handshake with the certificate *pem*, then the end of both sides."""
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
    """Return what says nothing, and reports when something has arrived."""

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
