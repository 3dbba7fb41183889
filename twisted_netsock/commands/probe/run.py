"""What `netsock probe` does: connect, shake hands, look, and leave."""

from __future__ import annotations

import errno
import socket as _socket
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from cryptography import x509
from twisted.internet.defer import (
    Deferred,
    DeferredSemaphore,
    FirstError,
    gatherResults,
)
from twisted.internet.defer import (
    TimeoutError as DeferredTimeoutError,
)

from ..._certificates.verification import is_of_the_path
from ..._io.interfaces import Reactor
from ..._net.resolver import Hints, look_up
from ..._proxies import Proxy, may_speak_tls, proxy_for
from ..._sockets.make import make_client_socket
from ..._sockets.socket import Socket
from ..._sockets.start_tls import start_tls
from ..._sockets.tls_socket import TLSSocket
from ..._tls.client import client_context_factory
from ...addresses import AddressInfo, SocketAddress
from ...errors import (
    NetsockError,
    SocketConnectionError,
    SocketConnectionTimeoutError,
    SocketError,
    TLSError,
)
from ...options import SocketOptions, TLSSocketOptions, VerifyResult
from .._common.outcomes import Outcome, outcome_of
from .._common.targets import Target
from .certificate import CertificateFacts, describe
from .plain import Plain, listen_to
from .starttls import ask_for_tls

__all__ = ["AddressReport", "Problem", "Report", "Request", "probe", "probe_many", "worst"]

T = TypeVar("T")

_AT_ONCE: Final = 32
"""How many addresses are probed at a time."""

_LAST_WORD: Final = 1.0
"""Seconds that a server has to say, after the handshake, that it is not content, at most."""

_LEAST_WAIT: Final = 0.2
_ROUND_TRIPS: Final = 2
"""What it has at least, and beside that how many times as long as the handshake took."""

_CLOSE_TIMEOUT: Final = timedelta(milliseconds=200)

_NO_ROUTE: Final = frozenset({errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})

_WORST_FIRST: Final = (
    Outcome.FAILED,
    Outcome.UNVERIFIED,
    Outcome.TLS,
    Outcome.NOT_FOUND,
    Outcome.UNREACHABLE,
    Outcome.CLASSICAL,
    Outcome.EXPIRING,
)

_POST_QUANTUM: Final = ("MLKEM", "KYBER")
"""In the names of key exchanges that a quantum computer would not undo."""


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """Return what decides about several."""
    found = set(outcomes)
    return next((each for each in _WORST_FIRST if each in found), Outcome.OK)


@dataclass(frozen=True)
class Request:
    """What to probe, and how."""

    target: Target
    options: TLSSocketOptions
    timeout: timedelta
    """For the look-up, and then for each address."""
    family: int = _socket.AF_UNSPEC
    starttls: str | None = None
    expect_expiry: timedelta | None = None
    expect_pq: bool = False


class Problem(NamedTuple):
    """Something that fails verification: where in the chain, OpenSSL's code, and why."""

    depth: int
    code: int
    reason: str
    subject: str


@dataclass
class AddressReport:
    """What came of one address."""

    address: SocketAddress
    outcome: Outcome = Outcome.FAILED
    stage: str = "connect"
    """What it was at when it ended."""
    error: Exception | None = None
    reached: bool = False
    handshaken: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    version: str | None = None
    cipher: str | None = None
    group: str | None = None
    alpn: str | None = None
    sent: list[CertificateFacts] = field(default_factory=list)
    verified: list[CertificateFacts] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    expiring: list[CertificateFacts] = field(default_factory=list)
    authorities: tuple[str, ...] = ()
    plain: Plain | None = None
    """What it speaks instead of TLS, where that was recognised."""
    no_route: bool = False
    """This machine has no way to such addresses at all: no fault of the server's."""

    @property
    def is_verified(self) -> bool:
        """Whether the server has proved who it is."""
        return self.handshaken and bool(self.verified) and not self.problems


@dataclass
class Report:
    """What came of it all."""

    request: Request
    proxy: Proxy | None = None
    """What the host is reached through, and looked up by."""
    look_up_seconds: float | None = None
    error: Exception | None = None
    addresses: list[AddressReport] = field(default_factory=list)

    @property
    def outcome(self) -> Outcome:
        """The exit status: the worst that was found."""
        if self.error is not None:
            return outcome_of(self.error)
        counting = [each for each in self.addresses if not each.no_route] or self.addresses
        return worst(each.outcome for each in counting)


async def probe_many(
    reactor: Reactor, requests: Sequence[Request], done: Callable[[], object]
) -> list[Report]:
    """Probe several hosts side by side, and call *done* after each; see `probe`."""
    hosts, addresses = DeferredSemaphore(_AT_ONCE), DeferredSemaphore(_AT_ONCE)

    async def one(request: Request) -> Report:
        report = await probe(reactor, request, addresses)
        done()
        return report

    return await _side_by_side(hosts, [partial(one, request) for request in requests])


async def _side_by_side(
    some: DeferredSemaphore, begin: Sequence[Callable[[], Coroutine[Deferred[Any], Any, T]]]
) -> list[T]:
    """Run coroutines, *some* at a time, and return what they do, in order."""

    def run(each: Callable[[], Coroutine[Deferred[Any], Any, T]]) -> Deferred[T]:
        return Deferred.fromCoroutine(each())

    running = [some.run(run, each) for each in begin]
    try:
        return list(await gatherResults(running, consumeErrors=True))
    except FirstError as error:
        for each in running:
            each.cancel()
        error.subFailure.raiseException()
        raise


async def probe(
    reactor: Reactor, request: Request, some: DeferredSemaphore | None = None
) -> Report:
    """
    Look the host of *request* up, and probe all its addresses, side by side, *some* at a time.

    Never fails for what a server or the network does: the report says it.
    Cancelling leaves nothing behind.
    """
    report = Report(request)
    limit = request.timeout.total_seconds()
    host, service = request.target
    began = reactor.seconds()
    try:
        report.proxy = _proxy_for(request)
        # A proxy looks the host up, and is given a port.
        node = host if report.proxy is None else None
        looking = look_up(reactor, node, service, Hints(request.family))
        infos = await looking.addTimeout(limit, reactor)
    except DeferredTimeoutError:
        report.error = SocketConnectionTimeoutError("look-up")
        return report
    except NetsockError as error:
        report.error = error
        return report
    finally:
        report.look_up_seconds = reactor.seconds() - began
    if report.proxy is not None:
        infos = [_at_proxy(host, infos[0])]
        report.look_up_seconds = None
    report.addresses = await _side_by_side(
        some or DeferredSemaphore(_AT_ONCE),
        [partial(_probe_address, reactor, report, info) for info in infos],
    )
    return report


def _proxy_for(request: Request) -> Proxy | None:
    text = request.options.proxy
    try:
        return None if text is None else proxy_for(text, request.target.host, tls=True)
    except ValueError as error:
        raise SocketConnectionError(strerror=str(error)) from None


def _at_proxy(host: str, service: AddressInfo) -> AddressInfo:
    """Return what stands for the addresses of *host*, which the proxy alone knows."""
    assert service.address is not None
    parts = (host, service.address.port) + ((0, 0) if ":" in host else ())
    address = SocketAddress.of(_socket.AF_UNSPEC, parts)
    return AddressInfo(_socket.AF_UNSPEC, service.socket_type, service.protocol, address)


async def _probe_address(reactor: Reactor, whole: Report, info: AddressInfo) -> AddressReport:
    assert info.address is not None
    request, report = whole.request, AddressReport(info.address)
    proxy = None if whole.proxy is None else whole.proxy.url
    trusted = None if proxy is None else request.options.proxy_trusted_certificates
    options = SocketOptions(
        ai_family=info.family,
        proxy=proxy,
        proxy_trusted_certificates=trusted if may_speak_tls(proxy) else None,
    )
    visit = _Visit(reactor, request, report, options)
    limit = request.timeout.total_seconds()
    try:
        await Deferred.fromCoroutine(visit.run()).addTimeout(limit, reactor)
    except DeferredTimeoutError:
        report.error = SocketConnectionTimeoutError(
            report.stage, strerror=f"Nothing came of it within {limit:g} s"
        )
    except (OSError, NetsockError, ValueError) as error:
        # ValueError: a certificate that cannot be parsed at all.
        report.error = error
        if request.starttls is None and _may_be_plain(report):
            report.plain = await listen_to(reactor, report.address, options)
    report.outcome = _judge(report, request)
    return report


def _may_be_plain(report: AddressReport) -> bool:
    """Return whether nothing came of an address that a server of TLS would have sent."""
    refused = isinstance(report.error, TLSError) and report.error.alert is not None
    return report.stage == "handshake" and not report.sent and not refused


def _judge(report: AddressReport, request: Request) -> Outcome:
    """Return what is to be said of an address."""
    error = report.error
    if error is not None and outcome_of(error) == Outcome.UNVERIFIED:
        return Outcome.UNVERIFIED
    if not report.reached:
        report.no_route = getattr(error, "errno", None) in _NO_ROUTE
        return Outcome.UNREACHABLE
    if error is not None:
        return Outcome.TLS
    if not report.is_verified:
        return Outcome.UNVERIFIED
    if request.expect_expiry is not None:
        end = datetime.now(UTC) + request.expect_expiry
        stamp = end.strftime("%Y-%m-%dT%H:%M:%SZ")
        report.expiring = [each for each in report.verified if each.not_after < stamp]
    if request.expect_pq and not any(each in (report.group or "") for each in _POST_QUANTUM):
        return Outcome.CLASSICAL
    return Outcome.EXPIRING if report.expiring else Outcome.OK


class _Visit:
    """One connection to one address."""

    def __init__(
        self, reactor: Reactor, request: Request, report: AddressReport, options: SocketOptions
    ) -> None:
        """Connect with *options*."""
        self._reactor = reactor
        self._options = options
        self._request = request
        self._report = report
        self._sock: Socket | None = None

    async def run(self) -> None:
        """Fill the report in, as far as it goes."""
        try:
            await self._connect()
            await self._ask_for_tls()
            await self._shake_hands()
            await self._hear_last_word()
        except BaseException:
            if self._sock is not None:
                self._sock.abort()
            raise
        assert self._sock is not None
        await self._sock.close()

    async def _timed(self, stage: str, begin: Callable[[], Awaitable[T]]) -> T:
        self._report.stage = stage
        began = self._reactor.seconds()
        result = await begin()
        self._report.seconds[stage] = self._reactor.seconds() - began
        return result

    async def _connect(self) -> None:
        host, port = self._report.address.host, self._report.address.port
        options, reactor = self._options, self._reactor
        self._sock = await self._timed(
            "connect", lambda: make_client_socket(host, port, options, reactor=reactor)
        )
        self._report.reached = True

    async def _ask_for_tls(self) -> None:
        protocol, sock = self._request.starttls, self._sock
        if protocol is None:
            return
        assert sock is not None
        host = self._request.target.host
        await self._timed("starttls", lambda: ask_for_tls(sock, protocol, host))

    async def _shake_hands(self) -> None:
        assert self._sock is not None
        self._report.stage = "handshake"
        options = self._request.options.replace(
            certificate_verifier=self._record,
            handshake=False,
            handshake_timeout=None,
            close_timeout=_CLOSE_TIMEOUT,
        )
        tls = self._sock = await start_tls(self._sock, options, self._request.target.host)
        try:
            await self._timed("handshake", tls.handshake)
            self._report.handshaken = True
        finally:
            self._look(tls)

    def _record(self, depth: int, verdict: VerifyResult, certificate: x509.Certificate) -> bool:
        """
        Note what fails verification, and go on: the server notices nothing.

        The report is what decides; no data is sent over this connection.
        """
        if verdict.code:
            subject = describe(certificate).subject
            problem = Problem(depth, verdict.code, verdict.text, subject)
            if problem not in self._report.problems:
                self._report.problems.append(problem)
        return True

    def _look(self, tls: TLSSocket) -> None:
        """Note what the handshake has come to, also where it has failed half-way."""
        report, now = self._report, datetime.now(UTC)
        report.authorities = tls.client_certificate_authorities
        report.sent = [describe(each, now) for each in tls.peer_chain]
        if not report.handshaken:
            return
        report.version, report.cipher = tls.tls_version, tls.cipher
        report.group, report.alpn = tls.group, tls.selected_alpn
        path: Sequence[x509.Certificate] | None = tls.verified_chain
        if any(is_of_the_path(problem.code) for problem in report.problems):
            # A verifier gets OpenSSL's verdicts alone; a client looks for another path.
            factory = client_context_factory(self._request.options, self._request.target.host)
            path = factory.other_path(tls.peer_chain)
            if path is not None:
                report.problems = [
                    problem for problem in report.problems if not is_of_the_path(problem.code)
                ]
        if not report.problems:
            report.verified = [describe(each, now) for each in path or ()]

    async def _hear_last_word(self) -> None:
        """
        Give the server the time to refuse.

        With TLS 1.3 it may do so, for want of a client certificate, only when
        the handshake is done for the client (RFC 8446, section 4.4.2.4).
        """
        tls, report = self._sock, self._report
        assert tls is not None
        report.stage = "after the handshake"
        took = report.seconds["handshake"]
        patience = min(_LAST_WORD, _LEAST_WAIT + _ROUND_TRIPS * took)
        try:
            if report.version == "TLSv1.3":
                # Before our close_notify: closing on that unread, a server would reset the
                # connection, and its alert be lost.
                await tls.recv(1).addTimeout(patience, self._reactor)
        except DeferredTimeoutError:
            pass
        except TLSError as error:
            if error.alert is not None:
                raise
        except SocketError:
            # It has ended the connection, which it may.
            pass
