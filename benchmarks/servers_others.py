"""Echo servers of asyncio, on its own loop and on uvloop, of trio and of anyio."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any

from .clients_asyncio import run
from .task import HOST, Task, serves


def context_of(task: Task) -> ssl.SSLContext | None:
    """Return what makes it TLS, or `None`."""
    if task.certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(task.certificate)
    return context


def listener(*, blocking: bool = False) -> socket.socket:
    """Return a listening socket whose number of protocol has asyncio set ``TCP_NODELAY``."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((HOST, 0))
    sock.listen(1024)
    sock.setblocking(blocking)
    return sock


async def streams(task: Task) -> None:
    """``start_server``."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        writer.close()

    sock = listener()
    server = await asyncio.start_server(echo, sock=sock, ssl=context_of(task), backlog=1024)
    serves(sock.getsockname()[1])
    await server.serve_forever()


class Echo(asyncio.Protocol):
    """Sends back what comes, and pauses while that waits."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


async def protocol(task: Task) -> None:
    """``create_server``."""
    sock = listener()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Echo, sock=sock, ssl=context_of(task), backlog=1024)
    serves(sock.getsockname()[1])
    await server.serve_forever()


async def sock_calls(task: Task) -> None:
    """``sock_accept``, ``sock_recv`` and ``sock_sendall``, which know no TLS."""
    loop, sock, running = asyncio.get_running_loop(), listener(), set()

    async def echo(connection: socket.socket) -> None:
        with connection:
            try:
                while data := await loop.sock_recv(connection, 65536):
                    await loop.sock_sendall(connection, data)
            except ConnectionError:
                pass

    serves(sock.getsockname()[1])
    while True:
        connection, _ = await loop.sock_accept(sock)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        echoing = asyncio.ensure_future(echo(connection))
        running.add(echoing)
        echoing.add_done_callback(running.discard)


def with_trio(task: Task) -> None:
    """``trio.serve_listeners``."""
    import trio

    context = context_of(task)

    async def echo(stream: Any) -> None:
        try:
            while data := await stream.receive_some(65536):
                await stream.send_all(data)
        except trio.BrokenResourceError:
            pass

    async def main() -> None:
        listeners: list[Any] = await trio.open_tcp_listeners(0, host=HOST, backlog=1024)
        serves(listeners[0].socket.getsockname()[1])
        if context is not None:
            listeners = [trio.SSLListener(each, context) for each in listeners]
        await trio.serve_listeners(echo, listeners)

    trio.run(main)


async def with_anyio(task: Task) -> None:
    """``anyio.create_tcp_listener``."""
    import anyio
    from anyio.abc import SocketAttribute
    from anyio.streams.tls import TLSListener

    context = context_of(task)

    async def echo(stream: Any) -> None:
        try:
            async for data in stream:
                await stream.send(data)
        except anyio.BrokenResourceError:
            pass
        await anyio.aclose_forcefully(stream)

    tcp = await anyio.create_tcp_listener(local_host=HOST, local_port=0, backlog=1024)
    serves(tcp.listeners[0].extra(SocketAttribute.local_port))
    served: Any = tcp if context is None else TLSListener(tcp, context)
    await served.serve(echo)


SERVERS: dict[str, Callable[[Task], None]] = {
    "asyncio-streams": run(streams),
    "asyncio-protocol": run(protocol),
    "asyncio-sock": run(sock_calls),
    "uvloop-streams": run(streams, uvloop=True),
    "uvloop-protocol": run(protocol, uvloop=True),
    "trio": with_trio,
    "anyio": run(with_anyio),
}
