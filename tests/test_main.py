"""``netsock`` itself, which is also ``python -m twisted_netsock``: what it runs, and how."""

from __future__ import annotations

import re
import signal
import sys
import tomllib
from pathlib import Path

import pytest
from twisted.python.usage import UsageError

import twisted_netsock.__main__
from tests.support.loopback import LOOPBACK
from tests.support.processes import NETSOCK, free_port, netsock, one_line, run, started
from twisted_netsock.__main__ import main
from twisted_netsock._version import __version__
from twisted_netsock.commands import Options

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Usage: netsock [options] COMMAND")
    for name, *_ in Options.subCommands:
        assert re.search(rf"^    {name} +\S", shown, re.MULTILINE)


@pytest.mark.parametrize("command", ["connect", "echo", "probe", "relay"])
def test_each_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"Usage: netsock {command} ")
    assert len(max(shown.splitlines(), key=len)) <= 80


def test_the_version_is_reported():
    done = netsock("--version")
    assert (done.code, done.errors) == (0, "")
    assert done.output.startswith(f"netsock {__version__} (Twisted ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["prob", "localhost"], "there is no command 'prob'; did you mean probe?"),
        (["xyzzy"], "there is no command 'xyzzy'; there are "),
        ([], "a subcommand is missing: "),
        (["--reactr", "poll", "probe"], "no option --reactr; did you mean --reactor?"),
        (["--reactor", "atomic", "probe"], "--reactor atomic: there is no such reactor"),
        (["relay", "--lisen", "tcp:1"], "no option --lisen; did you mean --listen?"),
        (["relay", "--listen", "netsock:0"], "--to is missing"),
        (["probe", "--timeout"], "option --timeout requires argument"),
        (["probe", "-x", "localhost"], "option -x not recognized"),
        (["probe", "--json=yes", "localhost"], "option --json must not have an argument"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, said, capfd):
    assert main(arguments) == 2
    output, errors = capfd.readouterr()
    assert output == ""
    [line] = errors.splitlines()
    assert said in line


def test_under_twist_a_mistake_has_the_same_hint():
    options = Options()
    with pytest.raises(UsageError, match=r"no option --jsno; did you mean --json\?"):
        options.parseOptions(["probe", "localhost", "--jsno"])


def test_options_may_stand_before_and_after_the_arguments():
    for words in (["--json", "-t", "3s", "host:1"], ["host:1", "--json", "-t3s"]):
        options = Options()
        options.parseOptions(["probe", *words])
        request = options.subOptions.requests[0]
        assert (request.target, options.subOptions["json"]) == (("host", 1), 1)
        assert request.timeout.total_seconds() == 3


@pytest.mark.parametrize("reactor", ["poll", "select", "asyncio"])
def test_the_reactor_is_the_one_that_was_asked_for(reactor):
    script = (
        "import sys; from twisted_netsock.__main__ import main;"
        f"code = main(['--reactor', {reactor!r}, 'connect', '{LOOPBACK}:{free_port()}']);"
        "from twisted.internet import reactor; print(code, type(reactor).__module__)"
    )
    done = run(sys.executable, "-c", script)
    assert done.output == f"4 twisted.internet.{reactor}reactor\n"
    assert "refused" in one_line(done)


def test_services_run_as_under_twist(tmp_path):
    """The relay, with its log where it was wanted."""
    log = tmp_path / "log"
    options = ("--log-format", "text", "--log-file", str(log), "--log-level=info")
    relay = ("relay", "--listen", f"netsock:0:node={LOOPBACK}", "--to", "netsock:127.0.0.1:1")
    with started(*NETSOCK, *options, *relay, output=tmp_path / "output") as child:
        for _ in range(500):
            if log.exists() and "relaying from" in log.read_text():
                break
            assert child.running, child.output
            child._process.poll()
            run("sleep", "0.02")
        port = int(re.search(r"relaying from 127\.0\.0\.1:(\d+)", log.read_text())[1])
        child.wait_until_it_serves(port)
        assert child.end(signal.SIGINT) == -signal.SIGINT
        assert child.output == ""


def test_the_script_of_the_package_is_this():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"netsock": "twisted_netsock.__main__:main"}
    assert twisted_netsock.__main__.main is main
