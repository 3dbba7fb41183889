"""
``netsock``, which is also ``python -m twisted_netsock``: the commands, with exit statuses.

``probe`` and ``connect`` run on a reactor of their own and end with a status
that says how it went; the others run as ``twist netsock …`` runs them.
"""

from __future__ import annotations

import getopt
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from twisted.python import usage

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run a command and return the exit status.

    Args:
        arguments: Those of the command line, without the program; its own if `None`.
    """
    _open_standard_descriptors()
    try:
        return _run(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        # Before the reactor ran.
        return 130


def _open_standard_descriptors() -> None:
    """Open what is closed of standard input, output and error: a socket would get its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free is this one.
            os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)


def _run(arguments: list[str]) -> int:
    from twisted.python import usage

    from .commands._common.one_shot import OneShotOptions, run_alone, say
    from .commands._common.outcomes import Outcome

    options = _options()
    try:
        options.parseOptions(arguments)
    except usage.UsageError as error:
        say(str(error))
        return Outcome.USAGE
    from ._io.interfaces import current_reactor

    if isinstance(options.subOptions, OneShotOptions):
        return run_alone(current_reactor(None), options.subOptions)
    return _twist(options, arguments)


def _options() -> usage.Options:
    """Return the options: those of ``twist netsock``, and what ``twist`` itself takes."""
    from twisted.application.reactors import NoSuchReactor, installReactor
    from twisted.internet.error import ReactorAlreadyInstalledError
    from twisted.python import usage

    from .commands import Options

    class NetsockOptions(Options):
        longdesc = "Sockets and TLS on the command line. `netsock COMMAND --help` says more."
        optParameters: ClassVar[Sequence[Sequence[object]]] = [
            ["log-file", None, None, "Where relay and echo log to."],
            ["log-format", None, "text", "Their log's format: text or json."],
            ["log-level", None, None, "Their log's level: info, warn, …"],
        ]

        def getSynopsis(self) -> str:
            return "Usage: netsock" if self.subCommand else "Usage: netsock [options] COMMAND …"

        def opt_reactor(self, name: str) -> None:
            """Run on this reactor: epoll, poll, select or asyncio."""
            try:
                installReactor(name)
            except NoSuchReactor:
                raise usage.UsageError(f"--reactor {name}: there is no such reactor") from None
            except ReactorAlreadyInstalledError:
                raise usage.UsageError("--reactor: give it once") from None

        def opt_version(self) -> None:
            """Print the version and exit."""
            import twisted

            from ._version import __version__

            sys.stdout.write(f"netsock {__version__} (Twisted {twisted.__version__})\n")
            raise SystemExit(0)

    make: Callable[[], usage.Options] = NetsockOptions
    return make()


def _twist(options: usage.Options, arguments: list[str]) -> int:
    """Run a service as ``twist netsock`` does; the reactor is installed already."""
    from twisted.application.twist._twist import Twist

    log = [
        f"--{name}={options[name]}"
        for name in ("log-file", "log-level")
        if options[name] is not None
    ]
    own = getopt.getopt(arguments, options.shortOpt, options.longOpt)[1]
    command, *rest = own
    # One behind the command counts.
    shown = f"--log-format={options['log-format']}"
    Twist.main(["twist", *log, "netsock", command, shown, *rest])
    return 0


if __name__ == "__main__":
    sys.exit(main())
