"""
The relay's short way: two plain descriptors, and nothing between them.

What arrives on one goes to the other in the same call, out of one buffer for
all; only what the kernel does not take is copied, and nothing more is read
until that is gone. Where TLS, another's endpoint or the limits of a transport
come in, `twisted_netsock.commands.relaying` does the same with transports.
"""

from __future__ import annotations

from collections.abc import Callable
from socket import SHUT_WR
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted

from ..addresses import SocketAddress
from ..client_endpoints import ClientEndpoint
from ..descriptors import from_os_error, set_linger_reset
from ..proxy_headers import ProxyHeader
from ..racing import Established
from ..transports import SCRATCH
from .accounting import Session
from .dialing import Client, Relay

__all__ = ["EARLY_LIMIT", "ClientLink", "Link"]

EARLY_LIMIT: Final = 64 * 1024
"""Bytes of a client that wait for its backend to be connected."""


class Link:
    """
    One of the two connections: passes on to the other what arrives.

    It reads only while nothing waits to be sent on the other one.

    Attributes:
        count: Bytes that have arrived.
        ended: The peer has finished sending.
        lost: The connection is gone.
        other: The other one.
        session: The account.
    """

    def __init__(
        self, sides: set[Any], established: Established, session: Session | None = None
    ) -> None:
        descriptor, watch = established
        self.count = 0
        self.ended = False
        self.lost = False
        self.other: Any = None
        self.session = session
        self._send = descriptor.sock.send
        self._receive_into = descriptor.sock.recv_into
        self._descriptor = descriptor
        self._watch = watch
        self._sides = sides
        self._queue: bytes | memoryview = b""
        self._finishing = False
        self._finished = False
        watch.owner = self
        watch.keep()
        sides.add(self)

    def resume(self) -> None:
        """Read, unless the peer has finished."""
        if not self.ended:
            self._watch.want_read()

    def pause(self) -> None:
        """Read nothing until `resume`."""
        self._watch.stop_read()

    def on_readable(self) -> None:
        """Receive, and pass it on; for the poller."""
        try:
            count = self._receive_into(SCRATCH)
        except BlockingIOError:
            return
        except OSError as error:
            self.lose(from_os_error(error))
            return
        if not count:
            self._end()
            return
        self.count += count
        self.other.pass_on(SCRATCH[:count])

    def pass_on(self, data: memoryview) -> None:
        """Send *data*; what the kernel does not take is copied, and pauses the other one."""
        try:
            sent = self._send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.lose(from_os_error(error))
            return
        if sent < len(data):
            self._queue = bytes(data[sent:])
            self.other.pause()
            self._watch.want_write()

    def _end(self) -> None:
        """Pass the end of the stream on, and go on with the other direction."""
        self.ended = True
        self._watch.stop_read()
        self.other.finish()
        if self._finished and not self.lost:
            self.lose(None)

    def on_writable(self) -> None:
        """Send what waits; for the poller."""
        try:
            sent = self._send(self._queue)
        except BlockingIOError:
            return
        except OSError as error:
            self.lose(from_os_error(error))
            return
        if sent < len(self._queue):
            self._queue = memoryview(self._queue)[sent:]
            return
        self._queue = b""
        self._watch.stop_write()
        if self._finishing:
            self.finish()
        else:
            self.other.resume()

    def finish(self) -> None:
        """Send no more when everything is sent; the connection ends if its peer has, too."""
        if self._queue:
            self._finishing = True
            return
        self._finished = True
        if self.ended:
            # The close says it.
            self.lose(None)
            return
        try:
            self._descriptor.try_shutdown(SHUT_WR)
        except OSError as error:
            self.lose(error)

    def let_go(self) -> None:
        """Close the connection when everything is sent: the other one is gone."""
        self.ended = True
        self._watch.stop_read()
        self.finish()

    def on_poller_lost(self, reason: Exception) -> None:
        """Lose the connection: the reactor shuts down; for the poller."""
        self.lose(reason)

    def abort(self) -> None:
        """End the connection at once, by a reset, and with it the other one."""
        if not self.lost:
            set_linger_reset(self._descriptor.sock)
            self.lose(ConnectionAborted())

    def lose(self, error: Exception | None) -> None:
        """
        Close the connection.

        Args:
            error: Why, and then the other one is reset: a stream that was cut off must
                not look complete. One that was complete arrives. `None` after both
                directions have ended.
        """
        if self.lost:
            return
        self.lost = True
        self._watch.close()
        self._descriptor.close()
        self._queue = b""
        self._sides.discard(self)
        other, self.other = self.other, None
        session, self.session = self.session, None
        if session is not None:
            session.lost(self, error)
        if error is None or other is None:
            return
        if self.ended:
            other.let_go()
        else:
            other.abort()


class _Early:
    """Stands for the other connection until there is one, and keeps what is to go there."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._size = 0
        self.pieces: list[bytes] = []

    def pass_on(self, data: memoryview) -> None:
        """Keep *data*, within bounds: reading tells when the client goes away."""
        self.pieces.append(bytes(data))
        self._size += len(data)
        if self._size >= EARLY_LIMIT:
            self._link.pause()

    def finish(self) -> None:
        """Do nothing: the link itself remembers."""

    def let_go(self) -> None:
        """Do nothing: what was kept goes with the link."""

    def abort(self) -> None:
        """Do nothing: there is no connection."""


class ClientLink(Link, Client):
    """The connection of a client, whose first words wait until a backend is connected."""

    def __init__(
        self,
        relay: Relay,
        established: Established,
        header: ProxyHeader | None,
        gone: Callable[[], None],
    ) -> None:
        """
        Take *established* over.

        Args:
            relay: What it is part of.
            established: The connection.
            header: The PROXY header that it began with.
            gone: Called when it is lost.
        """
        super().__init__(relay.sides, established)
        self._relay = relay
        self._header = header
        self._gone = gone
        self.other = _Early(self)

    def begin(self, client: SocketAddress, listener: SocketAddress) -> None:
        """Connect a backend for the client at this address."""
        self.enter(client, listener)
        if self._connecting is not None:
            self.resume()

    def dial(self, backend: Any, session: Session) -> Deferred[Any]:
        """Connect to *backend*, an endpoint of ours."""
        endpoint: ClientEndpoint = backend
        return endpoint.establish()

    def reached(self, back: Any, session: Session) -> None:
        """Join this connection with that of the backend, and its address."""
        established, address = back
        early: _Early = self.other
        self.other = link = Link(self._sides, established, session)
        link.other = self
        session.joined(link, address)
        link.resume()
        self.resume()
        if early.pieces:
            link.pass_on(memoryview(b"".join(early.pieces)))
        if self.ended and not self.lost:
            link.finish()

    def lose(self, error: Exception | None) -> None:
        """Close the connection; see `Link.lose`."""
        session = self.session
        if self.lost or session is None:
            return
        super().lose(error)
        self.leave(session)
        self._gone()
