"""
What the relay knows and logs about its connections.

A `Session` is the account of one client: its address, what passed, why it ended.
It costs a few assignments for each connection, and for what passes one addition
for each piece. The `Ledger` holds the accounts that are open, and the sums.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final

import attrs
from cryptography import x509
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from ..._endpoints.transport import TLSTransport
from ..._io.interfaces import Reactor
from ..._net.happy_eyeballs import Established
from ..._tls.descriptor import TLSDescriptor
from ...errors import SocketConnectionLostError, TLSTruncatedError
from .._common.service import written
from .._common.text import printable
from .limits import Limits

__all__ = ["REASONS", "Ledger", "Session", "TLSAccount"]

REASONS: Final = (
    "closed",
    "no-close-notify",
    "client-lost",
    "backend-lost",
    "abandoned",
    "health-check",
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

_LAST_ERRORS: Final = 10
"""Of backends that could not be connected, for the status."""

_LOOKS: Final = 4
"""How often a silent connection is looked at within its limit."""

_LOOKS_AT_ONCE: Final = 256
"""Connections that are looked at between two reactor iterations."""

_CHECKS_LOGGED_EVERY: Final = 60.0
"""Seconds."""

_LINE: Final = (
    "connection {reason}: client={client} listener={listener} backend={backend} "
    "received={received} sent={sent} seconds={seconds}"
)
_SOMETIMES: Final = ("sni", "tls", "cipher", "alpn", "subject", "error")
"""What the line ends with, as far as it is known."""

_log = Logger()


def _escaped(text: str | None) -> str | None:
    """Return what a peer has said on one line, with nothing raw in it."""
    return None if text is None else printable(text)


@attrs.frozen(kw_only=True)
class TLSAccount:
    """
    TLS parameters negotiated with a client; the texts are as the peer sent them.

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
    def of(cls, established: Established) -> TLSAccount | None:
        """Look at a connection that has shaken hands; `None` if it is plain, or another's TLS."""
        tls, inner = established.descriptor, established.inner
        if isinstance(inner, TLSTransport):
            tls = inner.tls
        if not isinstance(tls, TLSDescriptor):
            return None
        verification = tls.connection.state.verification
        certificate = tls.peer_certificate if verification.asked else None
        return cls(
            version=tls.tls_version,
            cipher=tls.cipher,
            server_name=tls.server_name,
            alpn=tls.selected_alpn,
            certificate=certificate,
            verified=certificate is not None and verification.checked,
        )


class Session:
    """
    The account of one client, from its connection on.

    Attributes:
        client: Its address.
        listener: The address that it came to.
        tls: Its TLS, or `None`.
        began: When, in the reactor's seconds.
        target: What the backend is called, once one is tried.
        reason: Why it ended, of `REASONS`; `None` while it goes on.
    """

    def __init__(
        self, ledger: Ledger, front: Any, client: Any, listener: Any, tls: TLSAccount | None
    ) -> None:
        self._ledger = ledger
        self._front = front
        self._back: Any = None
        self.began = self._quiet_since = ledger.reactor.seconds()
        self._seen = 0
        self._error: str | None = None
        self.client = client
        self.listener = listener
        self._backend: Any = None
        self.tls = tls
        self.target: str | None = None
        self.reason: str | None = None

    @property
    def received(self) -> int:
        """Bytes that have come from the client."""
        count: int = self._front.count
        return count

    @property
    def sent(self) -> int:
        """Bytes that have come from the backend, without those that did not reach the client."""
        if self._back is None:
            return 0
        # Over TLS what is not acknowledged counts encrypted, a little more.
        count: int = self._back.count - self._front.unsent
        return max(0, count)

    def joined(self, back: object, address: object) -> None:
        """Note the backend's connection, and the *address* that it was made to."""
        self._back = back
        self._backend = address
        self._quiet_since = self._ledger.reactor.seconds()

    def look(self, now: float) -> None:
        """End what lasts too long."""
        limits = self._ledger.limits
        seen = self.received + self.sent
        if seen != self._seen:
            self._seen = seen
            self._quiet_since = now
        half = self._back is not None and (self._front.ended or self._back.ended)
        quiet, why = (limits.half_closed, "half-closed") if half else (limits.idle, "idle")
        if limits.lifetime is not None and now - self.began >= limits.lifetime:
            self.cut("lifetime")
        elif quiet is not None and now - self._quiet_since >= quiet:
            self.cut(why)

    def cut(self, reason: str) -> None:
        """End both connections for this reason, by a reset: nothing may look complete."""
        self.attribute(reason)
        for side in (self._front, self._back):
            if side is not None and not side.lost:
                side.abort()

    def attribute(self, reason: str, error: str | None = None) -> None:
        """Note why it ends; the first reason counts."""
        if self.reason is None:
            self.reason = reason
            self._error = _escaped(error)

    def lost(self, side: Any, error: BaseException | None) -> None:
        """
        Note the end of one side; that of the last one ends the account.

        Args:
            side: Which.
            error: Why, or `None` if it ended in order.
        """
        if self._back is None and self.target is None and not self.received:
            # Before a backend was tried.
            self.attribute("health-check")
        if self.reason is None:
            why = None if side.ended or error is None else _why(error)
            if side is self._front:
                whole = "closed" if self._back is not None else "abandoned"
                if why is not None and self._is_bare_end(error):
                    self.attribute(whole if self._back is None else "no-close-notify", why)
                else:
                    self.attribute(whole if why is None else "client-lost", why)
            else:
                self.attribute("closed" if why is None else "backend-lost", why)
        if self._front.lost and (self._back is None or self._back.lost):
            self._ledger.close(self)

    def _is_bare_end(self, error: BaseException | None) -> bool:
        """
        Return whether the client has ended TLS without close_notify, and missed nothing.

        Most do so: Python's ssl, wget, gRPC. Those that have not read the session tickets
        even send a reset.
        """
        ended = isinstance(error, TLSTruncatedError | SocketConnectionLostError)
        return self.tls is not None and ended and not self._front.unsent

    def report(self, received: int, sent: int) -> None:
        """Log what has been, with the final counts."""
        tls = self.tls
        event: dict[str, object] = {
            "event": "connection",
            "client": written(self.client),
            "listener": written(self.listener),
            "target": self.target,
            "backend": None if self._backend is None else written(self._backend),
            "sni": None,
            "tls": None,
            "cipher": None,
            "alpn": None,
            "subject": None,
            "received": received,
            "sent": sent,
            "seconds": round(self._ledger.reactor.seconds() - self.began, 3),
            "reason": self.reason,
            "error": self._error,
        }
        if tls is not None:
            event["tls"] = tls.version
            event["cipher"] = tls.cipher
            event["sni"] = _escaped(tls.server_name)
            event["alpn"] = _escaped(tls.alpn)
            event["subject"] = _escaped(tls.subject)
        line = _LINE
        if tls is not None or self._error is not None:
            line += "".join(
                f" {name}={{{name}}}" for name in _SOMETIMES if event[name] is not None
            )
        _log.info(line, **event)


def _why(error: BaseException) -> str:
    return str(error) or error.__class__.__name__


class Ledger:
    """
    The accounts of a relay.

    Attributes:
        reactor: For the time.
        limits: What holds for each connection.
        look_every: Seconds between two looks at a connection's time, or `None`.
        failed: How often each target could not be connected.
        errors: The last of these: when, which, and why.
    """

    def __init__(self, reactor: Reactor, limits: Limits) -> None:
        self.reactor = reactor
        self.limits = limits
        self.look_every: float | None = None
        quiet = [limit / _LOOKS for limit in (limits.idle, limits.half_closed) if limit]
        whole = [limits.lifetime] if limits.lifetime else []
        if quiet or whole:
            self.look_every = min(quiet + [each / _LOOKS for each in whole])
        self.failed: Counter[str] = Counter()
        self.errors: deque[dict[str, str]] = deque(maxlen=_LAST_ERRORS)
        self._is_up: dict[str, bool] = {}
        self._connected: Counter[str] = Counter()
        # By when each is to be looked at, soonest first: one timer is enough for all.
        self._open: OrderedDict[Session, float] = OrderedDict()
        self._timer: IDelayedCall | None = None
        self._ended: Counter[str] = Counter()
        self._checks = 0
        self._checks_logged = float("-inf")
        self._accepted = 0
        self._received = 0
        self._sent = 0

    def open(
        self, front: Any, client: Any, listener: Any, tls: TLSAccount | None = None
    ) -> Session:
        """
        Begin the account of a client.

        Args:
            front: The side of the client, whose `count`, `ended`, `lost` and `abort`
                are looked at, as the backend's later.
            client: Its address.
            listener: The address that it came to.
            tls: The TLS parameters negotiated with it.
        """
        session = Session(self, front, client, listener, tls)
        self._accepted += 1
        if self.look_every is None:
            self._open[session] = session.began
        else:
            self._open[session] = session.began + self.look_every
            self._arm()
        return session

    def _arm(self) -> None:
        """Have somebody looked at when it is time for the first."""
        if self.look_every is not None and self._timer is None and self._open:
            due = next(iter(self._open.values()))
            left = max(0.0, due - self.reactor.seconds())
            self._timer = self.reactor.callLater(left, self._look)

    def _look(self) -> None:
        """Look at those whose time it is."""
        assert self.look_every is not None
        self._timer = None
        now = self.reactor.seconds()
        for session, due in list(islice(self._open.items(), _LOOKS_AT_ONCE)):
            if due > now:
                break
            self._open[session] = now + self.look_every
            self._open.move_to_end(session)
            session.look(now)
        self._arm()

    def connected(self, target: str) -> None:
        """Note a connection to a target."""
        self._connected[target] += 1
        self._is_up[target] = True

    def not_connected(self, target: str, error: str) -> None:
        """Note that a target could not be connected, and why."""
        self.failed[target] += 1
        self._is_up[target] = False
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.errors.append({"time": now, "target": target, "error": error})

    def close(self, session: Session) -> None:
        """End an account: add it to the sums, and log it."""
        self._open.pop(session, None)
        if self._timer is not None and not self._open:
            self._timer.cancel()
            self._timer = None
        self._ended[session.reason or "closed"] += 1
        received, sent = session.received, session.sent
        self._received += received
        self._sent += sent
        if session.reason == "health-check":
            self._note_health_check(session)
        else:
            session.report(received, sent)

    def _note_health_check(self, session: Session) -> None:
        """Log how many there were, once a minute: many come every second or two."""
        self._checks += 1
        now = self.reactor.seconds()
        if now - self._checks_logged >= _CHECKS_LOGGED_EVERY:
            _log.info(
                "health checks: {count}, the last one from {client}",
                event="health-checks",
                count=self._checks,
                client=written(session.client),
            )
            self._checks, self._checks_logged = 0, now

    def cut_all(self, reason: str) -> None:
        """End every connection."""
        for session in list(self._open):
            session.cut(reason)

    def attribute_all(self, reason: str) -> None:
        """Note why those that there are will end."""
        for session in self._open:
            session.attribute(reason)

    def snapshot(self, targets: list[str]) -> dict[str, object]:
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
            # In how many workers the last attempt has succeeded.
            "up": {name: int(is_up) for name, is_up in self._is_up.items()},
            "errors": list(self.errors),
        }
