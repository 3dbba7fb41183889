"""
What every way to serve makes of a client that fails, at each stage.

Before the handshake is done an application hears nothing of it; then it is reported by the
class of an error. Others are served all the same. That nothing of it is left, the
fixtures of every test see to.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest

from tests.support.clocks import until
from tests.support.faults import ANSWER, FAULTS, GARBAGE, QUESTION, good_client, misbehaving_client
from tests.support.protocols import client_context
from tests.support.streams import in_thread
from tests.support.ways_in import SERVING
from twisted_netsock import (
    SocketConnectionLostError,
    SocketOptions,
    SocketReadTimeoutError,
    TLSError,
    TLSTruncatedError,
)

pytestmark = pytest.mark.long

SOON = timedelta(seconds=0.2)
LATER = timedelta(seconds=0.7)
"""Time enough for a client to ask before it falls silent."""

HEADER = b"PROXY TCP4 192.0.2.1 192.0.2.2 50000 443\r\n"

SEEN: dict[str, type[Exception]] = {
    "silence": SocketReadTimeoutError,
    "end": TLSTruncatedError,
    "reset": SocketConnectionLostError,
    **dict.fromkeys(GARBAGE, TLSError),
}
"""What the application sees of a connected client; of a relay, a backend sees a reset."""

FAILED = re.compile("TLS handshake with .* failed: |connection from .* refused: ")

every_way = pytest.mark.parametrize("way", SERVING)
every_fault = pytest.mark.parametrize("fault", FAULTS)


async def serves_others(served: Any, context: Any, header: bytes = b"") -> None:
    assert await in_thread(good_client, served.port, context, header) == ANSWER


def failed(log_lines: list[str]) -> list[str]:
    """Return what was logged of connections that came to nothing."""
    return [line for line in log_lines if FAILED.match(line)]


@every_way
@pytest.mark.parametrize("stage", ["before ClientHello", "in ClientHello", "in the handshake"])
@every_fault
async def test_a_handshake_that_fails_is_logged_and_reaches_no_application(
    way, stage, fault, authority, log_lines
):
    context = client_context(authority)
    fields = {"handshake_timeout": SOON} if fault == "silence" else {}
    options = authority.server_options(**fields)
    async with SERVING[way](options) as served:
        async with misbehaving_client(served.port, stage, fault, context):
            await until(lambda: failed(log_lines))
            assert served.seen == []
            assert not served.ended()
        if fault != "silence":
            await serves_others(served, context)
            await until(lambda: served.seen == [QUESTION])
    assert len(failed(log_lines)) == 1


BEGUN = {"no byte": b"", "half": HEADER[:17]}


@every_way
@pytest.mark.parametrize("begun", BEGUN)
@every_fault
async def test_a_proxy_header_that_fails_is_logged_and_reaches_no_application(
    way, begun, fault, authority, log_lines
):
    context = client_context(authority)
    fields = {"handshake_timeout": SOON} if fault == "silence" else {}
    options = authority.server_options(proxy_protocol="v1", **fields)
    async with SERVING[way](options) as served:
        client = misbehaving_client(
            served.port, "before ClientHello", fault, context, header=BEGUN[begun]
        )
        async with client:
            await until(lambda: failed(log_lines))
            assert served.seen == []
        if fault != "silence":
            await serves_others(served, context, HEADER)
            await until(lambda: served.seen == [QUESTION])
    (line,) = failed(log_lines)
    assert "TLS" not in line


@every_way
@pytest.mark.parametrize("half", [False, True], ids=["both ways open", "half-closed"])
@pytest.mark.parametrize(
    ("tls", "fault"),
    [*((True, fault) for fault in FAULTS), *((False, fault) for fault in FAULTS[:3])],
    ids=lambda value: {True: "tls", False: "plain"}.get(value, value),
)
async def test_a_connected_client_that_fails_is_reported_by_the_class_of_the_error(
    way, tls, fault, half, authority
):
    """
    Without TLS all bytes are data, so there is no garbage.

    A half-closed server has sent its close_notify, which such a client never answers.
    """
    context = client_context(authority) if tls else None
    fields = {"read_timeout": LATER} if fault == "silence" else {}
    options = authority.server_options(**fields) if tls else SocketOptions(**fields)
    expected: Any = QUESTION if fault == "end" and not tls else SEEN[fault]
    if way == "relay" and expected is not QUESTION:
        expected = SocketConnectionLostError
    async with SERVING[way](options, half) as served:
        async with misbehaving_client(served.port, "connected", fault, context):
            await until(lambda: served.seen)
            assert served.seen == [expected]
        if fault != "silence":
            await serves_others(served, context)
            await until(lambda: served.seen == [expected, QUESTION])
        if way == "relay":
            ended = served.ended()
            broken = ended.get("client-lost", 0) + ended.get("no-close-notify", 0)
            assert broken == (expected is not QUESTION)
