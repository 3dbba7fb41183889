"""
``twist netsock echo``: sends back what clients send.

The smallest service, to try endpoints and clients with. It is written against
Twisted's transport interface alone, and paces each client by what it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import ClassVar, Final

from twisted.application.service import IService
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IAddress, IDelayedCall, IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.protocols.policies import TimeoutMixin
from twisted.python import usage
from twisted.python.failure import Failure
from zope.interface import implementer

from .._endpoints.transport import IViewProtocol
from .._io.interfaces import Reactor, StreamProtocol
from .._validation import duration_text, in_seconds
from ._common.logs import LogOptions
from ._common.service import ListeningService, end_stream, endpoint_option, fail_at_exit

__all__ = ["EchoFactory", "EchoOptions", "make_echo"]

_LISTEN: Final = "netsock:8007:node=127.0.0.1"
_IDLE_TIMEOUT: Final = "10m"
_NO_LIMIT: Final = "none"


@implementer(IHalfCloseableProtocol, IViewProtocol)
class _Echo(StreamProtocol, TimeoutMixin):
    """Sends back what it is sent, and no faster than that is read."""

    def __init__(self, echoes: set[_Echo], seconds: float | None, reactor: Reactor) -> None:
        self._echoes = echoes
        self._seconds = seconds
        self._reactor = reactor

    def connectionMade(self) -> None:
        self._echoes.add(self)
        # What waits to be sent back holds up what is received.
        self.wire.registerProducer(self.wire, True)
        self.setTimeout(self._seconds)

    def view_received(self, view: memoryview) -> None:
        """Send a view of the receiver's buffer back, without a copy in between."""
        self.resetTimeout()
        # Only our transports call this, and they take one.
        self.wire.write(view)  # type: ignore[arg-type]

    def dataReceived(self, data: bytes) -> None:
        self.resetTimeout()
        self.wire.write(data)

    def readConnectionLost(self) -> None:
        """End the other direction, too, when everything is sent back."""
        end_stream(self.wire)

    def writeConnectionLost(self) -> None:
        """Close, as both directions have ended: Twisted's own transports stay open."""
        self.wire.loseConnection()

    def callLater(self, period: float, func: Callable[[], None]) -> IDelayedCall:
        """Call *func* on this service's reactor; for the timeout."""
        call: IDelayedCall = self._reactor.callLater(period, func)
        return call

    def timeoutConnection(self) -> None:
        """Reset the connection: a peer that reads nothing would not notice an orderly end."""
        self.wire.abortConnection()

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        self.setTimeout(None)
        self._echoes.discard(self)


class EchoFactory(Factory):
    """Builds protocols that send back what they are sent."""

    noisy = False

    def __init__(self, reactor: Reactor, idle_timeout: timedelta | None = None) -> None:
        """
        Serve on *reactor*.

        Args:
            reactor: For the timeout.
            idle_timeout: How long a client may be silent, or `None` for no limit.
        """
        self._reactor = reactor
        self._seconds = in_seconds(idle_timeout)
        self._echoes: set[_Echo] = set()

    def __repr__(self) -> str:
        return "<echo>"

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._echoes)

    @property
    def idle(self) -> bool:
        """Whether nobody is connected."""
        return not self._echoes

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        """Return the protocol of one client."""
        return _Echo(self._echoes, self._seconds, self._reactor)

    def abort(self) -> None:
        """End every connection at once, by a reset."""
        for echo in list(self._echoes):
            echo.timeoutConnection()


class EchoOptions(LogOptions):
    """The options of ``twist netsock echo``."""

    synopsis = "[--listen ENDPOINT]..."
    longdesc = (
        "Send back what clients send, until they end. Any server endpoint string will do: "
        "netsock-tls:8443:certificates=both.pem speaks TLS. "
        f"Without --listen, that is {_LISTEN}."
    )
    optParameters: ClassVar[Sequence[Sequence[object]]] = [
        [
            "idle-timeout",
            None,
            _IDLE_TIMEOUT,
            f"How long a client may send nothing: 30s, 10m, 1h; or {_NO_LIMIT}.",
        ],
    ]

    def __init__(self) -> None:
        super().__init__()
        self["listen"] = []

    def opt_listen(self, endpoint: str) -> None:
        """A server endpoint that clients connect to; may be given several times."""  # noqa: D401
        self["listen"].append(endpoint)

    def postOptions(self) -> None:
        """Make the endpoints, so that a mistake is reported before anything runs."""
        from twisted.internet import reactor

        self.choose_log()
        self["idle-timeout"] = _idle_timeout(self["idle-timeout"])
        self["listen"] = [
            endpoint_option(serverFromString, reactor, "listen", text)
            for text in self["listen"] or [_LISTEN]
        ]


def _idle_timeout(text: str) -> timedelta | None:
    """Read the value of ``--idle-timeout``."""
    if text.lower() == _NO_LIMIT:
        return None
    try:
        return duration_text("--idle-timeout", text)
    except ValueError as error:
        raise usage.UsageError(f"{error}; or {_NO_LIMIT}") from None


def make_echo(options: usage.Options, reactor: Reactor) -> IService:
    """Return the service of what the user asked for."""
    service: IService = ListeningService(
        reactor,
        options["listen"],
        EchoFactory(reactor, options["idle-timeout"]),
        what="echo",
        failed=fail_at_exit,
    )
    return service
