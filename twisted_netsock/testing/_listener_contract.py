"""`ListenerContract`: tests for anybody's listening sockets."""

from __future__ import annotations

import socket as _socket
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred

from .._public import public_in
from ..errors import SocketBusyError, SocketClosedError, SocketError
from ._contract import Contract, UnderTest, check, equal

__all__ = ["ListenerContract"]

_SEVERAL: Final = 3


@public_in("twisted_netsock.testing")
class ListenerContract(Contract):
    """
    Tests for listening stream sockets: mix it into a class of tests.

    The class supplies `make_listener` and `make_client`. The tests are coroutine
    methods, as those of `ClientEndpointContract`.
    """

    def make_listener(self) -> Awaitable[object]:
        """
        Make a socket that listens; for the class to supply.

        Returns:
            A Deferred or coroutine that gives the socket to test. The tests close it.
        """
        raise NotImplementedError(f"{type(self).__name__} must supply make_listener")

    def make_client(self, listener: Any) -> Awaitable[object]:
        """
        Connect to *listener*; for the class to supply.

        Args:
            listener: What `make_listener` has given. Some tests have it accept only
                when the client is connected or waits to be.

        Returns:
            A Deferred or coroutine that gives the connected socket. The tests close it.
        """
        raise NotImplementedError(f"{type(self).__name__} must supply make_client")

    @asynccontextmanager
    async def _listener(self) -> AsyncIterator[tuple[UnderTest, list[UnderTest]]]:
        """Give a listener, and a list of sockets that are closed with it."""
        listener = await self._soon(self.make_listener(), "the listener is made")
        made: list[UnderTest] = []
        try:
            yield listener, made
        finally:
            for each in (*made, listener):
                each.abort()

    def _connect(self, listener: UnderTest, made: list[UnderTest]) -> Deferred[UnderTest]:
        """Begin to connect."""

        async def connect() -> UnderTest:
            made.append(await self._soon(self.make_client(listener), "the client is connected"))
            return made[-1]

        return Deferred.fromCoroutine(connect())

    async def test_connections_are_accepted_one_by_one(self) -> None:
        """Each once, also those that came before."""
        async with self._listener() as (listener, made):
            connecting = [self._connect(listener, made) for _ in range(5)]
            accepted = [await self._soon(listener.accept(), "a connection") for _ in connecting]
            clients = [await each for each in connecting]
            made.extend(accepted)
            if clients[0].family != _socket.AF_UNIX:
                names = {each.getsockname() for each in clients}
                equal({each.getpeername() for each in accepted}, names, "the clients' addresses")

    async def test_a_cancelled_accept_leaves_the_connection_to_the_next(self) -> None:
        """Which takes it."""
        async with self._listener() as (listener, made):
            for _ in range(2):
                accepting = listener.accept()
                await self._turns(2)
                accepting.cancel()
                await self._fails(accepting, CancelledError, "a cancelled accept")
            connecting = self._connect(listener, made)
            made.append(accepted := await self._soon(listener.accept(), "a connection"))
            client = await connecting
            equal(accepted.getpeername(), client.getsockname(), "the client's address")

    async def test_a_second_accept_is_refused(self) -> None:
        """While the first waits, which it leaves alone."""
        async with self._listener() as (listener, made):
            first = listener.accept()
            await self._fails(listener.accept(), SocketBusyError, "a second accept")
            connecting = self._connect(listener, made)
            made.append(await self._soon(first, "a connection"))
            await connecting

    async def test_closing_the_listener_fails_an_accept_that_waits(self) -> None:
        """Before it returns, whether by close or abort."""
        for end in ("close", "abort"):
            async with self._listener() as (listener, _):
                accepting = listener.accept()
                getattr(listener, end)()
                check(listener.closed, f"closed must be true when {end} returns")
                check(accepting.called, f"an accept must have failed when {end} returns")
                await self._fails(accepting, SocketClosedError, "an accept during close")
                await self._fails(listener.accept(), SocketClosedError, "an accept after close")

    async def test_async_for_accepts_until_the_listener_is_closed(self) -> None:
        """And ends quietly then, whichever side closes it."""
        async with self._listener() as (listener, made):
            accepted: list[UnderTest] = []

            async def serve() -> str:
                async for connection in listener:
                    accepted.append(connection)
                    made.append(connection)
                    if len(accepted) > _SEVERAL:
                        listener.close()
                return "ended quietly"

            serving = Deferred.fromCoroutine(serve())
            for _ in range(_SEVERAL):
                await self._connect(listener, made)
            await self._until(lambda: len(accepted) == _SEVERAL, "the connections are accepted")
            check(not serving.called, "the loop must go on while the listener is open")
            await self._connect(listener, made)
            equal(await self._soon(serving, "the loop ends"), "ended quietly", "the loop")
        async with self._listener() as (listener, made):

            async def wait() -> None:
                async for _ in listener:
                    raise AssertionError("nobody has connected")

            waiting = Deferred.fromCoroutine(wait())
            listener.close()
            await self._soon(waiting, "the loop ends")

    async def test_a_callback_of_an_accept_may_accept_again_and_close_the_listener(self) -> None:
        """Within the same call."""
        async with self._listener() as (listener, made):
            accepted: list[UnderTest] = []

            def again(connection: UnderTest) -> object:
                accepted.append(connection)
                made.append(connection)
                if len(accepted) < _SEVERAL:
                    return listener.accept().addCallback(again)
                listener.close()
                return None

            accepting = listener.accept().addCallback(again)
            connecting = [self._connect(listener, made) for _ in range(_SEVERAL)]
            await self._soon(accepting, "the connections are accepted")
            for each in connecting:
                await each
            check(listener.closed, "closed must be true when close returns")

    async def test_a_listener_has_no_data_and_a_connection_accepts_nothing(self) -> None:
        """Those calls fail, and take nothing along."""
        async with self._listener() as (listener, made):
            await self._fails(listener.recv(1), SocketError, "a receive from a listener")
            await self._fails(listener.sendall(b"x"), SocketError, "a send to a listener")
            self._refuses(SocketError, "getpeername", listener.getpeername)
            connecting = self._connect(listener, made)
            made.append(accepted := await self._soon(listener.accept(), "a connection"))
            for each in (accepted, await connecting):
                await self._fails(each.accept(), SocketError, "accept of a connection")
