"""
OpenSSL's connection, as this package drives it.

pyOpenSSL's own has no way to send several records, or to receive into somebody's
buffer, without a detour of several calls and a copy for each; nor to change what it
reads from. So this module, and no other, takes some of its inner parts. Each is
looked for when this is imported. Where a release of pyOpenSSL has it no more, the
public way serves: slower, or without a bound, which `report_missing` says then.
"""

from __future__ import annotations

import os
import socket as _socket
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from OpenSSL import SSL
from twisted.logger import Logger

try:
    from OpenSSL._util import ffi, lib
except ImportError:
    # Then nothing of it is found by `_has`.
    ffi = lib = None

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "RECORD",
    "Connection",
    "can_move",
    "can_pass_through",
    "default_places",
    "forget_errors",
    "report_missing",
]

RECORD: Final = 16384
"""The most plaintext that one TLS record carries (RFC 8446, section 5.1)."""


_log = Logger()


def _has(library: tuple[str, ...], connection: tuple[str, ...] = ()) -> bool:
    made = SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)
    return (
        ffi is not None
        and all(hasattr(lib, name) for name in library)
        and all(hasattr(made, name) for name in connection)
    )


_CAN_MOVE: Final = _has(
    (
        "BIO_get_mem_data",
        "BIO_read",
        "BIO_write",
        "SSL_ERROR_WANT_READ",
        "SSL_do_handshake",
        "SSL_get_error",
        "SSL_set_fd",
    ),
    ("_ssl", "_socket", "_into_ssl", "_from_ssl", "_raise_ssl_error"),
)
_CAN_PASS_THROUGH: Final = _has(("SSL_read", "SSL_write"), ("_ssl", "_raise_ssl_error"))
_CAN_RETURN: Final = _has(("SSL_clear_mode", "SSL_MODE_AUTO_RETRY"), ("_ssl",))
_KNOWS_PLACES: Final = _has(("X509_get_default_cert_file", "X509_get_default_cert_dir"))
_CAN_CLEAR_ERRORS: Final = _has(("ERR_clear_error",))

_empty = SSL.Context(SSL.TLS_METHOD)
"""Has no key, and so nothing to check."""
_reported = False

_rooms: list[Any] = []
"""Room for a record each, lent to one call at a time: `list.pop` is safe among threads."""


def can_move() -> bool:
    """Tell whether a connection that begins in memory can move to a descriptor."""
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
    if _CAN_CLEAR_ERRORS:
        lib.ERR_clear_error()
        return
    with suppress(Exception):
        # It has none, and what this raises is made of all that is in the queue.
        _empty.check_privatekey()


def report_missing() -> None:
    """Log, once, which bounds do not hold with this pyOpenSSL."""
    global _reported  # noqa: PLW0603 - once in a process
    missing = []
    if not _CAN_MOVE:
        missing.append(
            "on handshakes: before a peer is verified it can make this process hold 160 KiB, or "
            "as a server hold up the reactor by requests to renegotiate"
        )
    if not _CAN_RETURN:
        missing.append("on new keys: a peer that sends them without end can hold up the reactor")
    if missing and not _reported:
        _log.warn(
            "this release of pyOpenSSL lacks inner parts that twisted_netsock uses; there is no "
            "bound {missing}. Everything else works",
            missing="; and none ".join(missing),
        )
    _reported = True


def default_places() -> list[str]:
    """Return the file and the directories that OpenSSL takes the platform's authorities from."""
    places = ssl.get_default_verify_paths()
    file, directory = places.openssl_cafile, places.openssl_capath
    if _KNOWS_PLACES:
        # Python's OpenSSL may be another one, with other places.
        file = os.fsdecode(ffi.string(lib.X509_get_default_cert_file()))
        directory = os.fsdecode(ffi.string(lib.X509_get_default_cert_dir()))
    file = os.environ.get("SSL_CERT_FILE", file)
    directories = os.environ.get("SSL_CERT_DIR", directory).split(os.pathsep)
    return [place for place in (file, *directories) if place]


class Connection(SSL.Connection):
    """
    A connection on a descriptor or, without one, on memory buffers.

    On a descriptor a read returns after each message of TLS itself (new keys, a
    ticket): left alone OpenSSL goes on as long as a peer sends such, and the
    reactor stands still. On memory buffers Twisted relies on its going on.
    """

    def __init__(self, context: SSL.Context, sock: _socket.socket | None) -> None:
        super().__init__(context, sock)
        if sock is not None:
            self._return_after_each_message()

    def _return_after_each_message(self) -> None:
        # pyOpenSSL has this for contexts only.
        if _CAN_RETURN:
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

    # A handshake in memory, and the descriptor then; only where `can_move` tells so

    def shake_hands(self) -> bool:
        """
        Carry the handshake on with what it was given; tell whether it is done.

        Raises:
            SSL.Error: It failed.
        """
        inner: Any = self
        result = lib.SSL_do_handshake(inner._ssl)
        if result == 1:
            return True
        if lib.SSL_get_error(inner._ssl, result) != lib.SSL_ERROR_WANT_READ:
            inner._raise_ssl_error(inner._ssl, result)
        return False

    def give(self, data: bytes) -> None:
        """Give OpenSSL *data*, which the peer has sent."""
        inner: Any = self
        lib.BIO_write(inner._into_ssl, data, len(data))

    def unread(self) -> int:
        """Return how many of the bytes that it was given OpenSSL has not read."""
        inner: Any = self
        return int(lib.BIO_get_mem_data(inner._into_ssl, ffi.NULL))

    def take_written(self) -> bytes:
        """Return what OpenSSL has written for the peer."""
        inner: Any = self
        size = lib.BIO_get_mem_data(inner._from_ssl, ffi.NULL)
        if not size:
            return b""
        room = ffi.new("char[]", size)
        written: bytes = ffi.unpack(room, lib.BIO_read(inner._from_ssl, room, size))
        return written

    def move_to_descriptor(self, sock: _socket.socket) -> None:
        """Leave the memory, and what is in it, for the descriptor of *sock*."""
        # pyOpenSSL chooses between the two when a connection is made, and then only.
        inner: Any = self
        # This frees the memory.
        lib.SSL_set_fd(inner._ssl, sock.fileno())
        inner._into_ssl = inner._from_ssl = None
        inner._socket = sock
        self._return_after_each_message()
