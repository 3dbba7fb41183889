"""`wait_readable`, `wait_writable`, `SocketSelector` and `start_tls` for threads."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import threading
from datetime import timedelta
from typing import Any

import pytest

from tests.support.threads import Background, eventually, plain_pair, threaded, tls_pair, waiting
from twisted_netsock import (
    CertificateVerificationError,
    SocketBusyError,
    SocketClosedError,
    SocketPortError,
    SocketReadTimeoutError,
    TLSError,
    blocking,
)
from twisted_netsock.blocking._waiting import MultiWaiter

pytestmark = pytest.mark.long

NONE = timedelta(0)
SHORT = timedelta(milliseconds=30)


@threaded
def test_those_that_can_be_read_are_reported_in_order():
    with contextlib.ExitStack() as stack:
        pairs = [blocking.open_socket_pair() for _ in range(4)]
        for pair in pairs:
            for each in pair:
                stack.enter_context(each)
        ends = [one for one, _ in pairs]
        assert blocking.wait_readable(*ends, timeout=NONE) == []
        assert blocking.wait_readable(*ends, timeout=SHORT) == []
        waits = waiting(lambda: blocking.wait_readable(*ends), ends[0])
        with pytest.raises(SocketBusyError):
            ends[1].recv(1)
        pairs[2][1].sendall(b"x")
        assert waits.result() == [ends[2]]
        pairs[0][1].close()
        assert blocking.wait_readable(*ends) == [ends[0], ends[2]]
        assert ends[2].recv(1) == b"x"
        assert blocking.wait_writable(ends[1], ends[3]) == [ends[1], ends[3]]


@threaded
def test_what_lies_in_buffers_can_be_read(authority):
    with tls_pair(authority) as (one, other):
        one.sendall(b"two bytes")
        assert other.recv(1) == b"t"
        assert blocking.wait_readable(other, timeout=NONE) == [other]
        assert other.input_port.read(1) == b"w"
        assert blocking.wait_readable(other, timeout=NONE) == [other]
        assert other.input_port.read(7) == b"o bytes"
        assert blocking.wait_readable(other, timeout=NONE) == []


@threaded
def test_a_listener_can_be_read_when_somebody_comes():
    with blocking.make_server_socket("127.0.0.1", 0) as server:
        waits = waiting(lambda: blocking.wait_readable(server), server)
        with blocking.make_client_socket("127.0.0.1", server.getsockname().port):
            assert waits.result() == [server]
            server.accept().close()


@threaded
def test_closing_one_ends_the_wait():
    with plain_pair() as (one, other):
        waits = waiting(lambda: blocking.wait_readable(one, other), other)
        other.close()
        assert waits.result() == [other]
        with pytest.raises(SocketClosedError):
            other.recv(1)
        with pytest.raises(SocketClosedError):
            blocking.wait_writable(other)
        assert blocking.wait_writable(one) == [one]


@pytest.mark.parametrize("timeout", [1, 0.5, True, "1"])
@threaded
def test_waits_refuse_what_is_no_time(timeout):
    with plain_pair() as (one, _), pytest.raises(TypeError, match="timeout"):
        blocking.wait_readable(one, timeout=timeout)


@threaded
def test_waits_refuse_what_is_no_socket():
    with pytest.raises(TypeError, match="socket"):
        blocking.wait_readable(3)


# The selector


class Calls:
    """What a selector has told."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, Any]] = []
        self.again: Any = None

    def __call__(self, sock: Any, error: Any, again: Any) -> None:
        self.again = again
        self.seen.append((sock, error))

    def wait(self, count: int) -> list[tuple[Any, Any]]:
        eventually(lambda: len(self.seen) >= count)
        return self.seen


@threaded
def test_a_selector_calls_once_for_each_add_and_again_when_asked():
    calls = Calls()
    with plain_pair() as (one, other), blocking.SocketSelector() as selector:
        selector.add(one, calls)
        assert len(selector) == 1
        with pytest.raises(SocketBusyError):
            one.recv(1)
        with pytest.raises(SocketBusyError):
            selector.add(one, calls)
        other.sendall(b"x")
        assert calls.wait(1) == [(one, None)]
        assert len(selector) == 0
        assert one.recv(1) == b"x"
        calls.again(SHORT)
        _, late = calls.wait(2)[1]
        assert isinstance(late, SocketReadTimeoutError)
        calls.again()
        other.sendall(b"y")
        assert calls.wait(3)[2] == (one, None)
        assert one.recv(1) == b"y"


@threaded
def test_a_selector_keeps_nothing_of_waits_that_are_over():
    calls = Calls()
    hour = timedelta(hours=1)
    with (
        plain_pair() as (idle, _),
        plain_pair() as (one, other),
        blocking.SocketSelector(hour) as selector,
    ):
        selector.add(idle, calls)
        selector.add(one, calls)
        for count in range(1, 201):
            other.sendall(b"x")
            calls.wait(count)
            assert one.recv(1) == b"x"
            calls.again()
        assert len(selector._ends) < 100


@threaded
def test_the_selectors_own_time_holds_where_add_says_nothing():
    calls = Calls()
    with plain_pair() as (one, _), blocking.SocketSelector(SHORT) as selector:
        selector.add(one, calls)
        assert isinstance(calls.wait(1)[0][1], SocketReadTimeoutError)
        selector.add(one, calls, timedelta(hours=1))
        selector.close()
        eventually(lambda: not len(selector))
        assert len(calls.seen) == 1


@pytest.mark.parametrize(
    "kind", [LookupError, SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError]
)
@threaded
def test_a_handler_may_block_and_may_fail(kind, logged_errors):
    release = threading.Event()
    calls = Calls()

    def fail(*_: object) -> None:
        raise kind("no such luck")

    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(blocking.SocketSelector())
        pairs = [blocking.open_socket_pair() for _ in range(3)]
        for pair in pairs:
            for each in pair:
                stack.enter_context(each)
            pair[1].sendall(b"x")
        selector.add(pairs[0][0], lambda *_: release.wait(10))
        selector.add(pairs[1][0], fail)
        selector.add(pairs[2][0], calls)
        assert calls.wait(1) == [(pairs[2][0], None)]
        eventually(lambda: logged_errors)
        release.set()
    assert [str(event["log_failure"].value) for event in logged_errors] == ["no such luck"]
    logged_errors.clear()


@threaded
def test_handlers_are_called_one_by_one_when_no_thread_can_be_started(monkeypatch):
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "netsock-selector-call":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    calls = Calls()
    with plain_pair() as (one, other), blocking.SocketSelector() as selector:
        for count in (1, 2):
            other.sendall(b"x")
            selector.add(one, calls)
            assert calls.wait(count)[-1] == (one, None)
            one.recv(1)


@threaded
def test_closing_a_socket_tells_its_handler_and_frees_the_number():
    calls = Calls()
    with plain_pair() as (one, other), blocking.SocketSelector() as selector:
        selector.add(one, calls)
        one.close()
        assert isinstance(calls.wait(1)[0][1], SocketClosedError)
        eventually(lambda: one._gone)
        assert len(selector) == 0
        assert other.recv(1) == b""


@threaded
def test_a_socket_that_is_closed_before_the_selector_looks_at_it_is_reported_once(monkeypatch):
    calls = Calls()
    with blocking.SocketSelector() as selector:
        # The steps of its thread, in the order in which they meet these calls.
        monkeypatch.setattr(selector, "_start", lambda: None)
        waiter = MultiWaiter()
        selector._take_added(waiter)
        with plain_pair() as (one, _):
            selector.add(one, calls)
        selector._drop_closed(waiter)
        selector._take_added(waiter)
        assert waiter.registered == {}
        [(_, error)] = calls.wait(1)
        assert isinstance(error, SocketClosedError)


@threaded
def test_a_closed_selector_refuses_and_lets_go():
    with plain_pair() as (one, other):
        selector = blocking.SocketSelector()
        selector.add(one, lambda *_: None)
        selector.close()
        selector.close()
        eventually(lambda: one._reader is None)
        with pytest.raises(SocketClosedError, match="selector"):
            selector.add(one, lambda *_: None)
        other.sendall(b"x")
        assert one.recv(1) == b"x"
        with pytest.raises(TypeError, match="on_read"):
            blocking.SocketSelector().add(one, "nothing to call")


@threaded
def test_a_thousand_sockets():
    count = 1000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(4096, hard)), hard))
    pairs = [blocking.open_socket_pair() for _ in range(count)]
    seen: list[Any] = []
    try:
        with blocking.SocketSelector() as selector:
            for one, _ in pairs:
                selector.add(one, lambda sock, error, _: seen.append((sock.recv(1), error)))
            assert len(selector) == count
            for _, other in pairs:
                other.sendall(b"x")
            eventually(lambda: len(seen) == count)
            assert set(seen) == {(b"x", None)}
            assert len(selector) == 0
    finally:
        for pair in pairs:
            for each in pair:
                each.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# STARTTLS


@threaded
def test_both_sides_shake_hands_and_talk(authority):
    with plain_pair() as (one, other):
        one.output_port.write(b"STARTTLS\n")
        one.output_port.flush()
        assert other.input_port.readline() == b"STARTTLS\n"
        serving = Background(lambda: blocking.start_tls(other, [authority.server_options()]))
        with (
            blocking.start_tls(one, authority.client_options(), "localhost") as client,
            serving.result() as server,
        ):
            assert type(client) is type(server) is blocking.BlockingTLSSocket
            assert client.node == "localhost"
            assert one.closed
            with pytest.raises(SocketClosedError):
                one.recv(1)
            client.sendall(b"secret")
            assert server.recv(10) == b"secret"
            assert client.tls_version == "TLSv1.3"


@threaded
def test_bytes_that_came_in_plain_text_are_not_left_behind(authority):
    with plain_pair() as (one, other):
        one.sendall(b"STARTTLS\ninjected")
        assert other.input_port.readline() == b"STARTTLS\n"
        with pytest.raises(SocketPortError):
            blocking.start_tls(other, authority.server_options())
        assert not other.closed
        assert other.input_port.read(8) == b"injected"


@threaded
def test_a_handshake_that_fails_closes_the_connection(authority, other_authority):
    with plain_pair() as (one, other):
        number = one.fileno()
        serving = Background(lambda: blocking.start_tls(other, authority.server_options()))
        with pytest.raises(CertificateVerificationError):
            blocking.start_tls(one, other_authority.client_options(), "localhost")
        assert isinstance(serving.error(), TLSError)
        assert one.closed
        assert number > 2


@threaded
def test_start_tls_refuses_what_it_cannot_use(authority):
    with plain_pair() as (one, _):
        for sock, options in ((3, authority.client_options()), (one, None)):
            with pytest.raises(TypeError):
                blocking.start_tls(sock, options)
        assert not one.closed
