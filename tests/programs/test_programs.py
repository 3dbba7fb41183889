"""A short form of ``nox -s programs``: what happens to be installed, over TLS."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from run import outcome, version_of
from table import PROGRAMS

sys.path.pop(0)

pytestmark = pytest.mark.once


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_a_program_works_over_tls(program):
    if not version_of(program):
        pytest.skip(f"run by nox -s programs: {program.shown} is not installed")
    way = "TLS" if "TLS" in program.ways else program.ways[0]
    good, result = outcome(program, way)
    assert good, result
    if result != "works":
        pytest.skip(result)
