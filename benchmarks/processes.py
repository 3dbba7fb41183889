"""Processes of a benchmark: started on given processors, spoken to in lines, ended by their id."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .task import HOST

ROOT = Path(__file__).parents[1]
LONGEST = 30.0
"""Seconds that a process may take to start or, beyond a measurement, to answer."""

SBIN = os.pathsep.join(("/usr/local/sbin", "/usr/sbin", "/sbin"))


def find(command: str) -> str | None:
    """Return the path of an installed *command*, servers included."""
    return shutil.which(command, path=os.pathsep.join((os.environ.get("PATH", ""), SBIN)))


def processors() -> tuple[int | None, int | None]:
    """Return the processor of what is measured, and that of its peers, if they can be chosen."""
    if not hasattr(os, "sched_getaffinity"):
        return None, None
    found = sorted(os.sched_getaffinity(0))
    return found[0], found[-1]


@contextlib.contextmanager
def pinned(processor: int | None) -> Iterator[None]:
    """Start processes on *processor*: what is started inherits it."""
    if processor is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {processor})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class ProcessError(Exception):
    """A process did not do what it is there for."""


class Process:
    """One process, which reads and writes lines."""

    def __init__(self, *words: str | Path, processor: int | None = None) -> None:
        self.words = [str(word) for word in words]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        with pinned(processor):
            self._process = subprocess.Popen(
                self.words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                cwd=ROOT,
                bufsize=0,
            )
        self._read = b""

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    def line(self, seconds: float = LONGEST) -> Any:
        """Return the next line that it says, which is JSON."""
        assert self._process.stdout is not None
        output = self._process.stdout.fileno()
        end = time.monotonic() + seconds
        while b"\n" not in self._read:
            left = end - time.monotonic()
            if left <= 0 or not select.select([output], [], [], left)[0]:
                raise self.failed("says nothing")
            piece = os.read(output, 65536)
            if not piece:
                raise self.failed("has ended")
            self._read += piece
        line, _, self._read = self._read.partition(b"\n")
        text = line.decode()
        return text if text == "ready" else json.loads(text)

    def say(self, line: str) -> None:
        """Give it a line."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
        except OSError:
            raise self.failed("has ended") from None

    def failed(self, what: str) -> ProcessError:
        """Return an error with what it said of it."""
        size = os.fstat(self._errors.fileno()).st_size
        tail = os.pread(self._errors.fileno(), 4000, max(0, size - 4000))
        return ProcessError(
            f"{' '.join(self.words)[:200]} {what}: {tail.decode(errors='replace')}"
        )

    def wait_for_port(self, port: int) -> None:
        """Wait until it takes connections."""
        end = time.monotonic() + LONGEST
        while time.monotonic() < end and self._process.poll() is None:
            with contextlib.suppress(OSError):
                socket.create_connection((HOST, port), timeout=1).close()
                return
            time.sleep(0.02)
        raise self.failed(f"does not listen on port {port}")

    def end(self) -> None:
        """End it and reap it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def seconds_of_processor(self) -> float:
        """Return the user and system time of it and of its children, so far."""
        return sum(_seconds(pid) for pid in _family(self.pid))

    def resident_bytes(self) -> int:
        """Return how much memory it has in use."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


def _family(pid: int) -> list[int]:
    """Return *pid* and the processes that descend from it."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{task}/children") as file:
                    found += map(int, file.read().split())
    return found


def _seconds(pid: int) -> float:
    """Return the processor time of one process, and of its children that it has reaped."""
    try:
        # Linux makes the clock of a process from its number (clock_getcpuclockid), in nanoseconds.
        own = time.clock_gettime((~pid << 3) | 2)
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return own + (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def python(*words: str) -> Sequence[str]:
    """Return the words that run a module of this package."""
    return (sys.executable, "-m", *words)


class Disturbance:
    """How much of the machine others use between two moments."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._busy = _busy()
        self._own = sum(os.times()[:4])

    def processors(self) -> float | None:
        """Return how many processors others kept busy; once all children are reaped."""
        if self._busy is None:
            return None
        own = sum(os.times()[:4]) - self._own
        others = (_busy() or 0.0) - self._busy - own
        return max(0.0, others / (time.monotonic() - self._began))


def _busy() -> float | None:
    """Return the seconds that all processors together have been busy."""
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _idle, _waiting, interrupts, soft, stolen = map(int, fields)
    return (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")
