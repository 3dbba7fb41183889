"""contextFactory objects wherever Twisted's own TLS takes them."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    SSL4ServerEndpoint,
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    wrapClientTLS,
    wrapServerTLS,
)
from twisted.internet.interfaces import IProtocolNegotiationFactory
from twisted.internet.protocol import Factory, Protocol
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface import implementer

from tests.support.clocks import the_reactor, until
from tests.support.peers import (
    ANSWER,
    QUESTION,
    ClientEnd,
    Recording,
    ask,
    s_client,
    standard_server,
)
from twisted_netsock import (
    CertificateVerificationError,
    ServerTLSSocketOptions,
    client_context_factory,
    client_endpoint,
    server_context_factory,
)

Listen = Callable[[Any, Recording], Deferred[Any]]


def by_ssl_endpoint(factory: Any, recording: Recording) -> Deferred[Any]:
    return SSL4ServerEndpoint(the_reactor(), 0, factory, interface="127.0.0.1").listen(recording)


def by_wrapped_endpoint(factory: Any, recording: Recording) -> Deferred[Any]:
    plain = TCP4ServerEndpoint(the_reactor(), 0, interface="127.0.0.1")
    return wrapServerTLS(factory, plain).listen(recording)


def by_memory_factory(factory: Any, recording: Recording) -> Deferred[Any]:
    plain = TCP4ServerEndpoint(the_reactor(), 0, interface="127.0.0.1")
    return plain.listen(TLSMemoryBIOFactory(factory, False, recording))


every_listener = pytest.mark.parametrize(
    "listen", [by_ssl_endpoint, by_wrapped_endpoint, by_memory_factory]
)
versions = pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])


@contextlib.asynccontextmanager
async def twisted_server(
    options: Any, *, listen: Listen = by_ssl_endpoint, recording: Recording | None = None
) -> AsyncIterator[Recording]:
    """Serve *options* with Twisted's TLS; nobody is greeted before the handshake."""
    recording = recording or Recording(None)
    port = await listen(server_context_factory(options), recording)
    recording.port = port.getHost().port
    try:
        yield recording
    finally:
        await port.stopListening()
        await recording.end()


def to(server: Any, options: Any, node: str = "127.0.0.1") -> Any:
    """Return an endpoint of Twisted's own, with a context of ours."""
    plain = TCP4ClientEndpoint(the_reactor(), "127.0.0.1", server.port)
    return wrapClientTLS(client_context_factory(options, node), plain)


@every_listener
@versions
async def test_data_goes_both_ways(version, listen, authority):
    client = authority.client_options(maximum_version=version.replace("-tls1_", "TLSv1."))
    async with twisted_server(authority.server_options(), listen=listen) as server:
        assert await ask(to(server, client)) == ANSWER
        assert (
            await ask(client_endpoint(the_reactor(), "127.0.0.1", server.port, client)) == ANSWER
        )
        assert server.received == QUESTION * 2


@every_listener
@versions
async def test_clients_without_a_certificate_are_refused(
    version, listen, authority, other_authority
):
    options = authority.server_options(
        trusted_certificates=authority.certificate, client_certificate_required=True
    )
    limit = {"maximum_version": version.replace("-tls1_", "TLSv1.")}
    async with twisted_server(options, listen=listen) as server:
        for fields in (
            {},
            {"certificates": other_authority.issue("a client").pem},
            {"certificates": authority.issue("a client", expired=True).pem},
        ):
            with pytest.raises(SSL.Error, match=r"alert|certificate"):
                await ask(to(server, authority.client_options(**fields, **limit)))
        assert server.received == b""
        good = authority.client_options(certificates=authority.issue("a client").pem, **limit)
        assert await ask(to(server, good)) == ANSWER


@every_listener
@versions
async def test_the_reason_of_a_refusal_is_reported(version, listen, authority, other_authority):
    """Of a certificate on this side: the other side has an alert."""
    limit = {"maximum_version": version.replace("-tls1_", "TLSv1.")}
    async with twisted_server(authority.server_options(), listen=listen) as server:
        for options, node, why in (
            (authority.client_options(**limit), "other.example", "not for 'other.example'"),
            (other_authority.client_options(**limit), "127.0.0.1", "unable to get"),
        ):
            with pytest.raises(CertificateVerificationError, match=why) as caught:
                await ask(to(server, options, node))
            assert isinstance(caught.value, SSL.Error)
            assert caught.value.depth == 0
        # What is no refusal is reported as before.
        old = authority.client_options(maximum_version="TLSv1.2")
        async with twisted_server(authority.server_options(minimum_version="TLSv1.3")) as modern:
            with pytest.raises(SSL.Error, match="alert protocol version"):
                await ask(to(modern, old))


@versions
async def test_the_name_chooses_the_record(version, authority, capfd):
    def record(name: str, **fields: Any) -> ServerTLSSocketOptions:
        issued = authority.issue(f"{name}.example")
        return ServerTLSSocketOptions(certificates=issued.pem, sni=f"{name}.example", **fields)

    records = [
        record("one"),
        record("two", alpn="h2"),
        record(
            "strict", trusted_certificates=authority.certificate, client_certificate_required=True
        ),
        record("modern", minimum_version="TLSv1.3"),
    ]
    limit = {"maximum_version": version.replace("-tls1_", "TLSv1.")}
    async with twisted_server(records) as server:
        for name in ("one", "two"):
            options = authority.client_options(sni=f"{name}.example", **limit)
            assert await ask(to(server, options)) == ANSWER
        strict = authority.client_options(sni="strict.example", **limit)
        with pytest.raises(SSL.Error, match=r"alert|certificate"):
            await ask(to(server, strict))
        certified = strict.replace(certificates=authority.issue("a client").pem)
        assert await ask(to(server, certified)) == ANSWER
        modern = authority.client_options(sni="modern.example", **limit)
        if version == "-tls1_3":
            assert await ask(to(server, modern)) == ANSWER
        else:
            with pytest.raises(SSL.Error, match=r"alert (handshake failure|protocol version)"):
                await ask(to(server, modern))
        with pytest.raises(SSL.Error, match=r"alert handshake failure|unrecognized name"):
            await ask(to(server, authority.client_options(sni="nobody.example", **limit)))
    assert capfd.readouterr().err == ""


@implementer(IProtocolNegotiationFactory)
class Negotiating(Recording):
    """A server's factory that knows its protocols."""

    def acceptableProtocols(self) -> list[bytes]:
        return [b"h2", b"http/1.1"]


class NegotiatingEnd(ClientEnd):
    """Keeps what was negotiated."""

    negotiated: bytes | None = None

    def dataReceived(self, data: bytes) -> None:
        self.negotiated = self.transport.negotiatedProtocol
        super().dataReceived(data)


@implementer(IProtocolNegotiationFactory)
class NegotiatingClients(Factory):
    """A client's factory that knows its protocols."""

    noisy = False
    protocol = NegotiatingEnd

    def __init__(self, protocols: list[bytes]) -> None:
        self.protocols = protocols

    def acceptableProtocols(self) -> list[bytes]:
        return self.protocols


@every_listener
async def test_the_protocols_of_the_servers_factory_are_negotiated(listen, authority):
    options = authority.server_options(alpn=("imap", "http/1.1"))
    async with twisted_server(options, listen=listen, recording=Negotiating(None)) as server:
        for offered, chosen in (
            (["imap", "http/1.1", "h2"], b"h2"),
            (["imap", "http/1.1"], b"http/1.1"),
            (["imap"], b"imap"),
        ):
            end = await to(server, authority.client_options(alpn=offered)).connect(
                Factory.forProtocol(NegotiatingEnd)
            )
            assert await end.answer == ANSWER
            await end.lost
            assert end.negotiated == chosen


async def test_the_protocols_of_the_clients_factory_are_offered_first(authority):
    for preferred in ("h2", "imap"):
        options = authority.server_options(alpn=(preferred, "http/1.1"))
        async with twisted_server(options) as server:
            endpoint = to(server, authority.client_options(alpn="imap"))
            end = await endpoint.connect(NegotiatingClients([b"h2"]))
            assert await end.answer == ANSWER
            await end.lost
            assert end.negotiated == preferred.encode()


@every_listener
@versions
async def test_no_common_protocol_costs_nobody_else_anything(version, listen, authority):
    options = authority.server_options(alpn="h2")
    async with twisted_server(options, listen=listen) as server:
        good = to(server, authority.client_options(alpn="h2"))
        lasting = await good.connect(Factory.forProtocol(NegotiatingEnd))
        assert await lasting.answer == ANSWER
        await lasting.lost
        waiting = ClientEnd()
        waiting.connectionMade = lambda: None
        factory = Factory()
        factory.buildProtocol = lambda _: waiting
        await good.connect(factory)
        for _ in range(3):
            with pytest.raises(SSL.Error, match="no application protocol"):
                await ask(to(server, authority.client_options(alpn="imap")))
            said = await s_client(server.port, version, "-alpn", "imap")
            assert "alert no application protocol" in said.text
        assert await ask(good) == ANSWER
        waiting.transport.write(QUESTION)
        assert await waiting.answer == ANSWER
        await waiting.lost
        assert server.received == QUESTION * 3


async def test_a_server_without_protocols_takes_a_client_with_some(authority):
    async with twisted_server(authority.server_options()) as server:
        assert await ask(to(server, authority.client_options(alpn="h2"))) == ANSWER


class Upgrading(Protocol):
    """Talks in the open first, then starts TLS on Twisted's own transport."""

    def __init__(self, context_factory: Any, server: bool) -> None:
        self.context_factory = context_factory
        self.server = server
        self.upgraded = False
        self.received = b""
        self.lost: Deferred[Any] = Deferred()

    def connectionMade(self) -> None:
        if not self.server:
            self.transport.write(b"STARTTLS\n")

    def dataReceived(self, data: bytes) -> None:
        if self.upgraded:
            self.received += data
            if self.server:
                self.transport.write(ANSWER)
            else:
                self.transport.loseConnection()
            return
        self.upgraded = True
        if self.server:
            self.transport.write(b"GO\n")
        self.transport.startTLS(self.context_factory)
        if not self.server:
            self.transport.write(QUESTION)

    def connectionLost(self, reason: Any) -> None:
        self.lost.callback(reason.value)


@pytest.mark.parametrize("name", ["127.0.0.1", "other.example"])
async def test_starttls_on_a_transport_of_twisted(name, authority):
    server = Upgrading(server_context_factory(authority.server_options()), server=True)
    client = Upgrading(client_context_factory(authority.client_options(), name), server=False)
    listening = Factory()
    listening.noisy = False
    listening.buildProtocol = lambda _: server
    connecting = Factory()
    connecting.noisy = False
    connecting.buildProtocol = lambda _: client
    port = await TCP4ServerEndpoint(the_reactor(), 0, interface="127.0.0.1").listen(listening)
    await TCP4ClientEndpoint(the_reactor(), "127.0.0.1", port.getHost().port).connect(connecting)
    reason = await client.lost
    await server.lost
    await port.stopListening()
    if name == "127.0.0.1":
        assert (server.received, client.received) == (QUESTION, ANSWER)
    else:
        assert isinstance(reason, SSL.Error)
        assert (server.received, client.received) == (b"", b"")


class Hasty(ClientEnd):
    """Says everything at once, and hangs up, before any handshake."""

    def connectionMade(self) -> None:
        super().connectionMade()
        self.transport.loseConnection()


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
async def test_what_is_written_before_hanging_up_never_reaches_the_wrong_server(
    version, authority, tmp_path
):
    for names, expected in ((["other.example"], b""), (["127.0.0.1"], QUESTION)):
        identity = authority.issue(*names).pem
        async with standard_server(tmp_path, identity, version=version) as server:
            end = await to(server, authority.client_options()).connect(Factory.forProtocol(Hasty))
            end.answer.addErrback(lambda _: None)
            await end.lost
            served = await server.outcome
            assert served.data == expected
            assert isinstance(served.error, ssl.SSLError) is not bool(expected)


async def test_a_connection_through_twisted_is_dropped_when_it_is_over(authority):
    """No table of ours keeps connections alive."""
    import gc
    import weakref

    connections = []
    factory = server_context_factory(authority.server_options())
    make = factory.serverConnectionForTLS

    def remember(protocol: Any) -> SSL.Connection:
        made = make(protocol)
        connections.append(weakref.ref(made))
        return made

    factory.serverConnectionForTLS = remember
    recording = Recording(None)
    port = await by_ssl_endpoint(factory, recording)
    recording.port = port.getHost().port
    assert await ask(to(recording, authority.client_options())) == ANSWER
    await port.stopListening()
    await recording.end()
    recording.connections.clear()
    await until(lambda: gc.collect() >= 0 and connections[0]() is None)
