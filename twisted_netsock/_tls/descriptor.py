"""
TLS on a descriptor: the try layer over ``SSL.Connection``, and its errors.

OpenSSL reads and writes the non-blocking descriptor itself. `TLSDescriptor` has
the methods of `twisted_netsock._io.descriptor.PlainDescriptor`, plus the handshake
and the TLS shutdown.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import socket as _socket
from typing import TYPE_CHECKING, Final, TypeVar

from OpenSSL import SSL

from .._io.descriptor import from_os_error, in_flight, inherit, set_linger_reset
from .._io.fairness import TLS_BYTES
from .._io.native import NativeSocket, native_poll
from .._io.poller import WANT_READ, WANT_WRITE, Want
from ..errors import (
    SocketClosedError,
    SocketConnectionLostError,
    SocketError,
    TLSError,
    TLSHandshakeError,
    TLSTruncatedError,
    opened_before_fork,
    unraised,
)
from ..options import TLSSocketOptions
from .client import ClientContextFactory
from .info import TLSInfo
from .openssl import RECORD, HandshakeRecords, can_handshake_in_memory, clear_errors
from .server import ServerContextFactory, quiet_context

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from twisted.internet.defer import Deferred
    from typing_extensions import Buffer

__all__ = ["TLSDescriptor"]

T = TypeVar("T")
U = TypeVar("U")

_DISCARD_LIMIT: Final = 1024 * 1024
"""
Bytes to read and drop while waiting for the peer's close_notify. `close_timeout` bounds the
wait for a silent peer; this bounds one that never stops sending.
"""

_ALERT_SIZE: Final = 31
"""Bytes of an alert with AES-GCM in TLS 1.2 (RFC 5288), the longest; 24 in TLS 1.3."""

_HUNG_UP: Final = getattr(select, "POLLRDHUP", select.POLLHUP)
"""The peer has shut down sending. poll(2) reports errors and resets without being asked."""

_ALERT: Final = re.compile(r"\S+ alert (?P<alert>.+)")
"""OpenSSL's reason for a received alert: ``tlsv1 alert unknown ca``, ``tls alert …``."""


class TLSDescriptor(TLSInfo):
    """
    A non-blocking socket, which it owns, that speaks TLS.

    A method raises `TLSError` or a kin of `SocketConnectionLostError`. The first
    fatal error is kept, since OpenSSL forgets it, and every later call raises one like it.

    Attributes:
        sock: The socket beneath.
        connection: OpenSSL's connection.
        options: The record of this side.
        handshaken: The handshake is done; no data passes before.
        unflushed: A taken piece waits for the kernel; see `try_flush`.
    """

    __slots__ = (
        "_close_sent",
        "_closed_within",
        "_discarded",
        "_ended",
        "_failure",
        "_hang_up",
        "_in_handshake",
        "_kept",
        "_looking_again",
        "_lost",
        "_nothing_yet",
        "_read_shut",
        "_records",
        "_unreported",
        "_write_shut",
        "connection",
        "handshaken",
        "is_client",
        "options",
        "sock",
        "unflushed",
    )

    def __init__(
        self,
        sock: _socket.socket,
        factory: ClientContextFactory | ServerContextFactory,
        protocols: Sequence[bytes] = (),
        place: str | int | None = None,
    ) -> None:
        self.sock = sock
        self.options: TLSSocketOptions = factory.options
        self._records: HandshakeRecords | None = None
        in_memory = isinstance(sock, NativeSocket) and can_handshake_in_memory()
        given = None if in_memory else sock
        if isinstance(factory, ClientContextFactory):
            self.is_client = True
            self.connection = factory.connection(given, protocols, place)
        else:
            self.is_client = False
            self.connection = factory.connection(given, protocols)
        if in_memory:
            self._records = HandshakeRecords(self.connection, sock, is_client=self.is_client)
        self.handshaken = False
        self.unflushed = False
        self._kept = b""
        """The taken piece that the kernel has not: SSL_write must be repeated with it."""
        self._lost = False
        """It was dropped when the connection failed; the next flush raises the error."""
        self._failure: SocketError | None = None
        self._in_handshake = False
        self._closed_within = False
        """A callback within the handshake has closed this descriptor."""
        self._ended = False
        """The peer has sent its close_notify."""
        self._unreported = False
        """It, or an error, came together with data; the next receive reports it."""
        self._read_shut = False
        self._write_shut = False
        self._close_sent = False
        self._discarded = 0
        """Bytes that were read and dropped in the TLS shutdown."""
        self._nothing_yet = False
        """
        This is a client of TLS 1.3 that has received no data: the server's tickets may come
        first, see `_once_more`, or its refusal of our certificate, see `_look_for_refusal`.
        """
        self._looking_again = False
        self._hang_up: select.poll | None = None
        """Asks the kernel whether the server has shut down sending."""

    def _ask(self, ask: Callable[[TLSDescriptor], T], otherwise: T) -> T:
        return ask(self)

    # The handshake

    def try_handshake(self) -> Want | None:
        """Continue the handshake; `None` when it is done and the peer verified."""
        if self._failure is not None:
            raise unraised(self._failure)
        if self.handshaken:
            return None
        self._in_handshake = True
        try:
            want = self._continue_handshake()
        finally:
            self._in_handshake = False
            if self._closed_within:
                self._close_below()
        if self._closed_within:
            assert self._failure is not None
            raise unraised(self._failure)
        return want

    def _continue_handshake(self) -> Want | None:
        try:
            if self._records is None:
                self.connection.do_handshake()
            else:
                want = self._records.step()
                if want is not None:
                    return want
                self._records = None
        except SSL.WantReadError:
            return WANT_READ
        except SSL.WantWriteError:
            return WANT_WRITE
        except (SSL.Error, OSError) as error:
            raise self._fail(self._handshake_error(error)) from None
        if self._closed_within:
            return None
        try:
            self._conclude_handshake()
        except TLSError as error:
            raise self._fail(error) from None
        return None

    def _conclude_handshake(self) -> None:
        if self.is_client:
            state = self.connection.state
            state.verification.conclude()
            if state.resumption is not None:
                resumed = state.verification.skipped
                expiry = None if resumed else state.verification.first_expiry()
                state.resumption.verified(expiry)
        else:
            # See `quiet_context`.
            self.connection.set_context(quiet_context())
        self.handshaken = True
        self._nothing_yet = (
            self.is_client and self.connection.get_protocol_version() == SSL.TLS1_3_VERSION
        )

    def _handshake_error(self, error: Exception) -> SocketError:
        """Return the error of a failed handshake: that of our verification, if there is one."""
        verification = self.connection.state.verification
        if verification.failure is not None:
            failure: SocketError = unraised(verification.failure)
            return failure
        # With `suppress_ragged_eofs` OpenSSL takes it for the end of the stream, here too.
        if _is_unexpected_end(error) or isinstance(error, SSL.ZeroReturnError):
            return SocketConnectionLostError(
                strerror="The peer closed the connection during the TLS handshake"
            )
        return _from_system(error) or TLSHandshakeError(*_explain(error))

    def _fail(self, error: SocketError) -> SocketError:
        self._failure = unraised(error)
        clear_errors()
        # What was taken cannot be sent any more: the next flush must fail.
        self._lost = self._lost or bool(self._kept)
        self._kept = b""
        self.unflushed = False
        return error

    def give_up(self, error: SocketError) -> None:
        """Fail whatever is tried from now on with *error*; nothing is sent any more."""
        self._fail(error)

    # Data

    def _check(self) -> None:
        if self._failure is not None:
            raise unraised(self._failure)
        if not self.handshaken:
            raise TLSError(reason="the handshake is not done: call handshake() first")

    @property
    def buffered(self) -> bool:
        """Bytes, or an end that came with some, wait here, where the poller cannot see them."""
        return self._unreported or self.connection.pending() > 0

    def try_readable(self) -> Want | None:
        """Return `None` if a receive would not wait: for data, the end, or an error."""
        if self.buffered or self._failure is not None or self._ended or self._read_shut:
            return None
        try:
            self.connection.recv(1, _socket.MSG_PEEK)
        except SSL.WantReadError:
            return WANT_READ
        except SSL.WantWriteError:
            return WANT_WRITE
        except SSL.ZeroReturnError:
            pass
        except (SSL.Error, OSError) as error:
            self._fail(self._data_error(error))
        return None

    @property
    def seen_by_poller(self) -> bool:
        """The poller reports whatever a receive would give: OpenSSL has nothing that is whole."""
        return self.handshaken and not self.finished and not self.buffered

    @property
    def failed(self) -> bool:
        """An error is kept, and whatever is tried raises it."""
        return self._failure is not None

    @property
    def finished(self) -> bool:
        """Nothing more is received: a receive gives the end, or the error, at once."""
        return self._ended or self._read_shut or self._failure is not None

    def try_recv(self, n: int, flags: int = 0) -> bytes | Want:
        """Return up to *n* bytes, from one record; ``b""`` is the peer's close_notify."""
        self._unreported = False
        if self._failure is not None or not self.handshaken:
            self._check()
        if self._ended or self._read_shut or n == 0:
            return b""
        try:
            data: bytes = self.connection.receive(n)
        except SSL.WantReadError:
            return self._once_more(self.try_recv, n)
        except SSL.WantWriteError:
            return WANT_WRITE
        except SSL.ZeroReturnError:
            self._ended = True
            return b""
        except (SSL.Error, OSError) as error:
            raise self._fail(self._data_error(error)) from None
        self._nothing_yet = False
        return data

    def _once_more(self, receive: Callable[[T], U | Want], argument: T) -> U | Want:
        """
        Return what *receive* does where a ticket may have been read, else `WANT_READ`.

        Servers send two tickets at once, and SSL_read returns after each: the second is mostly
        here. To wait for it takes an iteration of the reactor, 3 % of a connect.
        """
        if not self._nothing_yet or self._looking_again:
            return WANT_READ
        self._looking_again = True
        try:
            return receive(argument)
        finally:
            self._looking_again = False

    def try_recv_into(self, view: memoryview | bytearray, flags: int = 0) -> int | Want:
        """
        Fill *view* from its start and return the count; 0 is the peer's close_notify.

        Takes several records while there are more to be had.
        """
        self._unreported = False
        if self._failure is not None or not self.handshaken:
            self._check()
        size = len(view)
        if self._ended or self._read_shut or size == 0:
            return 0
        connection = self.connection
        filled = 0
        target = memoryview(view)
        try:
            while filled < size:
                count = connection.receive_into(target[filled:])
                filled += count
                self._nothing_yet = False
                if count < RECORD and not connection.pending():
                    break
        except SSL.WantReadError:
            return filled or self._once_more(self.try_recv_into, view)
        except SSL.WantWriteError:
            return filled or WANT_WRITE
        except SSL.ZeroReturnError:
            self._ended = True
            self._unreported = filled > 0
        except (SSL.Error, OSError) as error:
            failure = self._fail(self._data_error(error))
            if not filled:
                raise failure from None
            self._unreported = True
        return filled

    def try_send(self, view: Buffer, flags: int = 0) -> int | Want:
        """
        Take some of *view* and return how many bytes: at least one record, or all.

        What is taken and does not fit into the kernel, a record at most, stays here
        (`unflushed`), and is sent first by the next `try_send`, `try_flush` or
        `try_shutdown`: SSL_write must be repeated with the same bytes.
        """
        if self._failure is not None or not self.handshaken:
            self._check()
        if self._write_shut:
            raise SocketClosedError(
                errno=errno.EPIPE, strerror="This side has been shut down for writing"
            )
        if self._kept:
            want = self.try_flush()
            if want is not None:
                return want
        piece = memoryview(view)
        if piece.format != "B":
            piece = piece.cast("B")
        size = min(len(piece), TLS_BYTES)
        if not size:
            return 0
        if self._nothing_yet:
            self._look_for_refusal()
        return self._take(piece, size)

    def _take(self, piece: memoryview, size: int) -> int:
        """Send *size* bytes of *piece*, and keep the record that does not fit; return the sum."""
        try:
            sent: int = self.connection.send_records(piece, size)
            if sent < size:
                self._kept = bytes(piece[sent : min(sent + RECORD, size)])
                self.unflushed = True
        except (SSL.Error, OSError) as error:
            raise self._fail(self._data_error(error)) from None
        except BaseException:
            if self.connection.want_write() and not self._kept:
                self._fail(_cut_short())
            raise
        return sent + len(self._kept)

    def _look_for_refusal(self) -> None:
        """
        Raise the server's refusal of our certificate, if it is here already.

        With TLS 1.3 it comes after our handshake, and a send that fails with EPIPE hides
        the alert. OpenSSL is asked only once the server has shut down sending: then the
        descriptor stays readable, so that reading here takes no wake-up from a receiver.
        """
        poller = self._hang_up
        if poller is None:
            poller = self._hang_up = native_poll()
            poller.register(self.sock, _HUNG_UP)
        if not poller.poll(0):
            return
        try:
            self.connection.recv(1, _socket.MSG_PEEK)
        except (SSL.WantReadError, SSL.WantWriteError):
            return
        except SSL.ZeroReturnError:
            pass
        except (SSL.Error, OSError) as error:
            raise self._fail(self._data_error(error)) from None
        self._nothing_yet = False

    def try_flush(self) -> Want | None:
        """Send the piece that was taken and is not with the kernel yet."""
        if self._lost and self._failure is not None:
            raise unraised(self._failure)
        if not self._kept:
            return None
        try:
            self.connection.send(self._kept)
        except SSL.WantReadError:
            return WANT_READ
        except SSL.WantWriteError:
            return WANT_WRITE
        except (SSL.Error, OSError) as error:
            raise self._fail(self._data_error(error)) from None
        except BaseException:
            if not self.connection.want_write():
                # It has been sent, or was not even tried.
                self._fail(_cut_short())
            raise
        self._kept = b""
        self.unflushed = False
        return None

    def _data_error(self, error: Exception) -> SocketError:
        if _is_unexpected_end(error):
            return TLSTruncatedError()
        if isinstance(error, SSL.ZeroReturnError):
            return SocketConnectionLostError(strerror="The peer has finished the connection")
        return _from_system(error) or TLSError(*_explain(error))

    # The end

    def try_shutdown(self, how: int) -> Want | None:
        """
        Shut down one direction or both.

        Writing ends with close_notify, after the kept piece; reading ends here
        alone: TLS has no message for it.
        """
        if not self.handshaken:
            self._check()
        if how != _socket.SHUT_WR:
            self._read_shut = True
        if how == _socket.SHUT_RD or self._close_sent:
            return None
        self._check()
        want = self.try_flush()
        if want is not None:
            return want
        # From here on SSL_write fails, even if SSL_shutdown has to be repeated.
        self._write_shut = True
        try:
            self.connection.shutdown()
        except SSL.WantReadError:
            return WANT_READ
        except SSL.WantWriteError:
            return WANT_WRITE
        except (SSL.Error, OSError) as error:
            raise self._fail(self._data_error(error)) from None
        self._close_sent = True
        return None

    def try_tls_shutdown(self) -> Want | None:
        """
        Shut TLS down: send close_notify, then wait for the peer's, dropping data before it.

        close(2) with unread data makes the kernel send a reset, upon which the peer loses
        what it has not read yet.
        """
        if self._failure is not None or not self.handshaken:
            return None
        if not self._close_sent:
            want = self.try_shutdown(_socket.SHUT_WR)
            if want is not None:
                return want
            self._shut_down_below()
        self._read_shut = False
        while not self._ended and self._discarded < _DISCARD_LIMIT:
            data = self.try_recv(RECORD)
            if isinstance(data, Want):
                return data
            self._discarded += len(data)
        return None

    def _shut_down_below(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(_socket.SHUT_WR)

    def reset_on_close(self) -> None:
        """Make `close` reset the connection; see `Descriptor`."""
        set_linger_reset(self.sock)

    def check_reset(self) -> None:
        """
        Raise what the kernel has to report of a reset; what arrived before can still be read.

        After a send that has failed, OpenSSL reads nothing any more. This costs 0.4 µs.
        """
        number = self.sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
        if number:
            raise from_os_error(OSError(number, os.strerror(number)))

    def in_flight(self) -> int:
        """Return how many bytes TCP has to send; see `Descriptor`."""
        count = in_flight(self.sock.family, self.sock.fileno())
        # An end without close_notify, for example, has OpenSSL send an alert.
        return max(0, count - _ALERT_SIZE) if self.failed else count

    def close(self) -> None:
        """Close the descriptor, without close_notify."""
        if self._failure is None:
            resumption = self.connection.state.resumption
            if self.handshaken and resumption is not None:
                # For the next connection. One that has failed leaves no session behind.
                resumption.keep(self.connection)
            self._fail(SocketClosedError())
        if self._in_handshake:
            # A verifier closes it. OpenSSL uses the descriptor's number again when the callback
            # returns; by then another file might have it.
            self._closed_within = True
        else:
            self._close_below()

    def _close_below(self) -> None:
        self.sock.close()

    def gone(self) -> Deferred[None] | None:
        """Return what fires when it is gone after its close; see `Descriptor`."""
        return None

    def on_fork(self) -> None:
        """Become unusable; see `Descriptor`."""
        inherit(self.sock)
        self.give_up(opened_before_fork())


def _cut_short() -> SocketError:
    """
    Return the error of a connection whose send ended in an exception of a signal handler.

    SSL_write must be repeated with the same bytes, and which they are is not known any
    more: it would take others for them, which the peer would never get.
    """
    return SocketConnectionLostError(
        errno=errno.EINTR, strerror="An exception has cut a send short, in the middle of a record"
    )


def _is_unexpected_end(error: Exception) -> bool:
    """Return whether the stream ended without close_notify: pyOpenSSL's error number is -1."""
    return isinstance(error, SSL.SysCallError) and error.args[0] == -1


def _from_system(error: Exception) -> SocketError | None:
    """Return the operating system's error that OpenSSL passes on, or `None`."""
    if isinstance(error, SSL.SysCallError):
        number = error.args[0]
        error = OSError(number, os.strerror(number))
    return from_os_error(error) if isinstance(error, OSError) else None


def _explain(error: Exception) -> tuple[str | None, str]:
    """Return the alert, if the peer sent one, and the reason of an OpenSSL error."""
    entries: object = error.args[0] if error.args else []
    if not isinstance(entries, list) or not entries:
        return None, str(error) or type(error).__name__
    reason = str(entries[-1][-1])
    matched = _ALERT.match(reason)
    return (matched["alert"] if matched else None), reason
