"""
Name look-up: `socket.getaddrinfo` as a Deferred, in daemon threads of our own.

Not in the reactor's thread pool: its threads are joined at exit, so that a look-up that
hangs would hold up the end of the process, and it has ten of them by default, so that ten
such look-ups would starve everything else that uses the pool.
"""

from __future__ import annotations

import queue
import socket as _socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache
from socket import (
    AF_INET,
    AF_INET6,
    AF_UNSPEC,
    SOCK_RAW,
    SOCK_STREAM,
    AddressFamily,
    SocketKind,
)
from typing import Final, NamedTuple

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.interfaces import (
    IAddress,
    IHostnameResolver,
    IHostResolution,
    IReactorFromThreads,
    IResolutionReceiver,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from .._hostnames import host_to_look_up, is_ip_address, numeric_service
from .._io.forks import after_fork
from .._io.interfaces import Reactor
from .._io.native import new_lock, original, start_thread
from ..addresses import AddressInfo, SocketAddress
from ..errors import HostNotFoundError

__all__ = ["Hints", "look_up", "look_up_numeric", "look_up_system"]

_MAX_THREADS = 32
"""At a time: getaddrinfo(3) waits for its resolver, 5 s and more where a server is silent."""

_IDLE_SECONDS = 10.0
"""After which a thread without a job ends; a program that looks up often keeps its threads."""

_NUMERIC_KEPT = 1024
"""Numeric addresses whose look-up is remembered."""

# A plain number: arithmetic on the flags of an enum takes longer than the cached look-up.
_ADDRCONFIG = int(_socket.AI_ADDRCONFIG)

# From <linux/in.h>; the socket module has it only where the C library does.
_IPPROTO_MPTCP = 262

_log = Logger()

Job = Callable[[], None]


class DaemonThreads:
    """
    At most 32 daemon threads that run jobs, oldest first; they end when idle.

    One pool for the process: a look-up does not belong to a reactor until its
    result is delivered.
    """

    def __init__(
        self,
        most: int = _MAX_THREADS,
        idle_seconds: float = _IDLE_SECONDS,
        name: str = "netsock-look-up",
        *,
        native: bool = True,
    ) -> None:
        """
        Start none yet.

        Args:
            most: How many there may be.
            idle_seconds: How long one without a job stays.
            name: Each one's.
            native: They are real threads, where others are greenlets, too.
        """
        self._most = most
        self._idle_seconds = idle_seconds
        self._name = name
        self._native = native
        self._lock = new_lock()
        self._wakes: queue.SimpleQueue[None] = (
            original(queue, "SimpleQueue") if native else queue.SimpleQueue
        )()
        """Something for each idle thread that is to look for a job."""
        self._jobs: deque[Job] = deque()
        self._threads = 0
        self._idle = 0

    def submit(self, job: Job) -> None:
        """
        Run *job* as soon as a thread is free; what it raises is logged.

        Raises:
            RuntimeError: There is no thread, and none can be started.
        """
        with self._lock:
            self._jobs.append(job)
            if self._idle >= len(self._jobs):
                self._wakes.put(None)
                return
            if self._threads >= self._most:
                return
            self._threads += 1
        try:
            if self._native:
                start_thread(self._work, self._name)
            else:
                threading.Thread(target=self._work, name=self._name, daemon=True).start()
        except RuntimeError:
            with self._lock:
                self._threads -= 1
                if self._threads == 0 and job in self._jobs:
                    # No thread will run it, so its caller must not wait for it.
                    self._jobs.remove(job)
                    raise

    def discard(self, job: Job) -> None:
        """Forget *job* if it has not begun."""
        with self._lock:
            if job in self._jobs:
                self._jobs.remove(job)

    def _work(self) -> None:
        while True:
            job = self._next_job()
            if job is None:
                return
            try:
                job()
            except BaseException:  # noqa: BLE001 - a thread that ended so would be counted for ever
                _log.failure("a job of the thread {name} failed", name=self._name)
            # It refers to its caller, and the next job may be long in coming.
            del job

    def _next_job(self) -> Job | None:
        """Wait for a job; `None`: for too long, and the thread is to end."""
        woken = True
        while True:
            with self._lock:
                if self._jobs:
                    return self._jobs.popleft()
                if not woken:
                    self._threads -= 1
                    return None
                self._idle += 1
            try:
                self._wakes.get(timeout=self._idle_seconds)
            except queue.Empty:
                woken = False
            with self._lock:
                self._idle -= 1


_threads = DaemonThreads()


def _forget_threads() -> None:
    """Start afresh in a forked child, where the threads are not."""
    global _threads  # noqa: PLW0603 - one pool for the process
    _threads = DaemonThreads()


after_fork(_forget_threads)


class Hints(NamedTuple):
    """
    What is looked for, as `socket.getaddrinfo` takes it.

    Attributes:
        family: ``AF_UNSPEC`` for IPv4 and IPv6.
        kind: The type of socket, or 0 for any.
        protocol: A protocol number, or 0 for any.
        flags: ``AI_…`` flags.
    """

    family: int = AF_UNSPEC
    kind: int = SOCK_STREAM
    protocol: int = 0
    flags: int = 0


_STREAM: Final = Hints()


def _ask_system(
    node: str | None,
    service: str | int | None,
    hints: Hints,
    name: str | None,
    port: str | int | None,
    flags: int = 0,
) -> list[AddressInfo]:
    """
    Call `socket.getaddrinfo`, which may block, for *name* and *port*, with *flags* more.

    Each address is returned once; errors name *node* and *service*.
    """
    if hints.kind == SOCK_RAW and port in (0, "0"):
        # glibc refuses any service of raw sockets, 0 too, with EAI_SERVICE.
        port = None
    # glibc does not know Multipath TCP; addresses and ports are those of TCP.
    is_multipath = hints.protocol == _IPPROTO_MPTCP
    asked = _socket.IPPROTO_TCP if is_multipath else hints.protocol
    try:
        results = original(_socket, "getaddrinfo")(
            name, port, hints.family, hints.kind, asked, hints.flags | flags
        )
    except _socket.gaierror as error:
        raise HostNotFoundError(
            node, service, errno=error.errno or _socket.EAI_FAIL, strerror=error.strerror
        ) from None
    except (OSError, UnicodeError) as error:
        # The name is too long for the codec, or the resolver is out of descriptors.
        raise HostNotFoundError(
            node, service, errno=_socket.EAI_FAIL, strerror=str(error)
        ) from None
    infos: dict[object, AddressInfo] = {}
    for family, kind, protocol, canonname, address in results:
        key = (family, kind, protocol, address)
        # getaddrinfo(3) sets the canonical name in the first result only.
        if family in (AF_INET, AF_INET6) and key not in infos:
            infos[key] = AddressInfo(
                AddressFamily(family),
                SocketKind(kind),
                _IPPROTO_MPTCP if is_multipath else protocol,
                SocketAddress(address),
                canonname,
                hints.flags,
            )
    if not infos:
        raise HostNotFoundError(node, service)
    return list(infos.values())


@lru_cache(maxsize=_NUMERIC_KEPT)
def _numeric_infos(
    node: str | None, port: int | None, service: str | int | None, hints: Hints
) -> tuple[AddressInfo, ...]:
    """Look up a numeric node, or `None`, which asks no server."""
    return tuple(_ask_system(node, service, hints, node, port, _socket.AI_NUMERICHOST))


def _wire_name(node: str | None) -> str | None:
    """Return *node* as resolvers take it."""
    if node is None:
        return None
    if not isinstance(node, str):
        raise TypeError(f"node must be a str or None, not {node!r}")
    return host_to_look_up(node)


def look_up_numeric(
    node: str | None, service: str | int | None, hints: Hints = _STREAM
) -> Sequence[AddressInfo] | None:
    """
    Look up a numeric *node*, or `None`, and a port at once: no server is asked.

    Returns:
        As `look_up_system`; `None` if *node* or *service* is a name.

    Raises:
        HostNotFoundError: There is no such address or service.
        TypeError, ValueError: As `look_up_system`.
    """
    if not (node is None or is_ip_address(node)):
        return None
    port = numeric_service(service)
    if port is None:
        return None
    # Not cached: the names of interfaces change, and which families are configured.
    changes = hints.flags & _ADDRCONFIG or (node is not None and "%" in node)
    ask = _numeric_infos.__wrapped__ if changes else _numeric_infos
    return ask(node, None if service is None else port, service, hints)


def look_up_system(
    reactor: IReactorFromThreads,
    node: str | None,
    service: str | int | None,
    hints: Hints = _STREAM,
) -> Deferred[list[AddressInfo]]:
    """
    Look *node* and *service* up with the system's `socket.getaddrinfo`.

    Args:
        reactor: Where the result is delivered.
        node: A name, a numeric address, or `None` (with ``AI_PASSIVE``: any).
        service: A name, a port, or `None`.
        hints: What is looked for.

    Returns:
        The results in the system's order, at least one, each once. Fired
        already where node and service are numeric.

    Raises:
        TypeError: *node* or *service* is of another type.
        ValueError: *node* is no host name, or *service* no port.

    Errors:
        HostNotFoundError: There is no such name or service, or no thread to ask in.

    Cancelling:
        Fails with `CancelledError` at once; the thread's result is dropped.
    """
    name = _wire_name(node)
    numeric_service(service)
    try:
        known = look_up_numeric(name, service, hints)
    except HostNotFoundError:
        return fail(Failure())
    if known is not None:
        return succeed(list(known))
    try:
        return _in_thread(reactor, lambda: _ask_system(node, service, hints, name, service))
    except RuntimeError as error:
        # The system has no thread left, for now.
        again = HostNotFoundError(node, service, errno=_socket.EAI_AGAIN, strerror=str(error))
        return fail(Failure(again))


def _in_thread(
    reactor: IReactorFromThreads, ask: Callable[[], list[AddressInfo]]
) -> Deferred[list[AddressInfo]]:
    """Call *ask* in a thread, and deliver what it returns or raises to the reactor's."""

    def job() -> None:
        outcome: list[AddressInfo] | BaseException
        try:
            outcome = ask()
        except BaseException as error:  # noqa: BLE001 - the caller waits for it
            outcome = error
        try:
            reactor.callFromThread(deliver, outcome)
        except RuntimeError:
            # asyncio's loop beneath the reactor is closed: no caller waits any more.
            pass

    def deliver(outcome: list[AddressInfo] | BaseException) -> None:
        if not result.called:
            if isinstance(outcome, BaseException):
                result.errback(Failure(outcome))
            else:
                result.callback(outcome)

    result: Deferred[list[AddressInfo]] = Deferred(lambda _: _threads.discard(job))
    try:
        _threads.submit(job)
    except RuntimeError as error:
        if "shutdown" not in str(error):
            raise
        # Python starts no threads once the interpreter shuts down, but functions of `atexit` may
        # still connect: so this blocks.
        job()
    return result


@implementer(IResolutionReceiver)
class _Receiver:
    """Collects the addresses that the application's resolver finds."""

    def __init__(self, done: Callable[[list[IAddress]], None]) -> None:
        self._done = done
        self._found: list[IAddress] = []

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        self.resolution = resolutionInProgress

    def addressResolved(self, address: IAddress) -> None:
        self._found.append(address)

    def resolutionComplete(self) -> None:
        self._done(self._found)


def _is_default(resolver: object) -> bool:
    """Return whether a reactor's resolver is the one that Twisted gives it; no import names it."""
    kind = type(resolver)
    return kind.__name__ == "GAIResolver" and kind.__module__.startswith("twisted.internet.")


def look_up(
    reactor: Reactor, node: str | None, service: str | int | None, hints: Hints = _STREAM
) -> Deferred[list[AddressInfo]]:
    """
    Look up where to connect to: as `look_up_system`, or by the application's resolver.

    Where the application has installed a resolver (``reactor.installNameResolver``),
    names of hosts are looked up there; services and numeric addresses never are.
    """
    resolver: IHostnameResolver | None = getattr(reactor, "nameResolver", None)
    name = _wire_name(node)
    port = numeric_service(service)
    if (
        resolver is None
        or _is_default(resolver)
        or name is None
        or is_ip_address(name)
        or port is None
        or hints.flags & _socket.AI_NUMERICHOST
    ):
        return look_up_system(reactor, node, service, hints)
    return _look_up_installed(resolver, name, port, hints, HostNotFoundError(node, service))


def _look_up_installed(
    resolver: IHostnameResolver, name: str, port: int, hints: Hints, not_found: HostNotFoundError
) -> Deferred[list[AddressInfo]]:
    """Ask the application's resolver for the addresses of *name*."""

    def done(found: list[IAddress]) -> None:
        if result.called:
            return
        kind = SocketKind(hints.kind) if hints.kind else 0
        infos = [
            AddressInfo(address.family, kind, hints.protocol, address)
            for each in found
            if (address := _from_twisted(each, port)) is not None
        ]
        if infos:
            result.callback(infos)
        else:
            result.errback(Failure(not_found))

    def cancel(_: object) -> None:
        # Failed first: a resolver may report completion from within cancel().
        result.errback(Failure(CancelledError()))
        resolution = getattr(receiver, "resolution", None)
        if resolution is not None:
            try:
                resolution.cancel()
            except NotImplementedError:
                # Twisted's wrappers of simple resolvers cannot cancel: the result is dropped.
                pass

    both: list[type[IAddress]] = [IPv4Address, IPv6Address]
    types = {AF_INET: both[:1], AF_INET6: both[1:]}.get(AddressFamily(hints.family), both)
    receiver = _Receiver(done)
    result: Deferred[list[AddressInfo]] = Deferred(cancel)
    resolver.resolveHostName(receiver, name, port, types, "TCP")
    return result


def _from_twisted(address: IAddress, port: int) -> SocketAddress | None:
    """Return *port* at what a resolver found as an address, or `None` if it is no host's."""
    if isinstance(address, IPv4Address):
        return SocketAddress((address.host, port))
    if isinstance(address, IPv6Address):
        return SocketAddress((address.host, port, 0, address.scopeID or 0))
    return None
