"""
Run programs over our strings, each with a real client, and print a table of the results.

``python tests/programs/run.py ENVIRONMENT [--write] [NAME...]``; nox makes the environments.
``--write`` puts the rows into ``docs/works-with.md``.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from table import PROGRAMS, Program

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "works-with.md"
SECONDS = 120.0
"""For one script, with the start of its servers."""

SKIPPED = 77


def version_of(program: Program) -> str:
    """Return the version that is installed here, or an empty string."""
    if program.shown == "python":
        return platform.python_version()
    try:
        for needed in program.needs:
            version(needed)
        return version(program.shown)
    except PackageNotFoundError:
        pass
    found = shutil.which(program.shown, path=f"{sys.path[0]}:/usr/sbin:/usr/bin:/bin")
    if found is None or program.needs:
        return ""
    flag = "-v" if program.shown == "nginx" else "--version"
    told = subprocess.run([found, flag], capture_output=True, text=True, check=False)
    number = re.search(r"\d+\.[\d.]+", told.stdout + told.stderr)
    return number[0] if number else ""


def outcome(program: Program, way: str) -> tuple[bool, str]:
    """Run a script, and return whether nothing was wrong, and the result in a word or more."""
    command = [sys.executable, "-W", "ignore", str(HERE / f"{program.script}.py"), way]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return False, f"wrong: it took more than {SECONDS:.0f} s"
    if done.returncode == SKIPPED:
        return True, done.stdout.strip().splitlines()[-1]
    if done.returncode:
        return False, f"wrong: {(done.stdout + done.stderr)[-2000:]}"
    return True, "works"


def write(rows: list[str]) -> None:
    """Put *rows* in the place of those of the same programs and versions."""
    head, line, rest = PAGE.read_text().partition("|---|---|---|---|\n")
    table, gap, tail = rest.partition("\n\n")
    kept = {tuple(row.split(" | ")[:3]): row for row in [*table.splitlines(), *rows]}
    PAGE.write_text(head + line + "\n".join(sorted(kept.values(), key=str.casefold)) + gap + tail)


def main(environment: str, *words: str) -> int:
    """Run what belongs to *environment*; return 1 if anything was wrong."""
    names = [word for word in words if word != "--write"]
    rows, failed = [], False
    for program in PROGRAMS:
        if environment not in program.environments:
            continue
        if names and not any(name.casefold() in program.name.casefold() for name in names):
            continue
        installed = version_of(program)
        for way in program.ways if installed else ():
            good, result = outcome(program, way)
            failed |= not good
            row = f"| {program.name} | {installed} | {way} | {result} |"
            print(row, flush=True)
            if result == "works":
                rows.append(row)
        if not installed:
            print(f"| {program.name} | not installed | | |", flush=True)
    if "--write" in words:
        write(rows)
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
