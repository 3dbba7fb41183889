"""What this package asks of a reactor, as a type."""

from __future__ import annotations

from typing import cast

from twisted.internet.interfaces import (
    IReactorCore,
    IReactorFDSet,
    IReactorPluggableNameResolver,
    IReactorProcess,
    IReactorThreads,
    IReactorTime,
)

__all__ = ["Reactor", "current_reactor"]


class Reactor(
    IReactorCore,
    IReactorFDSet,
    IReactorPluggableNameResolver,
    IReactorProcess,
    IReactorThreads,
    IReactorTime,
):
    """
    The interfaces that every reactor with descriptors provides; for type checkers alone.

    Users pass an `object`: what `twisted.internet.reactor` is depends on the platform, and
    Twisted's own reactors are not of this class. The poller checks it.
    """


def current_reactor(reactor: object) -> Reactor:
    """Return *reactor*, or the one that is installed if it is `None`."""
    if reactor is None:
        from twisted.internet import reactor as installed

        return cast("Reactor", installed)
    return cast("Reactor", reactor)
