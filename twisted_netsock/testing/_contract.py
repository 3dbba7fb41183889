"""
What the contracts are made of: checks that say what was wrong, waits with a limit, recorders.

The contracts themselves stand in `twisted_netsock.testing._endpoint_contract` and
`twisted_netsock.testing._socket_contract`, and for their users in `twisted_netsock.testing`.
Nothing here needs a test runner.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Final, TypeAlias, TypeVar
from unittest import SkipTest

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IAddress, IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from zope.interface import implementer

from .._io.interfaces import Reactor, StreamProtocol, StreamTransport, current_reactor

__all__ = ["Contract"]

T = TypeVar("T")
Error = TypeVar("Error", bound=BaseException)

UnderTest: TypeAlias = Any
"""Anybody's socket, listener or endpoint: what it has, and has not, the tests find out."""

_MOMENT: Final = 0.005
_MOMENTS: Final = 2000
_SECONDS: Final = _MOMENT * _MOMENTS


def check(condition: object, what: str) -> None:
    """Fail the test unless *condition* holds; *what* says what is wrong."""
    if not condition:
        raise AssertionError(what)


def equal(found: object, expected: object, what: str) -> None:
    """Fail the test unless *found* is *expected*; *what* names it."""
    if found != expected:
        raise AssertionError(f"{what}: expected {_shown(expected)}, found {_shown(found)}")


def _shown(value: object) -> str:
    text = repr(value)
    limit = 200
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"


class Contract:
    """
    The base of all contracts.

    Attributes:
        reactor: Where the tests run; the installed reactor if `None`.
    """

    reactor: ClassVar[object] = None

    def _reactor(self) -> Reactor:
        return current_reactor(self.reactor)

    async def _turns(self, count: int = 1) -> None:
        """Let the reactor look at its descriptors *count* times."""
        for _ in range(count):
            await deferLater(self._reactor(), 0)

    async def _until(self, condition: Callable[[], object], what: str) -> None:
        """Wait until *condition* holds, for some seconds at the most; *what* says for what."""
        for _ in range(_MOMENTS):
            if condition():
                return
            await deferLater(self._reactor(), _MOMENT)
        raise AssertionError(f"within {_SECONDS:.0f} seconds it never came to this: {what}")

    async def _soon(self, waiting: Awaitable[T], what: str) -> T:
        """Wait for *waiting*, for some seconds at the most; *what* says for what."""
        deferred: Deferred[Any] = (
            Deferred.fromCoroutine(waiting) if inspect.iscoroutine(waiting) else _as_is(waiting)
        )

        def too_late(_: object, seconds: float) -> None:
            raise AssertionError(f"within {seconds:.0f} seconds it never came to this: {what}")

        deferred.addTimeout(_SECONDS, self._reactor(), onTimeoutCancel=too_late)
        result: T = await deferred
        return result

    async def _fails(self, waiting: Awaitable[object], kind: type[Error], what: str) -> Error:
        """Wait for *waiting* to fail with a *kind*, and return that; *what* names it."""
        try:
            result = await self._soon(waiting, f"{what} fails")
        except kind as error:
            return error
        except AssertionError:
            raise
        except Exception as error:
            raise AssertionError(
                f"{what} must fail with a {kind.__name__}, not with {error!r}"
            ) from error
        raise AssertionError(f"{what} must fail with a {kind.__name__}, and gave {result!r}")

    def _refuses(
        self, error: type[Exception], what: str, call: Callable[..., object], *args: object
    ) -> None:
        """Check that *call* raises an *error* at once; *what* names it."""
        try:
            result = call(*args)
        except error:
            return
        given = ", ".join(map(repr, args))
        raise AssertionError(f"{what}({given}) must raise {error.__name__}, and gave {result!r}")


def _as_is(waiting: Any) -> Deferred[Any]:
    check(isinstance(waiting, Deferred), f"{waiting!r} must be a Deferred or a coroutine")
    deferred: Deferred[object] = waiting
    return deferred


def skip_unless(condition: bool, why: str) -> None:
    """Skip the test unless *condition* holds; pytest and trial both know how."""
    if not condition:
        raise SkipTest(why)


# What endpoints are given


class Recorder(StreamProtocol):
    """A protocol that keeps what happens to it."""

    greeting = b""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.received = bytearray()
        self.reason: BaseException | None = None

    def connectionMade(self) -> None:
        """Say the greeting."""
        self.events.append("made")
        if self.greeting:
            self.wire.write(self.greeting)

    def dataReceived(self, data: bytes) -> None:
        """Keep *data*."""
        check(isinstance(data, bytes), f"dataReceived must get bytes, not {data!r}")
        self.received += data
        if self.events[-1] != "data":
            self.events.append("data")

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        """Keep the reason."""
        self.events.append("lost")
        self.reason = reason.value

    @property
    def wire(self) -> StreamTransport:
        """The transport, for calls beyond ``ITransport``."""
        check(self.transport is not None, "the protocol must have a transport by now")
        return super().wire

    @property
    def lost(self) -> bool:
        """Whether its connection was lost."""
        return "lost" in self.events


class Greeter(Recorder):
    """Speaks first."""

    greeting = b"hello from connectionMade"


@implementer(IHalfCloseableProtocol)
class HalfRecorder(Recorder):
    """Notes the end of each half."""

    def readConnectionLost(self) -> None:
        """Keep that the peer has finished."""
        self.events.append("read lost")

    def writeConnectionLost(self) -> None:
        """Keep that this side has finished."""
        self.events.append("write lost")


class RecordingFactory(Factory):
    """A factory that keeps what happens to it and what it builds."""

    noisy = False

    def __init__(self, make: Callable[[], Recorder | None] = Recorder) -> None:
        self._make = make
        self.built: list[Recorder] = []
        self.addresses: list[IAddress | None] = []
        self.life: list[str] = []

    def startFactory(self) -> None:
        """Keep that it was started."""
        self.life.append("start")

    def stopFactory(self) -> None:
        """Keep that it was stopped."""
        self.life.append("stop")

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        """Build what it was made for."""
        self.addresses.append(addr)
        protocol = self._make()
        if protocol is not None:
            self.built.append(protocol)
        return protocol

    @property
    def all_lost(self) -> bool:
        """Whether no connection is left."""
        return all(each.lost or each.transport is None for each in self.built)

    def abort(self) -> None:
        """End the connections that are left."""
        for each in self.built:
            if each.transport is not None and not each.lost:
                each.wire.abortConnection()
