"""`twisted_netsock.blocking` has every name of the two libraries, with the same arguments."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

import twisted_netsock
from twisted_netsock import Socket, TLSSocket, blocking, chibi

pytestmark = pytest.mark.once

MAKERS = [
    name
    for name in twisted_netsock.__all__
    if name.startswith("make_") or name == "socket_options_to_client_socket"
]
TO_COME = [
    name
    for name in ("start_tls", "wait_readable", "wait_writable", "SocketSelector")
    if hasattr(twisted_netsock, name)
]
PREDICATES_AND_RECORDS = [
    name
    for name in twisted_netsock.__all__
    if name.startswith("is_") or name.endswith("SocketOptions") or name == "SocketOptions"
]
PROCEDURES = [name for name in chibi.__all__ if inspect.isfunction(getattr(chibi, name))]
CONSTANTS = [name for name in chibi.__all__ if name.isupper()]

FUNCTIONS = [(twisted_netsock, name) for name in (*MAKERS, *TO_COME)] + [
    (chibi, name) for name in PROCEDURES
]


def members_of(cls: type) -> dict[str, Any]:
    """Return the public methods and properties of a class, but those for the poller."""
    return {
        name: inspect.getattr_static(cls, name)
        for name in dir(cls)
        if not name.startswith(("_", "on_"))
    }


CLASSES = ((Socket, blocking.BlockingSocket), (TLSSocket, blocking.BlockingTLSSocket))
METHODS = [(theirs, ours, name) for theirs, ours in CLASSES for name in members_of(theirs)]


def parameters(function: Any) -> list[tuple[str, object, object]]:
    return [
        (each.name, each.kind, each.default)
        for each in inspect.signature(function).parameters.values()
    ]


def returned(function: Any) -> str:
    """Return what a function returns, without its Deferred, as our names have it."""
    text = str(inspect.signature(function).return_annotation)
    text = re.sub(r"^Deferred\[(.*)\]$", r"\1", text)
    text = re.sub(r"\bBlocking(TLSSocket|Socket)\b", r"\1", text)
    for theirs, ours in (("InputPort", "io.BufferedReader"), ("OutputPort", "io.BufferedWriter")):
        text = text.replace(ours, theirs)
    return text


def test_there_is_something_of_each_kind():
    assert len(MAKERS) == 5
    assert len(PROCEDURES) > 20
    assert len(CONSTANTS) > 20
    assert len(PREDICATES_AND_RECORDS) == 6


@pytest.mark.parametrize(("module", "name"), FUNCTIONS, ids=[name for _, name in FUNCTIONS])
def test_a_function_takes_the_same_and_returns_what_the_deferred_fires_with(module, name):
    theirs, ours = getattr(module, name), getattr(blocking, name)
    assert parameters(ours) == parameters(theirs)
    if inspect.isfunction(theirs):
        assert returned(ours) == returned(theirs)
    assert name in blocking.__all__


@pytest.mark.parametrize("name", [*CONSTANTS, *PREDICATES_AND_RECORDS, "AddressInfo"])
def test_what_never_waits_is_the_same_object(name):
    module = chibi if hasattr(chibi, name) else twisted_netsock
    assert getattr(blocking, name) is getattr(module, name)
    assert name in blocking.__all__


@pytest.mark.parametrize(
    ("theirs", "ours", "name"), METHODS, ids=[f"{cls.__name__}.{name}" for cls, _, name in METHODS]
)
def test_a_socket_has_the_same_members(theirs, ours, name):
    one, other = members_of(theirs)[name], members_of(ours)[name]
    assert isinstance(other, property) == isinstance(one, property)
    if isinstance(one, property):
        assert (one.fset is None) == (other.fset is None)
        assert returned(other.fget) == returned(one.fget)
    elif not callable(getattr(theirs, name)):
        # What an instance may have, and mostly has not.
        assert other is one is None
    else:
        one, other = getattr(theirs, name), getattr(ours, name)
        assert parameters(other) == parameters(one)
        assert returned(other) == returned(one)


def test_the_names_are_sorted_and_there():
    assert blocking.__all__ == sorted(set(blocking.__all__))
    assert not [name for name in blocking.__all__ if not hasattr(blocking, name)]


def test_nothing_returns_a_deferred():
    for name in blocking.__all__:
        value = getattr(blocking, name)
        if inspect.isfunction(value):
            assert "Deferred" not in str(inspect.signature(value).return_annotation)
