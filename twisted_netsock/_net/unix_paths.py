"""Paths of UNIX sockets: taking over one on which nobody listens, and removing only one's own."""

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

# What a connect gives where there is a socket that lives: its queue is full, or it is of
# another type.
_LIVES = frozenset({0, errno.EAGAIN, errno.EPROTOTYPE})


class BoundPath:
    """
    What is at a path now, told from what others may put there later.

    An inode is not used again as long as a socket that is bound to it is open: compare
    before that is closed.
    """

    def __init__(self, path: str) -> None:
        """
        Look at *path*.

        Raises:
            OSError: There is nothing.
        """
        # Relative ones mean another file once the process has changed its directory.
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

    A socket on which nobody listens any more is removed: a process that was killed has left
    it. Who does the same at the same time is kept out by a lock beside the path, as that of
    Twisted's ``unix:``; otherwise one that is bound and does not listen yet would look dead.
    Nothing happens where *family* is not ``AF_UNIX``, or *path* an abstract name.

    Raises:
        SocketBindError: There is a socket that lives, or something else.
    """
    if family != AF_UNIX or not path or "\0" in path:
        yield
        return
    lock = FilesystemLock(path + ".lock")
    try:
        locked = lock.lock()
    except (OSError, ValueError):
        # Where no lock can be made, or its owner not be asked, nothing is removed.
        locked = False
    try:
        _remove_if_dead(path, kind, locked)
        yield
    finally:
        if locked:
            with contextlib.suppress(OSError, ValueError):
                lock.unlock()


def _remove_if_dead(path: str, kind: int, locked: bool) -> None:
    try:
        found = BoundPath(path)
    except OSError:
        # Nothing is there; of anything else the bind tells.
        return
    if not found.is_socket:
        raise _in_use(path, "it is no socket, and is left alone")
    code = _connect(path, kind)
    if code == errno.ENOENT:
        return
    if code != errno.ECONNREFUSED:
        raise _in_use(path, "its socket lives" if code in _LIVES else os.strerror(code))
    if not locked:
        raise _in_use(path, f"nobody listens there, but {path}.lock cannot be had")
    found.unlink()


def _connect(path: str, kind: int) -> int:
    """Return the error number of connecting to *path*, 0 for none."""
    with _socket.socket(AF_UNIX, kind) as sock:
        sock.setblocking(False)
        return sock.connect_ex(path)


def _in_use(path: str, why: str) -> SocketBindError:
    strerror = f"{os.strerror(errno.EADDRINUSE)}: {why}"
    return SocketBindError(path, None, errno=errno.EADDRINUSE, strerror=strerror)
