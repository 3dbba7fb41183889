"""Resumed TLS sessions: when a client resumes one, and when it must not."""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from twisted.internet.protocol import Factory

from tests.support.clocks import the_reactor
from tests.support.peers import ClientEnd, make_entity
from twisted_netsock import (
    CertificateVerificationError,
    ServerTLSSocketOptions,
    TLSSocketOptions,
    client_endpoint,
    make_client_tls_socket,
    make_server_tls_socket,
)
from twisted_netsock._tls.sessions import LIFETIME, SessionStore, Validity
from twisted_netsock.testing import CertificateAuthority

VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
versions = pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)


class Server:
    """A TLS listener; `visit` makes one connection to it, from its beginning to its end."""

    def __init__(self, listener: Any) -> None:
        self.listener = listener
        self.port = listener.getsockname().port

    async def visit(self, options: TLSSocketOptions, **how: Any) -> bool:
        """Connect, receive, close; return whether a session was resumed."""
        accepting = self.listener.accept()
        try:
            client = await make_client_tls_socket("127.0.0.1", self.port, options)
        except BaseException:
            accepting.addErrback(lambda _: None)
            accepting.cancel()
            raise
        server = await accepting
        await server.sendall(b"for you")
        assert await client.recv(100) == b"for you"
        how.get("meanwhile", int)()
        assert client.peer_certificate is not None
        assert client.peer_chain[0] == client.peer_certificate
        resumed = client.resumed
        if how.get("abort"):
            client.abort()
        ends = client.close(), server.close()
        for end in ends:
            await end
        return resumed


@contextlib.asynccontextmanager
async def serving(*options: ServerTLSSocketOptions, port: int = 0) -> AsyncIterator[Server]:
    listener = await make_server_tls_socket("127.0.0.1", port, options)
    try:
        yield Server(listener)
    finally:
        await listener.close()


@pytest.fixture
def client(authority: CertificateAuthority) -> TLSSocketOptions:
    return authority.client_options().replace(sni="one.example")


@pytest.fixture
def server(authority: CertificateAuthority) -> ServerTLSSocketOptions:
    return authority.server_options("one.example", "two.example")


# Resuming


@versions
async def test_a_client_resumes_the_session_of_its_last_connection(version, client, server):
    async with serving(server.replace(maximum_version=version)) as place:
        assert [await place.visit(client) for _ in range(4)] == [False, True, True, True]


@versions
async def test_a_session_is_resumed_with_a_client_certificate_that_nobody_asks_for(
    version, authority, server
):
    client = authority.client_options(certificates=authority.issue("me").pem, sni="one.example")
    async with serving(server.replace(maximum_version=version)) as place:
        assert [await place.visit(client) for _ in range(2)] == [False, True]


async def test_two_connections_at_once_do_not_share_a_session(client, server):
    async with serving(server) as place:
        await place.visit(client)
        accepting = place.listener.accept()
        first = await make_client_tls_socket("127.0.0.1", place.port, client)
        ends = [first, await accepting]
        accepting = place.listener.accept()
        second = await make_client_tls_socket("127.0.0.1", place.port, client)
        ends += [second, await accepting]
        assert (first.resumed, second.resumed) == (True, False)
        for closing in [end.close() for end in ends]:
            await closing


async def test_an_endpoint_resumes_sessions_too(client, server, authority):
    async with serving(server) as place:
        endpoint = client_endpoint(the_reactor(), "127.0.0.1", place.port, client)
        resumed = []
        for _ in range(3):
            accepting = place.listener.accept()
            protocol: Any = await endpoint.connect(Factory.forProtocol(ClientEnd))
            accepted = await accepting
            resumed.append(protocol.transport._descriptor.resumed)
            await accepted.sendall(b"for you")
            await accepted.close()
            await protocol.lost
        assert resumed == [False, True, True]


async def test_a_server_is_never_resumed_itself(client, server):
    async with serving(server) as place:
        await place.visit(client)
        accepting = place.listener.accept()
        one = await make_client_tls_socket("127.0.0.1", place.port, client)
        other: Any = await accepting
        assert not other.resumed
        for closing in (one.close(), other.close()):
            await closing


# Not resuming


@versions
async def test_a_session_of_one_name_is_not_used_for_another(version, client, server):
    async with serving(server.replace(maximum_version=version)) as place:
        await place.visit(client)
        assert not await place.visit(client.replace(sni="two.example"))
        assert await place.visit(client)


@versions
async def test_a_session_of_one_name_does_not_vouch_for_another(version, client, server):
    async with serving(server.replace(maximum_version=version)) as place:
        await place.visit(client)
        with pytest.raises(CertificateVerificationError, match=r"three\.example"):
            await place.visit(client.replace(sni="three.example"))


@versions
async def test_a_session_does_not_vouch_for_another_server_on_the_same_port(
    version, client, server, other_authority
):
    async with serving(server.replace(maximum_version=version)) as place:
        await place.visit(client)
    liar = other_authority.server_options("one.example", maximum_version=version)
    async with serving(liar, port=place.port) as place:
        with pytest.raises(CertificateVerificationError):
            await place.visit(client)


async def test_a_session_is_not_used_for_another_port(client, server):
    async with serving(server) as one, serving(server) as other:
        await one.visit(client)
        assert not await other.visit(client)
        assert await one.visit(client)


@pytest.mark.parametrize(
    "change",
    [
        {"alpn": ("h2",)},
        {"minimum_version": ssl.TLSVersion.TLSv1_3},
        {"certificate_verifier": False},
        {"certificate_verifier": lambda *_: None},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_a_session_of_one_record_is_not_used_for_another(change, client, server):
    async with serving(server) as place:
        await place.visit(client)
        assert not await place.visit(client.replace(**change))
        assert await place.visit(client)


async def test_a_session_does_not_vouch_for_what_another_record_trusts(
    client, server, other_authority
):
    async with serving(server) as place:
        await place.visit(client)
        with pytest.raises(CertificateVerificationError):
            await place.visit(client.replace(trusted_certificates=other_authority.certificate))


async def test_a_verifier_is_asked_about_each_connection(client, server):
    asked = []
    watched = client.replace(certificate_verifier=lambda *seen: asked.append(seen))
    async with serving(server) as place:
        for count in (1, 2, 3):
            assert not await place.visit(watched)
            assert len([depth for depth, *_ in asked if depth == 0]) == count


async def test_an_unverified_connection_leaves_no_session(client, server):
    blind = client.replace(certificate_verifier=False)
    async with serving(server) as place:
        assert [await place.visit(blind) for _ in range(3)] == [False] * 3


@versions
async def test_a_server_that_asks_for_certificates_resumes_none(version, authority, server):
    client = authority.client_options(certificates=authority.issue("me").pem, sni="one.example")
    asks = server.replace(maximum_version=version, trusted_certificates=authority.certificate)
    async with serving(asks) as place:
        assert [await place.visit(client) for _ in range(3)] == [False] * 3


@versions
async def test_a_server_with_names_resumes_none(version, client, server):
    """A session would open the names that it refuses, or another record's."""
    named = server.replace(maximum_version=version, sni="one.example")
    async with serving(named) as place:
        assert [await place.visit(client) for _ in range(3)] == [False] * 3
    async with serving(server.replace(maximum_version=version), named) as place:
        assert [await place.visit(client) for _ in range(3)] == [False] * 3


async def test_a_reload_makes_new_keys_for_sessions(client, server):
    async with serving(server) as place:
        assert [await place.visit(client) for _ in range(2)] == [False, True]
        await place.listener.reload()
        assert [await place.visit(client) for _ in range(2)] == [False, True]


# The store


class Time:
    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


SOON = Validity(2000.0, 2000.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    """The clock of all stores that are made from now on; the time of day goes on as ever."""
    made = Time()
    monkeypatch.setattr(SessionStore.__init__, "__defaults__", (made, time.time))
    return made


def session(name: str) -> Any:
    return f"the session of {name}"


def test_a_session_is_taken_once():
    store = SessionStore()
    store.keep("key", session("one"), store.validity(time.time() + 60))
    assert store.take("other") is None
    kept = store.take("key")
    assert kept is not None
    assert kept.session == session("one")
    assert store.take("key") is None


def test_a_newer_session_takes_the_place_of_an_older():
    store = SessionStore(Time(), Time())
    store.keep("key", session("one"), SOON)
    store.keep("key", session("two"), SOON)
    kept = store.take("key")
    assert kept is not None
    assert kept.session == session("two")
    assert len(store) == 0


def test_the_oldest_sessions_go_when_there_are_many():
    store = SessionStore(Time(), Time())
    for number in range(1000):
        store.keep(number, session("some"), SOON)
    assert len(store) == 256
    assert store.take(0) is None
    assert store.take(999) is not None


@pytest.mark.parametrize(("later", "there"), [(LIFETIME - 1, True), (LIFETIME + 1, False)])
def test_a_peer_is_verified_anew_after_a_while(later, there):
    clock, day = Time(), Time()
    store = SessionStore(clock, day)
    store.keep("key", session("one"), store.validity(day.now + 9 * 86400))
    clock.now += later
    assert (store.take("key") is not None) is there


@pytest.mark.parametrize(("later", "there"), [(50, True), (70, False)])
def test_no_session_outlives_its_certificate(later, there):
    """By the time of day, which goes on while the machine sleeps, and may be set."""
    clock, day = Time(), Time()
    store = SessionStore(clock, day)
    store.keep("key", session("one"), store.validity(day.now + 60))
    day.now += later
    assert (store.take("key") is not None) is there


@versions
@pytest.mark.parametrize("first", ["the root", "the intermediate", "the leaf"])
async def test_the_first_certificate_of_the_chain_to_expire_ends_the_session(
    first, version, monkeypatch
):
    def days(name: str) -> float:
        return 1 if name == first else 10

    root = make_entity("the root", is_authority=True, days=days("the root"))
    middle = make_entity(
        "the intermediate", issuer=root, is_authority=True, days=days("the intermediate")
    )
    leaf = make_entity("the leaf", "one.example", issuer=middle, days=days("the leaf"))
    day = Time(time.time())
    monkeypatch.setattr(SessionStore.__init__, "__defaults__", (time.monotonic, day))
    client = TLSSocketOptions(trusted_certificates=root.certificate, sni="one.example")
    server = ServerTLSSocketOptions(certificates=leaf.pem, maximum_version=version)
    async with serving(server) as place:
        outcomes = [await place.visit(client) for _ in range(2)]
        day.now += 86400 - 60
        outcomes.append(await place.visit(client))
        day.now += 120
        outcomes.append(await place.visit(client))
    assert outcomes == [False, True, True, False]


async def test_what_counts_is_the_verification_not_the_end_of_its_connection(
    client, server, clock
):
    # A port is part of what a session is kept under, a field that means nothing of its context.
    mine = client.replace(backlog=8)

    def last() -> None:
        clock.now += LIFETIME + 1

    async with serving(server) as place:
        outcomes = [await place.visit(mine, meanwhile=last) for _ in range(2)]
    assert outcomes == [False, False]


async def test_resuming_does_not_renew_the_verification(client, server, clock):
    # A port is part of what a session is kept under, a field that means nothing of its context.
    mine = client.replace(backlog=7)
    async with serving(server) as place:
        outcomes = [await place.visit(mine) for _ in range(2)]
        clock.now += LIFETIME / 2
        outcomes.append(await place.visit(mine))
        clock.now += LIFETIME / 2 + 1
        outcomes += [await place.visit(mine) for _ in range(2)]
    assert outcomes == [False, True, True, False, True]
