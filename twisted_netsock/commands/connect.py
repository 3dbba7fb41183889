"""``netsock connect``: standard input and output to any endpoint."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any, ClassVar, Final, TypeGuard, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import clientFromString
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IDelayedCall,
    IHalfCloseableProtocol,
    ISSLTransport,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory
from twisted.python import usage
from twisted.python.failure import Failure
from zope.interface import implementer

from .._endpoints.client import ClientEndpoint, client_endpoint
from .._endpoints.strings import endpoint_from
from .._endpoints.transport import TLSTransport, Transport
from .._io.interfaces import Reactor, StreamProtocol, StreamTransport
from .._proxies import without_credentials
from ..errors import SocketConnectionTimeoutError
from ..options import SocketOptions
from ._common.one_shot import OneShotOptions, say
from ._common.outcomes import Outcome, explain, outcome_of
from ._common.stdio import Input, Output
from ._common.targets import (
    PROXY_PARAMETERS,
    TLS_FLAGS,
    TLS_PARAMETERS,
    parse_target,
    parse_time,
    proxy_fields,
    tls_options,
)

__all__ = ["ConnectOptions"]

_STDIN: Final = 0
_STDOUT: Final = 1
_CLOSE_SECONDS: Final = 1
"""For the end of the connection, when the command is to end: a peer may not answer."""

_MOST_PENDING: Final = 256 * 1024
"""Bytes that may wait for standard output before the peer is made to wait."""

_LINE_BREAK: Final = re.compile(rb"(?<!\r)\n")


class _CRLF:
    """Writes the ends of lines as most protocols of the internet want them."""

    def __init__(self) -> None:
        self._after_return = False

    def __call__(self, data: bytes) -> bytes:
        first, rest = data[:1], data[1:]
        if not (self._after_return and first == b"\n"):
            first, rest = b"", data
        self._after_return = data.endswith(b"\r")
        return first + _LINE_BREAK.sub(b"\r\n", rest)


@implementer(IHalfCloseableProtocol)
class _Session(StreamProtocol):
    """
    The connection, between standard input and standard output.

    Attributes:
        ended: Fires with how it ended, when all that came is written.
    """

    def __init__(self, reactor: Reactor, options: ConnectOptions) -> None:
        self._reactor = reactor
        self._options = options
        self._input = Input(reactor, _STDIN, self._on_input, self._on_input_failed)
        self._output = Output(reactor, _STDOUT, self._on_output_failed)
        self._edit = _CRLF() if options["crlf"] else None
        self._waiting: Deferred[None] | None = None
        self._input_ended = False
        self._peer_ended = False
        self._unanswered = False
        self._lost = False
        self._closed: Deferred[None] | None = None
        self._why: tuple[Outcome, str] | None = None
        self._timer: IDelayedCall | None = None
        self._last = 0.0
        self.ended: Deferred[Outcome] = Deferred()

    # The peer

    def connectionMade(self) -> None:
        if not self._options["quiet"]:
            say(_description(self.wire, self._options.endpoint))
        # It says when to pause; an IPushProducer works on every stream transport.
        self.wire.registerProducer(self._input, True)
        self._touch()
        self._input.start()

    def dataReceived(self, data: bytes) -> None:
        self._touch()
        self._unanswered = False
        self._output.write(data)
        if self._waiting is None and self._output.pending > _MOST_PENDING:
            self.wire.pauseProducing()
            self._waiting = self._output.below(_MOST_PENDING // 2)
            self._waiting.addCallbacks(self._on_room, self._on_no_room)

    def _on_room(self, _: None) -> None:
        self._waiting = None
        self._touch()
        if not self._lost:
            self.wire.resumeProducing()

    def _on_no_room(self, _: Failure) -> None:
        """Do nothing: the connection is lost, or `_on_output_failed` ends it."""
        self._waiting = None

    def readConnectionLost(self) -> None:
        """Go on sending: the peer may still be reading."""
        self._peer_ended = True
        if self._input_ended or os.isatty(_STDIN):
            self._end_input()
            self.wire.loseConnection()
        elif self._timer is not None:
            # There is another limit from now on.
            self._timer.cancel()
            self._timer = None
        self._touch()

    def writeConnectionLost(self) -> None:
        """Do nothing: the other direction goes on."""

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        self._lost = True
        if self._closed is not None and not self._closed.called:
            self._closed.callback(None)
        self._input.stopProducing()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        error = reason.value
        if self._why is None and error is not None and not isinstance(error, ConnectionDone):
            self._why = outcome_of(error), explain(error)
        if self._waiting is not None:
            self._waiting.cancel()
        self._output.below(0).addBoth(self._finish)

    def _finish(self, _: object) -> None:
        if self.ended.called:
            # Cancelled: nobody waits any more.
            return
        outcome, why = self._why or (Outcome.OK, "")
        if self._unanswered and not self._options["quiet"] and _proxied(self._options.endpoint):
            say("nothing came behind the input: if the proxy ended it there, try --no-shutdown")
        if why:
            say(why)
        self.ended.callback(outcome)

    # Standard input and output

    def _on_input(self, data: bytes) -> None:
        self._touch()
        if data:
            self.wire.write(self._edit(data) if self._edit is not None else data)
            return
        self._end_input()
        if self._peer_ended:
            self.wire.loseConnection()
        elif self._options["no-shutdown"]:
            # Until the peer ends it: a proxy may take our half-close for the end of all.
            pass
        elif ISSLTransport.providedBy(self.wire) and not isinstance(self.wire, Transport):
            # Twisted's own TLS cannot be half-closed, and the answer is still to come.
            if not self._options["quiet"]:
                say("this endpoint cannot be told that the input has ended; waiting for its end")
        else:
            self._unanswered = True
            self.wire.loseWriteConnection()

    def _on_input_failed(self, error: OSError) -> None:
        self._give_up(Outcome.FAILED, f"cannot read standard input: {error.strerror}")

    def _on_output_failed(self, error: OSError) -> None:
        if isinstance(error, BrokenPipeError):
            self._why = Outcome.BROKEN_PIPE, ""
        else:
            self._why = Outcome.FAILED, f"cannot write standard output: {error.strerror}"
        self.abort()

    # Time

    def _touch(self) -> None:
        """Note that something has happened."""
        self._last = self._reactor.seconds()
        if self._timer is None:
            self._wait()

    def _wait(self) -> None:
        """Look again as soon as nothing may have happened for too long."""
        if self._lost:
            return
        left = [limit - self._quiet for limit in self._limits.values()]
        if left:
            self._timer = self._reactor.callLater(max(0, min(left)), self._check)

    @property
    def _quiet(self) -> float:
        """Seconds since something has happened."""
        return float(self._reactor.seconds() - self._last)

    @property
    def _limits(self) -> dict[str, float]:
        """For how many seconds nothing may happen, by the name of the option."""
        limits = {}
        if self._options.idle is not None:
            limits["idle"] = self._options.idle.total_seconds()
        if self._peer_ended and not self._input_ended:
            limits["linger"] = self._options.linger.total_seconds()
        return limits

    def _check(self) -> None:
        self._timer = None
        limits = self._limits
        idle, linger = limits.get("idle"), limits.get("linger")
        if idle is not None and self._quiet >= idle:
            self._give_up(Outcome.IDLE, f"nothing was sent or received for {idle:g} s")
            return
        if linger is not None and self._quiet >= linger:
            if self._input.waiting:
                self._end_input()
                # In order: what there was to send is sent first.
                self.wire.loseConnection()
            elif idle is None:
                # There is input, for which the peer has no room yet.
                self._last = self._reactor.seconds()
            else:
                self._timer = self._reactor.callLater(min(idle - self._quiet, linger), self._check)
                return
        self._wait()

    def _end_input(self) -> None:
        self._input_ended = True
        self._input.stopProducing()
        self.wire.unregisterProducer()

    def _give_up(self, outcome: Outcome, why: str) -> None:
        self._why = outcome, why
        self.abort()

    def close(self) -> Deferred[None]:
        """
        End the connection in order, on TLS by close_notify: its server must not see a failure.

        Returns:
            `None`, when the connection is lost; it is aborted after a second.
        """
        closed: Deferred[None] = Deferred()
        if self._lost:
            closed.callback(None)
            return closed
        self._closed = closed
        self._end_input()
        self.wire.loseConnection()
        return closed.addTimeout(_CLOSE_SECONDS, self._reactor).addErrback(lambda _: self.abort())

    def abort(self) -> None:
        """End the connection at once."""
        self._input.stopProducing()
        if not self._lost:
            self.wire.abortConnection()


def _proxied(endpoint: object) -> TypeGuard[ClientEndpoint]:
    """Return whether *endpoint* goes through a proxy, if the environment has one."""
    return isinstance(endpoint, ClientEndpoint) and endpoint.options.proxy is not None


def _description(transport: StreamTransport, endpoint: IStreamClientEndpoint) -> str:
    """Report the peer, which may be a proxy, and the TLS parameters of the connection."""
    peer = transport.getPeer()
    host = getattr(peer, "host", None)
    at = str(peer) if host is None else f"{host}, port {peer.port}"
    if _proxied(endpoint):
        at = f"{endpoint.node} by way of {at}"
    if isinstance(transport, TLSTransport):
        tls = transport.tls
        verified = tls.options.certificate_verifier is not False
        said = "verified" if verified else "UNVERIFIED"
        alpn = f", ALPN {tls.selected_alpn}" if tls.selected_alpn else ""
        return f"connected to {at}: {tls.tls_version}, {tls.cipher}{alpn}, {said}"
    return f"connected to {at}"


class ConnectOptions(OneShotOptions):
    """The options of ``netsock connect``."""

    synopsis = "ENDPOINT | HOST:PORT [--tls] [options]"
    longdesc = (
        "Connect, send standard input, and write what comes to standard output. At the end of "
        "the input the connection is closed in that direction, and what the peer still sends is "
        "written. ENDPOINT is any client endpoint string, such as netsock-tls:example.com:443. "
        "Exit status: 0 the connection has ended in order, 2 usage, 3 host not found, "
        "4 unreachable, 5 TLS failed, 6 UNVERIFIED, 8 the connection broke, 9 idle."
    )
    optParameters: ClassVar[Sequence[Sequence[object]]] = [
        ["timeout", "t", "30s", "For connecting."],
        ["idle", "i", None, "End when nothing was sent or received for that long."],
        ["linger", None, "5s", "End when the peer has, and there was no input for that long."],
        *PROXY_PARAMETERS,
        *TLS_PARAMETERS,
    ]
    optFlags: ClassVar[Sequence[Sequence[object]]] = [
        ["tls", None, "Speak TLS with HOST:PORT, and verify it."],
        ["crlf", None, "Send the ends of lines as carriage return and line feed."],
        ["no-shutdown", None, "At the end of the input leave the connection to the peer to end."],
        ["quiet", "q", "Say nothing but errors."],
        *TLS_FLAGS,
    ]

    def parseArgs(self, *targets: str) -> None:
        """Take the endpoint."""
        if len(targets) != 1:
            raise usage.UsageError("give one ENDPOINT or HOST:PORT, after the options")
        self["target"] = targets[0]

    def postOptions(self) -> None:
        """Check everything, and make the endpoint."""
        from twisted.internet import reactor

        super().postOptions()
        self.timeout = parse_time("timeout", self["timeout"])
        self.linger = parse_time("linger", self["linger"])
        self.idle = None if self["idle"] is None else parse_time("idle", self["idle"])
        # An endpoint made here has the limit among its options, and names the stage that was late.
        self.limits_itself = True
        self.endpoint = self._make_endpoint(reactor)

    def _make_endpoint(self, reactor: object) -> IStreamClientEndpoint:
        text: str = self["target"]
        fields: dict[str, Any] = {"connection_timeout": self.timeout, **proxy_fields(self)}
        if self["tls"]:
            target = parse_target(text, None)
            options = tls_options(self, target.host, **fields)
            return client_endpoint(reactor, *target, options)
        for name, *_ in (*TLS_PARAMETERS, *TLS_FLAGS):
            if name is not None and self[name]:
                raise usage.UsageError(f"--{name} goes with --tls and HOST:PORT")
        if _is_host_and_port(text):
            target = parse_target(text, None)
            return client_endpoint(reactor, *target, SocketOptions(**fields))
        if "proxy" in fields:
            raise usage.UsageError("--proxy goes with HOST:PORT; in a string it is a key, proxy=")
        try:
            made: IStreamClientEndpoint = endpoint_from(clientFromString, reactor, text)
        except Exception as error:  # noqa: BLE001 - parsers of others raise what they like
            raise usage.UsageError(f"{without_credentials(text)}: {error}") from None
        self.limits_itself = False
        return made

    async def run(self, reactor: Reactor) -> Outcome:
        """Connect, and go on until the connection has ended."""
        factory = Factory.forProtocol(lambda: _Session(reactor, self))
        factory.noisy = False
        connecting = cast("Deferred[_Session]", self.endpoint.connect(factory))
        if not self.limits_itself:
            connecting.addTimeout(self.timeout.total_seconds(), reactor, _on_timeout)
        try:
            session = await connecting
        except CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - endpoints of others fail as they like
            say(f"cannot connect to {self['target']}: {explain(error)}")
            return outcome_of(error)
        try:
            outcome: Outcome = await session.ended
        except CancelledError:
            await session.close()
            raise
        return outcome


def _on_timeout(result: object, _seconds: float) -> object:
    """Fail because connecting took too long, whatever the endpoint makes of being cancelled."""
    return Failure(SocketConnectionTimeoutError()) if isinstance(result, Failure) else result


def _is_host_and_port(text: str) -> bool:
    """Return whether *text* is like ``example.com:80``, and no string like ``tcp:80``."""
    if text.startswith("["):
        return True
    host, colon, port = text.partition(":")
    if not colon:
        return "/" not in text
    return ":" not in port and "=" not in port and "/" not in port and not _is_kind(host)


def _is_kind(name: str) -> bool:
    """Return whether endpoint strings may begin with *name*."""
    from twisted.internet.interfaces import IStreamClientEndpointStringParserWithReactor
    from twisted.plugin import getPlugins

    kinds = {each.prefix for each in getPlugins(IStreamClientEndpointStringParserWithReactor)}
    return name.lower() in kinds | {"tcp", "ssl", "unix"}
