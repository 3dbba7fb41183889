"""The benchmarks run, and what they say of the goals is what the documentation says."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from benchmarks.reporting import UNMEASURED, described, machine, ratio, table
from benchmarks.scenarios import GOALS, SCENARIOS
from benchmarks.task import JOBS
from tests.support.processes import Ran, run

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "explanation" / "performance.md"


def benchmarks(*arguments: str) -> Ran:
    return run(sys.executable, "-m", "benchmarks", *arguments, cwd=ROOT)


def report(**scenarios: list[dict]) -> dict:
    return {
        "settings": {"short": False},
        "scenarios": {
            name.replace("_", "-"): {"rounds": each} for name, each in scenarios.items()
        },
    }


def rows(text: str) -> list[list[str]]:
    """Return the cells of the goals' table in *text*."""
    goals = text.partition("## Goals")[2] or text
    lines = [line for line in goals.partition("\n## ")[0].splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


# Measured in the process itself, from outside, and with the peer that needs no compiler. They
# take seconds: it is processes that are measured, and the peer is compiled.
@pytest.mark.parametrize(
    ("scenario", "how"),
    [("round-trips", ()), ("echo-100", ()), ("tls-echo-100", ("--python-peer",))],
)
def test_a_short_scenario_measures_everybody_who_takes_part(scenario, how, tmp_path):
    path = tmp_path / "figures.json"
    only = ("--only", "netsock", "--only", "twisted")
    ran = benchmarks(scenario, "--short", *only, *how, "--json", str(path))
    assert ran.code == 0, ran.output + ran.errors
    found = json.loads(path.read_text())
    assert found["machine"] == machine()
    [figures] = found["scenarios"][scenario]["rounds"]
    assert set(figures) == {"netsock", "twisted", SCENARIOS[scenario].reference}
    for each in figures.values():
        assert each["rate"] > 0
        assert each["cpu"] > 0
    assert re.search(r"^  netsock +\d+\.\d\d \[", ran.output, re.MULTILINE)
    assert "goal:" not in ran.output


def test_the_figures_of_a_short_run_make_no_table(tmp_path):
    path = tmp_path / "figures.json"
    path.write_text(json.dumps(report() | {"settings": {"short": True}}))
    ran = benchmarks("--table", str(path))
    assert (ran.code, ran.output) == (1, "")
    assert "mean nothing" in ran.errors


def test_a_scenario_that_does_not_exist_is_refused_with_those_that_do():
    ran = benchmarks("round-trip")
    assert ran.code == 2
    assert "'round-trip'" in ran.errors
    assert "round-trips" in ran.errors


def test_every_goal_is_of_a_scenario_and_of_contenders_in_it():
    for goal in GOALS:
        scenario = SCENARIOS[goal.scenario]
        assert goal.contender in scenario.contenders
        assert goal.reference is None or goal.reference in scenario.contenders


def test_every_scenario_has_its_reference_and_a_load_that_exists():
    modes = {"round-trips", "connects", "send", "receive", "hold", "web"}
    for name, scenario in SCENARIOS.items():
        assert scenario.name == name
        assert scenario.reference in scenario.contenders
        assert scenario.load in (JOBS if scenario.kind == "client" else modes)


def test_a_ratio_is_the_median_over_the_rounds_that_have_both():
    rounds = [
        {"a": {"rate": 3.0}, "b": {"rate": 1.0}},
        {"a": {"rate": 4.0}, "b": {"rate": 4.0}},
        {"a": {"rate": 9.0}, "b": {"rate": 4.5}},
        {"a": {"rate": 100.0}},
    ]
    found = ratio(rounds, "a", "b", "rate")
    assert found == (2.0, 1.0, 3.0)
    assert str(found) == "2.00 [1.00-3.00]"
    assert ratio(rounds, "a", "c", "rate") is None
    assert ratio(rounds, "b", None, "rate") == (4.0, 1.0, 4.5)


def test_the_table_says_of_each_goal_whether_it_is_reached():
    fast = {"netsock": {"rate": 3.0}, "blocking": {"rate": 4.0}}
    slow = {"netsock": {"rate": 1.0}, "blocking": {"rate": 4.0}}
    figures = report(
        send=[slow],
        receive=[slow],
        connects=[fast],
        memory=[{"netsock": {"kilobytes": 2.5}}],
        fairness=[{"netsock": {"times": 4.0}}],
    )
    later = report(send=[{"netsock": {"rate": 9.0}, "blocking": {"rate": 9.0}}])
    by_scenario = {row[0].split("`")[1]: row[3:] for row in rows(table([figures, later]))}
    assert by_scenario["receive"] == ["0.25 [0.25-0.25]", "does not hold"]
    assert by_scenario["send"] == ["1.00 [1.00-1.00]", "holds"]
    assert by_scenario["connects"] == ["0.75 [0.75-0.75]", "holds"]
    assert by_scenario["memory"] == ["2.50 [2.50-2.50]", "holds"]
    assert by_scenario["fairness"] == ["4.00 [4.00-4.00]", "does not hold"]
    assert by_scenario["web"] == [UNMEASURED, ""]


def test_the_page_about_performance_has_every_goal():
    documented = [tuple(row[:3]) for row in rows(PAGE.read_text())]
    assert documented == [described(goal) for goal in GOALS]
