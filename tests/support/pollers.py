"""What tests of the poller share: pollers of both kinds, and owners that note what they hear."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.clocks import the_reactor
from twisted_netsock._io import poller as readiness
from twisted_netsock._io.poller import EpollPoller, Poller, ReactorPoller, Watch

KINDS: list[type[Poller]] = [EpollPoller, ReactorPoller]


class Owner:
    """Notes what it hears about a watch, and does something then."""

    def __init__(self, watch: Watch, act: Callable[[Any], object] = lambda owner: None) -> None:
        self.watch = watch
        self.heard: list[Any] = []
        self.act = act
        watch.owner = self

    def on_receive_ready(self) -> None:
        self.heard.append("readable")
        self.act(self)

    def on_send_ready(self) -> None:
        self.heard.append("writable")
        self.act(self)

    def on_poller_lost(self, reason: Exception) -> None:
        self.heard.append(reason)
        self.act(self)

    def on_fork(self) -> None:
        self.heard.append("forked")


@contextmanager
def poller_of(kind: type[Poller], monkeypatch: Any) -> Iterator[Poller]:
    """Make a poller over the reactor that the tests run on."""
    reactor = the_reactor()
    add = reactor.addSystemEventTrigger
    triggers: list[Any] = []

    def noting(*arguments: Any) -> Any:
        triggers.append(add(*arguments))
        return triggers[-1]

    with monkeypatch.context() as patch:
        patch.setattr(reactor, "addSystemEventTrigger", noting)
        poller = kind(reactor)
    yield poller
    for trigger in triggers:
        reactor.removeSystemEventTrigger(trigger)


@contextmanager
def watched(
    poller: Poller, *, act: Callable[[Any], object] = lambda owner: None
) -> Iterator[tuple[Any, socket.socket]]:
    """Give the owner of a watch on one end of a pair, and the other end."""
    here, there = socket.socketpair()
    here.setblocking(False)
    there.setblocking(False)
    owner: Any = Owner(poller.watch(here.fileno()), act)
    owner.sock = here
    with here, there:
        try:
            yield owner, there
        finally:
            owner.watch.close()


def note_calls(monkeypatch: Any) -> list[str]:
    """Return a list that grows each time that the reactor calls a poller."""
    found: list[str] = []

    def count(kind: Any, name: str) -> None:
        original = getattr(kind, name)

        def noting(self: Any) -> Any:
            found.append(name)
            return original(self)

        monkeypatch.setattr(kind, name, noting)

    count(EpollPoller, "doRead")
    count(readiness._Adapter, "doRead")
    count(readiness._Adapter, "doWrite")
    return found


def in_reactor() -> set[Any]:
    """Return what pollers have put into the reactor."""
    reactor = the_reactor()
    return {
        each
        for each in [*reactor.getReaders(), *reactor.getWriters()]
        if type(each).__module__ == readiness.__name__
    }
