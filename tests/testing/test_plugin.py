"""The plugin for pytest, in runs of its own: coroutine tests, fixtures, and what is left."""

from __future__ import annotations

import os
import re
import sys
import textwrap
from importlib.metadata import entry_points

import pytest

from tests.support.processes import run

pytestmark = pytest.mark.once

MODULE = "twisted_netsock.testing._plugin"


@pytest.fixture
def ran(tmp_path):
    """Run the tests in a text, and return what pytest prints."""

    def run_tests(text, ini="", *options):
        (tmp_path / "test_it.py").write_text(textwrap.dedent(text))
        (tmp_path / "pytest.ini").write_text(f"[pytest]\n{textwrap.dedent(ini)}")
        options += ("-p", MODULE, "-q", "-p", "no:cacheprovider", "-W", "error", "-rA")
        alone = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        done = run(sys.executable, "-m", "pytest", *options, cwd=tmp_path, env=alone)
        return done.output + done.errors

    return run_tests


def test_the_package_brings_it():
    [found] = entry_points(group="pytest11", name="twisted_netsock") or pytest.skip(
        "install the package again: it has an entry point for pytest since"
    )
    assert found.value == MODULE


MARKED = """
import pytest
from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted_netsock import make_client_tls_socket, make_server_tls_socket

@pytest.mark.reactor
async def test_marked(certificate_authority):
    options = certificate_authority.server_options("localhost")
    async with await make_server_tls_socket("localhost", 0, options) as server:
        accepting = server.accept()
        port = server.getsockname().port
        trusting = certificate_authority.client_options()
        async with await make_client_tls_socket("localhost", port, trusting) as client:
            async with await accepting as other:
                await other.sendall(b"x")
                assert await client.recv(1) == b"x"

@pytest.mark.reactor(timeout=0.2)
async def test_late():
    await deferLater(reactor, 60)

@pytest.mark.reactor
async def test_wrong():
    await deferLater(reactor, 0)
    assert 1 == 2

def test_plain():
    pass
"""
UNMARKED = """
async def test_unmarked():
    from twisted.internet import reactor
    assert reactor.running
"""


def test_marked_coroutines_run_on_the_reactor_and_others_are_left_alone(ran):
    printed = ran(MARKED + UNMARKED)
    for name in ("marked", "plain"):
        assert f"PASSED test_it.py::test_{name}\n" in printed
    for name in ("late", "wrong", "unmarked"):
        assert f"FAILED test_it.py::test_{name} - " in printed
    assert "after 0.2 s the test waits at" in printed
    assert f"test_it.py:{MARKED[: MARKED.index('60')].count(chr(10)) + 1} in test_late" in printed
    assert "assert 1 == 2" in printed
    assert "async def functions are not natively supported" in printed


def test_all_coroutines_run_there_if_the_settings_say_so(ran):
    printed = ran(UNMARKED, "reactor_mode = auto\nreactor_timeout = 20")
    assert "PASSED test_it.py::test_unmarked\n" in printed
    assert "reactor_mode = both must be marked or auto" in ran(UNMARKED, "reactor_mode = both")


LEAKING = """
import socket
from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol
from twisted_netsock import SocketOptions, make_client_socket, make_server_socket
from twisted_netsock import server_endpoint
kept = []

async def test_sockets():
    server = await make_server_socket("localhost", 0)
    port = server.getsockname().port
    client = await make_client_socket("localhost", port)
    kept.extend((server, client, client.recv(1)))

async def test_listening():
    kept.append(await server_endpoint(reactor, "127.0.0.1", 0).listen(Factory()))

def test_others(tmp_path):
    kept.append(open(tmp_path / "kept", "w"))
    kept.append(reactor.callLater(60, print, "late"))
    kept.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))

def test_clean():
    with socket.create_server(("127.0.0.1", 0)):
        pass
    reactor.callLater(60, print).cancel()
"""


def test_what_is_left_is_named_with_where_it_was_made(ran):
    printed = ran(LEAKING, "reactor_mode = auto\nusefixtures = clean_reactor")
    for line in (
        r"TCP listening on 127\.0\.0\.1:\d+, made (at|while).*test_it\.py:\d+",
        r"TCP from 127\.0\.0\.1:\d+ to 127\.0\.0\.1:\d+, made (at|while).*test_it\.py:\d+",
        r"reader <twisted_netsock poller of \d+ \(TCP from 127\.0\.0\.1:\d+ to 127\.0\.0\.1:\d+",
        r"  /.*/kept",
        r"delayed call <DelayedCall .*print.*>, made at .*test_it\.py:\d+ in test_others",
        r"UDP at 0\.0\.0\.0:0, not connected, made at .*test_it\.py:\d+ in test_others",
    ):
        assert re.search(line, printed), (line, printed)
    assert "PASSED test_it.py::test_clean\n" in printed
    assert printed.count("ERROR test_it.py") == 3


def test_trial_has_a_way(ran, tmp_path):
    text = """
    from twisted.trial.unittest import TestCase
    from twisted_netsock.testing import connected_pair, leak_check
    kept = []

    class Tests(TestCase):
        def setUp(self):
            self.addCleanup(leak_check())

        async def test_leaving(self):
            kept.extend(connected_pair())

        async def test_clean(self):
            one, other = connected_pair()
            await one.close()
            await other.close()
    """
    (tmp_path / "test_trial.py").write_text(textwrap.dedent(text))
    done = run(sys.executable, "-m", "twisted.trial", "test_trial", cwd=tmp_path)
    assert "FAILED (errors=1, successes=1)" in done.output, done.output
    assert "TCP from 127.0.0.1:" in done.output
    assert "in test_leaving" in done.output


BESIDE = """
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.task import deferLater

@pytest_twisted.ensureDeferred
async def test_theirs():
    await deferLater(reactor, 0)

@pytest.mark.reactor
async def test_ours():
    await deferLater(reactor, 0)

@pytest.mark.reactor
async def test_wrong():
    await deferLater(reactor, 0)
    raise LookupError

@pytest_twisted.ensureDeferred
async def test_theirs_again():
    await deferLater(reactor, 0)
"""

ASYNCIO = """
import asyncio
import pytest

@pytest.mark.asyncio
async def test_theirs():
    await asyncio.sleep(0)

@pytest.mark.anyio
async def test_anyios():
    await asyncio.sleep(0)
"""


def test_it_goes_with_pytest_twisted(ran):
    pytest.importorskip("pytest_twisted", reason="run by nox -s workers: install pytest-twisted")
    printed = ran(BESIDE, "", "-p", "pytest_twisted")
    for name in ("theirs", "ours", "theirs_again"):
        assert f"PASSED test_it.py::test_{name}\n" in printed
    assert "FAILED test_it.py::test_wrong - LookupError" in printed


def test_it_leaves_the_tests_of_others_alone(ran):
    pytest.importorskip("pytest_asyncio", reason="run by nox -s workers: install pytest-asyncio")
    pytest.importorskip("anyio", reason="run by nox -s workers: install anyio")
    text = ASYNCIO + MARKED[: MARKED.index("@pytest.mark.reactor(")]
    settings = "reactor_mode = auto\nasyncio_default_fixture_loop_scope = function"
    printed = ran(text, settings, "-p", "pytest_asyncio.plugin", "-p", "anyio.pytest_plugin")
    assert "PASSED test_it.py::test_theirs\n" in printed, printed
    assert "PASSED test_it.py::test_anyios[asyncio]\n" in printed
    assert "PASSED test_it.py::test_marked\n" in printed
