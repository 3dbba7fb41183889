"""The source of the package, as tests read it: files, trees, imports."""

from __future__ import annotations

import ast
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import twisted_netsock

ROOT = Path(__file__).parents[1]
PACKAGE = Path(twisted_netsock.__file__).parent
"""The package that is tested: of this tree, or installed elsewhere."""

PLUGINS = PACKAGE.parent / "twisted" / "plugins"

in_checkout = pytest.mark.skipif(
    PACKAGE.parent != ROOT, reason="the package is not tested where its source is"
)


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


def code_lines(path: Path) -> set[int]:
    """Return the numbers of the lines of code: not of docstrings, comments and blank lines."""
    no_code = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    no_code |= {tokenize.ENCODING, tokenize.ENDMARKER}
    lines: set[int] = set()
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type not in no_code:
                lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree_of(path)):
        # A string that is a statement: a docstring, or what explains the field above it.
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                lines.difference_update(range(node.lineno, (node.end_lineno or 0) + 1))
    return lines


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
