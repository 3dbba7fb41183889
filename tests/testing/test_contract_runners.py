"""The contracts as users run them: by trial, by pytest, and with the page's own settings."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest

from tests.support.processes import Ran, run, started

pytestmark = pytest.mark.once

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "testing.md"
QUICK = {
    **os.environ,
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    "PYTEST_PLUGINS": "twisted_netsock.testing._plugin",
}


def programs() -> list[str]:
    """Return the Python of the page, block by block."""
    return re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def the_program_with(text: str) -> str:
    (found,) = (each for each in programs() if text in each)
    return found


CONTRACTS = the_program_with("class ClientTests(")
[SETTINGS] = re.findall(r"^```ini\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def run_pytest(directory: Path) -> Ran:
    return run(
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
        "-W", "error", "--tb=line", directory, cwd=directory, env=QUICK, seconds=60,
    )  # fmt: skip


def count_of(kind: str, output: str) -> int:
    found = re.search(rf"(\d+) {kind}", output)
    return int(found[1]) if found else 0


@pytest.fixture(scope="module")
def by_trial(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    directory = tmp_path_factory.mktemp("trial")
    (directory / "test_mine.py").write_text(CONTRACTS)
    return run(
        sys.executable, "-m", "twisted.trial", "test_mine", cwd=directory, env=QUICK, seconds=60
    )


def test_trial_runs_them(by_trial):
    assert by_trial.code == 0, by_trial.output + by_trial.errors
    assert count_of("tests", by_trial.output) > 50
    assert "PASSED (successes=" in by_trial.output


def test_pytest_runs_those_of_a_test_case(tmp_path, by_trial):
    (tmp_path / "test_mine.py").write_text(CONTRACTS)
    done = run_pytest(tmp_path)
    assert done.code == 0, done.output + done.errors
    assert count_of("passed", done.output) == count_of("tests", by_trial.output)


def test_pytest_runs_those_of_a_plain_class_with_the_settings_of_the_page(tmp_path, by_trial):
    plain = CONTRACTS.replace(", TestCase)", ")")
    for name in ("Client", "Server", "Socket"):
        plain = plain.replace(f"class {name}Tests(", f"class Test{name}(")
    (tmp_path / "test_mine.py").write_text(plain)
    (tmp_path / "pytest.ini").write_text(SETTINGS)
    done = run_pytest(tmp_path)
    assert done.code == 0, done.output + done.errors
    assert count_of("passed", done.output) == count_of("tests", by_trial.output)


def test_a_class_says_where_it_differs(tmp_path, by_trial):
    changed = CONTRACTS
    for name, attribute in (
        ("Client", "half_close = False"),
        ("Socket", "test_ports_read_and_write_lines = None"),
    ):
        changed = re.sub(rf"(class {name}Tests\(.*\n)", rf"\1    {attribute}\n", changed)
    (tmp_path / "test_mine.py").write_text(changed)
    done = run_pytest(tmp_path)
    assert done.code == 0, done.output + done.errors
    assert count_of("skipped", done.output) == 2
    assert count_of("passed", done.output) == count_of("tests", by_trial.output) - 3


def test_an_endpoint_that_fails_its_contract_fails_the_run(tmp_path):
    broken = CONTRACTS.replace('"127.0.0.1", address.port)', '"127.0.0.1", 1)')
    (tmp_path / "test_mine.py").write_text(broken[: broken.index("class ServerTests")])
    done = run_pytest(tmp_path)
    assert done.code == 1
    assert "SocketConnectionRefusedError" in done.output


def test_the_application_of_the_page_is_tested_by_its_tests(tmp_path):
    (tmp_path / "pytest.ini").write_text(SETTINGS)
    (tmp_path / "shouting.py").write_text(the_program_with("class Shouting("))
    (tmp_path / "test_shouting.py").write_text(the_program_with("from shouting import"))
    done = run_pytest(tmp_path)
    assert done.code == 0, done.output + done.errors
    assert count_of("passed", done.output) == 2


def test_a_test_that_leaves_a_socket_open_fails_by_the_fixture_of_the_page(tmp_path):
    (tmp_path / "pytest.ini").write_text(SETTINGS)
    (tmp_path / "test_leak.py").write_text(
        "from twisted_netsock.testing import connected_pair\n"
        "kept = []\n\n\n"
        "async def test_leak():\n"
        "    kept.extend(connected_pair())\n"
    )
    done = run_pytest(tmp_path)
    assert done.code == 1
    assert "the test left behind" in done.output


def test_ctrl_c_ends_a_test_that_hangs_with_the_settings_of_the_page(tmp_path):
    (tmp_path / "pytest.ini").write_text(SETTINGS)
    (tmp_path / "test_hang.py").write_text(
        "from twisted.internet.defer import Deferred\n\n\n"
        "async def test_hang():\n"
        "    print('it hangs', flush=True)\n"
        "    await Deferred()\n"
    )
    with started(
        sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "test_hang.py",
        output=tmp_path / "output", cwd=tmp_path, env=QUICK,
    ) as child:  # fmt: skip
        child.wait_for_line("it hangs")
        assert child.end(signal.SIGINT) == pytest.ExitCode.INTERRUPTED
        assert "KeyboardInterrupt" in child.output
        assert "left behind" not in child.output
