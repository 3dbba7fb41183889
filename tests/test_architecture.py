"""How the modules stand to each other, and what importing them brings along."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from twisted.application.service import IServiceMaker
from twisted.internet.interfaces import (
    IStreamClientEndpointStringParserWithReactor,
    IStreamServerEndpointStringParser,
)
from twisted.plugin import IPlugin
from zope.interface.verify import verifyObject

import twisted_netsock

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "twisted_netsock"
PLUGINS = ROOT / "twisted" / "plugins"

ORDER = [
    "_version",
    "errors",
    "names",
    "_validation",
    "option_types",
    "options",
    "addresses",
    "proxy_tlvs",
    "proxy_headers",
    "resolver",
    "readiness",
    "certificates",
    "activation",
    "descriptors",
    "waiting",
    "proxying",
    "arrivals",
    "operations",
    "ports",
    "socket_facts",
    "base_sockets",
    "data_sockets",
    "accepting",
    "serving",
    "sockets",
    "verification",
    "sessions",
    "connections",
    "contexts",
    "client_contexts",
    "server_contexts",
    "reloading",
    "handshake_records",
    "tls",
    "tls_stages",
    "handshakes",
    "tls_sockets",
    "selecting",
    "opening",
    "binding",
    "racing",
    "connecting",
    "upgrading",
    "makers",
    "factories",
    "base_transports",
    "sending_transports",
    "foreign_tls",
    "transports",
    "listening_ports",
    "layered_transports",
    "layers",
    "layered_endpoints",
    "client_endpoints",
    "server_endpoints",
    "agents",
    "authority",
    "parsers",
    "string_keys",
    "strings",
    "__init__",
    "chibi_data",
    "chibi_io",
    "chibi",
    "blocking",
    "contracts",
    "transport_contracts",
    "endpoint_contracts",
    "socket_contracts",
    "testing",
    "commands",
    "__main__",
]
"""A module imports only from modules before it; ``blocking`` and ``commands`` are one each."""

NARROW = {"authority": {"options", "names"}}
"""Modules that need less than their place in the order would let them import."""

LATE_IMPORTS = {"parsers", "__init__", "commands", "__main__"}
"""Where a function may import from the package: these are loaded to find out what is needed."""

HEAVY = ("OpenSSL", "cryptography", "service_identity", "crochet", "pytest")


class Import(NamedTuple):
    """An import statement: its line, what it names, and when it runs."""

    line: int
    target: str
    in_function: bool
    for_types: bool


def sources() -> dict[str, list[Path]]:
    """Return the files of each module, those of a package as one."""
    found: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        found.setdefault(path.relative_to(PACKAGE).with_suffix("").parts[0], []).append(path)
    return found


MODULES = sources()
FILES = sorted(
    ".".join(["twisted_netsock", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(
        ".__init__"
    )
    for paths in MODULES.values()
    for path in paths
)
"""Every file of the package, as it is imported."""


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def names_type_checking(test: ast.expr) -> bool:
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"


def imports_of(path: Path) -> list[Import]:
    """Return every import of a file, each with the absolute name of what it loads."""
    package = ["twisted_netsock", *path.parent.relative_to(PACKAGE).parts]

    def targets(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
            return
        base = package[: len(package) - node.level + 1] if node.level else []
        origin = [*base, *([node.module] if node.module else [])]
        yield from (".".join([*origin, alias.name]) for alias in node.names)

    def walk(node: ast.AST, in_function: bool, for_types: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (Import(node.lineno, it, in_function, for_types) for it in targets(node))
        if isinstance(node, ast.If) and names_type_checking(node.test):
            for child in node.body:
                yield from walk(child, in_function, True)
            for child in node.orelse:
                yield from walk(child, in_function, for_types)
            return
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, in_function or inside, for_types)

    return list(walk(tree_of(path), False, False))


def home_of(target: str) -> str | None:
    """Return the module of the package that *target* loads, or `None`."""
    parts = target.split(".")
    if parts[0] != "twisted_netsock":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in MODULES else "__init__"


class Use(NamedTuple):
    """A use of something in the package: where, and how it is imported."""

    module: str
    where: str
    imported: Import

    @property
    def home(self) -> str | None:
        """The module of the package that is imported."""
        return home_of(self.imported.target)


@cache
def every_import() -> list[Use]:
    """Return every import of the package; only these are kept, not the large trees."""
    return [
        Use(module, f"{path.relative_to(PACKAGE)}:{each.line} imports {each.target}", each)
        for module, paths in MODULES.items()
        for path in paths
        for each in imports_of(path)
    ]


def internal_imports() -> list[Use]:
    """Return what modules of the package import from each other, not only for types."""
    return [
        use
        for use in every_import()
        if use.home not in {None, use.module} and not use.imported.for_types
    ]


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


# The order of the modules


def test_the_order_lists_every_module_once():
    assert len(set(ORDER)) == len(ORDER)
    new = MODULES.keys() - set(ORDER)
    missing = set(ORDER) - MODULES.keys()
    assert not new, f"update ORDER in {__file__}: give a place to {sorted(new)}"
    assert not missing, f"update ORDER in {__file__}: {sorted(missing)} are no more"
    assert NARROW.keys() | LATE_IMPORTS <= MODULES.keys()


def test_a_module_imports_only_from_modules_before_it():
    place = {module: number for number, module in enumerate(ORDER)}
    assert not [
        use.where
        for use in internal_imports()
        if not use.imported.in_function
        and place.get(use.home, len(ORDER)) >= place.get(use.module, len(ORDER))
    ]


def test_a_module_imports_inside_functions_only_where_that_is_the_design():
    late = [use for use in internal_imports() if use.imported.in_function]
    assert {use.module for use in late} >= {"parsers"}
    assert not [use.where for use in late if use.module not in LATE_IMPORTS]


def test_a_module_that_needs_little_imports_little():
    assert not [
        use.where for use in internal_imports() if use.home not in NARROW.get(use.module, ORDER)
    ]


def test_the_walk_finds_imports_of_every_form(tmp_path, monkeypatch):
    """What the tests above rely on."""
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "commands").mkdir()
    path = tmp_path / "commands" / "it.py"
    path.write_text(
        "import os, twisted_netsock.tls\n"
        "from .. import sockets as s, Socket\n"
        "from ..tls import TLSDescriptor\n"
        "from . import relay\n"
        "from .relay import RelayOptions\n"
        "from twisted_netsock import errors\n"
        "try:\n"
        "    import crochet\n"
        "except ImportError:\n"
        "    pass\n"
        "if TYPE_CHECKING:\n"
        "    from ..makers import make_client_socket\n"
        "else:\n"
        "    from ..names import is_ip_address\n"
        "class C:\n"
        "    from ..options import SocketOptions\n"
        "    async def f(self):\n"
        "        if True:\n"
        "            from ..strings import parse_client\n"
    )
    found = [
        (each.target.removeprefix("twisted_netsock."), each.in_function, each.for_types)
        for each in imports_of(path)
    ]
    assert found == [
        ("os", False, False),
        ("tls", False, False),
        ("sockets", False, False),
        ("Socket", False, False),
        ("tls.TLSDescriptor", False, False),
        ("commands.relay", False, False),
        ("commands.relay.RelayOptions", False, False),
        ("errors", False, False),
        ("crochet", False, False),
        ("makers.make_client_socket", False, True),
        ("names.is_ip_address", False, False),
        ("options.SocketOptions", False, False),
        ("strings.parse_client", True, False),
    ]
    assert home_of("twisted_netsock.Socket") == "__init__"
    assert home_of("twisted_netsock.tls.TLSDescriptor") == "tls"
    assert home_of("twisted.internet") is None


# One place for each thing


def test_only_readiness_talks_to_the_reactor_about_descriptors():
    verbs = {"addReader", "addWriter", "removeReader", "removeWriter"}
    using = {
        module
        for module, paths in MODULES.items()
        for path in paths
        for node in ast.walk(tree_of(path))
        if (isinstance(node, ast.Attribute) and node.attr in verbs)
        or (isinstance(node, ast.Constant) and node.value in verbs)
    }
    assert using == {"readiness"}


def test_only_the_bridge_imports_crochet():
    using = {
        use.where.partition(":")[0]
        for use in every_import()
        if use.imported.target.startswith("crochet")
    }
    assert using == {"blocking/_bridge.py"}


def test_no_module_imports_the_reactor_when_it_is_loaded():
    assert not [
        use.where
        for use in every_import()
        if use.imported.target.startswith("twisted.internet.reactor")
        and not use.imported.in_function
        and not use.imported.for_types
    ]


# What an import brings along


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


def test_no_module_installs_a_reactor_when_it_is_loaded():
    loaded = loaded_by("\n".join(f"import {name}" for name in FILES))
    assert set(FILES) <= loaded
    assert "twisted.internet.reactor" not in loaded


def test_all_public_names_together_install_no_reactor():
    loaded = loaded_by("from twisted_netsock import *")
    assert "twisted_netsock.client_endpoints" in loaded
    assert not loaded & {"twisted.internet.reactor", "crochet", "pytest"}


def test_the_parsers_bring_no_more_than_twisteds_own_endpoints():
    """Twisted imports every parser to look for any prefix."""
    theirs = loaded_by("import twisted.internet.endpoints")
    ours = loaded_by("import twisted_netsock.parsers")
    assert not (ours - theirs) & set(HEAVY)
    assert {name for name in ours if name.startswith("twisted_netsock")} == {
        "twisted_netsock",
        "twisted_netsock.parsers",
    }


@pytest.mark.parametrize("plugin", ["netsock_endpoints", "netsock_commands"])
def test_a_plugin_module_is_light(plugin):
    loaded = loaded_by(f"import twisted.plugins.{plugin}")
    assert f"twisted.plugins.{plugin}" in loaded
    assert not loaded & {"twisted.internet.reactor", *HEAVY}
    assert {name for name in loaded if name.startswith("twisted_netsock")} <= {
        "twisted_netsock",
        "twisted_netsock.parsers",
    }


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


def test_the_plugins_make_no_package_of_twisteds_directories():
    """An ``__init__.py`` there would hide Twisted itself."""
    assert {path.name for path in PLUGINS.glob("*.py")} == {
        "netsock_commands.py",
        "netsock_endpoints.py",
    }
    assert not list(PLUGINS.parent.glob("*.py"))


# The public names


def declared_homes() -> dict[str, str]:
    """Return what the type checkers are told: each public name, and its module."""
    declared = {}
    for node in ast.walk(tree_of(PACKAGE / "__init__.py")):
        if isinstance(node, ast.If) and names_type_checking(node.test):
            for statement in node.body:
                assert isinstance(statement, ast.ImportFrom)
                assert statement.level == 1
                for alias in statement.names:
                    assert alias.asname == alias.name, "a re-export is written `name as name`"
                    declared[alias.name] = statement.module
    return declared


def test_the_public_names_are_sorted_and_each_is_listed_once():
    assert twisted_netsock.__all__ == sorted(set(twisted_netsock.__all__))


def test_the_public_names_are_those_that_type_checkers_see():
    assert declared_homes() == twisted_netsock._HOMES
    assert twisted_netsock.__all__ == sorted(declared_homes())


def test_every_public_name_can_be_imported_from_its_home():
    for name, home in declared_homes().items():
        module = import_module(f"twisted_netsock.{home}")
        value = getattr(twisted_netsock, name)
        assert value is getattr(module, name)
        assert name in module.__all__, f"{home}.__all__ lacks {name}"
        assert value.__module__ == module.__name__, f"{name} is only imported in {home}"


def test_a_star_import_gives_the_public_names():
    namespace: dict[str, Any] = {}
    exec("from twisted_netsock import *", namespace)
    assert namespace.keys() - {"__builtins__"} == set(twisted_netsock.__all__)


def test_the_public_names_are_offered_by_dir():
    assert set(twisted_netsock.__all__) <= set(dir(twisted_netsock))


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="make_coffee"):
        twisted_netsock.make_coffee  # noqa: B018
    assert not hasattr(twisted_netsock, "__path_to_nowhere__")


def test_what_a_module_lists_as_public_is_there_and_listed_once():
    for name in FILES:
        module = import_module(name)
        listed = getattr(module, "__all__", [])
        assert len(listed) == len(set(listed)), name
        assert not [each for each in listed if not hasattr(module, each)], name


def test_type_checkers_are_told_that_there_are_types():
    assert (PACKAGE / "py.typed").is_file()
