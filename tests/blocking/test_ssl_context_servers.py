"""`ssl_context` on the side of a server: before it listens, and what a program may demand."""

from __future__ import annotations

import socket
import ssl

import pytest

from tests.support.threads import Background, threaded
from twisted_netsock import TLSError, blocking

pytestmark = pytest.mark.long

NAME = "localhost"
LIMIT = 30


@pytest.mark.parametrize("make", [socket.socket, blocking.socket])
@threaded
def test_a_socket_that_listens_later(make, authority):
    context = blocking.ssl_context(authority.server_options(NAME))
    plain = make(socket.AF_INET, socket.SOCK_STREAM)
    plain.bind(("127.0.0.1", 0))
    with context.wrap_socket(plain, server_side=True) as server:
        server.listen()
        accepting = Background(server.accept)
        port = server.getsockname().port
        options = authority.client_options(sni=NAME)
        with blocking.make_client_tls_socket("127.0.0.1", port, options) as one:
            connection, _ = accepting.result()
            connection.sendall(b"hello")
            assert one.recv(10) == b"hello"
            connection.close()


@threaded
def test_a_server_that_takes_certificates_may_demand_them(authority):
    record = authority.server_options(NAME, trusted_certificates=authority.certificate)
    context = blocking.ssl_context(record)
    context.verify_mode = ssl.CERT_REQUIRED
    assert context.verify_mode == ssl.CERT_REQUIRED
    with pytest.raises(ValueError, match="client_certificate_required"):
        context.verify_mode = ssl.CERT_NONE
    listener = socket.create_server(("127.0.0.1", 0))
    with context.wrap_socket(listener, server_side=True) as server:
        server.settimeout(LIMIT)
        port = server.getsockname().port
        accepting = Background(server.accept)
        options = authority.client_options(sni=NAME)
        refused = pytest.raises(TLSError, match="certificate required")
        with blocking.make_client_tls_socket("127.0.0.1", port, options) as client, refused:
            client.recv(1)
        with_one = options.replace(certificates=authority.issue("client").pem)
        with blocking.make_client_tls_socket("127.0.0.1", port, with_one) as client:
            connection, _ = accepting.result()
            assert connection.getpeercert()["subjectAltName"] == (("DNS", "client"),)
            connection.close()
