"""Blocking listeners: certificates that change, sessions, PROXY headers, STARTTLS in `serve`."""

from __future__ import annotations

import socket as standard
from datetime import timedelta
from typing import Any

import pytest

from tests.support.threads import Background, eventually, plain_pair, threaded, tls_pair
from twisted_netsock import (
    ProxyHeader,
    ServerTLSSocketOptions,
    SocketConnectionTimeoutError,
    SocketError,
    SocketOptions,
    blocking,
    client_context_factory,
    server_context_factory,
)


def shown(server: Any, options: Any) -> Any:
    """Return the certificate that a new client of *server* is shown."""
    accepting = Background(server.accept)
    port = server.getsockname().port
    client = blocking.make_client_tls_socket("localhost", port, options)
    with client, accepting.result():
        return client.peer_certificate


@threaded
def test_a_listener_reloads_its_certificates(authority, tmp_path):
    old, new = (authority.issue("localhost") for _ in range(2))
    path = tmp_path / "server.pem"
    path.write_bytes(old.pem)
    options = ServerTLSSocketOptions(certificates=path)
    with blocking.make_server_tls_socket("127.0.0.1", 0, options) as server:
        assert shown(server, authority.client_options()) == old.certificate
        path.write_bytes(new.pem)
        assert server.reload() is None
        assert shown(server, authority.client_options()) == new.certificate
        path.write_bytes(b"nothing of use")
        with pytest.raises(ValueError, match="certificate"):
            server.reload()
        assert shown(server, authority.client_options()) == new.certificate


@threaded
def test_a_listener_looks_at_its_files(authority, tmp_path):
    old, new = (authority.issue("localhost") for _ in range(2))
    path = tmp_path / "server.pem"
    path.write_bytes(old.pem)
    options = ServerTLSSocketOptions(certificates=path)
    with blocking.make_server_tls_socket(
        "127.0.0.1", 0, options, reload_every=timedelta(milliseconds=20)
    ) as server:
        assert shown(server, authority.client_options()) == old.certificate
        path.write_bytes(new.pem)
        eventually(lambda: shown(server, authority.client_options()) == new.certificate)


@threaded
def test_a_connection_has_nothing_to_reload(authority):
    with tls_pair(authority) as (one, other):
        for each in (one, other):
            with pytest.raises(SocketError, match="connection"):
                each.reload()


@threaded
def test_a_client_resumes_its_session(authority):
    record = authority.server_options("localhost")
    options = authority.client_options()
    resumed = []
    with blocking.make_server_tls_socket("127.0.0.1", 0, record) as server:
        for _ in range(2):
            accepting = Background(server.accept)
            port = server.getsockname().port
            client = blocking.make_client_tls_socket("localhost", port, options)
            with client, accepting.result() as connection:
                connection.sendall(b"x")
                assert client.recv(1) == b"x"
                resumed.append(client.resumed)
                # The goodbye, after which a session is kept.
                connection.shutdown(standard.SHUT_WR)
                assert client.recv(1) == b""
    assert resumed == [False, True]


@threaded
def test_proxy_headers_go_both_ways():
    options = SocketOptions(proxy_protocol="v2")
    header = ProxyHeader(("192.0.2.1", 1234), ("192.0.2.2", 80))
    with blocking.make_server_socket("127.0.0.1", 0, options) as server:
        accepting = Background(server.accept)
        port = server.getsockname().port
        with (
            blocking.make_client_socket("127.0.0.1", port, options, proxy_header=header) as client,
            accepting.result() as connection,
        ):
            assert (connection.node, connection.service) == ("192.0.2.1", 1234)
            assert connection.proxy_header.source == header.source
            client.sendall(b"after the header")
            assert connection.recv(100) == b"after the header"
        assert server.failed_handshakes == 0


@threaded
def test_a_bad_proxy_header_is_counted_and_never_accepted():
    options = SocketOptions(proxy_protocol="v1")
    with blocking.make_server_socket("127.0.0.1", 0, options) as server:
        accepting = Background(server.accept)
        with standard.create_connection(server.getsockname()) as stranger:
            stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
            eventually(lambda: server.failed_handshakes == 1)
        with blocking.make_client_socket("127.0.0.1", server.getsockname().port, options):
            accepting.result().close()


@threaded
def test_start_tls_takes_context_factories_and_keeps_timeouts(authority):
    client = client_context_factory(authority.client_options(), "localhost")
    server = server_context_factory(authority.server_options("localhost"))
    with plain_pair() as (one, other):
        one.read_timeout = timedelta(minutes=1)
        serving = Background(lambda: blocking.start_tls(other, server))
        with blocking.start_tls(one, client) as tls, serving.result() as there:
            assert tls.read_timeout == timedelta(minutes=1)
            assert tls.node == "localhost"
            there.sendall(b"x")
            assert tls.recv(1) == b"x"
    with plain_pair() as (one, _), pytest.raises(ValueError, match="node='somebody'"):
        blocking.start_tls(one, server, "somebody")


@threaded
def test_start_tls_gives_a_peer_up_that_takes_nothing(authority):
    options = authority.client_options().replace(handshake_timeout=timedelta(milliseconds=50))
    with plain_pair() as (one, _):
        while blocking.send_non_blocking(one, bytes(65536), 0.01) is not None:
            pass
        one.output_port.write(b"waits")
        with pytest.raises(SocketConnectionTimeoutError) as caught:
            blocking.start_tls(one, options, "localhost")
        assert caught.value.stage == "handshake"
        assert one.closed


@threaded
def test_serve_closes_what_a_connection_has_become(authority):
    factory = server_context_factory(authority.server_options("localhost"))
    seen = []

    def handle(connection: Any) -> None:
        seen.append(blocking.start_tls(connection, factory))

    with blocking.make_server_socket("127.0.0.1", 0) as server:
        serving = Background(lambda: server.serve(handle))
        plain = blocking.make_client_socket("127.0.0.1", server.getsockname().port)
        with blocking.start_tls(plain, authority.client_options(), "localhost") as tls:
            assert tls.recv(1) == b""
        eventually(lambda: seen and seen[0].closed)
    serving.result()
