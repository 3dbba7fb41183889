"""Whatever is raised within OpenSSL's callbacks refuses, and stays with its own connection."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from OpenSSL import SSL
from twisted.logger import globalLogPublisher

from tests.support.peers import NAME, perform_handshake
from twisted_netsock import client_context_factory, server_context_factory
from twisted_netsock._tls.server import _VirtualHosts

pytestmark = pytest.mark.once


class Outlandish(BaseException):
    """Of a program's own kind."""


KINDS = (
    ValueError,
    KeyboardInterrupt,
    SystemExit,
    GeneratorExit,
    asyncio.CancelledError,
    Outlandish,
)
kinds = pytest.mark.parametrize("kind", KINDS)
versions = pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])


class Raising:
    """A callback that raises what it is given."""

    def __init__(self) -> None:
        self.kind: type[BaseException] | None = None

    def __call__(self, *_: object) -> None:
        if self.kind is not None:
            raise self.kind


@pytest.fixture(params=[False, True], ids=["quiet log", "log that raises"])
def expecting(request, logged_errors) -> Iterator[Raising]:
    """What to raise; once more when it is logged, if an observer does so."""
    raising = Raising()

    def observe(event: dict[str, Any]) -> None:
        if request.param and event.get("log_failure") is not None:
            raising()

    globalLogPublisher.addObserver(observe)
    yield raising
    globalLogPublisher.removeObserver(observe)
    logged_errors.clear()


@pytest.fixture
def factories(authority, version) -> Any:
    """Make the two context factories of a side whose verifier is given."""

    def make(side: str, verifier: Any) -> tuple[Any, Any]:
        server = authority.server_options(
            NAME,
            maximum_version=version,
            trusted_certificates=authority.certificate,
            client_certificate_required=True,
            certificate_verifier=verifier if side == "server" else None,
        )
        client = authority.client_options(
            certificates=authority.issue("me").pem,
            certificate_verifier=verifier if side == "client" else None,
        )
        return client_context_factory(client, NAME), server_context_factory([server])

    return make


def refused(client: Any, server: Any) -> bool:
    """Whether a handshake fails; nothing else is raised from it than what pyOpenSSL raises."""
    try:
        perform_handshake(client.connection(None), server.connection(None))
    except SSL.Error:
        return True
    return False


@kinds
@versions
@pytest.mark.parametrize("side", ["client", "server"])
def test_a_verifier_that_raises_refuses_its_own_connection(side, kind, expecting, factories):
    client, server = factories(side, expecting)
    others = client.connection(None), server.connection(None)
    for _ in range(2):
        expecting.kind = kind
        assert refused(client, server)
        expecting.kind = None
        assert not refused(client, server)
    # One that was made before, of the same contexts.
    perform_handshake(*others)


@kinds
@versions
@pytest.mark.parametrize("first", ["strict", "lax"])
def test_a_choice_by_name_that_raises_refuses_its_own_connection(
    first, kind, version, authority, expecting, monkeypatch, capfd
):
    strict = authority.server_options(
        NAME,
        maximum_version=version,
        trusted_certificates=authority.certificate,
        client_certificate_required=True,
    )
    lax = authority.server_options(NAME, maximum_version=version)
    records = [strict.replace(sni="strict.example"), lax.replace(sni=NAME)]
    server = server_context_factory(records if first == "strict" else records[::-1])
    client = client_context_factory(authority.client_options(), NAME)
    find = _VirtualHosts._find

    def finding(self: Any, name: str | None) -> Any:
        expecting()
        return find(self, name)

    monkeypatch.setattr(_VirtualHosts, "_find", finding)
    others = client.connection(None), server.connection(None)
    for _ in range(2):
        expecting.kind = kind
        assert refused(client, server)
        expecting.kind = None
        assert not refused(client, server)
    perform_handshake(*others)
    assert capfd.readouterr() == ("", "")
