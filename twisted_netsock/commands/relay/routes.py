"""Where the relay connects a client to: by the server name that it asked for, and in turn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
from twisted.internet.interfaces import IStreamClientEndpoint

from ..._hostnames import server_name_pattern

__all__ = ["Routes", "Target", "route_name"]


@attrs.frozen(eq=False)
class Target:
    """
    A backend.

    Attributes:
        endpoint: Where it is.
        name: What it is called in logs and metrics.
    """

    endpoint: IStreamClientEndpoint
    name: str


def route_name(name: str) -> str:
    """
    Return a name of a route, which may begin with ``*.``, as it is compared.

    Raises:
        ValueError: It is no such name.
    """
    bare = name.removeprefix("*.")
    if not bare or "*" in bare or ":" in bare or "/" in bare or " " in bare:
        raise ValueError("must be a host name, or *. and one: www.example.com, *.example.com")
    return server_name_pattern(name)


@attrs.frozen
class Routes:
    """
    The backends of a relay.

    Attributes:
        default: For clients whose name has no route; tried in turn.
        by_name: For the others: names, of which some may begin with ``*.``, as
            `route_name` returns them.
    """

    default: tuple[Target, ...] = ()
    by_name: Mapping[str, tuple[Target, ...]] = attrs.field(factory=dict)

    def choose(self, server_name: str | None) -> tuple[Target, ...]:
        """Return the targets for a client that asked for this name; none if it has no route."""
        if server_name is None or not self.by_name:
            return self.default
        name = server_name.lower().removesuffix(".")
        # A wildcard stands for one label (RFC 9525, section 6.3).
        wildcard = "*." + name.partition(".")[2]
        return self.by_name.get(name) or self.by_name.get(wildcard) or self.default

    def __iter__(self) -> Iterator[Target]:
        """Go through all targets."""
        yield from self.default
        for targets in self.by_name.values():
            yield from targets

    def __str__(self) -> str:
        """Name them in the log."""
        parts = [", ".join(target.name for target in self.default)] if self.default else []
        for name, targets in self.by_name.items():
            parts.append(f"{name}: {', '.join(target.name for target in targets)}")
        return "; ".join(parts)


def as_routes(to: Any, name: str | None = None) -> Routes:
    """Take routes as they are, and an endpoint as the one target."""
    if isinstance(to, Routes):
        return to
    return Routes(default=(Target(to, repr(to) if name is None else name),))
