"""Libraries that take a `socket.socket` run over our TLS sockets, against servers of others."""

from __future__ import annotations

import http.client
import io
import poplib
import smtplib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import succeed
from twisted.internet.protocol import Factory
from twisted.mail import pop3, smtp
from zope.interface import implementer

from tests.support.clocks import the_reactor
from tests.support.processes import find, free_port, needs, started
from tests.support.streams import in_thread
from tests.support.threads import no_descriptors, threaded
from twisted_netsock import blocking, server_endpoint

BODY = bytes(range(256)) * 2000


@pytest.fixture
def tls_context(authority: Any, tmp_path: Path) -> Any:
    """The standard library's context of a server."""
    import ssl

    (tmp_path / "server.pem").write_bytes(authority.issue("localhost", "127.0.0.1").pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    return context


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        if self.path == "/close":
            self.send_header("Connection", "close")
            self.close_connection = True
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def http_port(tls_context: Any) -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = tls_context.wrap_socket(server.socket, server_side=True)
        server.daemon_threads = False
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@threaded
def test_http_client(http_port, authority):
    class Connection(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = blocking.make_client_tls_socket(
                self.host, self.port, authority.client_options()
            )
            self.sock.settimeout(10)

    connection = Connection("localhost", http_port)
    for method, body in (("GET", None), ("POST", BODY), ("GET", None)):
        connection.request(method, "/", body)
        response = connection.getresponse()
        assert response.status == 200
        assert response.read() == BODY
    sock = connection.sock
    connection.request("GET", "/close")
    with connection.getresponse() as response:
        # The connection has been closed already, and the response goes on.
        assert sock.closed
        assert response.read() == BODY
    connection.close()
    assert sock._gone


@threaded
def test_urllib3(http_port, authority):
    urllib3 = pytest.importorskip("urllib3")

    class Connection(urllib3.connection.HTTPConnection):
        def _new_conn(self) -> Any:
            return blocking.make_client_tls_socket(
                self.host, self.port, authority.client_options()
            )

    class Pool(urllib3.HTTPConnectionPool):
        ConnectionCls = Connection

    with Pool("localhost", http_port, maxsize=2, timeout=10) as pool:
        for _ in range(3):
            assert pool.request("POST", "/", body=BODY).data == BODY
        assert pool.num_connections == 1


async def beside(factory: Any, authority: Any, client: Callable[[int], None]) -> None:
    """Run *client* with the port of a TLS server of Twisted's *factory*, behind our endpoint."""
    endpoint = server_endpoint(the_reactor(), "127.0.0.1", 0, authority.server_options())
    listening = await endpoint.listen(factory)
    try:
        await in_thread(client, listening.getHost().port)
    finally:
        await listening.stopListening()
        await no_descriptors()


@implementer(smtp.IMessage)
class Message:
    """A message that goes to a list."""

    def __init__(self, delivered: list[bytes]) -> None:
        self.delivered = delivered
        self.lines: list[bytes] = []

    def lineReceived(self, line: bytes) -> None:  # noqa: N802
        self.lines.append(line)

    def eomReceived(self) -> Any:  # noqa: N802
        self.delivered.append(b"\n".join(self.lines))
        return succeed(None)

    def connectionLost(self) -> None:
        """Forget it."""


@implementer(smtp.IMessageDelivery)
class Delivery:
    """A delivery that takes everything."""

    def __init__(self, delivered: list[bytes]) -> None:
        self.delivered = delivered

    def receivedHeader(self, helo: Any, origin: Any, recipients: Any) -> bytes:  # noqa: N802
        return b"Received: here"

    def validateFrom(self, helo: Any, origin: Any) -> Any:  # noqa: N802
        return origin

    def validateTo(self, user: Any) -> Any:  # noqa: N802
        return lambda: Message(self.delivered)


class MailFactory(smtp.SMTPFactory):
    delivered: list[bytes]

    def buildProtocol(self, address: Any) -> Any:
        made = super().buildProtocol(address)
        made.delivery = Delivery(self.delivered)
        made.setTimeout(None)
        return made


async def test_smtplib(authority):
    delivered: list[bytes] = []
    factory = MailFactory()
    factory.delivered = delivered

    class Client(smtplib.SMTP):
        def _get_socket(self, host: str, port: int, timeout: float) -> Any:
            sock = blocking.make_client_tls_socket(host, port, authority.client_options())
            sock.settimeout(10)
            return sock

    def client(port: int) -> None:
        with Client("localhost", port, local_hostname="here") as connection:
            connection.sendmail("a@example.com", ["b@example.com"], "Subject: x\r\n\r\nHello\r\n")

    await beside(factory, authority, client)
    assert len(delivered) == 1
    assert delivered[0].endswith(b"Hello")


class Mailbox(pop3.Mailbox):
    messages = (b"Subject: one\r\n\r\n1\r\n", b"Subject: two\r\n\r\n2\r\n")

    def listMessages(self, index: int | None = None) -> Any:  # noqa: N802
        sizes = [len(each) for each in self.messages]
        return sizes if index is None else sizes[index]

    def getMessage(self, index: int) -> Any:  # noqa: N802
        return io.BytesIO(self.messages[index])


class MailServer(pop3.POP3):
    timeOut = None  # noqa: N815

    def authenticateUserPASS(self, user: bytes, password: bytes) -> Any:  # noqa: N802
        assert (user, password) == (b"me", b"secret")
        return succeed((pop3.IMailbox, Mailbox(), lambda: None))


async def test_poplib(authority):
    class Client(poplib.POP3):
        def _create_socket(self, timeout: float) -> Any:
            return blocking.make_client_tls_socket(
                self.host, self.port, authority.client_options()
            )

    def client(port: int) -> None:
        connection = Client("localhost", port)
        connection.user("me")
        connection.pass_("secret")
        assert connection.stat()[0] == 2
        assert connection.retr(2)[1][0].strip() == b"Subject: two"
        connection.quit()

    await beside(Factory.forProtocol(MailServer), authority, client)


@needs("redis-server")
@pytest.mark.parametrize("way", ["socket", "context"])
@threaded
def test_redis(way, authority, tmp_path):
    redis = pytest.importorskip("redis")
    port = free_port()
    (tmp_path / "server.pem").write_bytes(authority.issue("localhost").pem)
    (tmp_path / "ca.pem").write_bytes(authority.certificate_pem)

    class Connection(redis.connection.Connection):
        def _connect(self) -> Any:
            sock = blocking.make_client_tls_socket("localhost", port, authority.client_options())
            sock.settimeout(10)
            return sock

    context = blocking.ssl_context(authority.client_options())

    class ContextConnection(redis.connection.SSLConnection):
        def _wrap_socket_with_ssl(self, sock: Any) -> Any:
            return context.wrap_socket(sock, server_hostname=self.host)

    with started(
        find("redis-server") or "",
        *("--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1", "--save", ""),
        *("--tls-cert-file", tmp_path / "server.pem", "--tls-key-file", tmp_path / "server.pem"),
        *("--tls-ca-cert-file", tmp_path / "ca.pem", "--tls-auth-clients", "no"),
        output=tmp_path / "output",
        cwd=tmp_path,
    ) as child:
        child.wait_for_line("Ready to accept connections")
        kind = Connection if way == "socket" else ContextConnection
        pool = redis.ConnectionPool(connection_class=kind, host="localhost", port=port)
        client = redis.Redis(connection_pool=pool)
        assert client.set("key", BODY)
        assert client.get("key") == BODY
        with client.pipeline() as pipe:
            pipe.incr("count").incr("count")
            assert pipe.execute() == [1, 2]
        subscription = client.pubsub()
        subscription.subscribe("news")
        assert subscription.get_message(timeout=5)["type"] == "subscribe"
        assert subscription.get_message(timeout=0.05) is None
        client.publish("news", "x")
        assert subscription.get_message(timeout=5)["data"] == b"x"
        subscription.close()
        client.close()
        pool.disconnect()


@pytest.mark.parametrize("make", [blocking.make_client_socket, blocking.open_net_io])
@pytest.mark.parametrize(
    ("node", "service", "named"),
    [("*", 80, "node"), ("127.1", 80, "node"), ("127.0.0.1", " 80", "service")],
)
async def test_what_only_the_c_library_takes_for_an_address_is_refused(make, node, service, named):
    with pytest.raises(ValueError, match=named):
        await in_thread(lambda: make(node, service))
