"""Text for terminals: nothing that a peer has chosen reaches one raw."""

from __future__ import annotations

import os
import sys
from typing import Final

from ..._text import printable

__all__ = ["Style", "encoded", "printable"]

_COLOURS: Final = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}


def encoded(text: str) -> bytes:
    """Return *text* as standard output and standard error take it, whatever the locale."""
    encoding = getattr(sys.__stdout__, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace")


class Style:
    """Colours, or none."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled

    @classmethod
    def of(cls, fd: int) -> Style:
        """Use colours if *fd* is a terminal that has them, and ``NO_COLOR`` is not set."""
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        return cls(not plain and os.isatty(fd))

    def __call__(self, text: str, *names: str) -> str:
        """Return *text* with the colours *names*."""
        if not self.enabled or not text:
            return text
        codes = ";".join(_COLOURS[name] for name in names)
        return f"\x1b[{codes}m{text}\x1b[0m"
