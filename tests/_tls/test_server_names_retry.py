"""
Several records on one server, and clients whose second ClientHello asks for another name.

After a HelloRetryRequest (RFC 8446, section 4.1.4) a client sends its hello again. It should
change nothing but the key share; one that changes the name is served under the second.
"""

from __future__ import annotations

import itertools
import socket
from typing import Any, NamedTuple

import pytest
from OpenSSL import SSL
from OpenSSL._util import lib
from twisted.internet.defer import Deferred

from tests.support.clocks import the_reactor
from tests.support.peers import PEER_SECONDS, serving
from tests.support.relay import echo_server
from tests.support.streams import in_thread
from twisted_netsock import (
    ServerTLSSocketOptions,
    SocketOptions,
    client_endpoint,
    make_server_tls_socket,
    server_endpoint,
)
from twisted_netsock.commands.relay.access import Access
from twisted_netsock.commands.relay.routes import Routes, Target
from twisted_netsock.commands.relay.service import RelayService

pytestmark = pytest.mark.skipif(
    not hasattr(lib, "SSL_set1_curves_list"), reason="pyOpenSSL cannot choose a client's groups"
)

GROUPS = b"P-521:X25519"
"""The first of them, whose key share a client sends, is one that servers do not prefer."""

RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
"""The random value of a HelloRetryRequest (RFC 8446, section 4.1.3)."""

KINDS = ("strict", "lax", "other")


class Served(NamedTuple):
    shown: str
    asked_for: tuple[str, ...]
    alpn: bytes
    answer: bytes


def ask(port: int, first: str | None, second: str, identity: Any = None) -> Served | None:
    """Ask for *first*, and for *second* after a HelloRetryRequest; `None` if that is refused."""
    context = SSL.Context(SSL.TLS_METHOD)
    if identity is not None:
        context.use_certificate(identity.certificate)
        context.use_privatekey(identity.private_key)
    connection = SSL.Connection(context, None)
    assert lib.SSL_set1_curves_list(connection._ssl, GROUPS) == 1
    if first is not None:
        connection.set_tlsext_host_name(first.encode())
    connection.set_alpn_protos([name.encode() for name in KINDS])
    connection.set_connect_state()
    came = b""
    with socket.create_connection(("127.0.0.1", port), timeout=PEER_SECONDS) as sock:
        done = False
        while True:
            try:
                if not done:
                    connection.do_handshake()
                    connection.send(b"request")
                    done = True
                answer = connection.recv(100)
                break
            except SSL.WantReadError:
                pass
            except SSL.Error:
                return None
            try:
                sock.sendall(connection.bio_read(65536))
                # For a hello that comes after the first.
                connection.set_tlsext_host_name(second.encode())
            except SSL.WantReadError:
                pass
            try:
                data = sock.recv(65536)
            except ConnectionResetError:
                data = b""
            came += data
            if not data:
                return None
            connection.bio_write(data)
    assert RETRY in came
    return Served(
        connection.get_peer_certificate(as_cryptography=True).subject.rfc4514_string(),
        tuple(name.CN for name in connection.get_client_ca_list()),
        connection.get_alpn_proto_negotiated(),
        answer,
    )


@pytest.fixture
def records(authority, other_authority):
    """Records of which each asks for client certificates in a way of its own."""
    fields: dict[str, dict[str, Any]] = {
        "strict": {
            "trusted_certificates": authority.certificate,
            "client_certificate_required": True,
        },
        "lax": {},
        "other": {
            "trusted_certificates": other_authority.certificate,
            "client_certificate_required": True,
        },
    }

    def make(*kinds: str, catch_all: str | None = None) -> list[ServerTLSSocketOptions]:
        return [
            ServerTLSSocketOptions(
                certificates=authority.issue(kind, common_name=kind).pem,
                sni=None if kind == catch_all else f"{kind}.example",
                alpn=kind,
                **fields[kind],
            )
            for kind in kinds
        ]

    return make


@pytest.fixture
def identities(authority, other_authority):
    """What clients show: nothing, or a certificate of the authority of one record."""
    return {
        None: None,
        "strict": authority.issue("a client"),
        "other": other_authority.issue("a client"),
    }


AUTHORITIES = {"strict": ("throw-away authority",), "lax": (), "other": ("another authority",)}


async def check(port: int, first: str | None, second: str, identities: Any) -> None:
    """Whichever name came first, it is the second whose record is in force, all of it."""
    kind = second.partition(".")[0]
    for shown, identity in identities.items():
        served = await in_thread(ask, port, first, second, identity)
        if kind in ("lax", shown):
            expected = (f"CN={kind}", AUTHORITIES[kind], kind.encode())
            assert served is not None, (first, second, shown)
            assert served[:3] == expected, (first, second, shown)
        else:
            assert served is None, (first, second, shown)


@pytest.mark.long
@pytest.mark.parametrize("order", list(itertools.permutations(KINDS)), ids="-".join)
@pytest.mark.parametrize("catch_all", [None, *KINDS])
async def test_the_record_of_the_second_hello_is_in_force(order, catch_all, records, identities):
    """Its certificate, verify mode, authorities, protocols and verification."""
    async with serving(records(*order, catch_all=catch_all)) as server:
        for first, second in itertools.product(KINDS, KINDS):
            await check(server.port, f"{first}.example", f"{second}.example", identities)
        if catch_all:
            # A name that no record lists, before and after one that is listed.
            for listed in KINDS:
                await check(server.port, "unknown.example", f"{listed}.example", identities)
        for second in KINDS:
            await check(server.port, None, f"{second}.example", identities)


async def test_an_unlisted_name_in_the_second_hello_is_refused(records):
    async with serving(records("lax", "strict")) as server:
        assert await in_thread(ask, server.port, "lax.example", "lax.example") is not None
        assert await in_thread(ask, server.port, "lax.example", "unknown.example") is None
        assert await in_thread(ask, server.port, "unknown.example", "strict.example") is None
        assert len(server.connections) == 1


@pytest.mark.parametrize("order", [("strict", "lax"), ("lax", "strict")], ids="-".join)
async def test_a_handler_gets_the_name_whose_record_is_in_force(order, records, identities):
    listener = await make_server_tls_socket("127.0.0.1", 0, records(*order))

    async def handle(connection: Any) -> None:
        await connection.recv(100)
        shown = connection.peer_certificate is not None
        await connection.sendall(f"{connection.server_name} {shown}".encode())

    serving_it = listener.serve(handle)
    port = listener.getsockname()[1]
    names = ("strict.example", "lax.example")
    for first, second in itertools.product(names, names):
        for shown in (None, "strict"):
            served = await in_thread(ask, port, first, second, identities[shown])
            if second == "strict.example" and shown is None:
                assert served is None
            else:
                # The lax record asks for no certificate, so none is shown there.
                expected = f"{second} {second == 'strict.example'}"
                assert served is not None
                assert served.answer.decode() == expected
    await listener.close()
    await serving_it


@pytest.mark.parametrize("order", [("strict", "lax"), ("lax", "strict")], ids="-".join)
@pytest.mark.parametrize("rule", [False, True], ids=["no rule", "a rule"])
async def test_the_relay_routes_and_admits_by_the_second_hello(order, rule, records, identities):
    reactor = the_reactor()

    def target(server: Any, name: str) -> tuple[Target, ...]:
        return (Target(client_endpoint(reactor, "127.0.0.1", server.port, SocketOptions()), name),)

    access = Access().with_rule("dns", "a client") if rule else None
    ready: Deferred[Any] = Deferred()
    with echo_server(b"S") as strict, echo_server(b"L") as lax:
        routes = Routes(
            by_name={
                "strict.example": target(strict, "strict"),
                "lax.example": target(lax, "lax"),
            }
        )
        service = RelayService(
            reactor,
            server_endpoint(reactor, "127.0.0.1", 0, records(*order)),
            routes,
            started=ready.callback,
            access=access,
        )
        service.startService()
        port = (await ready).port
        names = ("strict.example", "lax.example")
        for first, second in itertools.product(names, names):
            for shown in (None, "strict"):
                served = await in_thread(ask, port, first, second, identities[shown])
                # A rule looks at the certificate, which the lax record does not ask for.
                welcome = shown is not None if second == "strict.example" else not rule
                assert (served is not None) is welcome, (first, second, shown)
                if served is not None:
                    assert served.answer[:1] == second[:1].upper().encode()
        await service.stopService()
