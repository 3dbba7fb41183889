"""
Commands as child processes: started, waited for, and ended by their id.

Every wait has a limit. Nothing but loopback is listened on.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from twisted_netsock.testing import CertificateAuthority

LOOPBACK = "127.0.0.1"
LONGEST = 10.0
"""Seconds that a process may take to start, to say something, or to end."""

_PAUSE = 0.02
_SBIN = os.pathsep.join(("/usr/local/sbin", "/usr/sbin", "/sbin"))

_REACTOR = os.environ.get("NETSOCK_REACTOR", "epoll").replace("uvloop", "asyncio")

TWIST = (sys.executable, "-m", "twisted", f"--reactor={_REACTOR}", "--log-format=text")
"""The command ``twist`` of this environment, on the reactor that the tests run on."""


def find(command: str) -> str | None:
    """Return the path of an installed *command*, servers included."""
    return shutil.which(command, path=os.pathsep.join((os.environ.get("PATH", ""), _SBIN)))


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
                arguments,
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
        [str(argument) for argument in arguments],
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
