"""Connects that end early: cancelled, or out of time, at each stage; nothing stays behind."""

from __future__ import annotations

import contextlib
import socket
from datetime import timedelta

import pytest
from twisted.internet import error, reactor
from twisted.internet.defer import CancelledError, fail, succeed
from twisted.internet.interfaces import IStreamClientEndpoint
from zope.interface import implementer

from tests.support.clocks import turns
from tests.support.loopback import LOOPBACK, resolving
from tests.support.protocols import (
    Protocols,
    Recorder,
    accepted,
    full_listener,
    listening,
    raw_listener,
    raw_receive,
)
from twisted_netsock import (
    SocketBindError,
    SocketConnectionTimeoutError,
    SocketOptions,
    client_endpoint,
    server_endpoint,
)


@implementer(IStreamClientEndpoint)
class AtOnce:
    """An endpoint whose connect has an answer before it returns: an error, or no protocol."""

    def __init__(self, fails):
        self._fails = fails

    def connect(self, factory):
        return fail(error.ConnectError()) if self._fails else succeed(None)


# Cancelling


async def cancelled(connecting):
    """Cancel a connect that waits, and return what its Deferred fires with."""
    assert not connecting.called
    connecting.cancel()
    with pytest.raises(CancelledError):
        await connecting


async def test_a_connect_can_be_cancelled_while_the_name_is_looked_up(kind):
    clients = Protocols()
    with resolving({}, delay=None) as resolver:
        connecting = client_endpoint(reactor, "slow.example", 80, kind.client()).connect(clients)
        await turns()
        assert resolver.asked == ["slow.example"]
        await cancelled(connecting)
    assert clients.life == ["start", "stop"]


async def test_a_late_answer_of_a_cancelled_look_up_is_dropped():
    clients = Protocols()
    with raw_listener() as listener, resolving({"slow.example": [LOOPBACK]}, delay=0.01):
        where = client_endpoint(reactor, "slow.example", listener.getsockname()[1])
        await cancelled(where.connect(clients))
        await turns(20)
        with pytest.raises(BlockingIOError):
            listener.accept()


async def test_a_look_up_by_the_system_can_be_cancelled():
    connecting = client_endpoint(reactor, "localhost", "http").connect(Protocols())
    await cancelled(connecting)


async def test_a_connect_can_be_cancelled_while_it_is_not_answered(kind):
    clients = Protocols()
    with full_listener() as listener:
        where = client_endpoint(reactor, LOOPBACK, listener.getsockname()[1], kind.client())
        connecting = where.connect(clients)
        await turns()
        await cancelled(connecting)
    assert clients.built == []
    assert clients.life == ["start", "stop"]


async def test_a_connect_can_be_cancelled_between_two_attempts():
    with full_listener() as listener, resolving({"two.example": [LOOPBACK, "127.0.0.2"]}):
        where = client_endpoint(reactor, "two.example", listener.getsockname()[1])
        connecting = where.connect(Protocols())
        await turns(10)
        await cancelled(connecting)


async def test_a_connect_can_be_cancelled_during_the_handshake(authority):
    clients = Protocols()
    with raw_listener() as listener:
        where = client_endpoint(
            reactor, LOOPBACK, listener.getsockname()[1], authority.client_options()
        )
        connecting = where.connect(clients)
        with await accepted(listener) as peer:
            assert await raw_receive(peer)
            await cancelled(connecting)
            # The peer hears of it: an end, or a reset.
            with contextlib.suppress(ConnectionResetError):
                assert await raw_receive(peer) == b""
    assert clients.built == []
    assert clients.life == ["start", "stop"]


async def test_a_connect_can_be_cancelled_though_the_connection_stands():
    """Within one machine it stands at once, and is handed over in the next iteration."""
    clients = Protocols()
    with raw_listener() as listener:
        connecting = client_endpoint(reactor, LOOPBACK, listener.getsockname()[1]).connect(clients)
        await cancelled(connecting)
        with await accepted(listener) as peer:
            assert await raw_receive(peer) == b""
    assert clients.built == []
    assert clients.life == ["start", "stop"]


async def test_a_connect_can_be_cancelled_though_it_has_failed(tmp_path):
    clients = Protocols()
    unix = SocketOptions(ai_family=socket.AF_UNIX)
    await cancelled(client_endpoint(reactor, str(tmp_path / "none"), None, unix).connect(clients))
    await turns()
    assert clients.life == ["start", "stop"]


@pytest.mark.parametrize("fails", [False, True])
async def test_a_connect_over_an_endpoint_that_is_done_at_once_can_be_cancelled(authority, fails):
    clients = Protocols()
    where = client_endpoint(
        reactor, LOOPBACK, None, authority.client_options(), endpoint=AtOnce(fails)
    )
    await cancelled(where.connect(clients))
    await turns()
    assert clients.life == ["start", "stop"]


async def test_a_listen_can_be_cancelled_while_the_name_is_looked_up(kind):
    servers = Protocols()
    with resolving({}, delay=None):
        listen = server_endpoint(reactor, "slow.example", 0, kind.server()).listen(servers)
        await turns()
        await cancelled(listen)
    assert servers.life == []


@pytest.mark.parametrize("when", ["build", "made"])
async def test_a_connect_can_be_cancelled_by_the_factory_or_the_protocol(kind, when):
    class Cancelling(Recorder):
        def connectionMade(self):
            super().connectionMade()
            if when == "made":
                connecting.cancel()

    class Building(Protocols):
        def buildProtocol(self, addr):
            if when == "build":
                connecting.cancel()
            return super().buildProtocol(addr)

    servers, clients = Protocols(), Building(Cancelling)
    async with listening(kind.server(), servers) as port:
        where = client_endpoint(reactor, LOOPBACK, port.getHost().port, kind.client())
        connecting = where.connect(clients)
        with pytest.raises(CancelledError):
            await connecting
        assert clients.life == ["start", "stop"]
        if when == "made":
            await clients.built[0].loses()
            assert clients.built[0].events == ["made", "lost"]
        await servers.all_lost()
    assert clients.life == ["start", "stop"]


async def test_a_connect_that_is_done_cannot_be_cancelled():
    servers, clients = Protocols(), Protocols()
    async with listening(SocketOptions(), servers) as port:
        connecting = client_endpoint(reactor, LOOPBACK, port.getHost().port).connect(clients)
        protocol = await connecting
        connecting.cancel()
        await turns()
        assert protocol.transport.connected
        await clients.all_lost()


# Running out of time


async def times_out(connecting, clocked, seconds, stage):
    """Let the time pass that a connect has."""
    await turns(10)
    clocked.advance(seconds - 0.1)
    await turns()
    assert not connecting.called
    clocked.advance(0.2)
    with pytest.raises(SocketConnectionTimeoutError, match=stage) as caught:
        await connecting
    assert caught.value.stage == stage
    assert isinstance(caught.value, error.TimeoutError)
    assert isinstance(caught.value, TimeoutError)


TEN = {"connection_timeout": timedelta(seconds=10)}


async def test_connection_timeout_holds_for_the_look_up(kind, clocked):
    clients = Protocols()
    with resolving({}, delay=None):
        where = client_endpoint(clocked, "slow.example", 80, kind.client(**TEN))
        await times_out(where.connect(clients), clocked, 10, "look-up")
    assert clients.life == ["start", "stop"]


async def test_connection_timeout_holds_for_the_connect(kind, clocked):
    with full_listener() as listener:
        where = client_endpoint(clocked, LOOPBACK, listener.getsockname()[1], kind.client(**TEN))
        await times_out(where.connect(Protocols()), clocked, 10, "connect")


async def test_connection_timeout_holds_for_the_handshake(authority, clocked):
    with raw_listener() as listener:
        options = authority.client_options(**TEN)
        where = client_endpoint(clocked, LOOPBACK, listener.getsockname()[1], options)
        connecting = where.connect(Protocols())
        with await accepted(listener):
            await times_out(connecting, clocked, 10, "handshake")


async def test_connection_timeout_is_one_deadline_for_all_stages(authority, clocked):
    """What the look-up has used up is not there for the handshake."""
    with raw_listener() as listener, resolving({"slow.example": [LOOPBACK]}, delay=0.01):
        options = authority.client_options(**TEN)
        where = client_endpoint(clocked, "slow.example", listener.getsockname()[1], options)
        connecting = where.connect(Protocols())
        clocked.advance(6)
        with await accepted(listener):
            await times_out(connecting, clocked, 4, "handshake")


@pytest.mark.parametrize("fields", [{}, {"connection_timeout": timedelta(seconds=60)}])
async def test_handshake_timeout_holds_where_it_is_the_earlier(authority, clocked, fields):
    with raw_listener() as listener:
        options = authority.client_options(handshake_timeout=timedelta(seconds=7), **fields)
        where = client_endpoint(clocked, LOOPBACK, listener.getsockname()[1], options)
        connecting = where.connect(Protocols())
        with await accepted(listener):
            await times_out(connecting, clocked, 7, "handshake")


async def test_handshake_timeout_is_thirty_seconds_on_clients(authority, clocked):
    with raw_listener() as listener:
        where = client_endpoint(
            clocked, LOOPBACK, listener.getsockname()[1], authority.client_options()
        )
        connecting = where.connect(Protocols())
        with await accepted(listener):
            await times_out(connecting, clocked, 30, "handshake")


async def test_a_connection_in_time_leaves_no_timer(kind, clocked):
    servers, clients = Protocols(), Protocols()
    async with listening(kind.server(), servers) as port:
        where = client_endpoint(clocked, LOOPBACK, port.getHost().port, kind.client(**TEN))
        protocol = await where.connect(clients)
        assert clocked.getDelayedCalls() == []
        clocked.advance(60)
        await turns()
        assert protocol.transport.connected
        await clients.all_lost()


# Binding


async def test_an_address_that_is_taken_cannot_be_listened_on(kind):
    async with listening(kind.server(), Protocols()) as port:
        servers = Protocols()
        where = server_endpoint(reactor, LOOPBACK, port.getHost().port, kind.server())
        with pytest.raises(SocketBindError) as caught:
            await where.listen(servers)
    assert isinstance(caught.value, error.CannotListenError)
    assert caught.value.port == port.getHost().port
    assert servers.life == []


async def test_no_address_of_a_name_stays_bound_if_one_cannot_be():
    with raw_listener() as taken:
        port = taken.getsockname()[1]
        with resolving({"two.example": ["127.0.0.2", LOOPBACK]}), pytest.raises(SocketBindError):
            await server_endpoint(reactor, "two.example", port).listen(Protocols())
        with socket.create_server(("127.0.0.2", port)):
            pass


async def test_an_option_that_the_kernel_refuses_is_named():
    bad = SocketOptions(socket_options=(socket.SOL_SOCKET, 9999, 1))
    with pytest.raises(OSError, match=r"socket_options=\(1, 9999, 1\)"):
        await client_endpoint(reactor, LOOPBACK, 1, bad).connect(Protocols())
    with pytest.raises(OSError, match=r"socket_options=\(1, 9999, 1\)"):
        await server_endpoint(reactor, LOOPBACK, 0, bad).listen(Protocols())
