"""Twisted's own tests of connections, run on our endpoints and with several reactors."""

from __future__ import annotations

import asyncio

import pytest
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.interfaces import IReactorFDSet
from twisted.internet.protocol import ClientFactory, Protocol, ServerFactory

from twisted_netsock import SocketOptions, client_endpoint, server_endpoint
from twisted_netsock.testing import CertificateAuthority

pytest.importorskip("hamcrest", reason="Twisted's own tests need PyHamcrest")

from twisted.internet.test.connectionmixins import (
    ConnectionTestsMixin,
    EndpointCreator,
)
from twisted.internet.test.reactormixins import ReactorBuilder
from twisted.internet.test.test_tcp import (
    AbortConnectionMixin,
    WriteSequenceTestsMixin,
)

AUTHORITY = CertificateAuthority()


class PlainCreator(EndpointCreator):
    """Makes plain endpoints of both sides."""

    server_options = SocketOptions()
    client_options = SocketOptions()

    def server(self, reactor):
        return server_endpoint(reactor, "127.0.0.1", 0, self.server_options)

    def client(self, reactor, serverAddress):  # noqa: N803 - Twisted owns the name
        return client_endpoint(
            reactor, serverAddress.host, serverAddress.port, self.client_options
        )


class TLSCreator(PlainCreator):
    """Makes TLS endpoints of both sides."""

    server_options = AUTHORITY.server_options()
    client_options = AUTHORITY.client_options()


class LayeredCreator(TLSCreator):
    """Makes TLS endpoints over Twisted's TCP endpoints."""

    def server(self, reactor):
        inner = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
        return server_endpoint(reactor, None, None, self.server_options, endpoint=inner)

    def client(self, reactor, serverAddress):  # noqa: N803
        inner = TCP4ClientEndpoint(reactor, serverAddress.host, serverAddress.port)
        return client_endpoint(reactor, "127.0.0.1", None, self.client_options, endpoint=inner)


class OursBelowCreator(TLSCreator):
    """Makes TLS endpoints over plain ones of ours."""

    def server(self, reactor):
        inner = server_endpoint(reactor, "127.0.0.1", 0)
        return server_endpoint(reactor, None, None, self.server_options, endpoint=inner)

    def client(self, reactor, serverAddress):  # noqa: N803
        inner = client_endpoint(reactor, serverAddress.host, serverAddress.port)
        return client_endpoint(reactor, "127.0.0.1", None, self.client_options, endpoint=inner)


class Builder(ReactorBuilder):
    """With each of the reactors that we promise to run on."""

    timeout = 15

    requiredInterfaces = (IReactorFDSet,)  # noqa: N815 - Twisted owns the name
    _reactors = (
        "twisted.internet.selectreactor.SelectReactor",
        "twisted.internet.pollreactor.PollReactor",
        "twisted.internet.epollreactor.EPollReactor",
        "twisted.internet.test.reactormixins.AsyncioSelectorReactor",
    )

    def runReactor(self, reactor, timeout=None):  # noqa: N802
        super().runReactor(reactor, timeout)
        # asyncio's reactor leaves a call of its own behind if it is stopped from a call.
        for call in reactor.getDelayedCalls():
            if call.func.__qualname__ == "AsyncioSelectorReactor.stop.<locals>.<lambda>":
                call.cancel()


@pytest.fixture(autouse=True, scope="module")
def _event_loop():
    """Twisted's builder wants a current event loop, to put it back."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


@pytest.fixture(autouse=True)
def _trial_looks_at_the_log(logged_errors):
    """The mixins flush what they expect, and trial fails them for the rest."""
    yield
    logged_errors.clear()


class Keeper(Protocol):
    """Tells its factory of its beginning and its end."""

    def connectionMade(self):
        self.factory.made.callback(self)

    def connectionLost(self, reason=None):
        self.factory.lost.callback(self)


def kept(factory_class):
    factory = factory_class.forProtocol(Keeper)
    factory.made, factory.lost = Deferred(), Deferred()
    return factory


class Connections(Builder, ConnectionTestsMixin, AbortConnectionMixin):
    """What they have in common."""


class PlainConnections(Connections):
    endpoints = PlainCreator()


class TLSConnections(Connections):
    endpoints = TLSCreator()

    # The client resets the connection before the server's handshake is done, and so before
    # the server has a protocol, which the test insists on.
    test_resumeProducingThrows = None  # noqa: N815


class LayeredConnections(TLSConnections):
    endpoints = LayeredCreator()

    # As above: Twisted's transport beneath has sent nothing yet when it is aborted.
    test_fullWriteBuffer = None  # noqa: N815


class OursBelowConnections(TLSConnections):
    endpoints = OursBelowCreator()


class Writing(WriteSequenceTestsMixin, Builder):
    """Connects for the tests of writeSequence."""

    # They set a limit of 500 bytes on the transport and expect every write to be queued. Ours
    # goes to the kernel at once, and the limit is 64 KiB: see test_transport_producers.py.
    test_streamingProducer = None  # noqa: N815
    test_nonStreamingProducer = None  # noqa: N815

    # It compares the text of the TypeError, which is ours.
    test_writeSequenceWithUnicodeRaisesException = None  # noqa: N815

    def getConnectedClientAndServer(self, reactor, interface, addressFamily):  # noqa: N802, N803
        server, client = kept(ServerFactory), kept(ClientFactory)
        gatherResults([client.lost, server.lost]).addBoth(lambda _: reactor.stop())
        made = gatherResults([client.made, server.made])

        def listening(port):
            self.endpoints.client(reactor, port.getHost()).connect(client)
            return made.addCallback(lambda both: (*both, port))

        return self.endpoints.server(reactor).listen(server).addCallback(listening)


class PlainWriting(Writing):
    endpoints = PlainCreator()


class TLSWriting(Writing):
    endpoints = TLSCreator()


class LayeredWriting(Writing):
    endpoints = LayeredCreator()


for builder in (
    PlainConnections,
    TLSConnections,
    LayeredConnections,
    OursBelowConnections,
    PlainWriting,
    TLSWriting,
    LayeredWriting,
):
    globals().update(builder.makeTestCaseClasses())
