"""
Thousands of connections that never get through handshake or header hold up nobody for long.

They wait while a server has as many on the way as it takes, then in the kernel's queue,
and are closed when their time is over: so the good ones behind them get their turn.
"""

from __future__ import annotations

import contextlib
import resource
import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.clocks import until
from tests.support.faults import ANSWER, Flights, good_client
from tests.support.loopback import LOOPBACK
from tests.support.protocols import client_context
from tests.support.streams import in_thread
from tests.support.ways_in import SERVING

pytestmark = pytest.mark.long

MOST = 2000
GOOD = 50
HEADER = b"PROXY TCP4 192.0.2.1 192.0.2.2 50000 443\r\n"
LIMIT = timedelta(seconds=2)
"""What the test takes: good clients wait until the places of bad ones are free."""


@pytest.fixture
def room() -> Iterator[int]:
    """
    How many bad connections there may be.

    Each has two descriptors, and those of good clients and the rest come to it. What
    the kernel does not queue comes again after seconds, which is not our subject.
    """
    queue = int(Path("/proc/sys/net/core/somaxconn").read_text())
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = before
    needed = 2 * (MOST + 2 * GOOD) + 500
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        fitting = MOST if soft >= needed else (soft - 500) // 2 - 2 * GOOD
        yield min(fitting, queue - GOOD)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def lorises(stack: contextlib.ExitStack, port: int, count: int, begun: list[bytes]) -> None:
    """Connect *count* times, and say one or another of *begun*, and nothing more."""
    for number in range(count):
        sock = stack.enter_context(socket.socket())
        sock.setblocking(False)
        sock.connect_ex((LOOPBACK, port))
        with contextlib.suppress(OSError):
            sock.send(begun[number % len(begun)])


@pytest.mark.parametrize("way", SERVING)
async def test_they_do_not_keep_good_clients_from_their_answers(way, room, authority):
    context = client_context(authority)
    options = authority.server_options(
        proxy_protocol="v1", handshake_timeout=LIMIT, backlog=4 * MOST
    )
    hello = Flights(context, server=False).after(b"")
    begun = [b"", HEADER[:9], HEADER, HEADER + hello[:100]]
    with contextlib.ExitStack() as stack:
        async with SERVING[way](options) as served:
            await in_thread(lorises, stack, served.port, room, begun)
            good = [in_thread(good_client, served.port, context, HEADER) for _ in range(GOOD)]
            answers = [await each for each in good]
            assert answers == [ANSWER] * GOOD
            await until(lambda: len(served.seen) == GOOD)
