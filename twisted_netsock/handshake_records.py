"""
A client's handshake, record by record.

OpenSSL ignores a server's requests to renegotiate for as long as they come during
a handshake (RFC 5246, section 7.4.1.1), all in one call: on the descriptor itself
whoever sends them without end would hold up the reactor for ever. So a client
shakes hands in memory, is given a bounded number of records at a time and in all,
and goes over to the descriptor when it is done. Nothing is read beyond the last
record of the handshake.
"""

from __future__ import annotations

import socket as _socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from OpenSSL import SSL
from OpenSSL._util import lib

from .descriptors import WANT_READ, WANT_WRITE, Want
from .errors import SocketConnectionLostError, TLSHandshakeError

if TYPE_CHECKING:
    from .contexts import StatefulConnection

__all__ = ["HandshakeRecords", "can_carry_records"]

_HEADER: Final = 5
_VERSION: Final = 3
"""The first byte of a record's version, in every version of TLS."""

_LONGEST: Final = 2**14 + 2048
"""What OpenSSL takes for the length of a record (RFC 5246, section 6.2.3)."""

_AT_ONCE: Final = 64
"""Records between two turns of the reactor."""

_IN_ALL: Final = 256 * 1024
"""Bytes of one handshake: OpenSSL takes 100 KiB of certificates."""

_CHUNK: Final = 32768
"""Bytes looked at, or sent, in one call; more than the longest record."""


def can_carry_records() -> bool:
    """
    Tell whether pyOpenSSL has what this module takes of its inner parts.

    Where it has not, a handshake runs on the descriptor, without the bound.
    """
    return _HAS_PARTS


def _look_for_parts() -> bool:
    connection = SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)
    in_connection = all(hasattr(connection, name) for name in ("_ssl", "_into_ssl", "_from_ssl"))
    in_library = ("BIO_new", "BIO_s_mem", "SSL_set_bio", "SSL_set_fd")
    return in_connection and all(hasattr(lib, name) for name in in_library)


_HAS_PARTS: Final = _look_for_parts()


class HandshakeRecords:
    """Carries the records of one handshake between a descriptor and OpenSSL's memory."""

    __slots__ = ("_begun", "_connection", "_done", "_left", "_outgoing", "_part", "_sock")

    def __init__(self, connection: StatefulConnection, sock: _socket.socket) -> None:
        """Take *connection*, which has done nothing yet, off the descriptor of *sock*."""
        # pyOpenSSL chooses between memory and descriptor when a connection is made alone.
        owned: Any = connection
        owned._into_ssl = lib.BIO_new(lib.BIO_s_mem())
        owned._from_ssl = lib.BIO_new(lib.BIO_s_mem())
        lib.SSL_set_bio(owned._ssl, owned._into_ssl, owned._from_ssl)
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
        records = 0
        while self._flush():
            if self._done:
                self._return()
                return None
            given = self._take(_AT_ONCE - records)
            if not given:
                return WANT_READ
            records += given
        return WANT_WRITE

    def _step(self) -> None:
        """Have OpenSSL go on with what it was given."""
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            return
        except SSL.Error:
            with suppress(OSError):
                # The alert that tells the peer why.
                self._flush()
            raise
        self._done = True

    def _return(self) -> None:
        """Put the connection on the descriptor."""
        owned: Any = self._connection
        # This frees the memory.
        lib.SSL_set_fd(owned._ssl, self._sock.fileno())
        owned._into_ssl = owned._from_ssl = None

    def _flush(self) -> bool:
        """Send what OpenSSL has written; return whether the kernel has all of it."""
        while True:
            if not self._outgoing:
                try:
                    self._outgoing = self._connection.bio_read(_CHUNK)
                except SSL.WantReadError:
                    return True
            try:
                sent = self._sock.send(self._outgoing)
            except BlockingIOError:
                return False
            self._outgoing = self._outgoing[sent:]

    def _take(self, most: int) -> int:
        """
        Give OpenSSL up to *most* of the records that are there, and return how many.

        One after the other, until the handshake is done: they are looked at in the
        kernel, and only those that were given are taken from there, and the part of
        one that is still to come.
        """
        try:
            seen = self._sock.recv(_CHUNK, _socket.MSG_PEEK)
        except BlockingIOError:
            return 0
        if not seen:
            raise SocketConnectionLostError(
                strerror="The peer closed the connection during the TLS handshake"
            )
        before = len(self._part)
        data = self._part + seen if before else seen
        records = used = 0
        whole = True
        try:
            while records < most and not self._done:
                end = used + _record_size(data, used)
                whole = end <= len(data)
                if not whole:
                    break
                records += 1
                begin, used = used, end
                self._connection.bio_write(data[begin:end])
                self._step()
        finally:
            self._part = b"" if whole else data[used:]
            self._consume(used - before if whole else len(seen))
        return records

    def _consume(self, count: int) -> None:
        """Take *count* bytes, which are there, from the kernel."""
        self._left -= count
        if self._left < 0:
            raise TLSHandshakeError(reason=f"the peer sent more than {_IN_ALL} bytes")
        while count > 0:
            count -= len(self._sock.recv(count))


def _record_size(data: bytes, begin: int) -> int:
    """Return the size of the record that begins there, at least as far as one can see."""
    if len(data) - begin < _HEADER:
        return _HEADER
    length = int.from_bytes(data[begin + 3 : begin + _HEADER], "big")
    # OpenSSL refuses any other header without the rest.
    fits = data[begin + 1] == _VERSION and length <= _LONGEST
    return _HEADER + length if fits else _HEADER
