"""How the project is run: sessions, checks, the change log and the version agree."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.support.package_sources import PACKAGE
from twisted_netsock._version import __version__

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def sessions() -> set[str]:
    """Return the sessions of the noxfile."""
    source = (ROOT / "noxfile.py").read_text()
    found = re.findall(
        r"^@nox\.session(?:\((?:name=\"([\w-]+)\")?.*?\))?\ndef (\w+)", source, re.MULTILINE
    )
    assert len(found) == source.count("@nox.session")
    return {name or function for name, function in found}


def sessions_of_ci() -> set[str]:
    """Return the sessions that the workflow and what it runs before a change lands name."""
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    matrices = re.findall(r"session: \[(.*)\]", workflow)
    named = {name for matrix in matrices for name in matrix.split(", ")}
    script = (ROOT / ".ci" / "run").read_text()
    for line in re.findall(r"nox -s ([\w -]+?)(?: --|$)", script, re.MULTILINE):
        named |= set(line.split())
    assert ".ci/run" in workflow
    return named


def test_ci_runs_every_session_and_no_other():
    assert sessions_of_ci() == sessions()


def test_contributing_names_every_session_and_no_other():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| ((?:`[\w-]+`(?:, )?)+) \|", text, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`([^`]+)`", row)} == sessions()


def test_contributing_maps_every_module():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    written = {}
    for line in text.partition("```text\n")[2].partition("```")[0].splitlines():
        if line.startswith("twisted_netsock/"):
            folder = line.split()[0].rstrip("/")
        elif line.startswith("    "):
            written.setdefault(folder, []).extend(line.split())
    there = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.stem != "__init__":
            folder = str(path.parent.relative_to(PACKAGE.parent))
            there.setdefault(folder, []).append(path.stem)
    assert written == there


def test_contributing_names_files_that_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`((?:twisted_netsock|tests|docs)/[\w./-]+)`", text)
    assert len(named) > 15
    assert not [path for path in named if not (ROOT / path).exists()]


def test_the_lines_for_the_change_log_are_named_so_that_they_are_found():
    there = list((ROOT / "changes").iterdir())
    files = [path for path in there if path.name != "README.md"]
    # Right after a release there is no line, but always the page that says how to write one.
    assert len(files) == len(there) - 1
    kinds = "feature|bugfix|doc|removal|misc"
    wrong = [
        path.name
        for path in files
        if not re.fullmatch(rf"(\d+|\+[a-z0-9-]+)\.({kinds})\.md", path.name)
        or not path.read_text().strip()
    ]
    assert wrong == []


def test_the_version_stands_in_one_place():
    assert "version" in PROJECT["project"]["dynamic"]
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "twisted_netsock/_version.py"
    assert version("twisted-netsock") == __version__
    others = [
        name
        for name in ("README.md", "pyproject.toml", "docs/conf.py", "docs/index.md")
        if __version__ in (ROOT / name).read_text()
    ]
    assert others == []
