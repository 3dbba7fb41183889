"""
A handshake, record by record, so that a stranger cannot make it take much time or memory.

OpenSSL ignores a server's requests to renegotiate for as long as they come during
a handshake (RFC 5246, section 7.4.1.1), all in one call: on the descriptor itself
a server that sends them without end would hold up the reactor for ever. And it makes
room for a whole message as soon as its length has come, up to 128 KiB for the hello of
a client that then sends nothing more. So both sides shake hands in memory: OpenSSL is
given a bounded number of records at a time and in all, a server's none that begins too
long a message, and goes over to the descriptor when it is done. Nothing is taken from
the kernel beyond the last record of the handshake.
"""

from __future__ import annotations

import socket as _socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from OpenSSL import SSL

from .._io.fairness import HANDSHAKE_RECORDS
from .._io.poller import WANT_READ, WANT_WRITE, Want
from ..errors import SocketConnectionLostError, TLSHandshakeError

if TYPE_CHECKING:
    from .openssl import Connection

__all__ = ["TOO_LONG", "HandshakeRecords", "MessageLimit"]

_HEADER: Final = 5
_VERSION: Final = 3
"""The first byte of a record's version, in every version of TLS."""

_LONGEST: Final = 2**14 + 2048
"""What OpenSSL takes for the length of a record (RFC 5246, section 6.2.3)."""

_IN_ALL: Final = 256 * 1024
"""Bytes of one handshake: OpenSSL takes 100 KiB of certificates."""

_CHUNK: Final = 20480
"""Bytes looked at in one call: OpenSSL's memory keeps room for so many. More than a record."""

_CHANGE_CIPHER_SPEC: Final = 20
_HANDSHAKE: Final = 22
_MESSAGE_HEADER: Final = 4

_LONGEST_MESSAGE: Final = 32 * 1024
"""
What a client sends in plain text: a hello of some hundred bytes, with post-quantum keys and
tickets a few thousand, and with TLS 1.2 its certificates, of some 2 KiB each.
"""

TOO_LONG: Final = b"\x15\x03\x03\x00\x02\x02\x2f"
"""A fatal alert, illegal_parameter, as OpenSSL sends of messages that are too long for it."""


class MessageLimit:
    """
    Looks at what a client sends in plain text for handshake messages that are too long.

    Those of TLS 1.3 that are encrypted have OpenSSL's own limit, 100 KiB for certificates.
    """

    __slots__ = (
        "_connection",
        "_encrypted",
        "_is_plain",
        "_message_header",
        "_message_left",
        "_record_header",
        "_record_left",
    )

    def __init__(self, connection: Connection) -> None:
        """Look at what *connection*, of a server, is going to be given."""
        self._connection = connection
        self._encrypted = False
        """The client has changed to its keys, or pretends to for the sake of middleboxes."""
        self._record_header = b""
        self._record_left = 0
        self._is_plain = False
        """The record that goes on has messages in plain text."""
        self._message_header = b""
        self._message_left = 0

    def check(self, data: bytes) -> None:
        """
        Look at the next *data* of the stream.

        Raises:
            TLSHandshakeError: A message begins in it that is too long.
        """
        while data:
            if self._record_left:
                part, data = data[: self._record_left], data[self._record_left :]
                self._record_left -= len(part)
                if self._is_plain:
                    self._check_messages(part)
                continue
            missing = _HEADER - len(self._record_header)
            self._record_header += data[:missing]
            data = data[missing:]
            if len(self._record_header) == _HEADER:
                self._begin_record(self._record_header)
                self._record_header = b""

    def _begin_record(self, header: bytes) -> None:
        self._record_left = header[3] << 8 | header[4]
        if header[0] == _CHANGE_CIPHER_SPEC:
            self._encrypted = True
        # With TLS 1.3 records that are encrypted are of another type; what comes behind a
        # change_cipher_spec in this one is the hello that follows a HelloRetryRequest.
        self._is_plain = header[0] == _HANDSHAKE and (
            not self._encrypted or self._connection.get_protocol_version() == SSL.TLS1_3_VERSION
        )

    def _check_messages(self, data: bytes) -> None:
        while data:
            if self._message_left:
                part, data = data[: self._message_left], data[self._message_left :]
                self._message_left -= len(part)
                continue
            missing = _MESSAGE_HEADER - len(self._message_header)
            self._message_header += data[:missing]
            data = data[missing:]
            if len(self._message_header) == _MESSAGE_HEADER:
                size = int.from_bytes(self._message_header[1:])
                if size > _LONGEST_MESSAGE:
                    raise TLSHandshakeError(
                        reason=f"the client begins a handshake message of {size} bytes, "
                        f"more than {_LONGEST_MESSAGE}"
                    )
                self._message_left = size
                self._message_header = b""


class HandshakeRecords:
    """Carries the records of one handshake between a descriptor and OpenSSL's memory."""

    __slots__ = (
        "_begun",
        "_connection",
        "_done",
        "_left",
        "_limit",
        "_outgoing",
        "_part",
        "_sock",
    )

    def __init__(self, connection: Connection, sock: _socket.socket, *, is_client: bool) -> None:
        """Shake hands on *sock* with *connection*, which is in memory and new."""
        self._connection = connection
        self._sock = sock
        # A server has nothing to say first: OpenSSL takes no memory before a client speaks.
        self._begun = not is_client
        self._limit = None if is_client else MessageLimit(connection)
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
            except (BrokenPipeError, ConnectionResetError):
                if not self._only_tickets:
                    raise
                self._outgoing = b""
                return True
            self._outgoing = self._outgoing[sent:]
        return True

    @property
    def _only_tickets(self) -> bool:
        """
        Whether what is to be sent are the session tickets behind a handshake with TLS 1.3.

        A client that has gone does not need them, and what it sent before it went is still
        to be received. OpenSSL ignores the error, too, where it sends them by itself.
        """
        connection = self._connection
        return (
            self._done
            and self._limit is not None
            and connection.get_protocol_version() == SSL.TLS1_3_VERSION
        )

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
        whole = data[:used]
        if self._limit is not None:
            try:
                self._limit.check(whole)
            except TLSHandshakeError:
                self._outgoing += TOO_LONG
                with suppress(OSError):
                    self._flush()
                raise
        self._connection.give(whole)
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
    for _ in range(HANDSHAKE_RECORDS):
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
