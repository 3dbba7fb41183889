"""The contracts of `twisted_netsock.testing`: our endpoints and sockets keep them."""

from __future__ import annotations

import os
import socket
from typing import Any, ClassVar

import pytest
from twisted.internet import reactor
from twisted.internet.address import UNIXAddress
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    UNIXClientEndpoint,
    UNIXServerEndpoint,
    clientFromString,
    serverFromString,
)
from twisted.internet.error import ConnectingCancelledError

from twisted_netsock import (
    SocketOptions,
    client_endpoint,
    server_endpoint,
)
from twisted_netsock.chibi import open_socket_pair
from twisted_netsock.testing import (
    CertificateAuthority,
    ClientEndpointContract,
    ServerEndpointContract,
    SocketContract,
    connected_pair,
)

LOOPBACK = "127.0.0.1"
AUTHORITY = CertificateAuthority()


class Flushing:
    """Takes what was logged off the list that the fixture looks at."""

    @pytest.fixture(autouse=True)
    def _flushing(self, logged_errors: Any) -> None:
        def flush(*kinds: type[Exception]) -> list[Any]:
            found = [
                event
                for event in logged_errors
                if event.get("log_failure") is not None and event["log_failure"].check(*kinds)
            ]
            for event in found:
                logged_errors.remove(event)
            return found

        self.flushLoggedErrors = flush


class Plain(Flushing):
    server_options: ClassVar[Any] = SocketOptions()
    client_options: ClassVar[Any] = SocketOptions()

    def make_server_endpoint(self, address: Any = None) -> Any:
        host, port = (LOOPBACK, 0) if address is None else (address.host, address.port)
        return server_endpoint(reactor, host, port, self.server_options)

    def make_client_endpoint(self, address: Any) -> Any:
        return client_endpoint(reactor, address.host, address.port, self.client_options)


class TestPlainClient(Plain, ClientEndpointContract):
    pass


class TestPlainServer(Plain, ServerEndpointContract):
    pass


class IPv6(Plain):
    def make_server_endpoint(self, address: Any = None) -> Any:
        return server_endpoint(reactor, "::1", 0 if address is None else address.port)


class TestIPv6Client(IPv6, ClientEndpointContract):
    pass


class TestIPv6Server(IPv6, ServerEndpointContract):
    pass


class ByName(Plain):
    """Connects to a name, and listens on one: with a look-up in between."""

    server_options: ClassVar[Any] = SocketOptions(ai_family=socket.AF_INET)
    client_options: ClassVar[Any] = SocketOptions(ai_family=socket.AF_INET)

    def make_server_endpoint(self, address: Any = None) -> Any:
        port = 0 if address is None else address.port
        return server_endpoint(reactor, "localhost", port, self.server_options)

    def make_client_endpoint(self, address: Any) -> Any:
        return client_endpoint(reactor, "localhost", address.port, self.client_options)


class TestClientByName(ByName, ClientEndpointContract):
    pass


class TestServerByName(ByName, ServerEndpointContract):
    pass


class TLS(Plain):
    server_options: ClassVar[Any] = AUTHORITY.server_options()
    client_options: ClassVar[Any] = AUTHORITY.client_options()


class TestTLSClient(TLS, ClientEndpointContract):
    pass


class TestTLSServer(TLS, ServerEndpointContract):
    pass


class UNIX(Plain):
    """Over UNIX sockets."""

    unix = SocketOptions(ai_family=socket.AF_UNIX)

    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path: Any) -> None:
        self.paths = (os.fspath(tmp_path / f"socket-{number}") for number in range(10))

    def path(self, address: Any) -> str:
        if address is None:
            return next(self.paths)
        assert isinstance(address, UNIXAddress)
        return os.fsdecode(address.name)

    def make_server_endpoint(self, address: Any = None) -> Any:
        return server_endpoint(reactor, self.path(address), None, self.unix)

    def make_client_endpoint(self, address: Any) -> Any:
        return client_endpoint(reactor, self.path(address), None, self.unix)


class TestUNIXClient(UNIX, ClientEndpointContract):
    pass


class TestUNIXServer(UNIX, ServerEndpointContract):
    pass


class Strings(Flushing):
    """By endpoint strings, through Twisted's own functions."""

    def make_server_endpoint(self, address: Any = None) -> Any:
        port = 0 if address is None else address.port
        return serverFromString(reactor, f"netsock:{port}:node={LOOPBACK}")

    def make_client_endpoint(self, address: Any) -> Any:
        return clientFromString(reactor, f"netsock:{address.host}:{address.port}")


class TestClientString(Strings, ClientEndpointContract):
    pass


class TestServerString(Strings, ServerEndpointContract):
    pass


# Twisted's own keep them, too: the contracts are no private matter


class Twisted(Flushing):
    cancelled: ClassVar[type[Exception]] = ConnectingCancelledError

    def make_server_endpoint(self, address: Any = None) -> Any:
        return TCP4ServerEndpoint(reactor, address.port if address else 0, interface=LOOPBACK)

    def make_client_endpoint(self, address: Any) -> Any:
        return TCP4ClientEndpoint(reactor, address.host, address.port)


class TestTwistedClient(Twisted, ClientEndpointContract):
    pass


# Twisted 26.4 leaves the socket of a port that could not be bound to the collector.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
class TestTwistedServer(Twisted, ServerEndpointContract):
    # The connection stays open until the collector finds it.
    test_an_exception_of_build_protocol_costs_that_connection_alone = None


class TwistedUNIX(UNIX):
    cancelled: ClassVar[type[Exception]] = ConnectingCancelledError

    def make_server_endpoint(self, address: Any = None) -> Any:
        return UNIXServerEndpoint(reactor, self.path(address))

    def make_client_endpoint(self, address: Any) -> Any:
        return UNIXClientEndpoint(reactor, self.path(address))


class TestTwistedUNIXClient(TwistedUNIX, ClientEndpointContract):
    pass


class TestTwistedUNIXServer(TwistedUNIX, ServerEndpointContract):
    test_an_exception_of_build_protocol_costs_that_connection_alone = None
    # It leaves a descriptor and a started factory behind.
    test_an_address_that_is_taken_cannot_be_listened_on = None


# Sockets


class TestConnectedPair(SocketContract):
    async def make_sockets(self) -> Any:
        return connected_pair()


class TestUNIXPair(SocketContract):
    resets = False

    async def make_sockets(self) -> Any:
        return open_socket_pair()
