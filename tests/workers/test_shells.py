"""Blocking sockets in notebooks, whose thread runs asyncio's loop, in IPython, and in xdist."""

from __future__ import annotations

import sys

import pytest

from tests.support.processes import run
from tests.workers.test_servers import command, environment
from tests.workers.worker_app import TALKED

pytestmark = pytest.mark.once

TALK = "from worker_app import talk; print(talk())"

NOTEBOOK = """
import sys
import nbformat
from nbclient import NotebookClient

cells = [nbformat.v4.new_code_cell(text) for text in sys.argv[1:]]
book = nbformat.v4.new_notebook(cells=cells)
NotebookClient(book, timeout=60, kernel_name="python3", allow_errors=True).execute()
for output in (output for cell in book.cells for output in cell.outputs):
    print(output.get("text") or output["ename"] + ": " + output["evalue"])
"""


def shown(*cells: str) -> str:
    """Return what a notebook shows."""
    pytest.importorskip("nbclient", reason="run by nox -s workers: install nbclient")
    pytest.importorskip("ipykernel", reason="run by nox -s workers: install ipykernel")
    ran = run(sys.executable, "-W", "ignore", "-c", NOTEBOOK, *cells, env=environment(used=False))
    assert ran.code == 0, ran.errors
    return ran.output


CHOSEN = "from twisted_netsock import blocking; blocking.setup(reactor='asyncio')"


@pytest.mark.parametrize("first", ["pass", CHOSEN])
def test_a_notebook(first):
    """Cells may block, and may await as well."""
    awaiting = "import asyncio; print(await asyncio.to_thread(talk))"
    assert shown(first, TALK, awaiting, TALK).split("\n") == [TALKED, ""] * 3 + [""]


INSTALLED = "from twisted.internet import asyncioreactor; asyncioreactor.install()"
RUNNING = """
import asyncio
from twisted.internet import asyncioreactor
asyncioreactor.install(asyncio.get_running_loop())
from twisted.internet import reactor
reactor.startRunning(installSignalHandlers=False)
"""


def test_a_notebook_with_a_reactor_on_its_own_loop():
    """Where its thread cannot block that is said at once, and another can."""
    told = shown(INSTALLED, TALK, TALK)
    assert told.count("could not be started: This event loop is already running") == 2
    told = shown(RUNNING, TALK, "import asyncio; print(await asyncio.to_thread(talk))")
    assert "was called in the reactor's thread, which must not block" in told
    assert TALKED in told


def test_ipython():
    ran = run(command("ipython"), "--colors=NoColor", "-c", TALK, env=environment(used=False))
    assert (ran.code, ran.output) == (0, TALKED + "\n"), ran.errors


TESTS = """
import pytest
from worker_app import TALKED, talk

@pytest.mark.parametrize("number", range(4))
def test_talking(number):
    assert talk() == TALKED
"""


def test_pytest_xdist(tmp_path):
    """Two workers, each with a reactor in a thread beside its tests."""
    pytest.importorskip("xdist")
    (tmp_path / "test_talk.py").write_text(TESTS)
    # pytest-twisted would run a reactor of its own.
    options = ["-q", "-n", "2", "-p", "no:randomly", "-p", "no:twisted", "-p", "no:asyncio"]
    options += ["--rootdir", tmp_path, tmp_path]
    ran = run(sys.executable, "-m", "pytest", *options, env=environment(used=False), cwd=tmp_path)
    assert (ran.code, "4 passed" in ran.output) == (0, True), ran.output
