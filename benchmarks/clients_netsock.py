"""Our awaitable sockets as clients, as README shows them."""

from __future__ import annotations

import time
from typing import Any

from .task import (
    CHUNK,
    HOST,
    MESSAGE,
    NAME,
    Task,
    file_to_send,
    install_reactor,
    measurements,
)


def client(task: Task) -> None:
    """Run *task* on the reactor that it names."""
    install_reactor(task.reactor)
    from twisted.internet.task import react

    from twisted_netsock import TLSSocketOptions, make_client_socket, make_client_tls_socket

    options = None
    if task.authority is not None:
        options = TLSSocketOptions(trusted_certificates=task.authority, sni=NAME)

    def make() -> Any:
        if options is None:
            return make_client_socket(HOST, task.port)
        return make_client_tls_socket(HOST, task.port, options)

    async def main(reactor: Any) -> None:
        if task.job == "connects":
            for watch in measurements():
                while time.perf_counter() < watch.end:
                    async with await make() as sock:
                        await sock.sendall(MESSAGE)
                        await sock.recv(64)
                    watch.count += 1
            return
        sock = await make()
        await LOOPS[task.job](sock)
        sock.abort()

    try:
        react(main)
    except SystemExit as ended:
        if ended.code:
            raise


async def round_trips(sock: Any) -> None:
    for watch in measurements():
        while time.perf_counter() < watch.end:
            await sock.sendall(MESSAGE)
            await sock.recv(64)
            watch.count += 1


async def receive(sock: Any) -> None:
    buffer = bytearray(len(CHUNK))
    for watch in measurements():
        while time.perf_counter() < watch.end:
            watch.count += await sock.recv_into(buffer)


async def send(sock: Any) -> None:
    for watch in measurements():
        while time.perf_counter() < watch.end:
            await sock.sendall(CHUNK)
            watch.count += len(CHUNK)


async def send_file(sock: Any) -> None:
    with file_to_send() as file:
        for watch in measurements():
            while time.perf_counter() < watch.end:
                watch.count += await sock.sendfile(file)


async def port_reads(sock: Any) -> None:
    port = sock.input_port
    for watch in measurements():
        while time.perf_counter() < watch.end:
            watch.count += len(await port.read(65536))


async def port_writes(sock: Any) -> None:
    port, piece = sock.output_port, bytes(16384)
    for watch in measurements():
        while time.perf_counter() < watch.end:
            await port.write(piece)
            watch.count += len(piece)


LOOPS = {
    "round-trips": round_trips,
    "receive": receive,
    "send": send,
    "send-file": send_file,
    "port-reads": port_reads,
    "port-writes": port_writes,
}

CLIENTS = {"netsock": client}
