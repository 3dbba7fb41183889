"""What tests of the lower layers share: scripts, sockets on loopback, accepting, pollers."""

from __future__ import annotations

import itertools
import os
import socket
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from tests.support.clocks import ClockedReactor, the_reactor
from twisted_netsock import Socket, SocketAddress, SocketOptions, chibi
from twisted_netsock._io.poller import (
    EpollPoller,
    Poller,
    ReactorPoller,
    Watch,
    _Adapter,
    poller_for,
)
from twisted_netsock._net.accept import Acceptor
from twisted_netsock._net.connect import connect
from twisted_netsock._net.happy_eyeballs import Established
from twisted_netsock.testing import ScriptedResolver

LOOPBACK = "127.0.0.1"
LONGEST = 30.0
"""Seconds after which a wait that should have ended fails its test."""

_SCRIPT_SECONDS = 60
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


def reset(sock: socket.socket) -> None:
    """Close *sock* so that its peer sees a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()


@contextmanager
def resolving(
    answers: Mapping[str, Sequence[str]], *, delay: float | None = 0.0
) -> Iterator[ScriptedResolver]:
    """Have names looked up in *answers*."""
    resolver = ScriptedResolver(answers, delay=delay)
    before = resolver.install()
    try:
        yield resolver
    finally:
        the_reactor().installNameResolver(before)


def is_open(number: int) -> bool:
    """Return whether the process has a descriptor of that number."""
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


@contextmanager
def native_listener() -> Iterator[tuple[socket.socket, SocketAddress]]:
    """Listen with a socket of the standard library; yield it, and where it listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        yield listener, SocketAddress(listener.getsockname())


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


class Accepting:
    """An acceptor of connections to a listening socket, and what it hands on."""

    def __init__(self, listener: Any, on_delivery: Callable[[], object]) -> None:
        self.clock = Clock()
        self.watch = poller_for(the_reactor()).watch(listener.fileno())
        self.delivered: list[tuple[socket.socket, SocketAddress]] = []
        self.lost: list[Exception] = []
        self._on_delivery = on_delivery
        self.acceptor = Acceptor(self.clock, self.watch, listener, self._deliver, self.lost.append)

    def _deliver(self, connection: socket.socket, peer: SocketAddress) -> None:
        self.delivered.append((connection, peer))
        self._on_delivery()


@contextmanager
def accepting(
    listener: Any, on_delivery: Callable[[], object] = lambda: None
) -> Iterator[Accepting]:
    """Give an acceptor that is closed at the end, and what it accepted with it."""
    found = Accepting(listener, on_delivery)
    try:
        yield found
    finally:
        found.acceptor.stop()
        found.watch.close()
        for connection, _ in found.delivered:
            connection.close()
    assert found.clock.getDelayedCalls() == []


@contextmanager
def listening() -> Iterator[socket.socket]:
    """Give a listening socket."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as sock:
        sock.setblocking(False)
        yield sock


@contextmanager
def dialling(listener: socket.socket) -> Iterator[Callable[[], socket.socket]]:
    """Give what makes connections to *listener*, which the kernel completes by itself."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(socket.create_connection(listener.getsockname()))


HOSTS = {"ipv4": "127.0.0.1", "ipv6": "::1"}

Open = Callable[..., Socket]


def is_there(host: str) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind((host, 0))
    except OSError:
        return False
    return True


@pytest.fixture(params=["ipv4", "ipv6", "unix"])
def open_bound(request: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens datagram sockets of one family, each bound to an address of its own."""
    if request.param == "ipv6" and not is_there("::1"):
        pytest.skip("this host has no IPv6 loopback")
    paths = (str(tmp_path / f"{number}") for number in itertools.count())
    with ExitStack() as stack:

        def open_one(**fields: Any) -> Socket:
            if request.param == "unix":
                sock = chibi.socket(socket.AF_UNIX, socket.SOCK_DGRAM, **fields)
                address: Any = (next(paths),)
            else:
                host = HOSTS[request.param]
                address = chibi.make_sockaddr(host=host, port=0)
                sock = chibi.socket(address.family, socket.SOCK_DGRAM, **fields)
            stack.callback(sock.close)
            sock.bind(address)
            return sock

        yield open_one


def udp(host: str = "127.0.0.1", port: int = 0) -> Socket:
    sock = chibi.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.bind((host, port))
    except BaseException:
        sock.close()
        raise
    return sock


def unix() -> Socket:
    return chibi.socket(socket.AF_UNIX, socket.SOCK_DGRAM)


KINDS: list[type[Poller]] = [EpollPoller, ReactorPoller]


class Owner:
    """Notes what it hears about a watch, and does something then."""

    def __init__(self, watch: Watch, act: Callable[[Any], object] = lambda owner: None) -> None:
        self.watch = watch
        self.heard: list[Any] = []
        self.act = act
        watch.owner = self

    def on_receive_ready(self) -> None:
        self.heard.append("readable")
        self.act(self)

    def on_send_ready(self) -> None:
        self.heard.append("writable")
        self.act(self)

    def on_poller_lost(self, reason: Exception) -> None:
        self.heard.append(reason)
        self.act(self)

    def on_fork(self) -> None:
        self.heard.append("forked")


@contextmanager
def poller_of(kind: type[Poller], monkeypatch: Any) -> Iterator[Poller]:
    """Make a poller over the reactor that the tests run on."""
    reactor = the_reactor()
    add = reactor.addSystemEventTrigger
    triggers: list[Any] = []

    def noting(*arguments: Any) -> Any:
        triggers.append(add(*arguments))
        return triggers[-1]

    with monkeypatch.context() as patch:
        patch.setattr(reactor, "addSystemEventTrigger", noting)
        poller = kind(reactor)
    yield poller
    for trigger in triggers:
        reactor.removeSystemEventTrigger(trigger)


@contextmanager
def watched(
    poller: Poller, *, act: Callable[[Any], object] = lambda owner: None
) -> Iterator[tuple[Any, socket.socket]]:
    """Give the owner of a watch on one end of a pair, and the other end."""
    here, there = socket.socketpair()
    here.setblocking(False)
    there.setblocking(False)
    owner: Any = Owner(poller.watch(here.fileno()), act)
    owner.sock = here
    with here, there:
        try:
            yield owner, there
        finally:
            owner.watch.close()


def note_calls(monkeypatch: Any) -> list[str]:
    """Return a list that grows each time that the reactor calls a poller."""
    found: list[str] = []

    def count(kind: Any, name: str) -> None:
        original = getattr(kind, name)

        def noting(self: Any) -> Any:
            found.append(name)
            return original(self)

        monkeypatch.setattr(kind, name, noting)

    count(EpollPoller, "doRead")
    count(_Adapter, "doRead")
    count(_Adapter, "doWrite")
    return found


def in_reactor() -> set[Any]:
    """Return what pollers have put into the reactor."""
    reactor = the_reactor()
    return {
        each
        for each in [*reactor.getReaders(), *reactor.getWriters()]
        if type(each).__module__ == Poller.__module__
    }
