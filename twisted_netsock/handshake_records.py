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

_CHUNK: Final = 65536


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

    __slots__ = ("_connection", "_incoming", "_left", "_outgoing", "_sock")

    def __init__(self, connection: StatefulConnection, sock: _socket.socket) -> None:
        """Take *connection*, which has done nothing yet, off the descriptor of *sock*."""
        # pyOpenSSL chooses between memory and descriptor when a connection is made alone.
        owned: Any = connection
        owned._into_ssl = lib.BIO_new(lib.BIO_s_mem())
        owned._from_ssl = lib.BIO_new(lib.BIO_s_mem())
        lib.SSL_set_bio(owned._ssl, owned._into_ssl, owned._from_ssl)
        self._connection = connection
        self._sock = sock
        self._incoming = bytearray()
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
        for taken in range(_AT_ONCE + 1):
            try:
                self._connection.do_handshake()
            except SSL.WantReadError:
                done = False
            except SSL.Error:
                with suppress(OSError):
                    # The alert that tells the peer why.
                    self._flush()
                raise
            else:
                done = True
            if not self._flush():
                return WANT_WRITE
            if done:
                self._return()
                return None
            if taken == _AT_ONCE or not self._take():
                break
        return WANT_READ

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

    def _take(self) -> bool:
        """Give OpenSSL the next record; return whether all of it was there."""
        incoming = self._incoming
        while (missing := self._missing()) > 0:
            try:
                piece = self._sock.recv(missing)
            except BlockingIOError:
                return False
            if not piece:
                raise SocketConnectionLostError(
                    strerror="The peer closed the connection during the TLS handshake"
                )
            incoming += piece
        self._left -= len(incoming)
        if self._left < 0:
            raise TLSHandshakeError(reason=f"the peer sent more than {_IN_ALL} bytes")
        self._connection.bio_write(bytes(incoming))
        incoming.clear()
        return True

    def _missing(self) -> int:
        """Return how many bytes at least the record still lacks."""
        incoming = self._incoming
        size = _HEADER
        if len(incoming) >= _HEADER:
            length = int.from_bytes(incoming[3:5], "big")
            # OpenSSL refuses any other header without the rest.
            if incoming[1] == _VERSION and length <= _LONGEST:
                size += length
        return size - len(incoming)
