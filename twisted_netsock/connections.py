"""
OpenSSL's connection, as this package drives it.

pyOpenSSL's own has no way to send several records, or to receive into somebody's
buffer, without a detour of several calls and a copy for each; nor to change what it
reads from. So this module, and no other, takes some of its inner parts. Each is
looked for when this is imported. Where a release of pyOpenSSL has it no more, the
public way serves: slower, or without a bound, as each method says.
"""

from __future__ import annotations

import socket as _socket
from typing import TYPE_CHECKING, Any, Final

from OpenSSL import SSL
from OpenSSL._util import ffi, lib

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["RECORD", "Connection", "can_move", "can_pass_through", "forget_errors"]

RECORD: Final = 16384
"""The most plaintext that one TLS record carries (RFC 8446, section 5.1)."""


def _has(library: tuple[str, ...], connection: tuple[str, ...]) -> bool:
    made = SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)
    return all(hasattr(lib, name) for name in library) and all(
        hasattr(made, name) for name in connection
    )


_CAN_MOVE: Final = _has(
    ("BIO_get_mem_data", "BIO_new", "BIO_s_mem", "SSL_set_bio", "SSL_set_fd"),
    ("_ssl", "_into_ssl", "_from_ssl"),
)
_CAN_PASS_THROUGH: Final = _has(("SSL_read", "SSL_write"), ("_ssl", "_raise_ssl_error"))

_rooms: list[Any] = []
"""Room for a record each, lent to one call at a time: `list.pop` is safe among threads."""


def can_move() -> bool:
    """Tell whether a connection can change between descriptor and memory."""
    return _CAN_MOVE


def can_pass_through() -> bool:
    """Tell whether data passes between OpenSSL and buffers without a detour."""
    return _CAN_PASS_THROUGH


def forget_errors() -> None:
    """
    Empty this thread's queue of errors, after a connection has failed.

    pyOpenSSL leaves an error of the system there, and OpenSSL before version 4 takes
    it for that of whichever connection comes next.
    """
    if hasattr(lib, "ERR_clear_error"):
        lib.ERR_clear_error()


class Connection(SSL.Connection):
    """
    A connection on a descriptor or, without one, on memory buffers.

    On a descriptor a read returns after each message of TLS itself (new keys, a
    ticket): left alone OpenSSL goes on as long as a peer sends such, and the
    reactor stands still. On memory buffers Twisted relies on its going on.
    """

    def __init__(self, context: SSL.Context, sock: _socket.socket | None) -> None:
        super().__init__(context, sock)
        if sock is not None and hasattr(lib, "SSL_clear_mode"):
            # pyOpenSSL has this for contexts only.
            inner: Any = self
            lib.SSL_clear_mode(inner._ssl, lib.SSL_MODE_AUTO_RETRY)

    # Data

    def receive(self, n: int) -> bytes:
        """
        Return up to *n* bytes, of one record.

        Raises:
            SSL.Error: Or one of its kin, as `SSL.Connection.recv`.
        """
        n = min(n, RECORD)
        if not _CAN_PASS_THROUGH:
            return self.recv(n)
        inner: Any = self
        try:
            room = _rooms.pop()
        except IndexError:
            room = ffi.new("char[]", RECORD)
        try:
            count = lib.SSL_read(inner._ssl, room, n)
            if count <= 0:
                inner._raise_ssl_error(inner._ssl, count)
            data: bytes = ffi.unpack(room, count)
        finally:
            _rooms.append(room)
        return data

    def receive_into(self, view: memoryview) -> int:
        """
        Fill *view*, which has room, from its start with up to one record; return the count.

        Raises:
            SSL.Error: Or one of its kin, as `SSL.Connection.recv_into`.
        """
        if not _CAN_PASS_THROUGH:
            return self.recv_into(view, min(len(view), RECORD))
        inner: Any = self
        with ffi.from_buffer(view, require_writable=True) as room:
            count: int = lib.SSL_read(inner._ssl, room, min(len(view), RECORD))
            if count <= 0:
                inner._raise_ssl_error(inner._ssl, count)
        return count

    def send_records(self, data: Buffer, size: int) -> int:
        """
        Send the *size* bytes of *data*, record by record; return how many went.

        If that is less, the next record has to wait for the descriptor. OpenSSL then
        insists on being given it again, of the same bytes.

        Raises:
            SSL.Error: The connection has failed.
        """
        done = 0
        try:
            if not _CAN_PASS_THROUGH:
                view = memoryview(data)
                while done < size:
                    done += self.send(view[done : done + RECORD])
                return done
            inner: Any = self
            with ffi.from_buffer(data) as room:
                while done < size:
                    count = lib.SSL_write(inner._ssl, room + done, min(size - done, RECORD))
                    if count <= 0:
                        inner._raise_ssl_error(inner._ssl, count)
                    done += count
        except (SSL.WantReadError, SSL.WantWriteError):
            pass
        return done

    # What it reads from and writes to

    def move_to_memory(self) -> None:
        """Leave the descriptor for memory buffers; only where `can_move` tells so."""
        # pyOpenSSL chooses between the two when a connection is made, and then only.
        inner: Any = self
        inner._into_ssl = lib.BIO_new(lib.BIO_s_mem())
        inner._from_ssl = lib.BIO_new(lib.BIO_s_mem())
        lib.SSL_set_bio(inner._ssl, inner._into_ssl, inner._from_ssl)

    def unread(self) -> int:
        """Return how many bytes of the memory OpenSSL has not read."""
        inner: Any = self
        return int(lib.BIO_get_mem_data(inner._into_ssl, ffi.new("char **")))

    def move_to_descriptor(self, number: int) -> None:
        """Leave the memory buffers, and what is in them, for a descriptor."""
        inner: Any = self
        # This frees the memory.
        lib.SSL_set_fd(inner._ssl, number)
        inner._into_ssl = inner._from_ssl = None
