"""What a descriptor is, in words."""

from __future__ import annotations

import os
import socket as _socket

from ..addresses import SocketAddress
from .native import NativeSocket

__all__ = ["describe"]

_KINDS = {
    (_socket.AF_INET, _socket.SOCK_STREAM): "TCP",
    (_socket.AF_INET6, _socket.SOCK_STREAM): "TCP",
    (_socket.AF_INET, _socket.SOCK_DGRAM): "UDP",
    (_socket.AF_INET6, _socket.SOCK_DGRAM): "UDP",
}


def describe(fd: int) -> str:
    """Return the addresses of a socket, or the name of a file."""
    try:
        number = os.dup(fd)
    except OSError:
        return f"closed descriptor {fd}"
    try:
        sock = NativeSocket(fileno=number)
    except OSError:
        os.close(number)
        try:
            return os.readlink(f"/proc/self/fd/{fd}")
        except OSError:  # pragma: no cover: Linux has it
            return f"descriptor {fd}"
    with sock:
        kind = _KINDS.get((sock.family, sock.type), "socket")
        here = SocketAddress.of(sock.family, sock.getsockname())
        if sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ACCEPTCONN):
            return f"{kind} listening on {here}"
        try:
            return f"{kind} from {here} to {SocketAddress.of(sock.family, sock.getpeername())}"
        except OSError:
            return f"{kind} at {here}, not connected"
