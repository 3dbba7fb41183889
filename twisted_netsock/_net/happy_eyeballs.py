"""Connecting to one of several addresses: Happy Eyeballs (RFC 8305)."""

from __future__ import annotations

import errno
import socket as _socket
from collections.abc import Sequence
from socket import AF_UNIX
from typing import Final

import attrs
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall, ITransport
from twisted.python.failure import Failure

from .._io.descriptor import Connect, Descriptor, PlainDescriptor
from .._io.drive import drive
from .._io.fairness import ADDRESSES
from .._io.fast_await import Done
from .._io.interfaces import Reactor
from .._io.poller import Want, Watch, poller_for
from .._proxy_protocol.header import ProxyHeader
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

_SELF_CONNECTS: Final = 2
"""How often a connection with itself is tried again, as often as Go's net.Dial does."""

# Errors of an address that could not even be tried from this host. They do not count where
# another address has been reached: a host without IPv6 shall read "connection refused".
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
    An established connection, verified if it is TLS; its receiver owns it.

    Attributes:
        descriptor: Reads and writes it.
        watch: The descriptor's.
        peer: The peer's address, if the kernel has just returned it.
        inner: Names both ends, where another endpoint has connected: its transport.
        header: The PROXY header that the peer began with.
    """

    descriptor: Descriptor
    watch: Watch
    peer: SocketAddress | None = None
    inner: ITransport | None = None
    header: ProxyHeader | None = None

    def close(self) -> None:
        """Close it at once."""
        self.watch.close()
        self.descriptor.close()

    def reset(self) -> None:
        """Close it at once, and reset the connection."""
        self.descriptor.reset_on_close()
        self.close()


class HappyEyeballs:
    """
    Attempts to connect to the addresses of one node; the first to succeed is the connection.

    The others are closed. When all have failed, their errors become one.
    """

    def __init__(
        self,
        reactor: Reactor,
        infos: Sequence[AddressInfo],
        options: SocketOptions,
        *,
        at_once: bool = True,
    ) -> None:
        """
        Prepare attempts to connect to *infos*; `run` begins.

        Args:
            reactor: Where it happens.
            infos: In the order of the attempts.
            options: Everything else.
            at_once: A connection that is established within connect(2) is returned at once,
                and not in the next reactor iteration.
        """
        self._reactor = reactor
        self._poller = poller_for(reactor)
        self._may_go_on = self._poller.may_go_on if at_once else _never
        self._options = options
        self._infos = list(infos)
        self._running: dict[Deferred[None], SocketAddress] = {}
        self._failures: list[tuple[SocketAddress, Exception]] = []
        self._timer: IDelayedCall | None = None
        self._again = _SELF_CONNECTS
        self._over = False
        self._established: Established | None = None
        self._result: Deferred[Established] | None = None

    def run(self) -> Deferred[Established]:
        """
        Begin, and return the connection that is established first.

        Over loopback the Deferred has usually already fired.

        Returns:
            The connection, which is the receiver's to close.

        Errors:
            SocketError: Every attempt has failed.

        Cancelling:
            Fails with `CancelledError`; no attempt is left.
        """
        self._next()
        if self._established is not None:
            # A Deferred that is made first and fired then costs the relay 6 % of a connection.
            return Done(self._established)
        if self._over:
            return fail(_summary(self._failures))
        self._result = Deferred(lambda _: self._stop())
        return self._result

    def attempts(self) -> list[tuple[SocketAddress, Exception]]:
        """Return the error of every address tried so far; a timeout for those under way."""
        late = SocketConnectionTimeoutError("connect")
        return [*self._failures, *((address, late) for address in self._running.values())]

    def _next(self) -> None:
        """Try the next address, and further ones while each fails at once."""
        self._stop_timer()
        in_a_row = 0
        while self._infos and not self._over:
            if in_a_row == ADDRESSES:
                self._timer = self._reactor.callLater(0, self._after_delay)
                return
            in_a_row += 1
            if self._begin(self._infos.pop(0)):
                if self._infos and not self._over:
                    self._timer = self._reactor.callLater(ATTEMPT_DELAY, self._after_delay)
                return
        if not self._running and not self._over:
            self._over = True
            if self._result is not None:
                self._result.errback(Failure(_summary(self._failures)))

    def _begin(self, info: AddressInfo) -> bool:
        """Begin an attempt; return whether it is under way, or has succeeded."""
        address = info.address
        assert address is not None
        try:
            candidate = self._open(info)
        except SocketError as error:
            self._failures.append((address, error))
            return False
        native = address.native(info.family)
        local = self._options.local_address
        connecting = Connect(
            candidate.descriptor.sock,
            native,
            self._may_go_on,
            bound=local is not None and local[1] != 0,
        )
        try:
            want = connecting()
        except SocketError as error:
            candidate.close()
            self._failed(info, connecting, error)
            return False
        if want is None:
            self._succeed(candidate, address, connecting.peer)
            return True
        return self._wait(candidate, info, connecting, want)

    def _failed(self, info: AddressInfo, connecting: Connect, error: Exception) -> None:
        """Note that an attempt has failed, or have it made again."""
        assert info.address is not None
        if connecting.with_itself and self._again:
            self._again -= 1
            self._infos.insert(0, info)
        else:
            self._failures.append((info.address, error))

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
        self, candidate: Established, info: AddressInfo, connecting: Connect, want: Want
    ) -> bool:
        """Wait for an attempt; return whether it is still under way, or has succeeded."""
        address = info.address
        assert address is not None
        attempt = drive(self._reactor, candidate.watch, connecting, first=want)
        self._running[attempt] = address

        def finished(result: Failure | None) -> None:
            del self._running[attempt]
            if not isinstance(result, Failure):
                self._succeed(candidate, address, connecting.peer)
                return
            candidate.close()
            if self._over:
                # Cancelled, or another attempt has succeeded.
                return
            if isinstance(result.value, SocketConnectionLostError):
                # The kernel never reports this of a connect: the poller has lost its reactor,
                # which would report no other attempt either.
                self._infos.clear()
            if isinstance(result.value, Exception):
                self._failed(info, connecting, result.value)
            if not beginning:
                self._next()

        # The Deferred may fail at once, where the descriptor cannot be watched. Then the loop
        # in _next goes on, instead of a recursion through `finished`.
        beginning = True
        attempt.addBoth(finished)
        beginning = False
        return self._over or attempt in self._running

    def _succeed(self, candidate: Established, address: SocketAddress, peer: object) -> None:
        """Return *candidate*, which is connected to *address*; *peer* is the native address."""
        self._stop()
        if peer is not None:
            candidate.peer = address if peer == address else SocketAddress.named(peer)
        if self._result is None:
            self._established = candidate
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
        """Cancel the attempts that are under way; each closes its own socket."""
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
