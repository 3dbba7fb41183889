"""
The log of the commands that listen: lines for people, or a flat object of JSON for each.

It has what this package logs, and of everything else warnings and errors.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, ClassVar, Final, TextIO

from twisted.logger import FileLogObserver, LogEvent, LogLevel, eventAsText, formatEvent
from twisted.python import usage

__all__ = ["LogOptions", "json_line", "text_line"]

_OURS: Final = "twisted_netsock."
_PORTS: Final = "twisted_netsock._endpoints.listening_port"
"""Logs what Twisted's own ports do; the commands say where they listen."""

_SEVERE: Final = frozenset({LogLevel.warn, LogLevel.error, LogLevel.critical})
_INNER: Final = frozenset({"format", "isError", "message", "system", "time", "event"})
"""What Twisted adds to an event, beside ``log_…``, for observers of its old kind."""


@lru_cache(1)
def _at(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(second))


def _time(event: LogEvent) -> str:
    return _at(int(event["log_time"]))


def _is_shown(event: LogEvent) -> bool:
    namespace = str(event.get("log_namespace", ""))
    is_ours = namespace.startswith(_OURS) and namespace != _PORTS
    return is_ours or event.get("log_level") in _SEVERE


def _message(event: LogEvent) -> str:
    # An event with a name has nothing but text and numbers: 2 µs instead of 30.
    if "event" in event:
        return str(event["log_format"]).format_map(event)
    return formatEvent(event)


def text_line(event: LogEvent) -> str | None:
    """Return *event* as a line: time, level, what it says; `None` for what is not shown."""
    if not _is_shown(event):
        return None
    message = _message(event)
    if "log_failure" in event:
        message = eventAsText(event, includeTimestamp=False, includeSystem=False)
    return f"{_time(event)} {event['log_level'].name} {message}\n"


def json_line(event: LogEvent) -> str | None:
    """Return *event* as one flat object: time, level, event, and its fields."""
    if not _is_shown(event):
        return None
    flat = {"time": _time(event), "level": event["log_level"].name}
    if "event" in event:
        flat["event"] = event["event"]
    else:
        flat |= {"event": "message", "message": formatEvent(event)}
    if "log_failure" in event:
        flat["traceback"] = event["log_failure"].getTraceback()
    for name, value in event.items():
        is_field = name not in _INNER and name[:4] != "log_"
        if is_field and isinstance(value, str | int | float | None):
            flat[name] = value
    return json.dumps(flat) + "\n"


_LINES: Final[dict[str, Callable[[LogEvent], str | None]]] = {"text": text_line, "json": json_line}


class LogOptions(usage.Options):
    """The options of a command that logs."""

    optParameters: ClassVar[Sequence[Sequence[object]]] = [
        ["log-format", None, None, "text, for people, or json, an object for each event."],
    ]
    optFlags: ClassVar[Sequence[Sequence[object]]] = [
        ["quiet", "q", "Log warnings and errors alone."],
    ]

    def choose_log(self) -> None:
        """
        Have ``twist`` write the log that was asked for; its own, if nothing was.

        Raises:
            UsageError: There is no such format.
        """
        top: Any = self
        while top.parent is not None:
            top = top.parent
        chosen = self["log-format"]
        if chosen is not None:
            line = _LINES.get(chosen)
            if line is None:
                raise usage.UsageError(f"--log-format {chosen}: must be text or json")

            def observer(file: TextIO) -> FileLogObserver:
                return FileLogObserver(file, line)

            top["fileLogObserverFactory"] = observer
        if self["quiet"]:
            top["logLevel"] = LogLevel.warn
