"""One contender of the benchmarks: runs one scenario and prints its operations a second."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable
from typing import Any

SCENARIOS = {
    "round-trips": "64 bytes there and back on one connection",
    "connects": "connect, 64 bytes there and back, close",
}
MESSAGE = b"x" * 64


def blocking(scenario: str, port: int, seconds: float) -> float:
    """The standard library's blocking socket."""
    count, end, begin = 0, time.perf_counter() + seconds, time.perf_counter()
    if scenario == "connects":
        while time.perf_counter() < end:
            with socket.create_connection(("127.0.0.1", port)) as sock:
                sock.sendall(MESSAGE)
                sock.recv(64)
            count += 1
    else:
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while time.perf_counter() < end:
                sock.sendall(MESSAGE)
                sock.recv(64)
                count += 1
    return count / (time.perf_counter() - begin)


def netsock(scenario: str, port: int, seconds: float) -> float:
    """Our awaitable sockets, as README shows them."""
    from twisted.internet.defer import Deferred
    from twisted.internet.task import react

    from twisted_netsock import make_client_socket

    rates: list[float] = []

    async def run() -> None:
        count, end, begin = 0, time.perf_counter() + seconds, time.perf_counter()
        if scenario == "connects":
            while time.perf_counter() < end:
                async with await make_client_socket("127.0.0.1", port) as sock:
                    await sock.sendall(MESSAGE)
                    await sock.recv(64)
                count += 1
        else:
            async with await make_client_socket("127.0.0.1", port) as sock:
                while time.perf_counter() < end:
                    await sock.sendall(MESSAGE)
                    await sock.recv(64)
                    count += 1
        rates.append(count / (time.perf_counter() - begin))

    with_exit(lambda: react(lambda _: Deferred.fromCoroutine(run())))
    return rates[0]


def protocol_on(endpoint_of: Callable[[Any, int], Any]) -> Callable[[str, int, float], float]:
    """A plain Twisted protocol over an endpoint."""

    def run(scenario: str, port: int, seconds: float) -> float:
        from twisted.internet.defer import Deferred
        from twisted.internet.protocol import Factory, Protocol
        from twisted.internet.task import react

        rates: list[float] = []

        def main(reactor: Any) -> Deferred[None]:
            done: Deferred[None] = Deferred()
            state = {"count": 0, "begin": time.perf_counter()}
            endpoint = endpoint_of(reactor, port)

            def finish(transport: Any) -> None:
                rates.append(state["count"] / (time.perf_counter() - state["begin"]))
                transport.loseConnection()
                done.callback(None)

            class Client(Protocol):
                def connectionMade(self) -> None:
                    self.transport.setTcpNoDelay(True)
                    self.transport.write(MESSAGE)

                def dataReceived(self, data: bytes) -> None:
                    state["count"] += 1
                    if time.perf_counter() - state["begin"] >= seconds:
                        finish(self.transport)
                    elif scenario == "connects":
                        self.transport.loseConnection()
                        endpoint.connect(Factory.forProtocol(Client))
                    else:
                        self.transport.write(MESSAGE)

            endpoint.connect(Factory.forProtocol(Client))
            return done

        with_exit(lambda: react(main))
        return rates[0]

    return run


def our_endpoint(reactor: Any, port: int) -> Any:
    """Return our endpoint."""
    from twisted_netsock import client_endpoint

    return client_endpoint(reactor, "127.0.0.1", port)


def their_endpoint(reactor: Any, port: int) -> Any:
    """Return Twisted's endpoint."""
    from twisted.internet.endpoints import TCP4ClientEndpoint

    return TCP4ClientEndpoint(reactor, "127.0.0.1", port)


def asyncio_streams(scenario: str, port: int, seconds: float) -> float:
    """The streams of asyncio."""
    import asyncio

    async def run() -> float:
        count, end, begin = 0, time.perf_counter() + seconds, time.perf_counter()
        if scenario == "connects":
            while time.perf_counter() < end:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(MESSAGE)
                await reader.read(64)
                writer.close()
                await writer.wait_closed()
                count += 1
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            while time.perf_counter() < end:
                writer.write(MESSAGE)
                await writer.drain()
                await reader.read(64)
                count += 1
            writer.close()
        return count / (time.perf_counter() - begin)

    return asyncio.run(run())


def with_exit(run: Callable[[], None]) -> None:
    """Call what ends with `SystemExit`, as ``react`` does."""
    try:
        run()
    except SystemExit as ended:
        if ended.code:
            raise


CONTENDERS: dict[str, Callable[[str, int, float], float]] = {
    "blocking": blocking,
    "netsock await": netsock,
    "netsock Protocol": protocol_on(our_endpoint),
    "Twisted Protocol": protocol_on(their_endpoint),
    "asyncio streams": asyncio_streams,
}


if __name__ == "__main__":
    print(CONTENDERS[sys.argv[1]](sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
