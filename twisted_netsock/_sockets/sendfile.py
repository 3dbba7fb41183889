"""
Sending a file: what of it is sent, and how, for sockets on the reactor and in threads.

From a regular file to a plain socket the kernel moves the bytes by itself
(sendfile(2)). TLS has to see them, and other kinds of file can only be read.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from socket import SOCK_STREAM
from typing import IO, Final, cast

from .._io.descriptor import Descriptor, PlainDescriptor
from .._io.fairness import BYTES
from .._io.poller import WANT_WRITE, Want
from .._validation import byte_count
from ..errors import SocketError

__all__ = ["FileSource"]

_PIECE: Final = 256 * 1024
"""Bytes that are read at a time."""

_CANNOT: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
"""What a kernel says that cannot send from, or to, what it is given."""


class FileSource:
    """
    The bytes of *file* from *offset* on, *count* at most, to be sent on *descriptor*.

    Attributes:
        sent: How many of them have been taken.
    """

    def __init__(
        self,
        file: IO[bytes],
        offset: int,
        count: int | None,
        descriptor: Descriptor,
        reading: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """
        Begin at *offset*; *file* stays its caller's, and is read within *reading*.

        Raises:
            TypeError: *file* is none, or *offset* or *count* no number.
            ValueError: *file* is open for text or for writing alone, or has no *offset* to
                begin at; *offset* or *count* is negative; or *descriptor* is no stream.
        """
        if descriptor.sock.type != SOCK_STREAM:
            raise ValueError("a file can be sent on a stream only: use sendto or sendmsg")
        if not hasattr(file, "read"):
            raise TypeError(f"file must be open for reading, not {file!r}")
        if "b" not in getattr(file, "mode", "b"):
            raise ValueError(f"file={file!r} must be open in binary mode")
        if hasattr(file, "readable") and not file.readable():
            raise ValueError(f"file={file!r} must be open for reading")
        byte_count(offset, "offset")
        if count is not None:
            byte_count(count, "count")
        self.sent = 0
        self._descriptor = descriptor
        self._file = file
        self._offset = offset
        self._reading = reading
        self._left = count
        self._number = _regular(file)
        self._moves = self._number is not None and hasattr(descriptor, "try_sendfile")
        self._piece = memoryview(b"")
        self._begun = False
        if offset and self._number is None and not self._seekable():
            raise ValueError(f"offset={offset}: file={file!r} can only be sent from where it is")

    def attempt(self, moved: Callable[[], None]) -> int | Want:
        """
        Send until the descriptor takes no more, and call *moved* for each part.

        Returns:
            How many bytes in all, when all are with the kernel.

        Raises:
            SocketError: The descriptor failed, or the file cannot be read.
        """
        if not self._begun:
            # Not before: a refused call must not touch a file that another call may be sending.
            self._begun = True
            if self._number is None:
                self.conclude()
        end = self.sent + BYTES
        while self._left != 0:
            if self.sent >= end:
                return WANT_WRITE
            count = self._send_some()
            if isinstance(count, Want):
                return count
            if not count:
                break
            self.sent += count
            if self._left is not None:
                self._left -= count
            moved()
        want = self._descriptor.try_flush()
        return self.sent if want is None else want

    def _send_some(self) -> int | Want:
        """Send a part; 0 at the end of the file."""
        if self._moves and self._number is not None:
            # Which one has the method was looked up when this was made.
            descriptor = cast("PlainDescriptor", self._descriptor)
            most = BYTES if self._left is None else min(self._left, BYTES)
            try:
                return descriptor.try_sendfile(self._number, self._offset + self.sent, most)
            except SocketError as error:
                if error.errno not in _CANNOT:
                    raise
                self._moves = False
        if not self._piece:
            self._piece = memoryview(self._read())
        if not self._piece:
            return 0
        count = self._descriptor.try_send(self._piece)
        if not isinstance(count, Want):
            self._piece = self._piece[count:]
        return count

    def _read(self) -> bytes:
        size = _PIECE if self._left is None else min(self._left, _PIECE)
        try:
            with self._reading():
                if self._number is None:
                    return self._file.read(size)
                return os.pread(self._number, size, self._offset + self.sent)
        except OSError as error:
            raise SocketError(
                errno=error.errno, strerror=f"the file cannot be read: {error.strerror}"
            ) from None

    def conclude(self) -> None:
        """Leave the position of the file behind what was sent, as the standard library does."""
        if self._begun and self._seekable():
            self._file.seek(self._offset + self.sent)

    def _seekable(self) -> bool:
        return bool(getattr(self._file, "seekable", bool)())


def _regular(file: IO[bytes]) -> int | None:
    """Return the descriptor of *file* if it is a regular one, which has offsets."""
    try:
        number = file.fileno()
        return number if stat.S_ISREG(os.fstat(number).st_mode) else None
    except (AttributeError, OSError):
        # Bytes in memory, say.
        return None
