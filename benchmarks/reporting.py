"""What the figures say: ratios of the same round, goals, warnings, and the table of them all."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

from .running import Outcome
from .scenarios import GOALS, SCENARIOS, Goal, Scenario, goals_of

DISTURBED = 0.1
"""So many processors busy with something else disturb a measurement."""

Rounds = list[dict[str, dict[str, float]]]


class Ratio(NamedTuple):
    """A median and the range that it comes from."""

    middle: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.middle:.2f} [{self.low:.2f}-{self.high:.2f}]"


def ratio(rounds: Rounds, contender: str, reference: str | None, quantity: str) -> Ratio | None:
    """Return the median over all rounds of a contender's figure by that of the reference."""
    found = []
    for figures in rounds:
        own, other = figures.get(contender, {}).get(quantity), 1.0
        if reference is not None:
            other = figures.get(reference, {}).get(quantity, 0.0)
        if own is not None and other > 0:
            found.append(own / other)
    if not found:
        return None
    return Ratio(statistics.median(found), min(found), max(found))


def show(scenario: Scenario, outcome: Outcome, *, goals: bool = True) -> None:
    """Print what came of *scenario*, and with *goals* whether they are reached."""
    print(f"\n{scenario.name}: {scenario.title}; ratios to {scenario.reference}")
    contenders = {name for figures in outcome.rounds for name in figures}
    rows = [
        (name, found)
        for name in contenders
        if (found := ratio(outcome.rounds, name, scenario.reference, scenario.quantity))
    ]
    for name, found in sorted(rows, key=lambda row: -row[1].middle):
        print(f"  {name:24} {found!s:20} {_absolute(scenario, outcome.rounds, name)}")
    for name, reason in outcome.skipped.items():
        print(f"  {name:24} left out: {reason}")
    for name, reason in outcome.failed.items():
        print(f"  {name:24} FAILED: {reason}")
    absent = {*outcome.skipped, *outcome.failed}
    for goal in goals_of(scenario.name) if goals else ():
        found = ratio(outcome.rounds, goal.contender, goal.reference, goal.quantity)
        # Who was not asked to take part is not spoken of.
        if found is not None or absent & {goal.contender, goal.reference}:
            print(f"  goal: {_sentence(goal, found)}")
    if outcome.others is not None and outcome.others > DISTURBED:
        print(
            f"  WARNING: other work kept {outcome.others:.1f} processors busy meanwhile "
            f"(load {os.getloadavg()[0]:.1f}): measure again"
        )


def _absolute(scenario: Scenario, rounds: Rounds, name: str) -> str:
    """Return the medians of what was measured."""
    said = []
    for quantity, form in (
        ("rate", "{:12,.0f} MB/s" if scenario.in_bytes else "{:12,.0f}/s"),
        ("cpu", "{:8.3f} s CPU/GB" if scenario.in_bytes else "{:8.1f} us CPU"),
        ("kilobytes", "{:8.2f} KB"),
        ("times", "{:8.2f} times"),
        ("p99", "p99 {:.0f} us"),
    ):
        found = ratio(rounds, name, None, quantity)
        if found is None or (quantity == "p99" and scenario.kind != "fairness"):
            continue
        scale = {"cpu": 1e9 if scenario.in_bytes else 1e6}.get(quantity, 1.0)
        if quantity == "rate" and scenario.in_bytes:
            scale = 1e-6
        said.append(form.format(found.middle * scale))
        if quantity == "cpu":
            times = ratio(rounds, name, scenario.reference, quantity)
            said.append("" if times is None else f"(x {times.middle:.2f})")
    return " ".join(said)


def _sentence(goal: Goal, found: Ratio | None) -> str:
    """Say whether *goal* is reached."""
    what = f"{goal.contender} {goal.text}{'' if goal.reference is None else ' of '}"
    what += f"{goal.reference or ''}{' (CPU)' if goal.quantity == 'cpu' else ''}"
    if found is None:
        return f"{what}: not measured"
    return f"{what}: {found}, {'holds' if goal.holds(found.middle) else 'DOES NOT HOLD'}"


def machine() -> dict[str, Any]:
    """Return where and with what it was measured."""
    versions = {}
    for name in ("twisted", "pyopenssl", "cryptography", "crochet", "uvloop", "trio", "anyio"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processors": os.cpu_count(),
        "versions": versions,
    }


def to_json(outcomes: Mapping[str, Outcome], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return all figures."""
    return {
        "machine": machine(),
        "settings": dict(settings),
        "scenarios": {
            name: {
                "rounds": outcome.rounds,
                "skipped": outcome.skipped,
                "failed": outcome.failed,
                "others": outcome.others,
            }
            for name, outcome in outcomes.items()
        },
    }


HEAD = "| Scenario | Against | Goal | Measured | |\n|---|---|---|---|---|"
UNMEASURED = "-"


def described(goal: Goal) -> tuple[str, str, str]:
    """Return the first three cells of a goal's row: what, against whom, how much."""
    scenario = SCENARIOS[goal.scenario]
    what = f"`{goal.scenario}`: {scenario.title}"
    if goal.contender in {"facade", "netsock-protocol"}:
        what += {"facade": ", blocking sockets", "netsock-protocol": ", our endpoint"}[
            goal.contender
        ]
    if goal.quantity == "cpu":
        what += "; processor time"
    return what, goal.reference or UNMEASURED, goal.text


def table(reports: list[dict[str, Any]]) -> str:
    """Return the goals with the figures of *reports*, of which later ones win, in markdown."""
    found: dict[str, Any] = {}
    for report in reports:
        found |= report["scenarios"]
    lines = [HEAD]
    for goal in GOALS:
        rounds = found.get(goal.scenario, {}).get("rounds", [])
        figure = ratio(rounds, goal.contender, goal.reference, goal.quantity)
        cells = [*described(goal), UNMEASURED, ""]
        if figure is not None:
            cells[3:] = [str(figure), "holds" if goal.holds(figure.middle) else "does not hold"]
        lines.append("| " + " | ".join(cells).rstrip() + " |")
    return "\n".join(lines)
