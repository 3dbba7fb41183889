"""
One measured process: ``python -m benchmarks.contender client|server NAME TASK``.

A client says ``"ready"``, and measures itself for as many seconds as each line of its input
says. A server says its port, and serves until it is ended. With a path in
``NETSOCK_BENCHMARK_PROFILE`` the process is profiled, by processor time, and writes there.
"""

from __future__ import annotations

import cProfile
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module

from .task import PROFILES, Task

MODULES = {
    ("client", "blocking"): "clients_blocking",
    ("client", "facade"): "clients_blocking",
    ("client", "netsock"): "clients_netsock",
    ("client", "netsock-protocol"): "clients_twisted",
    ("client", "twisted"): "clients_twisted",
    ("client", "trio"): "clients_trio",
    ("server", "netsock"): "servers_twisted",
    ("server", "netsock-protocol"): "servers_twisted",
    ("server", "twisted"): "servers_twisted",
}
"""Where contenders are; the others of each side are in one module, too."""
PROFILE = "NETSOCK_BENCHMARK_PROFILE"
_PR_SET_PDEATHSIG = 1


def find(side: str, name: str) -> Callable[[Task], None]:
    """Return what runs the contender *name*."""
    others = {"client": "clients_asyncio", "server": "servers_others"}[side]
    # No other is imported: what it brings in is not this contender's.
    module = import_module(f".{MODULES.get((side, name), others)}", __package__)
    table: dict[str, Callable[[Task], None]] = getattr(module, f"{side.upper()}S")
    if name not in table:
        raise SystemExit(f"there is no {side} {name}")
    return table[name]


def die_with_parent() -> None:
    """Have Linux end this process when the one that started it ends."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Run what the arguments name."""
    die_with_parent()
    side, name, task = sys.argv[1], sys.argv[2], Task.from_json(sys.argv[3])
    run, path = find(side, name), os.environ.get(PROFILE)
    if path is None:
        run(task)
        return
    PROFILES.append(profile := cProfile.Profile(time.process_time))

    def finish(*_: object) -> None:
        profile.disable()
        profile.dump_stats(f"{path}-{side}-{name}")
        os._exit(0)

    # A reactor puts a handler of its own in its place, and comes back.
    signal.signal(signal.SIGTERM, finish)
    try:
        run(task)
    finally:
        finish()


if __name__ == "__main__":
    main()
