"""
The neutral peer where there is no compiler: the same command line as `peer_in_c`, in threads.

``python -m benchmarks.fallback serve|load …``. It is slower than what it measures, so only
the processor time of servers and relays means something then.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import sys
import threading
import time
from typing import Any

HOST = "127.0.0.1"
BLOCK = bytes(262144)
SECONDS_TO_ANSWER = 20


def serve(mode: str, certificate: str | None = None, tickets: str = "0") -> None:
    """Serve each connection in a thread, until the input ends."""
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        context.num_tickets = int(tickets)
    listener = socket.create_server((HOST, 0), backlog=4096)
    print(listener.getsockname()[1], flush=True)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=handle, args=(connection,), daemon=True).start()

    def handle(connection: Any) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):
            if context is not None:
                connection = context.wrap_socket(connection, server_side=True)
            with connection:
                buffer = bytearray(len(BLOCK))
                while mode == "source":
                    connection.sendall(BLOCK)
                while count := connection.recv_into(buffer):
                    if mode == "echo":
                        connection.sendall(memoryview(buffer)[:count])

    threading.Thread(target=accept, daemon=True).start()
    sys.stdin.read()


class Load:
    """The load of some seconds: what each thread does, and what it counts."""

    def __init__(self, mode: str, port: int, size: int, *, secure: bool) -> None:
        self.mode, self.port = mode, port
        self.request = b"x" * size
        if mode == "web":
            self.request = b"GET /file HTTP/1.1\r\nHost: localhost\r\n\r\n"
        self.context = None
        if secure:
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self.context.check_hostname = False
            self.context.verify_mode = ssl.CERT_NONE
        self.end = 0.0
        self.latencies: list[float] = []
        self.bytes = 0
        self.sockets: list[Any] = []

    def dial(self) -> Any:
        """Connect."""
        sock = socket.create_connection((HOST, self.port), timeout=SECONDS_TO_ANSWER)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock if self.context is None else self.context.wrap_socket(sock)

    def ask(self, sock: Any) -> None:
        """Make one round trip."""
        begin = time.perf_counter()
        sock.sendall(self.request)
        if self.mode == "web":
            head = b""
            while b"\r\n\r\n" not in head:
                head += receive(sock)
            head, _, body = head.partition(b"\r\n\r\n")
            [length] = [
                int(line.split(b":")[1])
                for line in head.splitlines()
                if line.lower().startswith(b"content-length:")
            ]
            left = length - len(body)
        else:
            left = len(self.request)
        while left > 0:
            left -= len(receive(sock))
        self.latencies.append(time.perf_counter() - begin)

    def step(self, sock: Any) -> None:
        """Do once what the mode says."""
        if self.mode == "connects":
            with self.dial() as fresh:
                self.ask(fresh)
        elif self.mode == "send":
            sock.sendall(BLOCK)
            self.bytes += len(BLOCK)
        elif self.mode == "receive":
            self.bytes += len(receive(sock))
        elif self.mode == "hold":
            time.sleep(0.01)
        else:
            self.ask(sock)

    def flood(self) -> None:
        """Send without a pause, and receive what comes back."""
        sock = self.dial()

        def drain() -> None:
            with contextlib.suppress(OSError):
                while sock.recv(65536):
                    pass

        threading.Thread(target=drain, daemon=True).start()
        with contextlib.suppress(OSError):
            while time.perf_counter() < self.end:
                sock.sendall(BLOCK)
            sock.shutdown(socket.SHUT_RDWR)
        sock.close()

    def run(self, seconds: float, greedy: int) -> None:
        """Put the load on, and print what came of it."""
        self.latencies, self.bytes = [], 0
        begin = time.perf_counter()
        self.end = begin + seconds

        def go_on(sock: Any) -> None:
            while time.perf_counter() < self.end:
                self.step(sock)

        threads = [threading.Thread(target=go_on, args=(sock,)) for sock in self.sockets]
        threads += [threading.Thread(target=self.flood, daemon=True) for _ in range(greedy)]
        for thread in threads:
            thread.start()
        for thread in threads[: len(self.sockets)]:
            thread.join()
        taken = time.perf_counter() - begin
        found = sorted(self.latencies) or [0.0]
        said = {"operations": len(self.latencies), "bytes": self.bytes, "seconds": taken}
        said |= {"p50": int(found[len(found) // 2] * 1e6)}
        said |= {"p99": int(found[len(found) * 99 // 100] * 1e6)}
        print(json.dumps(said), flush=True)


def receive(sock: Any) -> bytes:
    """Receive something."""
    data = sock.recv(65536)
    if not data:
        raise SystemExit("a connection was lost")
    return bytes(data)


def load(mode: str, port: str, connections: str, size: str, secure: str = "") -> None:
    """Connect, and put a load on the server for each line of the input."""
    work = Load(mode, int(port), int(size), secure=bool(secure))
    for _ in range(int(connections)):
        work.sockets.append(None if mode == "connects" else work.dial())
        if mode in {"round-trips", "web", "hold"}:
            work.ask(work.sockets[-1])
    print("ready", flush=True)
    for line in sys.stdin:
        seconds, greedy = [*line.split(), "0"][:2]
        work.run(float(seconds), int(greedy))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(*sys.argv[2:])
    else:
        load(*sys.argv[2:])
