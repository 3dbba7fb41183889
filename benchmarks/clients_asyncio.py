"""Clients of asyncio, on its own loop and on uvloop: streams, protocols, ``sock_*``; and anyio."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Coroutine
from typing import Any

from .task import CHUNK, HOST, MESSAGE, NAME, Task, measurements


def context_of(task: Task) -> ssl.SSLContext | None:
    """Return what makes it TLS, or `None`."""
    return None if task.authority is None else ssl.create_default_context(cafile=task.authority)


def arguments_of(task: Task) -> dict[str, Any]:
    """Return the arguments of asyncio's calls that make it TLS."""
    context = context_of(task)
    return {} if context is None else {"ssl": context, "server_hostname": NAME}


async def streams(task: Task) -> None:
    """``open_connection``."""
    tls = arguments_of(task)
    if task.job == "connects":
        for watch in measurements():
            while time.perf_counter() < watch.end:
                reader, writer = await asyncio.open_connection(HOST, task.port, **tls)
                writer.write(MESSAGE)
                await reader.read(64)
                writer.close()
                await writer.wait_closed()
                watch.count += 1
        return
    reader, writer = await asyncio.open_connection(HOST, task.port, **tls)
    for watch in measurements():
        while time.perf_counter() < watch.end:
            if task.job == "round-trips":
                writer.write(MESSAGE)
                await writer.drain()
                await reader.read(64)
                watch.count += 1
            elif task.job == "receive":
                watch.count += len(await reader.read(65536))
            else:
                writer.write(CHUNK)
                await writer.drain()
                watch.count += len(CHUNK)
    writer.transport.abort()


class Client(asyncio.Protocol):
    """A protocol whose watch is handed on."""

    def __init__(self, job: str, watches: Any, over: asyncio.Future[None]) -> None:
        self.job, self.watches, self.over = job, watches, over
        self.watch: Any = None
        self.transport: Any = None
        self.paused = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        if self.next():
            self.begin()

    def next(self) -> bool:
        """Hand the watch back and wait for another; return whether there is one."""
        self.watch = next(self.watches, None)
        if self.watch is None:
            self.transport.abort()
            self.over.set_result(None)
        return self.watch is not None

    def begin(self) -> None:
        if self.job == "round-trips":
            self.transport.write(MESSAGE)
        elif self.job == "send":
            self.resume_writing()

    def data_received(self, data: bytes) -> None:
        if self.job == "receive":
            self.watch.count += len(data)
            if time.perf_counter() >= self.watch.end:
                self.next()
            return
        self.watch.count += 1
        if time.perf_counter() < self.watch.end or self.next():
            self.transport.write(MESSAGE)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        while not self.paused:
            if time.perf_counter() >= self.watch.end and not self.next():
                break
            self.transport.write(CHUNK)
            self.watch.count += len(CHUNK)


async def protocol(task: Task) -> None:
    """``create_connection``."""
    loop = asyncio.get_running_loop()
    tls = arguments_of(task)
    if task.job != "connects":
        over = loop.create_future()
        watches = measurements()
        await loop.create_connection(
            lambda: Client(task.job, watches, over), HOST, task.port, **tls
        )
        await over
        return

    class Asking(asyncio.Protocol):
        def __init__(self) -> None:
            self.lost = loop.create_future()

        def connection_made(self, transport: Any) -> None:
            self.transport = transport
            transport.write(MESSAGE)

        def data_received(self, data: bytes) -> None:
            self.transport.close()

        def connection_lost(self, error: Exception | None) -> None:
            self.lost.set_result(None)

    for watch in measurements():
        while time.perf_counter() < watch.end:
            _, asking = await loop.create_connection(Asking, HOST, task.port, **tls)
            await asking.lost
            watch.count += 1


async def sock_calls(task: Task) -> None:
    """``sock_sendall`` and ``sock_recv``, which know no TLS."""
    loop = asyncio.get_running_loop()

    async def make() -> socket.socket:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await loop.sock_connect(sock, (HOST, task.port))
        return sock

    if task.job == "connects":
        for watch in measurements():
            while time.perf_counter() < watch.end:
                with await make() as sock:
                    await loop.sock_sendall(sock, MESSAGE)
                    await loop.sock_recv(sock, 64)
                watch.count += 1
        return
    sock, buffer = await make(), bytearray(len(CHUNK))
    for watch in measurements():
        while time.perf_counter() < watch.end:
            if task.job == "round-trips":
                await loop.sock_sendall(sock, MESSAGE)
                await loop.sock_recv(sock, 64)
                watch.count += 1
            elif task.job == "receive":
                watch.count += await loop.sock_recv_into(sock, buffer)
            else:
                await loop.sock_sendall(sock, CHUNK)
                watch.count += len(CHUNK)
    sock.close()


async def with_anyio(task: Task) -> None:
    """``anyio.connect_tcp``."""
    import anyio

    context = context_of(task)
    tls: dict[str, Any] = {}
    if context is not None:
        tls = {"ssl_context": context, "tls_hostname": NAME}

    async def make() -> Any:
        return await anyio.connect_tcp(HOST, task.port, **tls)

    if task.job == "connects":
        for watch in measurements():
            while time.perf_counter() < watch.end:
                async with await make() as stream:
                    await stream.send(MESSAGE)
                    await stream.receive(64)
                watch.count += 1
        return
    stream = await make()
    for watch in measurements():
        while time.perf_counter() < watch.end:
            if task.job == "round-trips":
                await stream.send(MESSAGE)
                await stream.receive(64)
                watch.count += 1
            elif task.job == "receive":
                watch.count += len(await stream.receive(65536))
            else:
                await stream.send(CHUNK)
                watch.count += len(CHUNK)
    await anyio.aclose_forcefully(stream)


def run(main: Callable[[Task], Coroutine[Any, Any, None]], *, uvloop: bool = False) -> Any:
    """Return the client that runs *main* on asyncio's loop, or on uvloop."""

    def client(task: Task) -> None:
        factory = None
        if uvloop:
            import uvloop as fast

            factory = fast.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main(task))

    return client


CLIENTS: dict[str, Callable[[Task], None]] = {
    "asyncio-streams": run(streams),
    "asyncio-protocol": run(protocol),
    "asyncio-sock": run(sock_calls),
    "uvloop-streams": run(streams, uvloop=True),
    "uvloop-protocol": run(protocol, uvloop=True),
    "anyio": run(with_anyio),
}
