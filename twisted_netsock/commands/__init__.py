"""The command ``twist netsock`` and its subcommands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, ClassVar

from twisted.application.service import IService
from twisted.python import usage

from ._common.hints import hinted

__all__ = ["Options", "makeService"]


def _late(module: str, name: str) -> Callable[[], Any]:
    """Return what makes the options of a command, and loads its module only then."""

    def make() -> Any:
        return getattr(import_module(f".{module}", __package__), name)()

    return make


class Options(usage.Options):
    """The options of ``twist netsock``: a subcommand."""

    synopsis = "<subcommand> [options]"
    subCommands: ClassVar[Any] = [
        ["echo", None, _late("echo", "EchoOptions"), "Send back what clients send."],
        ["relay", None, _late("relay.service", "RelayOptions"),
         "Relay connections between any two endpoints."],
        ["connect", None, _late("connect", "ConnectOptions"),
         "Standard input and output to any endpoint."],
        ["probe", None, _late("probe.options", "ProbeOptions"),
         "What a TLS server says, and whether it can be believed."],
    ]  # fmt: skip

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Parse, and say what was probably meant where something is unknown."""
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            raise hinted(self, error) from None

    def postOptions(self) -> None:
        """Ask for a subcommand where there is none."""
        if self.subCommand is None:
            names = ", ".join(name for name, *_ in self.subCommands)
            raise usage.UsageError(f"a subcommand is missing: {names}")


def makeService(options: Options) -> IService:
    """Return the service of the chosen subcommand."""
    from twisted.internet import reactor

    if options.subCommand in {"connect", "probe"}:
        from ._common.one_shot import OneShot, exit_process_with

        return OneShot(reactor, options.subOptions, exit_process_with)
    if options.subCommand == "echo":
        from .echo import make_echo

        return make_echo(options.subOptions, reactor)
    from .relay.service import make_relay

    return make_relay(options.subOptions, reactor)
