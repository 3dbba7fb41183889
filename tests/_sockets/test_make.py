"""The makers: what they refuse before they do anything."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString, quoteStringArgument, serverFromString
from twisted.internet.task import Clock
from twisted.web.client import URI

from tests.support.clocks import the_reactor
from tests.support.streams import (
    record_for,
)
from twisted_netsock import (
    ServerTLSSocketOptions,
    SocketOptions,
    TLSSocketOptions,
    agent_endpoint_factory,
    chibi,
    client_endpoint,
    make_client_socket,
    make_client_tls_socket,
    make_server_socket,
    make_server_tls_socket,
    server_endpoint,
    socket_options_to_client_socket,
)
from twisted_netsock.testing import CertificateAuthority

Maker = Callable[..., Deferred[Any]]

MAKERS = [make_client_socket, make_client_tls_socket, make_server_socket, make_server_tls_socket]
CLIENTS = MAKERS[:2]
SERVERS = MAKERS[2:]

PLAIN = SocketOptions()
CLIENT = TLSSocketOptions()
SERVER = ServerTLSSocketOptions()


def by_options(node: Any, service: Any, options: Any, **more: Any) -> Deferred[Any]:
    """Call `socket_options_to_client_socket` as the makers are called."""
    return socket_options_to_client_socket(options, node, service, **more)


def discard(making: Deferred[Any]) -> None:
    """Close what *making* makes, which it should not have begun."""
    making.addCallbacks(lambda made: made.abort(), lambda _: None)


class TestRecords:
    @pytest.mark.parametrize(
        ("maker", "options", "use"),
        [
            (make_client_socket, CLIENT, "make_client_tls_socket"),
            (make_client_socket, SERVER, "_tls_socket"),
            (make_server_socket, SERVER, "make_server_tls_socket"),
            (make_server_socket, CLIENT, "_tls_socket"),
            (make_client_tls_socket, SERVER, "make_server_tls_socket"),
            (by_options, SERVER, "make_server_tls_socket"),
            (make_server_tls_socket, CLIENT, "make_client_tls_socket"),
            (make_server_tls_socket, [SERVER, CLIENT], "make_client_tls_socket"),
            (make_server_tls_socket, PLAIN, "must be a ServerTLSSocketOptions"),
        ],
    )
    def test_a_record_for_something_else_is_refused_by_naming_what_takes_it(
        self, maker: Maker, options: Any, use: str
    ) -> None:
        with pytest.raises(TypeError, match=use):
            maker("127.0.0.1", 1, options)

    @pytest.mark.parametrize("maker", [*MAKERS, by_options])
    @pytest.mark.parametrize("options", [0, "record", object(), SocketOptions])
    def test_what_is_no_record_is_refused(self, maker: Maker, options: Any) -> None:
        with pytest.raises(TypeError):
            discard(maker("127.0.0.1", 1, options))

    @pytest.mark.parametrize("maker", [make_server_tls_socket, by_options])
    def test_a_record_is_needed_where_there_is_no_default(self, maker: Maker) -> None:
        with pytest.raises(TypeError):
            maker("127.0.0.1", 1, None)

    @pytest.mark.parametrize("maker", [*MAKERS, by_options])
    def test_blocking_mode_is_refused_by_naming_the_facade(
        self, maker: Maker, authority: CertificateAuthority
    ) -> None:
        with pytest.raises(ValueError, match=r"use twisted_netsock\.blocking"):
            maker("127.0.0.1", 1, record_for(authority, maker, non_blocking=False))

    @pytest.mark.parametrize("maker", [*CLIENTS, by_options])
    def test_passive_addresses_are_for_servers(
        self, maker: Maker, authority: CertificateAuthority
    ) -> None:
        with pytest.raises(ValueError, match="AI_PASSIVE is for servers"):
            maker("127.0.0.1", 1, record_for(authority, maker, ai_flags=socket.AI_PASSIVE))

    def test_a_tls_server_needs_a_certificate(self) -> None:
        with pytest.raises(ValueError, match="certificates and private_key are needed"):
            make_server_tls_socket("127.0.0.1", 0, SERVER)
        with pytest.raises(ValueError, match="at least one record"):
            make_server_tls_socket("127.0.0.1", 0, [])

    def test_a_file_that_cannot_be_used_is_reported_by_the_maker(self, tmp_path: Path) -> None:
        missing = str(tmp_path / "missing.pem")
        with pytest.raises(ValueError, match=r"missing\.pem"):
            make_server_tls_socket("127.0.0.1", 0, ServerTLSSocketOptions(certificates=missing))
        with pytest.raises(ValueError, match=r"missing\.pem"):
            make_client_tls_socket("127.0.0.1", 1, TLSSocketOptions(trusted_certificates=missing))

    @pytest.mark.parametrize("maker", MAKERS)
    async def test_a_reactor_that_cannot_wait_is_refused(
        self, maker: Maker, authority: CertificateAuthority
    ) -> None:
        with pytest.raises(TypeError, match="does not provide IReactorFDSet"):
            await maker("127.0.0.1", 1, record_for(authority, maker), reactor=Clock())


class TestTargets:
    @pytest.mark.parametrize("maker", CLIENTS)
    @pytest.mark.parametrize(
        ("node", "service", "error"),
        [
            ("", 80, ValueError),
            ("nul\0byte", 80, ValueError),
            (None, 80, TypeError),
            (b"127.0.0.1", 80, TypeError),
            ("127.0.0.1", None, ValueError),
            ("127.0.0.1", 0, ValueError),
            ("127.0.0.1", "0", ValueError),
            ("127.0.0.1", -1, ValueError),
            ("127.0.0.1", 65536, ValueError),
            ("127.0.0.1", "65536", ValueError),
            ("127.0.0.1", "", ValueError),
            ("127.0.0.1", True, TypeError),
            ("127.0.0.1", 80.0, TypeError),
        ],
    )
    def test_clients_refuse_what_cannot_be_connected_to(
        self,
        maker: Maker,
        authority: CertificateAuthority,
        node: Any,
        service: Any,
        error: type[Exception],
    ) -> None:
        with pytest.raises(error, match=r"node|service"):
            maker(node, service, record_for(authority, maker))

    @pytest.mark.parametrize("maker", SERVERS)
    @pytest.mark.parametrize(
        ("node", "service", "error"),
        [
            ("", 80, ValueError),
            (b"127.0.0.1", 80, TypeError),
            (None, None, ValueError),
            ("127.0.0.1", 65536, ValueError),
            (None, -1, ValueError),
            (None, True, TypeError),
        ],
    )
    def test_servers_refuse_what_cannot_be_listened_on(
        self,
        maker: Maker,
        authority: CertificateAuthority,
        node: Any,
        service: Any,
        error: type[Exception],
    ) -> None:
        with pytest.raises(error, match=r"node|service"):
            maker(node, service, record_for(authority, maker))

    @pytest.mark.parametrize("maker", MAKERS)
    @pytest.mark.parametrize(
        ("node", "service", "error"),
        [("/run/x", 80, ValueError), ("", None, ValueError), (None, None, TypeError)],
    )
    def test_with_unix_sockets_the_node_is_a_path_and_the_service_none(
        self,
        maker: Maker,
        authority: CertificateAuthority,
        node: Any,
        service: Any,
        error: type[Exception],
    ) -> None:
        with pytest.raises(error, match=r"node|service"):
            maker(node, service, record_for(authority, maker, ai_family=socket.AF_UNIX))


def _string_argument(value: str) -> str:
    return quoteStringArgument(value) if value else value


def _client_string(node: str, service: str) -> Any:
    text = f"netsock:node={_string_argument(node)}:service={_string_argument(service)}"
    return clientFromString(the_reactor(), text)


def _server_string(node: str, service: str) -> Any:
    text = f"netsock:{_string_argument(service)}:node={_string_argument(node)}"
    return serverFromString(the_reactor(), text)


CLIENT_WAYS: dict[str, Callable[[str, str], Any]] = {
    "socket": make_client_socket,
    "TLS socket": make_client_tls_socket,
    "endpoint": lambda node, service: client_endpoint(the_reactor(), node, service),
    "string": _client_string,
    "chibi": chibi.open_net_io,
    "look-up": chibi.get_address_info,
}
SERVER_WAYS: dict[str, Callable[[str, str], Any]] = {
    "socket": make_server_socket,
    "endpoint": lambda node, service: server_endpoint(the_reactor(), node, service),
    "string": _server_string,
}


class TestNoNames:
    """What the C library would read as an address or a port, though nobody else does."""

    @pytest.mark.parametrize("node", ["*", "0", "127.1", "0x7f.1", " 127.0.0.1"])
    @pytest.mark.parametrize("way", CLIENT_WAYS)
    def test_no_client_connects_there(self, way, node):
        with pytest.raises(ValueError, match=r"node=.*host name"):
            CLIENT_WAYS[way](node, "80")

    @pytest.mark.parametrize("node", ["*", "0", "127.1"])
    @pytest.mark.parametrize("way", SERVER_WAYS)
    def test_no_server_listens_there(self, way, node):
        with pytest.raises(ValueError, match=r"node=.*host name"):
            SERVER_WAYS[way](node, "0")

    def test_no_agent_connects_there(self):
        factory = agent_endpoint_factory(the_reactor())
        with pytest.raises(ValueError, match=r"node=.*host name"):
            factory.endpointForURI(URI.fromBytes(b"http://127.1/"))

    @pytest.mark.parametrize("service", [" 80", "+80", "-1", "*", "80 "])
    @pytest.mark.parametrize("way", CLIENT_WAYS)
    def test_no_client_connects_to_such_a_service(self, way, service):
        with pytest.raises(ValueError, match=r"service=.*port"):
            CLIENT_WAYS[way]("127.0.0.1", service)

    @pytest.mark.parametrize("service", [" 80", "+80", "-1", "*", "80 "])
    @pytest.mark.parametrize("way", SERVER_WAYS)
    def test_no_server_listens_on_such_a_service(self, way, service):
        with pytest.raises(ValueError, match=r"service=.*port"):
            SERVER_WAYS[way]("127.0.0.1", service)
