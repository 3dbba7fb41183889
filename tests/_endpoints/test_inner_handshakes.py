"""TLS over other endpoints: handshakes that fail, take too long, or are given up."""

from __future__ import annotations

import socket
from datetime import timedelta

import pytest
from twisted.internet import error, reactor
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.error import CannotListenError, ConnectError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from zope.interface import implementer

from tests.support.clocks import turns, until
from tests.support.loopback import LOOPBACK
from tests.support.protocols import (
    Protocols,
    Recorder,
    accepted,
    listening,
    raw_client,
    raw_listener,
    raw_receive,
    serving,
)
from tests.support.ways_in import Inner
from twisted_netsock import (
    CertificateVerificationError,
    SocketConnectionError,
    SocketConnectionLostError,
    SocketConnectionTimeoutError,
    SocketOptions,
    TLSHandshakeError,
    client_endpoint,
    server_context_factory,
    server_endpoint,
)
from twisted_netsock._endpoints import inner_port

SHORT = timedelta(milliseconds=100)


@pytest.fixture(params=["tcp", "netsock"])
def inner(request, authority, tmp_path):
    """An inner endpoint on whose connections TLS runs on memory, and one of ours."""
    return Inner(request.param, authority, tmp_path)


class Server:
    """A layered server and how to connect to it."""

    def __init__(self, inner, port, factory):
        self.inner = inner
        self.port = port
        self.factory = factory

    def client(self, options, node=LOOPBACK):
        return client_endpoint(reactor, node, None, options, endpoint=self.inner.client(self.port))


class serve:  # noqa: N801 - it is used as a function
    """Listen with TLS over *inner*."""

    def __init__(self, inner, options):
        self.inner = inner
        self.factory = Protocols()
        endpoint = server_endpoint(reactor, None, None, options, endpoint=inner.server())
        self.serving = serving(endpoint, self.factory)

    async def __aenter__(self):
        port = await self.serving.__aenter__()
        return Server(self.inner, port, self.factory)

    async def __aexit__(self, *error):
        await self.serving.__aexit__(*error)
        await turns(5)


def to(inner_name, listener, options):
    """Return a TLS endpoint over a connection to a raw listener."""
    number = listener.getsockname()[1]
    if inner_name == "tcp":
        inner = TCP4ClientEndpoint(reactor, LOOPBACK, number)
    else:
        inner = client_endpoint(reactor, LOOPBACK, number)
    return client_endpoint(reactor, LOOPBACK, None, options, endpoint=inner)


async def test_the_wrong_server_fails_connect(inner, authority, log_lines):
    async with serve(inner, authority.server_options()) as server:
        clients = Protocols()
        with pytest.raises(CertificateVerificationError, match=r"not for 'other\.example'"):
            await server.client(authority.client_options(), "other.example").connect(clients)
        assert clients.built == []
        assert clients.life == ["start", "stop"]
        await until(lambda: any("TLS handshake with" in line for line in log_lines))
        assert server.factory.built == []


async def test_an_authority_that_is_not_trusted_fails_connect(inner, authority, other_authority):
    async with serve(inner, authority.server_options()) as server:
        with pytest.raises(CertificateVerificationError):
            await server.client(other_authority.client_options()).connect(Protocols())


async def test_nothing_in_common_fails_connect(inner, authority):
    async with serve(inner, authority.server_options(minimum_version="TLSv1.3")) as server:
        old = authority.client_options(maximum_version="TLSv1.2")
        with pytest.raises(TLSHandshakeError) as caught:
            await server.client(old).connect(Protocols())
        assert caught.value.alert == "protocol version"


async def test_a_server_that_requires_a_certificate_gets_one(inner, authority):
    strict = authority.server_options(
        trusted_certificates=authority.certificate, client_certificate_required=True
    )
    async with serve(inner, strict) as server:
        clients = Protocols()
        certified = authority.client_options(certificates=authority.issue("a client").pem)
        await server.client(certified).connect(clients)
        protocol = await server.factory.connected()
        found = protocol.transport.peer_certificate
        assert found.subject.rfc4514_string() == "CN=a client"
        await clients.all_lost()
        bare = authority.client_options(maximum_version="TLSv1.2")
        with pytest.raises(TLSHandshakeError):
            await server.client(bare).connect(Protocols())


@pytest.mark.parametrize("name", ["tcp", "netsock"])
async def test_a_peer_that_leaves_during_the_handshake_is_a_loss(name, authority):
    with raw_listener() as listener:
        connecting = to(name, listener, authority.client_options()).connect(Protocols())
        peer = await accepted(listener)
        await raw_receive(peer)
        peer.close()
        with pytest.raises(SocketConnectionLostError):
            await connecting


@pytest.mark.parametrize("name", ["tcp", "netsock"])
async def test_a_peer_that_resets_during_the_handshake_is_a_loss(name, authority):
    with raw_listener() as listener:
        connecting = to(name, listener, authority.client_options()).connect(Protocols())
        peer = await accepted(listener)
        await raw_receive(peer)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.close()
        with pytest.raises(SocketConnectionLostError):
            await connecting


@pytest.mark.parametrize("name", ["tcp", "netsock"])
async def test_a_peer_that_speaks_no_tls_fails_the_handshake(name, authority):
    with raw_listener() as listener:
        connecting = to(name, listener, authority.client_options()).connect(Protocols())
        peer = await accepted(listener)
        peer.send(b"220 welcome to plain text\r\n")
        with pytest.raises(TLSHandshakeError):
            await connecting
        peer.close()


@pytest.mark.parametrize("name", ["tcp", "netsock"])
@pytest.mark.parametrize("field", ["connection_timeout", "handshake_timeout"])
async def test_a_mute_peer_is_given_up(field, name, authority):
    with raw_listener() as listener:
        options = authority.client_options(**{field: SHORT})
        clients = Protocols()
        with pytest.raises(SocketConnectionTimeoutError) as caught:
            await to(name, listener, options).connect(clients)
        assert caught.value.stage == "handshake"
        assert clients.life == ["start", "stop"]


@implementer(IStreamClientEndpoint)
class Scripted:
    """Answers `connect` with what it was given."""

    def __init__(self, result):
        self.result = result
        self.factory = None

    def connect(self, factory):
        self.factory = factory
        return self.result


def over_script(authority, result, **fields):
    scripted = Scripted(result)
    options = authority.client_options(**fields)
    endpoint = client_endpoint(reactor, LOOPBACK, None, options, endpoint=scripted)
    return scripted, endpoint


async def test_connection_timeout_covers_the_inner_connect(authority):
    cancelled = []
    _, endpoint = over_script(authority, Deferred(cancelled.append), connection_timeout=SHORT)
    with pytest.raises(SocketConnectionTimeoutError) as caught:
        await endpoint.connect(Protocols())
    assert caught.value.stage == "connect"
    assert len(cancelled) == 1


async def test_what_the_inner_endpoint_fails_with_is_reported(authority):
    _, endpoint = over_script(authority, fail(ConnectError(string="the endpoint's own")))
    clients = Protocols()
    with pytest.raises(ConnectError, match="the endpoint's own"):
        await endpoint.connect(clients)
    assert clients.life == ["start", "stop"]


async def test_a_refused_connection_is_reported(inner, authority):
    with socket.create_server((LOOPBACK, 0)) as closed:
        number = closed.getsockname()[1]
    refused = client_endpoint(
        reactor,
        LOOPBACK,
        None,
        authority.client_options(),
        endpoint=TCP4ClientEndpoint(reactor, LOOPBACK, number),
    )
    with pytest.raises(error.ConnectionRefusedError):
        await refused.connect(Protocols())


async def test_an_inner_endpoint_that_connects_nothing_is_an_error(authority):
    _, endpoint = over_script(authority, succeed(None))
    with pytest.raises(SocketConnectionError, match="built no protocol"):
        await endpoint.connect(Protocols())


async def test_an_exception_of_build_protocol_fails_connect(inner, authority):
    class Failing(Protocols):
        def buildProtocol(self, addr):
            raise RuntimeError("the factory's own")

    async with serve(inner, authority.server_options()) as server:
        with pytest.raises(RuntimeError, match="the factory's own"):
            await server.client(authority.client_options()).connect(Failing())
        await (await server.factory.connected()).loses()


@implementer(IStreamClientEndpoint)
class Introduced:
    """Speaks first on the connections of *endpoint*, and passes them on: a proxy's client."""

    def __init__(self, endpoint):
        self.endpoint = endpoint

    def connect(self, factory):
        passed_on = Deferred()

        class Introducing(Protocol):
            def connectionMade(self):
                self.behind = None
                self.transport.write(b"hello\r\n")

            def dataReceived(self, data):
                if self.behind is None:
                    self.behind = factory.buildProtocol(None)
                    self.behind.makeConnection(self.transport)
                    passed_on.callback(self.behind)
                    data = data.partition(b"\r\n")[2]
                if data:
                    self.behind.dataReceived(data)

            def connectionLost(self, reason):
                self.behind.connectionLost(reason)

        self.endpoint.connect(Factory.forProtocol(Introducing))
        return passed_on


@pytest.mark.parametrize("name", ["tcp", "netsock"])
async def test_what_an_inner_endpoint_has_put_in_between_stays_there(name, authority):
    class Answering(Recorder):
        def dataReceived(self, data):
            assert data == b"hello\r\n"
            self.transport.write(b"welcome\r\n")
            self.transport.startTLS(server_context_factory(authority.server_options()))

    servers, clients = Protocols(Answering), Protocols()
    async with listening(SocketOptions(), servers) as port:
        number = port.getHost().port
        inner = (
            TCP4ClientEndpoint(reactor, LOOPBACK, number)
            if name == "tcp"
            else client_endpoint(reactor, LOOPBACK, number)
        )
        options = authority.client_options()
        where = client_endpoint(reactor, LOOPBACK, None, options, endpoint=Introduced(inner))
        protocol = await where.connect(clients)
        assert protocol.transport.tls.tls_version == "TLSv1.3"
        await clients.all_lost()


# Cancelling


async def test_cancel_during_the_inner_connect(authority):
    cancelled = []
    _, endpoint = over_script(authority, Deferred(cancelled.append))
    clients = Protocols()
    connecting = endpoint.connect(clients)
    connecting.cancel()
    with pytest.raises(CancelledError):
        await connecting
    assert len(cancelled) == 1
    assert clients.life == ["start", "stop"]


async def test_an_inner_endpoint_that_cannot_be_cancelled_connects_in_vain(authority, inner):
    """A connection that comes too late is ended."""

    @implementer(IStreamClientEndpoint)
    class Stubborn:
        def __init__(self, endpoint):
            self.endpoint = endpoint

        def connect(self, factory):
            result = Deferred(lambda _: None)
            self.endpoint.connect(factory).addBoth(lambda _: None)
            return result

    with raw_listener() as listener:
        number = listener.getsockname()[1]
        endpoint = client_endpoint(
            reactor,
            LOOPBACK,
            None,
            authority.client_options(),
            endpoint=Stubborn(TCP4ClientEndpoint(reactor, LOOPBACK, number)),
        )
        connecting = endpoint.connect(Protocols())
        connecting.cancel()
        with pytest.raises(CancelledError):
            await connecting
        peer = await accepted(listener)
        with pytest.raises(ConnectionResetError):
            assert await raw_receive(peer) == b"not even a ClientHello"
        peer.close()


@pytest.mark.parametrize("name", ["tcp", "netsock"])
async def test_cancel_during_the_handshake_leaves_nothing(name, authority):
    with raw_listener() as listener:
        clients = Protocols()
        connecting = to(name, listener, authority.client_options()).connect(clients)
        peer = await accepted(listener)
        await raw_receive(peer)
        connecting.cancel()
        with pytest.raises(CancelledError):
            await connecting
        with pytest.raises(ConnectionResetError):
            await raw_receive(peer)
        peer.close()
        assert clients.life == ["start", "stop"]


@pytest.mark.parametrize("name", ["tcp", "netsock"])
async def test_cancel_at_once(name, authority):
    with raw_listener() as listener:
        connecting = to(name, listener, authority.client_options()).connect(Protocols())
        connecting.cancel()
        with pytest.raises(CancelledError):
            await connecting
        await turns(5)


@pytest.mark.parametrize("count", range(12))
async def test_cancel_after_any_number_of_turns(count, inner, authority):
    async with serve(inner, authority.server_options()) as server:
        clients = Protocols()
        connecting = server.client(authority.client_options()).connect(clients)
        await turns(count)
        if connecting.called:
            await clients.all_lost()
            return
        connecting.cancel()
        with pytest.raises(CancelledError):
            await connecting
        await turns(10)
        assert clients.built == []


@pytest.mark.parametrize("when", ["build", "made"])
async def test_cancel_from_within_the_factory_or_the_protocol(when, inner, authority):
    class Cancelling(Recorder):
        def connectionMade(self):
            super().connectionMade()
            if when == "made":
                connecting.cancel()

    class Building(Protocols):
        def buildProtocol(self, addr):
            if when == "build":
                connecting.cancel()
            return super().buildProtocol(addr)

    async with serve(inner, authority.server_options()) as server:
        clients = Building(Cancelling)
        connecting = server.client(authority.client_options()).connect(clients)
        with pytest.raises(CancelledError):
            await connecting
        assert clients.life == ["start", "stop"]
        if when == "made":
            await clients.built[0].loses()
            assert clients.built[0].events == ["made", "lost"]


# Servers


async def ends(sock):
    """Tell whether a raw socket gets nothing but its end, in order or by a reset."""
    try:
        return await raw_receive(sock) == b""
    except ConnectionResetError:
        return True


async def test_a_mute_client_does_not_stay(inner, authority):
    options = authority.server_options(handshake_timeout=SHORT)
    async with serve(inner, options) as server:
        with raw_client(server.port) as sock:
            assert await ends(sock)
        assert server.factory.built == []


async def test_a_client_that_speaks_no_tls_is_logged(inner, authority, log_lines):
    async with serve(inner, authority.server_options()) as server:
        with raw_client(server.port) as sock:
            sock.send(b"GET / HTTP/1.1\r\n\r\n")
            await until(lambda: any("TLS handshake with 127.0.0.1" in line for line in log_lines))


async def test_handshakes_under_way_end_with_the_port(inner, authority):
    async with serve(inner, authority.server_options()) as server:
        sock = socket.create_connection((LOOPBACK, server.port.getHost().port))
        sock.setblocking(False)
        await turns(5)
    assert await ends(sock)
    sock.close()


async def test_the_number_of_handshakes_is_bounded(inner, authority, monkeypatch, log_lines):
    monkeypatch.setattr(inner_port, "MOST_HANDSHAKES", 2)
    async with serve(inner, authority.server_options()) as server:
        where = (LOOPBACK, server.port.getHost().port)
        mute = [
            socket.create_connection(where, source_address=(f"127.0.0.{number}", 0))
            for number in (2, 3)
        ]
        await turns(10)
        with pytest.raises(SocketConnectionLostError):
            await server.client(authority.client_options()).connect(Protocols())
        assert sum("more are refused" in line for line in log_lines) == 1
        for sock in mute:
            sock.close()
        await until(lambda: sum("TLS handshake with" in line for line in log_lines) == 2)
        clients = Protocols()
        await server.client(authority.client_options()).connect(clients)
        await clients.all_lost()


async def test_one_address_has_half_of_the_handshakes(inner, authority, monkeypatch, log_lines):
    monkeypatch.setattr(inner_port, "MOST_HANDSHAKES", 4)
    async with serve(inner, authority.server_options()) as server:
        where = (LOOPBACK, server.port.getHost().port)
        mute = [socket.create_connection(where, source_address=("127.0.0.2", 0)) for _ in range(4)]
        await until(lambda: any("more are refused" in line for line in log_lines))
        clients = Protocols()
        await server.client(authority.client_options()).connect(clients)
        await clients.all_lost()
        for sock in mute:
            sock.close()
        await until(lambda: sum("TLS handshake with" in line for line in log_lines) >= 2)


async def test_connections_live_on_when_the_port_has_stopped(inner, authority):
    servers, clients = Protocols(), Protocols()
    endpoint = server_endpoint(
        reactor, None, None, authority.server_options(), endpoint=inner.server()
    )
    port = await endpoint.listen(servers)
    await client_endpoint(
        reactor, LOOPBACK, None, authority.client_options(), endpoint=inner.client(port)
    ).connect(clients)
    await servers.connected()
    await port.stopListening()
    clients.built[0].transport.write(b"still here")
    assert await servers.built[0].receives(10) == b"still here"
    await clients.all_lost()
    await servers.all_lost()


async def test_certificates_are_reloaded(inner, authority, tmp_path):
    path = tmp_path / "server.pem"
    path.write_bytes(authority.issue("localhost", LOOPBACK).pem)
    options = authority.server_options().replace(certificates=path)
    servers = Protocols()
    endpoint = server_endpoint(
        reactor,
        None,
        None,
        options,
        endpoint=inner.server(),
        reload_every=timedelta(milliseconds=10),
    )
    async with serving(endpoint, servers) as port:
        renewed = authority.issue("localhost", LOOPBACK)
        path.write_bytes(renewed.pem)

        async def shown():
            clients = Protocols()
            connects = client_endpoint(
                reactor, LOOPBACK, None, authority.client_options(), endpoint=inner.client(port)
            )
            protocol = await connects.connect(clients)
            found = protocol.transport.peer_certificate
            await clients.all_lost()
            return found

        for _ in range(200):
            if await shown() == renewed.certificate:
                return
            await turns(5)
        raise AssertionError("the old certificate is still shown")


# Twisted 26.4 leaves the socket of its own port to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_what_the_inner_endpoint_cannot_listen_on_is_reported(authority):
    with socket.create_server((LOOPBACK, 0)) as taken:
        number = taken.getsockname()[1]
        endpoint = server_endpoint(
            reactor,
            None,
            None,
            authority.server_options(),
            endpoint=TCP4ServerEndpoint(reactor, number, interface=LOOPBACK),
        )
        with pytest.raises(CannotListenError):
            await endpoint.listen(Protocols())
