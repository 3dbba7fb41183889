"""How the modules stand to each other, and how long they are."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import package_sources
import pytest
from package_sources import (
    FILES,
    MODULES,
    PACKAGE,
    PLUGINS,
    ROOT,
    code_lines,
    every_import,
    home_of,
    imports_of,
    internal_imports,
    tree_of,
)

pytestmark = pytest.mark.once

ORDER = [
    "_version",
    "_text",
    "errors",
    "names",
    "_validation",
    "option_types",
    "options",
    "addresses",
    "proxy_tlvs",
    "proxy_headers",
    "resolver",
    "fairness",
    "readiness",
    "certificates",
    "activation",
    "unix_paths",
    "descriptors",
    "waiting",
    "proxying",
    "arrivals",
    "resuming",
    "operations",
    "file_sources",
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
    "negotiated",
    "tls",
    "tls_facts",
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
    monkeypatch.setattr(package_sources, "PACKAGE", tmp_path)
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


# Sizes

CODE_LINES_OF_A_MODULE = 750
CODE_LINES_OF_A_FUNCTION = 60


def functions_of(path: Path) -> Iterator[tuple[str, int]]:
    """Return the functions of a file, each with its lines of code, decorators included."""
    code = code_lines(path)
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            assert node.end_lineno is not None
            count = len(code.intersection(range(first, node.end_lineno + 1)))
            yield f"{path.relative_to(PACKAGE)}: {node.name}", count


def test_docstrings_comments_and_blank_lines_are_no_code(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        '"""Two\nlines."""\n\n# Why.\nx = """a\nb"""  # Why.\n\n\ndef f():\n    "Doc."\n'
    )
    assert code_lines(path) == {5, 6, 9}


def test_no_module_is_long():
    files = [
        *PACKAGE.rglob("*.py"),
        *(ROOT / "tests").rglob("*.py"),
        *PLUGINS.glob("netsock_*.py"),
    ]
    lines = {path: len(code_lines(path)) for path in files}
    assert len(lines) > len(FILES)
    assert not [path for path, count in lines.items() if count > CODE_LINES_OF_A_MODULE]


def test_no_function_is_long():
    lengths = [each for paths in MODULES.values() for path in paths for each in functions_of(path)]
    assert max(count for _, count in lengths) > CODE_LINES_OF_A_FUNCTION / 2
    assert not [name for name, count in lengths if count > CODE_LINES_OF_A_FUNCTION]


def test_no_module_imports_what_is_anothers_own():
    """A name with an underscore is its module's; modules with one are a package's."""
    files = {path.stem for paths in MODULES.values() for path in paths}
    names = [(use.where, use.imported.target.rpartition(".")[2]) for use in internal_imports()]
    own = [(where, name) for where, name in names if name.startswith("_") and name not in files]
    assert {name for _, name in own} <= {"__version__"}, own
