"""What client and server endpoints share: calls of factories, and text forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from twisted.internet.interfaces import ILoggingContext, IProtocolFactory
from twisted.internet.protocol import Factory
from twisted.logger import Logger

__all__ = [
    "ProtocolFactory",
    "guard",
    "log_prefix",
    "place_of",
    "start_factory",
    "stop_factory",
]

ProtocolFactory: TypeAlias = "IProtocolFactory | Factory[Any]"
"""A factory of Twisted's class as well: most type checkers know nothing of zope's interfaces."""

_log: Final = Logger()


def start_factory(factory: object) -> None:
    """Call ``doStart`` of *factory*, if it has that: it is used from now on."""
    start = getattr(factory, "doStart", None)
    if start is not None:
        start()


def stop_factory(factory: object) -> None:
    """Call ``doStop`` of *factory*, if it has that: it is used no more."""
    stop = getattr(factory, "doStop", None)
    if stop is not None:
        stop()


def place_of(node: str | None, service: str | int | None, inner: object) -> str:
    """Return what an endpoint is for, as its text form shows it."""
    if inner is not None:
        return f"over {inner!r}" if node is None else f"{node!r} over {inner!r}"
    host = "*" if node is None else repr(node)
    return host if service is None else f"{host} {service!r}"


def log_prefix(logged: Any) -> str:
    """Return what log lines call a protocol or factory, as Twisted has it."""
    if ILoggingContext.providedBy(logged):
        return str(logged.logPrefix())
    return type(logged).__name__


def guard(function: Callable[..., object], *args: object) -> None:
    """Call a protocol's or producer's method; what it raises is logged."""
    try:
        function(*args)
    except BaseException:  # noqa: BLE001 - nothing else may be lost for it
        _log.failure("a protocol, producer or factory raised an exception")
