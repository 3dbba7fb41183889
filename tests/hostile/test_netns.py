"""Hosts of the tests' own, with a wire between them that is slow, loses packets, or is cut."""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.loopback import script
from tests.support.processes import TWIST, Child, started, write_certificates
from twisted_netsock.testing import CertificateAuthority

_TUN = "/dev/net/tun"
_SET_INTERFACE = 0x400454CA
_PLAIN_PACKETS = 0x1001  # IFF_TUN | IFF_NO_PI
_MOST = 65536
_QUEUE = 4000
"""Packets on their way; more are lost, as in a router."""


class Host(NamedTuple):
    """One end of the wire."""

    namespace: str
    v4: str
    v6: str

    @property
    def within(self) -> tuple[str, ...]:
        """What a command begins with that runs there."""
        return ("ip", "netns", "exec", self.namespace)


def why_not() -> str | None:
    """Return why there cannot be a wire here, or `None`."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not os.access(_TUN, os.R_OK | os.W_OK):
        return f"there is no {_TUN}"
    name = f"netsock-probe-{os.getpid()}"
    try:
        _ip("netns", "add", name)
        _ip("netns", "delete", name)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"there are no network namespaces: {error}"
    return None


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=10)


class Wire:
    """
    Carries packets between two hosts, both ways.

    Attributes:
        delay: Seconds that a packet takes.
        loss: The share of packets that are lost.
        late: The share of packets that others overtake.
        dead: The versions of IP that do not pass.
    """

    def __init__(self, hosts: tuple[Host, Host]) -> None:
        self.hosts = hosts
        self.delay = 0.0
        self.loss = 0.0
        self.late = 0.0
        self.dead: set[int] = set()
        self.carried = self.lost = 0
        self._random = random.Random(1)
        self._devices: list[int] = []
        self._over, self._tell_over = os.pipe()
        self._thread = threading.Thread(target=self._carry, daemon=True)

    def begin(self, stack: ExitStack) -> None:
        for descriptor in (self._over, self._tell_over):
            stack.callback(os.close, descriptor)
        for number, host in enumerate(self.hosts):
            _ip("netns", "add", host.namespace)
            stack.callback(_ip, "netns", "delete", host.namespace)
            device = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK)
            stack.callback(os.close, device)
            self._devices.append(device)
            name = f"nsw{os.getpid() % 10**8}-{number}"
            fcntl.ioctl(
                device, _SET_INTERFACE, struct.pack("16sH22x", name.encode(), _PLAIN_PACKETS)
            )
            _ip("link", "set", name, "netns", host.namespace)
            _ip("-n", host.namespace, "address", "add", f"{host.v4}/24", "dev", name)
            _ip("-n", host.namespace, "-6", "address", "add", f"{host.v6}/64", "dev", name)
            for each in ("lo", name):
                _ip("-n", host.namespace, "link", "set", each, "up")
        self._thread.start()
        stack.callback(self._end)

    def _end(self) -> None:
        os.write(self._tell_over, b"x")
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _carry(self) -> None:
        one, other = self._devices
        towards = {one: other, other: one}
        waiting: list[tuple[float, int, int, bytes]] = []
        while True:
            pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
            ready, _, _ = select.select([self._over, *self._devices], [], [], pause)
            if self._over in ready:
                return
            for device in ready:
                for packet in self._packets(device):
                    if len(waiting) < _QUEUE and self._passes(packet):
                        self.carried += 1
                        due = time.monotonic() + self._time()
                        entry = (due, self.carried, towards[device], packet)
                        heapq.heappush(waiting, entry)
                    else:
                        self.lost += 1
            now = time.monotonic()
            while waiting and waiting[0][0] <= now:
                _, _, device, packet = heapq.heappop(waiting)
                try:
                    os.write(device, packet)
                except OSError:
                    # The host takes no more, or is about to go.
                    self.lost += 1

    @staticmethod
    def _packets(device: int) -> Iterator[bytes]:
        for _ in range(64):
            try:
                yield os.read(device, _MOST)
            except OSError:
                return

    def _passes(self, packet: bytes) -> bool:
        return packet[0] >> 4 not in self.dead and self._random.random() >= self.loss

    def _time(self) -> float:
        return self.delay * (3 if self._random.random() < self.late else 1)


@contextmanager
def wired() -> Iterator[Wire]:
    """Make two hosts, and a wire between them; at the end nothing is left of either."""
    near, far = (
        Host(f"netsock-{os.getpid()}-{end}", f"192.0.2.{end}", f"2001:db8::{end}")
        for end in (1, 2)
    )
    with ExitStack() as stack:
        wire = Wire((near, far))
        wire.begin(stack)
        yield wire


SIZE = int(os.environ.get("NETSOCK_NETNS_BYTES", "100_000_000"))
"""Bytes that pass through a relay over a bad wire."""

_reason = why_not() if os.environ.get("NETSOCK_NETNS") else "run by nox -s netns"

pytestmark = [
    pytest.mark.skipif(_reason is not None, reason=str(_reason)),
    pytest.mark.timeout(120 + SIZE / 200_000),
]

PORT = 8007
TLS_PORT = 8443

CLIENT = """
from datetime import timedelta
from twisted_netsock import *
from twisted_netsock.testing import ScriptedResolver

NAME = "far.example"
ScriptedResolver({NAME: ["2001:db8::2", "192.0.2.2"]}).install()

def options(**seconds):
    return SocketOptions(**{name: timedelta(seconds=each) for name, each in seconds.items()})
"""


@pytest.fixture
def wire() -> Iterator[Wire]:
    with wired() as wire:
        yield wire


@pytest.fixture
def echo(wire: Wire, tmp_path: Path, authority: CertificateAuthority) -> Iterator[Child]:
    """An echo on the far host, plain and with TLS."""
    _, far = wire.hosts
    issued = tmp_path / "far.pem"
    issued.write_bytes(authority.issue("far.example", far.v4, far.v6).pem)
    listen = (
        "--listen",
        f"netsock:{PORT}",
        "--listen",
        f"netsock-tls:{TLS_PORT}:certificates={issued}",
    )
    command = (*far.within, *TWIST, "netsock", "echo", *listen)
    with started(*command, output=tmp_path / "echo.log") as child:
        child.wait_for_line(f"listening on .*{TLS_PORT}")
        yield child


def client(wire: Wire, directory: Path, source: str) -> AbstractContextManager[Child]:
    """Start a script on the near host."""
    near, _ = wire.hosts
    command = (*near.within, *script(CLIENT + textwrap.dedent(source)))
    return started(*command, output=directory / "client.log", stdin=subprocess.PIPE)


@pytest.mark.parametrize(
    ("dead", "living"), [(6, "192.0.2.2"), (4, "2001:db8::2"), (None, "2001:db8::2")]
)
def test_a_connect_takes_the_family_that_lives(
    wire: Wire, echo: Child, tmp_path: Path, dead: int | None, living: str
) -> None:
    """The kernel alone would wait for the dead one for minutes."""
    wire.dead = {dead} - {None}
    wire.delay = 0.01
    with client(
        wire,
        tmp_path,
        f"""
async def main():
    made = options(connection_timeout=8)
    async with await make_client_socket(NAME, {PORT}, made) as sock:
        await sock.sendall(b"hello")
        print("from", sock.getpeername().host, (await sock.recv(5)).decode())

run(main)
""",
    ) as child:
        assert child.wait_for_line("^from (.*)$")[1] == f"{living} hello"
        assert child.wait() == 0


def test_a_connect_that_nobody_answers_times_out(wire: Wire, tmp_path: Path) -> None:
    wire.dead = {4, 6}
    with client(
        wire,
        tmp_path,
        f"""
async def main():
    try:
        await make_client_socket(NAME, {PORT}, options(connection_timeout=1))
    except SocketConnectionTimeoutError as error:
        print("stage", error.stage, len(error.attempts))

run(main)
""",
    ) as child:
        assert child.wait_for_line("^stage (.*)$")[1] == "connect 2"
        assert child.wait() == 0


def test_a_handshake_over_a_wire_that_is_cut_times_out(
    wire: Wire, echo: Child, tmp_path: Path
) -> None:
    with client(
        wire,
        tmp_path,
        f"""
import sys

async def main():
    made = TLSSocketOptions(handshake=False, handshake_timeout=timedelta(seconds=1))
    sock = await make_client_tls_socket(NAME, {TLS_PORT}, made)
    print("connected", flush=True)
    sys.stdin.readline()
    try:
        await sock.handshake()
    except SocketConnectionTimeoutError as error:
        print("stage", error.stage)
    sock.abort()

run(main)
""",
    ) as child:
        child.wait_for_line("connected")
        wire.dead = {4, 6}
        child.say("go on")
        assert child.wait_for_line("^stage (.*)$")[1] == "handshake"
        assert child.wait() == 0


def test_a_connection_outlives_a_wire_that_is_cut_and_mended(
    wire: Wire, echo: Child, tmp_path: Path
) -> None:
    with client(
        wire,
        tmp_path,
        f"""
import sys

async def main():
    async with await make_client_socket(NAME, {PORT}, options(read_timeout=1)) as sock:
        print("connected", flush=True)
        sys.stdin.readline()
        await sock.sendall(b"over a wire that is cut")
        try:
            await sock.recv(100)
        except SocketReadTimeoutError:
            print("timed out", flush=True)
        sys.stdin.readline()
        sock.read_timeout = timedelta(seconds=60)
        print("got", (await sock.recv(100)).decode())

run(main)
""",
    ) as child:
        child.wait_for_line("connected")
        wire.dead = {4, 6}
        child.say("go on")
        child.wait_for_line("timed out")
        wire.dead = set()
        child.say("go on")
        assert child.wait_for_line("^got (.*)$")[1] == "over a wire that is cut"
        assert child.wait() == 0


THROUGH = """
import hashlib
import random
import socket
import sys
import threading

size, port = int(sys.argv[1]), int(sys.argv[2])
sock = socket.create_connection(("127.0.0.1", port))
piece = random.Random(1).randbytes(1_000_003)
sent, received = hashlib.sha256(), hashlib.sha256()

def send():
    left = size
    while left:
        data = piece[:left]
        sock.sendall(data)
        sent.update(data)
        left -= len(data)
    sock.shutdown(socket.SHUT_WR)

thread = threading.Thread(target=send)
thread.start()
count = 0
while data := sock.recv(65536):
    received.update(data)
    count += len(data)
thread.join()
print("whole", count, sent.digest() == received.digest())
"""


def test_a_relay_over_a_bad_wire_carries_everything_whole(
    wire: Wire, echo: Child, tmp_path: Path, authority: CertificateAuthority
) -> None:
    """Delayed, lost and overtaken packets, there and back, in TLS."""
    near, far = wire.hosts
    wire.delay, wire.loss, wire.late = 0.002, 0.001, 0.01
    files = write_certificates(tmp_path, authority)
    to = f"netsock-tls:{far.v4}:{TLS_PORT}:trustedCertificates={files.authority}"
    listen = "netsock:0:node=127.0.0.1"
    command = (*near.within, *TWIST, "netsock", "relay", "--listen", listen, "--to", to)
    with started(*command, output=tmp_path / "relay.log") as relay:
        relay.wait_for_line("Starting reactor")
        port = relay.wait_for_line(r"relaying from .*?(?:port=|:)(\d+)")[1]
        arguments = (*near.within, sys.executable, "-c", THROUGH, str(SIZE), port)
        with started(*arguments, output=tmp_path / "through.log") as through:
            assert through.wait(60 + SIZE / 300_000) == 0
            assert through.output == f"whole {SIZE} True\n"
    assert wire.carried > 2 * SIZE / 1500
    assert wire.lost > wire.carried / 5000
