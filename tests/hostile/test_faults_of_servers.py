"""
What every way to connect raises for a server that fails, at each stage.

That nothing of it is left, no descriptor, reader, timer or thread's wait, the fixtures
of every test see to.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from twisted.internet import reactor

from tests.support.faults import FAULTS, GARBAGE, misbehaving_server
from tests.support.loopback import LOOPBACK, resolving
from tests.support.protocols import full_listener, server_context
from tests.support.ways_in import ASKING, EndedByRelayError
from twisted_netsock import (
    HostNotFoundError,
    SocketBindError,
    SocketConnectionError,
    SocketConnectionLostError,
    SocketConnectionRefusedError,
    SocketConnectionTimeoutError,
    SocketOptions,
    SocketReadTimeoutError,
    TLSError,
    TLSHandshakeError,
    TLSTruncatedError,
)

pytestmark = pytest.mark.long

SOON = timedelta(seconds=0.2)
HANDSHAKE = ("before ClientHello", "before ServerHello", "in the handshake")
DATA = ("connected", "half-closed")

SEEN: dict[tuple[str, str], type[Exception]] = {
    **{(stage, "silence"): SocketConnectionTimeoutError for stage in HANDSHAKE},
    **{(stage, "end"): SocketConnectionLostError for stage in HANDSHAKE},
    **{(stage, "reset"): SocketConnectionLostError for stage in HANDSHAKE},
    **{(stage, fault): TLSHandshakeError for stage in HANDSHAKE for fault in GARBAGE},
    **{(stage, "silence"): SocketReadTimeoutError for stage in DATA},
    **{(stage, "end"): TLSTruncatedError for stage in DATA},
    **{(stage, "reset"): SocketConnectionLostError for stage in DATA},
    **{(stage, fault): TLSError for stage in DATA for fault in GARBAGE},
}
"""What the caller sees, by stage and fault; of a relay its client sees a reset instead."""

IP_LOCAL_PORT_RANGE = 51
"""An option of Linux 6.3; the standard library does not name it."""

every_way = pytest.mark.parametrize("way", ASKING)


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port that is bound, and where nobody listens."""
    with socket.socket() as sock:
        sock.bind((LOOPBACK, 0))
        yield sock.getsockname()[1]


async def failure_of(way: str, *arguments: Any) -> Exception:
    """Ask in this *way*, and return what it fails with."""
    try:
        answer = await ASKING[way](*arguments)
    except Exception as error:  # noqa: BLE001 - the test looks at it
        return error
    raise AssertionError(f"there was an answer: {answer!r}")


def check(way: str, error: Exception, expected: type[Exception], reason: str) -> None:
    """Check that *error* is of just that class; of a relay, that it ended for *reason*."""
    if way == "relay":
        assert isinstance(error, EndedByRelayError), repr(error)
        assert error.reason == reason
    elif type(error) is SocketConnectionError and error.errno == errno.ECONNRESET:
        # Reset before the connect itself was looked at: its own error, not that of what follows.
        assert expected is SocketConnectionLostError
    else:
        assert type(error) is expected, repr(error)


@every_way
@pytest.mark.parametrize("stage", [*HANDSHAKE, *DATA])
@pytest.mark.parametrize("fault", FAULTS)
async def test_each_fault_of_a_tls_server_is_reported_by_its_class(
    way, stage, fault, authority, tmp_path
):
    context = server_context(authority.issue("localhost", LOOPBACK), tmp_path)
    limit = "read_timeout" if stage in DATA else "handshake_timeout"
    fields = {limit: SOON} if fault == "silence" else {}
    options = authority.client_options(close_timeout=SOON, **fields)
    async with misbehaving_server(stage, fault, context) as port:
        error = await failure_of(way, LOOPBACK, port, options, stage == "half-closed")
    check(way, error, SEEN[stage, fault], "backend-lost" if stage in DATA else "unreachable")
    if isinstance(error, SocketConnectionTimeoutError):
        assert error.stage == "handshake"


@every_way
@pytest.mark.parametrize("stage", DATA)
@pytest.mark.parametrize("fault", ["silence", "reset"])
async def test_each_fault_of_a_plain_server_is_reported_by_its_class(way, stage, fault):
    options = SocketOptions(read_timeout=SOON if fault == "silence" else None)
    async with misbehaving_server(stage, fault, None) as port:
        error = await failure_of(way, LOOPBACK, port, options, stage == "half-closed")
    check(way, error, SEEN[stage, fault], "backend-lost")


@every_way
@pytest.mark.parametrize("stage", DATA)
async def test_the_end_of_a_plain_stream_is_no_fault(way, stage):
    async with misbehaving_server(stage, "end", None) as port:
        assert await ASKING[way](LOOPBACK, port, SocketOptions(), stage == "half-closed") == b""


@every_way
async def test_a_tls_client_never_speaks_to_a_plain_server(way, authority):
    """The server speaks first: in clear text."""
    async with misbehaving_server("before ClientHello", "plain HTTP", None) as port:
        error = await failure_of(way, LOOPBACK, port, authority.client_options())
    check(way, error, TLSHandshakeError, "unreachable")


@every_way
async def test_a_server_that_never_takes_the_connection_is_given_up(way):
    with full_listener() as listener:
        options = SocketOptions(connection_timeout=SOON)
        error = await failure_of(way, LOOPBACK, listener.getsockname()[1], options)
    check(way, error, SocketConnectionTimeoutError, "unreachable")
    assert getattr(error, "stage", "connect") == "connect"


@every_way
async def test_a_port_where_nobody_listens_refuses(way, taken_port):
    error = await failure_of(way, LOOPBACK, taken_port, SocketOptions())
    check(way, error, SocketConnectionRefusedError, "unreachable")


@every_way
async def test_a_source_port_that_is_taken_is_reported_at_once(way, taken_port):
    options = SocketOptions(local_address=(LOOPBACK, taken_port))
    with full_listener() as listener:
        error = await failure_of(way, LOOPBACK, listener.getsockname()[1], options)
    check(way, error, SocketBindError, "unreachable")


def chooses_source_ports() -> bool:
    """Tell whether a socket may be given a range of ports of its own."""
    with socket.socket() as sock:
        try:
            sock.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, 0)
        except OSError:
            return False
    return True


@every_way
@pytest.mark.skipif(not chooses_source_ports(), reason="needs Linux 6.3")
async def test_a_lack_of_source_ports_is_reported_at_once(way, taken_port):
    one = struct.pack("=I", taken_port << 16 | taken_port)
    only = (socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, one)
    options = SocketOptions(socket_options=[only])
    with full_listener() as listener:
        error = await failure_of(way, LOOPBACK, listener.getsockname()[1], options)
    check(way, error, SocketConnectionError, "unreachable")
    assert getattr(error, "errno", errno.EADDRNOTAVAIL) == errno.EADDRNOTAVAIL


# Names


@every_way
async def test_a_look_up_that_never_ends_is_given_up(way):
    with resolving({}, delay=None):
        options = SocketOptions(connection_timeout=SOON)
        error = await failure_of(way, "slow.invalid", 80, options)
    check(way, error, SocketConnectionTimeoutError, "unreachable")
    assert getattr(error, "stage", "look-up") == "look-up"


@every_way
async def test_a_name_without_addresses_is_not_found(way):
    with resolving({}):
        error = await failure_of(way, "empty.invalid", 80, SocketOptions())
    check(way, error, HostNotFoundError, "unreachable")


@every_way
async def test_a_look_up_that_fails_is_reported_at_once(way):
    """No name has a part of more than 63 characters: the resolver asks nobody."""
    error = await failure_of(way, f"{'a' * 70}.invalid", 80, SocketOptions())
    check(way, error, HostNotFoundError, "unreachable")


@every_way
async def test_a_look_up_that_takes_its_time_does_not_fail(way):
    async with misbehaving_server("connected", "end", None) as port:
        with resolving({"late.invalid": [LOOPBACK]}, delay=0.1):
            assert await ASKING[way]("late.invalid", port, SocketOptions()) == b""


HUGE = {"huge.invalid": [f"127.1.{n >> 8}.{n & 255}" for n in range(10_000)]}
MOST_TEXT = 2000


@pytest.mark.parametrize("way", ["socket", "relay"])
async def test_ten_thousand_addresses_are_all_tried_and_told_in_few_words(
    way, taken_port, log_lines
):
    with resolving(HUGE):
        error = await failure_of(way, "huge.invalid", taken_port, SocketOptions())
    check(way, error, SocketConnectionRefusedError, "unreachable")
    if way == "socket":
        assert len(error.attempts) == len(HUGE["huge.invalid"])
        assert "127.1.0.0" in str(error)
        assert f"and {len(error.attempts) - 8} more" in str(error)
    assert max(map(len, [str(error), *log_lines])) < MOST_TEXT


async def test_addresses_that_fail_at_once_leave_the_reactor_its_turns(taken_port):
    def tick() -> None:
        ticks.append(None)
        timers[0] = reactor.callLater(0, tick)

    ticks: list[None] = []
    timers = [reactor.callLater(0, tick)]
    options = SocketOptions(local_address=(LOOPBACK, taken_port))
    with resolving(HUGE):
        error = await failure_of("socket", "huge.invalid", 80, options)
    timers[0].cancel()
    assert isinstance(error, SocketBindError)
    assert len(ticks) > 100
