"""
How much the relay takes on: connections, handshakes, and time.

At the limit a relay leaves new connections in the kernel's queue, where the
next free one, of another worker say, may take them.
"""

from __future__ import annotations

import errno
import resource
from collections import Counter
from collections.abc import Callable
from typing import Final

import attrs
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from ..._io.interfaces import Reactor
from ...addresses import network_of

__all__ = ["ConnectionLimits", "Limits", "raise_descriptor_limit"]

_DESCRIPTORS_APART: Final = 64
"""What a process needs beside its connections: files, logs, listeners, look-ups, pipes."""

_MOST: Final = 100_000
_DESCRIPTORS_EACH: Final = 2
_REST_SECONDS: Final = 1.0
_LOG_SECONDS: Final = 10.0

OUT_OF_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_log = Logger()


@attrs.frozen(kw_only=True)
class Limits:
    """
    The limits of one relay, or of each worker of one; `None` is no limit.

    Attributes:
        connections: Clients at once, with those that shake hands.
        per_client: Of one address, or of one network of 64 bits in IPv6.
        handshakes: Connections at once on the way through PROXY header and handshake, of
            which one address may have half.
        connect: Seconds to connect one backend, handshake included.
        idle: Seconds in which nothing has come from either side.
        half_closed: The same when one side has finished.
        lifetime: Seconds altogether.
        drain: Seconds that connections get to finish when the relay is to end.
    """

    connections: int | None = None
    per_client: int | None = None
    handshakes: int | None = None
    connect: float | None = None
    idle: float | None = None
    half_closed: float | None = None
    lifetime: float | None = None
    drain: float = 0.0


def default_connections() -> int:
    """Return how many connections fit into the descriptors that the process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _MOST
    return max(1, min(_MOST, (soft - _DESCRIPTORS_APART) // _DESCRIPTORS_EACH))


def raise_descriptor_limit(connections: int, *, only_check: bool = False) -> None:
    """
    Make room for *connections*, as far as the hard limit allows.

    Raises:
        ValueError: They do not fit; says how many do.
    """
    needed = connections * _DESCRIPTORS_EACH + _DESCRIPTORS_APART
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        fit = (hard - _DESCRIPTORS_APART) // _DESCRIPTORS_EACH
        raise ValueError(
            f"needs {needed} descriptors, and the process may have {hard} (ulimit -Hn): "
            f"at most {fit} connections fit"
        )
    if not only_check:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


class ConnectionLimits:
    """
    Counts the connections of a relay, on all that it listens on, and pauses that at the limit.

    A `twisted_netsock._endpoints.listening_port.AdmissionLimit` for ports of ours; for others the
    relay's factory reports what comes and goes.

    Attributes:
        entered_now: Clients that are connected or on their way.
        turned_away: How many were refused by the per-client limit.
        rests: How often accepting has rested for lack of descriptors.
    """

    def __init__(self, reactor: Reactor, limits: Limits) -> None:
        self._reactor = reactor
        self._most = limits.connections
        self._per_client = limits.per_client
        self._listeners: list[tuple[Callable[[], None], Callable[[], None]]] = []
        self._admitted: Counter[str] = Counter()
        self._resting: IDelayedCall | None = None
        self._paused = False
        self._last_logged = float("-inf")
        self.entered_now = 0
        self.turned_away = 0
        self.rests = 0

    @property
    def full(self) -> bool:
        """Whether no more connections are taken for now."""
        return self._most is not None and self.entered_now >= self._most

    @property
    def overfull(self) -> bool:
        """Whether there are more connections than there may be."""
        return self._most is not None and self.entered_now > self._most

    @property
    def paused(self) -> bool:
        """Whether the listeners are paused, for any reason."""
        return self._paused

    def add_listener(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """Pause and resume one more listener from now on."""
        self._listeners.append((pause, resume))
        if self._paused:
            pause()

    def remove_listeners(self) -> None:
        """Forget the listeners: they have stopped."""
        self._listeners.clear()
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None
        self._paused = False

    def entered(self) -> None:
        """Note one more connection."""
        self.entered_now += 1
        if self._most is not None and self.entered_now >= self._most:
            self._update()

    def left(self, peer: object) -> None:
        """Note that one is gone, which *peer* was admitted with; `None` if it never was."""
        group = network_of(getattr(peer, "host", None))
        if self._per_client is not None and group is not None:
            self._admitted[group] -= 1
            if not self._admitted[group]:
                del self._admitted[group]
        self.entered_now -= 1
        if self._paused:
            self._update()

    def admits(self, peer: object) -> bool:
        """
        Return whether *peer* may have one more connection, which counts until it has `left`.

        Now and then it is logged if not.
        """
        most = self._per_client
        if most is None:
            return True
        group = network_of(getattr(peer, "host", None))
        if group is None:
            return True
        if self._admitted[group] < most:
            self._admitted[group] += 1
            return True
        if not self._admitted[group]:
            del self._admitted[group]
        self.turned_away += 1
        now = self._reactor.seconds()
        if now - self._last_logged >= _LOG_SECONDS:
            self._last_logged = now
            _log.warn(
                "{client} has {count} connections already, so no more are taken from there "
                "({total} refused so far)",
                client=group,
                count=most,
                total=self.turned_away,
            )
        return False

    def rest(self) -> None:
        """Take no connections for a second: there were no descriptors for a backend."""
        if self._resting is None:
            self.rests += 1
            self._resting = self._reactor.callLater(_REST_SECONDS, self._rested)
            self._update()

    def _rested(self) -> None:
        self._resting = None
        self._update()

    def _update(self) -> None:
        pausing = self.full or self._resting is not None
        if pausing is self._paused:
            return
        self._paused = pausing
        for pause, resume in self._listeners:
            (pause if pausing else resume)()


class ClosingLimit:
    """
    Stands between a `ConnectionLimits` and a port that cannot be paused.

    What is beyond the limit is closed there.
    """

    def __init__(self, connection_limits: ConnectionLimits) -> None:
        self._connection_limits = connection_limits
        self.entered = connection_limits.entered
        self.left = connection_limits.left

    def admits(self, peer: object) -> bool:
        """Return whether there is room for one more connection, and for one of *peer*."""
        return not self._connection_limits.overfull and self._connection_limits.admits(peer)
