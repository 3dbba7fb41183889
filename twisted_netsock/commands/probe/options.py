"""``netsock probe``: what a TLS server says, and whether it can be believed."""

from __future__ import annotations

import os
import socket as _socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from difflib import get_close_matches
from typing import ClassVar, Final

from twisted.python import usage

from ..._io.interfaces import Reactor
from .._common.one_shot import OneShotOptions, say
from .._common.outcomes import Outcome
from .._common.stdio import Output
from .._common.targets import (
    PROXY_PARAMETERS,
    TLS_FLAGS,
    TLS_PARAMETERS,
    Target,
    parse_target,
    parse_time,
    proxy_fields,
    tls_options,
)
from .._common.text import Style, encoded
from .report import as_json, as_table, as_text
from .run import Report, Request, probe_many, worst
from .starttls import DIALOGUES

__all__ = ["ProbeOptions"]

_STDIN: Final = 0
_STDOUT: Final = 1
_STDERR: Final = 2
_MOST_BYTES: Final = 1024 * 1024
"""Of a list of hosts: some 50,000 of them."""
_HTTPS: Final = 443


class ProbeOptions(OneShotOptions):
    """The options of ``netsock probe``."""

    synopsis = "HOST[:PORT]… [options]"
    longdesc = (
        "Connect to every address of HOST, shake hands, and say what was found: the times, the "
        "version and cipher, the certificate, and what fails verification; of several hosts a "
        "table. A HOST of - stands for those on standard input. Nothing is sent after the "
        "handshake. Exit status, the worst that was found: 0 every address is reached and "
        "verified, 2 usage, 3 host not found, 4 unreachable, 5 TLS failed, 6 UNVERIFIED, "
        "7 expires too soon, 10 no post-quantum key exchange."
    )
    optParameters: ClassVar[Sequence[Sequence[object]]] = [
        ["starttls", None, None, f"Ask for TLS first: {', '.join(DIALOGUES)}."],
        ["expect-expiry", None, None, "Fail if a certificate expires sooner: 30d, 12h."],
        ["timeout", "t", "10s", "For the look-up, then for each address."],
        *PROXY_PARAMETERS,
        *TLS_PARAMETERS,
    ]
    optFlags: ClassVar[Sequence[Sequence[object]]] = [
        ["verbose", "v", "Print the whole chain, and of several hosts each report."],
        ["json", "j", "Print JSON; of several hosts a line each."],
        ["pem", None, "Print the certificates as sent, too."],
        ["expect-pq", None, "Fail if the key exchange is not post-quantum."],
        ["ipv4", "4", "IPv4 addresses only."],
        ["ipv6", "6", "IPv6 addresses only."],
        *TLS_FLAGS,
    ]

    def __init__(self) -> None:
        super().__init__()
        self["hosts"] = []

    def parseArgs(self, *targets: str) -> None:
        """Take the hosts."""
        self["targets"] = targets

    def postOptions(self) -> None:
        """Check everything, and read the files."""
        super().postOptions()
        protocol = self["starttls"]
        if protocol is not None and protocol not in DIALOGUES:
            known = ", ".join(DIALOGUES)
            near = get_close_matches(protocol, DIALOGUES, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise usage.UsageError(f"--starttls {protocol}: it must be one of {known}{hint}")
        if self["ipv4"] and self["ipv6"]:
            raise usage.UsageError("--ipv4 and --ipv6: give one of them, or neither for both")
        if self["proxy"] is not None and (self["ipv4"] or self["ipv6"]):
            raise usage.UsageError("--ipv4 and --ipv6 choose addresses, which --proxy looks up")
        port = _HTTPS if protocol is None else DIALOGUES[protocol].port
        targets = [parse_target(text, port) for text in self["targets"] if text != "-"]
        for path in [each for each in self["targets"] if each == "-"] + self["hosts"]:
            targets += _listed(path, port)
        if not targets:
            raise usage.UsageError("give one HOST or HOST:PORT, or several, or --hosts FILE")
        expiry = self["expect-expiry"]
        request = Request(
            target=targets[0],
            options=tls_options(self, targets[0].host, **proxy_fields(self)),
            timeout=parse_time("timeout", self["timeout"]),
            family=_family(self),
            starttls=protocol,
            expect_expiry=None
            if expiry is None
            else parse_time("expect-expiry", expiry, days=True),
            expect_pq=bool(self["expect-pq"]),
        )
        self.requests = [replace(request, target=each) for each in targets]

    def opt_hosts(self, path: str) -> None:
        """Probe the hosts that this file lists, one a line; - is standard input."""
        self["hosts"].append(path)

    async def run(self, reactor: Reactor) -> Outcome:
        """Probe, and print what was found."""
        progress = _Progress(len(self.requests))
        try:
            reports = await probe_many(reactor, self.requests, progress.step)
        finally:
            progress.clear()
        output = Output(reactor, _STDOUT)
        output.write(encoded("".join(self._written(reports))))
        try:
            await output.below(0)
        except BrokenPipeError:
            return Outcome.BROKEN_PIPE
        except OSError as error:
            say(f"cannot write the report: {error.strerror}")
            return Outcome.FAILED
        return worst(each.outcome for each in reports)

    def _written(self, reports: list[Report]) -> Iterator[str]:
        """Yield what is printed of *reports*."""
        pem, verbose, several = bool(self["pem"]), bool(self["verbose"]), len(reports) > 1
        style = Style.of(_STDOUT)
        for each in reports:
            if self["json"]:
                yield as_json(each, pem=pem, indent=None if several else 2)
            elif verbose or pem or not several:
                yield as_text(each, style, verbose=verbose, pem=pem)
                yield "\n" if several else ""
        if several and not self["json"]:
            yield as_table(reports, style)


class _Progress:
    """Counts hosts on standard error, if that is a terminal and there are several."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._shown = total > 1 and os.isatty(_STDERR)
        self._show()

    def step(self) -> None:
        """Count one more."""
        self._done += 1
        self._show()

    def _show(self) -> None:
        self._write(f"\r{self._done} of {self._total} hosts")

    def clear(self) -> None:
        """Leave the line empty."""
        self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        if self._shown:
            with suppress(OSError):
                os.write(_STDERR, text.encode())


def _listed(path: str, port: int) -> list[Target]:
    """
    Read the hosts that a file lists; what follows a # is a comment.

    Raises:
        usage.UsageError: It cannot be read, or a line is no host.
    """
    name = "standard input" if path == "-" else f"--hosts {path}"
    try:
        with open(_STDIN if path == "-" else path, "rb", closefd=path != "-") as file:
            data = file.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise usage.UsageError(f"{name}: {getattr(error, 'strerror', error)}") from None
    if len(data) > _MOST_BYTES:
        raise usage.UsageError(f"{name}: it holds more than {_MOST_BYTES} bytes")
    targets = []
    for number, line in enumerate(data.decode("utf-8", "backslashreplace").splitlines(), 1):
        text = line.partition("#")[0].strip()
        if text:
            try:
                targets.append(parse_target(text, port))
            except usage.UsageError as error:
                raise usage.UsageError(f"{name}, line {number}: {error}") from None
    return targets


def _family(options: usage.Options) -> int:
    if options["ipv4"]:
        return _socket.AF_INET
    return _socket.AF_INET6 if options["ipv6"] else _socket.AF_UNSPEC
