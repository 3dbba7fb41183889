"""`RelayService` whose ends are missing or leave early, its start, its end and its options."""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import Any

import pytest
from twisted.application.service import IService
from twisted.internet import reactor
from twisted.internet.defer import maybeDeferred
from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IStreamClientEndpoint, IStreamServerEndpoint
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.python.usage import UsageError
from zope.interface.verify import verifyObject

from tests.support.clocks import turns, until
from tests.support.loopback import LOOPBACK, open_sockets
from tests.support.protocols import full_listener
from tests.support.relay import (
    BACKS,
    FRONTS,
    HALF_CLOSING_BACKS,
    HALF_CLOSING_FRONTS,
    NETWORK_BACKS,
    NETWORK_FRONTS,
    ONE,
    LateEndpoint,
    Peer,
    Relay,
    certificate_files,
    exchange,
    listening_backend,
    place,
    relayed,
    relaying,
)
from tests.support.streams import together
from twisted_netsock.commands import Options, makeService
from twisted_netsock.commands.relay.link import Link, PlainLink, TLSLink
from twisted_netsock.commands.relay.options import RelayOptions
from twisted_netsock.commands.relay.service import RelayFactory, RelayService

# Fixtures.
assert certificate_files
assert place

pytestmark = [
    # Twisted's own TLS hands objects of the old kind to pyOpenSSL.
    pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning"),
]


# Backends that cannot be had


@pytest.mark.parametrize("back", NETWORK_BACKS)
@pytest.mark.parametrize("front", NETWORK_FRONTS)
async def test_a_refused_backend_closes_the_client_and_is_logged(front, back, place, log_lines):
    with listening_backend(back, place) as backend:
        target = backend.endpoint
    async with relaying(front, backend, place, to=target) as relay:
        client = relay.connect_raw()
        if relay.kind.tls and front != "ssl":
            with contextlib.suppress(OSError):
                await client.perform_handshake(ssl._create_unverified_context(), "localhost")
        await client.is_cut_off()
        (line,) = [each for each in log_lines if "cannot connect" in each]
        assert "refused" in line
        assert LOOPBACK in line


async def test_a_backend_that_is_not_trusted_gets_nothing(place, tmp_path, other_authority,
                                                          log_lines):  # fmt: skip
    strange = tmp_path / "strange.pem"
    strange.write_bytes(other_authority.certificate_pem)
    with listening_backend("netsock-tls", place) as backend:
        port = backend.listener.getsockname()[1]
        target = clientFromString(
            reactor, f"netsock-tls:localhost:{port}:aiFamily=inet:trustedCertificates={strange}"
        )
        async with relaying("netsock", backend, place, to=target) as relay:
            client = relay.connect_raw()
            await client.send(b"a secret")
            with pytest.raises(ssl.SSLError):
                await relay.accept()
            await client.is_cut_off()
            assert any("cannot connect" in line and "certificate" in line for line in log_lines)


@pytest.mark.parametrize("front", ["netsock", "netsock-tls"])
async def test_a_backend_that_does_not_answer_in_time_closes_the_client(front, place, log_lines):
    with full_listener() as listener:
        port = listener.getsockname()[1]
        target = clientFromString(reactor, f"netsock:127.0.0.1:{port}:connectionTimeout=200ms")
        async with relaying(front, None, place, to=target) as relay:
            client = await relay.connect()
            await client.is_cut_off()
            assert any("cannot connect" in line for line in log_lines)


async def test_one_refused_client_does_not_touch_the_others(place, log_lines):
    with listening_backend("netsock", place) as backend:
        late = LateEndpoint()
        async with relaying("netsock", backend, place, to=late) as relay:
            first = await relay.connect()
            await late.attempted()
            late.go_on(backend.endpoint)
            server = await relay.accept()
            second = await relay.connect()
            await late.attempted(2)
            late.fail(ConnectionRefusedError("nobody is there"))
            await second.is_cut_off()
            await exchange(first, server)
            assert any("nobody is there" in line for line in log_lines)


# Clients that leave early


@pytest.mark.parametrize("said", [b"", b"a question"])
@pytest.mark.parametrize("front", NETWORK_FRONTS)
async def test_a_client_that_is_gone_ends_the_attempt_to_connect_the_backend(front, said, place):
    late = LateEndpoint()
    async with relaying(front, None, place, to=late) as relay:
        client = relay.connect_raw() if front == "ssl" else await relay.connect()
        await late.attempted()
        if said and front != "ssl":
            await client.send(said)
        client.reset()
        await until(lambda: late.cancelled)


@pytest.mark.parametrize("back", ["netsock", "netsock-tls", "tcp"])
@pytest.mark.parametrize("front", ["netsock", "netsock-tls", "netsock-unix", "tcp", "unix"])
async def test_a_client_that_has_ended_before_the_backend_was_connected_is_served(
    front, back, place
):
    late = LateEndpoint()
    with listening_backend(back, place) as backend:
        async with relaying(front, backend, place, to=late) as relay:
            client = await relay.connect()
            await client.send(b"a question")
            client.end()
            await late.attempted()
            await turns()
            late.go_on(backend.endpoint)
            server = await relay.accept()
            assert await server.receive() == b"a question"
            await server.send(b"an answer")
            server.end()
            assert await client.receive() == b"an answer"


@pytest.mark.parametrize("front", ["netsock", "netsock-unix", "tcp", "unix"])
async def test_what_a_client_said_before_it_left_arrives(front, place):
    late = LateEndpoint()
    with listening_backend("netsock", place) as backend:
        async with relaying(front, backend, place, to=late) as relay:
            client = await relay.connect()
            await client.send(ONE[:50_000])
            client.close()
            await late.attempted()
            await turns()
            late.go_on(backend.endpoint)
            server = await relay.accept()
            assert await server.receive() == ONE[:50_000]


# Starting and stopping


async def test_the_service_is_a_service(place):
    with listening_backend("netsock", place) as backend:
        async with relaying("netsock", backend, place) as relay:
            assert verifyObject(IService, relay.service)
            assert relay.service.running


@pytest.mark.parametrize("back", NETWORK_BACKS)
@pytest.mark.parametrize("front", NETWORK_FRONTS)
async def test_stopping_ends_every_connection(front, back, place):
    async with relayed(front, back, place) as relay:
        pairs = [await relay.pair() for _ in range(3)]
        client, server = pairs[0]
        if front != "ssl" and back != "ssl":
            client.end()
            assert await server.receive() == b""
        await pairs[1][0].send(b"on its way")
        await relay.stop()
        for peer in (each for pair in pairs for each in pair):
            await peer.is_over()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((LOOPBACK, relay.address.port)).close()


@pytest.mark.parametrize("front", NETWORK_FRONTS)
async def test_stopping_cuts_off_what_is_under_way(front, place):
    """Half an answer must not look like a whole one because the relay was stopped."""
    async with relayed(front, "netsock", place) as relay:
        client, server = await relay.pair()
        await exchange(client, server)
        await relay.stop()
        await together(client.is_cut_off(), server.is_cut_off())


@pytest.mark.parametrize("front", NETWORK_FRONTS)
async def test_stopping_ends_attempts_to_connect(front, place):
    late = LateEndpoint()
    async with relaying(front, None, place, to=late) as relay:
        client = relay.connect_raw() if front == "ssl" else await relay.connect()
        await late.attempted()
        await relay.stop()
        await client.is_over()
        await until(lambda: late.cancelled)


@pytest.mark.parametrize("front", ["netsock-tls", "ssl"])
async def test_stopping_ends_handshakes(front, place):
    async with relayed(front, "netsock", place) as relay:
        client = relay.connect_raw()
        await client.send(b"\x16\x03\x01")
        await turns(10)
        await relay.stop()
        await client.is_over()


async def test_aborting_ends_a_backend_whose_client_has_finished(place):
    """What the backend is slow to take waits in the relay, which must let go of it."""
    with listening_backend("netsock", place) as backend:
        before = open_sockets()
        factory = RelayFactory(backend.endpoint)
        front: Any = factory.buildProtocol(None)
        front.makeConnection(StringTransport())
        peers: list[Peer] = []
        await backend.accept(peers)
        await turns(10)
        for _ in range(16):
            front.dataReceived(ONE)
        front.connectionLost(Failure(ConnectionDone()))
        await turns(10)
        try:
            # The backend's end, and the relay's.
            assert open_sockets() == before + 2
            factory.abort()
            await turns(10)
            assert open_sockets() == before + 1
        finally:
            peers[0].close()
            await turns(10)


@pytest.mark.parametrize("back", BACKS)
@pytest.mark.parametrize("front", FRONTS)
async def test_what_listens_and_connects_is_joined_without_transports_of_ours(front, back, place):
    async with relayed(front, back, place) as relay:
        await exchange(*await relay.pair())
        sides = relay.service._factory.sides
        assert len(sides) == 2
        kinds = {
            name: TLSLink if name == "netsock-tls" else PlainLink if "netsock" in name else Link
            for name in (front, back)
        }
        assert {type(side) for side in sides} == set(kinds.values())


async def test_a_service_that_was_stopped_can_be_started_again(place):
    async with relayed("netsock", "netsock", place) as relay:
        await exchange(*await relay.pair())
        await relay.stop()
        relay.service.startService()
        await until(lambda: len(relay.addresses) == 2)
        await exchange(*await relay.pair())


async def test_stopping_before_it_listens_is_quiet(place):
    service = RelayService(
        reactor,
        serverFromString(reactor, "netsock:0:node=localhost:aiFamily=inet"),
        LateEndpoint(),
    )
    service.startService()
    await maybeDeferred(service.stopService)
    await turns(20)


class ReactorToStop:
    """The real reactor, but for being stopped."""

    def __init__(self) -> None:
        self.stopped = 0

    def stop(self) -> None:
        self.stopped += 1

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)


# Twisted 26.4 leaves the socket of its own port to the garbage collector.
@pytest.mark.parametrize(
    "text",
    [
        "netsock:{}:node=127.0.0.1",
        pytest.param(
            "tcp:{}:interface=127.0.0.1",
            marks=pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
        ),
    ],
)
async def test_a_port_that_is_taken_is_reported_and_stops_the_reactor(text, log_lines):
    to_stop = ReactorToStop()
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        endpoint = serverFromString(reactor, text.format(port))
        service = RelayService(to_stop, endpoint, LateEndpoint())
        service.startService()
        await until(lambda: to_stop.stopped)
        await maybeDeferred(service.stopService)
    (line,) = [each for each in log_lines if "cannot listen" in each]
    assert "Address already in use" in line
    assert str(port) in line


async def test_a_factory_knows_the_connections_that_there_are(place):
    with listening_backend("netsock", place) as backend:
        factory = RelayFactory(backend.endpoint)
        text = FRONTS["netsock"].text.format(more="")
        port = await serverFromString(reactor, text).listen(factory)
        relay = Relay(None, FRONTS["netsock"], place, backend, [port.getHost()])
        try:
            client, server = await relay.pair()
            assert factory.connections == 1
            await exchange(client, server)
            client.close()
            assert await server.receive() == b""
            server.close()
            await until(lambda: not factory.connections)
            await relay.pair()
            factory.abort()
            await until(lambda: not factory.connections)
        finally:
            await port.stopListening()
            for peer in relay.peers:
                peer.close()
            await turns()


@pytest.mark.parametrize("front", HALF_CLOSING_FRONTS)
@pytest.mark.parametrize("back", HALF_CLOSING_BACKS)
async def test_a_connection_ends_when_both_directions_have(front, back, place):
    async with relayed(front, back, place) as relay:
        client, server = await relay.pair()
        client.end()
        assert await server.receive() == b""
        server.end()
        assert await client.receive() == b""
        await until(lambda: relay.service._factory.idle)


# The command's options


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "netsock:localhost:80"], ["--listen is missing"]),
        (["--listen", "netsock:0", "--to", "netsock:localhost:80:conectionTimeout=1s"],
         ["--to netsock:localhost:80", "did you mean connectionTimeout?"]),
        (["--listen", "netsock:0:interface=127.0.0.1", "--to", "tcp:127.0.0.1:80"],
         ["--listen ", "interface", "called node"]),
        (["--listen", "netsock:0", "--to", "netsock:localhost:80:readTimeout=10"],
         ["readTimeout='10'", "10s"]),
        (["--listen", "netsock-tls:0", "--to", "tcp:127.0.0.1:80"], ["certificates"]),
        (["--listen", "netsok:0", "--to", "tcp:127.0.0.1:80"], ["--listen ", "netsok"]),
        (["--listen", "tcp:0", "--to", "tcp:127.0.0.1"], ["--to tcp:127.0.0.1"]),
        (["--listen", "tcp:http-nonsense", "--to", "tcp:127.0.0.1:80"], ["--listen "]),
    ],
)  # fmt: skip
def test_a_mistake_in_an_endpoint_is_reported_with_its_option(arguments, said):
    with pytest.raises(UsageError) as caught:
        RelayOptions().parseOptions(arguments)
    message = str(caught.value)
    assert "\n" not in message
    for text in said:
        assert text in message


def test_without_a_subcommand_the_message_names_them():
    with pytest.raises(UsageError, match="relay"):
        Options().parseOptions([])


def test_endpoints_of_any_kind_are_made_of_the_options():
    options = Options()
    options.parseOptions(["relay", "--listen", "tcp:0", "--to", "netsock:localhost:80"])
    assert verifyObject(IStreamServerEndpoint, options.subOptions["listen"][0])
    (target,) = options.subOptions.settings.routes
    assert verifyObject(IStreamClientEndpoint, target.endpoint)
    assert verifyObject(IService, makeService(options))
