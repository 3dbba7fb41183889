"""
What a worker process of the relay knows about itself, and how it talks to its parent.

An environment variable of the parent says which worker this is, and which
descriptors it listens on. A pipe each way carries lines of JSON. When the
parent's end of it is gone, so is the parent, and the worker drains and ends.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import Any, Final, Self

import attrs
from twisted.internet.protocol import Protocol
from twisted.logger import Logger

from ..._endpoints.server import ServerEndpoint
from ..._net.activation import adopted_sockets

__all__ = ["FROM_PARENT", "TO_PARENT", "Channel", "Lines", "WorkerPlace"]

_VARIABLE: Final = "NETSOCK_RELAY_WORKER"
FROM_PARENT: Final = 3
TO_PARENT: Final = 4
FIRST_SOCKET: Final = 5
HELD_SIGNALS: Final = frozenset({signal.SIGINT, signal.SIGHUP})
"""Blocked in a worker from its start until its reactor runs."""

_LINE_LIMIT: Final = 1024 * 1024

_log = Logger()


@attrs.frozen
class WorkerPlace:
    """
    Which worker a process is.

    Attributes:
        number: From 1 on.
        descriptors: What it listens on: some for each ``--listen``, in order.
    """

    number: int
    descriptors: tuple[tuple[int, ...], ...]

    def environment(self) -> dict[str, str]:
        """Return the environment of such a process: supervisors' messages stay the parent's."""
        mine = ("LISTEN_", "NOTIFY_SOCKET", "WATCHDOG_", _VARIABLE)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(mine)}
        groups = ":".join(",".join(map(str, group)) for group in self.descriptors)
        return kept | {_VARIABLE: f"{self.number}:{groups}"}

    @classmethod
    def take(cls) -> Self | None:
        """Return the channel that the environment names; `None`: there is no parent."""
        # It stays there: a command line may be parsed more than once.
        text = os.environ.get(_VARIABLE)
        if text is None:
            return None
        number, *groups = text.split(":")
        return cls(int(number), tuple(tuple(map(int, group.split(","))) for group in groups))

    def place(self, listen: tuple[ServerEndpoint, ...]) -> tuple[ServerEndpoint, ...]:
        """Return endpoints that listen on the sockets of the parent's."""

        def adopting(endpoint: ServerEndpoint, group: tuple[int, ...]) -> ServerEndpoint:
            return endpoint.adopting(lambda: adopted_sockets(list(group), endpoint.place))

        return tuple(map(adopting, listen, self.descriptors))


class Lines:
    """Takes messages, lines of JSON, out of a stream of bytes."""

    def __init__(self, deliver: Callable[[dict[str, object]], None]) -> None:
        self._deliver = deliver
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Deliver every message that *data* completes."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LINE_LIMIT:
            raise ValueError("a message between worker and parent is too long")
        for line in lines:
            self._deliver(json.loads(line))

    @staticmethod
    def encode(message: dict[str, object]) -> bytes:
        """Return a message as it is sent."""
        return json.dumps(message).encode() + b"\n"


class Channel(Protocol):
    """A worker's end of the pipes; speaks for `Notifier` to the parent."""

    def __init__(
        self,
        snapshot: Callable[[], dict[str, object]],
        reload: Callable[[], None],
        orphaned: Callable[[], None],
    ) -> None:
        """
        Answer the parent.

        Args:
            snapshot: How the relay is.
            reload: Reads files again; `reloading` and `ready` are called then.
            orphaned: Called when the parent is gone.
        """
        self._snapshot = snapshot
        self._reload = reload
        self._orphaned = orphaned
        self._asked = 0
        self._begun = 0
        """The numbers of the last reload that was asked for, and that has begun."""
        self._lines = Lines(self._on_message)

    def dataReceived(self, data: bytes) -> None:
        """Take what the parent says."""
        self._lines.feed(data)

    def _on_message(self, message: dict[str, Any]) -> None:
        if "reload" in message:
            self._asked = message["reload"]
            self._reload()
            return
        self._send({"answer": message["ask"], "status": self._snapshot()})

    def _send(self, message: dict[str, object]) -> None:
        if self.transport is not None:
            self.transport.write(Lines.encode(message))

    def ready(self, status: str) -> None:
        """Report that connections are accepted, also after a reload."""
        self._send({"ready": status, "reload": self._begun})

    def reloading(self) -> None:
        """Note that what was asked for until now is being done."""
        self._begun = self._asked

    def stopping(self, status: str) -> None:
        """Do nothing: the parent has asked for it, or sees it."""

    def connectionLost(self, reason: object = None) -> None:
        """Take the end of the pipe for that of the parent."""
        self.transport = None
        self._orphaned()
