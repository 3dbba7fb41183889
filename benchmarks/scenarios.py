"""What is measured: scenarios, who takes part in each, and the goals."""

from __future__ import annotations

from dataclasses import dataclass

BLOCKING = ("blocking", "facade", "netsock")
ON_TWISTED = ("netsock-protocol", "twisted")
WITH_TLS = ("asyncio-streams", "asyncio-protocol", "uvloop-streams", "uvloop-protocol")
ELSEWHERE = (*WITH_TLS, "trio", "anyio")
PLAIN_CLIENTS = (*BLOCKING, *ON_TWISTED, *ELSEWHERE, "asyncio-sock")
TLS_CLIENTS = (*BLOCKING, *ON_TWISTED, *ELSEWHERE)
PLAIN_SERVERS = ("netsock", *ON_TWISTED, *ELSEWHERE, "asyncio-sock", "c-epoll")
TLS_SERVERS = ("netsock", *ON_TWISTED, *ELSEWHERE, "c-epoll")
PLAIN_RELAYS = ("haproxy", "netsock", "twisted", "nginx", "socat")
TLS_RELAYS = ("haproxy", "netsock", "twisted", "nginx", "stunnel")


@dataclass(frozen=True)
class Scenario:
    """One thing to measure, of several contenders in the same rounds."""

    name: str
    title: str
    kind: str
    """Who is measured: a ``client``, ``server``, ``relay``, ``web`` server or ``workers``; or
    what: ``memory`` or ``fairness`` of a server."""
    load: str
    """What clients do (`task.JOBS`), or the mode of the load generator."""
    contenders: tuple[str, ...]
    reference: str
    """The contender whose figures of the same round the others' are divided by."""
    tls: bool = False
    connections: int = 1
    peer: str = "echo"
    """The neutral server behind a relay."""
    apart: bool = False
    """Whether a client's peer has a processor of its own: where that matters, the time that it
    takes to wake another processor covers the difference of what is compared."""
    tickets: int = 0
    """Session tickets that the neutral server hands out for each handshake."""

    @property
    def quantity(self) -> str:
        """The figure that is printed first."""
        return {"memory": "kilobytes", "fairness": "times", "workers": "cpu"}.get(
            self.kind, "rate"
        )

    @property
    def in_bytes(self) -> bool:
        """Whether the operations that are counted are bytes."""
        return self.load in {"send", "send-file", "receive", "port-reads", "port-writes"}


def client(name: str, title: str, load: str, *, tls: bool = False, **more: object) -> Scenario:
    """Return the scenario of clients against the neutral peer."""
    contenders: tuple[str, ...] = TLS_CLIENTS if tls else PLAIN_CLIENTS
    if load.startswith("port-") or load == "send-file":
        contenders = BLOCKING
    more.setdefault("apart", load not in {"round-trips", "connects"})
    return Scenario(name, title, "client", load, contenders, "blocking", tls=tls, **more)  # type: ignore[arg-type]


def server(name: str, title: str, connections: int, *, tls: bool = False) -> Scenario:
    """Return the scenario of echo servers under load."""
    contenders = TLS_SERVERS if tls else PLAIN_SERVERS
    return Scenario(name, title, "server", "round-trips", contenders, "twisted", tls, connections)


def relay(
    name: str, title: str, load: str, connections: int, peer: str, *, tls: bool = False
) -> Scenario:
    """Return the scenario of relays between load and neutral servers."""
    contenders = TLS_RELAYS if tls else PLAIN_RELAYS
    return Scenario(name, title, "relay", load, contenders, "haproxy", tls, connections, peer)


HELD = ("netsock", *ON_TWISTED, "asyncio-streams", "uvloop-protocol", "trio", "anyio", "c-epoll")
FAIR = ("netsock", *ON_TWISTED, "asyncio-streams", "uvloop-streams", "trio")

_SCENARIOS = (
    client("round-trips", "64 bytes there and back on one connection", "round-trips"),
    client(
        "round-trips-apart", "the same, the peer on another processor", "round-trips", apart=True
    ),
    client("connects", "connect, 64 bytes there and back, close", "connects"),
    client("receive", "receive in bulk, 64 KiB at a time", "receive"),
    client("send", "send in bulk, 64 KiB at a time", "send"),
    client("send-file", "send a file of 1 MiB, again and again", "send-file"),
    client("port-reads", "read in bulk from a buffered port, 64 KiB at a time", "port-reads"),
    client("port-writes", "write in bulk to a buffered port, 16 KiB at a time", "port-writes"),
    client("tls-round-trips", "64 bytes there and back over TLS", "round-trips", tls=True),
    client("tls-connects", "full handshake, 64 bytes, close", "connects", tls=True),
    client(
        "tls-connects-again",
        "the same, where the server offers to resume sessions",
        "connects",
        tls=True,
        tickets=2,
    ),
    client("tls-receive", "receive in bulk over TLS", "receive", tls=True),
    client("tls-send", "send in bulk over TLS", "send", tls=True),
    server("echo-100", "64 bytes echoed on 100 connections", 100),
    server("echo-1000", "64 bytes echoed on 1,000 connections", 1000),
    server("tls-echo-100", "64 bytes echoed over TLS on 100 connections", 100, tls=True),
    Scenario(
        "web",
        "pages of 10 KB of twist web over TLS, 16 connections",
        "web",
        "web",
        ON_TWISTED,
        "twisted",
        tls=True,
        connections=16,
    ),
    Scenario("memory", "an idle connection", "memory", "hold", HELD, "twisted", connections=2000),
    Scenario(
        "tls-memory",
        "an idle connection over TLS",
        "memory",
        "hold",
        HELD,
        "twisted",
        tls=True,
        connections=500,
    ),
    Scenario(
        "fairness",
        "p99 of 100 small clients beside a greedy one, over that without it",
        "fairness",
        "round-trips",
        FAIR,
        "twisted",
        connections=100,
    ),
    relay("relay-bulk", "bulk, one connection, client to server", "send", 1, "sink"),
    relay(
        "relay-echo-100", "64 bytes there and back on 100 connections", "round-trips", 100, "echo"
    ),
    relay("relay-connects", "connect, 64 bytes, close", "connects", 16, "echo"),
    relay("tls-relay-to-plain", "bulk, TLS client to plain server", "send", 1, "sink", tls=True),
    relay(
        "tls-relay-from-plain",
        "bulk, plain server to TLS client",
        "receive",
        1,
        "source",
        tls=True,
    ),
    relay(
        "tls-relay-echo-100",
        "64 bytes there and back on 100 TLS connections",
        "round-trips",
        100,
        "echo",
        tls=True,
    ),
    relay(
        "tls-relay-connects", "full handshake, 64 bytes, close", "connects", 16, "echo", tls=True
    ),
    Scenario(
        "workers",
        "processor time of the relay per small message, two workers and one",
        "workers",
        "round-trips",
        ("one", "two"),
        "one",
        connections=100,
    ),
)
SCENARIOS = {scenario.name: scenario for scenario in _SCENARIOS}


@dataclass(frozen=True)
class Goal:
    """What a contender is to reach, as a ratio to a reference or, without one, as a value."""

    scenario: str
    contender: str
    reference: str | None
    bound: float
    quantity: str = "rate"
    at_most: bool = False
    later: float | None = None

    @property
    def text(self) -> str:
        """The bound in words."""
        unit = {"kilobytes": " KB", "times": " times"}.get(self.quantity, "")
        more = "" if self.later is None else f" (later {self.later:.2f})"
        return f"at {'most' if self.at_most else 'least'} {self.bound:g}{unit}{more}"

    def holds(self, figure: float) -> bool:
        """Tell whether *figure* reaches it."""
        return figure <= self.bound if self.at_most else figure >= self.bound


GOALS = (
    Goal("round-trips", "netsock", "blocking", 0.70, later=0.82),
    Goal("round-trips", "netsock", "twisted", 1.2),
    Goal("round-trips", "netsock", "asyncio-streams", 1.7),
    Goal("round-trips", "netsock", "trio", 1.2),
    Goal("receive", "netsock", "blocking", 0.85),
    Goal("send", "netsock", "blocking", 0.85),
    Goal("connects", "netsock", "blocking", 0.70),
    Goal("tls-round-trips", "netsock", "blocking", 0.65),
    Goal("tls-connects", "netsock", "blocking", 0.90),
    Goal("tls-send", "netsock", "blocking", 1.0),
    Goal("tls-receive", "netsock", "blocking", 0.90),
    Goal("echo-100", "netsock", "twisted", 1.3),
    Goal("echo-1000", "netsock", "twisted", 1.3),
    Goal("tls-echo-100", "netsock", "twisted", 1.5),
    Goal("echo-100", "netsock-protocol", "twisted", 1.1),
    Goal("tls-echo-100", "netsock-protocol", "twisted", 1.3),
    Goal("web", "netsock-protocol", "twisted", 1.1),
    Goal("memory", "netsock", None, 3.0, "kilobytes", at_most=True),
    Goal("tls-memory", "netsock", None, 30.0, "kilobytes", at_most=True),
    Goal("round-trips", "facade", "blocking", 0.70),
    Goal("tls-round-trips", "facade", "blocking", 0.60),
    Goal("relay-bulk", "netsock", "haproxy", 1.2),
    Goal("relay-bulk", "netsock", "haproxy", 0.70, "cpu", at_most=True),
    Goal("relay-echo-100", "netsock", "haproxy", 0.65),
    Goal("relay-connects", "netsock", "haproxy", 0.55),
    Goal("tls-relay-to-plain", "netsock", "haproxy", 1.1),
    Goal("tls-relay-to-plain", "netsock", "stunnel", 1.2),
    Goal("tls-relay-from-plain", "netsock", "haproxy", 1.1),
    Goal("tls-relay-from-plain", "netsock", "stunnel", 1.2),
    Goal("tls-relay-echo-100", "netsock", "haproxy", 0.60),
    Goal("tls-relay-connects", "netsock", "haproxy", 0.88),
    Goal("workers", "two", "one", 1.15, "cpu", at_most=True),
    Goal("fairness", "netsock", None, 3.0, "times", at_most=True),
)


def goals_of(scenario: str) -> list[Goal]:
    """Return the goals of a scenario."""
    return [goal for goal in GOALS if goal.scenario == scenario]
