"""
The plugin for pytest: coroutine tests on the reactor, and fixtures.

Every run of pytest loads it where the package is installed, so the rest is imported when a test
needs it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .._certificates.throwaway_ca import CertificateAuthority

__all__ = ["certificate_authority", "clean_reactor"]

_MODES = ("marked", "auto")
_OTHERS = ("asyncio", "anyio", "trio", "twisted")
"""Markers of plugins that run a coroutine test themselves."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the settings."""
    parser.addini(
        "reactor_mode",
        "coroutine tests on Twisted's reactor: those with pytest.mark.reactor (marked), or all "
        "that have no marker of another plugin (auto)",
        default=_MODES[0],
    )
    parser.addini(
        "reactor_timeout", "seconds for each coroutine test on the reactor", default="30"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Check the settings, and name the marker."""
    if config.getini("reactor_mode") not in _MODES:
        raise pytest.UsageError(
            f"reactor_mode = {config.getini('reactor_mode')} must be {' or '.join(_MODES)}"
        )
    config.addinivalue_line(
        "markers", "reactor(timeout=SECONDS): run this coroutine test on Twisted's reactor"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine test on the reactor if it is to run there."""
    marker = pyfuncitem.get_closest_marker("reactor")
    config = pyfuncitem.config
    if not inspect.iscoroutinefunction(pyfuncitem.obj) or (
        marker is None
        and (
            config.getini("reactor_mode") != "auto"
            or any(pyfuncitem.get_closest_marker(name) for name in _OTHERS)
        )
    ):
        return None
    from .._io.interfaces import current_reactor
    from ._run import run_on_reactor, start

    given = marker.kwargs.get("timeout") if marker is not None else None
    seconds = float(config.getini("reactor_timeout") if given is None else given)
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    reactor = current_reactor(None)

    plugins = config.pluginmanager
    theirs = plugins.get_plugin("twisted") or plugins.get_plugin("pytest_twisted")
    blockon = getattr(theirs, "blockon", None)
    if blockon is not None:
        # pytest-twisted has the reactor in a greenlet, from its first test to the last.
        blockon(start(reactor, lambda: pyfuncitem.obj(**arguments), seconds))
    else:
        run_on_reactor(reactor, lambda: pyfuncitem.obj(**arguments), seconds)
    return True


@pytest.fixture
def clean_reactor() -> Iterator[None]:
    """
    Fail a test that leaves something behind in the reactor or the process.

    No reader, writer, delayed call or descriptor may remain that was not there
    before; the failure names each, and where the program has made it. Use it by name, or
    for all tests with ``usefixtures = clean_reactor`` in pytest's settings.
    """
    from .._io.interfaces import current_reactor
    from ._leaks import watch

    reactor = current_reactor(None)
    with watch(reactor) as watching:
        yield
    reactor.iterate(0)
    text = watching.left()
    if text:
        pytest.fail(text, pytrace=False)


@pytest.fixture(scope="session")
def certificate_authority() -> CertificateAuthority:
    """Return a `CertificateAuthority` of the session's own, which clients may trust."""
    from .._certificates.throwaway_ca import CertificateAuthority

    return CertificateAuthority()
