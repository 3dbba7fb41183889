"""What one connection's own code raises costs that connection, and no other and no port."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import io
import threading
import warnings
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import IHandshakeListener, IPushProducer
from twisted.internet.threads import deferToThread
from zope.interface import implementer

from tests.support.clocks import the_reactor, turns, until
from tests.support.loopback import LOOPBACK, is_open, run_script
from tests.support.protocols import HalfCloser, Kind, Protocols, Recorder, serving
from tests.support.ways_in import Inner
from twisted_netsock import (
    Socket,
    SocketOptions,
    SocketSelector,
    chibi,
    client_endpoint,
    make_client_socket,
    make_client_tls_socket,
    make_server_socket,
    make_server_tls_socket,
    server_endpoint,
)
from twisted_netsock._io.poller import poller_for


class Unusual(BaseException):
    """No `Exception`, as the exits of greenlets and of pytest are none."""


def exit_by_argparse() -> None:
    """Raise `SystemExit` as a program does that parses what a peer has sent."""
    parser = argparse.ArgumentParser()
    with contextlib.redirect_stderr(io.StringIO()):
        parser.parse_args(["--unknown"])


def raising(error: type[BaseException]) -> None:
    if error is SystemExit:
        exit_by_argparse()
    raise error


ERRORS = [SystemExit, asyncio.CancelledError, GeneratorExit, Unusual, ValueError, CancelledError]


@implementer(IHandshakeListener)
class Echo(HalfCloser):
    """Echoes; one that is guilty raises at the moment that the test chose."""

    guilty = False
    moment = ""
    error: type[BaseException] = ValueError

    def at(self, moment: str) -> None:
        if self.guilty and moment == self.moment:
            raising(self.error)

    def logPrefix(self) -> str:
        self.at("logPrefix")
        return "Echo"

    def connectionMade(self) -> None:
        super().connectionMade()
        if self.guilty and "Producing" in self.moment:
            self.transport.registerProducer(Producer(self), self.moment == "pauseProducing")
        self.at("connectionMade")

    def handshakeCompleted(self) -> None:
        self.at("handshakeCompleted")

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        self.at("dataReceived")
        if self.guilty and self.moment == "writeConnectionLost":
            self.transport.loseWriteConnection()
        if self.guilty and self.moment == "pauseProducing":
            data *= 10_000_000
        self.transport.write(data)

    def readConnectionLost(self) -> None:
        super().readConnectionLost()
        self.at("readConnectionLost")
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        super().writeConnectionLost()
        self.at("writeConnectionLost")

    def connectionLost(self, reason: Any = None) -> None:
        super().connectionLost(reason)
        self.at("connectionLost")


@implementer(IPushProducer)
class Producer:
    """Raises when it is asked to pause, to go on, or to stop."""

    def __init__(self, protocol: Echo) -> None:
        self._protocol = protocol

    def pauseProducing(self) -> None:
        self._protocol.at("pauseProducing")

    def resumeProducing(self) -> None:
        # Once for being registered, in the program's own call, and then for having room.
        if self._protocol.received:
            self._protocol.at("resumeProducing")

    def stopProducing(self) -> None:
        self._protocol.at("stopProducing")


MOMENTS = [
    "buildProtocol",
    "logPrefix",
    "connectionMade",
    "handshakeCompleted",
    "dataReceived",
    "readConnectionLost",
    "writeConnectionLost",
    "connectionLost",
    "pauseProducing",
    "resumeProducing",
    "stopProducing",
]


class Echoes(Protocols):
    """Builds echoes, of which the second is guilty."""

    def __init__(self, moment: str, error: type[BaseException]) -> None:
        super().__init__(Echo)
        self._moment = moment
        self._error = error
        self._count = 0

    def buildProtocol(self, addr: Any) -> Any:
        self._count += 1
        guilty = self._count == 2
        if guilty and self._moment == "buildProtocol":
            raising(self._error)
        built = super().buildProtocol(addr)
        built.guilty, built.moment, built.error = guilty, self._moment, self._error
        return built


@contextlib.asynccontextmanager
async def a_server(way: str, authority: Any, directory: Any, factory: Any) -> Any:
    """Listen in one of the ways; give what connects to it."""
    kind = Kind(authority, tls=way != "plain")
    if way == "layered":
        inner = Inner("tcp", authority, directory)
        endpoint = server_endpoint(
            the_reactor(), None, None, kind.server(), endpoint=inner.server()
        )
    else:
        endpoint = server_endpoint(the_reactor(), LOOPBACK, 0, kind.server())
    async with serving(endpoint, factory) as port:
        yield client_endpoint(the_reactor(), LOOPBACK, port.getHost().port, kind.client())


async def is_echoed(client: Any) -> None:
    before = len(client.received)
    client.transport.write(b"still there?")
    assert bytes(await client.receives(before + 12))[before:] == b"still there?"


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("way", ["plain", "tls", "layered"])
async def test_what_a_protocol_raises_costs_its_own_connection(
    way, moment, error, authority, tmp_path, logged_errors
):
    if moment == "handshakeCompleted" and way == "plain":
        pytest.skip("there is no handshake on a plain connection")
    if moment == "logPrefix" and way == "layered":
        pytest.skip("the inner transport is marked with the factory's name")
    clients = Protocols()
    async with a_server(way, authority, tmp_path, Echoes(moment, error)) as connects:
        innocent = await connects.connect(clients)
        await is_echoed(innocent)
        guilty = await connects.connect(clients)
        guilty.transport.write(b"x")
        if moment == "pauseProducing":
            # It asks for more than fits, and is not read.
            guilty.transport.pauseProducing()
            await until(lambda: logged_errors)
            guilty.transport.resumeProducing()
        elif moment in {"readConnectionLost", "connectionLost", "stopProducing"}:
            await guilty.receives(1)
            if moment == "readConnectionLost":
                guilty.transport.loseWriteConnection()
            else:
                guilty.transport.abortConnection()
        await guilty.loses()
        await until(lambda: logged_errors)
        await is_echoed(innocent)
        late = await connects.connect(clients)
        await is_echoed(late)
        await clients.all_lost()
    [event] = logged_errors
    assert event["log_failure"].check(error)
    logged_errors.clear()


@pytest.mark.parametrize("error", ERRORS)
async def test_what_a_handler_of_serve_raises_costs_its_own_connection(kind, error, logged_errors):
    make: Any = make_server_tls_socket if kind.tls else make_server_socket
    connect: Any = make_client_tls_socket if kind.tls else make_client_socket

    async def handler(connection: Socket) -> None:
        while data := await connection.recv(100):
            if data == b"raise":
                raising(error)
            await connection.sendall(data)

    async with await make(LOOPBACK, 0, kind.server()) as server:
        serving_all = server.serve(handler)
        port = server.getsockname().port
        async with (
            await connect(LOOPBACK, port, kind.client()) as innocent,
            await connect(LOOPBACK, port, kind.client()) as guilty,
        ):
            await guilty.sendall(b"raise")
            assert await guilty.recv(1) == b""
            await innocent.sendall(b"x")
            assert await innocent.recv(1) == b"x"
            async with await connect(LOOPBACK, port, kind.client()) as late:
                await late.sendall(b"y")
                assert await late.recv(1) == b"y"
        await server.close()
        await serving_all
    [event] = logged_errors
    assert event["log_failure"].check(error)
    logged_errors.clear()


@pytest.mark.parametrize("error", ERRORS)
async def test_what_a_callback_of_a_selector_raises_touches_no_other(error, logged_errors):
    selector = SocketSelector()
    heard: list[Any] = []

    def on_read(sock: Any, _error: Any, _again: Any) -> None:
        heard.append(sock)
        if len(heard) == 1:
            raising(error)

    pairs = [chibi.open_socket_pair() for _ in range(3)]
    for here, there in pairs:
        selector.add(here, on_read)
        await there.sendall(b"x")
    await until(lambda: len(heard) == 3)
    selector.close()
    for here, there in pairs:
        assert await here.recv(1) == b"x"
        await here.close()
        await there.close()
    [event] = logged_errors
    assert event["log_failure"].check(error)
    logged_errors.clear()


@pytest.mark.parametrize("error", ERRORS)
async def test_what_a_file_raises_fails_the_call_and_nothing_else(error):
    class File:
        def read(self, _n: int = -1) -> bytes:
            raising(error)
            return b""

    here, there = chibi.open_socket_pair()
    failures: list[Any] = []
    maybeDeferred(here.sendfile, File()).addErrback(failures.append)
    assert failures[0].check(error)
    await there.sendall(b"x")
    assert await here.recv(1) == b"x"
    await here.close()
    await there.close()


async def test_what_waits_for_a_socket_is_a_coroutine_that_may_raise_anything(kind):
    """Each coroutine fails by itself; the others of the same report go on."""
    pairs = [chibi.open_socket_pair() for _ in range(4)]

    async def wait(number: int, sock: Socket) -> int:
        await sock.recv(1)
        if number != 3:
            raising(ERRORS[number])
        return number

    waiting = [Deferred.fromCoroutine(wait(i, here)) for i, (here, _) in enumerate(pairs)]
    results: list[Any] = []
    for each in waiting:
        each.addBoth(results.append)
    for _, there in pairs:
        there.sendall(b"x")
    await until(lambda: len(results) == 4)
    assert [getattr(result, "type", result) for result in results] == [*ERRORS[:3], 3]
    for here, there in pairs:
        await here.close()
        await there.close()


QUIET = """
from twisted.logger import globalLogBeginner
globalLogBeginner.beginLoggingTo([], redirectStandardIO=False)
"""

SHUTDOWN = """
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted_netsock import SocketOptions, client_endpoint, server_endpoint

heard = []

class Last(Protocol):
    def connectionLost(self, reason):
        heard.append(1)
        raise [SystemExit, GeneratorExit, KeyboardInterrupt, ValueError][len(heard) % 4]

async def main():
    factory = Factory.forProtocol(Last)
    factory.noisy = False
    port = await server_endpoint(reactor, "127.0.0.1", 0).listen(factory)
    for _ in range(4):
        await client_endpoint(reactor, "127.0.0.1", port.getHost().port).connect(factory)
    await deferLater(reactor, 0.05)

run(main)
print(len(heard))
"""


def test_at_the_reactor_s_end_every_protocol_is_called_whatever_others_raise():
    assert run_script(QUIET + SHUTDOWN) == ["8"]


INTERRUPT = """
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted_netsock import client_endpoint, server_endpoint

class Echo(Protocol):
    def dataReceived(self, data):
        if data == b"raise":
            raise KeyboardInterrupt
        self.transport.write(data)

class Client(Protocol):
    heard = b""
    lost = False
    def dataReceived(self, data):
        self.heard += data
    def connectionLost(self, reason):
        self.lost = True

async def main():
    servers, clients = Factory.forProtocol(Echo), Factory.forProtocol(Client)
    port = await server_endpoint(reactor, "127.0.0.1", 0).listen(servers)
    connect = client_endpoint(reactor, "127.0.0.1", port.getHost().port).connect
    innocent, guilty = await connect(clients), await connect(clients)
    guilty.transport.write(b"raise")
    for _ in range(500):
        if guilty.lost:
            break
        await deferLater(reactor, 0.01)
    innocent.transport.write(b"x")
    late = await connect(clients)
    late.transport.write(b"y")
    for _ in range(500):
        if innocent.heard and late.heard:
            break
        await deferLater(reactor, 0.01)
    print(guilty.lost, innocent.heard, late.heard)

try:
    run(main)
except KeyboardInterrupt:
    print("the interrupt has ended run()")
"""


def test_an_interrupt_reaches_the_reactor_which_does_with_it_as_with_its_own_transports():
    """On asyncio it ends `run`; on the others it is logged, and all else goes on."""
    lines = run_script(QUIET + INTERRUPT)
    if type(the_reactor()).__name__ == "AsyncioSelectorReactor":
        assert lines == ["the interrupt has ended run()"]
    else:
        assert lines == ["True b'x' b'y'"]


async def test_a_factory_that_raises_when_it_stops_touches_nothing(logged_errors):
    class Stopping(Protocols):
        def stopFactory(self) -> None:
            raising(SystemExit)

    servers, clients = Protocols(), Stopping()
    async with serving(server_endpoint(the_reactor(), LOOPBACK, 0), servers) as port:
        connects = client_endpoint(the_reactor(), LOOPBACK, port.getHost().port, SocketOptions())
        one = await connects.connect(clients)
        other: Recorder = await connects.connect(Protocols())
        one.transport.abortConnection()
        await one.loses()
        await turns()
        assert other.reason is None
        other.transport.abortConnection()
        await other.loses()
    [event] = logged_errors
    assert event["log_failure"].check(SystemExit)
    logged_errors.clear()


async def test_a_socket_that_is_collected_in_another_thread_leaves_its_work_to_the_reactor(
    monkeypatch,
):
    threads: list[int] = []
    poller = poller_for(the_reactor())
    forget = type(poller).forget

    def noting(self: Any, watch: Any) -> None:
        threads.append(threading.get_ident())
        forget(self, watch)

    monkeypatch.setattr(type(poller), "forget", noting)
    gc.disable()
    try:
        here, there = chibi.open_socket_pair()
        number = here.fileno()
        waiting = here.recv(1)
        waiting.addErrback(lambda _: None)
        waiting.cancel()
        cycle: Any = here
        cycle.itself = cycle
        del here, cycle, waiting
        with warnings.catch_warnings(action="ignore", category=ResourceWarning):
            await deferToThread(gc.collect)
    finally:
        gc.enable()
    await until(lambda: not is_open(number))
    assert set(threads) == {threading.get_ident()}
    await there.close()
