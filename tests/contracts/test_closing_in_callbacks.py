"""A verifier that closes or cancels what it was called for: OpenSSL is at work meanwhile."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from tests.support.clocks import the_reactor, turns, until
from tests.support.loopback import LOOPBACK
from tests.support.protocols import Protocols
from tests.support.streams import in_thread
from twisted_netsock import (
    Socket,
    SocketClosedError,
    chibi,
    client_endpoint,
    make_client_tls_socket,
    make_server_tls_socket,
    server_endpoint,
    start_tls,
)

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
ANSWERS = [None, True, False]


class Closing:
    """A verifier that does something once, and then opens files, which get free numbers."""

    def __init__(self, directory: Any, answer: bool | None) -> None:
        self._directory = directory
        self._answer = answer
        self.act: Callable[[], Any] = lambda: None
        self.files: list[int] = []

    def __call__(self, depth: int, result: Any, certificate: Any) -> bool | None:
        if not self.files:
            self.act()
            for number in range(4):
                path = self._directory / f"file{number}"
                self.files.append(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        return self._answer

    def check(self) -> None:
        """Find the files untouched, and close them."""
        assert len(self.files) == 4
        sizes = [os.fstat(each).st_size for each in self.files]
        for each in self.files:
            os.close(each)
        assert sizes == [0, 0, 0, 0]


@pytest.fixture(params=ANSWERS)
def closing(request: pytest.FixtureRequest, tmp_path: Any) -> Closing:
    return Closing(tmp_path, request.param)


@pytest.fixture(params=VERSIONS)
def shake(request: pytest.FixtureRequest, authority: Any, tmp_path: Any) -> Callable[[int], Any]:
    """Perform the handshake with a server, with our own certificate, and return the outcome."""
    issued = authority.issue("client")
    path = tmp_path / "client.pem"
    path.write_bytes(issued.pem)
    context = ssl.create_default_context(cadata=authority.certificate_pem.decode())
    context.load_cert_chain(path)
    context.maximum_version = request.param

    def run(port: int) -> str:
        try:
            with (
                socket.create_connection((LOOPBACK, port), 5) as plain,
                context.wrap_socket(plain, server_hostname=LOOPBACK) as tls,
            ):
                return f"{tls.recv(10)!r}"
        except OSError as error:
            return type(error).__name__

    return run


def asking(authority: Any, verifier: Any) -> Any:
    """Return a server's record that asks for a certificate, and *verifier* about it."""
    return authority.server_options().replace(
        trusted_certificates=authority.certificate_pem,
        client_certificate_required=True,
        certificate_verifier=verifier,
    )


async def test_closing_the_listening_socket(closing, shake, authority):
    server = await make_server_tls_socket(LOOPBACK, 0, asking(authority, closing))
    accepting: list[Any] = []
    server.accept().addBoth(accepting.append)
    port = server.getsockname().port
    closing.act = server.close
    await in_thread(shake, port)
    await until(lambda: accepting)
    assert accepting[0].check(SocketClosedError)
    closing.check()


async def test_stopping_the_port(closing, shake, authority):
    factory = Protocols()
    endpoint = server_endpoint(the_reactor(), LOOPBACK, 0, asking(authority, closing))
    port = await endpoint.listen(factory)
    closing.act = port.stopListening
    await in_thread(shake, port.getHost().port)
    closing.check()
    assert factory.built == []


async def test_closing_the_connection_of_an_own_handshake(closing, shake, authority):
    options = asking(authority, closing).replace(handshake=False)
    server = await make_server_tls_socket(LOOPBACK, 0, options)
    accepting = server.accept()
    shaking = in_thread(shake, server.getsockname().port)
    connection = await accepting
    closing.act = connection.close
    with pytest.raises(SocketClosedError):
        await connection.handshake()
    await shaking
    assert connection.closed
    await server.close()
    closing.check()


async def client_and_server(authority: Any, verifier: Any) -> tuple[Socket, Any]:
    server = await make_server_tls_socket(LOOPBACK, 0, authority.server_options())
    server.accept().addCallbacks(lambda connection: connection.abort(), lambda _: None)
    return server, authority.client_options().replace(certificate_verifier=verifier)


@pytest.mark.parametrize("way", ["socket", "endpoint"])
async def test_cancelling_the_connect(way, closing, authority, logged_errors):
    server, options = await client_and_server(authority, closing)
    port = server.getsockname().port
    connecting: Deferred[Any]
    if way == "socket":
        connecting = make_client_tls_socket(LOOPBACK, port, options)
    else:
        endpoint = client_endpoint(the_reactor(), LOOPBACK, port, options)
        connecting = endpoint.connect(Protocols())
    results: list[Any] = []
    connecting.addBoth(results.append)
    closing.act = connecting.cancel
    await until(lambda: results and closing.files)
    assert isinstance(results[0], Failure)
    assert results[0].check(CancelledError)
    await turns()
    await server.close()
    closing.check()
    assert logged_errors == []


async def test_cancelling_start_tls(closing, authority, logged_errors):
    here, there = chibi.open_socket_pair()
    serving = start_tls(there, authority.server_options())
    serving.addCallbacks(lambda connection: connection.abort(), lambda _: None)
    options = authority.client_options().replace(certificate_verifier=closing)
    starting = start_tls(here, options, LOOPBACK)
    results: list[Any] = []
    starting.addBoth(results.append)
    closing.act = starting.cancel
    await until(lambda: results and serving.called)
    assert results[0].check(CancelledError)
    await turns()
    closing.check()
    assert logged_errors == []


async def test_a_protocol_that_aborts_or_closes_in_starttls(closing, authority, logged_errors):
    from twisted.internet.protocol import Protocol

    from twisted_netsock import client_context_factory, server_context_factory

    options = authority.client_options().replace(certificate_verifier=closing)

    class Starting(Protocol):
        lost = None

        def connectionMade(self) -> None:
            closing.act = self.transport.abortConnection
            self.transport.startTLS(client_context_factory(options, LOOPBACK))

        def connectionLost(self, reason: Any = None) -> None:
            self.lost = reason

    class Answering(Protocol):
        def connectionMade(self) -> None:
            self.transport.startTLS(server_context_factory(authority.server_options()))

    servers, clients = Protocols(Answering), Protocols(Starting)
    port = await server_endpoint(the_reactor(), LOOPBACK, 0).listen(servers)
    endpoint = client_endpoint(the_reactor(), LOOPBACK, port.getHost().port)
    client = await endpoint.connect(clients)
    await until(lambda: client.lost)
    await port.stopListening()
    await servers.all_lost()
    closing.check()
    assert logged_errors == []
