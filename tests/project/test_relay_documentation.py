"""The guides to the relay: units of systemd, containers and HAProxy's configuration are right."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
from twisted.application.twist._options import TwistOptions

from tests.project.test_documentation import ROOT, blocks, commands, write_files
from tests.support.processes import find, needs, run
from twisted_netsock.commands.relay.accounting import REASONS
from twisted_netsock.commands.relay.options import RelayOptions

GUIDES = ROOT / "docs" / "how-to"
RELAY = GUIDES / "relay.md"
SCALING = GUIDES / "scaling-the-relay.md"


def sections(unit: str) -> dict[str, dict[str, str]]:
    """Return the keys of a unit, by section; each stands there once."""
    found: dict[str, dict[str, str]] = {}
    for line in unit.replace("\\\n", " ").splitlines():
        if line.startswith("["):
            current = found.setdefault(line.strip("[]"), {})
        elif line:
            key, _, value = line.partition("=")
            assert key not in current
            current[key] = value
    return found


@pytest.fixture
def files(tmp_path, monkeypatch, authority):
    write_files(tmp_path, authority)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("files")
def test_the_unit_starts_a_relay_that_fits_it():
    service, _ = (sections(block.text) for block in blocks(RELAY, "systemd"))
    start = shlex.split(service["Service"]["ExecStart"])
    assert start[0].endswith("/twist")
    options = TwistOptions()
    options.parseOptions(start[1:])
    settings = options.subOptions.subOptions.settings
    assert int(service["Service"]["TimeoutStopSec"]) > settings.limits.drain
    assert int(service["Service"]["LimitNOFILE"]) >= 2 * settings.limits.connections + 64
    assert service["Service"]["Type"] == "notify"
    # The path of the status is within what systemd makes.
    (path,) = (word for word in start if word.startswith("netsock:/run"))
    assert path.startswith(f"netsock:/run/{service['Service']['RuntimeDirectory']}/")


@needs("systemd-analyze")
def test_systemd_takes_the_units(tmp_path):
    units = blocks(RELAY, "systemd")
    for name, block in zip(("relay.service", "relay.socket"), units, strict=True):
        text = block.text.replace("/opt/relay/bin/twist", sys.executable)
        (tmp_path / name).write_text(text)
    done = run(
        find("systemd-analyze"), "verify", "--man=no", tmp_path / "relay.service",
        tmp_path / "relay.socket",
    )  # fmt: skip
    ours = [line for line in done.errors.splitlines() if "relay." in line]
    assert ours == []
    assert done.code == 0, done.errors


@needs("haproxy")
def test_haproxy_takes_the_configuration(tmp_path, authority):
    [block] = blocks(SCALING, "text")
    (tmp_path / "haproxy.cfg").write_text(block.text)
    (tmp_path / "ca.pem").write_bytes(authority.certificate_pem)
    done = run(find("haproxy"), "-c", "-f", "haproxy.cfg", cwd=tmp_path)
    assert done.code == 0, done.errors + done.output


@pytest.mark.usefixtures("files")
def test_the_container_runs_a_relay(tmp_path):
    [block] = blocks(SCALING, "yaml")
    words = []
    begun = False
    for line in block.text.splitlines():
        if line.strip() == "command:":
            begun = True
        elif begun and line.strip().startswith("- "):
            words.append(line.strip().removeprefix("- "))
        elif begun:
            break
    text = " ".join(words).replace("/tls/tls.crt", "chain.pem").replace("/tls/tls.key", "key.pem")
    options = TwistOptions()
    options.parseOptions(text.split()[1:])
    drain = options.subOptions.subOptions.settings.limits.drain
    [grace] = [
        int(line.split()[1])
        for line in block.text.splitlines()
        if line.startswith("terminationGracePeriodSeconds")
    ]
    [pause] = [int(line.split('"')[1]) for line in block.text.splitlines() if "[sleep" in line]
    assert drain + pause < grace


def test_the_guide_has_every_option():
    text = RELAY.read_text() + (GUIDES / "moving-to-the-relay.md").read_text()
    known = {name.removesuffix("=") for name in RelayOptions().longOpt} - {"help", "version"}
    assert len(known) > 20
    assert [name for name in sorted(known) if f"--{name}" not in text] == []


def test_the_guide_has_every_reason():
    text = RELAY.read_text()
    assert [reason for reason in REASONS if f"`{reason}`" not in text] == []


@pytest.mark.parametrize("page", ["moving-to-the-relay.md", "scaling-the-relay.md"])
def test_the_commands_of_a_guide_are_looked_at(page):
    """By the tests of all pages, which take what begins with ``twist``."""
    assert len(commands(Path(GUIDES / page))) >= 3
