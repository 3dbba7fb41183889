"""Clients that block: the standard library's sockets, and ours for threads."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

from .task import CHUNK, HOST, MESSAGE, NAME, Task, file_to_send, measurements

Maker = Callable[[], Any]


def standard(task: Task) -> Maker:
    """The standard library's, with what every library sets: ``TCP_NODELAY``."""
    context = None if task.authority is None else ssl.create_default_context(cafile=task.authority)

    def make() -> Any:
        sock = socket.create_connection((HOST, task.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock if context is None else context.wrap_socket(sock, server_hostname=NAME)

    return make


def facade(task: Task) -> Maker:
    """Those of `twisted_netsock.blocking`."""
    from twisted_netsock import TLSSocketOptions, blocking

    if task.authority is None:
        return lambda: blocking.make_client_socket(HOST, task.port)
    options = TLSSocketOptions(trusted_certificates=task.authority, sni=NAME)
    return lambda: blocking.make_client_tls_socket(HOST, task.port, options)


def steps(job: str, sock: Any) -> Callable[[], int]:
    """Return one operation of *job* on *sock*, which returns what it adds to the count."""
    buffer = bytearray(len(CHUNK))

    def round_trip() -> int:
        sock.sendall(MESSAGE)
        sock.recv(64)
        return 1

    def send() -> int:
        sock.sendall(CHUNK)
        return len(CHUNK)

    if job == "round-trips":
        return round_trip
    if job == "receive":
        return lambda: sock.recv_into(buffer)
    if job == "send-file":
        file = file_to_send()
        return lambda: sock.sendfile(file)
    if job == "send":
        return send
    if job == "port-reads":
        reader = sock.input_port if hasattr(sock, "input_port") else sock.makefile("rb", 65536)
        return lambda: len(reader.read(65536))
    writer = sock.output_port if hasattr(sock, "output_port") else sock.makefile("wb", 65536)
    piece = bytes(16384)
    return lambda: writer.write(piece)


def connects(make: Maker) -> None:
    """Connect, ask, close."""
    for watch in measurements():
        while time.perf_counter() < watch.end:
            with make() as sock:
                sock.sendall(MESSAGE)
                sock.recv(64)
            watch.count += 1


def run(maker: Callable[[Task], Maker]) -> Callable[[Task], None]:
    """Return the client that makes its sockets so."""

    def client(task: Task) -> None:
        make = maker(task)
        if task.job == "connects":
            connects(make)
            return
        sock = make()
        step = steps(task.job, sock)
        for watch in measurements():
            while time.perf_counter() < watch.end:
                watch.count += step()
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)

    return client


CLIENTS = {"blocking": run(standard), "facade": run(facade)}
