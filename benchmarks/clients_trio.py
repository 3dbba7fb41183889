"""Trio's streams as a client."""

from __future__ import annotations

import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Any

from .task import CHUNK, HOST, MESSAGE, NAME, Task, measurements


def client(task: Task) -> None:
    """Run *task* on trio."""
    import trio

    context = None if task.authority is None else ssl.create_default_context(cafile=task.authority)

    async def make() -> Any:
        stream = await trio.open_tcp_stream(HOST, task.port)
        if context is None:
            return stream
        secure = trio.SSLStream(stream, context, server_hostname=NAME)
        await secure.do_handshake()
        return secure

    async def main() -> None:
        if task.job == "connects":
            await connects(make)
            return
        stream = await make()
        for watch in measurements():
            while time.perf_counter() < watch.end:
                if task.job == "round-trips":
                    await stream.send_all(MESSAGE)
                    await stream.receive_some(64)
                    watch.count += 1
                elif task.job == "receive":
                    watch.count += len(await stream.receive_some(65536))
                else:
                    await stream.send_all(CHUNK)
                    watch.count += len(CHUNK)
        await trio.aclose_forcefully(stream)

    trio.run(main)


async def connects(make: Callable[[], Awaitable[Any]]) -> None:
    """Connect, ask, close."""
    for watch in measurements():
        while time.perf_counter() < watch.end:
            async with await make() as stream:
                await stream.send_all(MESSAGE)
                await stream.receive_some(64)
            watch.count += 1


CLIENTS = {"trio": client}
