"""Paths of UNIX sockets: stale ones are replaced, and only one's own are removed."""

from __future__ import annotations

import contextlib
import errno
import os
import socket as _socket
import stat
from collections.abc import Iterator
from socket import AF_UNIX

from twisted.python.lockfile import FilesystemLock

from ..errors import SocketBindError

__all__ = ["BoundPath", "bound_path", "free_path"]

# Results of a connect to a live socket: connected, its backlog is full (EAGAIN), or it is of
# another type (EPROTOTYPE).
_LIVE = frozenset({0, errno.EAGAIN, errno.EPROTOTYPE})


class BoundPath:
    """
    The identity of the file at a path now, which may be replaced later.

    An inode is not reused as long as a socket that is bound to it is open: compare before
    that is closed.
    """

    def __init__(self, path: str) -> None:
        """
        Look at *path*.

        Raises:
            OSError: There is nothing.
        """
        # A relative path means another file once the process has changed its directory.
        self._path = os.path.abspath(path)
        found = os.lstat(self._path)
        self._identity = (found.st_dev, found.st_ino)
        self._process = os.getpid()
        self.is_socket = stat.S_ISSOCK(found.st_mode)

    def unlink(self) -> None:
        """Remove it, unless something else is there by now, or this is a forked child."""
        if os.getpid() != self._process:
            return
        with contextlib.suppress(OSError):
            found = os.lstat(self._path)
            if (found.st_dev, found.st_ino) == self._identity:
                os.unlink(self._path)


def bound_path(sock: _socket.socket) -> BoundPath | None:
    """Return what *sock* is bound to; `None` if that is no path, or is gone already."""
    name = sock.getsockname() if sock.family == AF_UNIX else None
    path = os.fsdecode(name) if isinstance(name, str | bytes) else ""
    if not path or "\0" in path:
        return None
    try:
        return BoundPath(path)
    except OSError:
        return None


@contextlib.contextmanager
def free_path(family: int, kind: int, path: str) -> Iterator[None]:
    """
    Have *path* free for a socket of *kind* that is bound, and listens, within this context.

    A stale socket, which a killed process has left, is removed. A lock beside the path, the
    same as of Twisted's ``unix:``, keeps other processes from doing so at the same time:
    a socket that is bound and does not listen yet would look stale to them. Nothing happens
    where *family* is not ``AF_UNIX``, or *path* an abstract name.

    Raises:
        SocketBindError: There is a live socket, or something else.
    """
    if family != AF_UNIX or not path or "\0" in path:
        yield
        return
    lock = FilesystemLock(path + ".lock")
    try:
        locked = lock.lock()
    except (OSError, ValueError):
        # No lock can be made, or its owner cannot be checked: then nothing is removed.
        locked = False
    try:
        _remove_if_stale(path, kind, locked)
        yield
    finally:
        if locked:
            with contextlib.suppress(OSError, ValueError):
                lock.unlock()


def _remove_if_stale(path: str, kind: int, locked: bool) -> None:
    try:
        found = BoundPath(path)
    except OSError:
        # Nothing is there; any other error will be bind's.
        return
    if not found.is_socket:
        raise _in_use(path, "it is not a socket, so it is kept")
    code = _connect(path, kind)
    if code == errno.ENOENT:
        return
    if code != errno.ECONNREFUSED:
        raise _in_use(
            path, "a process has its socket open" if code in _LIVE else os.strerror(code)
        )
    if not locked:
        raise _in_use(path, f"its socket is stale, but {path}.lock cannot be acquired")
    found.unlink()


def _connect(path: str, kind: int) -> int:
    """Return the error number of connecting to *path*, 0 for none."""
    with _socket.socket(AF_UNIX, kind) as sock:
        sock.setblocking(False)
        return sock.connect_ex(path)


def _in_use(path: str, why: str) -> SocketBindError:
    strerror = f"{os.strerror(errno.EADDRINUSE)}: {why}"
    return SocketBindError(path, None, errno=errno.EADDRINUSE, strerror=strerror)
