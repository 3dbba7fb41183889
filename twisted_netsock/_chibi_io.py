"""``open-net-io`` and ``with-net-io`` of ``(chibi net)``; public in `twisted_netsock.chibi`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from inspect import isawaitable
from typing import Any, NamedTuple, TypeVar, overload

from twisted.internet.defer import Deferred

from ._public import public_in
from ._sockets.make import make_client_socket
from ._sockets.ports import InputPort, OutputPort
from ._sockets.socket import Socket

__all__ = ["NetIO", "open_net_io", "with_net_io"]

T = TypeVar("T")


@public_in("twisted_netsock.chibi")
class NetIO(NamedTuple):
    """
    What `open_net_io` gives.

    Attributes:
        socket: The connected socket, the caller's to close.
        input_port: Its buffered reader.
        output_port: Its buffered writer.
    """

    socket: Socket
    input_port: InputPort
    output_port: OutputPort


def open_net_io(host: str, service: str | int, *, reactor: Any = None) -> Deferred[NetIO]:
    """
    Connect to *host* over TCP, for reading and writing (``open-net-io``).

    Args:
        host: A name or a numeric address.
        service: A service's name or a port.
        reactor: The installed one if `None`.

    Returns:
        The socket, which is the caller's to close, and its two ports.

    Errors:
        HostNotFoundError, SocketConnectionError: As `make_client_socket`.

    Cancelling:
        Fails with `CancelledError`, and leaves nothing behind.
    """
    return make_client_socket(host, service, reactor=reactor).addCallback(
        lambda made: NetIO(made, made.input_port, made.output_port)
    )


@overload
def with_net_io(
    host: str,
    service: str | int,
    proc: Callable[[InputPort, OutputPort], Coroutine[Deferred[Any], Any, T]],
    *,
    reactor: Any = None,
) -> Deferred[T]: ...


@overload
def with_net_io(
    host: str,
    service: str | int,
    proc: Callable[[InputPort, OutputPort], Deferred[T]],
    *,
    reactor: Any = None,
) -> Deferred[T]: ...


@overload
def with_net_io(
    host: str,
    service: str | int,
    proc: Callable[[InputPort, OutputPort], T],
    *,
    reactor: Any = None,
) -> Deferred[T]: ...


def with_net_io(
    host: str,
    service: str | int,
    proc: Callable[[InputPort, OutputPort], T | Awaitable[T]],
    *,
    reactor: Any = None,
) -> Deferred[T]:
    """
    Connect to *host*, call *proc*, and close the connection (``with-net-io``).

    Args:
        host: A name or a numeric address.
        service: A service's name or a port.
        proc: Called with the two ports; returns a value, a Deferred or a coroutine.
        reactor: The installed one if `None`.

    Returns:
        What *proc* returned, when what it wrote is sent and the connection closed.

    Errors:
        HostNotFoundError, SocketConnectionError: As `make_client_socket`; and
        whatever *proc* raises.

    Cancelling:
        Cancels what is under way, the Deferred or coroutine of *proc* too, and
        closes the connection.
    """

    async def run() -> T:
        opened = await open_net_io(host, service, reactor=reactor)
        try:
            result = proc(opened.input_port, opened.output_port)
            if isawaitable(result) or isinstance(result, Deferred):
                result = await result
            await opened.output_port.flush()
            return result
        finally:
            await opened.socket.close()

    return Deferred.fromCoroutine(run())
