"""The accounts of a relay's connections, and the timer that looks at them."""

from __future__ import annotations

import pytest
from twisted.internet.error import ConnectionAborted
from twisted.internet.task import Clock
from twisted.logger import Logger, globalLogPublisher

from twisted_netsock.addresses import SocketAddress
from twisted_netsock.commands.relay import accounting
from twisted_netsock.commands.relay.accounting import Ledger
from twisted_netsock.commands.relay.limits import Limits


class Side:
    """As much of one side of a connection as its account looks at."""

    def __init__(self):
        self.count = self.unsent = 0
        self.ended = self.lost = self.aborted = False
        self.session = None

    def abort(self):
        self.aborted = self.lost = True
        self.session.lost(self, ConnectionAborted())


def account(limits):
    """Return the account of a connection, its sides, and the clock that it goes by."""
    clock = Clock()
    front, back = Side(), Side()
    address = SocketAddress(("192.0.2.1", 1))
    session = Ledger(clock, limits).open(front, address, address)
    session.joined(back, address)
    front.session = back.session = session
    return session, front, back, clock


@pytest.mark.parametrize("side", ["client", "backend"])
def test_what_passes_keeps_a_connection_from_being_idle(side):
    session, front, back, clock = account(Limits(idle=40))
    for _ in range(10):
        (front if side == "client" else back).count += 1
        clock.pump([5] * 7)
        assert session.reason is None
    clock.pump([5] * 4)
    assert session.reason == "idle"
    assert front.aborted
    assert back.aborted
    assert not clock.getDelayedCalls()


def test_the_end_of_one_side_shortens_the_wait():
    session, front, _, clock = account(Limits(idle=1000, half_closed=40))
    clock.pump([10] * 50)
    assert session.reason is None
    front.ended = True
    clock.advance(10)
    assert session.reason == "half-closed"


def test_an_end_in_time_leaves_no_timer():
    session, front, back, clock = account(Limits(idle=40, lifetime=100))
    for each in front, back:
        each.lost = True
        session.lost(each, None)
    assert session.reason == "closed"
    assert not clock.getDelayedCalls()


def test_the_line_of_a_connection_is_an_event_like_any_other():
    session, front, back, _ = account(Limits())
    events = []
    globalLogPublisher.addObserver(events.append)
    try:
        for each in front, back:
            each.lost = True
            session.lost(each, None)
        Logger(namespace=accounting.__name__, source=None).info("closed", reason="closed")
    finally:
        globalLogPublisher.removeObserver(events.append)
    ours, others = (
        {key: event[key] for key in event if key.startswith("log_")} for event in events
    )
    assert ours.keys() == others.keys()
    for each in "log_level", "log_namespace", "log_source":
        assert ours[each] == others[each]
    assert 0 <= others["log_time"] - ours["log_time"] < 60


def test_one_timer_looks_at_all_in_their_time():
    clock = Clock()
    ledger = Ledger(clock, Limits(idle=40))
    address = SocketAddress(("192.0.2.1", 1))
    sessions = []
    for number in range(1000):
        side = Side()
        side.session = ledger.open(side, address, address)
        sessions.append(side.session)
        if number % 250 == 249:
            clock.advance(5)
    assert len(clock.getDelayedCalls()) == 1
    told = []
    for _ in range(7):
        clock.pump([1] * 5)
        told.append(sum(session.reason == "idle" for session in sessions))
    assert told == [0, 0, 0, 250, 500, 750, 1000]
    assert not clock.getDelayedCalls()


def test_many_are_looked_at_some_at_a_time():
    clock = Clock()
    ledger = Ledger(clock, Limits(lifetime=40))
    address = SocketAddress(("192.0.2.1", 1))
    for _ in range(600):
        side = Side()
        side.session = ledger.open(side, address, address)
    counts = []
    look = ledger.snapshot
    # Behind the first look at them, before the second.
    clock.callLater(40, clock.callLater, 0, lambda: counts.append(look([])["connections"]["open"]))
    clock.pump([10] * 4)
    assert 0 < counts[0] < 600
    assert ledger.snapshot([])["connections"]["ended"]["lifetime"] == 600
    assert not clock.getDelayedCalls()


@pytest.mark.parametrize("seconds", [1, 60])
def test_without_limits_nobody_looks(seconds):
    _, _, _, clock = account(Limits())
    assert not clock.getDelayedCalls()
    _, _, _, clock = account(Limits(lifetime=seconds))
    assert len(clock.getDelayedCalls()) == 1
