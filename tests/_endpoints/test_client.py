"""Client endpoints: what they provide, what connect fires with, and how factories fare."""

from __future__ import annotations

import contextlib
import socket
from datetime import timedelta

import pytest
from twisted.internet import reactor
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectError, NoProtocol
from twisted.internet.interfaces import (
    IConsumer,
    IHalfCloseableDescriptor,
    IListeningPort,
    ILoggingContext,
    INegotiated,
    IPushProducer,
    ISSLTransport,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
    ISystemHandle,
    ITCPTransport,
    ITLSTransport,
)
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from tests.support.clocks import turns, until
from tests.support.loopback import LOOPBACK, one_port, port_of, resolving
from tests.support.protocols import (
    Kind,
    Listener,
    NegotiatingProtocols,
    Protocols,
    Recorder,
    accepted,
    connected,
    listening,
    raw_listener,
    raw_receive,
)
from twisted_netsock import (
    CertificateVerificationError,
    HostNotFoundError,
    NetsockError,
    ServerTLSSocketOptions,
    SocketConnectionError,
    SocketConnectionRefusedError,
    SocketOptions,
    TLSHandshakeError,
    TLSSocketOptions,
    client_endpoint,
    server_endpoint,
)

# Interfaces


def test_endpoints_provide_their_interfaces(kind):
    client = client_endpoint(reactor, "localhost", 443, kind.client())
    server = server_endpoint(reactor, None, 0, kind.server())
    assert verifyObject(IStreamClientEndpoint, client)
    assert verifyObject(IStreamServerEndpoint, server)


async def test_a_port_provides_its_interface(kind):
    async with listening(kind.server(), Protocols()) as port:
        assert verifyObject(IListeningPort, port)


@pytest.mark.parametrize(
    "interface",
    [
        ITCPTransport,
        ITLSTransport,
        IHalfCloseableDescriptor,
        IPushProducer,
        IConsumer,
        ISystemHandle,
        ILoggingContext,
    ],
)
async def test_every_transport_provides(kind, interface):
    async with connected(kind) as pair:
        assert verifyObject(interface, pair.client.transport)
        assert verifyObject(interface, pair.server.transport)


@pytest.mark.parametrize("interface", [ISSLTransport, INegotiated])
async def test_tls_transports_alone_provide(kind, interface):
    """Mail protocols decide by this whether a password may be sent."""
    async with connected(kind) as pair:
        for protocol in pair:
            assert interface.providedBy(protocol.transport) is kind.tls
            if kind.tls:
                assert verifyObject(interface, protocol.transport)


# Connecting


async def test_connect_fires_with_the_connected_protocol(kind):
    servers, clients = Protocols(), Protocols()
    async with listening(kind.server(), servers) as port:
        where = client_endpoint(reactor, LOOPBACK, port.getHost().port, kind.client())
        protocol = await where.connect(clients)
        assert clients.built == [protocol]
        assert protocol.events == ["made"]
        assert protocol.transport.connected
        assert (await servers.connected()).events == ["made"]
        await clients.all_lost()


async def test_connect_does_not_fire_before_it_returns(kind):
    """Callers keep the Deferred, and have a callback forget it."""
    servers, clients = Protocols(), Protocols()
    async with listening(kind.server(), servers) as port:
        where = client_endpoint(reactor, LOOPBACK, port.getHost().port, kind.client())
        for _ in range(3):
            connecting = where.connect(clients)
            assert not connecting.called
            assert clients.built == []
            await connecting
            clients.built.clear()
        await clients.all_lost()


async def test_connect_does_not_fail_before_it_returns(kind, tmp_path):
    clients = Protocols()
    unix = {"ai_family": socket.AF_UNIX} | ({"sni": "localhost"} if kind.tls else {})
    with one_port(LOOPBACK) as (refusing,):
        for where in (
            client_endpoint(reactor, LOOPBACK, port_of(refusing), kind.client()),
            client_endpoint(reactor, str(tmp_path / "none"), None, kind.client(**unix)),
            client_endpoint(reactor, "::1", 1, kind.client(ai_family=socket.AF_INET)),
        ):
            connecting = where.connect(clients)
            assert not connecting.called
            with pytest.raises(NetsockError):
                await connecting


async def test_what_comes_before_connect_has_fired_is_delivered_afterwards():
    order = []

    class Client(Recorder):
        def dataReceived(self, data):
            order.append(data)
            super().dataReceived(data)

    with raw_listener() as listener:
        clients = Protocols(Client)
        connecting = client_endpoint(reactor, LOOPBACK, listener.getsockname()[1]).connect(clients)
        connecting.addCallback(lambda protocol: order.append("fired") or protocol)
        with listener.accept()[0] as peer:
            peer.sendall(b"welcome")
            client = await connecting
            assert await client.receives(7) == b"welcome"
        assert order == ["fired", b"welcome"]
        await clients.all_lost()


async def test_one_endpoint_connects_any_number_of_times(kind):
    servers, clients = Protocols(), Protocols()
    async with listening(kind.server(), servers) as port:
        where = client_endpoint(reactor, LOOPBACK, port.getHost().port, kind.client())
        one, other = await where.connect(clients), await where.connect(clients)
        assert one is not other
        assert one.transport.getHost() != other.transport.getHost()
        await clients.all_lost()


async def test_connect_fires_after_the_verified_handshake(authority):
    """A peer that has not finished the handshake has no protocol."""
    clients = Protocols()
    with raw_listener() as listener:
        port = listener.getsockname()[1]
        where = client_endpoint(reactor, LOOPBACK, port, authority.client_options())
        connecting = where.connect(clients)
        with await accepted(listener) as peer:
            assert (await raw_receive(peer))[:1] == b"\x16"
            await turns()
            assert not connecting.called
            assert clients.built == []
        with pytest.raises(OSError, match="during the TLS handshake"):
            await connecting
    assert clients.built == []


async def test_a_server_that_is_not_verified_gets_no_protocol(authority, other_authority):
    servers, clients = Protocols(), Protocols()
    async with listening(other_authority.server_options(), servers) as port:
        where = client_endpoint(reactor, LOOPBACK, port.getHost().port, authority.client_options())
        with pytest.raises(CertificateVerificationError):
            await where.connect(clients)
    assert clients.built == servers.built == []
    assert clients.life == ["start", "stop"]


async def test_a_server_that_speaks_no_tls_gets_no_protocol(authority):
    clients = Protocols()
    async with listening(SocketOptions(), Protocols(Greeter)) as port:
        where = client_endpoint(reactor, LOOPBACK, port.getHost().port, authority.client_options())
        with pytest.raises(TLSHandshakeError):
            await where.connect(clients)
    assert clients.built == []


class Greeter(Recorder):
    """Speaks first, in plain text."""

    def connectionMade(self):
        super().connectionMade()
        self.transport.write(b"220 mail.example ESMTP\r\n")


async def test_handshake_listeners_hear_of_it_after_connection_made(authority):
    async with connected(Kind(authority, tls=True), Listener, Listener) as pair:
        assert pair.client.events == pair.server.events == ["made", "handshake"]


async def test_handshake_listeners_hear_nothing_of_a_plain_connection(authority):
    async with connected(Kind(authority, tls=False), Listener, Listener) as pair:
        assert pair.client.events == pair.server.events == ["made"]


async def test_a_refused_connection_is_an_error_of_twisted_and_of_python():
    with raw_listener() as listener:
        port = listener.getsockname()[1]
    clients = Protocols()
    with pytest.raises(SocketConnectionRefusedError) as caught:
        await client_endpoint(reactor, LOOPBACK, port).connect(clients)
    assert isinstance(caught.value, ConnectError)
    assert isinstance(caught.value, ConnectionRefusedError)
    assert clients.life == ["start", "stop"]
    assert clients.built == []


async def test_an_unknown_name_is_host_not_found(kind):
    clients = Protocols()
    with resolving({}), pytest.raises(HostNotFoundError, match=r"nowhere\.example"):
        await client_endpoint(reactor, "nowhere.example", 80, kind.client()).connect(clients)
    assert clients.life == ["start", "stop"]


async def test_an_address_that_refuses_is_followed_by_the_next():
    servers, clients = Protocols(), Protocols()
    async with listening(SocketOptions(), servers) as port:
        where = client_endpoint(reactor, "two.example", port.getHost().port)
        with resolving({"two.example": ["::1", LOOPBACK]}):
            protocol = await where.connect(clients)
        assert protocol.transport.getPeer().host == LOOPBACK
        await clients.all_lost()


async def test_socket_options_are_set_before_connecting():
    options = {"socket_options": (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)}
    async with connected(Kind(None, tls=False), client_fields=options) as pair:
        assert pair.client.transport.getTcpKeepAlive()
        assert not pair.server.transport.getTcpKeepAlive()


async def test_the_local_address_is_bound():
    options = {"local_address": "127.0.0.2"}
    async with connected(Kind(None, tls=False), client_fields=options) as pair:
        assert pair.client.transport.getHost().host == "127.0.0.2"
        assert pair.server.transport.getPeer().host == "127.0.0.2"


# Addresses


async def test_addresses_are_twisted_s(kind):
    async with connected(kind) as pair:
        one, other = pair.client.transport, pair.server.transport
        assert one.getHost() == other.getPeer()
        assert one.getPeer() == other.getHost()
        assert isinstance(one.getHost(), IPv4Address)


async def test_addresses_of_ipv6():
    servers, clients = Protocols(), Protocols()
    async with listening(SocketOptions(), servers, node="::1") as port:
        assert port.getHost() == IPv6Address("TCP", "::1", port.getHost().port, 0, 0)
        protocol = await client_endpoint(reactor, "::1", port.getHost().port).connect(clients)
        assert protocol.transport.getPeer() == port.getHost() == clients.addresses[0]
        server = await servers.connected()
        assert server.transport.getPeer() == servers.addresses[0] == protocol.transport.getHost()
        await clients.all_lost()


async def test_addresses_of_unix_sockets(tmp_path, kind):
    path = str(tmp_path / "socket")
    servers, clients = Protocols(), Protocols()
    unix = {"ai_family": socket.AF_UNIX}
    if kind.tls:
        unix["sni"] = "localhost"
    async with listening(kind.server(**unix), servers, node=path, service=None) as port:
        assert port.getHost() == UNIXAddress(path.encode())
        protocol = await client_endpoint(reactor, path, None, kind.client(**unix)).connect(clients)
        assert protocol.transport.getPeer() == UNIXAddress(path.encode())
        protocol.transport.write(b"hello")
        assert await (await servers.connected()).receives(5) == b"hello"
        assert not protocol.transport.getTcpNoDelay()
        protocol.transport.setTcpNoDelay(True)
        protocol.transport.setTcpKeepAlive(True)
        assert not protocol.transport.getTcpKeepAlive()
        await clients.all_lost()


# Factories


async def test_a_factory_that_builds_nothing_gets_no_protocol(kind):
    servers, clients = Protocols(), Protocols(lambda: None)
    async with listening(kind.server(), servers) as port:
        where = client_endpoint(reactor, LOOPBACK, port.getHost().port, kind.client())
        with pytest.raises(NoProtocol):
            await where.connect(clients)
        await (await servers.connected()).loses()
    assert clients.life == ["start", "stop"]


def fails():
    raise ZeroDivisionError("no protocol today")


async def test_an_exception_of_build_protocol_fails_the_connect(kind):
    servers, clients = Protocols(), Protocols(fails)
    async with listening(kind.server(), servers) as port:
        where = client_endpoint(reactor, LOOPBACK, port.getHost().port, kind.client())
        with pytest.raises(ZeroDivisionError):
            await where.connect(clients)
        await (await servers.connected()).loses()
    assert clients.life == ["start", "stop"]


class FailsWhenMade(Recorder):
    """Raises from connectionMade."""

    def connectionMade(self):
        super().connectionMade()
        raise ZeroDivisionError("not made for this")


async def test_an_exception_of_connection_made_leaves_no_client_connection(kind, logged_errors):
    servers, clients = Protocols(), Protocols(FailsWhenMade)
    async with listening(kind.server(), servers) as port:
        where = client_endpoint(reactor, LOOPBACK, port.getHost().port, kind.client())
        with contextlib.suppress(ZeroDivisionError):
            await where.connect(clients)
        await (await servers.connected()).loses()
    assert clients.life == ["start", "stop"]
    logged_errors.clear()


async def test_a_client_factory_stops_when_its_last_connection_is_lost(kind):
    servers, clients = Protocols(), Protocols()
    async with listening(kind.server(), servers) as port:
        where = client_endpoint(reactor, LOOPBACK, port.getHost().port, kind.client())
        one, other = await where.connect(clients), await where.connect(clients)
        assert clients.life == ["start"]
        one.transport.loseConnection()
        await one.loses()
        await turns()
        assert clients.life == ["start"]
        other.transport.loseConnection()
        await other.loses()
        await until(lambda: clients.life == ["start", "stop"])
        assert one.events == other.events == ["made", "lost"]


async def test_factories_negotiate_protocols(authority):
    servers, clients = NegotiatingProtocols(b"b", b"a"), NegotiatingProtocols(b"a", b"b")
    async with listening(authority.server_options(), servers) as port:
        where = client_endpoint(reactor, LOOPBACK, port.getHost().port, authority.client_options())
        protocol = await where.connect(clients)
        assert protocol.transport.negotiatedProtocol == b"b"
        assert (await servers.connected()).transport.negotiatedProtocol == b"b"
        await clients.all_lost()


async def test_a_factory_with_an_impossible_protocol_name_leaves_nothing_behind(authority):
    servers, clients = Protocols(), NegotiatingProtocols(b"x" * 300)
    async with listening(authority.server_options(), servers) as port:
        where = client_endpoint(reactor, LOOPBACK, port.getHost().port, authority.client_options())
        with pytest.raises(ValueError):
            await where.connect(clients)
    assert clients.life == ["start", "stop"]


# What is refused when an endpoint is made


@pytest.mark.parametrize(
    ("make", "use"),
    [
        (lambda a: client_endpoint(reactor, "x", 1, a.server_options()), "server_endpoint"),
        (lambda a: server_endpoint(reactor, "x", 1, a.client_options()), "client_endpoint"),
        (lambda a: server_endpoint(reactor, "x", 1, [a.client_options()]), "client_endpoint"),
        (lambda a: server_endpoint(reactor, "x", 1, [SocketOptions()]), "client_endpoint"),
        (lambda a: client_endpoint(reactor, "x", 1, {"sni": "x"}), "SocketOptions"),
        (lambda a: server_endpoint(reactor, "x", 1, ["x"]), "ServerTLSSocketOptions"),
        (lambda a: client_endpoint(reactor, b"x", 1), "node must be"),
        (lambda a: client_endpoint(reactor, "x", 1.5), "service must be"),
        (lambda a: client_endpoint(Clock(), "x", 1), "IReactorFDSet"),
        (lambda a: server_endpoint(Clock(), "x", 1), "IReactorFDSet"),
    ],
)
def test_the_wrong_type_is_a_type_error_that_says_what_to_use(authority, make, use):
    with pytest.raises(TypeError, match=use):
        make(authority)


UNIX = SocketOptions(ai_family=socket.AF_UNIX)
DATAGRAM = SocketOptions(ai_socktype=socket.SOCK_DGRAM)
BLOCKING = SocketOptions(non_blocking=False)
PASSIVE = SocketOptions(ai_flags=socket.AI_PASSIVE)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: client_endpoint(reactor, "", 1), "node=''"),
        (lambda: client_endpoint(reactor, "a\0b", 1), r"node='a\\x00b'"),
        (lambda: client_endpoint(reactor, "x", None), "service=None"),
        (lambda: client_endpoint(reactor, "x", 0), "service=0"),
        (lambda: client_endpoint(reactor, "x", 65536), "service=65536"),
        (lambda: server_endpoint(reactor, None, -1), "service=-1"),
        (lambda: server_endpoint(reactor, None, None), "service=None"),
        (lambda: client_endpoint(reactor, "x", 1, UNIX), "service=1 must be None"),
        (lambda: server_endpoint(reactor, "", None, UNIX), "node=''"),
        (lambda: client_endpoint(reactor, "x", 1, PASSIVE), "AI_PASSIVE is for servers"),
        (lambda: client_endpoint(reactor, "x", 1, DATAGRAM), "SOCK_STREAM"),
        (lambda: server_endpoint(reactor, "x", 1, DATAGRAM), "SOCK_STREAM"),
        (lambda: client_endpoint(reactor, "x", 1, BLOCKING), "twisted_netsock.blocking"),
        (lambda: server_endpoint(reactor, "x", 1, BLOCKING), "twisted_netsock.blocking"),
        (lambda: client_endpoint(reactor, "x", 1, TLSSocketOptions(handshake=False)), "handshake"),
        (lambda: server_endpoint(reactor, "x", 1, ServerTLSSocketOptions()), "certificates"),
        (lambda: server_endpoint(reactor, "x", 1, []), "at least one record"),
        (
            lambda: server_endpoint(reactor, "x", 1, reload_every=timedelta(0)),
            "reload_every",
        ),
    ],
)
def test_the_wrong_value_is_a_value_error_that_names_it(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_server_without_handshake_is_refused(authority):
    with pytest.raises(ValueError, match="handshake=False"):
        server_endpoint(reactor, None, 0, authority.server_options(handshake=False))


async def test_a_failed_attempt_at_every_address_is_one_error():
    options = SocketOptions(local_address="127.0.0.1")
    where = client_endpoint(reactor, "::1", 1, options)
    with pytest.raises(SocketConnectionError, match="local_address="):
        await where.connect(Protocols())


# Texts


def test_an_endpoint_shows_where_and_how(authority):
    options = authority.client_options(sni="a.example", read_timeout=timedelta(seconds=3))
    shown = repr(client_endpoint(reactor, "localhost", "https", options))
    for part in ("ClientEndpoint", "'localhost'", "'https'", "a.example", "seconds=3"):
        assert part in shown
    assert "BEGIN" not in shown


def test_an_endpoint_that_verifies_nothing_says_so(log_lines):
    options = TLSSocketOptions(certificate_verifier=False)
    assert "UNVERIFIED" in repr(client_endpoint(reactor, "localhost", 1, options))
    assert any("UNVERIFIED" in line for line in log_lines)


def test_a_server_endpoint_shows_all_its_records(authority):
    one = authority.server_options(sni="a.example")
    other = authority.server_options(sni="b.example")
    shown = repr(server_endpoint(reactor, None, 443, [one, other]))
    for part in ("ServerEndpoint", "*", "443", "a.example", "b.example"):
        assert part in shown
    assert "PRIVATE KEY" not in shown


def test_an_endpoint_keeps_its_record(kind):
    client, server = kind.client(), kind.server()
    assert client_endpoint(reactor, "localhost", 1, client).options is client
    assert server_endpoint(reactor, None, 0, server).options is server
