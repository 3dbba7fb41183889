"""What tests of the lower layers share: turns of the reactor, scripts, addresses of loopback."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Self

from twisted.internet.defer import Deferred

from tests.support.clocks import ClockedReactor
from twisted_netsock import SocketOptions
from twisted_netsock._net.connect import connect
from twisted_netsock._net.happy_eyeballs import Established
from twisted_netsock.testing import ScriptedResolver

_SCRIPT_SECONDS = 30
_PRELUDE = """
import os
from importlib import import_module

name = os.environ.get("NETSOCK_REACTOR", "epoll")
import_module(f"twisted.internet.{ {'uvloop': 'asyncio'}.get(name, name) }reactor").install()

from twisted.internet import reactor
from twisted.internet.defer import Deferred


def run(main):
    finished = []

    def done(result):
        finished.append(result)
        if reactor.running:
            reactor.stop()

    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(main()).addBoth(done))
    reactor.run()
    if finished and finished[0] is not None:
        finished[0].raiseException()
"""


def script(source: str) -> list[str]:
    """
    Return the command that runs *source*.

    There `reactor` is of the kind that the tests run on, and `run` runs a
    coroutine function on it.
    """
    return [sys.executable, "-W", "error", "-c", _PRELUDE + textwrap.dedent(source)]


def run_script(source: str) -> list[str]:
    """Run *source* in a process of its own, and return the lines that it printed."""
    done = subprocess.run(
        script(source),
        capture_output=True,
        check=False,
        text=True,
        timeout=_SCRIPT_SECONDS,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.splitlines()


def open_sockets() -> int:
    """Count the sockets of the internet that the process has open."""
    count = 0
    for number in os.listdir("/proc/self/fd"):
        try:
            copy = os.dup(int(number))
        except OSError:
            # The descriptor that listed the directory.
            continue
        if stat.S_ISSOCK(os.fstat(copy).st_mode):
            with socket.socket(fileno=copy) as sock:
                count += sock.family in {socket.AF_INET, socket.AF_INET6}
        else:
            os.close(copy)
    return count


def port_of(sock: socket.socket) -> int:
    return sock.getsockname()[1]


def _bind(host: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock


@contextmanager
def one_port(*hosts: str) -> Iterator[list[socket.socket]]:
    """Bind a socket to each of *hosts*, all on one port; until they listen, they refuse."""
    for attempt in range(20):
        with ExitStack() as stack:
            try:
                socks = [stack.enter_context(_bind(hosts[0], 0))]
                for host in hosts[1:]:
                    socks.append(stack.enter_context(_bind(host, port_of(socks[0]))))
            except OSError:
                # Another process has the port on one of the hosts.
                if attempt == 19:
                    raise
                continue
            yield socks
            return


@contextmanager
def full(listener: socket.socket) -> Iterator[None]:
    """Have *listener* listen, and fill its queue: it neither takes nor refuses connections."""
    listener.listen(0)
    with socket.create_connection(listener.getsockname()[:2]):
        yield


NAME = "name.invalid"

# A broadcast address of loopback: connect(2) refuses it without waiting.
NO_ROUTE = "127.255.255.255"


def reactor_for(*addresses: str, **how: Any) -> ClockedReactor:
    """Return a reactor with a clock, on which NAME has *addresses*."""
    reactor = ClockedReactor()
    reactor.nameResolver = ScriptedResolver({NAME: addresses}, **how)
    return reactor


class Connections:
    """Connections and attempts at them, all of which are closed at the end."""

    def __init__(self) -> None:
        self._begun: list[tuple[Any, Deferred[Any]]] = []
        self._made: list[Established] = []

    def start(
        self,
        reactor: Any,
        port: int | None,
        options: SocketOptions | None = None,
        node: str = NAME,
    ) -> Deferred[Established]:
        """Begin to connect."""

        def keep(established: Established) -> Established:
            self._made.append(established)
            return established

        connecting = connect(reactor, node, port, options or SocketOptions())
        # With its reactor, which the poller does not hold.
        self._begun.append((reactor, connecting.addCallback(keep)))
        return connecting

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for _, connecting in self._begun:
            connecting.cancel()
            connecting.addErrback(lambda _: None)
        for established in self._made:
            established.close()
