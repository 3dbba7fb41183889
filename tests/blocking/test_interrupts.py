"""
Signal handlers at every moment of a blocking call, which they interrupt or whose socket they use.

After Ctrl-C, what the call has taken is given back. A handler that closes, aborts or shuts
down the socket returns at once, and OpenSSL's connection is never entered twice.
"""

from __future__ import annotations

import contextlib
import dis
import os
import socket
import sys
from collections.abc import Callable
from datetime import timedelta
from types import CodeType, FrameType
from typing import Any

import pytest

from tests.support.package_sources import PACKAGE
from tests.support.threads import Background, eventually, plain_pair, threaded, tls_pair
from twisted_netsock import SocketConnectionLostError, SocketError, blocking
from twisted_netsock._tls.openssl import Connection
from twisted_netsock.blocking import _bridge, _operation, _selector

pytestmark = pytest.mark.long

NONE = timedelta(0)
WATCHED = {
    each.__code__
    for each in (
        _operation.BlockingOperating._bridge,
        _operation.BlockingOperating._enter,
        _operation.BlockingOperating._read,
        _bridge.Call.result,
        _bridge.Call._run,
        _bridge._Link.submit,
        _selector._give_back,
        _selector._wait_any,
    )
}
"""Functions that are interrupted."""


def press_ctrl_c() -> None:
    raise KeyboardInterrupt


class Interrupt:
    """
    A signal at the nth moment of this thread at which the interpreter looks for signals.

    That is where a function begins, and after each call that raises nothing, unless it
    takes a lock for ``with``.
    """

    def __init__(
        self,
        number: int,
        handler: Callable[[], object] = press_ctrl_c,
        watches: Callable[[CodeType], bool] = WATCHED.__contains__,
    ) -> None:
        self._left = number
        self._handler = handler
        self._watches = watches
        self.came = False

    def __call__(self, frame: FrameType, event: str, _: object) -> Any:
        if not self._watches(frame.f_code):
            return None
        before = "RESUME"
        frame.f_trace_opcodes = True

        def trace(frame: FrameType, event: str, _: object) -> Any:
            nonlocal before
            if event == "exception":
                before = event
            elif event == "opcode":
                looks = before.startswith(("RESUME", "CALL"))
                before = dis.opname[frame.f_code.co_code[frame.f_lasti]]
                if looks and not self.came:
                    self._left -= 1
                    if self._left < 0:
                        self.came = True
                        self._handler()
            return trace

        return trace

    def during(self, call: Callable[[], Any]) -> None:
        sys.settrace(self)
        try:
            call()
        except (KeyboardInterrupt, SocketError, BlockingIOError):
            pass
        finally:
            sys.settrace(None)


def accept_what_is_not_there(server: Any, one: Any) -> None:
    server.setblocking(False)
    server.accept()


def wait_for_two(server: Any, one: Any) -> None:
    blocking.wait_readable(one, server, timeout=NONE)


def receive(server: Any, one: Any) -> None:
    one.setblocking(False)
    one.recv(1)


until_3_13 = pytest.mark.skipif(
    sys.version_info >= (3, 14), reason="'with' takes its lock by CALL there"
)


@until_3_13
@pytest.mark.parametrize("call", [accept_what_is_not_there, wait_for_two, receive])
@threaded
def test_ctrl_c_leaves_no_direction_taken_whenever_it_comes(call):
    one, other = blocking.open_socket_pair()
    with one, other, blocking.make_server_socket("127.0.0.1", 0) as server:
        # Python 3.12 tells of a function's steps from its second call on.
        Interrupt(sys.maxsize).during(lambda: call(server, one))
        came = 0
        while True:
            interrupt = Interrupt(came)
            interrupt.during(lambda: call(server, one))
            if not interrupt.came:
                break
            came += 1
            eventually(lambda: server._reader is None and one._reader is None)
        assert came > 2


# Handlers that use the socket

MUCH = 300_000
DATA = bytes(range(256)) * (MUCH // 256)


class Guard:
    """Notes when OpenSSL's connection is entered by one that is inside it already."""

    METHODS = ("receive", "receive_into", "send_records", "send", "recv", "shutdown")

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.twice: list[str] = []
        self._inside: set[int] = set()
        for name in self.METHODS:
            monkeypatch.setattr(Connection, name, self._guarded(name, getattr(Connection, name)))

    def _guarded(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(connection: Any, *arguments: Any) -> Any:
            nested = sys._getframe(1).f_code.co_filename.endswith("connections.py")
            if nested:
                return method(connection, *arguments)
            if id(connection) in self._inside:
                self.twice.append(name)
            self._inside.add(id(connection))
            try:
                return method(connection, *arguments)
            finally:
                self._inside.discard(id(connection))

        return call


def of_the_package(code: CodeType) -> bool:
    # What a finalizer raises goes nowhere.
    return code.co_filename.startswith(str(PACKAGE)) and code.co_name != "__del__"


def read(one: Any) -> None:
    # A port says so as any file, if it is closed.
    with contextlib.suppress(ValueError):
        one.input_port.read(2)


def flush(one: Any) -> None:
    with contextlib.suppress(ValueError):
        one.output_port.write(b"x")
        one.output_port.flush()


CALLS: dict[str, Callable[[Any], Any]] = {
    "recv": lambda one: one.recv(10),
    "recv that waits": lambda one: (one.recv(10), one.recv(10)),
    "recv_into": lambda one: one.recv_into(bytearray(10)),
    "read": read,
    "sendall": lambda one: one.sendall(DATA),
    "flush": flush,
    "wait_readable": lambda one: blocking.wait_readable(one, timeout=NONE),
}
ACTIONS: dict[str, Callable[[Any], Any]] = {
    "close": lambda one: one.close(),
    "abort": lambda one: one.abort(),
    "shutdown": lambda one: one.shutdown(socket.SHUT_RDWR),
    "settimeout": lambda one: (one.settimeout(0.01), one.fileno(), one.read_timeout),
    "send": lambda one: one.send(b"x"),
    "recv": lambda one: one.recv(1),
    "detach": lambda one: os.close(one.detach()),
}


@until_3_13
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@threaded
def test_a_handler_may_use_the_socket_whose_call_it_interrupts(
    call, action, tls, authority, monkeypatch
):
    """Whenever it comes, both it and the call come to an end."""
    guard = Guard(monkeypatch)
    escaped: list[BaseException] = []

    def handle(one: Any) -> None:
        try:
            ACTIONS[action](one)
        except (SocketError, BlockingIOError):
            # Of what is taken, closed or empty.
            pass
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            escaped.append(error)

    # Of the many moments over TLS all would take a minute.
    step = 7 if tls else 1
    # Python 3.12 tells of a function's steps from its second call on.
    moment = -step
    while True:
        with tls_pair(authority) if tls else plain_pair() as (one, other):
            one.settimeout(0.01)
            other.settimeout(5)
            other.sendall(b"01")
            if moment < 0:
                Interrupt(sys.maxsize, watches=of_the_package).during(
                    lambda one=one: CALLS[call](one)
                )
                moment = 0
                continue
            interrupt = Interrupt(moment, lambda one=one: handle(one), of_the_package)
            interrupt.during(lambda one=one: CALLS[call](one))
            assert not escaped
            assert not guard.twice
            if not interrupt.came:
                break
            if action in ("close", "abort"):
                assert one.closed
                eventually(lambda one=one: one._gone)
            else:
                assert one._reader is one._writer is None
        moment += step
    # What Python 3.13 traces of a function differs from run to run.
    assert moment or sys.version_info >= (3, 13)


@until_3_13
@threaded
def test_a_tls_stream_has_no_gap_where_ctrl_c_has_cut_a_send_short(authority):
    """A send after it goes on behind a part of what was interrupted, or fails."""

    def send(one: Any) -> None:
        one.sendall(DATA)
        one.sendall(DATA)

    moment = came = 0
    while came == moment:
        with tls_pair(authority) as (one, other):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            one.settimeout(0.005)
            interrupt = Interrupt(moment, watches=of_the_package)
            interrupt.during(lambda one=one: send(one))
            came += interrupt.came
            receiving = Background(lambda other=other: received(other))
            one.settimeout(5)
            try:
                one.sendall(b"the next")
                one.shutdown(socket.SHUT_WR)
            except SocketConnectionLostError:
                one.abort()
                receiving.error()
            else:
                data = receiving.result()
                assert data.endswith(b"the next")
                assert (2 * DATA).startswith(data[: -len(b"the next")])
        moment += 1
    assert came > 20


def received(sock: Any) -> bytes:
    return b"".join(iter(lambda: sock.recv(65536), b""))
