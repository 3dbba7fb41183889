"""What is done in a forked child, also where Python is not told of the fork, as in uWSGI."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

__all__ = ["after_fork", "notice_fork"]

_functions: Final[list[Callable[[], None]]] = []

_process = os.getpid()


def after_fork(function: Callable[[], None]) -> None:
    """Call *function* in every child, after those that were given before."""
    _functions.append(function)


def notice_fork() -> None:
    """See to it that all has been called; for what would wait for a thread of the parent."""
    if os.getpid() != _process:
        _run()


def _run() -> None:
    global _process  # noqa: PLW0603 - there is one
    _process = os.getpid()
    for function in _functions:
        function()


os.register_at_fork(after_in_child=_run)
