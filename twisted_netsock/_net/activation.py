"""
Listening sockets that the parent process has bound: systemd's socket activation.

The protocol is that of ``sd_listen_fds(3)``: descriptors from 3 on, announced in
environment variables, which hold only for the process whose id they name.
"""

from __future__ import annotations

import os
import socket as _socket
from typing import Final

from twisted.internet import endpoints

from ..errors import SocketBindError

__all__ = ["activated_sockets"]

_FIRST: Final = 3
"""``SD_LISTEN_FDS_START``: the first descriptor behind standard input, output and error."""


def _refused(name: str, why: str) -> SocketBindError:
    return SocketBindError(name, None, strerror=why)


def activated_sockets(name: str) -> list[_socket.socket]:
    """
    Take over the listening sockets called *name*.

    Args:
        name: A ``FileDescriptorName`` of the socket unit, which several sockets
            may share, or the number of one, from 0 on.

    Returns:
        Non-blocking stream sockets that listen; the caller's to close.

    Raises:
        SocketBindError: There is none of that name, or it is no such socket.
    """
    passed = _passed()
    called = f"systemd={name}"
    if not passed:
        raise _refused(called, "this process was started without sockets (LISTEN_FDS)")
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")[: len(passed)]
    chosen = [descriptor for place, descriptor in enumerate(passed) if name == str(place)]
    chosen = chosen or [
        descriptor for descriptor, each in zip(passed, names, strict=False) if each == name
    ]
    if not chosen:
        there = ", ".join(filter(None, names)) or "without names"
        raise _refused(called, f"there are {len(passed)} sockets ({there}), and none of that name")
    return adopted_sockets(chosen, called)


def _passed() -> list[int]:
    """Return the descriptors that were passed to this process."""
    if os.environ.get("LISTEN_PID") == str(os.getpid()):
        count = os.environ.get("LISTEN_FDS", "")
        return [_FIRST + place for place in range(int(count) if count.isdecimal() else 0)]
    # Twisted removes the variables from the environment when it loads its own "systemd:" parser,
    # which has the descriptors then.
    found = getattr(endpoints, "_SystemdParser", None)
    return [] if found is None else list(found._sddaemon.inheritedDescriptors())


def adopted_sockets(descriptors: list[int], name: str) -> list[_socket.socket]:
    """
    Take over listening sockets by their descriptors.

    Args:
        descriptors: Inherited; closed if anything is wrong with one.
        name: What they are called in errors.

    Returns:
        Non-blocking sockets; the caller's to close.

    Raises:
        SocketBindError: One is no stream socket that listens.
    """
    sockets: list[_socket.socket] = []
    try:
        for descriptor in descriptors:
            # systemd passes them without FD_CLOEXEC; a child would keep the port bound.
            os.set_inheritable(descriptor, False)
            sock = _socket.socket(fileno=descriptor)
            sockets.append(sock)
            listens = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ACCEPTCONN)
            if sock.type != _socket.SOCK_STREAM or not listens:
                raise _refused(name, f"descriptor {descriptor} is no stream socket that listens")
            sock.setblocking(False)
    except OSError as error:
        for sock in sockets:
            sock.close()
        if isinstance(error, SocketBindError):
            raise
        raise _refused(name, error.strerror or str(error)) from None
    return sockets
