"""Escaping of text that peers chose, and a log of failures that is limited in rate."""

from __future__ import annotations

from typing import Final, Protocol

from twisted.logger import Logger

__all__ = ["FailureLog", "printable"]

_LONGEST: Final = 200
"""Characters of a text that a peer chose: it must not fill the log either."""
_LONGEST_ERROR: Final = 1000
"""An error's text is longer: our own words, and between them what the peer chose."""

_PERIOD_SECONDS: Final = 60.0
_LINES_A_PERIOD: Final = 10
"""Enough to see what is wrong where something is, and less than fills a disk."""


def printable(text: str, longest: int = _LONGEST) -> str:
    r"""
    Return *text* with everything that is not printed as itself written as ``\xNN``.

    That is control characters and escape sequences, line breaks of every kind,
    and what is invisible or changes the direction of the text. Beyond *longest*
    characters it is cut short.
    """
    cut = text if len(text) <= longest else text[: longest - 1] + "…"
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape", "surrogatepass").decode()
        for each in cut
    )


class Clock(Protocol):
    """What a reactor is asked for the time by."""

    def seconds(self) -> float:
        """Return the seconds since any moment; they never go back."""


class FailureLog:
    """
    Logs the failures of peers: the first of a minute a line each, then a count.

    The count is logged with the first failure after that minute, or at the end, so that no
    timer is needed.
    """

    def __init__(self, clock: Clock, log: Logger) -> None:
        """Take the time from *clock*, a reactor say, and write to *log*."""
        self._clock = clock
        self._log = log
        self._begin = float("-inf")
        self._lines = 0
        self._more = 0

    def note(self, text: str, *, error: object, **fields: object) -> None:
        """
        Log one failure, at level info.

        Args:
            text: The format of the line.
            error: Why; the text of an exception, escaped.
            fields: Of the format, escaped where they are not numbers.
        """
        now = self._clock.seconds()
        if now - self._begin >= _PERIOD_SECONDS:
            self.end()
            self._begin = now
            self._lines = 0
        if self._lines >= _LINES_A_PERIOD:
            self._more += 1
            return
        self._lines += 1
        escaped = {name: printable(str(value)) for name, value in fields.items()}
        self._log.info(text, error=printable(str(error), _LONGEST_ERROR), **escaped)

    def end(self) -> None:
        """Log how many failures had no line of their own."""
        more, self._more = self._more, 0
        if more:
            self._log.info(
                "{more} more connections have failed within {seconds:.0f} s, without a line each",
                more=more,
                seconds=self._clock.seconds() - self._begin,
            )
