"""Commands that end by themselves."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
from twisted.internet.error import ReactorNotRunning

from twisted_netsock.commands._common.one_shot import OneShot
from twisted_netsock.commands._common.outcomes import Outcome

pytestmark = pytest.mark.once


class Reactor:
    """One that a signal has stopped already, in the same iteration."""

    asked = 0

    def callWhenRunning(self, function: Callable[[], object]) -> None:  # noqa: N802
        function()

    def stop(self) -> None:
        self.asked += 1
        raise ReactorNotRunning


class Options:
    async def run(self, _: object) -> Outcome:
        return Outcome.OK


def test_a_command_may_end_in_the_iteration_in_which_the_reactor_was_stopped(logged_errors):
    ended: list[Outcome] = []
    reactor = Reactor()
    OneShot(reactor, Options(), ended.append).startService()
    assert ended == [Outcome.OK]
    assert reactor.asked == 1
    gc.collect()
    assert logged_errors == []
