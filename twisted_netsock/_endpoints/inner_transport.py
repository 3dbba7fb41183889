"""
A TLS transport over a transport that is no descriptor of ours.

`twisted_netsock._io.adapter` makes a descriptor of that, and
`twisted_netsock._tls.in_memory` speaks TLS over it; so handshake, TLS shutdown, limits and
errors are those of `twisted_netsock._tls.descriptor` and of `TLSTransport`.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import ITCPTransport
from twisted.python.failure import Failure

from .._io.adapter import TransportDescriptor
from .._tls.in_memory import TLSInMemory
from ..errors import SocketWriteTimeoutError
from .transport import TLSTransport

__all__ = ["TLSOverTransport"]


class TLSOverTransport(TLSTransport):
    """A `TLSTransport` over another transport."""

    _ending: Failure | None = None

    @property
    def _inner(self) -> TransportDescriptor:
        assert isinstance(self._descriptor, TLSInMemory)
        inner: TransportDescriptor = self._descriptor.inner
        return inner

    def _lose(self, reason: Failure) -> None:
        """Lose the connection, once the inner transport has ended."""
        if self._inner.lost is not None:
            super()._lose(self._ending or reason)
        elif self._ending is None:
            self._begin_to_end(reason)
            if reason.check(SocketWriteTimeoutError) is None and not self._inner.blocked:
                self._inner.close()
            else:
                # What it has been given does not go, and would have its time once more.
                self._inner.reset()

    def _begin_to_end(self, reason: Failure) -> None:
        self._ending = reason
        self._aborting = self.disconnecting = True
        self._watch.stop_receive()
        self._watch.stop_send()
        for timer in (self._read_timer, self._write_timer):
            if timer is not None and timer.active():
                timer.cancel()
        self._read_timer = self._write_timer = None

    def inner_ended(self) -> None:
        """Handle the end of the inner transport, which the watch has reported."""
        if self.disconnected:
            return
        broken = self._inner.lost is not None and self._inner.lost.check(ConnectionDone) is None
        if self._ending is not None:
            self._lose(self._ending)
        elif self._shutdown is not None or (self._reads and self._watch.receive is not None):
            # What it waits for reports the end; that may take several reports.
            self._inner.watch.report_all()
        elif self._read_closed or broken:
            self._lose(Failure(self._inner.loss()))

    def abortConnection(self) -> None:
        """Close at once and reset the connection; may be called again, and after loss."""
        if self.disconnected:
            return
        if self._ending is None:
            self._begin_to_end(Failure(ConnectionAborted()))
        if self._shutdown is not None:
            self._shutdown.cancel()
        self._inner.reset()

    def _tcp(self) -> Any:
        """Return the inner transport, if it is TCP and stands."""
        transport = self._inner.transport
        # Twisted's transports on UNIX sockets say that they are TCP, too.
        is_tcp = ITCPTransport.providedBy(transport) and hasattr(self._host, "port")
        return transport if is_tcp and self._inner.lost is None else None

    def getTcpNoDelay(self) -> bool:
        """Return whether small writes are sent at once; `False` where it is not TCP."""
        tcp = self._tcp()
        return tcp is not None and bool(tcp.getTcpNoDelay())

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Send small writes at once, or gather them; nothing where it is not TCP."""
        tcp = self._tcp()
        if tcp is not None:
            tcp.setTcpNoDelay(enabled)

    def getTcpKeepAlive(self) -> bool:
        """Return whether the kernel probes an idle connection; `False` where it is not TCP."""
        tcp = self._tcp()
        return tcp is not None and bool(tcp.getTcpKeepAlive())

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Have the kernel probe an idle connection, or not; nothing where it is not TCP."""
        tcp = self._tcp()
        if tcp is not None:
            tcp.setTcpKeepAlive(enabled)
