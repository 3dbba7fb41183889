"""
Round trips, connects and bulk, of this package and of its peers.

``python -m tests.benchmarks [SCENARIO …]``. Each contender runs in a process of its own, in
rounds of random order against the same echo server; every figure is a ratio to the blocking
socket of the same round. Prints the median and the range of the ratios.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

from .contenders import CONTENDERS, SCENARIOS

REFERENCE = "blocking"


def measure(contender: str, scenario: str, port: int, seconds: float) -> float:
    """Run one contender once, and return its operations a second."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.benchmarks.contenders",
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


def main() -> None:
    """Measure, and print ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", nargs="*", choices=[*SCENARIOS, []], default=[])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    peer = subprocess.Popen([sys.executable, "-m", "tests.benchmarks.peer", str(port)])
    try:
        wait_for(port)
        report = {
            scenario: compare(scenario, port, arguments.rounds, arguments.seconds)
            for scenario in arguments.scenario or SCENARIOS
        }
    finally:
        peer.terminate()
        peer.wait()
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=2))


def compare(scenario: str, port: int, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Measure one scenario in interleaved rounds."""
    ratios: dict[str, list[float]] = {contender: [] for contender in CONTENDERS}
    for _ in range(rounds):
        order = random.sample(list(CONTENDERS), len(CONTENDERS))
        rates = {name: measure(name, scenario, port, seconds) for name in order}
        for name, rate in rates.items():
            ratios[name].append(rate / rates[REFERENCE])
    print(f"{scenario}: {SCENARIOS[scenario]}")
    for name, found in ratios.items():
        low, middle, high = min(found), statistics.median(found), max(found)
        print(f"  {name:20} {middle:5.2f} of a blocking socket  [{low:.2f}-{high:.2f}]")
    return ratios


if __name__ == "__main__":
    main()
