"""
Good, slow, dying and hostile clients for a time: nothing is lost, and nothing grows.

For seconds here; ``nox -s soak -- --seconds 600`` takes longer, and prints what it measures.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import ssl
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest

from tests.support.forgers import FORGERIES, Forger
from tests.support.loopback import LONGEST, LOOPBACK
from tests.support.processes import TWIST, started, write_certificates
from tests.support.relay import TRACEBACK, running_relay
from tests.support.streams import python_client_context
from twisted_netsock.testing import CertificateAuthority

BIG = 100_000
_HELLO_PART = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(60))


def _connect(port: int) -> socket.socket:
    plain = socket.create_connection((LOOPBACK, port), timeout=LONGEST)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return plain


@contextlib.contextmanager
def _secured(port: int, context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    with (
        _connect(port) as plain,
        context.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False) as tls,
    ):
        yield tls


def _read_exactly(tls: ssl.SSLSocket, size: int, at_most: int = 65536) -> bytes:
    received = bytearray()
    while len(received) < size:
        piece = tls.recv(min(at_most, size - len(received)))
        if not piece:
            raise AssertionError(f"the stream ended after {len(received)} of {size} bytes")
        received += piece
    return bytes(received)


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


class Soakers:
    """Clients in threads, until they are stopped."""

    def __init__(self, ports: list[int], context: ssl.SSLContext, seed: int) -> None:
        self._ports = ports
        self._context = context
        self._random = random.Random(seed)
        self._over = threading.Event()
        self._lock = threading.Lock()
        self.came: Counter[str] = Counter()
        self.echoed = 0
        self.failures: list[str] = []

    def run(self, seconds: float) -> None:
        """Let all kinds come for so long."""
        self._over.clear()
        kinds = [self.good, self.good, self.slow, self.dying, self.hostile, self.deaf]
        threads = [
            threading.Thread(target=self._come, args=(kind, self._random.random()), daemon=True)
            for kind in kinds
        ]
        for thread in threads:
            thread.start()
        self._over.wait(seconds)
        self._over.set()
        for thread in threads:
            thread.join(3 * LONGEST)
            assert not thread.is_alive(), "a client does not end"

    def _come(self, kind: Callable[[int, random.Random], int], seed: float) -> None:
        dice = random.Random(seed)
        while not self._over.is_set():
            try:
                count = kind(dice.choice(self._ports), dice)
            except Exception:  # noqa: BLE001 - the test reports them
                with self._lock:
                    self.failures.append(f"{kind.__name__}: {traceback.format_exc()}")
                return
            with self._lock:
                self.came[kind.__name__] += 1
                self.echoed += count

    def good(self, port: int, dice: random.Random) -> int:
        """Send and receive again, and end in order."""
        count = 0
        with _secured(port, self._context) as tls:
            for _ in range(dice.randrange(1, 8)):
                data = dice.randbytes(dice.randrange(1, BIG))
                tls.sendall(data)
                assert _read_exactly(tls, len(data)) == data
                count += len(data)
            tls.unwrap()
        return count

    def slow(self, port: int, dice: random.Random) -> int:
        """Do the same in small pieces, with pauses."""
        data = dice.randbytes(dice.randrange(1, BIG // 10))
        with _secured(port, self._context) as tls:
            for at in range(0, len(data), 500):
                tls.sendall(data[at : at + 500])
                time.sleep(0.001)
            assert _read_exactly(tls, len(data), 300) == data
            tls.unwrap()
        return len(data)

    def dying(self, port: int, dice: random.Random) -> int:
        """Go away somewhere on the way, in one manner or another."""
        with contextlib.suppress(OSError), _connect(port) as plain:
            if dice.random() < 0.5:
                _reset(plain)
            if dice.random() < 0.3:
                plain.sendall(_HELLO_PART[: dice.randrange(1, len(_HELLO_PART))])
                return 0
            with self._context.wrap_socket(plain, server_hostname="localhost") as tls:
                tls.sendall(dice.randbytes(dice.randrange(1, BIG)))
                tls.recv(dice.randrange(1, 1000))
        return 0

    def hostile(self, port: int, dice: random.Random) -> int:
        """Forge what TLS says."""
        forge = FORGERIES[dice.choice(list(FORGERIES))]
        with contextlib.suppress(ConnectionError), _connect(port) as plain:
            Forger(plain, self._context, forge, flight=dice.randrange(3)).talk()
        return 0

    def deaf(self, port: int, dice: random.Random) -> int:
        """Send for a while, and never read."""
        with contextlib.suppress(OSError), _secured(port, self._context) as tls:
            tls.settimeout(0.1)
            data = dice.randbytes(BIG)
            for _ in range(200):
                tls.sendall(data)
        return 0


class Held(NamedTuple):
    """What a process has."""

    resident: int
    """Bytes of memory."""
    descriptors: int


def held(pid: int) -> Held:
    process = Path("/proc") / str(pid)
    pages = int((process / "statm").read_text().split()[1])
    return Held(pages * 4096, len(list((process / "fd").iterdir())))


def settled(pid: int, descriptors: int) -> Held:
    """Return what a process has when it is down to so many descriptors, or at the end."""
    end = time.monotonic() + 2 * LONGEST
    while True:
        found = held(pid)
        if found.descriptors <= descriptors or time.monotonic() > end:
            return found
        time.sleep(0.05)


def at_rest(pid: int) -> Held:
    """Return what a process has when its connections have ended."""

    def look() -> Held:
        time.sleep(0.05)
        return held(pid)

    return min((look() for _ in range(20)), key=lambda found: found.descriptors)


SECONDS = float(os.environ.get("NETSOCK_SOAK_SECONDS", "3"))
ROUNDS = max(5, int(SECONDS // 30))
# A short run has hardly warmed up.
GROWTH = 1.01 if SECONDS > 60 else 1.05

pytestmark = [
    pytest.mark.once,
    pytest.mark.timeout(SECONDS + 20 * LONGEST),
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="there is no /proc"),
]


def test_memory_stays_flat_descriptors_return_and_every_byte_is_right(
    tmp_path: Path, authority: CertificateAuthority
) -> None:
    files = write_certificates(tmp_path, authority)
    listen = f"netsock-tls:0:node={LOOPBACK}:certificates={files.server}"
    echo = started(*TWIST, "netsock", "echo", "--listen", listen, output=tmp_path / "echo.log")
    with echo as echoing:
        echo_port = int(echoing.wait_for_line(r"listening on .*?:(\d+)")[1])
        to = f"netsock-tls:localhost:{echo_port}:trustedCertificates={files.authority}"
        relaying = running_relay(tmp_path, "--listen", listen, "--to", to)
        with relaying as (relay, [relay_port]):
            children = {"echo": echoing, "relay": relay}
            soakers = Soakers([echo_port, relay_port], python_client_context(authority), seed=1)
            # What is opened once, as the poller, is there after the first client.
            soakers.good(relay_port, Random(0))
            start = {name: at_rest(child.pid) for name, child in children.items()}
            rounds = []
            for number in range(ROUNDS):
                soakers.run(SECONDS / ROUNDS)
                assert not soakers.failures, "\n".join(soakers.failures)
                rounds.append(
                    {
                        name: settled(child.pid, start[name].descriptors)
                        for name, child in children.items()
                    }
                )
                print(number, dict(soakers.came), soakers.echoed, rounds[-1])  # noqa: T201
            for name, child in children.items():
                check(name, start[name], [each[name] for each in rounds])
                assert child.running
                assert TRACEBACK not in child.output
    assert set(soakers.came) == {"good", "slow", "dying", "hostile", "deaf"}


def check(name: str, start: Held, rounds: list[Held]) -> None:
    """Check what a process had after each round."""
    assert [each.descriptors for each in rounds] == [start.descriptors] * len(rounds), name
    warm = max(each.resident for each in rounds[: (len(rounds) + 1) // 2])
    assert rounds[-1].resident <= warm * GROWTH, (name, start, rounds)
