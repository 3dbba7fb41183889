"""One scenario: its contenders started, measured in rounds of random order, and ended."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from .peers import Bench
from .processes import LONGEST, Disturbance, Process, ProcessError, processors, python
from .relays import command, missing, web_command
from .scenarios import Scenario
from .task import JOBS, Task

Figures = dict[str, float]
Meter = Callable[[float], Figures]
"""Measures one contender for some seconds."""

TURNS = 7
"""In which fairness is measured without and with the greedy client."""

SEPARATE = "@"
"""Stands in a contender's name before the reactor that it is to run on."""


@dataclass
class Settings:
    """How to measure."""

    rounds: int = 5
    seconds: float = 0.5
    connections: int | None = None
    """At most so many, whatever the scenario says."""
    reactors: Sequence[str] = ()
    """If there are any, ours take part once on each."""
    only: Sequence[str] = ()
    """If there are any, these contenders and the reference alone."""


@dataclass
class Outcome:
    """What came of a scenario."""

    rounds: list[dict[str, Figures]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    others: float | None = None
    """Processors that other work kept busy meanwhile."""


def why_not(scenario: Scenario, contender: str) -> str | None:
    """Say why *contender* cannot take part, or return `None`."""
    name, _, reactor = contender.partition(SEPARATE)
    module = {"trio": "trio", "anyio": "anyio", "facade": "twisted_netsock.blocking"}.get(name)
    if name.startswith("uvloop") or reactor == "uvloop":
        module = "uvloop"
    if module is not None and find_spec(module) is None:
        return f"{module} is not installed" if name != "facade" else f"there is no {module}"
    if scenario.kind == "relay":
        return missing(name)
    if scenario.kind == "workers" and not _has_workers():
        return "the relay has no --workers"
    return None


def _has_workers() -> bool:
    from twisted_netsock.commands.relay.options import RelayOptions

    options: Any = RelayOptions
    return any(option.startswith("workers") for option in options().longOpt)


def contenders_of(scenario: Scenario, settings: Settings) -> list[str]:
    """Return who takes part, the reference among them."""
    names = list(scenario.contenders)
    if settings.reactors:
        ours = [name for name in ("netsock", "netsock-protocol") if name in names]
        names = [scenario.reference]
        names += [f"{name}{SEPARATE}{each}" for name in ours for each in settings.reactors]
    if settings.only:
        wanted = {*settings.only, scenario.reference}
        names = [name for name in names if name.partition(SEPARATE)[0] in wanted]
    return names


def run(scenario: Scenario, settings: Settings, bench: Bench) -> Outcome:
    """Measure *scenario*."""
    outcome, disturbance = Outcome(), Disturbance()
    with ExitStack() as stack:
        start = _Start(scenario, settings, bench, stack)
        meters: dict[str, Meter] = {}
        for contender in contenders_of(scenario, settings):
            reason = why_not(scenario, contender)
            if reason is not None:
                outcome.skipped[contender] = reason
                continue
            try:
                meters[contender] = start.meter(contender)
            except ProcessError as failed:
                outcome.failed[contender] = str(failed)
        for _ in range(settings.rounds):
            figures: dict[str, Figures] = {}
            for contender in random.sample(list(meters), len(meters)):
                try:
                    figures[contender] = meters[contender](settings.seconds)
                except ProcessError as failed:
                    outcome.failed[contender] = str(failed)
                    del meters[contender]
            outcome.rounds.append(figures)
    outcome.others = disturbance.processors()
    return outcome


class _Start:
    """Starts what each kind of scenario needs; *stack* ends it."""

    def __init__(
        self, scenario: Scenario, settings: Settings, bench: Bench, stack: ExitStack
    ) -> None:
        self._scenario = scenario
        self._bench = bench
        self._stack = stack
        self._here, self._there = processors()
        self._connections = min(scenario.connections, settings.connections or scenario.connections)
        self._peer: int | None = None

    def meter(self, contender: str) -> Meter:
        """Return what measures *contender*."""
        kind = self._scenario.kind
        if kind == "client":
            return self._client(contender)
        if kind == "memory":
            return lambda _: self._memory(contender)
        process, port = self._served(contender)
        self._stack.callback(process.end)
        # Connected now, once, so that the rounds measure nothing else.
        load = self._load(port)
        if kind == "fairness":
            return lambda seconds: _fairness(load, seconds)
        return lambda seconds: _server(process, load, seconds)

    def _client(self, contender: str) -> Meter:
        scenario, bench = self._scenario, self._bench
        if self._peer is None:
            peer, self._peer = bench.serve(
                JOBS[scenario.load],
                self._there if scenario.apart else self._here,
                tls=scenario.tls,
                tickets=scenario.tickets,
            )
            self._stack.callback(peer.end)
        name, _, reactor = contender.partition(SEPARATE)
        task = Task(
            scenario.load,
            self._peer,
            authority=str(bench.authority) if scenario.tls else None,
            reactor=reactor or "epoll",
        )
        client = self._contender("client", name, task)
        self._stack.callback(client.end)
        _expect_ready(client)
        return lambda seconds: _figures(_measured(client, seconds))

    def _contender(self, side: str, name: str, task: Task) -> Process:
        words = python("benchmarks.contender", side, name, task.to_json())
        return Process(*words, processor=self._here)

    def _load(self, port: int) -> Process:
        load = self._bench.load(
            self._scenario.load, port, self._connections, tls=self._scenario.tls
        )
        self._stack.callback(load.end)
        _expect_ready(load)
        return load

    def _served(self, contender: str) -> tuple[Process, int]:
        """Start a server or relay, and return its port."""
        scenario, bench = self._scenario, self._bench
        name, _, reactor = contender.partition(SEPARATE)
        certificate = bench.certificate if scenario.tls else None
        if scenario.kind == "web":
            port, words = web_command(name, bench.directory, bench.certificate)
            return self._listening(port, words)
        task = Task(
            "echo",
            certificate=None if certificate is None else str(certificate),
            reactor=reactor or "epoll",
        )
        if scenario.kind in {"relay", "workers"}:
            task = Task("relay", self._backend(), certificate=task.certificate)
            if name != "twisted":
                relay = "netsock" if scenario.kind == "workers" else name
                more = ("--workers", "2") if name == "two" else ()
                port, words = command(relay, bench.directory, task.port, certificate, more)
                return self._listening(port, words)
        if name == "c-epoll":
            return bench.serve("echo", self._here, tls=scenario.tls)
        process = self._contender("server", name, task)
        try:
            return process, int(process.line())
        except ProcessError:
            process.end()
            raise

    def _backend(self) -> int:
        """Return the port of the neutral server behind the relays."""
        if self._peer is None:
            peer, self._peer = self._bench.serve(self._scenario.peer, self._there)
            self._stack.callback(peer.end)
        return self._peer

    def _listening(self, port: int, words: Sequence[str]) -> tuple[Process, int]:
        process = Process(*words, processor=self._here)
        try:
            process.wait_for_port(port)
        except ProcessError:
            process.end()
            raise
        return process, port

    def _memory(self, contender: str) -> Figures:
        """Return what each connection adds to a server that is new."""
        process, port = self._served(contender)
        try:
            # What the first connection brings in is not each connection's.
            first = self._bench.load("hold", port, 10, tls=self._scenario.tls)
            try:
                _expect_ready(first)
                before = process.resident_bytes()
                load = self._bench.load("hold", port, self._connections, tls=self._scenario.tls)
                try:
                    _expect_ready(load, 2 * LONGEST)
                    grown = process.resident_bytes() - before
                finally:
                    load.end()
            finally:
                first.end()
        finally:
            process.end()
        return {"kilobytes": grown / 1024 / self._connections}


def _expect_ready(process: Process, seconds: float = LONGEST) -> None:
    if process.line(seconds) != "ready":
        raise process.failed("is not ready")


def _measured(process: Process, seconds: float, greedy: int = 0) -> dict[str, Any]:
    process.say(f"{seconds} {greedy}")
    said = process.line(seconds + LONGEST)
    if not said["operations"] and not said.get("bytes"):
        raise process.failed("did nothing")
    return dict(said)


def _figures(said: dict[str, Any]) -> Figures:
    count = said["operations"] or said["bytes"]
    figures = {"rate": count / said["seconds"], "cpu": said["cpu"] / count}
    if "p99" in said and said["operations"]:
        figures |= {"p50": float(said["p50"]), "p99": float(said["p99"])}
    return figures


def _server(process: Process, load: Process, seconds: float) -> Figures:
    """Put the load on a server, and look what it takes of the processor."""
    before = process.seconds_of_processor()
    said = _measured(load, seconds)
    return _figures(said | {"cpu": process.seconds_of_processor() - before})


def _fairness(load: Process, seconds: float) -> Figures:
    """Compare the slowest answers with and without a greedy client."""
    alone, beside = [], []
    # In turns, of which the middle counts: another process that takes the processor for a few
    # milliseconds makes the slowest answers of that turn, and of that alone.
    for _ in range(TURNS):
        alone.append(_measured(load, seconds / TURNS))
        beside.append(_measured(load, seconds / TURNS, 1))
    slow, slow_alone = (
        statistics.median(float(said["p99"]) for said in each) for each in (beside, alone)
    )
    return {
        "times": slow / max(1.0, slow_alone),
        "p99": slow,
        "p99 alone": slow_alone,
        "rate": sum(each["operations"] for each in beside)
        / sum(each["seconds"] for each in beside),
    }
