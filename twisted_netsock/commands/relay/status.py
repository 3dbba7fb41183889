"""
The status of the relay over HTTP, on loopback or a UNIX socket.

``/`` is a page for people, ``/healthz`` says whether it takes connections,
``/status.json`` how it is, and ``/metrics`` the same for Prometheus. None of it holds what
a client has said. Requests for other hosts are refused: a page in a browser can have its own
name lead to loopback.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from ..._io.interfaces import Reactor
from .._common.page import bars, page, table
from .options import asks_for_certificates, is_loopback

__all__ = ["StatusService", "metrics"]

Snapshot = Callable[[], Any]
"""Returns the values, or a Deferred or coroutine of them."""

_POLICY: Final = b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
_SERVING: Final = ("running", "paused")
_INSTALL: Final = "install twisted-netsock[metrics] for /metrics: prometheus-client is missing\n"
_HOST: Final = re.compile(r"(?:\[(?P<v6>[^]]*)\]|(?P<host>[^:]*))(?::[0-9]*)?")
"""What a request is for (RFC 9110, section 7.2), an IPv6 address in brackets."""

_OK: Final = 200
_BAD_REQUEST: Final = 400
_MISDIRECTED: Final = 421
_UNAVAILABLE: Final = 503
_NOT_IMPLEMENTED: Final = 501
_SECONDS: Final = 10
"""What a client has for its request, and may stay silent between two."""

_log = Logger()


class _Page(Resource):
    """A resource that makes its text of a snapshot."""

    isLeaf = True

    def __init__(
        self, snapshot: Snapshot, render: Callable[[object], tuple[int, str, bytes]]
    ) -> None:
        super().__init__()
        self._snapshot = snapshot
        self._render = render

    def render_GET(self, request: Request) -> int:
        """Answer when the snapshot is there."""
        gone: list[object] = []
        request.notifyFinish().addBoth(gone.append)

        def answer(values: object) -> None:
            if gone:
                return
            code, kind, body = self._render(values)
            request.setResponseCode(code)
            request.setHeader(b"content-type", kind.encode())
            request.setHeader(b"cache-control", b"no-store")
            request.setHeader(b"content-security-policy", _POLICY)
            request.setHeader(b"x-content-type-options", b"nosniff")
            request.setHeader(b"content-length", str(len(body)).encode())
            request.write(b"" if request.method == b"HEAD" else body)
            request.finish()

        def failed(failure: Failure) -> None:
            _log.failure("the status cannot be made", failure)
            if not gone:
                request.setResponseCode(500)
                request.finish()

        result = self._snapshot()
        if hasattr(result, "send"):
            result = Deferred.fromCoroutine(result)
        maybeDeferred(lambda: result).addCallback(answer).addErrback(failed)
        return NOT_DONE_YET


_TEXT: Final = "text/plain; charset=utf-8"


def _health(values: Any) -> tuple[int, str, bytes]:
    serves = values["state"] in _SERVING
    text = "ok" if serves else values["state"]
    return (_OK if serves else _UNAVAILABLE), _TEXT, f"{text}\n".encode()


def _json(values: Any) -> tuple[int, str, bytes]:
    return _OK, "application/json", json.dumps(values, indent=1).encode() + b"\n"


def _metrics_page(values: object) -> tuple[int, str, bytes]:
    try:
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
    except ImportError:
        return _NOT_IMPLEMENTED, _TEXT, _INSTALL.encode()

    class Collector:
        """Makes metrics of one snapshot."""

        def collect(self) -> Iterator[Any]:
            return metrics(values)

    registry = CollectorRegistry()
    registry.register(Collector())
    return _OK, CONTENT_TYPE_LATEST, generate_latest(registry)


_REFRESH_SECONDS: Final = 5
_SAMPLE_SECONDS: Final = 60
_SAMPLES: Final = 61
"""An hour of minutes, and where the first began."""

_LINKS: Final = (
    '<a href="/status.json">status.json</a> · <a href="/metrics">metrics</a> · '
    '<a href="/healthz">healthz</a>'
)
_SOON_DAYS: Final = 14


def _front(values: Any, accepted: Sequence[int]) -> tuple[int, str, bytes]:
    """Make the page for people; *accepted* has the sums of connections, one for each minute."""
    connections, passed = values.get("connections", {}), values.get("bytes", {})
    minutes = [max(0, after - before) for before, after in pairwise(accepted)]
    uptime = max(1.0, values["uptime"])
    state = values["state"]
    overview = [
        ("State", ("good" if state in _SERVING else "bad", state)),
        ("Up for", str(timedelta(seconds=int(uptime)))),
        ("Connections now", connections.get("open", 0)),
        ("Connections so far", connections.get("accepted", 0)),
        ("Bytes from clients, a second", int(passed.get("received", 0) / uptime)),
        ("Bytes to clients, a second", int(passed.get("sent", 0) / uptime)),
    ]
    refused = {
        "too many connections of one client": connections.get("turned_away", 0),
        "handshake or PROXY header failed": values.get("failed_handshakes", 0),
        **connections.get("ended", {}),
    }
    up = values.get("up", {})
    backends = [
        (each["name"], _up_or_down(up.get(each["name"])), each["connected"], each["failed"])
        for each in values.get("targets", ())
    ]
    certificates = [
        (each["endpoint"], each["source"], each["not_after"][:10], _days_left(each["days_left"]))
        for each in values.get("certificates") or ()
    ]
    errors = [
        (each["time"], each["target"], each["error"])
        for each in reversed(values.get("errors") or ())
    ]
    sections = [
        ("Overview", table(("", ""), overview)),
        ("Connections by the minute", bars(minutes, "connections in each of the last minutes")),
        ("Listeners", table(("Address",), [(each,) for each in values.get("listening", ())])),
        ("Backends", table(("Endpoint", "", "Connected", "Failed"), backends)),
        ("Certificates", table(("Endpoint", "Source", "Expires", "Days left"), certificates)),
        ("Ended and refused", table(("Reason", ""), [row for row in refused.items() if row[1]])),
        ("Last errors", table(("Time", "Backend", "Error"), errors)),
    ]
    body = page("netsock relay", sections, _LINKS, seconds=_REFRESH_SECONDS)
    return _OK, "text/html; charset=utf-8", body


def _up_or_down(workers: int | None) -> tuple[str, str]:
    if workers is None:
        return "", "not tried yet"
    return ("good", "up") if workers else ("bad", "down")


def _days_left(days: int) -> tuple[str, str]:
    return ("bad" if days < _SOON_DAYS else "good"), str(days)


def metrics(values: Any) -> Iterator[object]:
    """Yield the metrics of a snapshot, as prometheus-client has them."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    def gauge(name: str, text: str, value: float) -> object:
        return GaugeMetricFamily(f"netsock_relay_{name}", text, value=value)

    def counter(name: str, text: str, value: float) -> object:
        return CounterMetricFamily(f"netsock_relay_{name}", text, value=value)

    # A parent whose workers have not answered yet has no sums.
    connections = values.get("connections", {})
    passed = values.get("bytes", {})
    yield gauge("up", "1 while connections are taken.", values["state"] in _SERVING)
    yield gauge("paused", "1 while a limit holds connections back.", values["state"] == "paused")
    yield gauge("uptime_seconds", "Since the start.", values["uptime"])
    yield gauge("connections", "Clients that are connected.", connections.get("open", 0))
    yield gauge("connections_limit", "How many there may be.", connections.get("limit", 0))
    yield counter("accepted", "Clients that were connected.", connections.get("accepted", 0))
    yield counter(
        "turned_away", "Clients with too many connections.", connections.get("turned_away", 0)
    )
    ended = CounterMetricFamily(
        "netsock_relay_ended", "Connections that have ended, by reason.", labels=["reason"]
    )
    for reason, count in connections.get("ended", {}).items():
        ended.add_metric([reason], count)
    yield ended
    volume = CounterMetricFamily(
        "netsock_relay_bytes", "Bytes from clients (received) and to them.", labels=["direction"]
    )
    for direction in ("received", "sent"):
        volume.add_metric([direction], passed.get(direction, 0))
    yield volume
    yield counter(
        "failed_handshakes",
        "Connections that failed in PROXY header or TLS handshake.",
        values.get("failed_handshakes", 0),
    )
    yield counter("rests", "Pauses for lack of descriptors.", values.get("rests", 0))
    for outcome in ("connected", "failed"):
        family = CounterMetricFamily(
            f"netsock_relay_target_{outcome}",
            f"Attempts to connect a backend that have {outcome}.",
            labels=["target"],
        )
        for target in values.get("targets", ()):
            family.add_metric([target["name"]], target[outcome])
        yield family
    expiry = GaugeMetricFamily(
        "netsock_relay_certificate_expiry_timestamp_seconds",
        "When certificates in use expire.",
        labels=["endpoint", "field", "source"],
    )
    for each in values.get("certificates", ()):
        moment = datetime.fromisoformat(each["not_after"]).timestamp()
        expiry.add_metric([each["endpoint"], each["field"], each["source"]], moment)
    yield expiry
    workers = values.get("workers")
    if workers is not None:
        yield gauge("workers", "Workers that run.", workers["running"])
        yield gauge("workers_wanted", "Workers that should.", workers["wanted"])
        yield counter("worker_restarts", "Workers that were replaced.", workers["restarts"])


class _Refusal(Resource):
    """Stands in the place of every page for a request that is for another host."""

    isLeaf = True

    def __init__(self, code: int, phrase: bytes, why: bytes) -> None:
        super().__init__()
        self._code = code
        self._phrase = phrase
        self._why = why

    def render(self, request: Request) -> bytes:
        """Answer with the status and why."""
        request.setResponseCode(self._code, self._phrase)
        request.setHeader(b"content-type", _TEXT.encode())
        return self._why + b"\n"


def _refusal(request: Request) -> Resource | None:
    """Return what to answer to a request that is not for this machine; `None` if it is."""
    if isinstance(request.getHost(), UNIXAddress):
        # No name of the DNS leads there.
        return None
    hosts = request.requestHeaders.getRawHeaders("host", [])
    if not hosts and request.clientproto == b"HTTP/1.0":
        return None
    if len(hosts) != 1:
        return _Refusal(_BAD_REQUEST, b"Bad Request", b"one Host is needed")
    matched = _HOST.fullmatch(hosts[0])
    if matched is None or not is_loopback(matched["v6"] or matched["host"] or ""):
        why = b"this is for localhost and addresses of loopback alone"
        return _Refusal(_MISDIRECTED, b"Misdirected Request", why)
    return None


class _LocalSite(Site):
    """Serves requests for this machine alone, and logs none: probes ask every few seconds."""

    noisy = False

    def __init__(self, root: Resource, *, guarded: bool) -> None:
        """
        Serve *root*.

        Args:
            root: Has the pages.
            guarded: All who come have a verified certificate, and may come by any name: to a
                page of another site, in a browser, the server's certificate is a wrong one.
        """
        super().__init__(root, timeout=_SECONDS)
        self._guarded = guarded

    def getResourceFor(self, request: Request) -> object:
        """Return the page, or what refuses the request."""
        refusal = None if self._guarded else _refusal(request)
        return refusal or super().getResourceFor(request)

    def log(self, request: object) -> None:
        """Leave the request out of the log."""


class StatusService(Service):
    """Serves the pages while it runs."""

    def __init__(
        self,
        reactor: Reactor,
        endpoint: IStreamServerEndpoint,
        snapshot: Snapshot,
        failed: Callable[[], None],
    ) -> None:
        """
        Serve pages.

        Args:
            reactor: Stopped if it is impossible to listen.
            endpoint: Where; that it is local is the caller's to see to.
            snapshot: Returns the values to show.
            failed: Called if it is impossible to listen, before the reactor stops.
        """
        self._reactor = reactor
        self._endpoint = endpoint
        self._failed = failed
        self._port: IListeningPort | None = None
        self._listening: Deferred[Any] | None = None
        self._snapshot = snapshot
        self._accepted: deque[int] = deque([0], maxlen=_SAMPLES)
        self._sampling = LoopingCall(self._sample)
        self._sampling.clock = reactor
        root = Resource()
        root.putChild(b"", _Page(snapshot, lambda values: _front(values, self._accepted)))
        root.putChild(b"healthz", _Page(snapshot, _health))
        root.putChild(b"status.json", _Page(snapshot, _json))
        root.putChild(b"metrics", _Page(snapshot, _metrics_page))
        self._site = _LocalSite(root, guarded=asks_for_certificates(endpoint))

    def startService(self) -> None:
        """Begin to listen."""
        super().startService()
        sampling = self._sampling.start(_SAMPLE_SECONDS, now=False)
        sampling.addErrback(lambda failure: _log.failure("the page shows no minutes", failure))
        self._listening = self._endpoint.listen(self._site)
        self._listening.addCallbacks(self._on_port, self._on_failure)

    async def _sample(self) -> None:
        """Note how many connections there have been, for the page."""
        values = self._snapshot()
        if not isinstance(values, dict):
            values = await values
        self._accepted.append(values.get("connections", {}).get("accepted", 0))

    def _on_port(self, port: IListeningPort) -> None:
        self._port = port
        _log.info("status on {host}", host=str(port.getHost()))

    def _on_failure(self, failure: Failure) -> None:
        if failure.check(CancelledError) is not None:
            return
        _log.critical("cannot listen for --status: {error}", error=str(failure.value))
        self._failed()
        self._reactor.callWhenRunning(self._reactor.stop)

    def stopService(self) -> object:
        """Stop listening."""
        super().stopService()
        if self._sampling.running:
            self._sampling.stop()
        if self._listening is not None:
            self._listening.cancel()
        port, self._port = self._port, None
        return None if port is None else port.stopListening()
