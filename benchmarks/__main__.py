"""
This package beside its peers: ``python -m benchmarks [SCENARIO ...]``.

Contenders run in processes of their own, in rounds of random order, against the same neutral
peer. A figure is divided by the reference's of the same round; printed are the median of those
ratios and their range. No figure is a failure: the exit status is 1 only if something could not
be measured that should have been.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from .peers import bench
from .reporting import show, table, to_json
from .running import Outcome, Settings, run
from .scenarios import GOALS, SCENARIOS, goals_of

EVERY_REACTOR = ("select", "poll", "epoll", "asyncio", "uvloop")
ON_REACTORS = [name for name, each in SCENARIOS.items() if each.kind in {"client", "server"}]
SHORT = Settings(rounds=1, seconds=0.05, connections=20)
PORTS = ("port-reads", "port-writes")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("scenario", nargs="*", help="all, unless some are named")
    parser.add_argument("--list", action="store_true", help="print the scenarios")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement")
    parser.add_argument(
        "--only", action="append", default=[], metavar="CONTENDER", help="beside the reference"
    )
    parser.add_argument(
        "--short", action="store_true", help="show only that it works; the figures mean nothing"
    )
    parser.add_argument(
        "--reactors", action="store_true", help="our sockets on every reactor, side by side"
    )
    parser.add_argument("--python-peer", action="store_true", help="as without a compiler")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument(
        "--table", type=Path, nargs="+", metavar="FILE", help="print the goals with these figures"
    )
    found = parser.parse_args()
    for name in found.scenario:
        if name not in SCENARIOS:
            parser.error(f"there is no scenario {name!r}: {', '.join(SCENARIOS)}")
    return found


def settings_of(given: argparse.Namespace) -> Settings:
    """Return how to measure."""
    settings = Settings(given.rounds, given.seconds, only=given.only)
    if given.short:
        settings = SHORT
        settings.only = given.only or sorted(
            {name for goal in GOALS for name in (goal.contender, goal.reference) if name}
            - {"trio", "asyncio-streams"}
        )
    if given.reactors:
        settings.reactors = EVERY_REACTOR
    return settings


def scenarios_of(given: argparse.Namespace) -> list[str]:
    """Return the names of what is to be measured."""
    if given.scenario:
        return list(given.scenario)
    if given.reactors:
        return [name for name in ON_REACTORS if name not in PORTS]
    if given.short:
        return [name for name in SCENARIOS if goals_of(name)]
    return list(SCENARIOS)


def main() -> int:
    """Measure, and print what came of it."""
    given = arguments()
    if given.list:
        for scenario in SCENARIOS.values():
            print(f"{scenario.name:22} {scenario.title}")
        return 0
    if given.table:
        reports = [json.loads(path.read_text()) for path in given.table]
        if any(report["settings"]["short"] for report in reports):
            raise SystemExit("the figures of a short run mean nothing")
        print(table(reports))
        return 0
    with suppress(ValueError, OSError):
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # What is started is ended, also when this is.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    settings = settings_of(given)
    outcomes: dict[str, Outcome] = {}
    begin = time.monotonic()
    with bench(compiled=not given.python_peer) as prepared:
        if not prepared.neutral:
            print("no compiler, or no OpenSSL for it: the peer in Python limits what is measured")
        if (os.cpu_count() or 1) < 2:
            print("one processor: load and server take turns on it")
        for name in scenarios_of(given):
            outcomes[name] = run(SCENARIOS[name], settings, prepared)
            show(SCENARIOS[name], outcomes[name], goals=not (given.short or given.reactors))
    print(f"\n{len(outcomes)} scenarios in {time.monotonic() - begin:.0f} seconds")
    if given.json is not None:
        said = asdict(settings) | {"short": given.short}
        given.json.write_text(json.dumps(to_json(outcomes, said), indent=1))
    return int(any(outcome.failed for outcome in outcomes.values()))


if __name__ == "__main__":
    raise SystemExit(main())
