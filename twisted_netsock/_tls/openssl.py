"""
OpenSSL's connection, as this package drives it, and its handshake in bounded steps.

pyOpenSSL's connection cannot send several records, or receive into a given buffer,
without several calls and a copy for each; nor can it change what it reads from. So this
module, and no other, uses private parts of pyOpenSSL. Each is looked for at import.
Where a release of pyOpenSSL lacks one, the public call serves: slower, or without a
bound, which `report_missing` logs then.

A handshake runs in memory, record by record, so that an unverified peer cannot make it
take much time or memory. OpenSSL ignores a server's requests to renegotiate for as long
as they come during a handshake (RFC 5246, section 7.4.1.1), all in one call: on the
descriptor itself, a server that sends them without end would hold up the reactor for
ever. And it allocates a whole message as soon as its length has come, up to 128 KiB for
the hello of a client that then sends nothing more. So OpenSSL is given a bounded number
of records at a time and in all, of a client none that begins too long a message, and
moves to the descriptor when the handshake is done. Nothing is taken from the kernel
beyond the last record of the handshake.
"""

from __future__ import annotations

import os
import socket as _socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from OpenSSL import SSL, crypto
from twisted.logger import Logger

from .._io.fairness import HANDSHAKE_RECORDS
from .._io.poller import WANT_READ, WANT_WRITE, Want
from ..errors import SocketConnectionLostError, TLSHandshakeError

try:
    from OpenSSL._util import ffi, lib
except ImportError:
    # Then `_has` finds none of its parts.
    ffi = lib = None

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "RECORD",
    "TOO_LONG",
    "Connection",
    "HandshakeRecords",
    "MessageLimit",
    "can_handshake_in_memory",
    "can_use_buffers",
    "clear_errors",
    "default_verify_paths",
    "report_missing",
    "set_servername_callback",
    "set_verify",
    "verification_text",
]

RECORD: Final = 16384
"""The most plaintext that one TLS record carries (RFC 8446, section 5.1)."""

_HEADER: Final = 5
"""Bytes before each record: its type, two of the version, two of the length."""

_VERSION: Final = 3
"""The first byte of a record's version, in every version of TLS."""

_LONGEST: Final = 2**14 + 2048
"""The length of a record that OpenSSL accepts at most (RFC 5246, section 6.2.3)."""

_IN_ALL: Final = 256 * 1024
"""Bytes of one handshake. OpenSSL accepts 100 KiB of certificates; the rest is small."""

_CHUNK: Final = 20480
"""
Bytes looked at in one call: more than a record. OpenSSL's memory BIO keeps as much as it was
ever given, for as long as the handshake lasts.
"""

_CHANGE_CIPHER_SPEC: Final = 20
_HANDSHAKE: Final = 22
"""Types of records (RFC 8446, appendix B.1)."""

_MESSAGE_HEADER: Final = 4
"""Bytes before each handshake message: its type, three of the length."""

_LONGEST_MESSAGE: Final = 32 * 1024
"""
Of what a client sends in plain text: a hello of some hundred bytes, with post-quantum keys and
tickets a few thousand, and with TLS 1.2 its certificates, of some 2 KiB each.
"""

TOO_LONG: Final = b"\x15\x03\x03\x00\x02\x02\x2f"
"""A fatal alert, illegal_parameter, as OpenSSL sends for messages that are too long for it."""

_log = Logger()


def _has(library: tuple[str, ...], connection: tuple[str, ...] = ()) -> bool:
    made = SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)
    return (
        ffi is not None
        and all(hasattr(lib, name) for name in library)
        and all(hasattr(made, name) for name in connection)
    )


_CAN_HANDSHAKE_IN_MEMORY: Final = _has(
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
_CAN_USE_BUFFERS: Final = _has(("SSL_read", "SSL_write"), ("_ssl", "_raise_ssl_error"))
_CAN_RETURN: Final = _has(("SSL_clear_mode", "SSL_MODE_AUTO_RETRY"), ("_ssl",))
_KNOWS_VERIFY_PATHS: Final = _has(("X509_get_default_cert_file", "X509_get_default_cert_dir"))
_CAN_CLEAR_ERRORS: Final = _has(("ERR_clear_error",))
_CAN_FIND_CONNECTIONS: Final = hasattr(SSL.Connection, "_reverse_mapping") and hasattr(
    SSL.Context(SSL.TLS_METHOD), "_context"
)
_CAN_ANSWER_NAMES: Final = _CAN_FIND_CONNECTIONS and _has(
    ("SSL_CTX_set_tlsext_servername_callback", "SSL_TLSEXT_ERR_ALERT_FATAL")
)
_CAN_SET_VERDICTS: Final = _CAN_FIND_CONNECTIONS and _has(
    (
        "BIO_free",
        "BIO_get_mem_data",
        "BIO_new",
        "BIO_s_mem",
        "SSL_CTX_set_verify",
        "SSL_get_ex_data_X509_STORE_CTX_idx",
        "SSL_set_verify",
        "X509_STORE_CTX_get_current_cert",
        "X509_STORE_CTX_get_error",
        "X509_STORE_CTX_get_error_depth",
        "X509_STORE_CTX_get_ex_data",
        "X509_STORE_CTX_set_error",
        "i2d_X509_bio",
    ),
    ("_ssl",),
)
_KNOWS_VERIFICATION_TEXTS: Final = _has(("X509_verify_cert_error_string",))

_empty = SSL.Context(SSL.TLS_METHOD)
"""Has no key: checking it fails, which reads OpenSSL's queue of errors."""
_reported = False

_buffers: list[object] = []
"""
Buffers of one record, each lent to one call at a time. Without them each receive would
allocate and zero 16 KiB, however little comes. `list.pop` is safe among threads.
"""


def can_handshake_in_memory() -> bool:
    """Return whether a connection can begin in memory and move to a descriptor."""
    return _CAN_HANDSHAKE_IN_MEMORY


def can_use_buffers() -> bool:
    """Return whether OpenSSL reads and writes the caller's buffers, without a copy."""
    return _CAN_USE_BUFFERS


def clear_errors() -> None:
    """
    Clear this thread's OpenSSL error queue, after a connection has failed.

    pyOpenSSL leaves system errors in the queue, and OpenSSL before version 4 attributes
    them to the next connection that SSL_get_error is called for.
    """
    if _CAN_CLEAR_ERRORS:
        lib.ERR_clear_error()
        return
    with suppress(Exception):
        # It has no key. pyOpenSSL builds the exception from the whole queue, and so empties it.
        _empty.check_privatekey()


def verification_text(code: int) -> str | None:
    """Return what OpenSSL says of a verification error; `None` where it cannot be asked."""
    if not _KNOWS_VERIFICATION_TEXTS:
        return None
    text: bytes = ffi.string(lib.X509_verify_cert_error_string(code))
    return text.decode("ascii", "backslashreplace")


def set_servername_callback(
    context: SSL.Context,
    choose: Callable[[SSL.Connection], int | None],
    refuse: Callable[[SSL.Connection], None],
) -> None:
    """
    Have *choose* called for each ClientHello, with or without a server name.

    Args:
        context: Not used yet.
        choose: Returns the fatal alert to answer with, or `None` to go on. Must not raise.
        refuse: Makes the handshake fail in another way, where pyOpenSSL lacks what it takes to
            answer with that alert.
    """
    if not _CAN_ANSWER_NAMES:

        def choose_or_refuse(connection: SSL.Connection) -> None:
            if choose(connection) is not None:
                refuse(connection)

        context.set_tlsext_servername_callback(choose_or_refuse)
        return

    def answer(ssl: object, alert: Any, _: object) -> int:
        number = choose(SSL.Connection._reverse_mapping[ssl])
        if number is None:
            return 0
        alert[0] = number
        fatal: int = lib.SSL_TLSEXT_ERR_ALERT_FATAL
        return fatal

    # What is raised nonetheless, an interrupt, is a refusal.
    made = ffi.callback("int (*)(SSL *, int *, void *)", answer, error=2)
    # OpenSSL keeps no reference.
    context._tlsext_servername_callback = made
    lib.SSL_CTX_set_tlsext_servername_callback(context._context, made)


Judge: TypeAlias = "Callable[[SSL.Connection, bytes, int, int], int]"
"""Is given a certificate in DER, OpenSSL's code, and the depth; returns the code to go on with."""

_judges: dict[Judge, object] = {}
"""OpenSSL's callbacks, which keep no reference: one for each of few functions."""


def set_verify(target: SSL.Context | SSL.Connection, mode: int, judge: Judge) -> None:
    """
    Have *judge* called for each certificate of the peer.

    pyOpenSSL's own way to set it cannot say why a certificate was refused that OpenSSL had found
    good: then the peer gets the alert internal_error.

    Args:
        target: A context that is not used yet, or a connection.
        mode: As of ``SSL.Context.set_verify``.
        judge: Must not raise.
    """
    if not _CAN_SET_VERDICTS:
        target.set_verify(
            mode,
            lambda connection, certificate, code, depth, ok: (
                judge(
                    connection,
                    crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate),
                    0 if ok else code,
                    depth,
                )
                == 0
            ),
        )
        return
    if judge not in _judges:
        _judges[judge] = ffi.callback("int (*)(int, X509_STORE_CTX *)", _verifier(judge), error=0)
    if isinstance(target, SSL.Context):
        lib.SSL_CTX_set_verify(target._context, mode, _judges[judge])
    else:
        lib.SSL_set_verify(target._ssl, mode, _judges[judge])


def _encode(certificate: Any) -> bytes:
    """Return OpenSSL's *certificate* in DER, at half the cost of an object of pyOpenSSL's."""
    memory = lib.BIO_new(lib.BIO_s_mem())
    try:
        lib.i2d_X509_bio(memory, certificate)
        place = ffi.new("char **")
        size = lib.BIO_get_mem_data(memory, place)
        encoded: bytes = ffi.unpack(place[0], size)
        return encoded
    finally:
        lib.BIO_free(memory)


def _verifier(judge: Judge) -> Callable[[int, Any], int]:
    index = lib.SSL_get_ex_data_X509_STORE_CTX_idx()

    def verify(ok: int, store: Any) -> int:
        certificate = _encode(lib.X509_STORE_CTX_get_current_cert(store))
        code = 0 if ok else lib.X509_STORE_CTX_get_error(store)
        depth = lib.X509_STORE_CTX_get_error_depth(store)
        connection = SSL.Connection._reverse_mapping[lib.X509_STORE_CTX_get_ex_data(store, index)]
        code = judge(connection, certificate, code, depth)
        lib.X509_STORE_CTX_set_error(store, code)
        return int(code == 0)

    return verify


def report_missing() -> None:
    """Log, once, which bounds do not hold with this pyOpenSSL."""
    global _reported  # noqa: PLW0603 - once in a process
    missing = []
    if not _CAN_HANDSHAKE_IN_MEMORY:
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


def default_verify_paths() -> list[str]:
    """Return the file and the directories that OpenSSL loads the platform's authorities from."""
    places = ssl.get_default_verify_paths()
    file, directory = places.openssl_cafile, places.openssl_capath
    if _KNOWS_VERIFY_PATHS:
        # Python's own OpenSSL may be another one, built with other paths.
        file = os.fsdecode(ffi.string(lib.X509_get_default_cert_file()))
        directory = os.fsdecode(ffi.string(lib.X509_get_default_cert_dir()))
    file = os.environ.get("SSL_CERT_FILE", file)
    directories = os.environ.get("SSL_CERT_DIR", directory).split(os.pathsep)
    return [place for place in (file, *directories) if place]


class Connection(SSL.Connection):
    """
    A connection on a descriptor or, without one, on memory buffers.

    On a descriptor a read returns after each message without data (new keys, a
    ticket). With SSL_MODE_AUTO_RETRY, the default, SSL_read goes on for as long as a peer
    sends such messages, and the reactor stands still. On memory buffers Twisted's
    TLSMemoryBIOProtocol relies on that mode.
    """

    def __init__(self, context: SSL.Context, sock: _socket.socket | None) -> None:
        super().__init__(context, sock)
        if sock is not None:
            self._return_after_each_message()

    def _return_after_each_message(self) -> None:
        # pyOpenSSL has set_mode and clear_mode for contexts only.
        if _CAN_RETURN:
            lib.SSL_clear_mode(self._ssl, lib.SSL_MODE_AUTO_RETRY)

    # Data

    def receive(self, n: int) -> bytes:
        """
        Return up to *n* bytes, of one record.

        Raises:
            SSL.Error: Or one of its kin, as `SSL.Connection.recv`.
        """
        n = min(n, RECORD)
        if not _CAN_USE_BUFFERS:
            return self.recv(n)
        try:
            buffer = _buffers.pop()
        except IndexError:
            buffer = ffi.new("char[]", RECORD)
        try:
            count = lib.SSL_read(self._ssl, buffer, n)
            if count <= 0:
                self._raise_ssl_error(self._ssl, count)
            data: bytes = ffi.unpack(buffer, count)
        finally:
            _buffers.append(buffer)
        return data

    def receive_into(self, view: memoryview) -> int:
        """
        Fill *view*, which has room, from its start with up to one record; return the count.

        Raises:
            SSL.Error: Or one of its kin, as `SSL.Connection.recv_into`.
        """
        if not _CAN_USE_BUFFERS:
            return self.recv_into(view, min(len(view), RECORD))
        with ffi.from_buffer(view, require_writable=True) as buffer:
            count: int = lib.SSL_read(self._ssl, buffer, min(len(view), RECORD))
            if count <= 0:
                self._raise_ssl_error(self._ssl, count)
        return count

    def send_records(self, data: Buffer, size: int) -> int:
        """
        Send the *size* bytes of *data*, record by record; return how many were sent.

        If fewer were sent, the next record has to wait for the descriptor. SSL_write must
        then be repeated with the same bytes.

        Raises:
            SSL.Error: The connection has failed.
        """
        done = 0
        try:
            if not _CAN_USE_BUFFERS:
                view = memoryview(data)
                while done < size:
                    done += self.send(view[done : done + RECORD])
                return done
            with ffi.from_buffer(data) as buffer:
                while done < size:
                    count = lib.SSL_write(self._ssl, buffer + done, min(size - done, RECORD))
                    if count <= 0:
                        self._raise_ssl_error(self._ssl, count)
                    done += count
        except (SSL.WantReadError, SSL.WantWriteError):
            pass
        return done

    # A handshake in memory, then the descriptor; only where `can_handshake_in_memory`

    def step_handshake(self) -> bool:
        """
        Continue the handshake with what it was fed; return whether it is done.

        Raises:
            SSL.Error: It failed.
        """
        result = lib.SSL_do_handshake(self._ssl)
        if result == 1:
            return True
        if lib.SSL_get_error(self._ssl, result) != lib.SSL_ERROR_WANT_READ:
            self._raise_ssl_error(self._ssl, result)
        return False

    def feed(self, data: bytes) -> None:
        """Feed OpenSSL with *data*, which the peer has sent."""
        lib.BIO_write(self._into_ssl, data, len(data))

    def unread(self) -> int:
        """Return how many of the bytes that it was fed OpenSSL has not read."""
        return int(lib.BIO_get_mem_data(self._into_ssl, ffi.NULL))

    def take_outgoing(self) -> bytes:
        """Return what OpenSSL has written for the peer."""
        size = lib.BIO_get_mem_data(self._from_ssl, ffi.NULL)
        if not size:
            return b""
        buffer = ffi.new("char[]", size)
        outgoing: bytes = ffi.unpack(buffer, lib.BIO_read(self._from_ssl, buffer, size))
        return outgoing

    def move_to_descriptor(self, sock: _socket.socket) -> None:
        """Read and write the descriptor of *sock* from now on; drop what the memory holds."""
        # pyOpenSSL chooses between the two when it makes a connection, and never again.
        # SSL_set_fd frees the memory BIOs, so no reference to them may stay.
        lib.SSL_set_fd(self._ssl, sock.fileno())
        self._into_ssl = self._from_ssl = None
        self._socket = sock
        self._return_after_each_message()


class MessageLimit:
    """
    Finds handshake messages that are too long in what a client sends in plain text.

    Encrypted ones, of TLS 1.3, have OpenSSL's own limit, 100 KiB for certificates.
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
        """Check what *connection*, of a server, is going to be fed."""
        self._connection = connection
        self._encrypted = False
        """The client has sent change_cipher_spec; with TLS 1.3 only for middleboxes' sake."""
        self._record_header = b""
        self._record_left = 0
        self._is_plain = False
        """The record that is being checked has messages in plain text."""
        self._message_header = b""
        self._message_left = 0

    def check(self, data: bytes) -> None:
        """
        Check the next *data* of the stream.

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
        # TLS 1.3 encrypts in records of another type (application_data). A handshake record
        # behind a change_cipher_spec is the hello that follows a HelloRetryRequest there.
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
        """Perform the handshake on *sock* with *connection*, which is in memory and new."""
        self._connection = connection
        self._sock = sock
        # A server waits for the client's hello. Until that comes OpenSSL is not called, and
        # allocates nothing for a mute client.
        self._begun = not is_client
        self._limit = None if is_client else MessageLimit(connection)
        self._done = False
        self._part = b""
        """The beginning of an incomplete record."""
        self._outgoing = b""
        self._left = _IN_ALL

    def step(self) -> Want | None:
        """
        Continue the handshake; `None` when it is done, and OpenSSL on the descriptor.

        Raises:
            SSL.Error: The handshake failed.
            OSError: The descriptor failed, or the stream has ended.
            TLSHandshakeError: The peer sends too much.
        """
        if not self._begun:
            self._begun = True
            self._step_openssl()
        # Over loopback the peer's answer is often here at once: to look for it without a wait
        # saves an iteration of the reactor and a timer, 7 % of a connect.
        if self._flush() and not self._done:
            self._receive()
        if not self._flush():
            return WANT_WRITE
        if not self._done:
            return WANT_READ
        self._connection.move_to_descriptor(self._sock)
        return None

    def _step_openssl(self) -> None:
        """Have OpenSSL continue with what it was fed."""
        try:
            self._done = self._connection.step_handshake()
        except SSL.Error:
            self._outgoing += self._connection.take_outgoing()
            with suppress(OSError):
                # The alert with the reason.
                self._flush()
            raise
        self._outgoing += self._connection.take_outgoing()

    def _flush(self) -> bool:
        """Send what OpenSSL has written; return whether the kernel has all of it."""
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
        Whether only the session tickets behind a TLS 1.3 handshake are still to be sent.

        A client that has closed needs none, and its data is still to be received. OpenSSL
        ignores the error as well where it sends tickets on the descriptor itself.
        """
        connection = self._connection
        return (
            self._done
            and self._limit is not None
            and connection.get_protocol_version() == SSL.TLS1_3_VERSION
        )

    def _receive(self) -> None:
        """
        Feed OpenSSL with the records that have come.

        They are read with MSG_PEEK, and consumed afterwards: what OpenSSL has not read when
        the handshake is done stays in the kernel, for the connection on the descriptor.
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
            # Consumed all the same, or the poller would report the descriptor again and again.
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
        self._connection.feed(whole)
        try:
            self._step_openssl()
        finally:
            self._consume(used - before - (self._connection.unread() if self._done else 0))

    def _consume(self, count: int) -> None:
        """Consume *count* bytes that were peeked at."""
        self._left -= count
        if self._left < 0:
            raise TLSHandshakeError(reason=f"the peer sent more than {_IN_ALL} bytes")
        while count > 0 and (taken := len(self._sock.recv(count))):
            count -= taken


def _whole_records(data: bytes) -> int:
    """Return where the last complete record ends, of as many as OpenSSL may be fed at once."""
    size, end = len(data), 0
    for _ in range(HANDSHAKE_RECORDS):
        following = end + _HEADER
        if following > size:
            break
        length = data[end + 3] << 8 | data[end + 4]
        # OpenSSL refuses any other header at once, so the rest is not waited for.
        if data[end + 1] == _VERSION and length <= _LONGEST:
            following += length
        if following > size:
            break
        end = following
    return end
