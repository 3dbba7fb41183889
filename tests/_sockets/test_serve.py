"""`Socket.serve`: the accept loop, its bound, and what becomes of each connection."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import deferLater

from tests.support.clocks import ClockedReactor, turns, until
from tests.support.streams import Streams, TCPStreams, TLSStreams, UNIXStreams, soon
from twisted_netsock import Socket, SocketBusyError, SocketError, TLSSocket
from twisted_netsock._io.poller import poller_for
from twisted_netsock.testing import connected_pair


@pytest.fixture(params=["tcp", "unix", "tls"])
def streams(request, tmp_path, authority) -> Streams:
    kinds = {
        "tcp": TCPStreams,
        "unix": lambda: UNIXStreams(tmp_path),
        "tls": lambda: TLSStreams(authority),
    }
    return kinds[request.param]()


class Service:
    """A listener that serves, and its clients."""

    def __init__(self, streams: Streams, listener: Socket, served: Deferred[None]) -> None:
        self._streams = streams
        self.listener = listener
        self.served = served
        self.clients: list[Any] = []

    async def client(self) -> Any:
        client = await soon(self._streams.connect(self.listener))
        self.clients.append(client)
        return client

    async def end(self) -> None:
        for client in self.clients:
            client.abort()
        self.listener.close()
        await soon(self.served)


@contextlib.asynccontextmanager
async def serving(streams: Streams, handler: Any, **how: Any) -> AsyncIterator[Service]:
    listener = await streams.listen()
    service = Service(streams, listener, listener.serve(handler, **how))
    try:
        yield service
    finally:
        await service.end()


async def echo(connection: Socket) -> None:
    while data := await connection.recv(1000):
        await connection.sendall(data)


async def test_each_connection_is_handled_and_closed(streams):
    async with serving(streams, echo) as service:
        clients = [await service.client() for _ in range(5)]
        for number, client in enumerate(clients):
            await client.sendall(b"%d" % number)
        for number, client in enumerate(clients):
            assert await soon(client.recv(10)) == b"%d" % number
            await client.shutdown(1)
            assert await soon(client.recv(10)) == b""


async def test_the_handler_gets_a_socket_of_the_listener_s_kind(streams):
    kinds = []
    async with serving(streams, lambda connection: kinds.append(type(connection))) as service:
        client = await service.client()
        assert await soon(client.recv(1)) == b""
        assert kinds == [type(service.listener)]


@pytest.mark.parametrize("made", ["nothing", "deferred"])
async def test_a_handler_need_not_be_a_coroutine_function(made):
    seen = []

    def handler(connection: Socket) -> Any:
        seen.append(connection)
        return None if made == "nothing" else succeed(None)

    async with serving(TCPStreams(), handler) as service:
        client = await service.client()
        assert await soon(client.recv(1)) == b""
        assert seen[0].closed


async def test_it_is_done_when_the_listener_is_closed_and_every_handler_has_ended():
    go_on: Deferred[None] = Deferred()

    async def handler(connection: Socket) -> None:
        await go_on
        await connection.sendall(b"at last")

    async with serving(TCPStreams(), handler) as service:
        client = await service.client()
        await turns()
        service.listener.close()
        await turns()
        assert not service.served.called
        go_on.callback(None)
        assert await soon(client.recv(10)) == b"at last"
        assert await soon(service.served) is None


# The bound


async def test_no_more_than_the_limit_are_served_at_a_time(streams):
    running: list[Deferred[None]] = []
    most = 0

    async def handler(_: Socket) -> None:
        nonlocal most
        waiting: Deferred[None] = Deferred()
        running.append(waiting)
        most = max(most, len(running))
        await waiting

    async def visit(service: Service) -> None:
        client = await service.client()
        assert await soon(client.recv(1)) == b""
        await client.close()

    async with serving(streams, handler, limit=2) as service:
        visits = [Deferred.fromCoroutine(visit(service)) for _ in range(6)]
        for _ in range(6):
            await until(lambda: running)
            await turns()
            running.pop(0).callback(None)
        for each in visits:
            await soon(each)
        assert most == 2


async def test_a_connection_counts_until_its_tls_shutdown_is_done(authority):
    """One whose peer never answers the goodbye holds its place as long as it is open."""
    began = []
    streams = TLSStreams(authority)
    async with serving(streams, began.append, limit=1) as service:
        await service.client()
        await until(lambda: began)
        second = streams.connect(service.listener)
        await turns(20)
        assert len(began) == 1
        service.clients.pop().abort()
        service.clients.append(await soon(second))
        await until(lambda: len(began) == 2)


@pytest.mark.parametrize("limit", [0, -1])
async def test_a_limit_below_one_is_refused(limit):
    async with await TCPStreams().listen() as listener:
        with pytest.raises(ValueError, match=f"limit={limit} must be"):
            listener.serve(echo, limit=limit)


async def test_what_is_no_limit_or_no_handler_is_refused():
    async with await TCPStreams().listen() as listener:
        with pytest.raises(TypeError, match="limit must be"):
            listener.serve(echo, limit=1.5)
        with pytest.raises(TypeError, match="handler=7"):
            listener.serve(7)


# Failures


async def test_what_a_handler_raises_is_logged_and_touches_nobody_else(streams, logged_errors):
    async def handler(connection: Socket) -> None:
        if await connection.recv(10) == b"bad":
            raise RuntimeError("a mistake")
        await echo(connection)

    async with serving(streams, handler) as service:
        good, bad = [await service.client() for _ in range(2)]
        await good.sendall(b"good")
        await bad.sendall(b"bad")
        assert await soon(bad.recv(10)) == b""
        await good.sendall(b"still here")
        assert await soon(good.recv(100)) == b"still here"
        assert [str(event["log_failure"].value) for event in logged_errors] == ["a mistake"]
        logged_errors.clear()


async def test_a_handler_that_is_no_coroutine_function_may_raise_too(logged_errors):
    def handler(_: Socket) -> None:
        raise RuntimeError("a mistake")

    async with serving(TCPStreams(), handler) as service:
        client = await service.client()
        assert await soon(client.recv(10)) == b""
        assert len(logged_errors) == 1
        logged_errors.clear()


async def test_a_connection_that_breaks_is_a_line_in_the_log(log_lines):
    async with serving(TCPStreams(), echo) as service:
        client = await service.client()
        await client.sendall(b"x")
        await soon(client.recv(1))
        client.abort()
        await until(lambda: any("serving 127.0.0.1" in line for line in log_lines))


async def test_an_error_of_another_connection_is_the_handler_s_mistake(logged_errors):
    one, other = connected_pair()

    async def handler(_: Socket) -> None:
        other.abort()
        await one.recv(1)

    async with serving(TCPStreams(), handler) as service:
        client = await service.client()
        assert await soon(client.recv(10)) == b""
        assert len(logged_errors) == 1
        logged_errors.clear()
    one.close()


async def test_a_socket_that_does_not_listen_serves_nobody():
    one, other = connected_pair()
    with pytest.raises(SocketError):
        await one.serve(echo)
    one.close()
    other.close()


async def test_two_do_not_serve_at_once():
    async with serving(TCPStreams(), echo) as service:
        with pytest.raises(SocketBusyError):
            await service.listener.serve(echo)
        with pytest.raises(SocketBusyError):
            await service.listener.accept()


# Cancelling


async def test_cancelling_ends_the_handlers_and_leaves_the_listener_open(streams):
    ended = []

    async def handler(connection: Socket) -> None:
        try:
            await connection.recv(1)
        except CancelledError:
            ended.append(connection)
            raise

    listener = await streams.listen()
    served = listener.serve(handler)
    client = await soon(streams.connect(listener))
    await turns()
    served.cancel()
    with pytest.raises(CancelledError):
        await served
    assert [connection.closed for connection in ended] == [True]
    assert await soon(client.recv(1)) == b""
    client.close()
    again = listener.serve(echo)
    client = await soon(streams.connect(listener))
    await client.sendall(b"still")
    assert await soon(client.recv(10)) == b"still"
    client.abort()
    listener.close()
    await soon(again)


async def test_cancelling_while_it_is_full_ends_it_too():
    async def handler(connection: Socket) -> None:
        await connection.recv(1)

    listener = await TCPStreams().listen()
    served = listener.serve(handler, limit=1)
    client = await soon(TCPStreams().connect(listener))
    await turns()
    served.cancel()
    with pytest.raises(CancelledError):
        await served
    client.abort()
    listener.close()


async def test_cancelling_during_a_tls_shutdown_leaves_it_to_its_time_limit(streams):
    listener = await streams.listen()
    served = listener.serve(lambda connection: connection.sendall(b"that is all"))
    client = await soon(streams.connect(listener))
    await turns()
    served.cancel()
    with pytest.raises(CancelledError):
        await served
    assert await soon(client.recv(100)) == b"that is all"
    assert await soon(client.recv(100)) == b""
    await soon(client.close())
    await turns()
    listener.close()


# Manners


async def test_a_flood_of_connections_leaves_the_reactor_its_turns():
    """Connections are taken in batches, and what else is due comes in between."""
    taken: list[Socket] = []
    at_the_timer: list[int] = []
    listener = await TCPStreams().listen(backlog=512)
    clients = [await soon(TCPStreams().connect(listener)) for _ in range(300)]
    timer = deferLater(reactor, 0, lambda: at_the_timer.append(len(taken)))
    served = listener.serve(taken.append)
    await soon(timer)
    assert at_the_timer[0] < 300
    await until(lambda: len(taken) == 300)
    for client in clients:
        client.abort()
    listener.close()
    await soon(served)


async def test_a_tls_listener_serves_verified_connections_alone(authority, other_authority):
    seen = []
    streams, strangers = TLSStreams(authority), TLSStreams(other_authority)
    async with serving(streams, seen.append) as service:
        with pytest.raises(SocketError):
            await strangers.connect(service.listener)
        client = await service.client()
        assert await soon(client.recv(1)) == b""
        assert [type(each) for each in seen] == [TLSSocket]
        assert isinstance(service.listener, TLSSocket)
        assert service.listener.failed_handshakes == 1


async def test_the_end_of_the_reactor_is_a_line_for_each_connection(log_lines):
    """It is no mistake of the handlers: nothing with a traceback."""
    clock = ClockedReactor()
    streams = TCPStreams()
    listener = await streams.listen(reactor=clock)
    served = listener.serve(lambda connection: connection.recv(1))
    clients = [await soon(streams.connect(listener)) for _ in range(3)]
    await turns()
    poller_for(clock).lose_all()
    await soon(served)
    told = [line for line in log_lines if line.startswith("serving 127.0.0.1")]
    assert len(told) == 3
    assert all("The reactor was shut down" in line for line in told)
    for client in clients:
        client.abort()
    listener.close()
