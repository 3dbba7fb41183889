"""A pair of `Socket`s does what a pair of the standard library's sockets does, call by call."""

from __future__ import annotations

import array
import fcntl
import select
import socket
import struct
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from tests.support.streams import noise
from twisted_netsock import Socket, chibi
from twisted_netsock.testing import connected_pair

pytestmark = pytest.mark.long

WOULD_BLOCK = "would block"
CONTENT = noise(400_000)

SMALL = st.integers(0, 5000)
# More than a buffer holds; what the kernel takes of it is exact for UNIX sockets alone.
LARGE = st.sampled_from([70_000, 200_000, 400_000])
# Not 0: the standard library does not look at the socket then, be it closed.
RECEIVED = st.sampled_from([1, 3, 100, 4096, 65536])
PEEKED = st.sampled_from([0, socket.MSG_PEEK])
OPTIONS = st.sampled_from(
    [
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.SOL_SOCKET, socket.SO_OOBINLINE, 1),
        (socket.SOL_SOCKET, socket.SO_RCVLOWAT, 10),
        # A close resets then, where the kind of socket knows that.
        (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)),
        (socket.SOL_SOCKET, socket.SO_TYPE, 1),
        (socket.SOL_SOCKET, 9999, 1),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 0),
    ]
)
ASKED = st.sampled_from(
    [
        (socket.SOL_SOCKET, socket.SO_ERROR),
        (socket.SOL_SOCKET, socket.SO_TYPE),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        (socket.SOL_SOCKET, socket.SO_LINGER, 8),
        (socket.SOL_SOCKET, 9999),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY),
    ]
)
DIRECTIONS = st.sampled_from([socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR])

Step = tuple[Any, ...]


def steps(sizes: st.SearchStrategy[int]) -> st.SearchStrategy[list[Step]]:
    """Make lists of calls: which end, the name of the call, what it is given."""
    calls = st.one_of(
        st.tuples(st.just("send"), sizes),
        # The standard library's asks the kernel to send nothing; ours does not.
        st.tuples(st.just("sendall"), sizes.filter(bool)),
        st.tuples(st.just("sendmsg"), sizes),
        st.tuples(st.just("recv"), RECEIVED, PEEKED),
        st.tuples(st.just("recv_into"), RECEIVED, PEEKED),
        st.tuples(st.just("recvmsg"), RECEIVED, PEEKED),
        st.tuples(st.just("recv"), RECEIVED, st.just(0)),
        st.tuples(st.just("shutdown"), DIRECTIONS),
        st.tuples(st.just("close")),
        st.tuples(st.just("setsockopt"), OPTIONS),
        st.tuples(st.just("getsockopt"), ASKED),
        st.tuples(st.just("getpeername")),
    )
    return st.lists(st.tuples(st.integers(0, 1), calls), min_size=1, max_size=25)


def perform(sock: Any, name: str, *arguments: Any) -> Any:
    """Make one call of a socket of either kind."""
    method = getattr(sock, name)
    match name:
        case "send" | "sendall":
            return method(memoryview(CONTENT)[: arguments[0]])
        case "sendmsg":
            return method([bytes(arguments[0]), b"tail"])
        case "recv_into":
            size, flags = arguments
            buffer = bytearray(size)
            return method(buffer, size, flags), buffer
        case "recvmsg":
            return method(arguments[0], 0, arguments[1])
        case "setsockopt" | "getsockopt":
            return method(*arguments[0])
        case _:
            return method(*arguments)


def of_native(sock: socket.socket, step: Step) -> Any:
    """Make a call of the standard library's, and return what came of it."""
    try:
        return described(perform(sock, *step))
    except BlockingIOError:
        return WOULD_BLOCK
    except OSError as error:
        return "error", error.errno


def of_own(sock: Socket, step: Step) -> Any:
    """Make a call of a `Socket`, and return what came of it; one that waits is cancelled."""
    try:
        result, buffer = perform(sock, *step), None
        if step[0] == "recv_into":
            result, buffer = result
        if isinstance(result, Deferred):
            fired: list[Any] = []
            result.addBoth(fired.append)
            if not fired:
                result.cancel()
                assert fired[0].type is CancelledError
                return WOULD_BLOCK
            [result] = fired
            if isinstance(result, Failure):
                result.raiseException()
    except OSError as error:
        return "error", error.errno
    return described(result if buffer is None else (result, buffer))


def described(result: Any) -> Any:
    """Leave out addresses, which differ between any two pairs."""
    if isinstance(result, tuple) and len(result) == 4:
        return result[:3]
    return "an address" if isinstance(result, str) or is_address(result) else result


def is_address(result: Any) -> bool:
    return isinstance(result, tuple) and bool(result) and isinstance(result[0], str)


def state(sock: Any) -> tuple[int, int]:
    """Tell how many bytes wait in the kernel, and what poll says."""
    if sock.fileno() < 0:
        return 0, 0
    waiting = array.array("i", [0])
    fcntl.ioctl(sock.fileno(), termios.FIONREAD, waiting)
    poller = select.poll()
    poller.register(sock.fileno(), select.POLLIN | select.POLLRDHUP)
    events = poller.poll(0)
    return waiting[0], events[0][1] if events else 0


def settle(ours: tuple[Any, Any], theirs: tuple[Any, Any]) -> None:
    """Wait until the kernel has done the same for both pairs."""
    for _ in range(1000):
        if [state(sock) for sock in ours] == [state(sock) for sock in theirs]:
            return
        time.sleep(0.001)


def native_tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    for sock in (one, other):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return one, other


@contextmanager
def pairs(kind: str) -> Iterator[tuple[tuple[Socket, Socket], Any]]:
    """Make a pair of ours and one of the standard library's, in the same way."""
    ours = chibi.open_socket_pair() if kind == "unix" else connected_pair()
    theirs = socket.socketpair() if kind == "unix" else native_tcp_pair()
    try:
        for sock in theirs:
            sock.setblocking(False)
        yield ours, theirs
    finally:
        for each in (*ours, *theirs):
            each.close()


def compare(kind: str, sequence: list[Step]) -> None:
    with pairs(kind) as (ours, theirs):
        for end, step in sequence:
            assert of_own(ours[end], step) == of_native(theirs[end], step), (end, step)
            settle(ours, theirs)
            assert [state(sock) for sock in ours] == [state(sock) for sock in theirs]


@settings(max_examples=150, derandomize=True, deadline=None, database=None)
@given(steps(SMALL | LARGE))
def test_a_unix_pair_does_what_the_standard_librarys_does(sequence: list[Step]) -> None:
    compare("unix", sequence)


@settings(max_examples=150, derandomize=True, deadline=None, database=None)
@given(steps(SMALL))
def test_a_tcp_pair_does_what_the_standard_librarys_does(sequence: list[Step]) -> None:
    compare("tcp", sequence)


@pytest.mark.parametrize("kind", ["unix", "tcp"])
@pytest.mark.parametrize(
    "sequence",
    [
        [("send", 10), ("close",), ("recv", 4, 0), ("recv", 10, 0), ("recv", 10, 0)],
        [("shutdown", socket.SHUT_WR), ("send", 1), ("sendall", 1), ("shutdown", socket.SHUT_WR)],
        [("shutdown", socket.SHUT_RD), ("recv", 1, 0), ("recv_into", 1, 0)],
        [("close",), ("send", 1), ("recv", 1, 0), ("shutdown", socket.SHUT_WR), ("close",)],
    ],
)
def test_the_ways_to_end_are_the_same_on_both_ends(kind: str, sequence: list[Step]) -> None:
    """What is drawn at random seldom follows one plan, on one end or on both in turn."""
    for ends in ((0, 0), (0, 1), (1, 0)):
        compare(kind, [(ends[index % 2], step) for index, step in enumerate(sequence)])
