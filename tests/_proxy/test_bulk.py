"""Both directions at once through a proxy, by threads and awaiting: OpenSSL takes turns."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from tests.support.loopback import LOOPBACK
from tests.support.proxies import proxying, through
from tests.support.streams import in_thread, read_exactly
from tests.support.threads import no_descriptors
from twisted_netsock import (
    SocketOptions,
    blocking,
    make_client_socket,
    make_client_tls_socket,
    make_server_socket,
    make_server_tls_socket,
)

NODE = "target.invalid"
DATA = random.Random(1).randbytes(3_000_000)


async def exchange(sock: Any) -> bool:
    """Send all while all is received; return whether that was right."""
    sending = sock.sendall(DATA)
    received = await read_exactly(sock, len(DATA))
    await sending
    return received == DATA


def exchange_in_threads(make: Any, port: int, options: SocketOptions) -> bool:
    with make(NODE, port, options) as sock:
        sending = threading.Thread(target=sock.sendall, args=(DATA,))
        sending.start()
        received = sock.input_port.read(len(DATA))
        sending.join()
        return received == DATA


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("way", ["threads", "awaiting"])
async def test_both_directions_pass_whole_through_tls_with_the_proxy(way, tls, authority):
    options = authority.client_options() if tls else SocketOptions()
    server = (
        await make_server_tls_socket(LOOPBACK, 0, authority.server_options(NODE))
        if tls
        else await make_server_socket(LOOPBACK, 0)
    )

    async def serve() -> bool:
        async with await server.accept() as peer:
            return await exchange(peer)

    async with server, proxying("https") as proxy:
        serving = Deferred.fromCoroutine(serve())
        port = server.getsockname().port
        options = options.replace(**through(proxy))
        if way == "threads":
            maker = blocking.make_client_tls_socket if tls else blocking.make_client_socket
            assert await in_thread(exchange_in_threads, maker, port, options)
        else:
            make: Any = make_client_tls_socket if tls else make_client_socket
            async with await make(NODE, port, options) as sock:
                assert await exchange(sock)
        assert await serving
    await no_descriptors()
