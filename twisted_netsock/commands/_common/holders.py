"""Who has a port that cannot be listened on, as far as this user may see it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ..._text import printable

__all__ = ["holder_of"]

_LISTENS = "0A"
"""The state of a listening socket in ``/proc/net/tcp`` (proc(5))."""


def holder_of(port: int) -> str | None:
    """Return the name and number of a process that listens on TCP *port*; `None` if none shows."""
    try:
        wanted = set(_listening(port))
    except (OSError, ValueError, IndexError):
        # Not Linux, or hidden.
        return None
    for process in Path("/proc").glob("[0-9]*"):
        try:
            with os.scandir(process / "fd") as descriptors:
                found = any(os.readlink(each.path) in wanted for each in descriptors)
            if found:
                name = (process / "comm").read_text(errors="replace").strip()
                return f"{printable(name)}, process {process.name}"
        except OSError:
            # Another user's, or it has just ended.
            continue
    return None


def _listening(port: int) -> Iterator[str]:
    """Yield what the descriptors of sockets that listen on *port* are called in ``/proc``."""
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            _, local, _, state, *more = line.split()
            if state == _LISTENS and int(local.rpartition(":")[2], 16) == port:
                yield f"socket:[{more[5]}]"
