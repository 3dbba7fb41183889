"""Health checks cost no backend a connection, and are a line a minute."""

from __future__ import annotations

import re

import pytest
from twisted.internet import reactor
from twisted.internet.task import deferLater

from tests.support.clocks import turns, until
from tests.support.loopback import LOOPBACK
from tests.support.processes import find, free_port, needs, started
from tests.support.relay import (
    FRONTS,
    certificate_files,
    exchange,
    listening_backend,
    place,
    relaying,
)

# Fixtures.
assert certificate_files
assert place

pytestmark = [
    # Twisted's own TLS hands objects of the old kind to pyOpenSSL.
    pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning"),
]


def ended(relay):
    return relay.service.snapshot()["connections"]["ended"]


def nobody_came(backend):
    backend.listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        backend.listener.accept()


@pytest.mark.parametrize("manner", ["end", "reset"])
@pytest.mark.parametrize("front", ["netsock", "netsock-unix", "netsock-timed"])
async def test_who_goes_at_once_gets_no_backend(front, manner, place, log_lines):
    if manner == "reset" and FRONTS[front].unix:
        pytest.skip("a UNIX socket has no reset")
    with listening_backend("netsock", place) as backend:
        async with relaying(front, backend, place) as relay:
            for count in range(1, 4):
                peer = relay.connect_raw()
                peer.close() if manner == "end" else peer.reset()
                await until(lambda: ended(relay)["health-check"] == count)  # noqa: B023
            nobody_came(backend)
            # Those who stay may wait for a server that speaks first.
            client = await relay.connect()
            server = await relay.accept()
            await exchange(client, server)
    lines = [line for line in log_lines if "health checks" in line]
    assert len(lines) == 1
    assert re.search(r"health checks: 1, the last one from ", lines[0])


@pytest.mark.parametrize("manner", ["close_notify", "truncation", "reset"])
async def test_one_that_shakes_hands_gets_none_either(manner, place):
    with listening_backend("netsock", place) as backend:
        async with relaying("netsock-tls", backend, place) as relay:
            peer = await relay.connect()
            {"close_notify": peer.end, "truncation": peer.truncate, "reset": peer.reset}[manner]()
            await until(lambda: ended(relay)["health-check"])
            nobody_came(backend)


@pytest.mark.once
@pytest.mark.long
@needs("haproxy")
@pytest.mark.parametrize("front", ["netsock", "netsock-tls"])
async def test_those_of_haproxy_do(front, place, log_lines):
    port = free_port()
    with listening_backend("netsock", place) as backend:
        async with relaying(front, backend, place) as relay:
            check = "check inter 20ms" + (" check-ssl verify none" if "tls" in front else "")
            (place.directory / "haproxy.cfg").write_text(
                "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 5s\n"
                f"  timeout server 5s\nlisten it\n  bind {LOOPBACK}:{port}\n"
                f"  server relay {LOOPBACK}:{relay.address.port} {check}\n"
            )
            configuration = place.directory / "haproxy.cfg"
            log = place.directory / "haproxy.log"
            with started(find("haproxy"), "-db", "-f", configuration, output=log):
                if FRONTS[front].tls:
                    await until(lambda: ended(relay)["health-check"] >= 10)
                else:
                    # It resets: most have gone before they could be accepted.
                    await deferLater(reactor, 0.5)
            # Some are late on a busy machine: then this process was at them before they had gone.
            await turns()
    assert len([line for line in log_lines if "health checks" in line]) <= 1
