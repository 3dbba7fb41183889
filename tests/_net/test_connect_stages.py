"""The stages of connecting: how long they may take together, and what cancelling leaves."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from socket import EAI_AGAIN
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred

from tests.support.clocks import ClockedReactor, the_reactor, turns, until
from tests.support.loopback import (
    NAME,
    full,
    one_port,
    open_sockets,
    port_of,
    reactor_for,
    run_script,
)
from twisted_netsock import (
    HostNotFoundError,
    SocketConnectionError,
    SocketConnectionLostError,
    SocketConnectionRefusedError,
    SocketConnectionTimeoutError,
    SocketOptions,
    TLSHandshakeError,
    TLSSocketOptions,
    client_context_factory,
    make_server_tls_socket,
)
from twisted_netsock._io.poller import poller_for
from twisted_netsock._net import resolver
from twisted_netsock._net.connect import connect
from twisted_netsock._tls.client import ClientContextFactory
from twisted_netsock.testing import ScriptedResolver

STAGES = ["look-up", "connect", "handshake"]


@dataclass
class Stuck:
    """A way to get stuck at one stage of connecting."""

    stage: str
    stack: ExitStack
    reactor: ClockedReactor = field(default_factory=ClockedReactor)
    port: int = 80
    reached: Callable[[], object] = lambda: True

    def __post_init__(self) -> None:
        if self.stage == "look-up":
            self.reactor.nameResolver = ScriptedResolver({}, delay=None)
            return
        self.look_up_takes(0.0)
        (peer,) = self.stack.enter_context(one_port("127.0.0.2"))
        self.port = port_of(peer)
        if self.stage == "connect":
            self.stack.enter_context(full(peer))
            sockets = open_sockets()
            self.reached = lambda: open_sockets() > sockets
        else:
            peer.listen()
            peer.setblocking(False)
            self.reached = lambda: self._is_greeted(peer)

    def look_up_takes(self, seconds: float) -> None:
        self.reactor.nameResolver = ScriptedResolver(
            {NAME: ["127.0.0.2"]}, reactor=self.reactor if seconds else None, delay=seconds
        )

    def _is_greeted(self, peer: socket.socket) -> bool:
        try:
            connection, _ = peer.accept()
        except BlockingIOError:
            return False
        # It reads no greeting and gives none.
        self.stack.enter_context(connection)
        return True

    def begin(self, **fields: Any) -> Deferred[Any]:
        """Connect, over TLS if that is where it gets stuck."""
        if self.stage != "handshake":
            return connect(self.reactor, NAME, self.port, SocketOptions(**fields))
        options = TLSSocketOptions(**fields)
        factory = client_context_factory(options, NAME)
        return connect(self.reactor, NAME, self.port, options, factory)


@pytest.fixture
def stuck() -> Iterator[Callable[[str], Stuck]]:
    with ExitStack() as stack:
        yield lambda stage: Stuck(stage, stack)


async def reach(stuck):
    await until(stuck.reached)
    await turns(2)


# Time


@pytest.mark.parametrize("stage", STAGES)
async def test_connection_timeout_ends_every_stage_and_names_it(stuck, stage):
    place = stuck(stage)
    before = open_sockets()
    connecting = place.begin(connection_timeout=timedelta(seconds=10))
    await reach(place)
    place.reactor.clock.advance(9.9)
    assert not connecting.called
    place.reactor.clock.advance(0.2)
    with pytest.raises(SocketConnectionTimeoutError, match=stage) as caught:
        await connecting
    assert caught.value.stage == stage
    assert place.reactor.clock.getDelayedCalls() == []
    # What the peer of a handshake has accepted is the test's.
    assert open_sockets() == before + (stage == "handshake")


@pytest.mark.parametrize("stage", ["connect", "handshake"])
async def test_connection_timeout_is_one_for_all_stages(stuck, stage):
    place = stuck(stage)
    place.look_up_takes(6.0)
    connecting = place.begin(connection_timeout=timedelta(seconds=10))
    await turns(3)
    place.reactor.clock.advance(6.0)
    await reach(place)
    place.reactor.clock.advance(3.9)
    assert not connecting.called
    place.reactor.clock.advance(0.2)
    with pytest.raises(SocketConnectionTimeoutError) as caught:
        await connecting
    assert caught.value.stage == stage


@pytest.mark.parametrize(
    ("connection_timeout", "handshake_timeout"), [(None, 3), (10, 3), (3, 10), (3, None)]
)
async def test_the_earlier_of_two_timeouts_ends_the_handshake(
    stuck, connection_timeout, handshake_timeout
):
    def limit(seconds):
        return None if seconds is None else timedelta(seconds=seconds)

    place = stuck("handshake")
    connecting = place.begin(
        connection_timeout=limit(connection_timeout), handshake_timeout=limit(handshake_timeout)
    )
    await reach(place)
    place.reactor.clock.advance(2.9)
    assert not connecting.called
    place.reactor.clock.advance(0.2)
    with pytest.raises(SocketConnectionTimeoutError) as caught:
        await connecting
    assert caught.value.stage == "handshake"


@pytest.mark.parametrize("stage", STAGES)
async def test_without_a_timeout_nothing_is_given_up(stuck, stage):
    place = stuck(stage)
    more = {"handshake_timeout": None} if stage == "handshake" else {}
    connecting = place.begin(**more)
    await reach(place)
    place.reactor.clock.advance(100_000)
    await turns(2)
    assert not connecting.called
    connecting.cancel()
    with pytest.raises(CancelledError):
        await connecting


async def test_a_timeout_tells_what_the_attempts_before_gave():
    with one_port("127.0.0.2", "127.0.0.3") as (_, mute), full(mute):
        reactor = reactor_for("127.0.0.2", "127.0.0.3")
        before = open_sockets()
        options = SocketOptions(connection_timeout=timedelta(seconds=10))
        connecting = connect(reactor, NAME, port_of(mute), options)
        # The second attempt has begun when no more is to begin: only the deadline is left.
        await until(lambda: open_sockets() > before)
        await until(lambda: len(reactor.clock.getDelayedCalls()) == 1)
        reactor.clock.advance(10)
        with pytest.raises(SocketConnectionTimeoutError) as caught:
            await connecting
        error = caught.value
        assert error.stage == "connect"
        assert [(address.host, type(why)) for address, why in error.attempts] == [
            ("127.0.0.2", SocketConnectionRefusedError),
            ("127.0.0.3", SocketConnectionTimeoutError),
        ]


async def test_no_timer_is_left_when_the_connection_stands():
    with one_port("127.0.0.2") as (listener,):
        listener.listen()
        reactor = ClockedReactor()
        options = SocketOptions(connection_timeout=timedelta(seconds=10))
        established = await connect(reactor, "127.0.0.2", port_of(listener), options)
        assert reactor.clock.getDelayedCalls() == []
        established.close()


async def test_a_failure_is_not_taken_for_a_timeout():
    reactor = reactor_for()
    options = SocketOptions(connection_timeout=timedelta(seconds=10))
    with pytest.raises(HostNotFoundError):
        await connect(reactor, NAME, 80, options)
    assert reactor.clock.getDelayedCalls() == []


# Cancelling


@pytest.mark.parametrize("limit", [None, timedelta(seconds=10)])
@pytest.mark.parametrize("stage", STAGES)
async def test_cancelling_at_every_stage_leaves_nothing(stuck, stage, limit):
    place = stuck(stage)
    before = open_sockets()
    connecting = place.begin(connection_timeout=limit)
    await reach(place)
    connecting.cancel()
    with pytest.raises(CancelledError):
        await connecting
    assert place.reactor.clock.getDelayedCalls() == []
    assert open_sockets() == before + (stage == "handshake")
    await turns(3)


@contextmanager
def silent_hosts():
    """Give a reactor for which a name has three addresses, and a port where none answers."""
    hosts = ["127.0.0.2", "127.0.0.3", "127.0.0.4"]
    with one_port(*hosts) as socks, ExitStack() as stack:
        for sock in socks:
            stack.enter_context(full(sock))
        yield reactor_for(*hosts), port_of(socks[0])


async def test_cancelling_with_several_attempts_under_way_closes_all_of_them():
    with silent_hosts() as (reactor, port):
        before = open_sockets()
        connecting = connect(reactor, NAME, port, SocketOptions())
        await until(reactor.clock.getDelayedCalls)
        reactor.clock.advance(0.25)
        assert open_sockets() == before + 2
        assert reactor.clock.getDelayedCalls()
        connecting.cancel()
        with pytest.raises(CancelledError):
            await connecting
        assert (open_sockets(), reactor.clock.getDelayedCalls()) == (before, [])


@pytest.mark.parametrize("begun", [1, 2])
async def test_no_further_address_is_tried_when_the_reactor_stops(begun):
    with silent_hosts() as (reactor, port):
        before = open_sockets()
        connecting = connect(reactor, NAME, port, SocketOptions())
        await until(reactor.clock.getDelayedCalls)
        reactor.clock.advance(0.25 * (begun - 1))
        poller_for(reactor).lose_all()
        assert (open_sockets(), reactor.clock.getDelayedCalls()) == (before, [])
        with pytest.raises(SocketConnectionError, match="shut down") as caught:
            await connecting
        assert [type(why) for _, why in caught.value.attempts] == (
            [SocketConnectionLostError] * begun
        )


@pytest.mark.parametrize("limit", [None, timedelta(seconds=10)])
async def test_a_look_up_of_the_system_that_hangs_can_be_given_up(monkeypatch, limit):
    asked = threading.Event()
    gate = threading.Event()

    def hang(*_):
        asked.set()
        gate.wait(10)
        return []

    library = SimpleNamespace(**{**vars(socket), "getaddrinfo": hang})
    monkeypatch.setattr(resolver, "_socket", library)
    monkeypatch.setattr(resolver, "_threads", resolver.DaemonThreads(idle_seconds=0.01))
    reactor = ClockedReactor()
    connecting = connect(reactor, NAME, 80, SocketOptions(connection_timeout=limit))
    try:
        await until(asked.is_set)
        if limit is None:
            connecting.cancel()
            with pytest.raises(CancelledError):
                await connecting
        else:
            reactor.clock.advance(10)
            with pytest.raises(SocketConnectionTimeoutError, match="look-up"):
                await connecting
        assert reactor.clock.getDelayedCalls() == []
    finally:
        gate.set()


@pytest.mark.once
def test_a_look_up_under_way_fails_when_the_reactor_stops():
    lines = run_script(
        """
        import threading
        import time

        from twisted_netsock import (
            SocketOptions, chibi, client_endpoint, make_client_socket, make_server_socket
        )
        from twisted_netsock._net import resolver
        from twisted_netsock.testing import ScriptedResolver
        from twisted.internet.protocol import Factory

        asked = threading.Semaphore(0)

        def hang(*_):
            asked.release()
            time.sleep(60)

        resolver._socket.getaddrinfo = hang

        def reporting(name):
            return lambda failure: print(name, type(failure.value).__name__, failure.value.errno)

        def begin(name):
            make_client_socket("name.invalid", 80).addErrback(reporting(f"maker {name}"))
            endpoint = client_endpoint(reactor, "name.invalid", 80)
            endpoint.connect(Factory()).addErrback(reporting(f"endpoint {name}"))

        async def main():
            begin("system")
            make_server_socket("name.invalid", 80).addErrback(reporting("server"))
            chibi.get_address_info("name.invalid", 80).addErrback(reporting("chibi"))
            make_client_socket("given.up.invalid", 80).addErrback(lambda _: None).cancel()
            for _ in range(5):
                asked.acquire()
            ScriptedResolver({}, delay=None).install()
            begin("installed")

        run(main)
        """
    )
    assert set(lines) == {
        f"{name} HostNotFoundError {EAI_AGAIN}"
        for name in (
            "maker system",
            "endpoint system",
            "server",
            "chibi",
            "maker installed",
            "endpoint installed",
        )
    }


# The handshake


async def test_the_connection_is_verified_when_it_is_handed_over(authority):
    server = await make_server_tls_socket("127.0.0.1", 0, authority.server_options())
    accepting = server.accept()
    options = authority.client_options()
    factory = client_context_factory(options, "127.0.0.1")
    port = server.getsockname().port
    established = await connect(the_reactor(), "127.0.0.1", port, options, factory)
    accepted = await accepting
    assert established.descriptor.handshaken
    established.close()
    accepted.abort()
    await server.close()


async def test_the_handshake_can_be_left_to_the_caller():
    with one_port("127.0.0.2") as (listener,):
        listener.listen()
        options = TLSSocketOptions(handshake=False)
        factory = ClientContextFactory(options, "127.0.0.2")
        established = await connect(
            the_reactor(), "127.0.0.2", port_of(listener), options, factory
        )
        assert not established.descriptor.handshaken
        established.close()


async def test_a_handshake_that_fails_leaves_nothing():
    with one_port("127.0.0.2") as (listener,):
        listener.listen()
        options = TLSSocketOptions(connection_timeout=timedelta(seconds=10))
        factory = client_context_factory(options, "127.0.0.2")
        before = open_sockets()
        reactor = ClockedReactor()
        connecting = connect(reactor, "127.0.0.2", port_of(listener), options, factory)
        await turns(2)
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"220 this is no TLS\r\n")
            with pytest.raises(TLSHandshakeError):
                await connecting
        assert (open_sockets(), reactor.clock.getDelayedCalls()) == (before, [])
