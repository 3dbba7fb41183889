"""Waiting in tests: reactor iterations, conditions, and time that only a test advances."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReactorFDSet, IReactorFromThreads, IReactorTime
from twisted.internet.task import Clock, deferLater
from zope.interface import implementer

_STEP = 0.001
_LONGEST = 20.0


def the_reactor() -> Any:
    from twisted.internet import reactor

    return reactor


async def turns(count: int = 5) -> None:
    """Let the reactor iterate *count* times, and the kernel pass on what it has."""
    for _ in range(count):
        await deferLater(the_reactor(), _STEP)


async def until(condition: Callable[[], Any]) -> Any:
    """Run the reactor until *condition* returns something true, and return that."""
    reactor = the_reactor()
    end = reactor.seconds() + _LONGEST
    while reactor.seconds() < end:
        found = condition()
        if found:
            return found
        await deferLater(reactor, _STEP)
    raise AssertionError(f"what was waited for has not come: {condition}")


@implementer(IReactorFDSet, IReactorFromThreads, IReactorTime)
class ClockedReactor:
    """
    The real reactor, with a time that stands still until `advance`.

    What is called after no time at all is left to the real reactor.
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self.advance = self.clock.advance
        self.pump = self.clock.pump
        self.seconds = self.clock.seconds
        self.getDelayedCalls = self.clock.getDelayedCalls

    def callLater(self, delay: float, function: Any, *args: Any, **kwargs: Any) -> Any:
        later = self.clock if delay else the_reactor()
        return later.callLater(delay, function, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(the_reactor(), name)
