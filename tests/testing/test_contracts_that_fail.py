"""Endpoints and sockets that break a promise fail the contract that has it."""

from __future__ import annotations

import unittest
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IStreamClientEndpoint, IStreamServerEndpoint
from twisted.internet.protocol import Protocol
from twisted.internet.task import deferLater
from zope.interface import implementer

from twisted_netsock import (
    SocketOptions,
    client_endpoint,
    make_client_socket,
    make_server_socket,
    server_endpoint,
)
from twisted_netsock.testing import (
    ClientEndpointContract,
    ListenerContract,
    ServerEndpointContract,
    SocketContract,
    connected_pair,
)
from twisted_netsock.testing._contract import RecordingFactory

pytestmark = pytest.mark.long

LOOPBACK = "127.0.0.1"


@pytest.fixture(autouse=True)
def briefly(monkeypatch):
    """What never comes is not waited for very long."""
    monkeypatch.setattr("twisted_netsock.testing._contract._MOMENTS", 60)


def good_server(address: Any = None) -> Any:
    return server_endpoint(reactor, LOOPBACK, 0 if address is None else address.port)


def good_client(address: Any) -> Any:
    return client_endpoint(reactor, LOOPBACK, address.port)


class Client(ClientEndpointContract):
    """A contract for endpoints of the class *broken*."""

    broken: Any = None

    def make_server_endpoint(self, address: Any = None) -> Any:
        return good_server(address)

    def make_client_endpoint(self, address: Any) -> Any:
        return self.broken(good_client(address))


class Server(ServerEndpointContract):
    broken: Any = None

    def make_server_endpoint(self, address: Any = None) -> Any:
        return self.broken(good_server(address))

    def make_client_endpoint(self, address: Any) -> Any:
        return good_client(address)


async def outcome(contract: Any, broken: Any, test: str) -> str:
    """Run one test of *contract*, and return what it says is wrong."""
    case = contract()
    case.broken = broken
    with pytest.raises(AssertionError) as caught:
        await getattr(case, test)()
    return str(caught.value)


@implementer(IStreamClientEndpoint)
class BrokenClient:
    """Connects as it should; subclasses do not."""

    def __init__(self, good: Any) -> None:
        self.good = good

    def connect(self, protocolFactory: Any) -> Any:
        return self.good.connect(protocolFactory)


class NoInterface:
    def __init__(self, good: Any) -> None:
        pass


class AnotherProtocol(BrokenClient):
    def connect(self, factory: Any) -> Any:
        return super().connect(factory).addCallback(lambda _: Protocol())


class NeverStopped(BrokenClient):
    def connect(self, factory: Any) -> Any:
        factory.doStop = lambda: None
        return super().connect(factory)


class NeverStarted(BrokenClient):
    def connect(self, factory: Any) -> Any:
        factory.doStart = lambda: None
        return super().connect(factory)


class NoProtocolIsFine(BrokenClient):
    def connect(self, factory: Any) -> Any:
        return super().connect(factory).addErrback(lambda _: None)


class OtherErrors(BrokenClient):
    def connect(self, factory: Any) -> Any:
        def other(_: Any) -> None:
            raise LookupError("something else")

        return super().connect(factory).addErrback(other)


class Uncancellable(BrokenClient):
    def connect(self, factory: Any) -> Any:
        done: Deferred[Any] = Deferred(lambda _: None)
        # Within one machine a connect may be done at once, and leave nothing to cancel.
        deferLater(reactor, 0, super().connect, factory).chainDeferred(done)
        return done


class CancelIsAConnectError(BrokenClient):
    def connect(self, factory: Any) -> Any:
        def swallow(failure: Any) -> None:
            raise ConnectError(string="given up") from failure.value

        return deferLater(reactor, 0, super().connect, factory).addErrback(swallow)


class WrongAddress(BrokenClient):
    def connect(self, factory: Any) -> Any:
        build = factory.buildProtocol
        factory.buildProtocol = lambda _: build(None)
        return super().connect(factory)


class Transposing(BrokenClient):
    """Loses the last byte of everything."""

    def connect(self, factory: Any) -> Any:
        def spoil(protocol: Any) -> Any:
            write = protocol.transport.write
            protocol.transport.write = lambda data: write(bytes(data[:-2]) + b"??")
            return protocol

        return super().connect(factory).addCallback(spoil)


class AbortsWithoutEnd(BrokenClient):
    """Raises for a second abort."""

    def connect(self, factory: Any) -> Any:
        def spoil(protocol: Any) -> Any:
            abort = protocol.transport.abortConnection
            calls: list[None] = []

            def once() -> None:
                assert not calls, "already aborted"
                calls.append(None)
                abort()

            protocol.transport.abortConnection = once
            return protocol

        return super().connect(factory).addCallback(spoil)


class NoPause(BrokenClient):
    def connect(self, factory: Any) -> Any:
        def spoil(protocol: Any) -> Any:
            protocol.transport.pauseProducing = lambda: None
            return protocol

        return super().connect(factory).addCallback(spoil)


class NoBackPressure(BrokenClient):
    def connect(self, factory: Any) -> Any:
        def spoil(protocol: Any) -> Any:
            protocol.transport.registerProducer = lambda *_: None
            protocol.transport.unregisterProducer = lambda: None
            return protocol

        return super().connect(factory).addCallback(spoil)


class NoHalfClose(BrokenClient):
    def connect(self, factory: Any) -> Any:
        def spoil(protocol: Any) -> Any:
            protocol.transport.loseWriteConnection = protocol.transport.loseConnection
            return protocol

        return super().connect(factory).addCallback(spoil)


@pytest.mark.parametrize(
    ("broken", "test", "message"),
    [
        (AnotherProtocol, "test_connect_fires_with_the_protocol_that_was_built", "must fire with"),
        (NeverStarted, "test_the_factory_starts_before_and_stops_after_the_connection",
         "expected ['start'], found []"),
        (NoProtocolIsFine, "test_a_factory_that_builds_nothing_fails_the_connect",
         "must fail with a NoProtocol, and gave None"),
        (OtherErrors, "test_an_exception_of_build_protocol_fails_the_connect",
         "must fail with a _Mistake, not with LookupError('something else')"),
        (OtherErrors, "test_a_refused_connection_is_a_connect_error", "must fail with a Connect"),
        (Uncancellable, "test_a_connect_can_be_cancelled_at_every_stage",
         "what a cancelled connect has built"),
        (CancelIsAConnectError, "test_a_connect_can_be_cancelled_at_every_stage",
         "must fail with a CancelledError, not with"),
        (WrongAddress, "test_the_factory_is_told_where_it_is_connected", "buildProtocol was"),
        (NeverStopped, "test_the_factory_starts_before_and_stops_after_the_connection",
         "never came to this: the factory is stopped"),
        (NoHalfClose, "test_each_direction_ends_by_itself",
         "this end must be called when it has finished"),
        (Transposing, "test_what_is_written_arrives_both_ways_at_once", "what this end has sent"),
        (AbortsWithoutEnd, "test_abort_connection_may_be_called_any_number_of_times",
         "already aborted"),
        (NoPause, "test_a_paused_protocol_is_given_nothing", "expected b'', found b'for later'"),
        (NoBackPressure, "test_a_producer_is_paused_when_the_peer_does_not_read",
         "the producer was not paused"),
    ],
)  # fmt: skip
async def test_a_client_endpoint_that_breaks_its_promise_is_caught(broken, test, message):
    assert message in await outcome(Client, broken, test)


async def test_what_provides_no_interface_is_caught():
    case = Client()
    case.broken = NoInterface
    with pytest.raises(Exception, match="failed to implement interface"):
        await case.test_the_endpoint_provides_its_interface()


@implementer(IStreamServerEndpoint)
class BrokenServer:
    def __init__(self, good: Any) -> None:
        self.good = good

    def listen(self, protocolFactory: Any) -> Any:
        return self.good.listen(protocolFactory)


class NotStarted(BrokenServer):
    def listen(self, factory: Any) -> Any:
        factory.doStart = lambda: None
        return super().listen(factory)


class OtherAddress(BrokenServer):
    """Always listens where the kernel likes."""

    def __init__(self, good: Any) -> None:
        super().__init__(good_server())


@pytest.mark.parametrize(
    ("broken", "test", "message"),
    [
        (NotStarted, "test_the_factory_starts_and_stops_with_the_port", "found []"),
        (OtherAddress, "test_the_address_is_free_after_stopping", "where the second port listens"),
    ],
)
async def test_a_server_endpoint_that_breaks_its_promise_is_caught(broken, test, message):
    assert message in await outcome(Server, broken, test)


async def test_an_address_that_can_be_shared_is_caught():
    ports = []

    class Shared(Server):
        def make_server_endpoint(self, address: Any = None) -> Any:
            port = 0 if address is None else address.port
            return self.broken(
                server_endpoint(reactor, LOOPBACK, port, SocketOptions(reuse_port=True))
            )

    class Kept(BrokenServer):
        def listen(self, factory: Any) -> Any:
            return super().listen(factory).addCallback(lambda port: ports.append(port) or port)

    message = await outcome(Shared, Kept, "test_an_address_that_is_taken_cannot_be_listened_on")
    for port in ports:
        port.stopListening()
    assert "must fail with a CannotListenError, and gave" in message


def test_a_transport_that_cannot_be_half_closed_skips_those_tests():
    class Without(Client):
        half_close = False

    coroutine = Without().test_each_direction_ends_by_itself()
    with pytest.raises(unittest.SkipTest, match="cannot be half-closed"):
        coroutine.send(None)


@pytest.mark.parametrize(
    ("contract", "method"),
    [
        (ClientEndpointContract, "make_client_endpoint"),
        (ServerEndpointContract, "make_server_endpoint"),
        (SocketContract, "make_sockets"),
        (ListenerContract, "make_listener"),
        (ListenerContract, "make_client"),
    ],
)
def test_a_class_that_supplies_nothing_is_told_what_it_lacks(contract, method):
    class Mine(contract):
        pass

    arguments = (None,) if method.startswith("make_client") else ()
    with pytest.raises(NotImplementedError, match=f"Mine must supply {method}"):
        getattr(Mine(), method)(*arguments)


# Sockets


class Spoilt:
    """A socket, some of whose calls are another's."""

    def __init__(self, sock: Any, **spoilt: Any) -> None:
        self.__dict__.update(spoilt)
        self._sock = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


@pytest.mark.parametrize(
    ("spoil", "test", "message"),
    [
        (lambda s: {"recv": lambda n: succeed(b"")}, "test_what_is_sent_arrives_both_ways",
         "expected b'and back', found b''"),
        (lambda s: {"recv": lambda n: s.recv(n + 1)},
         "test_a_receive_gives_no_more_than_was_asked_for", "expected b'ab', found b'abc'"),
        (lambda s: {"fileno": lambda: 3}, "test_close_acts_at_once", "fileno"),
        (lambda s: {"sendall": lambda data: s.sendall(data[:-1])},
         "test_sendall_sends_everything_in_order", "as they were"),
        (lambda s: {"recv": lambda n: s.recv(max(0, int(n)))}, "test_bad_arguments_are_refused",
         "recv(-1) must raise ValueError"),
        (lambda s: {"send": lambda data: succeed(len(data))},
         "test_a_receive_goes_on_while_a_send_waits", "a send must wait"),
        (lambda s: {"getsockopt": lambda *_: 0}, "test_calls_on_a_closed_socket_fail",
         "must raise SocketClosedError, and gave 0"),
    ],
)  # fmt: skip
async def test_a_socket_that_breaks_its_promise_is_caught(spoil, test, message):
    class Broken(SocketContract):
        async def make_sockets(self) -> Any:
            one, other = connected_pair()
            return Spoilt(one, **spoil(one)), other

    with pytest.raises(AssertionError) as caught:
        await getattr(Broken(), test)()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("spoil", "test", "message"),
    [
        (lambda s: {"accept": Deferred}, "test_connections_are_accepted_one_by_one",
         "never came to this: a connection"),
        (lambda s: {"accept": s.accept, "recv": lambda n: succeed(b"")},
         "test_a_listener_has_no_data_and_a_connection_accepts_nothing",
         "must fail with a SocketError, and gave b''"),
        (lambda s: {"close": lambda: None, "abort": lambda: None},
         "test_closing_the_listener_fails_an_accept_that_waits", "closed must be true"),
    ],
)  # fmt: skip
async def test_a_listener_that_breaks_its_promise_is_caught(spoil, test, message):
    made = []

    class Broken(ListenerContract):
        async def make_listener(self) -> Any:
            made.append(await make_server_socket(LOOPBACK, 0))
            return Spoilt(made[-1], **spoil(made[-1]))

        async def make_client(self, listener: Any) -> Any:
            return await make_client_socket(*listener.getsockname())

    with pytest.raises(AssertionError) as caught:
        await getattr(Broken(), test)()
    for each in made:
        each.abort()
    assert message in str(caught.value)


# Waits


async def test_a_wait_that_is_in_vain_says_for_what(monkeypatch):
    monkeypatch.setattr("twisted_netsock.testing._contract._MOMENTS", 2)
    monkeypatch.setattr("twisted_netsock.testing._contract._SECONDS", 0.01)
    case = Client()
    with pytest.raises(AssertionError, match="never came to this: pigs fly"):
        await case._until(lambda: False, "pigs fly")
    with pytest.raises(AssertionError, match="never came to this: pigs fly"):
        await case._soon(Deferred(), "pigs fly")


async def test_what_is_no_deferred_is_told():
    with pytest.raises(AssertionError, match="'nothing' must be a Deferred or a coroutine"):
        await Client()._soon("nothing", "something")


def test_a_recording_factory_knows_what_is_left():
    factory = RecordingFactory()
    assert factory.all_lost
    factory.abort()
