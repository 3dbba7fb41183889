"""The source of the package, as tests read it: files, trees, imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import twisted_netsock

ROOT = Path(__file__).parents[2]
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


def module_of(path: Path) -> str:
    """Return the dotted name of a file within the package; the package's own is ``""``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> dict[str, Path]:
    """Return the file of each module of the package."""
    return {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


MODULES = sources()
FILES = sorted(f"twisted_netsock.{module}".removesuffix(".") for module in MODULES)
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
    first, *parts = target.split(".")
    if first != "twisted_netsock":
        return None
    while ".".join(parts) not in MODULES:
        parts.pop()
    return ".".join(parts)


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
        for module, path in MODULES.items()
        for each in imports_of(path)
    ]


def internal_imports() -> list[Use]:
    """Return what modules of the package import from each other, not only for types."""
    return [
        use
        for use in every_import()
        if use.home not in {None, use.module} and not use.imported.for_types
    ]
