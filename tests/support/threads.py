"""
Tests of blocking calls: in a thread, beside the reactor that runs in the main one.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from tests.support.clocks import the_reactor, until
from tests.support.loopback import LONGEST
from tests.support.streams import in_thread
from twisted_netsock import blocking


async def no_descriptors() -> None:
    """Let the reactor run until it has none of ours: TLS shutdowns go on behind a close."""
    await until(lambda: not any("netsock" in repr(each) for each in the_reactor().getReaders()))


def threaded(test: Callable[..., None]) -> Callable[..., Any]:
    """Run a test in a thread, and then the reactor until it has no descriptors of ours."""

    @functools.wraps(test)
    async def run(*arguments: object, **fixtures: object) -> None:
        try:
            await in_thread(functools.partial(test, *arguments, **fixtures))
        finally:
            await no_descriptors()
            await until(lambda: not any("selector" in it.name for it in threading.enumerate()))

    return run


class Background:
    """A call in another thread, and how it ended."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._result: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._function()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self._error = error

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def result(self) -> Any:
        """Wait for its end, and return or raise what it did."""
        self._thread.join(LONGEST)
        assert not self.running, "the call does not end"
        if self._error is not None:
            raise self._error
        return self._result

    def error(self) -> BaseException:
        """Wait for its end, and return what it raised."""
        self._thread.join(LONGEST)
        assert not self.running, "the call does not end"
        assert self._error is not None, f"it returned {self._result!r}"
        return self._error


def eventually(condition: Callable[[], object]) -> None:
    """Wait until *condition* holds."""
    end = time.monotonic() + LONGEST
    while not condition():
        assert time.monotonic() < end, f"it never came to {condition}"
        time.sleep(0.002)


def waiting(function: Callable[[], Any], sock: Any, direction: str = "_reader") -> Background:
    """Begin a call in another thread, and return when it has *sock* for itself."""
    call = Background(function)
    eventually(lambda: getattr(sock, direction) is not None or not call.running)
    time.sleep(0.02)
    return call


@contextlib.contextmanager
def plain_pair() -> Iterator[tuple[Any, Any]]:
    """Two connected TCP sockets."""
    with blocking.make_server_socket("127.0.0.1", 0) as server:
        accepting = Background(server.accept)
        one = blocking.make_client_socket("127.0.0.1", server.getsockname().port)
        with one, accepting.result() as other:
            yield one, other


@contextlib.contextmanager
def tls_pair(authority: Any, **fields: Any) -> Iterator[tuple[Any, Any]]:
    """Two ends of a TLS connection: the client's and the server's."""
    record = authority.server_options(**fields)
    with blocking.make_server_tls_socket("127.0.0.1", 0, record) as server:
        accepting = Background(server.accept)
        one = blocking.make_client_tls_socket(
            "localhost", server.getsockname().port, authority.client_options(**fields)
        )
        with one, accepting.result() as other:
            yield one, other


SHORT = timedelta(milliseconds=30)
MUCH = 4_000_000


@pytest.fixture(params=["plain", "TLS 1.3", "TLS 1.2"])
def pair(request: pytest.FixtureRequest, authority: Any) -> Any:
    """Make two connected sockets."""
    if request.param == "plain":
        return plain_pair
    version = request.param.replace("TLS ", "TLSv")
    return lambda: tls_pair(authority, minimum_version=version, maximum_version=version)


def read_exactly(sock: Any, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = sock.recv(size - len(data))
        assert piece, "the stream ended"
        data += piece
    return bytes(data)


def fill(sock: Any) -> Background:
    """Have a thread send more than the kernel takes."""
    return waiting(lambda: sock.sendall(bytes(64 * MUCH)), sock, "_writer")
