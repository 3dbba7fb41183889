"""The command ``twist netsock`` and its subcommands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from twisted.application.service import IService
from twisted.python import usage

from ._common.hints import hinted

__all__ = ["Options", "makeService"]


def _echo() -> usage.Options:
    from .echo import EchoOptions

    return EchoOptions()


def _relay() -> usage.Options:
    from .relay.options import RelayOptions

    return RelayOptions()


def _connect() -> usage.Options:
    from .connect import ConnectOptions

    return ConnectOptions()


def _probe() -> usage.Options:
    from .probe.options import ProbeOptions

    return ProbeOptions()


class Options(usage.Options):
    """The options of ``twist netsock``: a subcommand."""

    synopsis = "<subcommand> [options]"
    subCommands: ClassVar[Any] = [
        ["echo", None, _echo, "Send back what clients send."],
        ["relay", None, _relay, "Relay connections between any two endpoints."],
        ["connect", None, _connect, "Standard input and output to any endpoint."],
        ["probe", None, _probe, "What a TLS server says, and whether it can be believed."],
    ]

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
    from .._io.interfaces import current_reactor

    reactor = current_reactor(None)
    if options.subCommand in {"connect", "probe"}:
        from ._common.one_shot import OneShot, exit_process_with

        return OneShot(reactor, options.subOptions, exit_process_with)
    if options.subCommand == "echo":
        from .echo import make_echo

        return make_echo(options.subOptions, reactor)
    from .relay.process import make_relay

    return make_relay(options.subOptions, reactor)
