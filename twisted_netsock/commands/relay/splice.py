"""
Pipes through which bulk passes from socket to socket, and never through this process.

The kernel moves pages instead of copying them (splice(2), Linux). A pipe is lent for
one call and given back empty, so that all connections share one; a link that cannot get rid of
what is in it keeps it until then.
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from typing import Final

__all__ = ["BULK", "Pipe", "Pipes"]

BULK: Final = 65536
"""Bytes that come at once from a connection that carries bulk."""

_AT_ONCE: Final = 512 * 1024
"""Bytes that are moved in one turn of a connection; more would move no faster."""

_CAPACITY: Final = 1024 * 1024
"""Bytes, and the most that the kernel gives without root."""

_MOST: Final = 16
"""Pipes at a time; a link that wants one more copies. Two descriptors and a capacity each."""

_CANNOT: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM})
"""What a kernel, or a sandbox, says that has no splice(2) for sockets."""


class Pipe:
    """
    A pipe between two sockets.

    Attributes:
        pending: Bytes that are in it.
    """

    def __init__(self) -> None:
        """
        Open it.

        Raises:
            OSError: The process has too many descriptors, or there is no such pipe.
        """
        self.pending = 0
        self._exit, self._entry = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # A user with too many large pipes gets a small one.
        with suppress(OSError):
            fcntl.fcntl(self._entry, fcntl.F_SETPIPE_SZ, _CAPACITY)

    def fill(self, source: int) -> int:
        """
        Take what has arrived at the socket *source*; return how many bytes, 0 at its end.

        Raises:
            BlockingIOError: Nothing has.
            OSError: The socket has failed, or there is no splicing here.
        """
        flags = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
        count = os.splice(source, self._entry, _AT_ONCE, flags=flags)
        self.pending += count
        return count

    def drain(self, target: int) -> None:
        """
        Send as much as the socket *target* takes of what is in the pipe.

        Raises:
            OSError: The socket has failed.
        """
        flags = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
        with suppress(BlockingIOError):
            while self.pending:
                self.pending -= os.splice(self._exit, target, self.pending, flags=flags)

    def close(self) -> None:
        """Close it, with what is in it."""
        os.close(self._exit)
        os.close(self._entry)


class Pipes:
    """The pipes of one relay; where the system has no splice(2) there are none."""

    def __init__(self) -> None:
        self._idle: list[Pipe] = []
        self._lent = 0
        self._most = _MOST if hasattr(os, "splice") else 0

    def lend(self) -> Pipe | None:
        """Return an empty pipe, to be given back; `None` if there is none to be had."""
        if self._lent >= self._most:
            return None
        if self._idle:
            pipe = self._idle.pop()
        else:
            try:
                pipe = Pipe()
            except OSError:
                return None
        self._lent += 1
        return pipe

    def take_back(self, pipe: Pipe) -> None:
        """Have *pipe* back; one is kept, unless something is in it."""
        self._lent -= 1
        if pipe.pending or self._idle:
            pipe.close()
        else:
            self._idle.append(pipe)

    def disabled_by(self, error: OSError) -> bool:
        """Return whether *error* means that there is no splicing here, and lend no more then."""
        if error.errno not in _CANNOT:
            return False
        self._most = 0
        return True

    def close(self) -> None:
        """Close the one that is kept."""
        while self._idle:
            self._idle.pop().close()
