"""How the folders and modules stand to each other, and how long they are."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support import package_sources
from tests.support.code_lines import code_lines
from tests.support.package_sources import (
    FILES,
    MODULES,
    PACKAGE,
    PLUGINS,
    ROOT,
    every_import,
    home_of,
    imports_of,
    internal_imports,
    tree_of,
)

pytestmark = pytest.mark.once

LAYERS = [
    {
        "_version",
        "_public",
        "_text",
        "errors",
        "_hostnames",
        "_proxies",
        "_validation",
        "options",
        "addresses",
    },
    {"_io"},
    {"_proxy", "_proxy_protocol", "_certificates"},
    {"_tls"},
    {"_net"},
    {"_sockets", "_endpoints"},
    {""},
    {"testing", "chibi"},
    {"blocking", "commands"},
    {"__main__"},
]
"""
A folder imports only from layers before its own, and folders of one layer not each other.

The values, ``chibi`` and its parts are modules of one layer, which may. ``""`` is the package.
"""

LATE_IMPORTS = {
    "_endpoints.plugin",
    "",
    "commands",
    "commands.relay",
    "testing._plugin",
    "__main__",
}
"""Where a function may import from the package: these are loaded to find out what is needed."""

CYCLES: set[frozenset[str]] = set()
"""Cycles that are still to be broken; there shall be no new one."""


def layer_of(module: str) -> int:
    top = module.partition(".")[0]
    return next(number for number, layer in enumerate(LAYERS) if top in layer)


# The direction of imports


def test_the_layers_list_every_folder_and_module_once():
    listed = [name for layer in LAYERS for name in layer]
    tops = {module.partition(".")[0] for module in MODULES}
    assert len(set(listed)) == len(listed)
    assert tops - set(listed) == set(), f"update LAYERS in {__file__}"
    assert set(listed) - tops == set(), f"update LAYERS in {__file__}"


def test_a_folder_imports_only_from_layers_before_it():
    folders = {module.partition(".")[0] for module in MODULES if "." in module}

    def allowed(module: str, home: str) -> bool:
        top, other = module.partition(".")[0], home.partition(".")[0]
        if top == other or layer_of(home) < layer_of(module):
            return True
        return layer_of(home) == layer_of(module) and not {top, other} & folders

    assert not [use.where for use in internal_imports() if not allowed(use.module, use.home)]


def test_the_commands_share_only_what_is_common():
    private = {"connect", "echo", "probe", "relay"}
    parts = [
        (use.where, use.module.split(".")[1], use.home.split(".")[1])
        for use in internal_imports()
        if use.module.startswith("commands.") and use.home.startswith("commands.")
    ]
    assert parts
    assert not [where for where, mine, other in parts if other in private and mine != other]


def cycles_among(edges: dict[str, set[str]]) -> set[frozenset[str]]:
    """Return the groups of modules that import each other, however long the way round."""

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        left = list(edges.get(start, ()))
        while left:
            each = left.pop()
            if each not in found:
                found.add(each)
                left += edges.get(each, ())
        return found

    ways = {module: reached(module) for module in edges}
    return {
        frozenset(other for other in ways[module] if module in ways.get(other, ()))
        for module in edges
        if module in ways[module]
    }


def test_no_file_imports_itself_by_any_way_round():
    """Imports within functions count too."""
    edges: dict[str, set[str]] = {}
    for use in internal_imports():
        edges.setdefault(use.module, set()).add(use.home)
    found = cycles_among(edges)
    assert found == CYCLES, f"new: {found - CYCLES}, broken (update CYCLES): {CYCLES - found}"


def test_no_folder_imports_itself_by_any_way_round():
    edges: dict[str, set[str]] = {}
    for use in internal_imports():
        mine, other = use.module.rpartition(".")[0], use.home.rpartition(".")[0]
        if mine and other and mine != other:
            edges.setdefault(mine, set()).add(other)
    try:
        list(TopologicalSorter(edges).static_order())
    except CycleError as error:
        pytest.fail(f"folders import each other: {error.args[1]}")


def test_a_private_folder_imports_nothing_when_it_is_loaded():
    """And says in a paragraph what it promises and what it may import."""
    folders = [path for path in PACKAGE.rglob("__init__.py") if path.parent.name.startswith("_")]
    folders += [PACKAGE / "commands" / name / "__init__.py" for name in ("probe", "relay")]
    assert len(folders) > len(LAYERS) - 2
    for path in folders:
        [node] = tree_of(path).body
        assert ast.get_docstring(ast.Module([node], [])), path


def test_a_module_imports_inside_functions_only_where_that_is_the_design():
    late = [use for use in internal_imports() if use.imported.in_function]
    assert {use.module for use in late} >= {"_endpoints.plugin"}
    assert not [
        use.where
        for use in late
        if use.module not in LATE_IMPORTS and use.module.rpartition(".")[0] not in LATE_IMPORTS
    ]


def test_the_throw_away_authority_needs_only_values():
    home = "_certificates.throwaway_ca"
    assert not [
        use.where for use in internal_imports() if use.module == home and layer_of(use.home) > 0
    ]


def test_the_walk_finds_imports_of_every_form(tmp_path, monkeypatch):
    """What the tests above rely on."""
    monkeypatch.setattr(package_sources, "PACKAGE", tmp_path)
    (tmp_path / "commands").mkdir()
    path = tmp_path / "commands" / "it.py"
    path.write_text(
        "import os, twisted_netsock._tls\n"
        "from .._sockets import socket as s, Socket\n"
        "from .._tls.descriptor import TLSDescriptor\n"
        "from . import relay\n"
        "from .relay.options import RelayOptions\n"
        "from twisted_netsock import errors\n"
        "try:\n"
        "    import crochet\n"
        "except ImportError:\n"
        "    pass\n"
        "if TYPE_CHECKING:\n"
        "    from .._sockets.make import make_client_socket\n"
        "else:\n"
        "    from .._hostnames import is_ip_address\n"
        "class C:\n"
        "    from ..options import SocketOptions\n"
        "    async def f(self):\n"
        "        if True:\n"
        "            from .._endpoints.strings import parse_client\n"
    )
    found = [
        (each.target.removeprefix("twisted_netsock."), each.in_function, each.for_types)
        for each in imports_of(path)
    ]
    assert found == [
        ("os", False, False),
        ("_tls", False, False),
        ("_sockets.socket", False, False),
        ("_sockets.Socket", False, False),
        ("_tls.descriptor.TLSDescriptor", False, False),
        ("commands.relay", False, False),
        ("commands.relay.options.RelayOptions", False, False),
        ("errors", False, False),
        ("crochet", False, False),
        ("_sockets.make.make_client_socket", False, True),
        ("_hostnames.is_ip_address", False, False),
        ("options.SocketOptions", False, False),
        ("_endpoints.strings.parse_client", True, False),
    ]
    assert home_of("twisted_netsock.Socket") == ""
    assert home_of("twisted_netsock._tls.descriptor.TLSDescriptor") == "_tls.descriptor"
    assert home_of("twisted.internet") is None


def test_cycles_are_found_at_any_length():
    edges = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "x": {"a"}}
    assert cycles_among(edges) == {frozenset("abc")}


# One place for each thing


def test_only_the_poller_talks_to_the_reactor_about_descriptors():
    verbs = {"addReader", "addWriter", "removeReader", "removeWriter"}
    using = {
        module
        for module, path in MODULES.items()
        for node in ast.walk(tree_of(path))
        if (isinstance(node, ast.Attribute) and node.attr in verbs)
        or (isinstance(node, ast.Constant) and node.value in verbs)
    }
    assert using == {"_io.poller"}


def test_only_the_bridge_imports_crochet():
    using = {use.module for use in every_import() if use.imported.target.startswith("crochet")}
    assert using == {"blocking._bridge"}


def test_no_module_imports_the_reactor_when_it_is_loaded():
    assert not [
        use.where
        for use in every_import()
        if use.imported.target.startswith("twisted.internet.reactor")
        and not use.imported.in_function
        and not use.imported.for_types
    ]


def test_no_module_imports_what_is_anothers_own():
    """A name with an underscore is its module's; modules with one are a package's."""
    modules = {part for module in MODULES for part in module.split(".")}
    names = [(use.where, use.imported.target.rpartition(".")[2]) for use in internal_imports()]
    own = [(where, name) for where, name in names if name.startswith("_") and name not in modules]
    assert {name for _, name in own} <= {"__version__"}, own


# Sizes

CODE_LINES_OF_A_MODULE = 750
CODE_LINES_OF_A_FUNCTION = 60
FILES_OF_A_FOLDER = 16
LARGER: dict[str, int] = {}
"""Folders that hold more until modules are merged."""


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
        *(ROOT / "benchmarks").rglob("*.py"),
        *PLUGINS.glob("netsock_*.py"),
    ]
    lines = {path: len(code_lines(path)) for path in files}
    assert len(lines) > len(FILES)
    assert not [path for path, count in lines.items() if count > CODE_LINES_OF_A_MODULE]


def test_no_function_is_long():
    lengths = [each for path in MODULES.values() for each in functions_of(path)]
    assert max(count for _, count in lengths) > CODE_LINES_OF_A_FUNCTION / 2
    assert not [name for name, count in lengths if count > CODE_LINES_OF_A_FUNCTION]


def test_no_folder_holds_too_many_files():
    counts: dict[str, int] = {}
    for path in MODULES.values():
        folder = str(path.parent.relative_to(PACKAGE))
        counts[folder] = counts.get(folder, 0) + 1
    assert not {
        folder: count
        for folder, count in counts.items()
        if count > LARGER.get(folder, FILES_OF_A_FOLDER)
    }
