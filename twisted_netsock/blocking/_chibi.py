"""The procedures of ``(chibi net)``, blocking; see `twisted_netsock.chibi`."""

from __future__ import annotations

import io
import socket as _socket
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from .. import chibi
from .._public import public_in
from ..addresses import Address, AddressInfo, SocketAddress
from ..chibi import check_family, check_timeout
from ._bridge import run, use
from ._make import make_client_socket
from ._socket import BlockingSocket
from ._waiting import Countdown, Expired, check_thread, limited

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "NetIO",
    "accept",
    "bind",
    "connect",
    "get_address_info",
    "get_peer_name",
    "get_socket_option",
    "listen",
    "make_listener_socket",
    "open_net_io",
    "open_socket_pair",
    "receive",
    "receive_into",
    "receive_into_non_blocking",
    "receive_non_blocking",
    "send",
    "send_non_blocking",
    "set_socket_option",
    "socket",
    "with_net_io",
]

T = TypeVar("T")


@public_in("twisted_netsock.blocking")
class NetIO(NamedTuple):
    """
    What `open_net_io` gives.

    Attributes:
        socket: The connected socket, the caller's to close.
        input_port: Its buffered reader.
        output_port: Its buffered writer.
    """

    socket: BlockingSocket
    input_port: io.BufferedReader
    output_port: io.BufferedWriter


def get_address_info(
    host: str | None,
    service: str | int | None,
    addrinfo: AddressInfo | None = None,
    *,
    reactor: object = None,
) -> AddressInfo:
    """
    Look *host* and *service* up (``get-address-info``).

    The arguments are those of `twisted_netsock.chibi.get_address_info`.

    Returns:
        The first result, which iterates over itself and those that follow.

    Raises:
        TypeError: An argument is of another type.
        ValueError: *host* is no host name, or *service* no port.
        HostNotFoundError: There is no such host or service.
    """
    return run(
        lambda there: chibi.get_address_info(host, service, addrinfo, reactor=there),
        reactor=reactor,
    )


def open_net_io(host: str, service: str | int, *, reactor: object = None) -> NetIO:
    """
    Connect to *host* over TCP, for reading and writing (``open-net-io``).

    The arguments are those of `twisted_netsock.chibi.open_net_io`.

    Returns:
        The socket, which is the caller's to close, and its two ports.

    Raises:
        HostNotFoundError, SocketConnectionError: As `make_client_socket`.
    """
    made = make_client_socket(host, service, reactor=reactor)
    return NetIO(made, made.input_port, made.output_port)


def with_net_io(
    host: str,
    service: str | int,
    proc: Callable[[io.BufferedReader, io.BufferedWriter], T],
    *,
    reactor: object = None,
) -> T:
    """
    Connect to *host*, call *proc*, and close the connection (``with-net-io``).

    The arguments are those of `twisted_netsock.chibi.with_net_io`; *proc* is a plain function,
    and may block.

    Returns:
        What *proc* returned, when what it wrote is sent and the connection closed.

    Raises:
        HostNotFoundError, SocketConnectionError: As `make_client_socket`; and
            whatever *proc* raises.
    """
    opened = open_net_io(host, service, reactor=reactor)
    with opened.socket:
        result = proc(opened.input_port, opened.output_port)
        if not opened.output_port.closed:
            opened.output_port.flush()
        return result


def make_listener_socket(
    addrinfo: AddressInfo | SocketAddress, max_connections: int = 128, *, reactor: object = None
) -> BlockingSocket:
    """
    Make a socket that listens on *addrinfo* (``make-listener-socket``).

    Sets ``SO_REUSEADDR`` by itself.

    The arguments are those of `twisted_netsock.chibi.make_listener_socket`.

    Returns:
        The listening socket, the caller's to close.

    Raises:
        SocketBindError: The address is taken, or not ours to bind, or this kind of
            socket cannot listen.
        ValueError: The address is of another family than the hints say.
    """
    use(reactor)
    return chibi.open_listener(addrinfo, max_connections, socket)


def get_socket_option(socket: BlockingSocket, level: int, name: int) -> int:
    """
    Return the option *name* of *socket* (``get-socket-option``).

    The arguments are those of `twisted_netsock.chibi.get_socket_option`.

    Raises:
        SocketError: There is no such option.
        SocketClosedError: The socket is closed.
    """
    value: int = socket.getsockopt(level, name)
    return value


def set_socket_option(socket: BlockingSocket, level: int, name: int, value: int) -> None:
    """
    Set the option *name* of *socket* (``set-socket-option!``).

    The arguments are those of `twisted_netsock.chibi.set_socket_option`.

    Raises:
        SocketError: There is no such option, or it refuses the value.
        SocketClosedError: The socket is closed.
    """
    socket.setsockopt(level, name, value)


def send(
    socket: BlockingSocket, data: Buffer, flags: int = 0, addrinfo: Address | None = None
) -> int:
    """
    Send *data* (``send``).

    The arguments are those of `twisted_netsock.chibi.send`.

    Returns:
        How many bytes were sent; of a stream possibly not all.

    Raises:
        SocketWriteTimeoutError, SocketConnectionLostError, SocketBusyError,
        SocketClosedError: As `BlockingSocket.send`.
    """
    if addrinfo is None:
        return socket.send(data, flags)
    return socket.sendto(data, addrinfo, flags)


def send_non_blocking(
    socket: BlockingSocket,
    data: Buffer,
    timeout: float | timedelta,
    flags: int = 0,
    addrinfo: Address | None = None,
) -> int | None:
    """
    Send, but give up after *timeout* seconds (``send/non-blocking``).

    The arguments are those of `twisted_netsock.chibi.send_non_blocking`.

    Returns:
        How many bytes were sent; `None` after the timeout, when none were. On
        TLS a timeout may leave up to 16 KiB that still go out.

    Raises:
        TypeError: *timeout* is of another type.
        ValueError: *timeout* is negative or no number.
        SocketWriteTimeoutError, SocketConnectionLostError, SocketBusyError,
        SocketClosedError: As `send`.
    """
    seconds = check_timeout(timeout)
    return _within(seconds, lambda: send(socket, data, flags, addrinfo))


def receive_into(
    socket: BlockingSocket, buffer: Buffer, flags: int = 0, addrinfo: Address | None = None
) -> int:
    """
    Fill *buffer* with what has arrived (``receive!``).

    The arguments are those of `twisted_netsock.chibi.receive_into`.

    Returns:
        The number of bytes, as soon as there is one; of a stream 0 once the
        peer has finished sending.

    Raises:
        TypeError: *buffer* cannot be written.
        ValueError: *addrinfo* is of another family than the socket.
        SocketReadTimeoutError, SocketConnectionLostError, SocketBusyError,
        SocketClosedError: As `BlockingSocket.recv_into`.
    """
    check_family(socket, addrinfo)
    return socket.recv_into(buffer, 0, flags)


def receive_into_non_blocking(
    socket: BlockingSocket,
    buffer: Buffer,
    timeout: float | timedelta,
    flags: int = 0,
    addrinfo: Address | None = None,
) -> int | None:
    """
    Receive into *buffer*, but give up after *timeout* seconds (``receive!/non-blocking``).

    The arguments are those of `twisted_netsock.chibi.receive_into_non_blocking`.

    Returns:
        The number of bytes (of a stream 0 at the end); `None` after the
        timeout, when nothing was consumed.

    Raises:
        TypeError: *buffer* cannot be written, or *timeout* is of another type.
        ValueError: *addrinfo* is of another family, or *timeout* negative or no number.
        SocketReadTimeoutError, SocketConnectionLostError, SocketBusyError,
        SocketClosedError: As `receive_into`.
    """
    seconds = check_timeout(timeout)
    return _within(seconds, lambda: receive_into(socket, buffer, flags, addrinfo))


def receive(
    socket: BlockingSocket, n: int, flags: int = 0, addrinfo: Address | None = None
) -> bytes:
    """
    Receive up to *n* bytes (``receive``).

    The arguments are those of `twisted_netsock.chibi.receive`.

    Returns:
        What has arrived; of a stream ``b""`` once the peer has finished sending.

    Raises:
        ValueError: *addrinfo* is of another family than the socket.
        SocketReadTimeoutError, SocketConnectionLostError, SocketBusyError,
        SocketClosedError: As `BlockingSocket.recv`.
    """
    check_family(socket, addrinfo)
    return socket.recv(n, flags)


def receive_non_blocking(
    socket: BlockingSocket,
    n: int,
    timeout: float | timedelta,
    flags: int = 0,
    addrinfo: Address | None = None,
) -> bytes | None:
    """
    Receive, but give up after *timeout* seconds; ``b""`` is the end, `None` the timeout.

    The ``receive/non-blocking`` of ``(chibi net)``.

    The arguments are those of `twisted_netsock.chibi.receive_non_blocking`.

    Returns:
        What has arrived; `None` after the timeout, when nothing was consumed.

    Raises:
        TypeError: *timeout* is of another type.
        ValueError: *addrinfo* is of another family, or *timeout* negative or no number.
        SocketReadTimeoutError, SocketConnectionLostError, SocketBusyError,
        SocketClosedError: As `receive`.
    """
    seconds = check_timeout(timeout)
    return _within(seconds, lambda: receive(socket, n, flags, addrinfo))


def _within(seconds: float, operation: Callable[[], T]) -> T | None:
    """Give *operation* that many seconds, and return `None` then."""
    try:
        with limited(Countdown(seconds)):
            return operation()
    except Expired:
        return None


def bind(socket: BlockingSocket, address: Address) -> None:
    """
    Bind *socket* to *address* (``bind``), as `twisted_netsock.chibi.bind` does.

    Raises:
        SocketBindError: The address is taken, or not ours to bind.
        SocketClosedError: The socket is closed.
        ValueError: *address* is a name, or of another family.
    """
    socket.bind(address)


def listen(socket: BlockingSocket, backlog: int = 128) -> None:
    """
    Accept connections into a queue of the kernel's of length *backlog* (``listen``).

    Raises:
        SocketError: This kind of socket cannot listen.
        SocketClosedError: The socket is closed.
    """
    socket.listen(backlog)


def accept(socket: BlockingSocket) -> BlockingSocket:
    """
    Take the next connection (``accept``).

    Returns:
        Its socket, which is the caller's to close; its peer is known by
        `get_peer_name`.

    Raises:
        SocketBusyError, SocketClosedError, SocketError: As `BlockingSocket.accept`.
    """
    return socket.accept()


def connect(socket: BlockingSocket, address: Address) -> None:
    """
    Connect *socket* to *address* (``connect``).

    Raises:
        ValueError: *address* is a name, or of another family.
        SocketConnectionError, SocketBusyError, SocketClosedError: As
            `BlockingSocket.connect`.
    """
    socket.connect(address)


def socket(
    family: int, socket_type: int, protocol: int = 0, *, reactor: object = None
) -> BlockingSocket:
    """
    Make a socket (``socket``).

    The arguments are those of `twisted_netsock.chibi.socket`.

    Returns:
        A socket that is not connected, the caller's to close. ``TCP_NODELAY`` is
        set where it is TCP.

    Raises:
        SocketError: The kernel refuses.
    """
    check_thread()
    use(reactor)
    return BlockingSocket(chibi.new_descriptor(family, socket_type, protocol))


def open_socket_pair(
    family: int = _socket.AF_UNIX,
    socket_type: int = _socket.SOCK_STREAM,
    protocol: int = 0,
    *,
    reactor: object = None,
) -> tuple[BlockingSocket, BlockingSocket]:
    """
    Make two sockets that are connected with each other (``open-socket-pair``).

    The arguments are those of `twisted_netsock.chibi.open_socket_pair`.

    Returns:
        Two sockets, both for reading and writing, the caller's to close.

    Raises:
        SocketError: The kernel refuses.
    """
    check_thread()
    use(reactor)
    one, other = chibi.new_pair(family, socket_type, protocol)
    return BlockingSocket.from_socket(one), BlockingSocket.from_socket(other)


def get_peer_name(socket: BlockingSocket) -> SocketAddress:
    """
    Return the address of the peer (``get-peer-name``).

    Raises:
        SocketError: There is no peer.
        SocketClosedError: The socket is closed.
    """
    return socket.getpeername()
