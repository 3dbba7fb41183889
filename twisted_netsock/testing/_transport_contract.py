"""`EndpointContract`: what protocols expect of the transports of anybody's endpoints."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import ClassVar, Final, NamedTuple

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError, maybeDeferred
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import (
    IAddress,
    IListeningPort,
    IPushProducer,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from zope.interface import implementer

from ._contract import (
    Contract,
    Greeter,
    HalfRecorder,
    Recorder,
    RecordingFactory,
    check,
    equal,
    skip_unless,
)

__all__ = ["EndpointContract"]

_BULK: Final = bytes(range(251)) * 4000
"""A megabyte in which every displaced byte shows."""

_MOST_BUFFERED: Final = 64 * 1024 * 1024


class _Ends(NamedTuple):
    """The two ends of a connection: that of the endpoint under test, and the other."""

    ours: Recorder
    peer: Recorder


@implementer(IPushProducer)
class _Producer:
    """Notes its calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def pauseProducing(self) -> None:
        self.calls.append("pause")

    def resumeProducing(self) -> None:
        self.calls.append("resume")

    def stopProducing(self) -> None:
        self.calls.append("stop")


class EndpointContract(Contract):
    """
    What both contracts of endpoints have: the peer, and the tests of the transport.

    Attributes:
        half_close: Whether the transports can end one direction alone.
        cancelled: What a cancelled ``connect`` fails with; Twisted's own
            endpoints have ``ConnectingCancelledError``.
    """

    half_close: ClassVar[bool] = True
    cancelled: ClassVar[type[Exception]] = CancelledError
    _tests_client: ClassVar[bool]

    def make_server_endpoint(self, address: IAddress | None = None) -> IStreamServerEndpoint:
        """
        Return a server endpoint; for the class to supply.

        Args:
            address: Where it is to listen: what ``getHost`` of an earlier port
                returned. `None`: where nobody listens, on one address that
                clients can connect to, such as port 0 of 127.0.0.1.
        """
        raise NotImplementedError(f"{type(self).__name__} must supply make_server_endpoint")

    def make_client_endpoint(self, address: IAddress) -> IStreamClientEndpoint:
        """
        Return a client endpoint; for the class to supply.

        Args:
            address: Where it is to connect to: what ``getHost`` of a port of
                `make_server_endpoint` returned.
        """
        raise NotImplementedError(f"{type(self).__name__} must supply make_client_endpoint")

    # What the tests stand on

    @asynccontextmanager
    async def _listening(
        self, servers: RecordingFactory, *clients: RecordingFactory
    ) -> AsyncIterator[IListeningPort]:
        """Listen; at the end nothing is left of the port and of anybody's connections."""
        port = await self._soon(self.make_server_endpoint().listen(servers), "listen fires")
        try:
            yield port
        finally:
            await self._soon(maybeDeferred(port.stopListening), "stopListening fires")
            await self._end(servers, *clients)

    async def _end(self, *factories: RecordingFactory) -> None:
        """End what is left of the connections that *factories* have protocols for."""
        for factory in factories:
            factory.abort()
        await self._until(
            lambda: all(factory.all_lost for factory in factories),
            "every protocol loses its connection",
        )

    @asynccontextmanager
    async def _connected(
        self,
        ours: Callable[[], Recorder | None] = Recorder,
        peer: Callable[[], Recorder | None] = Recorder,
    ) -> AsyncIterator[_Ends]:
        """Connect two protocols; at the end both connections are gone."""
        our_factory, peer_factory = RecordingFactory(ours), RecordingFactory(peer)
        clients, servers = (
            (our_factory, peer_factory) if self._tests_client else (peer_factory, our_factory)
        )
        async with self._listening(servers, clients) as port:
            endpoint = self.make_client_endpoint(port.getHost())
            await self._soon(endpoint.connect(clients), "connect fires")
            await self._until(
                lambda: servers.built and servers.built[0].events, "the server's end is made"
            )
            yield _Ends(our_factory.built[0], peer_factory.built[0])

    async def _receives(self, end: Recorder, count: int) -> None:
        await self._until(
            lambda: len(end.received) >= count or end.lost,
            f"{count} bytes arrive, or the connection ends",
        )

    # Transports

    async def test_what_is_written_arrives_both_ways_at_once(self) -> None:
        """Whole, and in order."""
        async with self._connected() as ends:
            backwards = _BULK[::-1]
            ends.ours.wire.write(_BULK)
            ends.peer.wire.write(backwards)
            await self._receives(ends.peer, len(_BULK))
            await self._receives(ends.ours, len(_BULK))
            equal(bytes(ends.peer.received), _BULK, "what this end has sent")
            equal(bytes(ends.ours.received), backwards, "what the other end has sent")

    async def test_a_sequence_is_written_in_order(self) -> None:
        """As ``writeSequence`` of ``ITransport`` says."""
        async with self._connected() as ends:
            ends.ours.wire.writeSequence([b"%d," % number for number in range(1000)])
            expected = b"".join(b"%d," % number for number in range(1000))
            await self._receives(ends.peer, len(expected))
            equal(bytes(ends.peer.received), expected, "the sequence")

    async def test_what_is_written_in_connection_made_arrives(self) -> None:
        """The transport works from the first moment on."""
        async with self._connected(Greeter) as ends:
            await self._receives(ends.peer, len(Greeter.greeting))
            equal(bytes(ends.peer.received), Greeter.greeting, "the greeting")

    async def test_lose_connection_sends_everything_first(self) -> None:
        """And both ends lose it in order."""
        async with self._connected() as ends:
            ends.ours.wire.write(_BULK)
            ends.ours.wire.loseConnection()
            await self._until(lambda: ends.ours.lost and ends.peer.lost, "both ends are lost")
            equal(bytes(ends.peer.received), _BULK, "what was written before loseConnection")
            for name, end in (("this", ends.ours), ("the other", ends.peer)):
                check(
                    isinstance(end.reason, ConnectionDone),
                    f"{name} end must be lost with ConnectionDone, not {end.reason!r}",
                )

    async def test_an_end_by_the_peer_is_connection_done(self) -> None:
        """After everything that it has sent."""
        async with self._connected() as ends:
            ends.peer.wire.write(_BULK)
            ends.peer.wire.loseConnection()
            await self._until(lambda: ends.ours.lost, "this end is lost")
            equal(bytes(ends.ours.received), _BULK, "what the peer wrote before its end")
            check(
                isinstance(ends.ours.reason, ConnectionDone),
                f"the reason must be ConnectionDone, not {ends.ours.reason!r}",
            )
            equal(ends.ours.events, ["made", "data", "lost"], "what the protocol was called with")

    async def test_abort_connection_may_be_called_any_number_of_times(self) -> None:
        """Also after the connection is lost."""
        async with self._connected() as ends:
            for _ in range(3):
                ends.ours.wire.abortConnection()
            await self._until(lambda: ends.ours.lost and ends.peer.lost, "both ends are lost")
            check(
                isinstance(ends.ours.reason, ConnectionAborted),
                f"the reason must be ConnectionAborted, not {ends.ours.reason!r}",
            )
            for _ in range(3):
                ends.ours.wire.abortConnection()
            await self._turns(3)
            equal(ends.ours.events, ["made", "lost"], "what the protocol was called with")

    async def test_calls_after_the_loss_do_nothing(self) -> None:
        """A protocol need not ask first."""
        async with self._connected() as ends:
            wire = ends.ours.wire
            ends.peer.wire.loseConnection()
            await self._until(lambda: ends.ours.lost, "this end is lost")
            wire.write(b"too late")
            wire.writeSequence([b"too", b"late"])
            wire.loseConnection()
            await self._turns(3)
            equal(ends.ours.events.count("lost"), 1, "how often it heard of the loss")

    async def test_a_paused_protocol_is_given_nothing(self) -> None:
        """Until it resumes; nothing is lost meanwhile."""
        async with self._connected() as ends:
            ends.ours.wire.pauseProducing()
            ends.peer.wire.write(b"for later")
            await self._turns(20)
            equal(bytes(ends.ours.received), b"", "what a paused protocol was given")
            ends.ours.wire.resumeProducing()
            await self._receives(ends.ours, 9)
            equal(bytes(ends.ours.received), b"for later", "what it was given then")

    async def test_a_producer_is_paused_when_the_peer_does_not_read(self) -> None:
        """And resumed when it does; memory stays bounded."""
        async with self._connected() as ends:
            ends.peer.wire.pauseProducing()
            producer = _Producer()
            ends.ours.wire.registerProducer(producer, True)
            written = 0
            while "pause" not in producer.calls:
                check(
                    written < _MOST_BUFFERED,
                    f"{written} bytes were written to a peer that reads nothing, "
                    "and the producer was not paused",
                )
                ends.ours.wire.write(_BULK)
                written += len(_BULK)
                await self._turns()
            ends.peer.wire.resumeProducing()
            await self._receives(ends.peer, written)
            equal(len(ends.peer.received), written, "how much arrived")
            await self._until(lambda: producer.calls[-1] == "resume", "the producer is resumed")
            ends.ours.wire.unregisterProducer()

    async def test_each_direction_ends_by_itself(self) -> None:
        """With a protocol that provides ``IHalfCloseableProtocol``."""
        skip_unless(self.half_close, "these transports cannot be half-closed")
        async with self._connected(HalfRecorder, HalfRecorder) as ends:
            ends.ours.wire.write(b"the last words")
            ends.ours.wire.loseWriteConnection()
            await self._until(lambda: "read lost" in ends.peer.events, "the peer reads the end")
            equal(bytes(ends.peer.received), b"the last words", "what came before the end")
            check("write lost" in ends.ours.events, "this end must be called when it has finished")
            ends.peer.wire.write(b"an answer")
            await self._receives(ends.ours, 9)
            equal(bytes(ends.ours.received), b"an answer", "what came the other way")
            check(not ends.ours.lost and not ends.peer.lost, "the connection must go on")
            ends.peer.wire.loseWriteConnection()
            await self._until(lambda: "read lost" in ends.ours.events, "this end reads the end")

    async def test_without_half_close_the_peer_s_end_is_the_end(self) -> None:
        """With a protocol that does not provide ``IHalfCloseableProtocol``."""
        skip_unless(self.half_close, "these transports cannot be half-closed")
        async with self._connected() as ends:
            ends.peer.wire.write(b"the last words")
            ends.peer.wire.loseWriteConnection()
            await self._until(lambda: ends.ours.lost, "this end is lost")
            equal(bytes(ends.ours.received), b"the last words", "what came before the end")
            check(
                isinstance(ends.ours.reason, ConnectionDone),
                f"the reason must be ConnectionDone, not {ends.ours.reason!r}",
            )

    async def test_both_ends_agree_about_their_addresses(self) -> None:
        """Where two ends have different addresses."""
        async with self._connected() as ends:
            host, peer = ends.ours.wire.getHost(), ends.ours.wire.getPeer()
            for address in (host, peer):
                check(IAddress.providedBy(address), f"{address!r} must provide IAddress")
            if isinstance(host, IPv4Address | IPv6Address):
                equal(ends.peer.wire.getPeer(), host, "this end's address, at the other end")
                equal(ends.peer.wire.getHost(), peer, "the other end's address, at this end")
