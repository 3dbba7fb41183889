"""
Two hosts in network namespaces, and a wire between them that delays, loses and reorders.

The wire is a thread that carries packets between two TUN devices; it needs root, iproute2 and
``/dev/net/tun``, and touches nothing but the namespaces that it makes.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

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
