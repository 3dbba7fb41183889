"""What endpoints tell the factories of protocols."""

from __future__ import annotations

from typing import Any

__all__ = ["start_factory", "stop_factory"]


def start_factory(factory: Any) -> None:
    """Tell *factory* that it is used, if it wants to know."""
    start = getattr(factory, "doStart", None)
    if start is not None:
        start()


def stop_factory(factory: Any) -> None:
    """Tell *factory* that it is used no more, if it wants to know."""
    stop = getattr(factory, "doStop", None)
    if stop is not None:
        stop()
