"""An end without close_notify: an error, unless the options take it for an end."""

from __future__ import annotations

import socket
import ssl
import threading
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString, quoteStringArgument
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol

from tests.support.clocks import the_reactor
from tests.support.peers import NAME
from tests.support.streams import in_thread, soon
from twisted_netsock import blocking, client_endpoint, make_client_tls_socket
from twisted_netsock.errors import SocketConnectionLostError, TLSTruncatedError
from twisted_netsock.testing import CertificateAuthority

DATA = b"y" * 200_000


@pytest.fixture
def port(authority: CertificateAuthority, tmp_path: Any) -> Any:
    """Serve one client, and close without close_notify."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    path = tmp_path / "server.pem"
    path.write_bytes(authority.issue(NAME).pem)
    context.load_cert_chain(path)
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        connection, _ = listener.accept()
        with context.wrap_socket(connection, server_side=True) as tls:
            tls.sendall(DATA)

    thread = threading.Thread(target=run)
    thread.start()
    yield listener.getsockname()[1]
    thread.join()
    listener.close()


async def by_socket(port: int, options: Any) -> bytes:
    async with await soon(make_client_tls_socket("127.0.0.1", port, options)) as sock:
        data = b""
        while part := await soon(sock.recv(65536)):
            data += part
        return data


async def by_endpoint(port: int, options: Any) -> bytes:
    end = await client_endpoint(the_reactor(), "127.0.0.1", port, options).connect(ENDS)
    return await outcome(end)


async def by_string(port: int, options: Any) -> bytes:
    path = quoteStringArgument(options.trusted_certificates[0])
    suppress = "yes" if options.suppress_ragged_eofs else "no"
    string = (
        f"netsock-tls:127.0.0.1:{port}:sni={NAME}:trustedCertificates={path}:"
        f"suppressRaggedEofs={suppress}"
    )
    return await outcome(await clientFromString(the_reactor(), string).connect(ENDS))


async def by_blocking(port: int, options: Any) -> bytes:
    def read() -> bytes:
        with blocking.make_client_tls_socket("127.0.0.1", port, options) as sock:
            data = b""
            while part := sock.recv(65536):
                data += part
            return data

    return await in_thread(read)


class Gathering(Protocol):
    """Gathers what comes; its *closed* fires with why no more does."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.closed: Deferred[Any] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Any) -> None:
        self.closed.callback(None if reason.check(ConnectionDone) else reason)


ENDS = Factory.forProtocol(Gathering)


async def outcome(end: Any) -> bytes:
    await soon(end.closed)
    return bytes(end.received)


@pytest.mark.parametrize("way", [by_socket, by_endpoint, by_string, by_blocking])
@pytest.mark.parametrize("suppress", [False, True])
async def test_an_end_without_close_notify(way, suppress, port, authority, tmp_path):
    trusted = tmp_path / "ca.pem"
    trusted.write_bytes(authority.certificate_pem)
    options = blocking.TLSSocketOptions(
        trusted_certificates=str(trusted), sni=NAME, suppress_ragged_eofs=suppress
    )
    if suppress:
        assert await way(port, options) == DATA
    else:
        with pytest.raises(TLSTruncatedError):
            await way(port, options)


async def test_an_end_within_the_handshake_is_a_loss_all_the_same(authority):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            connection, _ = listener.accept()
            connection.recv(1)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1 << 16)
            connection.close()

        thread = threading.Thread(target=run)
        thread.start()
        options = authority.client_options(suppress_ragged_eofs=True)
        with pytest.raises(SocketConnectionLostError):
            await soon(make_client_tls_socket("127.0.0.1", listener.getsockname()[1], options))
        thread.join()
