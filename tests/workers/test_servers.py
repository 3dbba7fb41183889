"""Blocking sockets in the workers of servers, which fork them with the module loaded or used."""

from __future__ import annotations

import os
import shutil
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.support.loopback import LONGEST
from tests.support.processes import free_port, run, started
from tests.workers.worker_app import TALKED

pytestmark = pytest.mark.once

HERE = Path(__file__).parent


def command(name: str) -> str:
    """Return where a program is, or skip."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    found = shutil.which(name, path=places)
    if found is None:
        pytest.skip(f"run by nox -s workers: install {name}")
    return found


def environment(*, used: bool) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(HERE), "USED": "1" if used else ""}


def serves(output: Path, *arguments: str, port: int, used: bool) -> None:
    """Run a server, whose workers must answer, and which must end when it is asked to."""
    options = {"env": environment(used=used), "cwd": output.parent}
    with started(*arguments, output=output, **options) as child:
        child.wait_for_port(port)
        for _ in range(3):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=LONGEST) as page:
                said, _, pid = page.read().decode().rpartition(" ")
            assert (said, int(pid) != child.pid) == (TALKED, True)
        assert child.end() == 0, child.output


@pytest.mark.parametrize(
    ("preload", "used"), [(False, False), (True, False), (True, True)], ids=["", "preload", "used"]
)
@pytest.mark.parametrize("kind", ["sync", "gthread", "gevent"])
def test_gunicorn(tmp_path, kind, preload, used):
    if kind == "gevent":
        pytest.importorskip("gevent", reason="run by nox -s workers: install gevent")
    port = free_port()
    arguments = [command("gunicorn"), "worker_app:application", "-k", kind, "-w", "2"]
    arguments += ["-b", f"127.0.0.1:{port}", "--threads", "4", *(["--preload"] * preload)]
    serves(tmp_path / "log", *arguments, port=port, used=used)


@pytest.mark.parametrize("more", [(), ("--lazy-apps", "--enable-threads"), ("--threads", "4")])
@pytest.mark.parametrize("used", [False, True], ids=["", "used"])
def test_uwsgi(tmp_path, more, used):
    """It loads the application in its master, and does not tell Python when it forks."""
    port = free_port()
    arguments = [command("uwsgi"), "--http-socket", f"127.0.0.1:{port}", "--master", "-p", "2"]
    arguments += ["--wsgi-file", str(HERE / "worker_app.py"), "--need-app", "--die-on-term"]
    serves(tmp_path / "log", *arguments, *more, port=port, used=used)


CELERY = """
from celery import Celery
from worker_app import talk

url = "redis://127.0.0.1:{port}/"
app = Celery("tasks", broker=url + "0", backend=url + "1")
app.task(talk, name="talk")
"""

ASK = """
from tasks import app
print([app.send_task("talk").get(timeout=60) for _ in range(3)])
"""


@pytest.mark.parametrize("used", [False, True], ids=["", "used"])
@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "solo"])
def test_celery(tmp_path, pool, used):
    pytest.importorskip("celery", reason="run by nox -s workers: install celery")
    if pool == "gevent":
        pytest.importorskip("gevent", reason="run by nox -s workers: install gevent")
    port = free_port()
    redis = [command("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    (tmp_path / "tasks.py").write_text(CELERY.format(port=port))
    variables = environment(used=used)
    variables["PYTHONPATH"] += f":{tmp_path}"
    worker = [command("celery"), "-A", "tasks", "worker", "-P", pool, "-c", "2"]
    with started(*redis, output=tmp_path / "redis", cwd=tmp_path) as broker:
        broker.wait_for_port(port)
        with started(*worker, output=tmp_path / "log", cwd=tmp_path, env=variables) as child:
            ran = run(sys.executable, "-c", ASK, env=environment(used=False) | variables)
            assert ran.output.strip() == str([TALKED] * 3), ran.errors + child.output
            assert child.end() == 0, child.output
