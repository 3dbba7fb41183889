"""A proxy in this process, of SOCKS5 or HTTP, that keeps what it was asked and sent."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from twisted.internet.defer import Deferred

from tests.support.loopback import LOOPBACK
from tests.support.streams import read_exactly, together
from twisted_netsock import NetsockError, Socket, make_client_socket, make_server_socket

SCHEMES = ("socks5", "http")


class Proxy:
    """
    It takes whatever name it is asked for as this machine's.

    Attributes:
        url: Where it is.
        asked: The hosts and ports that it was to connect to.
        first: What it was sent first behind each answer.
        too_early: Whether anything came before its answer.
        passes_half_close: Whether it goes on when the client has ended its direction.
    """

    def __init__(self, scheme: str, port: int) -> None:
        self._answer = {"socks5": self._socks5, "http": self._http}[scheme]
        self.url = f"{scheme}://{LOOPBACK}:{port}"
        self.asked: list[tuple[str, int]] = []
        self.first: list[bytes] = []
        self.too_early = False
        self.passes_half_close = True

    async def serve(self, client: Socket) -> None:
        with contextlib.suppress(NetsockError):
            host, port, granted = await self._answer(client)
            self.asked.append((host, port))
            async with await make_client_socket(LOOPBACK, port) as target:
                waiting = fcntl.ioctl(client.fileno(), termios.FIONREAD, bytes(4))
                self.too_early |= any(waiting)
                await client.sendall(granted)
                await together(
                    self._pass_on(client, target, self.first), self._pass_on(target, client)
                )

    async def _socks5(self, client: Socket) -> tuple[str, int, bytes]:
        count = (await read_exactly(client, 2))[1]
        assert 0 in await read_exactly(client, count)
        await client.sendall(b"\x05\x00")
        kind = (await read_exactly(client, 4))[3]
        if kind == 3:
            host = (await read_exactly(client, (await read_exactly(client, 1))[0])).decode()
        else:
            family, size = {1: (socket.AF_INET, 4), 4: (socket.AF_INET6, 16)}[kind]
            host = socket.inet_ntop(family, await read_exactly(client, size))
        port = int.from_bytes(await read_exactly(client, 2))
        return host, port, b"\x05\x00\x00\x01" + bytes(6)

    async def _http(self, client: Socket) -> tuple[str, int, bytes]:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await read_exactly(client, 1)
        method, place, version = head.split(b"\r\n")[0].decode().split()
        assert (method, version) == ("CONNECT", "HTTP/1.1")
        host, _, port = place.rpartition(":")
        return host, int(port), b"HTTP/1.1 200 OK\r\n\r\n"

    async def _pass_on(self, one: Socket, other: Socket, first: list[bytes] | None = None) -> None:
        """Pass all that comes, and the end, on."""
        while data := await one.recv(65536):
            if first is not None:
                first.append(data)
                first = None
            await other.sendall(data)
        if self.passes_half_close:
            await other.shutdown(socket.SHUT_WR)
        else:
            await other.close()
            await one.close()


@asynccontextmanager
async def proxying(scheme: str) -> AsyncIterator[Proxy]:
    """Run a proxy; all that it connects has ended at the end."""
    async with await make_server_socket(LOOPBACK, 0) as listener:
        proxy = Proxy(scheme, listener.getsockname().port)
        serving: Deferred[Any] = listener.serve(proxy.serve)
        yield proxy
    await serving
