"""Blocking sockets, ours and the standard library's, in the scenarios that both have."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import sys
import time
from collections.abc import Callable
from typing import Any

SCENARIOS = {
    "blocking-round-trips": "64 bytes there and back on one connection",
    "blocking-tls-round-trips": "the same over TLS",
    "blocking-recv_into": "bytes received in bulk",
    "blocking-sendall": "bytes sent in bulk",
    "blocking-input-port": "bytes read in bulk through a buffered reader",
    "blocking-output-port": "bytes written in bulk through a buffered writer",
    "blocking-tls-recv_into": "bytes received in bulk over TLS",
    "blocking-tls-sendall": "bytes sent in bulk over TLS",
}
MESSAGE = b"x" * 64
CHUNK = bytes(262144)
AUTHORITY = "NETSOCK_BENCHMARK_AUTHORITY"
"""The variable with the path of the certificate that clients of TLS trust."""


def plain_socket(port: int) -> Any:
    """The standard library's."""
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def plain_tls_socket(port: int) -> Any:
    """The standard library's over TLS."""
    context = ssl.create_default_context(cafile=os.environ[AUTHORITY])
    return context.wrap_socket(plain_socket(port), server_hostname="localhost")


def our_socket(port: int) -> Any:
    """Ours."""
    from twisted_netsock import blocking

    return blocking.make_client_socket("127.0.0.1", port)


def our_tls_socket(port: int) -> Any:
    """Ours over TLS."""
    from twisted_netsock import TLSSocketOptions, blocking

    return blocking.make_client_tls_socket(
        "127.0.0.1",
        port,
        TLSSocketOptions(trusted_certificates=os.environ[AUTHORITY], sni="localhost"),
    )


def round_trips(sock: Any) -> Callable[[], int]:
    """Send 64 bytes and receive them."""

    def step() -> int:
        sock.sendall(MESSAGE)
        sock.recv(64)
        return 1

    sock.sendall(b"e")
    return step


def receiving(sock: Any) -> Callable[[], int]:
    """Receive in bulk."""
    buffer = bytearray(262144)
    sock.sendall(b"s")
    return lambda: sock.recv_into(buffer)


def sending(sock: Any) -> Callable[[], int]:
    """Send in bulk."""

    def step() -> int:
        sock.sendall(CHUNK)
        return len(CHUNK)

    sock.sendall(b"r")
    return step


def reading(sock: Any) -> Callable[[], int]:
    """Read in bulk, 64 KiB at a time."""
    port = sock.input_port if hasattr(sock, "input_port") else sock.makefile("rb", 65536)
    sock.sendall(b"s")
    return lambda: len(port.read(65536))


def writing(sock: Any) -> Callable[[], int]:
    """Write in bulk, 16 KiB at a time."""
    port = sock.output_port if hasattr(sock, "output_port") else sock.makefile("wb", 65536)
    sock.sendall(b"r")
    chunk = bytes(16384)
    return lambda: port.write(chunk)


STEPS: dict[str, Callable[[Any], Callable[[], int]]] = {
    "round-trips": round_trips,
    "recv_into": receiving,
    "sendall": sending,
    "input-port": reading,
    "output-port": writing,
}


def measure(
    make: dict[bool, Callable[[int], Any]], scenario: str, port: int, seconds: float
) -> float:
    """Run *scenario* with a socket of *make*, plain or TLS; return its rate."""
    name = scenario.removeprefix("blocking-")
    sock = make[name.startswith("tls-")](port)
    step = STEPS[name.removeprefix("tls-")](sock)
    count, begin = 0, time.perf_counter()
    end = begin + seconds
    while time.perf_counter() < end:
        for _ in range(10):
            count += step()
    rate = count / (time.perf_counter() - begin)
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    (sock.abort if hasattr(sock, "abort") else sock.close)()
    return rate


def standard(scenario: str, port: int, seconds: float) -> float:
    """The standard library's blocking sockets."""
    return measure({False: plain_socket, True: plain_tls_socket}, scenario, port, seconds)


def ours(scenario: str, port: int, seconds: float) -> float:
    """The sockets of `twisted_netsock.blocking`."""
    return measure({False: our_socket, True: our_tls_socket}, scenario, port, seconds)


CONTENDERS = {"blocking": standard, "netsock blocking": ours}


if __name__ == "__main__":
    print(CONTENDERS[sys.argv[1]](sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
