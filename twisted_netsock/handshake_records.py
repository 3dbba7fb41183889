"""
A client's handshake, record by record.

OpenSSL ignores a server's requests to renegotiate for as long as they come during
a handshake (RFC 5246, section 7.4.1.1), all in one call: on the descriptor itself
whoever sends them without end would hold up the reactor for ever. So a client
shakes hands in memory, is given a bounded number of records at a time and in all,
and goes over to the descriptor when it is done. Nothing is taken from the kernel beyond
the last record of the handshake.
"""

from __future__ import annotations

import socket as _socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from OpenSSL import SSL

from .descriptors import WANT_READ, WANT_WRITE, Want
from .errors import SocketConnectionLostError, TLSHandshakeError

if TYPE_CHECKING:
    from .connections import Connection

__all__ = ["HandshakeRecords"]

_HEADER: Final = 5
_VERSION: Final = 3
"""The first byte of a record's version, in every version of TLS."""

_LONGEST: Final = 2**14 + 2048
"""What OpenSSL takes for the length of a record (RFC 5246, section 6.2.3)."""

_AT_ONCE: Final = 32
"""Records between two turns of the reactor."""

_IN_ALL: Final = 256 * 1024
"""Bytes of one handshake: OpenSSL takes 100 KiB of certificates."""

_CHUNK: Final = 32768
"""Bytes looked at, or sent, in one call; more than the longest record."""


class HandshakeRecords:
    """Carries the records of one handshake between a descriptor and OpenSSL's memory."""

    __slots__ = ("_begun", "_connection", "_done", "_left", "_outgoing", "_part", "_sock")

    def __init__(self, connection: Connection, sock: _socket.socket) -> None:
        """Shake hands on *sock* with *connection*, which is in memory and new."""
        self._connection = connection
        self._sock = sock
        self._begun = False
        self._done = False
        self._part = b""
        """The beginning of a record whose rest has not come."""
        self._outgoing = b""
        self._left = _IN_ALL

    def carry_on(self) -> Want | None:
        """
        Carry the handshake on; `None` when it is done, and OpenSSL on the descriptor.

        Raises:
            SSL.Error: The handshake failed.
            OSError: The descriptor failed, or the stream has ended.
            TLSHandshakeError: The peer sends without end.
        """
        if not self._begun:
            self._begun = True
            self._step()
        # Within one machine the answer is here when the question is sent.
        if self._flush() and not self._done:
            self._take()
        if not self._flush():
            return WANT_WRITE
        if not self._done:
            return WANT_READ
        self._connection.move_to_descriptor(self._sock)
        return None

    def _step(self) -> None:
        """Have OpenSSL go on with what it was given."""
        try:
            self._done = self._connection.shake_hands()
        except SSL.Error:
            self._outgoing += self._connection.take_written()
            with suppress(OSError):
                # The alert that tells the peer why.
                self._flush()
            raise
        self._outgoing += self._connection.take_written()

    def _flush(self) -> bool:
        """Send what was written; return whether the kernel has all of it."""
        while self._outgoing:
            try:
                sent = self._sock.send(self._outgoing)
            except BlockingIOError:
                return False
            self._outgoing = self._outgoing[sent:]
        return True

    def _take(self) -> None:
        """
        Give OpenSSL the records that are there.

        They are looked at in the kernel, and what OpenSSL has not read when the
        handshake is done stays there.
        """
        try:
            seen = self._sock.recv(_CHUNK, _socket.MSG_PEEK)
        except BlockingIOError:
            return
        if not seen:
            raise SocketConnectionLostError(
                strerror="The peer closed the connection during the TLS handshake"
            )
        before = len(self._part)
        data = self._part + seen
        used = _whole_records(data)
        if not used:
            # Taken all the same, or the poller would report it again and again.
            self._part = data
            self._consume(len(seen))
            return
        self._part = b""
        self._connection.give(data[:used])
        try:
            self._step()
        finally:
            self._consume(used - before - (self._connection.unread() if self._done else 0))

    def _consume(self, count: int) -> None:
        """Take *count* bytes, which are there, from the kernel."""
        self._left -= count
        if self._left < 0:
            raise TLSHandshakeError(reason=f"the peer sent more than {_IN_ALL} bytes")
        while count > 0 and (taken := len(self._sock.recv(count))):
            count -= taken


def _whole_records(data: bytes) -> int:
    """Return where the last whole record ends, of as many as may be handed over at once."""
    size, end = len(data), 0
    for _ in range(_AT_ONCE):
        following = end + _HEADER
        if following > size:
            break
        length = data[end + 3] << 8 | data[end + 4]
        # OpenSSL refuses any other header without the rest.
        if data[end + 1] == _VERSION and length <= _LONGEST:
            following += length
        if following > size:
            break
        end = following
    return end
