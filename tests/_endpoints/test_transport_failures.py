"""Connections that end because a protocol raises an exception, or the reactor stops."""

from __future__ import annotations

import subprocess
import sys

import pytest
from twisted.internet import reactor
from twisted.internet.interfaces import IHandshakeListener
from zope.interface import implementer

from tests.support.clocks import until
from tests.support.package_sources import ROOT
from tests.support.protocols import (
    HalfCloser,
    Kind,
    Protocols,
    Recorder,
    Viewer,
    connected,
    listening,
)
from twisted_netsock import client_endpoint


def logged_once(logged_errors, kind=ZeroDivisionError):
    """Check that one exception was logged, and take note of it."""
    assert [event["log_failure"].type for event in logged_errors] == [kind]
    logged_errors.clear()


async def test_an_exception_of_data_received_ends_the_connection(kind, logged_errors):
    class Failing(Recorder):
        def dataReceived(self, data):
            raise ZeroDivisionError("cannot take this")

    async with connected(kind, server=Failing) as pair:
        pair.client.transport.write(b"x")
        assert isinstance(await pair.server.loses(), ZeroDivisionError)
        await pair.client.loses()
    logged_once(logged_errors)


async def test_an_exception_of_view_received_ends_the_connection(kind, logged_errors):
    class Failing(Viewer):
        def view_received(self, view):
            raise ZeroDivisionError("cannot take this")

    async with connected(kind, server=Failing) as pair:
        pair.client.transport.write(b"x")
        assert isinstance(await pair.server.loses(), ZeroDivisionError)
        await pair.client.loses()
    logged_once(logged_errors)


@pytest.mark.parametrize("method", ["readConnectionLost", "writeConnectionLost"])
async def test_an_exception_about_a_half_ends_the_connection(kind, method, logged_errors):
    def fail(self):
        raise ZeroDivisionError("cannot take this")

    failing = type("Failing", (HalfCloser,), {method: fail})
    async with connected(kind, Recorder, failing) as pair:
        half = pair.server if method == "writeConnectionLost" else pair.client
        half.transport.loseWriteConnection()
        assert isinstance(await pair.server.loses(), ZeroDivisionError)
        await pair.client.loses()
    logged_once(logged_errors)


async def test_an_exception_of_connection_lost_is_logged(kind, logged_errors):
    class Failing(Recorder):
        def connectionLost(self, reason=None):
            super().connectionLost(reason)
            raise ZeroDivisionError("cannot take this")

    clients = Protocols(Failing)
    servers = Protocols()
    async with listening(kind.server(), servers) as port:
        host = port.getHost()
        client = await client_endpoint(reactor, host.host, host.port, kind.client()).connect(
            clients
        )
        client.transport.loseConnection()
        await client.loses()
        await until(lambda: clients.life == ["start", "stop"])
    logged_once(logged_errors)


async def test_an_exception_of_handshake_completed_ends_the_connection(authority, logged_errors):
    @implementer(IHandshakeListener)
    class Failing(Recorder):
        def handshakeCompleted(self):
            raise ZeroDivisionError("cannot take this")

    async with connected(Kind(authority, tls=True), server=Failing) as pair:
        assert isinstance(await pair.server.loses(), ZeroDivisionError)
        await pair.client.loses()
    logged_once(logged_errors)


async def test_an_exception_leaves_other_connections_alone(kind, logged_errors):
    class Failing(Recorder):
        def dataReceived(self, data):
            super().dataReceived(data)
            if data == b"fail":
                raise ZeroDivisionError("as you wish")

    servers, clients = Protocols(Failing), Protocols()
    async with listening(kind.server(), servers) as port:
        host = port.getHost()
        where = client_endpoint(reactor, host.host, host.port, kind.client())
        one, other = await where.connect(clients), await where.connect(clients)
        one.transport.write(b"fail")
        await one.loses()
        other.transport.write(b"fine")
        await until(lambda: any(each.received == b"fine" for each in servers.built))
        assert other.events == ["made"]
        await clients.all_lost()
    logged_once(logged_errors)


SHUTDOWN = """
import sys
from twisted.internet.{0}reactor import install
install()
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted_netsock import client_endpoint, server_endpoint
from twisted_netsock.testing import CertificateAuthority
from tests.support.protocols import Protocols, Recorder

async def main():
    authority = CertificateAuthority()
    servers, clients = Protocols(), Protocols()
    where = server_endpoint(reactor, "127.0.0.1", 0, authority.server_options())
    host = (await where.listen(servers)).getHost()
    where = client_endpoint(reactor, host.host, host.port, authority.client_options())
    client = await where.connect(clients)
    client.transport.pauseProducing()
    server = await servers.connected()
    reactor.addSystemEventTrigger("after", "shutdown", lambda: print(client.events, server.events))
    reactor.stop()

reactor.callWhenRunning(lambda: Deferred.fromCoroutine(main()))
reactor.run()
"""


@pytest.mark.parametrize("name", ["select", "epoll", "asyncio"])
def test_every_transport_hears_of_the_reactor_s_end(name):
    """Paused ones too."""
    found = subprocess.run(
        [sys.executable, "-c", SHUTDOWN.format(name)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert found.stderr == ""
    assert found.stdout == "['made', 'lost'] ['made', 'lost']\n"
