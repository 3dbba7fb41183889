"""
`ClientEndpointContract` and `ServerEndpointContract`: tests for anybody's stream endpoints.

What Twisted's own tests of endpoints ask of a reactor in memory is asked here
of real connections, and what protocols expect of a transport with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final, cast

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError, ConnectError, NoProtocol
from twisted.internet.interfaces import (
    IAddress,
    IListeningPort,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from zope.interface.verify import verifyObject

from .._public import public_in
from ._contract import Recorder, RecordingFactory, check, equal
from ._transport_contract import EndpointContract

__all__ = ["ClientEndpointContract", "ServerEndpointContract"]

_SEVERAL: Final = 3
_MOST_STAGES: Final = 200


class _Mistake(Exception):  # noqa: N818 - it stands for whatever a user's code raises
    """What a factory raises in these tests."""


def _mistake() -> Recorder:
    raise _Mistake


def _is_over(factory: RecordingFactory) -> bool:
    """Return whether the factory was stopped as often as it was started."""
    return factory.life.count("start") == factory.life.count("stop")


@public_in("twisted_netsock.testing")
class ClientEndpointContract(EndpointContract):
    """
    Tests for a client endpoint: mix it into a class of tests.

    The class supplies `make_client_endpoint`, which returns the endpoint to test,
    and `make_server_endpoint`, which returns any endpoint that it can connect to.
    The tests are coroutine methods: `twisted.trial.unittest.TestCase` runs them
    (under trial and under pytest), and so does every runner that runs ``async
    def`` tests on the reactor. All waits have a limit; what a test begins has
    ended when it is over, unless the endpoint is at fault.
    """

    _tests_client: ClassVar[bool] = True

    async def test_the_endpoint_provides_its_interface(self) -> None:
        """As ``verifyObject`` sees it."""
        async with self._listening(RecordingFactory()) as port:
            endpoint = self.make_client_endpoint(port.getHost())
            check(verifyObject(IStreamClientEndpoint, endpoint), "it must provide the interface")

    async def test_connect_fires_with_the_protocol_that_was_built(self) -> None:
        """Once it is connected."""
        clients, servers = RecordingFactory(), RecordingFactory()
        async with self._listening(servers, clients) as port:
            endpoint = self.make_client_endpoint(port.getHost())
            protocol = await self._soon(endpoint.connect(clients), "connect fires")
            equal(len(clients.built), 1, "how many protocols were built")
            check(
                protocol is clients.built[0],
                f"connect must fire with the protocol that was built, not {protocol!r}",
            )
            equal(clients.built[0].events, ["made"], "what had been called by then")

    async def test_the_factory_is_told_where_it_is_connected(self) -> None:
        """By the argument of ``buildProtocol``."""
        clients, servers = RecordingFactory(), RecordingFactory()
        async with self._listening(servers, clients) as port:
            await self._soon(
                self.make_client_endpoint(port.getHost()).connect(clients), "connect fires"
            )
            equal(clients.addresses, [port.getHost()], "what buildProtocol was given")
            equal(clients.built[0].wire.getPeer(), port.getHost(), "the transport's peer")

    async def test_the_factory_starts_before_and_stops_after_the_connection(self) -> None:
        """By its ``doStart`` and ``doStop``, once each."""
        clients, servers = RecordingFactory(), RecordingFactory()
        async with self._listening(servers, clients) as port:
            endpoint = self.make_client_endpoint(port.getHost())
            await self._soon(endpoint.connect(clients), "connect fires")
            equal(clients.life, ["start"], "the factory's life while it is connected")
            clients.built[0].wire.loseConnection()
            await self._until(lambda: clients.life == ["start", "stop"], "the factory is stopped")

    async def test_one_endpoint_connects_any_number_of_times(self) -> None:
        """Also at once."""
        clients, servers = RecordingFactory(), RecordingFactory()
        async with self._listening(servers, clients) as port:
            endpoint = self.make_client_endpoint(port.getHost())
            connecting = [endpoint.connect(clients) for _ in range(_SEVERAL)]
            protocols = [await self._soon(each, "connect fires") for each in connecting]
            equal(len(set(protocols)), _SEVERAL, "how many protocols there are")
            await self._until(
                lambda: len(servers.built) == _SEVERAL, "the server has three connections"
            )

    async def test_a_factory_that_builds_nothing_fails_the_connect(self) -> None:
        """With ``NoProtocol``, and the connection is closed."""
        clients, servers = RecordingFactory(lambda: None), RecordingFactory()
        async with self._listening(servers, clients) as port:
            connecting = self.make_client_endpoint(port.getHost()).connect(clients)
            await self._fails(connecting, NoProtocol, "a connect without protocol")
            await self._gone(servers, clients)

    async def test_an_exception_of_build_protocol_fails_the_connect(self) -> None:
        """With that exception, and the connection is closed."""
        clients, servers = RecordingFactory(_mistake), RecordingFactory()
        async with self._listening(servers, clients) as port:
            connecting = self.make_client_endpoint(port.getHost()).connect(clients)
            await self._fails(connecting, _Mistake, "a connect whose buildProtocol raises")
            await self._gone(servers, clients)

    async def _gone(self, servers: RecordingFactory, clients: RecordingFactory) -> None:
        """Wait until nothing is left of a connection that no protocol was built for."""
        await self._until(lambda: servers.built and servers.all_lost, "the server's end is lost")
        await self._until(lambda: clients.life == ["start", "stop"], "the factory is stopped")

    async def test_a_refused_connection_is_a_connect_error(self) -> None:
        """Where nobody listens; no protocol is built."""
        clients = RecordingFactory()
        async with self._listening(RecordingFactory()) as port:
            address = port.getHost()
        connecting = self.make_client_endpoint(address).connect(clients)
        await self._fails(connecting, ConnectError, "a connect where nobody listens")
        equal(clients.built, [], "what was built")
        await self._until(lambda: _is_over(clients), "the factory is stopped")

    async def test_a_connect_can_be_cancelled_at_every_stage(self) -> None:
        """It fails with the error of cancelling, and the server is left alone."""
        servers, clients = RecordingFactory(), RecordingFactory()
        async with self._listening(servers, clients) as port:
            endpoint = self.make_client_endpoint(port.getHost())
            for stage in range(_MOST_STAGES):
                connecting = endpoint.connect(clients)
                await self._turns(stage)
                if connecting.called:
                    await self._soon(connecting, "connect fires")
                    break
                connecting.cancel()
                check(connecting.called, "a cancelled connect must fail at once")
                await self._fails(connecting, self.cancelled, f"a connect, cancelled at {stage}")
                await self._turns(3)
                equal(clients.built, [], "what a cancelled connect has built")
                await self._until(lambda: _is_over(clients), "the factory is stopped")
            await self._end(clients)
            await self._until(lambda: servers.all_lost, "no connection is left at the server")

    async def test_cancelling_a_connect_that_is_done_changes_nothing(self) -> None:
        """The connection is its protocol's by then."""
        clients, servers = RecordingFactory(), RecordingFactory()
        async with self._listening(servers, clients) as port:
            connecting = self.make_client_endpoint(port.getHost()).connect(clients)
            protocol = await self._soon(connecting, "connect fires")
            connecting.cancel()
            cast("Recorder", protocol).wire.write(b"still here")
            await self._until(lambda: servers.built, "the server has the connection")
            await self._receives(servers.built[0], 10)
            equal(bytes(servers.built[0].received), b"still here", "what arrived")


@public_in("twisted_netsock.testing")
class ServerEndpointContract(EndpointContract):
    """
    Tests for a server endpoint: mix it into a class of tests.

    The class supplies ``make_server_endpoint``, which returns the endpoint to test,
    and ``make_client_endpoint``, which returns any endpoint that can connect to it.
    A test has the endpoint log an exception; if the runner fails tests for that,
    the class has a ``flushLoggedErrors(*kinds)`` as trial's ``TestCase`` does, which
    returns what was logged. Everything else is as with `ClientEndpointContract`.
    """

    _tests_client: ClassVar[bool] = False

    def test_the_endpoint_provides_its_interface(self) -> None:
        """As ``verifyObject`` sees it."""
        endpoint = self.make_server_endpoint()
        check(verifyObject(IStreamServerEndpoint, endpoint), "it must provide the interface")

    async def test_listen_fires_with_a_port(self) -> None:
        """It has its address."""
        async with self._listening(RecordingFactory()) as port:
            check(verifyObject(IListeningPort, port), "the port must provide IListeningPort")
            check(IAddress.providedBy(port.getHost()), "getHost must return an address")

    async def test_the_factory_starts_and_stops_with_the_port(self) -> None:
        """By its ``doStart`` and ``doStop``, once each."""
        servers = RecordingFactory()
        async with self._listening(servers):
            equal(servers.life, ["start"], "the factory's life while the port listens")
        await self._until(lambda: servers.life == ["start", "stop"], "the factory is stopped")

    async def _connect(self, port: IListeningPort, clients: RecordingFactory) -> Recorder:
        endpoint = self.make_client_endpoint(port.getHost())
        return cast("Recorder", await self._soon(endpoint.connect(clients), "connect fires"))

    async def test_each_connection_has_a_protocol_that_knows_its_peer(self) -> None:
        """``buildProtocol`` gets the address of each client, where clients have one."""
        servers, clients = RecordingFactory(), RecordingFactory()
        async with self._listening(servers, clients) as port:
            for _ in range(_SEVERAL):
                await self._connect(port, clients)
            await self._until(lambda: len(servers.built) == _SEVERAL, "three protocols are built")
            await self._until(
                lambda: all(each.events for each in servers.built), "each is connected"
            )
            peers = [each.wire.getPeer() for each in servers.built]
            if isinstance(peers[0], IPv4Address | IPv6Address):
                equal(servers.addresses, peers, "what buildProtocol was given")
            equal(len(set(servers.built)), _SEVERAL, "how many protocols there are")

    async def test_a_factory_that_builds_nothing_drops_that_connection(self) -> None:
        """And no other."""
        await self._drops_the_first(lambda: None)

    async def test_an_exception_of_build_protocol_costs_that_connection_alone(self) -> None:
        """And is logged."""
        await self._drops_the_first(_mistake)
        flush = getattr(self, "flushLoggedErrors", None)
        if flush is not None:
            equal(len(flush(_Mistake)), 1, "how often the exception was logged")

    async def _drops_the_first(self, first: Callable[[], Recorder | None]) -> None:
        makers = [Recorder, first]

        def make() -> Recorder | None:
            return makers.pop()()

        servers = RecordingFactory(make)
        clients = RecordingFactory()
        async with self._listening(servers, clients) as port:
            dropped = await self._connect(port, clients)
            await self._until(lambda: dropped.lost, "the first client is dropped")
            await self._connect(port, clients)
            await self._until(lambda: servers.built, "the second client is served")

    async def test_a_stopped_port_takes_no_more_and_ends_nothing(self) -> None:
        """Connections that there are go on; later ones are refused."""
        servers, clients = RecordingFactory(), RecordingFactory()
        async with self._listening(servers, clients) as port:
            protocol = await self._connect(port, clients)
            await self._until(lambda: servers.built, "the client is served")
            address = port.getHost()
            await self._soon(maybeDeferred(port.stopListening), "stopListening fires")
            connecting = self.make_client_endpoint(address).connect(RecordingFactory())
            await self._fails(connecting, ConnectError, "a connect to a stopped port")
            protocol.wire.write(b"still here")
            await self._receives(servers.built[0], 10)
            equal(bytes(servers.built[0].received), b"still here", "what arrived")

    async def test_the_address_is_free_after_stopping(self) -> None:
        """Another port can listen there at once."""
        async with self._listening(RecordingFactory()) as port:
            address = port.getHost()
        again = self.make_server_endpoint(address).listen(RecordingFactory())
        port = await self._soon(again, "listen fires")
        try:
            equal(port.getHost(), address, "where the second port listens")
        finally:
            await self._soon(maybeDeferred(port.stopListening), "stopListening fires")

    async def test_an_address_that_is_taken_cannot_be_listened_on(self) -> None:
        """It is a ``CannotListenError``, and the factory is not left started."""
        servers = RecordingFactory()
        async with self._listening(RecordingFactory()) as port:
            listening = self.make_server_endpoint(port.getHost()).listen(servers)
            await self._fails(listening, CannotListenError, "a listen on an address in use")
        check(_is_over(servers), "the factory must not be left started")

    async def test_a_listen_can_be_cancelled_until_it_is_done(self) -> None:
        """Then nothing is bound; afterwards cancelling changes nothing."""
        servers = RecordingFactory()
        listening: Deferred[IListeningPort] = self.make_server_endpoint().listen(servers)
        was_done = listening.called
        listening.cancel()
        if not was_done:
            await self._fails(listening, self.cancelled, "a cancelled listen")
            await self._turns(3)
            check(_is_over(servers), "the factory must not be left started")
            return
        port = await self._soon(listening, "listen fires")
        clients = RecordingFactory()
        try:
            await self._connect(port, clients)
        finally:
            await self._soon(maybeDeferred(port.stopListening), "stopListening fires")
            await self._end(clients)
            await self._end(servers)
