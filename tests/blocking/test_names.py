"""`twisted_netsock.blocking` has every name of the two libraries, with the same arguments."""

from __future__ import annotations

import inspect
import io
import re
import socket
from pathlib import Path
from typing import Any

import pytest

import twisted_netsock
from tests.support.package_sources import ROOT
from tests.support.threads import plain_pair, threaded, tls_pair
from twisted_netsock import Socket, TLSSocket, blocking, chibi
from twisted_netsock.blocking._bridge import run

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


MORE = {"sendall": ["flags"]}
"""Arguments that blocking methods have beyond those of awaitable ones."""


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


def table_rows(page: Path, heading: str) -> list[list[str]]:
    """Return the cells of the rows of the last table whose first column has that heading."""
    text = page.read_text(encoding="utf-8")
    table = text[text.rindex(f"| {heading} |") :].split("\n\n")[0]
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines()[2:]]


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
        count = len(parameters(one))
        assert parameters(other)[:count] == parameters(one)
        # What the standard library's takes, too.
        assert [each for each, *_ in parameters(other)[count:]] == MORE.get(name, [])
        assert returned(other) == returned(one)


# The standard library's socket


ROWS = table_rows(ROOT / "docs/how-to/from-socket.md", "`socket.socket`")
SAID = {name: row for row in ROWS for name in re.findall(r"`(\w+)`", row[0])}
STANDARD = sorted(name for name in dir(socket.socket) if not name.startswith("_"))
SAME = [name for name in SAID if SAID[name][1].startswith("the same")]


def test_each_member_of_the_standard_socket_is_the_same_or_named_with_its_difference():
    assert sorted(SAID) == STANDARD
    for name, (_, what, reason) in SAID.items():
        assert (what == "none") == (not hasattr(blocking.BlockingSocket, name)), name
        assert reason or name in SAME or name == "settimeout", name


@pytest.mark.parametrize("name", SAME)
def test_what_is_the_same_takes_the_same_arguments(name):
    theirs, ours = getattr(socket.socket, name), getattr(blocking.BlockingSocket, name)
    if not callable(theirs) or not callable(ours):
        assert not callable(ours)
        assert not inspect.isroutine(theirs)
        return
    mine = list(inspect.signature(ours).parameters.values())[1:]
    try:
        expected = list(inspect.signature(theirs).parameters.values())[1:]
        assert [each.default for each in mine] == [each.default for each in expected]
        # Python 3.13 describes some that are written in C, and take no names.
        named = [each.name for each in expected if each.kind != each.POSITIONAL_ONLY]
        assert not named or [each.name for each in mine] == named
    except ValueError:
        # In C: "recv_into(buffer, [nbytes[, flags]]) -> nbytes_read".
        arguments = re.match(r"\w+\((.*?)\)", theirs.__doc__)[1]
        needed, _, _ = arguments.partition("[")
        assert len(mine) == len(re.findall(r"\w+", arguments))
        assert (
            len([each for each in mine if each.default is each.empty])
            == len(re.findall(r"\w+", needed))
            or name == "listen"
        )


MEANINGS: dict[str, Any] = {
    "recv": lambda one: (one.recv(2), one.recv(1, socket.MSG_PEEK), one.recv(9)),
    "recv_into": lambda one: filled(one.recv_into, 2, 2, 0),
    "recvfrom": lambda one: (one.recvfrom(2)[0], one.recvfrom(9, socket.MSG_PEEK)[0]),
    "recvfrom_into": lambda one: filled(lambda *given: one.recvfrom_into(*given)[0], 2, 2, 0),
    "recvmsg": lambda one: one.recvmsg(2, 0, socket.MSG_PEEK)[:3],
    "recvmsg_into": lambda one: (one.recvmsg_into([buffer := bytearray(4)], 0, 0)[:3], buffer),
    "sendall": lambda one: (one.sendall(b"xyz"), one.sendall(b"x", socket.MSG_NOSIGNAL)),
    "get_inheritable": lambda one: one.get_inheritable(),
    "set_inheritable": lambda one: (one.set_inheritable(True), one.get_inheritable()),
    "send": lambda one: one.send(b"xyz", socket.MSG_NOSIGNAL),
    "sendmsg": lambda one: one.sendmsg([b"x", b"yz"], [], 0),
    "sendfile": lambda one: one.sendfile(io.BytesIO(b"0123456789"), 2, 3),
    "makefile": lambda one: one.makefile("rb", 0).read(4),
    "family": lambda one: one.family,
    "type": lambda one: one.type,
    "proto": lambda one: one.proto,
    "timeout": lambda one: one.timeout,
    "fileno": lambda one: one.fileno() > 2,
    "getblocking": lambda one: one.getblocking(),
    "setblocking": lambda one: (one.setblocking(False), one.gettimeout(), one.getblocking()),
    "gettimeout": lambda one: (one.settimeout(2.5), one.gettimeout()),
    "getsockopt": lambda one: (
        one.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE),
        one.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE, 4),
    ),
    "listen": lambda one: isinstance(error_of(lambda: one.listen(1)), OSError),
}
REFUSED: dict[str, Any] = {
    "more bytes than there is room for": lambda one: one.recv_into(bytearray(1), 2),
    "the same of a datagram": lambda one: one.recvfrom_into(bytearray(1), 2),
    "less than no bytes": lambda one: one.recv_into(bytearray(1), -1),
    "less than none of a datagram": lambda one: one.recvfrom_into(bytearray(1), -1),
    "a receive that may not wait": lambda one: (
        one.recv(99),
        one.recv(1, socket.MSG_DONTWAIT),
    ),
}


def filled(receive: Any, *sizes: int) -> list[tuple[int, bytes]]:
    found = []
    for size in sizes:
        buffer = bytearray(9)
        found.append((receive(buffer, size), bytes(buffer)))
    return found


def error_of(call: Any) -> BaseException:
    try:
        call()
    except Exception as error:  # noqa: BLE001 - the test looks at it
        return error
    raise AssertionError("it raises nothing")


def on_both(act: Any) -> list[Any]:
    """Return what it gives on a socket of the standard library, and on one of ours."""
    results = []
    for kind in (lambda sock: sock, blocking.BlockingSocket.from_socket):
        given, other = socket.socketpair()
        with kind(given) as one, other:
            other.sendall(b"012345")
            results.append(act(one))
    return results


@pytest.mark.parametrize("name", SAME)
@threaded
def test_what_is_the_same_does_the_same(name):
    theirs, ours = on_both(MEANINGS[name])
    assert ours == theirs


@pytest.mark.parametrize("what", REFUSED)
@threaded
def test_what_is_refused_fails_with_the_same_error(what):
    theirs, ours = on_both(lambda one: error_of(lambda: REFUSED[what](one)))
    assert isinstance(ours, type(theirs))


@pytest.mark.parametrize("way", ["blocking", "awaitable", "TLS"])
@threaded
def test_flags_that_would_be_ignored_are_refused(way, authority):
    def check(one: Any) -> None:
        buffer = bytearray(2)
        for call in (
            lambda: one.recv(1, socket.MSG_WAITALL),
            lambda: one.recv_into(buffer, 1, socket.MSG_WAITALL),
            lambda: one.recv_into(buffer, 0, socket.MSG_NOSIGNAL),
            lambda: one.recvfrom(1, socket.MSG_MORE),
            lambda: one.recvfrom_into(buffer, 1, socket.MSG_EOR),
            lambda: one.recvmsg(1, 0, socket.MSG_WAITALL),
            lambda: one.send(b"x", socket.MSG_PEEK),
            lambda: one.sendmsg([b"x"], (), socket.MSG_TRUNC),
            lambda: one.sendto(b"x", ("127.0.0.1", 1), socket.MSG_WAITALL),
            *(() if way == "blocking" else (lambda: one.recv(1, socket.MSG_DONTWAIT),)),
            *((lambda: one.recv_into(buffer, 0, socket.MSG_TRUNC),) if way == "TLS" else ()),
        ):
            with pytest.raises(ValueError, match="flags="):
                call()
        with pytest.raises(ValueError if way == "TLS" else TypeError, match="flags"):
            one.recv_into(buffer, 0, "x")

    if way == "TLS":
        with tls_pair(authority) as (one, _):
            check(one)
    elif way == "blocking":
        with plain_pair() as (one, _):
            check(one)
    else:

        def there(reactor: Any) -> Any:
            one, other = chibi.new_pair(socket.AF_UNIX, socket.SOCK_STREAM, 0)
            sock = Socket.from_socket(one, reactor=reactor)
            with other:
                try:
                    check(sock)
                finally:
                    sock.close()

        run(there)


def test_the_names_are_sorted_and_there():
    assert blocking.__all__ == sorted(set(blocking.__all__))
    assert not [name for name in blocking.__all__ if not hasattr(blocking, name)]


def test_nothing_returns_a_deferred():
    for name in blocking.__all__:
        value = getattr(blocking, name)
        if inspect.isfunction(value):
            assert "Deferred" not in str(inspect.signature(value).return_annotation)
