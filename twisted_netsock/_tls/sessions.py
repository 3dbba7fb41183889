"""
TLS sessions that a client may resume (RFC 8446, section 2.2; RFC 5077).

A resumed handshake shows no certificate and verifies none: it relies on the
verification of the handshake that the session came from. So a session is kept
only after a verified handshake, for exactly what was verified then, and for a
limited time that resuming does not renew.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from OpenSSL import SSL

__all__ = ["Resumption", "SessionStore", "Validity"]

_MAX_SESSIONS: Final = 256
"""Of one context: a session for each of so many servers; the oldest is dropped."""

LIFETIME: Final = 7200.0
"""
Seconds after which a peer is verified anew, even if the server would still resume. RFC 8446
allows 7 days (section 4.6.1); a revoked or expired certificate should not last that long.
"""


class Validity(NamedTuple):
    """
    How long a verification holds.

    Attributes:
        until: On the store's clock, which is monotonic.
        not_after: When the first certificate of the verified chain expires, in seconds
            since 1970: compared with the time of day, as certificates are.
    """

    until: float
    not_after: float


class _Kept(NamedTuple):
    """A session, and how long the verification holds that it relies on."""

    session: SSL.Session
    validity: Validity


class SessionStore:
    """The sessions of one context; each is used once (RFC 8446, appendix C.4)."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        time_of_day: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._time_of_day = time_of_day
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def take(self, key: Hashable) -> _Kept | None:
        """Return what is kept under *key* and still valid, and keep it no more."""
        kept = self._kept.pop(key, None)
        if kept is None:
            return None
        until, not_after = kept.validity
        return kept if self._clock() < until and self._time_of_day() < not_after else None

    def keep(self, key: Hashable, session: SSL.Session, validity: Validity) -> None:
        """Keep *session* under *key*, instead of the one that is there."""
        self._kept.pop(key, None)
        self._kept[key] = _Kept(session, validity)
        if len(self._kept) > _MAX_SESSIONS:
            self._kept.popitem(last=False)

    def validity(self, not_after: float) -> Validity:
        """Return how long a verification of now holds, of a chain that is valid to *not_after*."""
        return Validity(self._clock() + LIFETIME, not_after)


class Resumption:
    """The sessions that one connection of a client offers and keeps."""

    __slots__ = ("_key", "_offered", "_store", "_validity")

    def __init__(self, store: SessionStore, key: Hashable) -> None:
        """Use the sessions of *store* under *key*: all that a verification depends on."""
        self._store = store
        self._key = key
        self._offered = store.take(key)
        self._validity: Validity | None = None

    @property
    def offered(self) -> bool:
        """Whether the server is offered a session."""
        return self._offered is not None

    def offer(self, connection: SSL.Connection) -> None:
        """Offer the session that is kept, if there is one, in the handshake to come."""
        if self._offered is not None:
            connection.set_session(self._offered.session)

    def verified(self, not_after: float | None) -> None:
        """
        Note that the handshake is done, and the peer verified: what is to be kept relies on it.

        Args:
            not_after: When the first certificate of the verified chain expires, in seconds
                since 1970; `None` if the connection was resumed, and none was verified.
        """
        if not_after is not None:
            self._validity = self._store.validity(not_after)
        elif self._offered is not None:
            self._validity = self._offered.validity

    def keep(self, connection: SSL.Connection) -> None:
        """Keep the session of *connection*, which has ended well, if its peer was verified."""
        if self._validity is None:
            return
        session = connection.get_session()
        if session is not None:
            self._store.keep(self._key, session, self._validity)
