"""The command ``twist netsock`` and its subcommands."""

from __future__ import annotations

from typing import Any, ClassVar

from twisted.application.service import IService
from twisted.python import usage

from .echo import EchoOptions, make_echo
from .relay import RelayOptions, make_relay

__all__ = ["Options", "makeService"]


class Options(usage.Options):
    """The options of ``twist netsock``: a subcommand."""

    synopsis = "<subcommand> [options]"
    subCommands: ClassVar[Any] = [
        ["echo", None, EchoOptions, "Send back what clients send."],
        ["relay", None, RelayOptions, "Relay connections between any two endpoints."],
    ]

    def postOptions(self) -> None:
        """Ask for a subcommand where there is none."""
        if self.subCommand is None:
            names = ", ".join(name for name, *_ in self.subCommands)
            raise usage.UsageError(f"a subcommand is missing: {names}")


def makeService(options: Options) -> IService:
    """Return the service of the chosen subcommand."""
    from twisted.internet import reactor

    make = make_echo if options.subCommand == "echo" else make_relay
    return make(options.subOptions, reactor)
