"""The options of ``twist netsock relay``: what is written on the command line, to settings."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, ClassVar, Final

import attrs
from twisted.internet.endpoints import (
    UNIXClientEndpoint,
    UNIXServerEndpoint,
    clientFromString,
    serverFromString,
)
from twisted.python import usage

from ..._endpoints.client import ClientEndpoint
from ..._endpoints.server import ServerEndpoint
from ..._endpoints.strings import endpoint_from
from ..._proxies import without_credentials
from ...errors import SocketBindError
from ...options import ServerTLSSocketOptions
from .._common.expiry import expiry_problems
from .._common.logs import LogOptions
from .._common.targets import parse_time
from .access import KINDS, Access
from .limits import Limits, default_connections, raise_descriptor_limit
from .routes import Routes, Target, route_name
from .worker import WorkerPlace

__all__ = ["RelayOptions", "Settings", "asks_for_certificates", "is_loopback"]

_MOST_WORKERS: Final = 256
_MOST_CONNECTIONS: Final = 1_000_000
_TLS_PREFIXES: Final = ("netsock-tls", "ssl", "tls")
_EXPOSED: Final = "what arrives there passes in plain text; --unsafe-plain allows it"


@attrs.frozen(kw_only=True, eq=False)
class Settings:
    """
    What a relay is to do; all of it is checked.

    Attributes:
        listen: Server endpoints.
        routes: Where to connect.
        access: The access rules.
        limits: How much.
        reload_every: Seconds between two looks for changed files, or `None`.
        workers: How many processes; 1 is this one alone.
        status: Where to serve the status, or `None`.
        worker: Which worker this process is, or `None`.
        expect_expiry: Seconds for which certificates are to be valid still.
    """

    listen: tuple[Any, ...]
    routes: Routes
    access: Access
    limits: Limits
    reload_every: float | None
    workers: int
    status: Any
    worker: WorkerPlace | None
    expect_expiry: float = 0.0


class RelayOptions(LogOptions):
    """
    The options of ``twist netsock relay``.

    Attributes:
        settings: What they come to, once they are parsed and there are endpoints.
    """

    synopsis = "[--listen ENDPOINT... --to ENDPOINT...] [options]"
    longdesc = (
        "Relay every connection from some endpoints to others, both ways. Any endpoint strings "
        "will do: netsock-tls:8443:certificates=both.pem terminates TLS, "
        "netsock-tls:example.com:443 originates it. Times have a unit: 10s, 5m, 1h. Without "
        "options, a demonstration: TLS on loopback with a certificate made in memory, in front "
        "of a small web server."
    )
    optParameters: ClassVar[Sequence[Sequence[object]]] = [
        ["reload-every", None, None, "How often to look for changed certificates and keys."],
        ["expect-expiry", None, "14d", "Warn of certificates that expire sooner."],
        ["drain", None, "30s", "How long connections may go on after SIGTERM."],
        ["workers", None, "1", "How many processes share the ports; auto: one per processor."],
        ["max-connections", None, None, "Clients at once [default: by ulimit -n]."],
        [
            "max-per-client",
            None,
            None,
            "Of one address, handshakes included [default: half of max-connections].",
        ],
        [
            "max-handshakes",
            None,
            "256",
            "Connections at once on the way through TLS; half of one address.",
        ],
        ["connect-timeout", None, "10s", "For each attempt to connect a backend."],
        ["idle-timeout", None, "1h", "Ends connections on which nothing passes, or none."],
        ["half-closed-timeout", None, "10m", "The same when one side has finished, or none."],
        ["lifetime", None, "none", "Ends connections however they are, or none."],
        ["status", None, None, "Where to serve /healthz, /status.json and /metrics."],
    ]
    optFlags: ClassVar[Sequence[Sequence[object]]] = [
        ["allow-all", None, "Let in every client that has a verified certificate."],
        ["unsafe-plain", None, "Allow plain text beyond loopback on the other side of TLS."],
        ["check", None, "Check everything, print what is wrong, and end."],
    ]

    def __init__(self) -> None:
        super().__init__()
        self["listen"] = []
        self["to"] = []
        self["route"] = []
        self["allow"] = []
        self.settings: Settings | None = None
        self._errors: list[str] = []

    def opt_listen(self, text: str) -> None:
        """Where clients connect to: a server endpoint. May be repeated."""
        self["listen"].append(text)

    def opt_to(self, text: str) -> None:
        """Where they are relayed to: a client endpoint. Further ones are tried in turn."""
        self["to"].append(text)

    def opt_route(self, text: str) -> None:
        """NAME=ENDPOINT, for clients that ask for this server name. May be repeated."""
        self["route"].append(text)

    def opt_allow_cn(self, text: str) -> None:
        """Let in clients with this common name. May be repeated."""
        self["allow"].append(("cn", text))

    def opt_allow_ou(self, text: str) -> None:
        """Let in clients with this organizational unit. May be repeated."""
        self["allow"].append(("ou", text))

    def opt_allow_dns(self, text: str) -> None:
        """Let in clients with this DNS name in their certificate. May be repeated."""
        self["allow"].append(("dns", text))

    def opt_allow_uri(self, text: str) -> None:
        """Let in clients with a URI like this; * is a segment, ** the rest. May be repeated."""
        self["allow"].append(("uri", text))

    def opt_allow_spki(self, text: str) -> None:
        """Let in clients with this public key: sha256//BASE64. May be repeated."""
        self["allow"].append(("spki", text))

    def parseArgs(self, *rest: str) -> None:
        """Refuse what belongs to no option."""
        if rest:
            raise usage.UsageError(
                f"unexpected {rest[0]!r}: endpoints stand behind --listen, --to"
            )

    def postOptions(self) -> None:
        """Make everything, so that all mistakes are reported before anything runs."""
        self.choose_log()
        if self["listen"] or self["to"] or self["route"] or self["check"] or self["allow"]:
            self._settle()
        elif self["status"] is not None or self["workers"] != "1":
            raise usage.UsageError("--listen is missing; without it there is a demonstration only")
        if self["check"]:
            self._end_check()
        if self._errors:
            first, *others = self._errors
            more = f" (--check lists {len(others)} more)" if others else ""
            raise usage.UsageError(first + more)

    def _end_check(self) -> None:
        for error in self._errors:
            sys.stderr.write(f"Error: {error}\n")
        if not self._errors and self.settings is not None:
            sys.stdout.write(
                f"Configuration OK: {_count(len(self.settings.listen), 'listener')}, "
                f"{_count(len(list(self.settings.routes)), 'backend')}.\n"
            )
        raise SystemExit(1 if self._errors else 0)

    def _settle(self) -> None:
        from twisted.internet import reactor

        texts = list(self["listen"])
        listen = [self._endpoint(serverFromString, reactor, "listen", text) for text in texts]
        targets = self._targets(reactor, "to", self["to"])
        routes = self._routes(reactor)
        for option, given in (("listen", texts), ("to", self["to"] or self["route"])):
            if not given:
                self._wrong(option, None, "is missing; give both, or neither to try it out")
        access = self._access(listen)
        status = self._status(reactor)
        limits = self._limits()
        workers = self._number("workers", _MOST_WORKERS, {"auto": os.cpu_count() or 1}) or 1
        if workers > 1:
            self._check_shared(texts, listen)
        if routes:
            self._check_names(texts)
        expect_expiry = self._time("expect-expiry", days=True) or 0.0
        if self["check"]:
            self._check_expiry(texts, listen, [*targets, *chain(*routes.values())], expect_expiry)
        listen = self._guard_plain(texts, listen, targets, routes)
        settings = Settings(
            listen=tuple(each for each in listen if each is not None),
            routes=Routes(default=tuple(targets), by_name=routes),
            access=access,
            limits=limits,
            reload_every=self._time("reload-every"),
            expect_expiry=expect_expiry,
            workers=workers,
            status=status,
            worker=WorkerPlace.take() if workers > 1 else None,
        )
        if not self._errors:
            self.settings = settings
            self["listen"] = list(settings.listen)

    def _wrong(self, option: str, value: object, why: str) -> None:
        shown = "" if value is None else f" {value}"
        self._errors.append(f"--{option}{shown}{'' if value is None else ':'} {why}")

    # Endpoints

    def _endpoint(self, make: Any, reactor: object, option: str, text: str) -> Any:
        """Make an endpoint of what the user wrote, or say what is wrong with it."""
        try:
            return endpoint_from(make, reactor, text)
        except Exception as error:  # noqa: BLE001 - parsers of others raise what they like
            self._wrong(option, without_credentials(text), str(error) or type(error).__name__)
            return None

    def _targets(self, reactor: object, option: str, texts: Iterable[str]) -> list[Target]:
        made = [(text, self._endpoint(clientFromString, reactor, option, text)) for text in texts]
        return [Target(endpoint, text) for text, endpoint in made if endpoint is not None]

    def _routes(self, reactor: object) -> dict[str, tuple[Target, ...]]:
        routes: dict[str, tuple[Target, ...]] = {}
        for text in self["route"]:
            name, found, endpoint = text.partition("=")
            if not found or not endpoint:
                self._wrong("route", text, "must be NAME=ENDPOINT, www.example.com=netsock:…")
                continue
            try:
                key = route_name(name)
            except ValueError as error:
                self._wrong("route", text, f"{name!r} {error}")
                continue
            targets = self._targets(reactor, f"route {name} to", [endpoint])
            routes[key] = (*routes.get(key, ()), *targets)
        return routes

    def _check_expiry(
        self, texts: list[str], listen: list[Any], targets: list[Target], seconds: float
    ) -> None:
        """Refuse certificates that are not valid now, and warn of those that expire soon."""
        found = [("listen", text, each) for text, each in zip(texts, listen, strict=True)]
        found += [("to", target.name, target.endpoint) for target in targets]
        for option, text, endpoint in found:
            if isinstance(endpoint, ServerEndpoint | ClientEndpoint):
                for wrong, why in expiry_problems(endpoint, seconds):
                    if wrong:
                        self._wrong(option, text, why)
                    else:
                        sys.stderr.write(f"Warning: --{option} {text}: {why}\n")

    def _check_names(self, texts: list[str]) -> None:
        for text in texts:
            if not text.startswith("netsock-tls:"):
                self._wrong("listen", text, "--route needs netsock-tls:, where clients send names")

    def _check_shared(self, texts: list[str], listen: list[Any]) -> None:
        for text, endpoint in zip(texts, listen, strict=True):
            if endpoint is not None and not isinstance(endpoint, ServerEndpoint):
                self._wrong("listen", text, "--workers needs netsock: or netsock-tls:")
            elif endpoint is not None and endpoint.over_endpoint:
                self._wrong("listen", text, "--workers cannot share what endpoint= listens on")

    def _guard_plain(
        self,
        texts: list[str],
        listen: list[Any],
        targets: list[Target],
        routes: dict[str, tuple[Target, ...]],
    ) -> list[object]:
        """Refuse plain text beyond loopback where the other side has TLS to protect it."""
        if self["unsafe-plain"]:
            return listen
        every = [("to", target) for target in targets]
        every += [("route", target) for group in routes.values() for target in group]
        secures = any(_is_tls(target.name) for _, target in every)
        guarded: list[object] = []
        for text, endpoint in zip(texts, listen, strict=True):
            exposed = endpoint is not None and secures and not _is_tls(text)
            adopted = endpoint.adopted if isinstance(endpoint, ServerEndpoint) else None
            if exposed and adopted is not None:
                # Where that is shows when it listens.
                guarded.append(endpoint.adopting(_local_sockets(adopted, _EXPOSED)))
                continue
            if exposed and not _is_local(endpoint):
                self._wrong("listen", text, f"{_EXPOSED}, node=127.0.0.1 avoids it")
            guarded.append(endpoint)
        if any(_is_tls(text) for text in texts):
            for option, target in every:
                if not _is_tls(target.name) and not _is_local(target.endpoint):
                    self._wrong(option, target.name, f"{_EXPOSED}, netsock-tls: avoids it")
        return guarded

    def _status(self, reactor: object) -> object:
        text = self["status"]
        if text is None:
            return None
        endpoint = self._endpoint(serverFromString, reactor, "status", text)
        if (
            endpoint is not None
            and not _is_local(endpoint)
            and not asks_for_certificates(endpoint)
        ):
            self._wrong(
                "status",
                text,
                "must be of loopback, node=127.0.0.1, or a UNIX socket, or demand certificates: "
                "netsock-tls: with trustedCertificates= and clientCertificateRequired=yes",
            )
        return endpoint

    # Access

    def _access(self, listen: list[object]) -> Access:
        access = Access(everyone=bool(self["allow-all"]))
        for kind, text in self["allow"]:
            assert kind in KINDS
            try:
                access = access.with_rule(kind, text)
            except ValueError as error:
                self._wrong(f"allow-{kind}", text, str(error))
        if access.everyone and self["allow"]:
            self._wrong("allow-all", None, "lets everybody in: give it alone, or rules alone")
        wanted = bool(self["allow"]) or access.everyone
        for text, endpoint in zip(self["listen"], listen, strict=True):
            if endpoint is None:
                continue
            asks = (
                isinstance(endpoint, ServerEndpoint)
                and isinstance(endpoint.options, ServerTLSSocketOptions)
                and endpoint.options.certificate_verifier is not False
                and endpoint.options.trusted_certificates is not None
            )
            if asks and not wanted:
                self._wrong(
                    "listen",
                    text,
                    "it asks for the certificates of clients: say which of them may come in, "
                    "with --allow-cn, --allow-ou, --allow-dns, --allow-uri, --allow-spki or "
                    "--allow-all",
                )
            elif wanted and not asks:
                self._wrong(
                    "listen",
                    text,
                    "--allow- rules need netsock-tls: with trustedCertificates= and "
                    "clientCertificateRequired=yes",
                )
        return access

    # Limits

    def _limits(self) -> Limits:
        connections = self._number("max-connections", _MOST_CONNECTIONS)
        if connections is None:
            connections = default_connections()
        else:
            try:
                raise_descriptor_limit(connections, only_check=True)
            except ValueError as error:
                self._wrong("max-connections", connections, str(error))
        per_client: int | None = max(1, connections // 2)
        if self["max-per-client"] is not None:
            per_client = self._number("max-per-client", _MOST_CONNECTIONS, {"none": None})
        return Limits(
            connections=connections,
            per_client=per_client,
            handshakes=self._number("max-handshakes", _MOST_CONNECTIONS),
            connect=self._time("connect-timeout"),
            idle=self._time("idle-timeout", none=True),
            half_closed=self._time("half-closed-timeout", none=True),
            lifetime=self._time("lifetime", none=True),
            drain=self._time("drain") or 0.0,
        )

    def _number(
        self, option: str, most: int, words: dict[str, int | None] | None = None
    ) -> int | None:
        value = self[option]
        words = words or {}
        if value is None or value in words:
            return None if value is None else words[value]
        if re.fullmatch(r"[0-9]{1,9}", value) and 1 <= int(value) <= most:
            return int(value)
        others = "".join(f" or {word}" for word in words)
        self._wrong(option, value, f"must be a number from 1 to {most}{others}")
        return None

    def _time(self, option: str, *, none: bool = False, days: bool = False) -> float | None:
        value = self[option]
        if value is None or (none and value == "none"):
            return None
        try:
            return parse_time(option, value, days=days).total_seconds()
        except usage.UsageError as error:
            self._errors.append(f"{error}{', or none' if none else ''}")
            return None


# Which side is plain text, and whether it can be reached from beyond this machine


def _is_tls(text: str) -> bool:
    """Return whether an endpoint string is one of TLS."""
    return text.partition(":")[0] in _TLS_PREFIXES


def is_loopback(host: str) -> bool:
    """Return whether *host* is an address of loopback, or the name that stands for it."""
    # Only that one is in the table of every system. Names below it should never lead
    # elsewhere (RFC 6761, section 6.3), but the C library asks the DNS for them, and for
    # the name with a dot at its end.
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def asks_for_certificates(endpoint: object) -> bool:
    """Return whether none but clients with a verified certificate reach an endpoint."""
    # The records of further certificates demand what the first does.
    options = endpoint.options if isinstance(endpoint, ServerEndpoint) else None
    return isinstance(options, ServerTLSSocketOptions) and options.client_certificate_required


def _is_local(endpoint: object) -> bool:
    """Return whether an endpoint is of loopback or a UNIX socket; whatever is unknown is not."""
    if isinstance(endpoint, ServerEndpoint | ClientEndpoint):
        if endpoint.options.ai_family == socket.AF_UNIX:
            return True
        if endpoint.options.proxy is not None:
            # Its node is where the proxy says, and what is sent passes through that.
            return False
        return endpoint.node is not None and is_loopback(endpoint.node)
    if isinstance(endpoint, UNIXServerEndpoint | UNIXClientEndpoint):
        return True
    for attribute in ("_interface", "_host", "_hostText"):
        host = getattr(endpoint, attribute, None)
        if isinstance(host, bytes):
            host = host.decode("ascii", "replace")
        if isinstance(host, str):
            return is_loopback(host)
    return False


def _local_sockets(
    sockets: Callable[[], list[socket.socket]], why: str
) -> Callable[[], list[socket.socket]]:
    """
    Return what does as *sockets*, and refuses those that can be reached from elsewhere.

    Args:
        sockets: Takes over sockets that were bound before the process.
        why: For the text of the error.
    """

    def checked() -> list[socket.socket]:
        found = sockets()
        for sock in found:
            if sock.family != socket.AF_UNIX and not is_loopback(sock.getsockname()[0]):
                place = str(sock.getsockname()[0])
                for each in found:
                    each.close()
                raise SocketBindError(place, None, strerror=why)
        return found

    return checked


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
