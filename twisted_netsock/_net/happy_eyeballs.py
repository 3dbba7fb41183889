"""Connecting to one of several addresses: the race of RFC 8305 (Happy Eyeballs)."""

from __future__ import annotations

import errno
import socket as _socket
from collections.abc import Sequence
from socket import AF_UNIX
from typing import Any, Final

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from .._io.descriptor import Connect, Descriptor, PlainDescriptor
from .._io.drive import drive
from .._io.fairness import ADDRESSES
from .._io.poller import Want, Watch, poller_for
from ..addresses import AddressInfo, SocketAddress, as_socket_address
from ..errors import (
    SocketBindError,
    SocketConnectionError,
    SocketConnectionLostError,
    SocketConnectionRefusedError,
    SocketConnectionTimeoutError,
    SocketError,
)
from ..options import SocketOptions
from .open_socket import apply_options, open_socket

__all__ = ["ATTEMPT_DELAY", "Established", "HappyEyeballs"]

ATTEMPT_DELAY: Final = 0.25
"""Seconds between two attempts: the recommendation of RFC 8305, section 5."""

# What an address gives that could not even be tried from here.
_NO_ROUTE: Final = frozenset(
    {
        errno.EADDRNOTAVAIL,
        errno.EAFNOSUPPORT,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.EPROTONOSUPPORT,
    }
)


@attrs.define(eq=False)
class Established:
    """
    A connection that stands, verified if it is TLS; whoever gets it owns it.

    Attributes:
        descriptor: Speaks on it.
        watch: Of the descriptor.
        peer: Where it leads to, if the kernel has just said so.
    """

    descriptor: Descriptor
    watch: Watch
    peer: SocketAddress | None = None

    def close(self) -> None:
        """Close it at once."""
        self.watch.close()
        self.descriptor.close()


class HappyEyeballs:
    """
    Attempts at the addresses of one node, of which the first to succeed wins.

    Losers are closed. When all have failed, what they gave is one error.
    """

    def __init__(
        self,
        reactor: Any,
        infos: Sequence[AddressInfo],
        options: SocketOptions,
        *,
        at_once: bool = True,
    ) -> None:
        """
        HappyEyeballs for one of *infos*.

        Args:
            reactor: Where it happens.
            infos: In the order of the attempts.
            options: Everything else.
            at_once: A connection that stands at once wins at once, and not in the next
                iteration of the reactor.
        """
        self._reactor = reactor
        self._poller = poller_for(reactor)
        self._may_go_on = self._poller.may_go_on if at_once else _never
        self._options = options
        self._waiting = list(infos)
        self._running: dict[Deferred[None], SocketAddress] = {}
        self._failures: list[tuple[SocketAddress, Exception]] = []
        self._timer: Any = None
        self._over = False
        self._winner: Established | None = None
        self._result: Deferred[Established] | None = None

    def run(self) -> Established | Deferred[Established]:
        """
        Begin, and return the winner, or a Deferred that fires with it.

        Within one machine there is mostly a winner at once. It is its receiver's to close.

        Raises:
            SocketError: All have failed at once.
        """
        self._next()
        if self._winner is not None:
            return self._winner
        if self._over:
            raise _summary(self._failures)
        self._result = Deferred(lambda _: self._stop())
        return self._result

    def attempts(self) -> list[tuple[SocketAddress, Exception]]:
        """Return what every address tried has given so far."""
        late = SocketConnectionTimeoutError("connect")
        return [*self._failures, *((address, late) for address in self._running.values())]

    def _next(self) -> None:
        """Begin with the next address, and go on with those that fail at once."""
        self._stop_timer()
        in_a_row = 0
        while self._waiting and not self._over:
            if in_a_row == ADDRESSES:
                self._timer = self._reactor.callLater(0, self._after_delay)
                return
            in_a_row += 1
            if self._begin(self._waiting.pop(0)):
                if self._waiting and not self._over:
                    self._timer = self._reactor.callLater(ATTEMPT_DELAY, self._after_delay)
                return
        if not self._running and not self._over:
            self._over = True
            if self._result is not None:
                self._result.errback(Failure(_summary(self._failures)))

    def _begin(self, info: AddressInfo) -> bool:
        """Begin an attempt, and tell whether it is under way (or has won)."""
        address = info.address
        assert address is not None
        try:
            candidate = self._open(info)
        except SocketError as error:
            self._failures.append((address, error))
            return False
        native = address.native(info.family)
        connecting = Connect(candidate.descriptor.sock, native, self._may_go_on)
        try:
            want = connecting()
        except SocketError as error:
            candidate.close()
            self._failures.append((address, error))
            return False
        if want is None:
            self._won(candidate, address, connecting.peer)
            return True
        return self._wait(candidate, address, connecting, want)

    def _open(self, info: AddressInfo) -> Established:
        sock = open_socket(info.family, info.socket_type, info.protocol)
        try:
            apply_options(sock, info.family, info.socket_type, self._options)
            if self._options.local_address is not None:
                _bind_local(sock, info.family, self._options.local_address)
            return Established(PlainDescriptor(sock), self._poller.watch(sock.fileno()))
        except BaseException:
            sock.close()
            raise

    def _wait(
        self, candidate: Established, address: SocketAddress, connecting: Connect, want: Want
    ) -> bool:
        """Wait for an attempt that is under way, and tell whether it still is (or has won)."""
        attempt = drive(self._reactor, candidate.watch, connecting, first=want)
        self._running[attempt] = address

        def finished(result: Failure | None) -> None:
            del self._running[attempt]
            if not isinstance(result, Failure):
                self._won(candidate, address, connecting.peer)
                return
            candidate.close()
            if self._over:
                # Cancelled, or another attempt has won.
                return
            if isinstance(result.value, SocketConnectionLostError):
                # No kernel says so of a connect: the reactor stops, and would report no other.
                self._waiting.clear()
            if isinstance(result.value, Exception):
                self._failures.append((address, result.value))
            if not beginning:
                self._next()

        # One that cannot even be waited for must not recurse: the loop in _next goes on.
        beginning = True
        attempt.addBoth(finished)
        beginning = False
        return self._over or attempt in self._running

    def _won(self, candidate: Established, address: SocketAddress, peer: Any) -> None:
        """End the race with *candidate*, which went to *address*, and got to the native *peer*."""
        self._stop()
        if peer is not None:
            candidate.peer = address if peer == address else SocketAddress.named(peer)
        if self._result is None:
            self._winner = candidate
        else:
            self._result.callback(candidate)

    def _after_delay(self) -> None:
        self._timer = None
        self._next()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop(self) -> None:
        """End the race: the attempts that still run are cancelled, and close themselves."""
        self._over = True
        self._stop_timer()
        for attempt in list(self._running):
            attempt.cancel()


def _never() -> bool:
    return False


def _bind_local(sock: _socket.socket, family: int, local_address: tuple[str, int]) -> None:
    host, port = local_address
    local = SocketAddress((host,)) if family == AF_UNIX else as_socket_address(local_address)
    try:
        sock.bind(local.native(family))
    except OSError as error:
        raise SocketBindError(host, port, cause=error) from None


def _summary(failures: Sequence[tuple[SocketAddress, Exception]]) -> Exception:
    """Return one error for all *failures*, of the class that they have in common."""
    reached = [
        (address, error)
        for address, error in failures
        if getattr(error, "errno", None) not in _NO_ROUTE
    ]
    kinds = {type(error) for _, error in reached or failures}
    if len(kinds) == 1:
        kind = kinds.pop()
        if issubclass(kind, SocketConnectionRefusedError):
            return SocketConnectionRefusedError(failures)
        if issubclass(kind, SocketConnectionTimeoutError):
            return SocketConnectionTimeoutError("connect", attempts=failures)
        if issubclass(kind, SocketBindError):
            return failures[0][1]
    return SocketConnectionError(failures)
