"""``netsock probe``: what a TLS server says, and whether it can be believed."""

from __future__ import annotations

import socket as _socket
from collections.abc import Sequence
from typing import ClassVar, Final

from twisted.python import usage

from ..._io.interfaces import Reactor
from .._common.one_shot import OneShotOptions, say
from .._common.outcomes import Outcome
from .._common.stdio import Output
from .._common.targets import TLS_FLAGS, TLS_PARAMETERS, parse_target, parse_time, tls_options
from .._common.text import Style, encoded
from .report import as_json, as_text
from .run import Request, probe
from .starttls import DIALOGUES

__all__ = ["ProbeOptions"]

_STDOUT: Final = 1
_HTTPS: Final = 443


class ProbeOptions(OneShotOptions):
    """The options of ``netsock probe``."""

    synopsis = "HOST[:PORT] [options]"
    longdesc = (
        "Connect to every address of HOST, shake hands, and say what was found: the times, the "
        "version and cipher, the certificates as sent and as verified, and what fails "
        "verification. Nothing is sent after the handshake. Exit status: 0 every address is "
        "reached and verified, 2 usage, 3 host not found, 4 unreachable, 5 TLS failed, "
        "6 UNVERIFIED, 7 expires too soon."
    )
    optParameters: ClassVar[Sequence[Sequence[object]]] = [
        ["starttls", None, None, f"Ask for TLS first: {', '.join(DIALOGUES)}."],
        ["expect-expiry", None, None, "Fail if a certificate expires sooner: 30d, 12h."],
        ["timeout", "t", "10s", "For the look-up, then for each address."],
        *TLS_PARAMETERS,
    ]
    optFlags: ClassVar[Sequence[Sequence[object]]] = [
        ["json", "j", "Print JSON."],
        ["pem", None, "Print the certificates as sent, too."],
        ["ipv4", "4", "IPv4 addresses only."],
        ["ipv6", "6", "IPv6 addresses only."],
        *TLS_FLAGS,
    ]

    def parseArgs(self, *targets: str) -> None:
        """Take the host."""
        if len(targets) != 1:
            raise usage.UsageError("give one HOST or HOST:PORT, after the options")
        self["target"] = targets[0]

    def postOptions(self) -> None:
        """Check everything, and read the files."""
        super().postOptions()
        protocol = self["starttls"]
        if protocol is not None and protocol not in DIALOGUES:
            known = ", ".join(DIALOGUES)
            raise usage.UsageError(f"--starttls {protocol}: it must be one of {known}")
        if self["ipv4"] and self["ipv6"]:
            raise usage.UsageError("--ipv4 and --ipv6: give one of them, or neither for both")
        target = parse_target(
            self["target"], _HTTPS if protocol is None else DIALOGUES[protocol].port
        )
        expiry = self["expect-expiry"]
        self.request = Request(
            target=target,
            options=tls_options(self, target.host),
            timeout=parse_time("timeout", self["timeout"]),
            family=_family(self),
            starttls=protocol,
            expect_expiry=None
            if expiry is None
            else parse_time("expect-expiry", expiry, days=True),
        )

    async def run(self, reactor: Reactor) -> Outcome:
        """Probe, and print what was found."""
        report = await probe(reactor, self.request)
        if self["json"]:
            text = as_json(report, pem=bool(self["pem"]))
        else:
            text = as_text(report, Style.of(_STDOUT), pem=bool(self["pem"]))
        output = Output(reactor, _STDOUT)
        output.write(encoded(text))
        try:
            await output.below(0)
        except BrokenPipeError:
            return Outcome.BROKEN_PIPE
        except OSError as error:
            say(f"cannot write the report: {error.strerror}")
            return Outcome.FAILED
        return report.outcome


def _family(options: usage.Options) -> int:
    if options["ipv4"]:
        return _socket.AF_INET
    return _socket.AF_INET6 if options["ipv6"] else _socket.AF_UNSPEC
