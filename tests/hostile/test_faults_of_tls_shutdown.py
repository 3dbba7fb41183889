"""
What every way to connect makes of a server that fails while its client closes.

The client has asked, waits for no answer and closes: with TLS it says close_notify, and
the server does something else than to say its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from tests.support.faults import FAULTS, QUESTION, misbehaving_server
from tests.support.loopback import LOOPBACK
from tests.support.peers import the_reactor, until
from tests.support.protocols import Protocols, server_context
from tests.support.streams import in_thread
from tests.support.threads import no_descriptors
from tests.support.ways_in import relaying
from twisted_netsock import (
    SocketOptions,
    blocking,
    client_endpoint,
    make_client_socket,
    make_client_tls_socket,
    server_endpoint,
)
from twisted_netsock.testing import CertificateAuthority

pytestmark = pytest.mark.long

SOON = timedelta(seconds=0.2)

Leaving = Callable[[int, Any], Awaitable[None]]
"""Connects to a port with a record, asks and closes, twice."""


async def leave_socket(port: int, options: Any) -> None:
    sock = await make_client_tls_socket(LOOPBACK, port, options)
    await sock.sendall(QUESTION)
    for _ in range(2):
        assert await sock.close() is None


async def leave_endpoint(port: int, options: Any) -> None:
    factory = Protocols()
    protocol = await client_endpoint(the_reactor(), LOOPBACK, port, options).connect(factory)
    protocol.transport.write(QUESTION)
    for _ in range(2):
        protocol.transport.loseConnection()
    await protocol.loses()


async def leave_thread(port: int, options: Any) -> None:
    def work() -> None:
        sock = blocking.make_client_tls_socket(LOOPBACK, port, options)
        sock.sendall(QUESTION)
        for _ in range(2):
            sock.close()

    await in_thread(work)
    await no_descriptors()


async def leave_relay(port: int, options: Any) -> None:
    """Leave a relay, whose backend *options* are for, and which ends with its client."""
    front = server_endpoint(the_reactor(), LOOPBACK, 0)
    back = client_endpoint(the_reactor(), LOOPBACK, port, options)
    async with relaying(front, back) as relay:
        sock = await make_client_socket(LOOPBACK, relay.port, SocketOptions())
        await sock.sendall(QUESTION)
        await sock.close()
        await until(lambda: relay.ended)


LEAVING: dict[str, Leaving] = {
    "socket": leave_socket,
    "endpoint": leave_endpoint,
    "thread": leave_thread,
    "relay": leave_relay,
}


@pytest.mark.parametrize("way", LEAVING)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("stage", ["connected", "half-closed"])
async def test_a_close_is_done_soon_whatever_the_server_does(
    way: str,
    stage: str,
    fault: str,
    authority: CertificateAuthority,
    tmp_path: Any,
) -> None:
    """At the stage "half-closed" the server waits for close_notify first."""
    context = server_context(authority.issue("localhost", LOOPBACK), tmp_path)
    # A relay passes the end on, and waits for the backend's: as long as it may.
    limits = {"read_timeout": SOON} if way == "relay" else {}
    options = authority.client_options(close_timeout=SOON, **limits)
    async with misbehaving_server(stage, fault, context) as port:
        await LEAVING[way](port, options)
