"""The task of a measured process, and how it measures itself when asked to."""

from __future__ import annotations

import cProfile
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import IO

HOST = "127.0.0.1"
NAME = "localhost"
"""The name in the certificates, which every client verifies."""

PROFILES: list[cProfile.Profile] = []
"""The profile of what is measured, if one is asked for."""

MESSAGE = b"x" * 64
CHUNK = bytes(65536)
FILE_SIZE = 1 << 20
"""Bytes of the file that is sent."""


@dataclass(frozen=True)
class Task:
    """What to do: a client's *job* against *port*, or a server's, plain or TLS."""

    job: str
    """Of clients: a key of `JOBS`; of servers: ``echo`` or ``relay``."""
    port: int = 0
    """Of the neutral peer: where clients connect to and relays relay to."""
    authority: str | None = None
    """The path of what clients trust; if there is one, they speak TLS."""
    certificate: str | None = None
    """The path of certificate and key; if there is one, servers speak TLS."""
    reactor: str = "epoll"
    """For what is built on Twisted."""

    def to_json(self) -> str:
        """Return it as the argument of a process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Task:
        """Return what `to_json` wrote."""
        return cls(**json.loads(text))


JOBS = {
    "round-trips": "echo",
    "connects": "echo",
    "receive": "source",
    "send": "sink",
    "send-file": "sink",
    "port-reads": "source",
    "port-writes": "sink",
}
"""What clients do, and the neutral server that it takes."""


class Watch:
    """One measurement: until `end` the process counts its operations, or bytes."""

    __slots__ = ("begin", "count", "cpu", "end")

    def __init__(self, seconds: float) -> None:
        for profile in PROFILES:
            profile.enable()
        self.count = 0
        self.cpu = time.process_time()
        self.begin = time.perf_counter()
        self.end = self.begin + seconds

    def report(self) -> None:
        """Print what was counted, and what it took."""
        seconds, cpu = time.perf_counter() - self.begin, time.process_time() - self.cpu
        for profile in PROFILES:
            profile.disable()
        say({"operations": self.count, "seconds": seconds, "cpu": cpu})


def measurements() -> Iterator[Watch]:
    """Yield a `Watch` for each line of seconds that comes, and report when it is handed back."""
    say("ready")
    # The line is waited for in the reactor's or loop's own thread: nothing else is to run.
    while line := sys.stdin.readline():
        watch = Watch(float(line.split()[0]))
        yield watch
        watch.report()


def serves(port: int) -> None:
    """Tell where a server listens; what it does from now on is measured."""
    say(port)
    for profile in PROFILES:
        profile.enable()


def say(what: object) -> None:
    """Print a line of JSON, at once."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def file_to_send() -> IO[bytes]:
    """Return a file of `FILE_SIZE`, which is in the memory of the kernel."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - its receiver closes it, or the end does
    file.write(bytes(FILE_SIZE))
    file.flush()
    return file


def install_reactor(name: str) -> None:
    """Install the reactor that *name* means; ``uvloop`` is asyncio on uvloop."""
    import asyncio
    from importlib import import_module

    if name in {"asyncio", "uvloop"}:
        from twisted.internet import asyncioreactor

        if name == "uvloop":
            import uvloop

            asyncioreactor.install(uvloop.new_event_loop())
        else:
            asyncioreactor.install(asyncio.new_event_loop())
        return
    import_module(f"twisted.internet.{name}reactor").install()
