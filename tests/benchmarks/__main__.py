"""
Round trips, connects and bulk, of this package and of its peers.

``python -m tests.benchmarks [SCENARIO …]``. Each contender runs in a process of its own, in
rounds of random order against the same server; every figure is a ratio to the blocking
socket of the same round. Prints the median and the range of the ratios. The scenarios whose
names begin with ``blocking-`` are for `twisted_netsock.blocking` and the standard library alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from twisted_netsock.authority import CertificateAuthority

from . import blocking_contenders
from .contenders import CONTENDERS, SCENARIOS

REFERENCE = "blocking"
EVERY_SCENARIO = {**SCENARIOS, **blocking_contenders.SCENARIOS}


def measure(contender: str, scenario: str, port: int, seconds: float) -> float:
    """Run one contender once, and return its operations a second."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            f"tests.benchmarks.{'blocking_' * (scenario not in SCENARIOS)}contenders",
            contender,
            scenario,
            str(port),
            str(seconds),
        ],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return float(done.stdout)


def wait_for(port: int) -> None:
    """Wait until the echo server listens."""
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise SystemExit("the echo server did not start")


def serving(scenario: str, folder: Path, stack: contextlib.ExitStack) -> int:
    """Start the server of a scenario, and return its port; it ends with *stack*."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    command = [
        "tests.benchmarks.peer" if scenario in SCENARIOS else "tests.benchmarks.stream_peer"
    ]
    command.append(str(port))
    if "-tls-" in scenario:
        authority = CertificateAuthority()
        (folder / "authority.pem").write_bytes(authority.certificate_pem)
        (folder / "server.pem").write_bytes(authority.issue("localhost").pem)
        os.environ[blocking_contenders.AUTHORITY] = str(folder / "authority.pem")
        command.append(str(folder / "server.pem"))
    peer = subprocess.Popen([sys.executable, "-m", *command])
    stack.callback(peer.wait)
    stack.callback(peer.terminate)
    wait_for(port)
    return port


def main() -> None:
    """Measure, and print ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", nargs="*", choices=[*EVERY_SCENARIO, []], default=[])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        report = {
            scenario: compare(
                scenario, serving(scenario, folder, stack), arguments.rounds, arguments.seconds
            )
            for scenario in arguments.scenario or EVERY_SCENARIO
        }
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=2))


def compare(scenario: str, port: int, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Measure one scenario in interleaved rounds."""
    contenders = list(CONTENDERS if scenario in SCENARIOS else blocking_contenders.CONTENDERS)
    ratios: dict[str, list[float]] = {contender: [] for contender in contenders}
    for _ in range(rounds):
        order = random.sample(contenders, len(contenders))
        rates = {name: measure(name, scenario, port, seconds) for name in order}
        for name, rate in rates.items():
            ratios[name].append(rate / rates[REFERENCE])
    print(f"{scenario}: {EVERY_SCENARIO[scenario]}")
    for name, found in ratios.items():
        low, middle, high = min(found), statistics.median(found), max(found)
        print(f"  {name:20} {middle:5.2f} of a blocking socket  [{low:.2f}-{high:.2f}]")
    return ratios


if __name__ == "__main__":
    main()
