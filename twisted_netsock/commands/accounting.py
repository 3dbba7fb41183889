"""
What the relay knows and tells about its connections.

A `Session` is the account of one client: who it is, what passed, why it ended.
It costs a few assignments for each connection, and for what passes one addition
for each piece. The `Ledger` holds the accounts that are open, and the sums.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import attrs
from cryptography import x509
from twisted.internet.error import ConnectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..transports import TLSTransport
from .limits import Limits
from .serving import written
from .text import printable

__all__ = ["REASONS", "Ledger", "Session", "TLSAccount"]

REASONS: Final = (
    "closed",
    "client-lost",
    "backend-lost",
    "abandoned",
    "denied",
    "no-route",
    "unreachable",
    "idle",
    "half-closed",
    "lifetime",
    "drained",
    "stopped",
)
"""Why connections end; these words and no others are in logs and metrics."""

_LOOKS: Final = 4
"""How often a silent connection is looked at within its limit."""

_log = Logger()


def _told(text: str | None) -> str | None:
    """Return what a peer has said on one line, with nothing raw in it."""
    return None if text is None else printable(text)


@attrs.frozen(kw_only=True)
class TLSAccount:
    """
    What a client's TLS has come to; the texts are as the peer sent them.

    Attributes:
        version: Such as ``"TLSv1.3"``.
        cipher: OpenSSL's name of the suite.
        server_name: What the client asked for.
        alpn: What was negotiated.
        certificate: The client's.
        verified: It was shown, and found good.
    """

    version: str | None = None
    cipher: str | None = None
    server_name: str | None = None
    alpn: str | None = None
    certificate: x509.Certificate | None = None
    verified: bool = False

    @property
    def subject(self) -> str | None:
        """The subject of the certificate (RFC 4514)."""
        if self.certificate is None:
            return None
        try:
            return self.certificate.subject.rfc4514_string()
        except ValueError:
            return "malformed"

    @classmethod
    def of(cls, transport: Any) -> TLSAccount | None:
        """Look at a transport of ours; `None` if it is plain, or another's."""
        if not isinstance(transport, TLSTransport):
            return None
        tls = transport.tls
        certificate = tls.peer_certificate
        return cls(
            version=tls.tls_version,
            cipher=tls.cipher,
            server_name=tls.server_name,
            alpn=tls.selected_alpn,
            certificate=certificate,
            verified=certificate is not None and tls.connection.state.verification.checked,
        )


class Session:
    """
    The account of one client, from its connection on.

    Attributes:
        tls: The client's TLS, or `None`.
        target: What the backend is called, once one is tried.
        reason: Why it ended, of `REASONS`; `None` while it goes on.
    """

    def __init__(self, ledger: Ledger, front: Any, transport: Any) -> None:
        self._ledger = ledger
        self._front = front
        self._back: Any = None
        self._began = self._quiet_since = ledger.reactor.seconds()
        self._seen = 0
        self._timer: Any = None
        self._error: str | None = None
        self.client = written(transport.getPeer())
        self.listener = written(transport.getHost())
        self.tls = TLSAccount.of(transport)
        self.target: str | None = None
        self.backend: str | None = None
        self.reason: str | None = None

    @property
    def received(self) -> int:
        """Bytes that have come from the client."""
        return int(self._front.count)

    @property
    def sent(self) -> int:
        """Bytes that have come from the backend."""
        return 0 if self._back is None else int(self._back.count)

    def joined(self, back: Any, transport: Any) -> None:
        """Note the backend's connection, and begin to watch the time."""
        self._back = back
        self.backend = written(transport.getPeer())
        self._quiet_since = self._ledger.reactor.seconds()

    def watch(self) -> None:
        """Look at the time now and then."""
        pause = self._ledger.look_every
        if pause is not None:
            self._timer = self._ledger.reactor.callLater(pause, self._look)

    def _look(self) -> None:
        self._timer = None
        limits, now = self._ledger.limits, self._ledger.reactor.seconds()
        seen = self.received + self.sent
        if seen != self._seen:
            self._seen = seen
            self._quiet_since = now
        half = self._back is not None and (self._front.ended or self._back.ended)
        quiet, why = (limits.half_closed, "half-closed") if half else (limits.idle, "idle")
        if limits.lifetime is not None and now - self._began >= limits.lifetime:
            self.cut("lifetime")
        elif quiet is not None and now - self._quiet_since >= quiet:
            self.cut(why)
        else:
            self.watch()

    def cut(self, reason: str) -> None:
        """End both connections for this reason, by a reset: nothing may look complete."""
        self.blame(reason)
        for side in (self._front, self._back):
            if side is not None and not side.lost:
                side.transport.abortConnection()

    def blame(self, reason: str, error: str | None = None) -> None:
        """Note why it ends; the first reason counts."""
        if self.reason is None:
            self.reason = reason
            self._error = _told(error)

    def lost(self, side: Any, failure: Failure) -> None:
        """Note the end of one side; that of the last one ends the account."""
        if self.reason is None:
            clean = side.ended or failure.check(ConnectionDone) is not None
            if side is self._front:
                whole = "closed" if self._back is not None else "abandoned"
                self.blame(whole if clean else "client-lost", None if clean else _why(failure))
            else:
                self.blame("closed" if clean else "backend-lost", None if clean else _why(failure))
        if self._front.lost and (self._back is None or self._back.lost):
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._ledger.close(self)

    def report(self) -> None:
        """Log what has been."""
        tls = self.tls
        fields = {
            "client": self.client,
            "listener": self.listener,
            "target": self.target,
            "backend": self.backend,
            "tls_version": None if tls is None else tls.version,
            "cipher": None if tls is None else tls.cipher,
            "server_name": None if tls is None else _told(tls.server_name),
            "alpn": None if tls is None else _told(tls.alpn),
            "subject": None if tls is None else _told(tls.subject),
            "received": self.received,
            "sent": self.sent,
            "duration": round(self._ledger.reactor.seconds() - self._began, 3),
            "reason": self.reason,
            "error": self._error,
        }
        told = [
            f"{name}={{{name}}}"
            for name in ("tls_version", "cipher", "server_name", "alpn", "subject", "error")
            if fields[name] is not None
        ]
        _log.info(
            "connection {reason}: client={client} listener={listener} backend={backend} "
            "received={received} sent={sent} duration={duration}" + "".join(f" {x}" for x in told),
            **fields,
        )


def _why(failure: Failure) -> str:
    return str(failure.value) or failure.value.__class__.__name__


class Ledger:
    """
    The accounts of a relay.

    Attributes:
        reactor: For the time.
        limits: What holds for each connection.
        look_every: Seconds between two looks at a connection's time, or `None`.
        failed: How often each target could not be connected.
    """

    def __init__(self, reactor: Any, limits: Limits) -> None:
        self.reactor = reactor
        self.limits = limits
        self.look_every: float | None = None
        quiet = [limit / _LOOKS for limit in (limits.idle, limits.half_closed) if limit]
        whole = [limits.lifetime] if limits.lifetime else []
        if quiet or whole:
            self.look_every = min(quiet + [each / _LOOKS for each in whole])
        self.failed: Counter[str] = Counter()
        self._connected: Counter[str] = Counter()
        self._open: set[Session] = set()
        self._ended: Counter[str] = Counter()
        self._accepted = 0
        self._received = 0
        self._sent = 0

    def open(self, front: Any, transport: Any) -> Session:
        """Begin the account of a client."""
        session = Session(self, front, transport)
        self._accepted += 1
        self._open.add(session)
        session.watch()
        return session

    def connected(self, target: str) -> None:
        """Note a connection to a target."""
        self._connected[target] += 1

    def close(self, session: Session) -> None:
        """End an account: add it to the sums, and log it."""
        self._open.discard(session)
        self._ended[session.reason or "closed"] += 1
        self._received += session.received
        self._sent += session.sent
        session.report()

    def cut_all(self, reason: str) -> None:
        """End every connection."""
        for session in list(self._open):
            session.cut(reason)

    def blame_all(self, reason: str) -> None:
        """Note why those that there are will end."""
        for session in self._open:
            session.blame(reason)

    def snapshot(self, targets: list[str]) -> dict[str, Any]:
        """Return the sums, as values of JSON."""
        return {
            "connections": {
                "open": len(self._open),
                "accepted": self._accepted,
                "ended": {reason: self._ended[reason] for reason in REASONS},
            },
            "bytes": {
                "received": self._received + sum(each.received for each in self._open),
                "sent": self._sent + sum(each.sent for each in self._open),
            },
            "targets": [
                {"name": name, "connected": self._connected[name], "failed": self.failed[name]}
                for name in targets
            ],
        }
