"""The public names: those that type checkers see, those that are listed, and where they live."""

from __future__ import annotations

import ast
import pickle
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import twisted_netsock
from tests.support.package_sources import FILES, PACKAGE, ROOT, names_type_checking, tree_of
from twisted_netsock import (
    ProxyHeader,
    ProxyTLV,
    VerifyResult,
    blocking,
    chibi,
    testing,
)

pytestmark = pytest.mark.once


def declared_homes() -> dict[str, str]:
    """Return what the type checkers see: each public name, and its module."""
    declared = {}
    for node in ast.walk(tree_of(PACKAGE / "__init__.py")):
        if isinstance(node, ast.If) and names_type_checking(node.test):
            for statement in node.body:
                assert isinstance(statement, ast.ImportFrom)
                assert statement.level == 1
                if statement.module is None:
                    # The public modules.
                    continue
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
        if not isinstance(value, type):
            assert value.__module__ == module.__name__, f"{name} is only imported in {home}"


@pytest.mark.parametrize("face", [twisted_netsock, testing, chibi, blocking])
def test_public_classes_show_a_public_module_that_has_them(face):
    classes = [each for name in face.__all__ if isinstance(each := getattr(face, name), type)]
    assert classes
    for each in classes:
        assert "._" not in each.__module__
        assert getattr(import_module(each.__module__), each.__name__) is each


def test_pickles_of_values_name_only_public_modules():
    values = [
        ProxyHeader.parse(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"),
        VerifyResult(0, "ok"),
        ProxyTLV.ALPN,
    ]
    for value in values:
        text = pickle.dumps(value, 0)
        assert b"twisted_netsock._" not in text
        assert pickle.loads(text) == value


def test_a_star_import_gives_the_public_names():
    namespace: dict[str, Any] = {}
    exec("from twisted_netsock import *", namespace)
    assert namespace.keys() - {"__builtins__"} == set(twisted_netsock.__all__)


def test_the_public_names_are_offered_by_dir():
    assert set(twisted_netsock.__all__) <= set(dir(twisted_netsock))


def test_the_public_modules_are_attributes_and_no_other_is():
    program = """
import sys, types
import twisted_netsock as n
assert "crochet" not in sys.modules
listed = {name for name in dir(n) if isinstance(getattr(n, name), types.ModuleType)}
print(*sorted(listed))
print(n.blocking.setup.__name__, n.chibi.receive.__name__, n.testing.CertificateAuthority.__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines() == [
        "addresses blocking chibi errors options testing",
        "setup receive CertificateAuthority",
    ]
    files = [path.stem for path in PACKAGE.iterdir() if not path.stem.startswith("_")]
    assert set(files) - {"py"} == {*twisted_netsock._MODULES, "commands"}


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


def test_type_checkers_see_that_there_are_types():
    assert (PACKAGE / "py.typed").is_file()


# What type checkers see of a user's programs

USES = ROOT / "tests" / "typing"


def names_used(path: Path) -> set[str]:
    """Return the public names that a program uses, with their modules."""
    tree = tree_of(path)
    alias = {
        "netsock": "twisted_netsock",
        "blocking": "twisted_netsock.blocking",
        "chibi": "twisted_netsock.chibi",
    }
    used = {
        f"{alias[node.value.id]}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in alias
    }
    return used | {
        f"{node.module}.{name.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }


def test_the_programs_for_type_checkers_use_every_public_name():
    used = set().union(*map(names_used, USES.glob("*.py")))

    def elsewhere(face: Any, name: str) -> bool:
        """Tell whether *face* only passes it on, and it is used where it comes from."""
        value = getattr(face, name)
        return any(
            f"{other.__name__}.{name}" in used and getattr(other, name) is value
            for other in (twisted_netsock, chibi)
            if other is not face and hasattr(other, name)
        )

    missing = {
        f"{face.__name__}.{name}"
        for face in (twisted_netsock, chibi, blocking, testing)
        for name in face.__all__
        if f"{face.__name__}.{name}" not in used
        and not (face in (chibi, blocking) and elsewhere(face, name))
    }
    assert missing == set()


def test_the_program_that_needs_no_plugin_of_mypy_has_no_endpoints():
    """Those are zope's interfaces, for which Twisted itself needs mypy-zope."""
    used = names_used(USES / "plain.py")
    assert not {name for name in used if "endpoint" in name.lower() or "factory" in name}
