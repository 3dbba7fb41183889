"""Ctrl-C at every moment of a blocking call: what the call has taken is given back."""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from datetime import timedelta
from types import FrameType
from typing import Any

import pytest
from threads import eventually, threaded

from twisted_netsock import SocketError, blocking
from twisted_netsock.blocking import _base, _bridge, _selecting

NONE = timedelta(0)
WATCHED = {
    each.__code__
    for each in (
        _base.BlockingBase._bridge,
        _base.BlockingBase._enter_reading,
        _base.BlockingBase._read,
        _bridge.Call.result,
        _bridge.Call._run,
        _bridge._Link.submit,
        _selecting._give_back,
        _selecting._wait_any,
    )
}
"""Functions that are interrupted."""


class Interrupt:
    """
    Ctrl-C at the nth moment of this thread at which the interpreter looks for signals.

    That is where a function begins, and after each call that raises nothing, unless it
    takes a lock for ``with``.
    """

    def __init__(self, number: int) -> None:
        self._left = number
        self.came = False

    def __call__(self, frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code not in WATCHED:
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
                        raise KeyboardInterrupt
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


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="'with' takes its lock by CALL there")
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
