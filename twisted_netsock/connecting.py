"""
From a node and a service to descriptors: connecting, binding and listening.

The connector follows RFC 8305 (Happy Eyeballs): families in turn, 250 ms
between attempts, the next one at once when one fails. Look-up, attempts and the
TLS handshake share the one deadline of `connection_timeout`.
"""

from __future__ import annotations

import errno
import socket as _socket
from collections.abc import Callable, Sequence
from socket import (
    AF_INET,
    AF_INET6,
    AF_UNIX,
    AF_UNSPEC,
    AI_PASSIVE,
    SOCK_STREAM,
    SOL_SOCKET,
    AddressFamily,
)
from typing import Any, Final, NamedTuple, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from .addresses import AddressInfo, SocketAddress, as_socket_address, interleave_families
from .client_contexts import ClientContextFactory
from .descriptors import Connect, Descriptor, PlainDescriptor
from .errors import (
    SocketBindError,
    SocketConnectionError,
    SocketConnectionRefusedError,
    SocketConnectionTimeoutError,
    SocketError,
)
from .options import SocketOptions
from .proxy_headers import ProxyHeader
from .proxying import send_header
from .readiness import Watch, poller_for
from .resolver import look_up, numeric_service
from .tls import TLSDescriptor, handshake
from .waiting import drive

__all__ = ["Deadline", "Established", "connect", "listen"]

T = TypeVar("T")

ATTEMPT_DELAY: Final = 0.25
"""Seconds between two attempts: the recommendation of RFC 8305, section 5."""

_PORT_CHOICES: Final = 8

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


class Established(NamedTuple):
    """A connection that stands, verified if it is TLS; whoever gets it owns it."""

    descriptor: Descriptor
    watch: Watch

    def close(self) -> None:
        """Close it at once."""
        self.watch.close()
        self.descriptor.close()


class Deadline:
    """The seconds of `connection_timeout`, which several stages share."""

    def __init__(self, reactor: Any, options: SocketOptions) -> None:
        self._reactor = reactor
        timeout = options.connection_timeout
        self._end = None if timeout is None else reactor.seconds() + timeout.total_seconds()

    def remaining(self, limit: float | None = None) -> float | None:
        """Return the seconds left, at most *limit*; `None` for no end."""
        if self._end is None:
            return limit
        left: float = max(0.0, self._end - self._reactor.seconds())
        return left if limit is None else min(left, limit)

    def bound(
        self,
        deferred: Deferred[T],
        stage: str,
        attempts: Callable[[], list[tuple[SocketAddress, Exception]]] = list,
    ) -> Deferred[T]:
        """Fail *deferred*, by cancelling it, when the time is over; tell the *attempts* then."""
        left = self.remaining()
        if left is None or deferred.called:
            return deferred
        tried: list[tuple[SocketAddress, Exception]] = []

        def expire() -> None:
            tried.extend(attempts())
            expired.append(True)
            deferred.cancel()

        def done(result: Any) -> Any:
            if timer.active():
                timer.cancel()
            if expired and isinstance(result, Failure) and result.check(CancelledError):
                return Failure(SocketConnectionTimeoutError(stage, attempts=tried))
            return result

        expired: list[bool] = []
        timer = self._reactor.callLater(left, expire)
        return deferred.addBoth(done)


def apply_options(sock: _socket.socket, options: SocketOptions) -> None:
    """
    Set what *options* asks for on *sock*, before connect or bind.

    Raises:
        SocketError: The kernel refuses an option; it names level, name and value.
    """
    if sock.family in (AF_INET, AF_INET6) and sock.type == SOCK_STREAM:
        _set_option(sock, _socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
    for level, name, value in options.socket_options:
        _set_option(sock, level, name, value)
    if options.reuse_port:
        _set_option(sock, SOL_SOCKET, _socket.SO_REUSEPORT, 1)


def _set_option(sock: _socket.socket, level: int, name: int, value: int | bytes) -> None:
    try:
        sock.setsockopt(level, name, value)
    except OSError as error:
        raise SocketError(
            errno=error.errno,
            strerror=f"socket_options=({level}, {name}, {value!r}): {error.strerror}",
        ) from None


def open_socket(family: int, kind: int, protocol: int) -> _socket.socket:
    """
    Return a new non-blocking socket.

    Raises:
        SocketError: The kernel refuses.
    """
    try:
        sock = _socket.socket(family, kind, protocol)
    except OSError as error:
        raise SocketError(errno=error.errno, strerror=error.strerror) from None
    sock.setblocking(False)
    return sock


class _Race:
    """
    Attempts at the addresses of one node, of which the first to succeed wins.

    Losers are closed. When all have failed the Deferred fails with what they
    gave, as one error.
    """

    def __init__(self, reactor: Any, infos: Sequence[AddressInfo], options: SocketOptions) -> None:
        self._reactor = reactor
        self._options = options
        self._waiting = list(infos)
        self._running: dict[Deferred[None], SocketAddress] = {}
        self._failures: list[tuple[SocketAddress, Exception]] = []
        self._timer: Any = None
        self._over = False
        self._result: Deferred[Established] = Deferred(lambda _: self._stop())

    def run(self) -> Deferred[Established]:
        self._next()
        return self._result

    def attempts(self) -> list[tuple[SocketAddress, Exception]]:
        """Return what every address tried has given so far."""
        late = SocketConnectionTimeoutError("connect")
        return [*self._failures, *((address, late) for address in self._running.values())]

    def _next(self) -> None:
        """Begin with the next address, and go on with those that fail at once."""
        self._stop_timer()
        while self._waiting and not self._over:
            info = self._waiting.pop(0)
            assert info.address is not None
            try:
                candidate = self._open(info)
            except SocketError as error:
                self._failures.append((info.address, error))
                continue
            if self._begin(candidate, info.address):
                if self._waiting and not self._over:
                    self._timer = self._reactor.callLater(ATTEMPT_DELAY, self._after_delay)
                return
        if not self._running and not self._over:
            self._over = True
            self._result.errback(Failure(_summary(self._failures)))

    def _open(self, info: AddressInfo) -> Established:
        sock = open_socket(info.family, info.socket_type, info.protocol)
        try:
            apply_options(sock, self._options)
            _bind_local(sock, self._options)
            return Established(
                PlainDescriptor(sock), poller_for(self._reactor).watch(sock.fileno())
            )
        except BaseException:
            sock.close()
            raise

    def _begin(self, candidate: Established, address: SocketAddress) -> bool:
        """Begin an attempt, and tell whether it is under way (or has won)."""
        sock = candidate.descriptor.sock
        attempt = drive(self._reactor, candidate.watch, Connect(sock, address.native(sock.family)))
        self._running[attempt] = address

        def finished(result: Failure | None) -> None:
            del self._running[attempt]
            if not isinstance(result, Failure):
                self._stop()
                self._result.callback(candidate)
                return
            candidate.close()
            if self._over:
                # Cancelled, or another attempt has won.
                return
            if isinstance(result.value, Exception):
                self._failures.append((address, result.value))
            if not beginning:
                self._next()

        # An attempt that fails at once must not recurse: the loop in _next goes on.
        beginning = True
        attempt.addBoth(finished)
        beginning = False
        return self._over or attempt in self._running

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


def _bind_local(sock: _socket.socket, options: SocketOptions) -> None:
    if options.local_address is None:
        return
    host, port = options.local_address
    local = (
        SocketAddress((host,))
        if sock.family == AF_UNIX
        else as_socket_address(options.local_address)
    )
    try:
        sock.bind(local.native(sock.family))
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


def _client_infos(
    reactor: Any, node: str, service: str | int | None, options: SocketOptions
) -> Deferred[list[AddressInfo]]:
    return look_up(
        reactor,
        node,
        service,
        family=options.ai_family,
        kind=options.ai_socktype,
        protocol=options.ai_protocol,
        flags=options.ai_flags,
    ).addCallback(lambda infos: _reachable_from(options, interleave_families(infos)))


def _reachable_from(options: SocketOptions, infos: list[AddressInfo]) -> list[AddressInfo]:
    """Leave out the families that `local_address` rules out."""
    if options.local_address is None:
        return infos
    family = as_socket_address(options.local_address).family
    fitting = [info for info in infos if info.family == family]
    if not fitting:
        host = options.local_address[0]
        raise SocketConnectionError(
            strerror=f"No address of the node can be reached from local_address={host!r}",
            errno=errno.EADDRNOTAVAIL,
        )
    return fitting


def unix_info(path: str, options: SocketOptions) -> AddressInfo:
    """Return the way to the UNIX socket at *path*."""
    return AddressInfo(AF_UNIX, options.ai_socktype, options.ai_protocol, SocketAddress((path,)))


def check_target(node: str | None, service: str | int | None, options: SocketOptions) -> None:
    """
    Refuse a node and a service that cannot be connected to.

    Raises:
        TypeError: One is of another type.
        ValueError: One is missing, superfluous, or no name, path or port.
    """
    _check_node(node, service, options)
    if options.ai_family == AF_UNIX:
        return
    if service is None or (numeric_service(service) == 0 and options.ai_socktype == SOCK_STREAM):
        raise ValueError(f"service={service!r} must be a name or a port to connect to")


def check_listening(node: str | None, service: str | int | None, options: SocketOptions) -> None:
    """
    Refuse a node and a service that cannot be listened on.

    Raises:
        TypeError: One is of another type.
        ValueError: One is missing, superfluous, or no name, path or port.
    """
    if node is not None or options.ai_family == AF_UNIX:
        _check_node(node, service, options)
    if options.ai_family == AF_UNIX:
        return
    if service is None:
        raise ValueError("service=None must be a name or a port to listen on")
    numeric_service(service)


def _check_node(node: str | None, service: str | int | None, options: SocketOptions) -> None:
    if not isinstance(node, str):
        raise TypeError(f"node must be a host name, an address or a path, not {node!r}")
    if options.ai_family == AF_UNIX:
        if service is not None:
            raise ValueError(f"service={service!r} must be None with ai_family=AF_UNIX")
        if not node:
            raise ValueError("node='' must be a path")
    elif not node or "\0" in node:
        raise ValueError(f"node={node!r} must be a host name or an address")


def connect(
    reactor: Any,
    node: str,
    service: str | int | None,
    options: SocketOptions,
    factory: ClientContextFactory | None = None,
    protocols: Sequence[bytes] = (),
    header: ProxyHeader | None = None,
) -> Deferred[Established]:
    """
    Connect to *node* and *service*, and shake hands if there is a *factory*.

    Args:
        reactor: Where it happens.
        node: A name, an address, or the path of a UNIX socket.
        service: A name or a port.
        options: Everything else.
        factory: Makes the TLS connection.
        protocols: For ALPN, beside those of the options.
        header: The PROXY header to send, where the options have `proxy_protocol`;
            one with the connection's own addresses if `None`.

    Returns:
        The connection, verified if it is TLS; the caller's to close.

    Errors:
        HostNotFoundError: There is no such node or service.
        SocketConnectionError: No address could be connected to; its kin say why.
        CertificateVerificationError, TLSHandshakeError: TLS failed.

    Cancelling:
        Fails with `CancelledError` at every stage, and leaves nothing behind.
    """
    return Deferred.fromCoroutine(
        _connect(reactor, node, service, options, factory, protocols, header)
    )


async def _connect(
    reactor: Any,
    node: str,
    service: str | int | None,
    options: SocketOptions,
    factory: ClientContextFactory | None,
    protocols: Sequence[bytes],
    header: ProxyHeader | None,
) -> Established:
    deadline = Deadline(reactor, options)
    if options.ai_family == AF_UNIX:
        infos = [unix_info(node, options)]
    else:
        infos = await deadline.bound(_client_infos(reactor, node, service, options), "look-up")
    race = _Race(reactor, infos, options)
    established = await deadline.bound(race.run(), "connect", race.attempts)
    sock, watch = established.descriptor.sock, established.watch
    try:
        if options.proxy_protocol is not None:
            sending = send_header(reactor, watch, sock, options.proxy_protocol, header)
            await deadline.bound(sending, "connect", race.attempts)
        if factory is None:
            return established
        limit = factory.options.handshake_timeout
        seconds = deadline.remaining(None if limit is None else limit.total_seconds())
        place = node if service is None else service
        descriptor = TLSDescriptor(sock, factory, protocols, place)
        if factory.options.handshake:
            await handshake(reactor, watch, descriptor, seconds)
    except BaseException:
        established.close()
        raise
    return Established(descriptor, watch)


# Listening


def _passive_infos(
    reactor: Any, node: str | None, service: str | int | None, options: SocketOptions
) -> Deferred[list[AddressInfo]]:
    return look_up(
        reactor,
        node,
        service,
        family=options.ai_family,
        kind=options.ai_socktype,
        protocol=options.ai_protocol,
        flags=options.ai_flags | AI_PASSIVE,
    )


def listen(
    reactor: Any,
    node: str | None,
    service: str | int | None,
    options: SocketOptions,
    *,
    every_address: bool = False,
) -> Deferred[list[_socket.socket]]:
    """
    Bind *node* and *service*, and listen if it is a stream.

    Args:
        reactor: For the look-up.
        node: A name, an address, a path, or `None` for every interface: IPv4 and
            IPv6 through one descriptor, unless the options say otherwise.
        service: A name or a port; 0 lets the kernel choose.
        options: Everything else.
        every_address: Bind each address of a name, all on one port, instead of
            the first.

    Returns:
        The non-blocking sockets, at least one; the caller's to close.

    Errors:
        HostNotFoundError: There is no such node or service.
        SocketBindError: An address cannot be bound; none stays bound then.

    Cancelling:
        Fails with `CancelledError`; nothing is bound.
    """
    return Deferred.fromCoroutine(_listen(reactor, node, service, options, every_address))


async def _listen(
    reactor: Any,
    node: str | None,
    service: str | int | None,
    options: SocketOptions,
    every_address: bool,
) -> list[_socket.socket]:
    if options.ai_family == AF_UNIX:
        assert node is not None
        return [_bound(unix_info(node, options), options, node, None)]
    if node is None and options.ai_family == AF_UNSPEC:
        dual = _dual_stack_family()
        infos = await _passive_infos(reactor, None, service, options.replace(ai_family=dual))
    else:
        infos = await _passive_infos(reactor, node, service, options)
    if not every_address:
        infos = infos[:1]
    for _ in range(_PORT_CHOICES):
        try:
            return _bind_all(infos, options, node)
        except SocketBindError as error:
            chosen_here = len(infos) > 1 and infos[0].address and infos[0].address.port == 0
            if not chosen_here or error.errno != errno.EADDRINUSE:
                raise
            # The port that the kernel chose for one address is taken on another.
    return _bind_all(infos, options, node)


def _bind_all(
    infos: list[AddressInfo], options: SocketOptions, node: str | None
) -> list[_socket.socket]:
    """Bind every address, all on the port of the first."""
    listening: list[_socket.socket] = []
    try:
        for info in infos:
            assert info.address is not None
            port = listening[0].getsockname()[1] if listening else info.address.port
            listening.append(_bound(_at_port(info, port), options, node, port))
    except BaseException:
        for sock in listening:
            sock.close()
        raise
    return listening


def _dual_stack_family() -> AddressFamily:
    """Return ``AF_INET6``, or ``AF_INET`` where the kernel has no IPv6."""
    if _socket.has_ipv6:
        try:
            _socket.socket(AF_INET6, SOCK_STREAM).close()
        except OSError:
            return AF_INET
        return AF_INET6
    return AF_INET


def _at_port(info: AddressInfo, port: int) -> AddressInfo:
    assert info.address is not None
    host, _, *rest = info.address
    return AddressInfo(
        info.family, info.socket_type, info.protocol, SocketAddress((host, port, *rest))
    )


def _bound(
    info: AddressInfo, options: SocketOptions, node: str | None, port: int | None
) -> _socket.socket:
    """Return a socket bound to *info*, listening if it is a stream."""
    assert info.address is not None
    sock = open_socket(info.family, info.socket_type, info.protocol)
    try:
        if info.family != AF_UNIX and info.socket_type == SOCK_STREAM:
            sock.setsockopt(SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        if info.family == AF_INET6:
            # Whatever the system's default: dual only where every interface is meant.
            dual = node is None and options.ai_family == AF_UNSPEC and not options.v6_only
            sock.setsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, 0 if dual else 1)
        apply_options(sock, options)
        sock.bind(info.address.native(info.family))
        if info.socket_type == SOCK_STREAM:
            sock.listen(options.backlog)
    except SocketError:
        sock.close()
        raise
    except OSError as error:
        sock.close()
        raise SocketBindError(node, port, cause=error) from None
    return sock
