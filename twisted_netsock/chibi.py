"""
The procedures of ``(chibi net)``: BSD sockets as small functions.

What may wait returns a Deferred, the rest does not. Where the Scheme library
gives ``#f`` or a negative number on an error, the Deferred fails; where it gives
``#f`` on a timeout, the result is `None`.

Every *socket* argument is a `Socket` of this package, and `send` and `receive`
take a `TLSSocket`, too. Addresses are an `AddressInfo` or a `SocketAddress`: the
length arguments and out-parameters of the Scheme library are C's, and left out.
"""

from __future__ import annotations

import math
import socket as _socket
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from functools import partial
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeVar, overload

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from ._io.descriptor import PlainDescriptor
from ._io.interfaces import current_reactor
from ._io.poller import poller_for
from ._net.open_socket import apply_options, open_socket, until_shutdown
from ._net.resolver import Hints, look_up_system
from ._net.unix_paths import free_path
from ._public import public_in
from ._sockets.info import SocketInfo
from ._sockets.make import make_client_socket
from ._sockets.ports import InputPort, OutputPort
from ._sockets.socket import Socket
from .addresses import (
    Address,
    AddressInfo,
    SocketAddress,
    address_info_list,
    as_socket_address,
    is_address_info,
    is_sockaddr,
    make_address_info,
    make_sockaddr,
)
from .errors import SocketBindError, SocketError
from .options import SocketOptions

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "ADDRESS_FAMILY_INET",
    "ADDRESS_FAMILY_INET6",
    "ADDRESS_FAMILY_UNIX",
    "ADDRESS_FAMILY_UNSPECIFIED",
    "AI_CANONNAME",
    "AI_NUMERIC_HOST",
    "AI_PASSIVE",
    "IP_PROTO_ICMP",
    "IP_PROTO_IP",
    "IP_PROTO_TCP",
    "IP_PROTO_UDP",
    "LEVEL_SOCKET",
    "SOCKET_OPT_BROADCAST",
    "SOCKET_OPT_DEBUG",
    "SOCKET_OPT_DONTROUTE",
    "SOCKET_OPT_KEEPALIVE",
    "SOCKET_OPT_OOBINLINE",
    "SOCKET_OPT_RCVBUF",
    "SOCKET_OPT_RCVLOWAT",
    "SOCKET_OPT_REUSEADDR",
    "SOCKET_OPT_SNDBUF",
    "SOCKET_OPT_SNDLOWAT",
    "SOCKET_TYPE_DATAGRAM",
    "SOCKET_TYPE_RAW",
    "SOCKET_TYPE_STREAM",
    "AddressInfo",
    "NetIO",
    "SocketAddress",
    "accept",
    "bind",
    "connect",
    "get_address_info",
    "get_peer_name",
    "get_socket_option",
    "is_address_info",
    "is_sockaddr",
    "listen",
    "make_address_info",
    "make_listener_socket",
    "make_sockaddr",
    "open_net_io",
    "open_socket_pair",
    "receive",
    "receive_into",
    "receive_into_non_blocking",
    "receive_non_blocking",
    "send",
    "send_non_blocking",
    "set_socket_option",
    "sockaddr_name",
    "sockaddr_port",
    "socket",
    "with_net_io",
]

T = TypeVar("T")


class _Listening(Protocol):
    """What `open_listener` needs of a socket."""

    def setsockopt(self, level: int, name: int, value: int) -> None: ...
    def bind(self, address: Address) -> None: ...
    def listen(self, backlog: int) -> None: ...
    def close(self) -> object: ...


AnySocket = TypeVar("AnySocket", bound=_Listening)

_FOREVER: Final = 1e18
"""Seconds beyond any time; an `int` may be too large for a `float`, which holds 1e308."""

ADDRESS_FAMILY_UNSPECIFIED: Final = _socket.AF_UNSPEC
"""Any family (``address-family/unspecified``)."""
ADDRESS_FAMILY_UNIX: Final = _socket.AF_UNIX
"""UNIX sockets (``address-family/unix``)."""
ADDRESS_FAMILY_INET: Final = _socket.AF_INET
"""IPv4 (``address-family/inet``)."""
ADDRESS_FAMILY_INET6: Final = _socket.AF_INET6
"""IPv6 (``address-family/inet6``)."""
SOCKET_TYPE_STREAM: Final = _socket.SOCK_STREAM
"""A stream of bytes (``socket-type/stream``)."""
SOCKET_TYPE_DATAGRAM: Final = _socket.SOCK_DGRAM
"""Datagrams (``socket-type/datagram``)."""
SOCKET_TYPE_RAW: Final = _socket.SOCK_RAW
"""Raw packets (``socket-type/raw``)."""
IP_PROTO_IP: Final = _socket.IPPROTO_IP
"""The protocol that fits the type (``ip-proto/ip``)."""
IP_PROTO_ICMP: Final = _socket.IPPROTO_ICMP
"""ICMP (``ip-proto/icmp``)."""
IP_PROTO_TCP: Final = _socket.IPPROTO_TCP
"""TCP (``ip-proto/tcp``)."""
IP_PROTO_UDP: Final = _socket.IPPROTO_UDP
"""UDP (``ip-proto/udp``)."""
AI_PASSIVE: Final = _socket.AI_PASSIVE
"""Look up for listening (``ai/passive``)."""
AI_CANONNAME: Final = _socket.AI_CANONNAME
"""Ask for the canonical name, too (``ai/canonname``)."""
AI_NUMERIC_HOST: Final = _socket.AI_NUMERICHOST
"""Take numeric hosts only (``ai/numeric-host``)."""
LEVEL_SOCKET: Final = _socket.SOL_SOCKET
"""The level of the options below (``level/socket``)."""
SOCKET_OPT_DEBUG: Final = _socket.SO_DEBUG
"""``socket-opt/debug``."""
SOCKET_OPT_BROADCAST: Final = _socket.SO_BROADCAST
"""``socket-opt/broadcast``."""
SOCKET_OPT_REUSEADDR: Final = _socket.SO_REUSEADDR
"""``socket-opt/reuseaddr``."""
SOCKET_OPT_KEEPALIVE: Final = _socket.SO_KEEPALIVE
"""``socket-opt/keepalive``."""
SOCKET_OPT_OOBINLINE: Final = _socket.SO_OOBINLINE
"""``socket-opt/oobinline``."""
SOCKET_OPT_SNDBUF: Final = _socket.SO_SNDBUF
"""``socket-opt/sndbuf``."""
SOCKET_OPT_RCVBUF: Final = _socket.SO_RCVBUF
"""``socket-opt/rcvbuf``."""
SOCKET_OPT_DONTROUTE: Final = _socket.SO_DONTROUTE
"""``socket-opt/dontroute``."""
SOCKET_OPT_RCVLOWAT: Final = _socket.SO_RCVLOWAT
"""``socket-opt/rcvlowat``."""
SOCKET_OPT_SNDLOWAT: Final = _socket.SO_SNDLOWAT
"""``socket-opt/sndlowat``."""


def get_address_info(
    host: str | None,
    service: str | int | None,
    addrinfo: AddressInfo | None = None,
    *,
    reactor: object = None,
) -> Deferred[AddressInfo]:
    """
    Look *host* and *service* up (``get-address-info``).

    Args:
        host: A name, a numeric address, or `None`: this host, or with
            ``AI_PASSIVE`` any of its addresses.
        service: A name, a port, or `None`.
        addrinfo: Hints, by `make_address_info`; a TCP stream if `None`.
        reactor: The installed one if `None`.

    Returns:
        The first result, which iterates over itself and those that follow.

    Raises:
        TypeError: An argument is of another type.
        ValueError: *host* is no host name, or *service* no port.

    Errors:
        HostNotFoundError: There is no such host or service, or the reactor was shut down.

    Cancelling:
        Fails with `CancelledError` at once; the answer, if it comes, is dropped.
    """
    hints = addrinfo
    if hints is None:
        hints = make_address_info(_socket.AF_UNSPEC, _socket.SOCK_STREAM, _socket.IPPROTO_TCP)
    if not isinstance(hints, AddressInfo):
        raise TypeError(f"addrinfo must be an AddressInfo, not {addrinfo!r}")
    reactor = current_reactor(reactor)
    wanted = Hints(hints.family, hints.socket_type, hints.protocol, hints.flags)
    looking = look_up_system(reactor, host, service, wanted)
    return until_shutdown(reactor, looking, host, service).addCallback(_first)


def _first(infos: list[AddressInfo]) -> AddressInfo:
    head = address_info_list(infos)
    assert head is not None
    return head


def make_listener_socket(
    addrinfo: AddressInfo | SocketAddress, max_connections: int = 128, *, reactor: object = None
) -> Socket:
    """
    Make a socket that listens on *addrinfo* (``make-listener-socket``).

    Sets ``SO_REUSEADDR`` by itself, and takes over the path of a UNIX socket on which
    nobody listens.

    Args:
        addrinfo: Where: an `AddressInfo`, or a `SocketAddress` for a stream.
        max_connections: How many connections the kernel queues.
        reactor: The installed one if `None`.

    Returns:
        The listening socket, the caller's to close.

    Raises:
        SocketBindError: The address is taken, or not ours to bind, or this kind of
            socket cannot listen.
        ValueError: The address is of another family than the hints say.
    """
    return open_listener(addrinfo, max_connections, partial(socket, reactor=reactor))


def open_listener(
    addrinfo: AddressInfo | SocketAddress,
    max_connections: int,
    make: Callable[[int, int, int], AnySocket],
) -> AnySocket:
    """Have *make* make a socket of family, type and protocol, and listen with it."""
    address = as_socket_address(addrinfo)
    if isinstance(addrinfo, AddressInfo):
        family, kind, protocol = addrinfo.family, addrinfo.socket_type, addrinfo.protocol
    else:
        family, kind, protocol = address.family, _socket.SOCK_STREAM, 0
    made = make(family, kind, protocol)
    try:
        made.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        with free_path(family, kind, address.host):
            made.bind(address)
            made.listen(max_connections)
    except BaseException as error:
        made.close()
        if isinstance(error, SocketError) and not isinstance(error, SocketBindError):
            raise SocketBindError(
                address.host, address.port, errno=error.errno, strerror=error.strerror
            ) from None
        raise
    return made


def get_socket_option(socket: Socket, level: int, name: int) -> int:
    """
    Return the option *name* of *socket* (``get-socket-option``).

    Args:
        socket: Open.
        level: ``LEVEL_SOCKET``, or a protocol's number.
        name: One of the ``SOCKET_OPT_…``, or another of the level's.

    Raises:
        SocketError: There is no such option.
        SocketClosedError: The socket is closed.
    """
    value: int = socket.getsockopt(level, name)
    return value


def set_socket_option(socket: Socket, level: int, name: int, value: int) -> None:
    """
    Set the option *name* of *socket* (``set-socket-option!``).

    Args:
        socket: Open.
        level: ``LEVEL_SOCKET``, or a protocol's number.
        name: One of the ``SOCKET_OPT_…``, or another of the level's.
        value: What to set it to.

    Raises:
        SocketError: There is no such option, or it refuses the value.
        SocketClosedError: The socket is closed.
    """
    socket.setsockopt(level, name, value)


def sockaddr_name(sockaddr: SocketAddress) -> str:
    """Return the numeric host of *sockaddr*, or its path (``sockaddr-name``)."""
    return as_socket_address(sockaddr).host


def sockaddr_port(sockaddr: SocketAddress) -> int:
    """Return the port of *sockaddr*, 0 where there is none (``sockaddr-port``)."""
    return as_socket_address(sockaddr).port


def bind(socket: Socket, address: Address) -> None:
    """
    Bind *socket* to *address* (``bind``).

    This is the kernel's bind: of a UNIX socket the path must not be there yet, not even
    one on which nobody listens. `make_listener_socket` takes such a path over.

    Raises:
        SocketBindError: The address is taken, or not ours to bind.
        SocketClosedError: The socket is closed.
        ValueError: *address* is a name, or of another family.
    """
    socket.bind(address)


def listen(socket: Socket, backlog: int = 128) -> None:
    """
    Accept connections into a queue of the kernel's of length *backlog* (``listen``).

    Raises:
        SocketError: This kind of socket cannot listen.
        SocketClosedError: The socket is closed.
    """
    socket.listen(backlog)


def accept(socket: Socket) -> Deferred[Socket]:
    """
    Take the next connection (``accept``).

    Returns:
        Its socket, which is the caller's to close; its peer is known by
        `get_peer_name`.

    Errors:
        SocketBusyError, SocketClosedError, SocketError: As `Socket.accept`.

    Cancelling:
        Fails with `CancelledError` and takes nothing: the next accept gets
        the connection.
    """
    return socket.accept()


def connect(socket: Socket, address: Address) -> Deferred[None]:
    """
    Connect *socket* to *address* (``connect``).

    Returns:
        `None`, when the connection stands.

    Raises:
        ValueError: *address* is a name, or of another family.

    Errors:
        SocketConnectionError, SocketBusyError, SocketClosedError: As `Socket.connect`.

    Cancelling:
        As `Socket.connect`: the socket is good for nothing but closing.
    """
    return socket.connect(address)


def socket(family: int, socket_type: int, protocol: int = 0, *, reactor: object = None) -> Socket:
    """
    Make a socket (``socket``).

    Args:
        family: One of the ``ADDRESS_FAMILY_…``.
        socket_type: One of the ``SOCKET_TYPE_…``.
        protocol: One of the ``IP_PROTO_…``, or another number.
        reactor: The installed one if `None`.

    Returns:
        A socket that is not connected, the caller's to close. ``TCP_NODELAY`` is
        set where it is TCP.

    Raises:
        SocketError: The kernel refuses: raw sockets need a privilege.
    """
    reactor = current_reactor(reactor)
    poller = poller_for(reactor)
    made = new_descriptor(family, socket_type, protocol)
    return Socket(reactor, poller.watch(made.sock.fileno()), made)


def new_descriptor(family: int, socket_type: int, protocol: int) -> PlainDescriptor:
    """Return a new socket that is not connected."""
    made = open_socket(family, socket_type, protocol)
    apply_options(made, family, socket_type, SocketOptions())
    return PlainDescriptor(made)


def open_socket_pair(
    family: int = _socket.AF_UNIX,
    socket_type: int = _socket.SOCK_STREAM,
    protocol: int = 0,
    *,
    reactor: object = None,
) -> tuple[Socket, Socket]:
    """
    Make two sockets that are connected with each other (``open-socket-pair``).

    Args:
        family: ``ADDRESS_FAMILY_UNIX``; the kernel makes no other pairs.
        socket_type: One of the ``SOCKET_TYPE_…``.
        protocol: A protocol number, or 0.
        reactor: The installed one if `None`.

    Returns:
        Two sockets, both for reading and writing, the caller's to close.

    Raises:
        SocketError: The kernel refuses.
    """
    reactor = current_reactor(reactor)
    poller_for(reactor)
    one, other = new_pair(family, socket_type, protocol)
    return (
        Socket.from_socket(one, reactor=reactor),
        Socket.from_socket(other, reactor=reactor),
    )


def new_pair(
    family: int, socket_type: int, protocol: int
) -> tuple[_socket.socket, _socket.socket]:
    """Return two sockets of the standard library that are connected with each other."""
    try:
        return _socket.socketpair(family, socket_type, protocol)
    except OSError as error:
        raise SocketError(errno=error.errno, strerror=error.strerror) from None


def get_peer_name(socket: Socket) -> SocketAddress:
    """
    Return the address of the peer (``get-peer-name``).

    Raises:
        SocketError: There is no peer.
        SocketClosedError: The socket is closed.
    """
    return socket.getpeername()


# Sending and receiving


def send(
    socket: Socket, data: Buffer, flags: int = 0, addrinfo: Address | None = None
) -> Deferred[int]:
    """
    Send *data* (``send``).

    Args:
        socket: Connected, unless there is an *addrinfo*.
        data: Left alone by its owner until the Deferred fires.
        flags: ``MSG_…`` flags.
        addrinfo: Whom to send to; the peer if `None`.

    Returns:
        How many bytes were sent; of a stream possibly not all.

    Errors:
        SocketWriteTimeoutError, SocketConnectionLostError, SocketBusyError,
        SocketClosedError: As `Socket.send`.

    Cancelling:
        As `Socket.send`: nothing has been sent.
    """
    if addrinfo is None:
        return socket.send(data, flags)
    return socket.sendto(data, addrinfo, flags)


def send_non_blocking(
    socket: Socket,
    data: Buffer,
    timeout: float | timedelta,
    flags: int = 0,
    addrinfo: Address | None = None,
) -> Deferred[int | None]:
    """
    Send, but give up after *timeout* seconds (``send/non-blocking``).

    Args:
        socket: Connected, unless there is an *addrinfo*.
        data: Left alone by its owner until the Deferred fires.
        timeout: Seconds, or a `timedelta`; 0 tries once.
        flags: ``MSG_…`` flags.
        addrinfo: Whom to send to; the peer if `None`.

    Returns:
        How many bytes were sent; `None` after the timeout, when none were. On
        TLS a timeout may leave up to 16 KiB that still go out.

    Raises:
        TypeError: *timeout* is of another type.
        ValueError: *timeout* is negative or no number.

    Errors:
        As `send`.

    Cancelling:
        As `send`.
    """
    seconds = check_timeout(timeout)
    return _within(socket, seconds, lambda: send(socket, data, flags, addrinfo))


def receive_into(
    socket: Socket, buffer: Buffer, flags: int = 0, addrinfo: Address | None = None
) -> Deferred[int]:
    """
    Fill *buffer* with what has arrived (``receive!``).

    Args:
        socket: Connected, or bound for datagrams.
        buffer: Written from its start; bytes past the count stay untouched.
        flags: ``MSG_…`` flags.
        addrinfo: Of the family that datagrams are expected from.

    Returns:
        The number of bytes, as soon as there is one; of a stream 0 once the
        peer has finished sending.

    Raises:
        TypeError: *buffer* cannot be written.
        ValueError: *addrinfo* is of another family than the socket.

    Errors:
        SocketReadTimeoutError, SocketConnectionLostError, SocketBusyError,
        SocketClosedError: As `Socket.recv_into`.

    Cancelling:
        Fails with `CancelledError`, consumes nothing, keeps the socket open.
    """
    check_family(socket, addrinfo)
    return socket.recv_into(buffer, 0, flags)


def receive_into_non_blocking(
    socket: Socket,
    buffer: Buffer,
    timeout: float | timedelta,
    flags: int = 0,
    addrinfo: Address | None = None,
) -> Deferred[int | None]:
    """
    Receive into *buffer*, but give up after *timeout* seconds (``receive!/non-blocking``).

    Args:
        socket: Connected, or bound for datagrams.
        buffer: Written from its start; bytes past the count stay untouched.
        timeout: Seconds, or a `timedelta`; 0 tries once.
        flags: ``MSG_…`` flags.
        addrinfo: Of the family that datagrams are expected from.

    Returns:
        The number of bytes (of a stream 0 at the end); `None` after the
        timeout, when nothing was consumed.

    Raises:
        TypeError: *buffer* cannot be written, or *timeout* is of another type.
        ValueError: *addrinfo* is of another family, or *timeout* negative or no number.

    Errors:
        As `receive_into`.

    Cancelling:
        As `receive_into`.
    """
    seconds = check_timeout(timeout)
    return _within(socket, seconds, lambda: receive_into(socket, buffer, flags, addrinfo))


def receive(
    socket: Socket, n: int, flags: int = 0, addrinfo: Address | None = None
) -> Deferred[bytes]:
    """
    Receive up to *n* bytes (``receive``).

    Args:
        socket: Connected, or bound for datagrams.
        n: The most bytes wanted.
        flags: ``MSG_…`` flags.
        addrinfo: Of the family that datagrams are expected from.

    Returns:
        What has arrived; of a stream ``b""`` once the peer has finished sending.

    Raises:
        ValueError: *addrinfo* is of another family than the socket.

    Errors:
        SocketReadTimeoutError, SocketConnectionLostError, SocketBusyError,
        SocketClosedError: As `Socket.recv`.

    Cancelling:
        Fails with `CancelledError`, consumes nothing, keeps the socket open.
    """
    check_family(socket, addrinfo)
    return socket.recv(n, flags)


def receive_non_blocking(
    socket: Socket,
    n: int,
    timeout: float | timedelta,
    flags: int = 0,
    addrinfo: Address | None = None,
) -> Deferred[bytes | None]:
    """
    Receive, but give up after *timeout* seconds; ``b""`` is the end, `None` the timeout.

    The ``receive/non-blocking`` of ``(chibi net)``.

    Args:
        socket: Connected, or bound for datagrams.
        n: The most bytes wanted.
        timeout: Seconds, or a `timedelta`; 0 tries once.
        flags: ``MSG_…`` flags.
        addrinfo: Of the family that datagrams are expected from.

    Returns:
        What has arrived; `None` after the timeout, when nothing was consumed.

    Raises:
        TypeError: *timeout* is of another type.
        ValueError: *addrinfo* is of another family, or *timeout* negative or no number.

    Errors:
        As `receive`.

    Cancelling:
        As `receive`.
    """
    seconds = check_timeout(timeout)
    return _within(socket, seconds, lambda: receive(socket, n, flags, addrinfo))


def check_timeout(timeout: float | timedelta) -> float:
    """Return *timeout* in seconds."""
    if isinstance(timeout, timedelta):
        seconds = timeout.total_seconds()
    elif isinstance(timeout, int | float) and not isinstance(timeout, bool):
        seconds = float(timeout) if abs(timeout) < _FOREVER else math.inf
    else:
        raise TypeError(f"timeout must be seconds or a timedelta, not {timeout!r}")
    if not 0 <= seconds < math.inf:
        raise ValueError(f"timeout={timeout!r} must be 0 or more seconds")
    return seconds


def check_family(socket: SocketInfo, addrinfo: Address | None) -> None:
    """Refuse an *addrinfo* of another family than the socket's."""
    if addrinfo is None:
        return
    family = (
        addrinfo.family
        if isinstance(addrinfo, AddressInfo)
        else as_socket_address(addrinfo).family
    )
    if family not in (_socket.AF_UNSPEC, socket.family):
        raise ValueError(
            f"addrinfo={addrinfo!r} is of {family.name}, the socket of {socket.family.name}"
        )


def _within(
    socket: Socket, seconds: float, operation: Callable[[], Deferred[T]]
) -> Deferred[T | None]:
    """Give *operation* that many seconds, then cancel it and fire with `None`."""
    if not seconds:
        # One try must be a try, however many went before it in this reactor iteration.
        socket._in_a_row = socket._skips = 0
    answer: Deferred[Any] = operation()
    if answer.called:
        return answer
    if seconds:
        return answer.addTimeout(seconds, socket._reactor, lambda _result, _seconds: None)
    answer.addErrback(_only_cancelled)
    answer.cancel()
    return answer


def _only_cancelled(failure: Failure) -> None:
    failure.trap(CancelledError)


# A connection as two ports


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


def open_net_io(host: str, service: str | int, *, reactor: object = None) -> Deferred[NetIO]:
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
    proc: Callable[[InputPort, OutputPort], Coroutine[Deferred[Any], object, T]],
    *,
    reactor: object = None,
) -> Deferred[T]: ...


@overload
def with_net_io(
    host: str,
    service: str | int,
    proc: Callable[[InputPort, OutputPort], Deferred[T]],
    *,
    reactor: object = None,
) -> Deferred[T]: ...


@overload
def with_net_io(
    host: str,
    service: str | int,
    proc: Callable[[InputPort, OutputPort], T],
    *,
    reactor: object = None,
) -> Deferred[T]: ...


def with_net_io(
    host: str,
    service: str | int,
    proc: Callable[[InputPort, OutputPort], T | Awaitable[T]],
    *,
    reactor: object = None,
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
