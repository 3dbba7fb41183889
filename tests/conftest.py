"""
How the tests run: on the reactor that ``NETSOCK_REACTOR`` names, each one clean.

Without the inner parts of libraries that ``NETSOCK_HIDDEN`` names (see `hidden`).

Coroutine tests run on that reactor. A test fails if it leaves anything in it,
or if anything was logged as an error that it does not flush.
"""

from __future__ import annotations

import gc
import inspect
import os
import resource
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.hidden import hide_chosen

hide_chosen()


def _install_reactor(name: str) -> None:
    if name == "uvloop":
        import asyncio

        import uvloop
        from twisted.internet import asyncioreactor

        asyncioreactor.install(uvloop.new_event_loop())
        asyncio.set_event_loop(None)
        return
    if name == "asyncio":
        import asyncio

        from twisted.internet import asyncioreactor

        asyncioreactor.install(asyncio.new_event_loop())
        return
    from importlib import import_module

    import_module(f"twisted.internet.{name}reactor").install()


_install_reactor(os.environ.get("NETSOCK_REACTOR", "epoll"))

# The relay's tests hold 800 descriptors at a time in one process, and many systems allow 1,024
# unless a process asks for more.
_soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
if _soft < 4096 <= _hard:
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, _hard))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Shells have what runs in the background ignore it, and children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)

from twisted.internet import reactor  # noqa: E402
from twisted.logger import LogEvent, globalLogBeginner, globalLogPublisher  # noqa: E402

from tests.support.clocks import ClockedReactor  # noqa: E402
from tests.support.protocols import Kind  # noqa: E402
from twisted_netsock.testing import CertificateAuthority, _run, clean_reactor  # noqa: E402

assert clean_reactor

# Until logging begins Twisted keeps 65,536 events, and in them factories with all that
# their protocols have received.
globalLogBeginner.beginLoggingTo([], discardBuffer=True, redirectStandardIO=False)

TEST_SECONDS = 30.0


def run_on_reactor(make: Any) -> Any:
    """Run the coroutine that *make* returns on the reactor, and return its result."""
    return _run.run_on_reactor(reactor, make, TEST_SECONDS)


def pytest_collection_finish() -> None:
    """Leave what the imports made out of the collections that follow each test."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run coroutine functions on the reactor."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    run_on_reactor(lambda: pyfuncitem.obj(**arguments))
    return True


@pytest.fixture
def frozen() -> Iterator[None]:
    """Leave what outlives a test out of the collections that follow: they take its time."""
    yield
    gc.freeze()


@pytest.fixture(autouse=True)
def _clean(frozen: None, clean_reactor: None, logged_errors: list[LogEvent]) -> None:
    """Every test leaves the reactor as it found it."""


@pytest.fixture
def logged_errors() -> Iterator[list[LogEvent]]:
    """What was logged as an error; a test that expects some clears the list."""
    found: list[LogEvent] = []

    def observe(event: LogEvent) -> None:
        if event.get("isError") or event.get("log_failure") is not None:
            found.append(event)

    globalLogPublisher.addObserver(observe)
    yield found
    globalLogPublisher.removeObserver(observe)
    if found:
        lines = "\n".join(
            f"{event.get('log_format') or event.get('why')}: {event.get('log_failure')}"
            for event in found
        )
        pytest.fail(f"errors were logged: {lines}")


@pytest.fixture
def log_lines() -> Iterator[list[str]]:
    """Every log line of the test, formatted."""
    from twisted.logger import formatEvent

    lines: list[str] = []

    def observe(event: LogEvent) -> None:
        lines.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


@pytest.fixture(scope="session")
def authority() -> CertificateAuthority:
    """An authority that the tests' clients trust."""
    return CertificateAuthority()


@pytest.fixture(scope="session")
def other_authority() -> CertificateAuthority:
    """An authority that nobody trusts."""
    return CertificateAuthority("another authority")


@pytest.fixture(autouse=True, scope="session")
def _threads_end() -> Iterator[None]:
    """End the reactor's threads, which no shutdown ends here."""
    yield
    reactor.getThreadPool().stop()


@pytest.fixture
def clocked() -> Iterator[Any]:
    """A reactor whose time stands still, and in which nothing may be left."""
    made = ClockedReactor()
    yield made
    assert made.getDelayedCalls() == []


@pytest.fixture(params=["plain", "tls"])
def kind(request: pytest.FixtureRequest, authority: CertificateAuthority) -> Kind:
    """Connections, plain and over TLS."""
    return Kind(authority, tls=request.param == "tls")
