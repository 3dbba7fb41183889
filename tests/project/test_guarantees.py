"""The page of guarantees names tests that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "explanation" / "guarantees.md"
NAMED = re.compile(r"`(tests/[^`]*)`")


def rows() -> list[tuple[str, str]]:
    """Return every promise with what holds it."""
    found = []
    for line in PAGE.read_text().splitlines():
        if line.startswith("| ") and not line.startswith("| Promise"):
            _, promise, held, _ = line.split("|")
            found.append((promise.strip(), held.strip()))
    return found


@cache
def names_in(file: str) -> frozenset[str]:
    """Return the names of the tests in *file*, those of classes behind the class's."""
    found = set()
    for node in ast.parse((ROOT / file).read_text()).body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        for each in inner:
            if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
                found.add(f"{prefix}{each.name}")
    return frozenset(name for name in found if name.rpartition("::")[2].startswith("test_"))


def test_there_are_promises_and_each_stands_there_once():
    promises = [promise for promise, _ in rows()]
    assert len(promises) > 40
    assert len(set(promises)) == len(promises)


@pytest.mark.parametrize(("promise", "held"), rows(), ids=lambda text: text[:40])
def test_a_promise_is_a_sentence_that_tests_hold(promise, held):
    assert promise.endswith(".")
    named = NAMED.findall(held)
    assert ", ".join(f"`{name}`" for name in named) == held
    assert named
    for name in named:
        file, _, test = name.partition("::")
        assert (ROOT / file).is_file(), name
        assert test in names_in(file), name


def test_a_test_that_is_gone_would_be_missed():
    assert "test_a_test_that_is_gone_would_be_missed" in names_in(
        "tests/project/test_guarantees.py"
    )
    assert "test_this_one_never_was" not in names_in("tests/project/test_guarantees.py")
