"""
A module ``socket`` whose sockets are ours, for tests that were written for the standard library's.

What it adds to the facade is what the facade leaves to its makers: a socket is made
by a call of the class, names are looked up, and `accept` returns a pair.
"""

from __future__ import annotations

import socket as stdlib
import types
from typing import Any

from twisted_netsock.blocking import BlockingSocket


class socket(BlockingSocket):  # noqa: N801 - the standard library's name
    """Ours, made as `socket.socket` is."""

    def __init__(
        self,
        family: int | Any = -1,
        type: int = -1,  # noqa: A002 - the standard library's name
        proto: int = -1,
        fileno: int | None = None,
        **ours: Any,
    ) -> None:
        if ours or not isinstance(family, int):
            # By the facade itself, around a descriptor that it has.
            super().__init__(family, **ours)
            return
        made = stdlib.socket(family, type, proto, fileno)
        super().__init__(BlockingSocket.from_socket(made)._surrender())
        self.settimeout(stdlib.getdefaulttimeout())

    def connect(self, address: Any) -> None:
        super().connect(_looked_up(self, address))

    def connect_ex(self, address: Any) -> int:
        return super().connect_ex(_looked_up(self, address))

    def bind(self, address: Any) -> None:
        super().bind(_looked_up(self, address))

    def sendto(self, data: Any, *arguments: Any) -> int:
        return super().sendto(data, *(_looked_up(self, each) for each in arguments))

    _sendfile_use_send = _sendfile_use_sendfile = BlockingSocket.sendfile

    def accept(self) -> Any:
        connection = super().accept()
        connection.settimeout(stdlib.getdefaulttimeout())
        return connection, connection.getpeername()


def _looked_up(sock: BlockingSocket, address: Any) -> Any:
    """Return *address* with a numeric host, as the standard library makes it."""
    if isinstance(address, tuple) and len(address) >= 2 and isinstance(address[0], str):
        host, port, *rest = address
        [*_, found], *_ = stdlib.getaddrinfo(
            host or None, port, family=sock.family, type=sock.type, flags=stdlib.AI_PASSIVE
        )
        return (*found[:2], *rest)
    return address


def socketpair(*arguments: Any) -> tuple[socket, socket]:
    """Return two of ours that are connected."""
    one, other = stdlib.socketpair(*arguments)
    return socket(fileno=one.detach()), socket(fileno=other.detach())


def fromfd(fd: int, family: int, type: int, proto: int = 0) -> socket:  # noqa: A002
    """Return one of ours around a duplicate of *fd*."""
    return socket(fileno=stdlib.fromfd(fd, family, type, proto).detach())


def make_module() -> types.ModuleType:
    """Return what a test imports as ``socket``: the standard library's, with our sockets."""
    module = types.ModuleType("socket")
    module.__dict__.update(vars(stdlib))
    ours = {"socket": socket, "SocketType": socket, "socketpair": socketpair, "fromfd": fromfd}
    # The functions that make sockets, as they are, with ours for theirs.
    for name in ("create_connection", "create_server"):
        function = getattr(stdlib, name)
        ours[name] = types.FunctionType(
            function.__code__, module.__dict__, name, function.__defaults__
        )
        ours[name].__kwdefaults__ = function.__kwdefaults__
    module.__dict__.update(ours)
    return module
