"""Twisted's own protocols over our endpoints: HTTP and lines, plain and TLS."""

# ruff: noqa: N802 - Twisted owns the names

from __future__ import annotations

from io import BytesIO

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory
from twisted.internet.task import Cooperator
from twisted.protocols.basic import FileSender, LineReceiver
from twisted.protocols.policies import TimeoutFactory, WrappingFactory
from twisted.web.client import Agent, FileBodyProducer, HTTPConnectionPool, readBody
from twisted.web.iweb import IAgentEndpointFactory
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site
from zope.interface import implementer

from tests.support.clocks import until
from tests.support.loopback import LOOPBACK
from tests.support.protocols import BULK
from twisted_netsock import (
    client_endpoint,
    server_endpoint,
)

# HTTP


class Big(Resource):
    """Sends ten megabytes through a producer, and back what it is given."""

    isLeaf = True

    def render_GET(self, request):
        request.setHeader(b"secure", b"yes" if request.isSecure() else b"no")
        FileSender().beginFileTransfer(BytesIO(BULK), request).addCallback(
            lambda _: request.finish()
        )
        return NOT_DONE_YET

    def render_POST(self, request):
        return request.content.read()


@implementer(IAgentEndpointFactory)
class Endpoints:
    """Makes our endpoints for an agent."""

    def __init__(self, options):
        self.options = options

    def endpointForURI(self, uri):
        return client_endpoint(reactor, uri.host.decode(), uri.port, self.options)


@pytest.mark.filterwarnings("ignore:Using readBody:DeprecationWarning")
async def test_http_both_ways(kind):
    site = WrappingFactory(Site(Big(), reactor=reactor))
    port = await server_endpoint(reactor, LOOPBACK, 0, kind.server()).listen(site)
    pool = HTTPConnectionPool(reactor, persistent=True)
    agent = Agent.usingEndpointFactory(reactor, Endpoints(kind.client()), pool=pool)
    uri = f"{'https' if kind.tls else 'http'}://{LOOPBACK}:{port.getHost().port}/".encode()
    try:
        answer = await agent.request(b"GET", uri)
        assert await readBody(answer) == BULK
        assert answer.headers.getRawHeaders(b"secure") == [b"yes" if kind.tls else b"no"]
        quickly = Cooperator(scheduler=lambda call: reactor.callLater(0, call))
        body = FileBodyProducer(BytesIO(BULK), cooperator=quickly)
        answer = await agent.request(b"POST", uri, bodyProducer=body)
        assert await readBody(answer) == BULK
    finally:
        await pool.closeCachedConnections()
        await port.stopListening()
        await until(lambda: not site.protocols)


# Lines, and what wraps protocols


async def test_lines_through_a_wrapping_factory(kind):
    class Answering(LineReceiver):
        def lineReceived(self, line):
            self.sendLine(line.upper())
            if line == b"enough":
                self.transport.loseConnection()

    class Asking(LineReceiver):
        def connectionMade(self):
            self.got = []
            self.lost = Deferred()
            for number in range(1000):
                self.sendLine(b"line %d" % number)
            self.sendLine(b"enough")
            self.sendLine(b"too much")

        def lineReceived(self, line):
            self.got.append(line)

        def connectionLost(self, reason):
            self.lost.callback(None)

    wrapped = TimeoutFactory(Factory.forProtocol(Answering), timeoutPeriod=None)
    port = await server_endpoint(reactor, LOOPBACK, 0, kind.server()).listen(wrapped)
    where = client_endpoint(reactor, LOOPBACK, port.getHost().port, kind.client())
    client = await where.connect(Factory.forProtocol(Asking))
    await client.lost
    await until(lambda: not wrapped.protocols)
    await port.stopListening()
    assert client.got == [b"LINE %d" % number for number in range(1000)] + [b"ENOUGH"]
