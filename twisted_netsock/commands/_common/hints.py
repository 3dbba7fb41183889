"""What was probably meant, when an option or a command is none."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from twisted.python import usage

__all__ = ["hinted"]

_OPTION = re.compile(r"option --(\S+) (?:not recognized|not a unique prefix)")
_COMMAND = re.compile(r"Unknown command: (.*)", re.DOTALL)


def _near(given: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = get_close_matches(given.lower(), names, n=1, cutoff=0.6)
    return near[0] if near else ""


def hinted(options: Any, error: usage.UsageError) -> usage.UsageError:
    """
    Return *error*, of parsing *options* or one of its subcommands, on one line with a hint.

    Args:
        options: The outermost `usage.Options`.
        error: What its ``parseOptions`` raised.
    """
    deepest = options
    while getattr(deepest, "subOptions", None) is not None:
        deepest = deepest.subOptions
    said = " ".join(str(error).split())
    if "did you mean" in said:
        return usage.UsageError(said)
    if matched := _OPTION.fullmatch(said):
        near = _near(matched[1], {name.rstrip("=") for name in deepest.longOpt})
        hint = f"; did you mean --{near}?" if near else "; --help lists what there is"
        said = f"there is no option --{matched[1]}{hint}"
    elif matched := _COMMAND.fullmatch(said):
        known = [name for name, *_ in deepest.subCommands]
        near = _near(matched[1], known)
        hint = f"did you mean {near}?" if near else f"there are {', '.join(known)}"
        said = f"there is no command {matched[1]!r}; {hint}"
    return usage.UsageError(said)
