"""
`Attempts`: what the data calls of a socket try, whether they are awaited or block.

Each method checks the arguments of one call, and returns what the try layer does for it: a
callable, to be called until it returns something other than a `Want`. A socket on the
reactor parks it with the poller between two calls, a blocking one waits in poll(2).
"""

from __future__ import annotations

import errno
import os
import socket as _socket
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypeVar

from .._io.descriptor import (
    Descriptor,
    PlainDescriptor,
    byte_view,
    check_flags,
    may_not_wait,
    writable_view,
)
from .._io.poller import Want
from .._validation import byte_count
from ..addresses import Address, NativeAddress, SocketAddress, as_socket_address
from ..errors import SocketError

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["FLUSH_LIMIT", "UNIX_DATAGRAM_PACE", "Attempt", "Attempts", "send_through"]

T = TypeVar("T")

Attempt = Callable[[], T | Want]

UNIX_DATAGRAM_PACE: Final = 0.01
"""Seconds between two tries to send to a UNIX socket whose queue is full.

The kernel calls a datagram socket writable as long as its own buffer has room, whatever the
queue of the receiver that is not its peer: a wait for that would spin.
"""

FLUSH_LIMIT: Final = timedelta(seconds=5)
"""How long closing goes on sending what the output port holds, without a `write_timeout`."""


class Attempts:
    """The attempts of a socket's data calls, for sockets on the reactor and blocking ones."""

    _descriptor: Descriptor
    _blocks = False
    """The calls wait in their thread, and so ``MSG_DONTWAIT`` means something."""

    def _once_if(self, flags: int, attempt: Attempt[T]) -> Attempt[T]:
        """Return *attempt*, or of a call that is not to wait one that raises instead."""
        if not (self._blocks and may_not_wait(flags)):
            return attempt

        def once() -> T | Want:
            result = attempt()
            if isinstance(result, Want):
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            return result

        return once

    def _check_flags(self, flags: int, *, sending: bool = False, buffer: bool = True) -> None:
        """Refuse flags that are not honoured."""
        check_flags(flags, sending=sending, waits=self._blocks, buffer=buffer)

    def _datagrams(self) -> PlainDescriptor:
        """Return the descriptor for what TLS does not have."""
        if not isinstance(self._descriptor, PlainDescriptor):
            raise SocketError(errno=errno.EOPNOTSUPP, strerror="TLS has no datagrams or messages")
        return self._descriptor

    def _check_kernels(self) -> None:
        """Refuse to give a descriptor away whose state the kernel does not have."""
        if not isinstance(self._descriptor, PlainDescriptor):
            raise SocketError(strerror="A socket through an HTTPS proxy cannot be detached")

    def _native(self, address: Address) -> NativeAddress:
        """Return *address* as the kernel takes it, of this socket's family."""
        return as_socket_address(address).native(self._descriptor.sock.family)

    # Receiving

    def _recv_attempt(self, n: int, flags: int) -> Attempt[bytes]:
        self._check_flags(flags, buffer=False)
        return self._once_if(flags, lambda: self._descriptor.try_recv(n, flags))

    def _recv_into_attempt(self, buffer: Buffer, nbytes: int, flags: int) -> Attempt[int]:
        view = writable_view(buffer, nbytes)
        if flags:
            self._check_flags(flags)
        return self._once_if(flags, lambda: self._descriptor.try_recv_into(view, flags))

    def _recvfrom_attempt(self, n: int, flags: int) -> Attempt[tuple[bytes, SocketAddress]]:
        byte_count(n, "n")
        self._check_flags(flags, buffer=False)
        return self._once_if(flags, lambda: self._datagrams().try_recvfrom(n, flags))

    def _recvfrom_into_attempt(
        self, buffer: Buffer, nbytes: int, flags: int
    ) -> Attempt[tuple[int, SocketAddress]]:
        view = writable_view(buffer, nbytes)
        self._check_flags(flags)
        return self._once_if(flags, lambda: self._datagrams().try_recvfrom_into(view, flags))

    def _recvmsg_attempt(
        self, n: int, ancillary_size: int, flags: int
    ) -> Attempt[tuple[bytes, list[tuple[int, int, bytes]], int, SocketAddress]]:
        byte_count(n, "n")
        byte_count(ancillary_size, "ancillary_size")
        self._check_flags(flags)
        return self._once_if(
            flags, lambda: self._datagrams().try_recvmsg(n, ancillary_size, flags)
        )

    # Sending

    def _send_attempt(self, data: Buffer, flags: int) -> Attempt[int]:
        view = byte_view(data)
        if flags:
            self._check_flags(flags, sending=True)
        return self._once_if(flags, self._send_once(view, flags))

    def _send_once(self, view: memoryview, flags: int) -> Attempt[int]:
        """Return the attempt to send some of *view*, and through to the kernel."""
        descriptor = self._descriptor
        if isinstance(descriptor, PlainDescriptor):
            return lambda: descriptor.try_send(view, flags)
        return send_through(descriptor, view, flags, self._may_wait)

    def _may_wait(self) -> bool:
        """Tell whether a call waits for what it cannot do at once."""
        return True

    def _sendto_attempt(self, data: Buffer, address: Address, flags: int) -> Attempt[int]:
        self._check_flags(flags, sending=True)
        native = self._native(address)
        view = byte_view(data)
        return self._once_if(flags, lambda: self._datagrams().try_sendto(view, flags, native))

    def _sendmsg_attempt(
        self,
        buffers: Iterable[Buffer],
        ancillary: Iterable[tuple[int, int, Buffer]],
        flags: int,
        address: Address | None,
    ) -> Attempt[int]:
        native = None if address is None else self._native(address)
        views = [byte_view(buffer) for buffer in buffers]
        items = list(ancillary)
        self._check_flags(flags, sending=True)
        return self._once_if(
            flags, lambda: self._datagrams().try_sendmsg(views, items, flags, native)
        )

    def _shutdown_attempt(self, how: int) -> Attempt[None]:
        if how not in (_socket.SHUT_RD, _socket.SHUT_WR, _socket.SHUT_RDWR):
            raise ValueError(f"how={how!r} must be SHUT_RD, SHUT_WR or SHUT_RDWR")
        return lambda: self._descriptor.try_shutdown(how)


def send_through(
    descriptor: Descriptor, view: memoryview, flags: int, waits: Callable[[], bool]
) -> Attempt[int]:
    """
    Return the attempt to send some of *view* over TLS, and through to the kernel.

    What OpenSSL has taken counts as sent only when the kernel has it, unless the caller does
    not wait for that (*waits*): it must not send the same bytes again.
    """
    taken: int | None = None

    def attempt() -> int | Want:
        nonlocal taken
        if taken is None:
            count = descriptor.try_send(view, flags)
            if isinstance(count, Want):
                return count
            taken = count
        want = descriptor.try_flush() if waits() else None
        return taken if want is None else want

    return attempt
