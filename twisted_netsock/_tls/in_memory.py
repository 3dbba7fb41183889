"""
TLS over any descriptor: OpenSSL works in memory, and takes what it needs from below.

`TLSInMemory` serves where OpenSSL cannot use the kernel's descriptor itself: over a
transport, by `twisted_netsock._io.adapter`, or over a descriptor that speaks TLS already.
"""

from __future__ import annotations

import socket as _socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from OpenSSL import SSL

from .._io.descriptor import Descriptor, PlainDescriptor
from .._io.poller import WANT_READ, WANT_WRITE, Want
from ..errors import SocketError, TLSHandshakeError, opened_before_fork, unraised
from .client import ClientContextFactory
from .descriptor import TLSDescriptor
from .openssl import TOO_LONG, MessageLimit, can_handshake_in_memory
from .server import ServerContextFactory

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from typing_extensions import Buffer

__all__ = ["TLSInMemory", "tls_over"]

_CHUNK: Final = 64 * 1024
"""Bytes that are moved at a time: four records of the largest size, one delivery of Twisted's."""

T = TypeVar("T")


def tls_over(
    descriptor: Descriptor,
    factory: ClientContextFactory | ServerContextFactory,
    protocols: Sequence[bytes] = (),
    place: str | int | None = None,
) -> TLSDescriptor:
    """Return TLS on *descriptor*, which the result owns: on the kernel's where it is one."""
    if isinstance(descriptor, PlainDescriptor):
        return TLSDescriptor(descriptor.sock, factory, protocols, place)
    return TLSInMemory(descriptor, factory, protocols)


class TLSInMemory(TLSDescriptor):
    """
    TLS whose records go through another descriptor, which this owns.

    Attributes:
        inner: The descriptor beneath.
    """

    __slots__ = ("_fed", "_inner_ended", "_inner_error", "_limit", "_outgoing", "inner")

    def __init__(
        self,
        inner: Any,
        factory: ClientContextFactory | ServerContextFactory,
        protocols: Sequence[bytes] = (),
    ) -> None:
        # Where OpenSSL is given no socket it works on memory.
        no_socket: Any = None
        super().__init__(no_socket, factory, protocols)
        self.sock = getattr(inner, "sock", inner)
        self.inner = inner
        self._fed = False
        """OpenSSL has not asked for more since it was given some: it may have whole records."""
        self._limit = None if self.is_client else MessageLimit(self.connection)
        self._outgoing = b""
        """Records that the descriptor beneath has not taken yet."""
        self._inner_ended = False
        self._inner_error: SocketError | None = None

    @property
    def buffered(self) -> bool:
        """Bytes, or an end that came with some, wait here, where the watch cannot see them."""
        return self._has_records or self.inner.buffered

    @property
    def _has_records(self) -> bool:
        """OpenSSL may have something for a receive without being fed."""
        if super().buffered:
            return True
        if self._fed and can_handshake_in_memory():
            # Otherwise each delivery costs a call that finds nothing, in the next reactor
            # iteration. With `_pump_data` and `_take_outgoing`, which avoid OpenSSL's
            # exceptions, 10,000 round trips take 0.58 s of processor time, and without 0.95.
            self._fed = self.connection.unread() > 0
        return self._fed

    # Moving records

    def _pump(self, attempt: Callable[[], T | Want]) -> T | Want:
        """Run *attempt*, and feed OpenSSL for as long as it wants to read and there is more."""
        while True:
            try:
                result = attempt()
            finally:
                self._pass_on()
            if result is not WANT_READ:
                return result
            self._fed = False
            want = self._pull()
            if want is not None:
                return want

    def _pump_data(self, attempt: Callable[[], T | Want]) -> T | Want:
        """Do as `_pump` for a receive, which is tried only when there is something to try."""
        if self.handshaken and not self.finished and not self._has_records:
            # OpenSSL would ask for it by an exception.
            want = self._pull()
            if want is not None:
                return want
        return self._pump(attempt)

    def _pull(self) -> Want | None:
        """Give OpenSSL what the descriptor beneath has received; nothing more is its end."""
        if self._inner_ended:
            return WANT_READ
        try:
            data: bytes | Want = self.inner.try_recv(_CHUNK)
        except SocketError as error:
            self._inner_error = unraised(error)
            data = b""
        if isinstance(data, Want):
            return data
        if not data:
            self._inner_ended = True
            self.connection.bio_shutdown()
            return None
        if self._limit is not None and not self.handshaken:
            self._limit.check(data)
        self.connection.bio_write(data)
        self._fed = True
        return None

    def _pass_on(self) -> None:
        """Hand what OpenSSL has made to the descriptor beneath, as far as that takes it."""
        while data := self._take_outgoing():
            self._outgoing = self._outgoing + data if self._outgoing else data
            self._send_outgoing()
        # After a failure nothing but its alert is sent, and nobody waits for that.
        self.unflushed = self._has_outgoing and self._failure is None

    @property
    def _has_outgoing(self) -> bool:
        return bool(self._outgoing) or self.inner.unflushed

    def _take_outgoing(self) -> bytes:
        if can_handshake_in_memory():
            return self.connection.take_outgoing()
        try:
            return self.connection.bio_read(_CHUNK)
        except SSL.Error:
            # There is nothing.
            return b""

    def _send_outgoing(self) -> Want | None:
        """Send what waits; an error of the descriptor beneath is kept for the next send."""
        view: bytes | memoryview = self._outgoing
        want: Want | None = None
        try:
            while view and want is None:
                count = self.inner.try_send(view)
                if isinstance(count, Want):
                    want = count
                else:
                    view = memoryview(view)[count:] if count < len(view) else b""
            if want is None:
                want = self.inner.try_flush()
        except SocketError as error:
            self._inner_error = unraised(error)
            view = b""
        self._outgoing = bytes(view)
        return want

    def _flush_outgoing(self) -> Want | None:
        """Send what waits before anything else; raise why it cannot be sent."""
        want = None
        if self._has_outgoing:
            want = self._send_outgoing()
            self.unflushed = self._has_outgoing
        self._check_inner()
        return want

    def _check_inner(self) -> None:
        """Fail as the descriptor beneath has failed."""
        if self._inner_error is not None and self._failure is None:
            self._lost = self._lost or self.unflushed
            raise self._fail(unraised(self._inner_error))

    # The methods of a descriptor

    def try_handshake(self) -> Want | None:
        """Continue the handshake; see `TLSDescriptor.try_handshake`."""
        if self._has_outgoing and self._failure is None:
            want = self._send_outgoing()
            if want is not None:
                return want
        try:
            result = self._pump(super().try_handshake)
        except TLSHandshakeError as error:
            if self._failure is None:
                # Of `MessageLimit`: OpenSSL was not given what is too long.
                self._outgoing += TOO_LONG
                self._send_outgoing()
                self._fail(error)
            raise
        # The peer cannot answer what it has not been sent.
        return WANT_WRITE if self._has_outgoing else result

    def try_recv(self, n: int, flags: int = 0) -> bytes | Want:
        """Return up to *n* bytes; see `TLSDescriptor.try_recv`."""
        receive = super().try_recv
        if not n:
            return receive(n, flags)
        return self._pump_data(lambda: receive(n, flags))

    def try_recv_into(self, view: memoryview | bytearray, flags: int = 0) -> int | Want:
        """Fill *view*; see `TLSDescriptor.try_recv_into`."""
        receive_into = super().try_recv_into
        if not len(view):
            return receive_into(view, flags)
        return self._pump_data(lambda: receive_into(view, flags))

    def try_readable(self) -> Want | None:
        """Return `None` if a receive has something to report; see `TLSDescriptor`."""
        return self._pump(super().try_readable)

    def try_send(self, view: Buffer, flags: int = 0) -> int | Want:
        """Take some of *view*; see `TLSDescriptor.try_send`."""
        want = self._flush_outgoing()
        if want is not None:
            return want
        try:
            result = super().try_send(view, flags)
        finally:
            self._pass_on()
        self._check_inner()
        return result

    def try_flush(self) -> Want | None:
        """Send the records that wait; see `TLSDescriptor.try_flush`."""
        return self._flush_outgoing() or super().try_flush()

    def try_shutdown(self, how: int) -> Want | None:
        """Shut down one direction or both; see `TLSDescriptor.try_shutdown`."""
        if how == _socket.SHUT_RD:
            return super().try_shutdown(how)
        want = self._flush_outgoing()
        if want is not None:
            return want
        try:
            want = super().try_shutdown(how)
        finally:
            self._pass_on()
        return want or (WANT_WRITE if self._has_outgoing else None)

    def try_tls_shutdown(self) -> Want | None:
        """Close in order; see `TLSDescriptor.try_tls_shutdown`."""
        if self._has_outgoing and self._failure is None:
            # Our close_notify, of an earlier call.
            want = self._flush_outgoing()
            if want is not None:
                return want
        return super().try_tls_shutdown()

    def _shut_down_below(self) -> None:
        # The close_notify has said it where the descriptor beneath cannot.
        if getattr(self.inner, "half_closes", False):
            self.inner.try_shutdown(_socket.SHUT_WR)

    def _close_below(self) -> None:
        self.inner.close()

    def reset_on_close(self) -> None:
        """Make `close` reset the connection beneath."""
        self.inner.reset_on_close()

    def check_reset(self) -> None:
        """Do nothing: OpenSSL's own sends do not fail."""

    def in_flight(self) -> int:
        """Return how many bytes the descriptor beneath has to send."""
        count: int = self.inner.in_flight()
        return count

    def close(self) -> None:
        """
        Close the descriptor beneath, in order as far as that can be.

        What a full buffer holds would have the time of its close once more; and nobody waits
        for what a handshake has sent that was given up.
        """
        given_up = self._failure is None and not self.handshaken
        if given_up or getattr(self.inner, "blocked", False):
            self.inner.reset_on_close()
        super().close()

    def gone(self) -> Deferred[None] | None:
        """Return what fires when the descriptor beneath is gone after its close."""
        gone: Deferred[None] | None = self.inner.gone()
        return gone

    def on_fork(self) -> None:
        """Become unusable; see `Descriptor`."""
        self.inner.on_fork()
        self.give_up(opened_before_fork())

    def _look_for_refusal(self) -> None:
        """Do nothing: a send into memory does not fail, and hides no alert."""

    # Errors

    def _broken(self, error: Exception) -> SocketError | None:
        """Return what broke the descriptor beneath, if *error* is the end that OpenSSL saw."""
        if isinstance(error, SSL.SysCallError) and self._inner_error is not None:
            return unraised(self._inner_error)
        return None

    def _handshake_error(self, error: Exception) -> SocketError:
        broken = self._broken(error)
        if broken is not None and self.connection.state.verification.failure is None:
            return broken
        return super()._handshake_error(error)

    def _data_error(self, error: Exception) -> SocketError:
        return self._broken(error) or super()._data_error(error)
