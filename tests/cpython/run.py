"""
Runs CPython's own tests over our sockets: ``python tests/cpython/run.py [MODULE ...]``.

Each module runs in a process of its own, and each of its tests within a limit. Exits
with 1 if a test fails that `DIFFERENCES` does not name, or passes that it does.
"""

from __future__ import annotations

import fnmatch
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.cpython.differences import DIFFERENCES  # noqa: E402

MODULES = (
    "test_socket",
    "test_ftplib",
    "test_poplib",
    "test_imaplib",
    "test_smtplib",
    "test_httplib",
    "test_ssl",
)
SECONDS = 900
"""For one module."""


def run(module: str) -> dict[str, str]:
    """Return how each test of *module* has ended: ``"passed"``, ``"skipped"`` or why not."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.cpython.child", module],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{module} has ended with {done.returncode}:\n{done.stderr[-4000:]}")
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def expected(test: str) -> bool:
    """Tell whether *test* shows a difference that is documented."""
    return any(fnmatch.fnmatchcase(test, each) for it in DIFFERENCES for each in it.tests)


def main(modules: list[str]) -> int:
    """Print a line for each module, then what is not as `DIFFERENCES` has it."""
    if find_spec("test.test_socket") is None:
        print("CPython's tests are not installed; Debian has them in libpython3-testsuite")
        return 2
    wrong: list[str] = []
    failed: set[str] = set()
    print(f"{'module':15}{'passed':>8}{'different':>11}{'skipped':>9}{'failed':>8}")
    for module in modules or MODULES:
        ends = run(module)
        counts: dict[str, int] = {}
        for test, end in ends.items():
            kind: Any = end if end in {"passed", "skipped"} else "failed"
            if kind == "failed" and expected(test):
                kind = "different"
                failed.add(test)
            elif kind == "failed":
                wrong.append(f"{test}: {end}")
            counts[kind] = counts.get(kind, 0) + 1
        row = (counts.get(kind, 0) for kind in ("passed", "different", "skipped", "failed"))
        print("{:15}{:8}{:11}{:9}{:8}".format(module, *row), flush=True)
    for difference in DIFFERENCES:
        for pattern in difference.tests:
            ran = pattern.partition(".")[0] in (modules or MODULES)
            if ran and not fnmatch.filter(failed, pattern):
                wrong.append(f"{pattern}: passes, and is said to be different")
    print(*wrong, sep="\n")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
