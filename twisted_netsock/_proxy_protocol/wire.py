"""
Sending and receiving PROXY headers on a descriptor, before anything else uses it.

Not one byte behind a header is taken: what follows, such as a ClientHello in the
same segment, stays with the kernel, where OpenSSL reads it.
"""

from __future__ import annotations

import socket as _socket
from typing import Final

from twisted.internet.defer import Deferred

from .._io.descriptor import Descriptor, from_os_error
from .._io.drive import drive
from .._io.interfaces import Reactor
from .._io.poller import WANT_READ, Want, Watch
from ..addresses import SocketAddress
from ..errors import (
    ProxyHeaderError,
    SocketConnectionLostError,
    SocketConnectionTimeoutError,
)
from ..options import SocketOptions
from .header import HEADER_LIMIT, ProxyHeader, header_end

__all__ = ["check_header", "receive_header", "send_header"]

STAGE: Final = "PROXY header"


class _Receive:
    """An attempt to take a header off *sock*, to be called until it is done."""

    __slots__ = ("_header", "_sock", "_version")

    def __init__(self, sock: _socket.socket, version: str) -> None:
        self._sock = sock
        self._version = version
        self._header = bytearray()

    def __call__(self) -> ProxyHeader | Want:
        """Take what has come of the header, and nothing more; return the whole one."""
        header = self._header
        while True:
            try:
                # Peeked at first: the line of version 1 does not say how long it is, and what
                # comes behind the header is TLS's or the application's to receive.
                seen = self._sock.recv(HEADER_LIMIT - len(header), _socket.MSG_PEEK)
                if not seen:
                    raise _cut_off(len(header))
                end = header_end(bytes(header + seen), self._version)
                known = len(header) + len(seen) if end is None else end
                header += self._sock.recv(min(len(seen), known - len(header)))
            except BlockingIOError:
                return WANT_READ
            except OSError as error:
                raise from_os_error(error) from None
            if len(header) == end:
                return ProxyHeader.parse(bytes(header))


def _cut_off(size: int) -> Exception:
    if size:
        return ProxyHeaderError(f"the connection ended after {size} bytes of it")
    return SocketConnectionLostError(
        strerror="The peer closed the connection without a PROXY header"
    )


def receive_header(
    reactor: Reactor, watch: Watch, sock: _socket.socket, version: str, timeout: float | None
) -> Deferred[ProxyHeader]:
    """
    Take a PROXY header off *sock*, and nothing behind it.

    Args:
        reactor: For the timeout.
        watch: The descriptor's, unused by others meanwhile.
        descriptor: Stays open whatever happens.
        version: ``"v1"``, ``"v2"`` or ``"any"``.
        timeout: Seconds, or `None` for no limit.

    Returns:
        The header.

    Errors:
        ProxyHeaderError: Something else came, or it is malformed or too long.
        SocketConnectionLostError: The peer went away.
        SocketConnectionTimeoutError: *timeout* passed.

    Cancelling:
        Fails with `CancelledError`; a part of the header may have been taken.
    """
    return drive(
        reactor,
        watch,
        _Receive(sock, version),
        timeout=timeout,
        timed_out=lambda: SocketConnectionTimeoutError(STAGE),
    )


def check_header(options: SocketOptions, header: ProxyHeader) -> None:
    """
    Refuse a header that a client with these *options* cannot send.

    Raises:
        TypeError: It is no `ProxyHeader`.
        ValueError: There is no `proxy_protocol`, or that version cannot carry it.
    """
    if not isinstance(header, ProxyHeader):
        raise TypeError(f"proxy_header must be a ProxyHeader, not {header!r}")
    if options.proxy_protocol is None:
        raise ValueError("proxy_header needs options with proxy_protocol='v1' or 'v2'")
    header.encode(options.proxy_protocol)


def _own_header(sock: _socket.socket) -> ProxyHeader:
    """
    Return a header with the addresses of the connection itself.

    Raises:
        SocketConnectionLostError: It is lost already.
    """
    try:
        source, destination = sock.getsockname(), sock.getpeername()
    except OSError as error:
        raise SocketConnectionLostError(errno=error.errno, strerror=error.strerror) from None
    return ProxyHeader(
        SocketAddress.of(sock.family, source), SocketAddress.of(sock.family, destination)
    )


def send_header(
    reactor: Reactor,
    watch: Watch,
    descriptor: Descriptor,
    version: str,
    header: ProxyHeader | None = None,
) -> Deferred[None]:
    """
    Send *header* on *descriptor*, or one with the connection's own addresses.

    Args:
        reactor: Where it happens.
        watch: The descriptor's, unused by others meanwhile.
        descriptor: Stays open whatever happens.
        version: ``"v1"`` or ``"v2"``.
        header: What `check_header` has let through.

    Returns:
        `None`, when the kernel has all of it.

    Raises:
        SocketConnectionLostError: The peer went away before.

    Errors:
        SocketConnectionLostError: The peer went away.

    Cancelling:
        Fails with `CancelledError`; a part may have been sent.
    """
    sent = _own_header(descriptor.sock) if header is None else header
    rest = memoryview(sent.encode(version))

    def attempt() -> Want | None:
        nonlocal rest
        while rest:
            count = descriptor.try_send(rest)
            if isinstance(count, Want):
                return count
            rest = rest[count:]
        return descriptor.try_flush()

    return drive(reactor, watch, attempt)
