"""What this package asks of reactors and transports, as types."""

from __future__ import annotations

from typing import cast

from twisted.internet.interfaces import (
    IConsumer,
    IPushProducer,
    IReactorCore,
    IReactorFDSet,
    IReactorPluggableNameResolver,
    IReactorProcess,
    IReactorThreads,
    IReactorTime,
    ITCPTransport,
)
from twisted.internet.protocol import Protocol

__all__ = ["Reactor", "StreamProtocol", "StreamTransport", "current_reactor"]


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


class StreamTransport(IConsumer, IPushProducer, ITCPTransport):
    """What every transport of a stream provides, Twisted's and ours; for type checkers alone."""


class StreamProtocol(Protocol):
    """A protocol whose transport has a type, for calls beyond ``ITransport``."""

    @property
    def wire(self) -> StreamTransport:
        """The transport."""
        return cast("StreamTransport", self.transport)
