"""
Good, slow, dying and hostile clients for a time: nothing is lost, and nothing grows.

For seconds here; ``nox -s soak -- --seconds 600`` takes longer, and prints what it measures.
"""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest

from tests.support.processes import LONGEST, LOOPBACK, TWIST, started, write_certificates
from tests.support.relay_helpers import TRACEBACK, running_relay
from tests.support.soakers import Held, Soakers, at_rest, settled
from tests.support.stream_helpers import python_client_context
from twisted_netsock.testing import CertificateAuthority

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
