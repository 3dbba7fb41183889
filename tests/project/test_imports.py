"""What an import brings along, and what the plugins of Twisted import."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from importlib import import_module
from typing import Any

import pytest
from twisted.application.service import IServiceMaker
from twisted.internet.interfaces import (
    IStreamClientEndpointStringParserWithReactor,
    IStreamServerEndpointStringParser,
)
from twisted.plugin import IPlugin
from zope.interface.verify import verifyObject

from tests.support.package_sources import FILES, PLUGINS, ROOT, in_checkout, tree_of

pytestmark = pytest.mark.once

HEAVY = ("OpenSSL", "cryptography", "service_identity", "crochet", "pytest")


def fresh(statements: str) -> Any:
    """Run *statements* in a new interpreter and return the last expression's value."""
    *first, last = statements.strip().splitlines()
    program = "\n".join([*first, f"import json as j; print(j.dumps({last}))"])
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def loaded_by(statement: str) -> set[str]:
    """Return the names of the modules that a new interpreter has after *statement*."""
    return set(fresh(f"import sys\n{statement}\nsorted(sys.modules)"))


def test_importing_the_package_loads_neither_a_reactor_nor_tls_nor_crochet():
    loaded = loaded_by("import twisted_netsock")
    assert "twisted_netsock" in loaded
    assert not loaded & {"twisted.internet.reactor", *HEAVY}
    assert not {name for name in loaded if name.startswith("twisted_netsock.")}


def test_records_addresses_and_errors_are_light():
    loaded = loaded_by(
        "from twisted_netsock import SocketOptions, ServerTLSSocketOptions, SocketAddress\n"
        "from twisted_netsock import NetsockError, CertificateVerificationError\n"
        "ServerTLSSocketOptions(certificates='chain.pem', sni='example.com')"
    )
    assert {"twisted_netsock.options", "twisted_netsock.errors"} <= loaded
    assert not loaded & {"twisted.internet.reactor", *HEAVY}


def test_certificates_and_contracts_need_no_pytest():
    loaded = loaded_by(
        "from twisted_netsock.testing import CertificateAuthority, SocketContract\n"
        "from twisted_netsock.testing import ClientEndpointContract, ServerEndpointContract"
    )
    assert "twisted_netsock._certificates.throwaway_ca" in loaded
    assert not loaded & {"twisted.internet.reactor", "pytest"}


def test_no_module_installs_a_reactor_when_it_is_loaded():
    loaded = loaded_by("\n".join(f"import {name}" for name in FILES))
    assert set(FILES) <= loaded
    assert "twisted.internet.reactor" not in loaded


def test_all_public_names_together_install_no_reactor():
    loaded = loaded_by("from twisted_netsock import *")
    assert "twisted_netsock._endpoints.client" in loaded
    assert not loaded & {"twisted.internet.reactor", "crochet", "pytest"}


def test_the_parsers_bring_no_more_than_twisteds_own_endpoints():
    """Twisted imports every parser to look for any prefix."""
    theirs = loaded_by("import twisted.internet.endpoints")
    ours = loaded_by("import twisted_netsock._endpoints.plugin")
    assert not (ours - theirs) & set(HEAVY)
    assert {name for name in ours if name.startswith("twisted_netsock")} == {
        "twisted_netsock",
        "twisted_netsock._endpoints",
        "twisted_netsock._endpoints.plugin",
    }


@pytest.mark.parametrize(
    ("plugin", "brought"),
    [
        (
            "netsock_endpoints",
            {"twisted_netsock", "twisted_netsock._endpoints", "twisted_netsock._endpoints.plugin"},
        ),
        ("netsock_commands", set()),
    ],
)
def test_a_plugin_module_adds_next_to_nothing_to_what_twist_loads(plugin, brought):
    """Every run of ``twist``, of whatever command, imports both; the figures are in the docs."""
    twist = "import twisted.application.twist._twist, twisted.internet.endpoints, twisted.plugins"
    name = f"twisted.plugins.{plugin}"
    # A first run may import every plugin there is, to make a list of them.
    loaded_by(twist)
    ours = loaded_by(f"{twist}, {name}")
    assert name in ours
    assert ours - loaded_by(twist) <= {name, *brought}


@pytest.mark.parametrize(
    ("plugin", "interfaces"),
    [
        (
            "netsock_endpoints",
            [IStreamClientEndpointStringParserWithReactor, IStreamServerEndpointStringParser],
        ),
        ("netsock_commands", [IServiceMaker]),
    ],
)
def test_a_plugin_module_holds_instances_only(plugin, interfaces):
    module = import_module(f"twisted.plugins.{plugin}")
    assigned = {
        target.id
        for node in tree_of(PLUGINS / f"{plugin}.py").body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    assert assigned
    for name in assigned:
        for interface in IPlugin, *interfaces:
            assert verifyObject(interface, getattr(module, name))
    kinds = {type(node) for node in tree_of(PLUGINS / f"{plugin}.py").body}
    assert kinds <= {ast.Expr, ast.Import, ast.ImportFrom, ast.Assign}


@in_checkout
def test_the_plugins_make_no_package_of_twisteds_directories():
    """An ``__init__.py`` there would hide Twisted itself."""
    assert {path.name for path in PLUGINS.glob("*.py")} == {
        "netsock_commands.py",
        "netsock_endpoints.py",
    }
    assert not list(PLUGINS.parent.glob("*.py"))
