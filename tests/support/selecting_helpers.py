"""Pairs of sockets to wait for."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from tests.support.stream_helpers import TLSStreams, soon
from twisted_netsock import Socket
from twisted_netsock.testing import connected_pair

NO_TIME = timedelta(0)
SOON = timedelta(milliseconds=10)


@pytest.fixture
def pairs() -> Iterator[Callable[..., list[tuple[Socket, Socket]]]]:
    made: list[tuple[Socket, Socket]] = []

    def make(count: int, **how: Any) -> list[tuple[Socket, Socket]]:
        made.extend(connected_pair(**how) for _ in range(count))
        return made[-count:]

    yield make
    for pair in made:
        for sock in pair:
            sock.abort()


@contextlib.asynccontextmanager
async def tls_pair(authority: Any, version: str = "TLSv1.3") -> AsyncIterator[tuple[Any, Any]]:
    async with TLSStreams(authority, version).pair() as pair:
        yield pair


async def raised(deferred: Any) -> BaseException:
    with pytest.raises(Exception) as caught:
        await soon(deferred)
    return caught.value
