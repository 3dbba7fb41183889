"""`ssl_context`: programs that take a context of the standard library's, unmodified."""

from __future__ import annotations

import asyncio
import contextlib
import ftplib
import http.client
import http.server
import imaplib
import poplib
import smtplib
import socket
import ssl
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.threads import Background, threaded
from twisted_netsock import (
    CertificateVerificationError,
    ServerTLSSocketOptions,
    SocketConnectionTimeoutError,
    SocketOptions,
    TLSError,
    TLSSocketOptions,
    TLSTruncatedError,
    blocking,
)
from twisted_netsock.testing import CertificateAuthority

pytestmark = pytest.mark.long

NAME = "localhost"
LIMIT = 30


class Talk:
    """A conversation in lines, on the server's side, with the standard library's TLS."""

    def __init__(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        connection.settimeout(LIMIT)
        self.socket = connection
        self.context = context

    def secure(self) -> None:
        self.socket = self.context.wrap_socket(self.socket, server_side=True)

    def say(self, *lines: str) -> None:
        self.socket.sendall("".join(line + "\r\n" for line in lines).encode())

    def line(self) -> str:
        got = b""
        while not got.endswith(b"\n"):
            part = self.socket.recv(1)
            if not part:
                return ""
            got += part
        return got.decode().strip()

    def answer(self, answers: dict[str, tuple[str, ...]], starts: str) -> None:
        """Answer commands by their first word, and *starts* with TLS, to the end."""
        while line := self.line():
            tag, _, rest = line.partition(" ")
            word, tag = (rest.split()[0], tag) if tag.startswith("T") else (line.split()[0], "")
            self.say(*(each.replace("TAG", tag) for each in answers[word.upper()]))
            if word.upper() == starts:
                self.secure()


@contextmanager
def serving(handler: Callable[[socket.socket], None]) -> Iterator[int]:
    """Have *handler* serve each connection, in a thread; give the port."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads = []

    def one(connection: socket.socket) -> None:
        # Of some tests the client refuses the server's certificate.
        with contextlib.suppress(OSError):
            handler(connection)
        connection.close()

    def run() -> None:
        while True:
            connection, _ = listener.accept()
            if stopping:
                connection.close()
                return
            threads.append(threading.Thread(target=one, args=(connection,)))
            threads[-1].start()

    stopping = False
    accepting = threading.Thread(target=run)
    accepting.start()
    port = listener.getsockname()[1]
    try:
        yield port
    finally:
        stopping = True
        socket.create_connection(("127.0.0.1", port)).close()
        accepting.join()
        listener.close()
        for each in threads:
            each.join()


def standard_server(
    authority: CertificateAuthority, directory: Path, name: str = NAME
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    path = directory / f"{name}.pem"
    path.write_bytes(authority.issue(name).pem)
    context.load_cert_chain(path)
    return context


@pytest.fixture
def theirs(authority: CertificateAuthority, tmp_path: Path) -> ssl.SSLContext:
    return standard_server(authority, tmp_path)


@pytest.fixture
def ours(authority: CertificateAuthority) -> ssl.SSLContext:
    return blocking.ssl_context(authority.client_options())


def page(context: ssl.SSLContext) -> Callable[[socket.socket], None]:
    """Serve one page over HTTPS to a connection."""

    def handle(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as tls:
            tls.settimeout(LIMIT)
            got = b""
            while b"\r\n\r\n" not in got:
                part = tls.recv(65536)
                if not part:
                    return
                got += part
            head = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n"
            tls.sendall(head + b"hello")
            tls.unwrap()

    return handle


# Clients


@threaded
def test_http_client(ours, theirs):
    with serving(page(theirs)) as port:
        client = http.client.HTTPSConnection(NAME, port, context=ours, timeout=LIMIT)
        client.request("GET", "/")
        assert isinstance(client.sock, ssl.SSLSocket)
        assert isinstance(client.sock, blocking.BlockingTLSSocket)
        assert client.sock.gettimeout() == LIMIT
        assert client.getresponse().read() == b"hello"
        client.close()


@threaded
def test_urllib_request(ours, theirs):
    with serving(page(theirs)) as port:
        url = f"https://{NAME}:{port}/"
        with urllib.request.urlopen(url, context=ours, timeout=LIMIT) as answer:
            assert answer.read() == b"hello"


@threaded
def test_urllib3(ours, theirs):
    urllib3 = pytest.importorskip("urllib3", reason="install urllib3")
    with serving(page(theirs)) as port, urllib3.PoolManager(ssl_context=ours) as pool:
        assert pool.request("GET", f"https://{NAME}:{port}/", timeout=LIMIT).data == b"hello"


@threaded
def test_requests_whose_authorities_are_not_added(ours, theirs):
    requests = pytest.importorskip("requests", reason="install requests")

    class Adapter(requests.adapters.HTTPAdapter):
        def init_poolmanager(self, *arguments: Any, **named: Any) -> Any:
            return super().init_poolmanager(*arguments, **named, ssl_context=ours)

    with serving(page(theirs)) as port, requests.Session() as session:
        session.trust_env = False
        session.mount("https://", Adapter())
        assert session.get(f"https://{NAME}:{port}/", timeout=LIMIT).content == b"hello"


@threaded
def test_httpx(ours, theirs):
    httpx = pytest.importorskip("httpx", reason="install httpx")
    with serving(page(theirs)) as port, httpx.Client(verify=ours, trust_env=False) as client:
        assert client.get(f"https://{NAME}:{port}/", timeout=LIMIT).content == b"hello"


SMTP = {
    "EHLO": ("250-here", "250 STARTTLS"),
    "STARTTLS": ("220 go",),
    "QUIT": ("221 done",),
}
IMAP = {
    "CAPABILITY": ("* CAPABILITY IMAP4rev1 STARTTLS", "TAG OK done"),
    "STARTTLS": ("TAG OK go",),
    "NOOP": ("TAG OK done",),
    "LOGOUT": ("* BYE done", "TAG OK done"),
}
POP3 = {
    "CAPA": ("+OK", "STLS", "."),
    "STLS": ("+OK go",),
    "STAT": ("+OK 3 300",),
    "QUIT": ("+OK done",),
}


def lines(
    context: ssl.SSLContext,
    greeting: str,
    answers: dict[str, tuple[str, ...]],
    starts: str,
    *,
    implicit: bool,
) -> Callable[[socket.socket], None]:
    """Serve a protocol of lines, with TLS from the start or on demand."""

    def handle(connection: socket.socket) -> None:
        talk = Talk(connection, context)
        if implicit:
            talk.secure()
        talk.say(greeting)
        talk.answer(answers, starts)
        talk.socket.close()

    return handle


@pytest.mark.parametrize("implicit", [False, True])
@threaded
def test_smtplib(implicit, ours, theirs):
    with serving(lines(theirs, "220 ready", SMTP, "STARTTLS", implicit=implicit)) as port:
        client = (
            smtplib.SMTP_SSL(NAME, port, context=ours, timeout=LIMIT)
            if implicit
            else smtplib.SMTP(NAME, port, timeout=LIMIT)
        )
        if not implicit:
            client.starttls(context=ours)
        assert client.ehlo()[0] == 250
        assert isinstance(client.sock, blocking.BlockingTLSSocket)
        client.quit()


@pytest.mark.parametrize("implicit", [False, True])
@threaded
def test_imaplib(implicit, ours, theirs, monkeypatch):
    monkeypatch.setattr(imaplib, "Int2AP", lambda _: b"T")
    handler = lines(theirs, "* OK ready", IMAP, "STARTTLS", implicit=implicit)
    with serving(handler) as port:
        client = (
            imaplib.IMAP4_SSL(NAME, port, ssl_context=ours, timeout=LIMIT)
            if implicit
            else imaplib.IMAP4(NAME, port, timeout=LIMIT)
        )
        if not implicit:
            client.starttls(ours)
        assert client.noop()[0] == "OK"
        assert isinstance(client.socket(), blocking.BlockingTLSSocket)
        client.logout()


@pytest.mark.parametrize("implicit", [False, True])
@threaded
def test_poplib(implicit, ours, theirs):
    with serving(lines(theirs, "+OK ready", POP3, "STLS", implicit=implicit)) as port:
        client = (
            poplib.POP3_SSL(NAME, port, context=ours, timeout=LIMIT)
            if implicit
            else poplib.POP3(NAME, port, timeout=LIMIT)
        )
        if not implicit:
            client.stls(context=ours)
        assert client.stat() == (3, 300)
        assert isinstance(client.sock, blocking.BlockingTLSSocket)
        client.quit()


FTP = {
    "AUTH": ("234 go",),
    "USER": ("331 and a password",),
    "PASS": ("230 in",),
    "PBSZ": ("200 0",),
    "PROT": ("200 ok",),
    "TYPE": ("200 ok",),
    "CCC": ("200 plain from here",),
    "NOOP": ("200 ok",),
    "QUIT": ("221 done",),
}


def files(context: ssl.SSLContext, kept: dict[str, bytes]) -> Callable[[socket.socket], None]:
    """Serve FTP, with protected data connections."""

    def handle(connection: socket.socket) -> None:
        talk = Talk(connection, context)
        talk.say("220 ready")
        while line := talk.line():
            word, _, name = line.partition(" ")
            if word in ("EPSV", "PASV"):
                passive = socket.create_server(("127.0.0.1", 0))
                port = passive.getsockname()[1]
                talk.say(f"227 (127,0,0,1,{port // 256},{port % 256})")
            elif word in ("RETR", "STOR"):
                talk.say("150 here it comes")
                with passive, context.wrap_socket(passive.accept()[0], server_side=True) as data:
                    data.settimeout(LIMIT)
                    if word == "RETR":
                        data.sendall(kept[name])
                    else:
                        kept[name] = b""
                        while part := data.recv(65536):
                            kept[name] += part
                    data.unwrap()
                talk.say("226 done")
            else:
                talk.say(*FTP[word])
            if word == "AUTH":
                talk.secure()
            elif word == "CCC":
                assert isinstance(talk.socket, ssl.SSLSocket)
                talk.socket = talk.socket.unwrap()
        talk.socket.close()

    return handle


@threaded
def test_ftplib_protects_data_connections_and_goes_on_in_plain_text(ours, theirs, tmp_path):
    kept = {"theirs": b"of the server's\n" * 10_000}
    with serving(files(theirs, kept)) as port:
        client = ftplib.FTP_TLS(context=ours, timeout=LIMIT)
        client.connect(NAME, port)
        client.login("me", "secret")
        client.prot_p()
        got: list[bytes] = []
        client.retrbinary("RETR theirs", got.append)
        assert b"".join(got) == kept["theirs"]
        path = tmp_path / "mine"
        path.write_bytes(b"of mine\n" * 10_000)
        with path.open("rb") as file:
            client.storbinary("STOR mine", file)
        assert kept["mine"] == path.read_bytes()
        client.ccc()
        assert client.sock.version() is None
        assert client.voidcmd("NOOP") == "200 ok"
        client.quit()


# Whom they talk to


@threaded
def test_a_server_of_another_name_or_authority_is_refused(ours, theirs, authority, tmp_path):
    other = standard_server(CertificateAuthority(), tmp_path)
    for context, host in ((theirs, "127.0.0.1"), (other, NAME)):
        with serving(page(context)) as port:
            sock = socket.create_connection(("127.0.0.1", port))
            with pytest.raises(CertificateVerificationError):
                ours.wrap_socket(sock, server_hostname=host)
            assert sock.fileno() == -1


@threaded
def test_authorities_that_programs_load_are_not_trusted(theirs, authority, tmp_path):
    context = blocking.ssl_context(TLSSocketOptions(
        trusted_certificates=CertificateAuthority().certificate_pem
    ))  # fmt: skip
    path = tmp_path / "ca.pem"
    path.write_bytes(authority.certificate_pem)
    context.load_verify_locations(path)
    context.load_default_certs()
    context.set_default_verify_paths()
    assert context.cert_store_stats()["x509"] == 1
    with serving(page(theirs)) as port, pytest.raises(CertificateVerificationError):
        context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname=NAME)


def test_a_name_to_verify_is_needed(ours):
    one, other = socket.socketpair()
    with one, other:
        with pytest.raises(ValueError, match="no name or address"):
            ours.wrap_socket(one)
        assert one.fileno() > 0


@threaded
def test_the_timeout_of_the_socket_holds_for_the_handshake(ours):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        sock = socket.create_connection(silent.getsockname())
        sock.settimeout(0.05)
        with pytest.raises(SocketConnectionTimeoutError):
            ours.wrap_socket(sock, server_hostname=NAME)


# Sockets


@contextmanager
def pair(ours: ssl.SSLContext, theirs: ssl.SSLContext, **named: Any) -> Iterator[tuple[Any, Any]]:
    """Connect one of ours with one of the standard library's."""
    one, other = socket.socketpair()
    one.settimeout(LIMIT)
    other.settimeout(LIMIT)
    server = Background(lambda: theirs.wrap_socket(other, server_side=True))
    with (
        ours.wrap_socket(one, server_hostname=NAME, **named) as client,
        server.result() as connection,
    ):
        yield client, connection


@threaded
def test_what_was_negotiated(ours, theirs, authority):
    theirs.set_alpn_protocols(["h2"])
    ours.set_alpn_protocols(["h2", "http/1.1"])
    with pair(ours, theirs) as (client, server):
        assert client.version() == server.version() == "TLSv1.3"
        assert client.cipher() == server.cipher()
        assert client.selected_alpn_protocol() == "h2"
        assert client._sslobj.selected_alpn_protocol() == "h2"
        assert client.getpeercert()["subjectAltName"] == (("DNS", NAME),)
        assert client.getpeercert()["issuer"][0][0][0] == "commonName"
        assert ssl.cert_time_to_seconds(client.getpeercert()["notAfter"]) > 0
        assert len(client.get_verified_chain()) == 2
        assert client.getpeercert(True) == client.get_unverified_chain()[0]
        assert client.context is ours
        assert client.server_hostname == NAME
        assert not client.server_side
        assert not client.session_reused


def test_a_certificate_looks_as_the_standard_librarys_does(authority, tmp_path):
    certificate = authority.issue(NAME, "127.0.0.1")
    path = tmp_path / "certificate.pem"
    path.write_bytes(certificate.pem)
    from twisted_netsock.blocking._ssl_names import _as_dictionary

    expected = ssl._ssl._test_decode_cert(str(path))  # type: ignore[attr-defined]
    assert _as_dictionary(certificate.certificate) == expected


@threaded
def test_reading_and_writing_as_the_standard_library_has_them(ours, theirs):
    with pair(ours, theirs) as (client, server):
        assert client.write(b"abc") == 3
        assert server.recv(10) == b"abc"
        server.sendall(b"0123456789")
        assert client.read(4) == b"0123"
        assert client.pending() == 6
        buffer = bytearray(4)
        assert client.read(4, buffer) == 4
        assert client.recv_into(buffer, None) == 2
        client.sendall(b"rest")
        assert server.recv(10) == b"rest"
        for refused in (client.dup, client.recvmsg_into, client.sendmsg_afalg):
            with pytest.raises(NotImplementedError):
                refused()
        with pytest.raises(TLSError):
            client.verify_client_post_handshake()


@threaded
def test_nothing_waits_without_blocking(ours, theirs):
    one, other = socket.socketpair()
    one.setblocking(False)
    other.settimeout(LIMIT)
    with pytest.raises(ValueError, match="do_handshake"):
        ours.wrap_socket(one, server_hostname=NAME)
    with ours.wrap_socket(one, server_hostname=NAME, do_handshake_on_connect=False) as client:
        with pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        serving = Background(lambda: theirs.wrap_socket(other, server_side=True))
        while True:
            try:
                client.do_handshake()
            except ssl.SSLWantReadError:
                blocking.wait_readable(client)
            else:
                break
        with serving.result() as server:
            with pytest.raises(ssl.SSLWantReadError) as refused:
                client.recv(10)
            # redis-py looks for the very class.
            assert (refused.type, refused.value.errno) == (ssl.SSLWantReadError, 2)
            with pytest.raises(ssl.SSLWantWriteError):
                while True:
                    client.send(bytes(65536))
            server.close()


@threaded
def test_unwrap_leaves_what_has_come_and_goes_on_in_plain_text(ours, theirs):
    with pair(ours, theirs) as (client, server):
        server.sendall(b"data")
        with pytest.raises(TLSError, match="not read yet"):
            client.unwrap()
        assert client.recv(10) == b"data"
        ending = Background(server.unwrap)
        assert client.unwrap() is client
        plain = ending.result()
        assert client.version() is None
        client.sendall(b"plain")
        assert plain.recv(10) == b"plain"
        plain.sendall(b"text")
        assert client.recv(10) == b"text"
        plain.close()


@pytest.mark.parametrize("given", [None, False, True])
@pytest.mark.parametrize("option", [False, True])
@threaded
def test_an_end_without_close_notify(given, option, authority, theirs):
    context = blocking.ssl_context(authority.client_options(suppress_ragged_eofs=option))
    named = {} if given is None else {"suppress_ragged_eofs": given}
    with pair(context, theirs, **named) as (client, server):
        server.sendall(b"all")
        server.close()
        assert client.recv(10) == b"all"
        if option if given is None else given:
            assert client.recv(10) == b""
        else:
            with pytest.raises(ssl.SSLEOFError) as cut:
                client.recv(10)
            assert cut.type is TLSTruncatedError


@threaded
def test_a_socket_that_is_connected_later(ours, theirs):
    later = ours.wrap_socket(socket.socket(), server_hostname=NAME)
    with serving(page(theirs)) as port, later as client:
        client.connect((NAME, port))
        assert client.version() == "TLSv1.3"
    with ours.wrap_socket(socket.socket(), server_hostname=NAME) as client:
        assert client.connect_ex(("127.0.0.1", port)) != 0


@threaded
def test_there_is_no_certificate_before_the_handshake(ours, theirs):
    with serving(page(theirs)) as port:
        plain = socket.create_connection((NAME, port), timeout=LIMIT)
        with ours.wrap_socket(
            plain, server_hostname=NAME, do_handshake_on_connect=False
        ) as client:
            with pytest.raises(ValueError, match="handshake not done yet"):
                client.getpeercert()
            client.do_handshake()
            assert client.getpeercert()["subjectAltName"]


@threaded
def test_a_blocking_socket_is_spent(ours, theirs):
    with serving(page(theirs)) as port:
        plain = blocking.make_client_socket(NAME, port)
        with ours.wrap_socket(plain) as client:
            assert plain.closed
            assert client.version() == "TLSv1.3"
            with pytest.raises(TypeError, match="already"):
                ours.wrap_socket(client, server_hostname=NAME)


# In memory


class Ends:
    """Two objects, and what moves between their buffers."""

    def __init__(self, ours: ssl.SSLContext, theirs: ssl.SSLContext) -> None:
        self.up, self.down = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = ours.wrap_bio(self.down, self.up, server_hostname=NAME)
        self.server = theirs.wrap_bio(self.up, self.down, server_side=True)

    def both(self, one: Callable[[], object], other: Callable[[], object]) -> None:
        """Have both go on until neither waits."""
        waiting = [one, other]
        while waiting:
            for each in list(waiting):
                with contextlib.suppress(ssl.SSLWantReadError):
                    each()
                    waiting.remove(each)


def test_an_object_on_memory(ours, theirs):
    theirs.set_alpn_protocols(["h2"])
    ours.set_alpn_protocols(["h2"])
    ends = Ends(ours, theirs)
    client, server = ends.client, ends.server
    with pytest.raises(TLSError, match="not done"):
        client.read(1)
    ends.both(client.do_handshake, server.do_handshake)
    assert client.selected_alpn_protocol() == "h2"
    assert client.version() == server.version()
    assert client.cipher() == server.cipher()
    assert client.getpeercert()["subjectAltName"] == (("DNS", NAME),)
    assert client.context is ours
    assert (client.server_hostname, client.server_side) == (NAME, False)
    assert client.write(b"request") == 7
    assert server.read(10) == b"request"
    with pytest.raises(ssl.SSLWantReadError):
        client.read(10)
    server.write(b"answer")
    buffer = bytearray(4)
    assert client.read(4, buffer) == 4
    assert client.pending() == 2
    with pytest.raises(TLSError, match="not read yet"):
        client.unwrap()
    assert client.read() == b"er"
    ends.both(client.unwrap, server.unwrap)
    assert client.read() == b""


def test_an_object_on_memory_whose_peer_ends_without_close_notify(ours, theirs):
    ends = Ends(ours, theirs)
    ends.both(ends.client.do_handshake, ends.server.do_handshake)
    ends.server.write(b"all")
    ends.down.write_eof()
    assert ends.client.read() == b"all"
    with pytest.raises(TLSTruncatedError):
        ends.client.read()


async def ask(port: int, context: ssl.SSLContext, name: str) -> bytes:
    """Ask for the page with asyncio, which starts TLS in the middle."""
    reader, writer = await asyncio.open_connection(NAME, port)
    try:
        await writer.start_tls(context, server_hostname=name)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@threaded
def test_asyncio(ours, theirs):
    with serving(page(theirs)) as port:
        assert asyncio.run(ask(port, ours, NAME)).endswith(b"hello")


@threaded
def test_asyncio_with_a_server_of_another_name(ours, theirs):
    with serving(page(theirs)) as port, pytest.raises(CertificateVerificationError):
        asyncio.run(ask(port, ours, "www.example.com"))


@threaded
def test_a_server_of_asyncio(authority, ours):
    serves = blocking.ssl_context(authority.server_options(NAME))

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        await writer.drain()
        writer.close()

    async def main() -> bytes:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=serves)
        async with server:
            port = server.sockets[0].getsockname()[1]
            reader, writer = await asyncio.open_connection(NAME, port, ssl=ours)
            got = await reader.read()
            writer.close()
            await writer.wait_closed()
            return got

    assert asyncio.run(main()) == b"hello"


@threaded
def test_httpx_on_asyncio(ours, theirs):
    httpx = pytest.importorskip("httpx", reason="install httpx")

    async def main(port: int) -> bytes:
        async with httpx.AsyncClient(verify=ours, trust_env=False) as client:
            answer = await client.get(f"https://{NAME}:{port}/", timeout=LIMIT)
            return bytes(answer.content)

    with serving(page(theirs)) as port:
        assert asyncio.run(main(port)) == b"hello"


# Servers


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"{self.path} for {self.client_address[0]}".encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@threaded
def test_http_server(authority, ours, tmp_path):
    path = tmp_path / "server.pem"
    path.write_bytes(authority.issue(NAME).pem)
    context = blocking.ssl_context(ServerTLSSocketOptions())
    context.load_cert_chain(path)
    server = http.server.HTTPServer(("127.0.0.1", 0), Page)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        url = f"https://{NAME}:{server.server_address[1]}/page"
        with urllib.request.urlopen(url, context=ours, timeout=LIMIT) as answer:
            assert answer.read() == b"/page for 127.0.0.1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@threaded
def test_a_connection_that_a_server_has_accepted_itself(authority):
    context = blocking.ssl_context(authority.server_options(NAME))
    theirs = ssl.create_default_context(cadata=authority.certificate_pem.decode())
    one, other = socket.socketpair()
    accepting = Background(lambda: context.wrap_socket(one, server_side=True))
    client = theirs.wrap_socket(other, server_hostname=NAME)
    with client, accepting.result() as server:
        assert server.server_side
        assert server.getpeercert() is None
        server.sendall(b"hello")
        assert client.recv(10) == b"hello"


# What is set


def inherited(kind: type) -> list[str]:
    """Return the public names of *kind* that are the standard library's."""
    found = []
    for name in dir(kind):
        home = next(each for each in kind.__mro__ if name in vars(each))
        if not name.startswith("_") and not home.__module__.startswith("twisted_netsock"):
            found.append(name)
    return found


@threaded
def test_every_name_is_ours(ours, theirs):
    assert inherited(type(ours)) == []
    with pair(ours, theirs) as (client, _):
        assert inherited(type(client)) == []
    made = ours.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=NAME)
    assert isinstance(made, ssl.SSLObject)
    assert inherited(type(made)) == []


@pytest.mark.parametrize("server", [False, True])
def test_what_is_the_same_may_be_set(server, authority):
    options = authority.server_options(NAME) if server else authority.client_options()
    context: Any = blocking.ssl_context(options)
    read_only = {"protocol", "security_level"}
    for name in set(dir(context)) - read_only:
        if not name.startswith("_") and not callable(getattr(context, name)):
            setattr(context, name, getattr(context, name))
    context.options |= ssl.OP_NO_SSLv3 | ssl.OP_NO_COMPRESSION
    context.set_servername_callback(None)
    assert isinstance(context, ssl.SSLContext)
    assert context.get_ciphers()
    assert context.session_stats()["hits"] == 0


WEAKER: dict[str, Callable[[Any], object]] = {
    "verify_mode": lambda it: setattr(it, "verify_mode", ssl.CERT_NONE),
    "check_hostname": lambda it: setattr(it, "check_hostname", False),
    "verify_flags": lambda it: setattr(it, "verify_flags", 0),
    "options": lambda it: setattr(it, "options", 0),
    "minimum_version": lambda it: setattr(it, "minimum_version", ssl.TLSVersion.TLSv1),
    "maximum_version": lambda it: setattr(it, "maximum_version", ssl.TLSVersion.TLSv1_2),
    "hostname_checks_common_name": lambda it: setattr(it, "hostname_checks_common_name", True),
    "post_handshake_auth": lambda it: setattr(it, "post_handshake_auth", True),
    "keylog_filename": lambda it: setattr(it, "keylog_filename", "keys"),
    "num_tickets": lambda it: setattr(it, "num_tickets", 7),
    "sni_callback": lambda it: it.set_servername_callback(print),
    "cipherlist": lambda it: it.set_ciphers("ALL"),
    "name": lambda it: it.set_ecdh_curve("prime256v1"),
    "path": lambda it: it.load_dh_params("dh.pem"),
    "npn_protocols": lambda it: it.set_npn_protocols(["h2"]),
    "callback": lambda it: it.set_psk_client_callback(print),
}


@pytest.mark.parametrize("name", WEAKER)
def test_what_is_weaker_is_refused(name, ours):
    with pytest.raises(ValueError, match=f"^{name}=.* differs from the options"):
        WEAKER[name](ours)


def test_a_certificate_is_not_replaced(authority, tmp_path):
    context = blocking.ssl_context(authority.server_options(NAME))
    path = tmp_path / "other.pem"
    path.write_bytes(authority.issue("other.example").pem)
    with pytest.raises(ValueError, match="certfile"):
        context.load_cert_chain(path)


@threaded
def test_a_client_shows_the_certificate_that_it_has_loaded(ours, theirs, authority, tmp_path):
    path = tmp_path / "client.pem"
    path.write_bytes(authority.issue("client.example").pem)
    ours.load_cert_chain(path)
    theirs.load_verify_locations(cadata=authority.certificate_pem.decode())
    theirs.verify_mode = ssl.CERT_REQUIRED
    with pair(ours, theirs) as (client, server):
        server.sendall(b"x")
        assert client.recv(1) == b"x"
        assert server.getpeercert()["subjectAltName"] == (("DNS", "client.example"),)


@threaded
def test_a_stricter_version_is_honoured(ours, theirs):
    ours.minimum_version = ssl.TLSVersion.TLSv1_3
    assert ours.options & ssl.OP_NO_TLSv1_2
    theirs.maximum_version = ssl.TLSVersion.TLSv1_2
    with serving(page(theirs)) as port:
        sock = socket.create_connection(("127.0.0.1", port))
        with pytest.raises(TLSError):
            ours.wrap_socket(sock, server_hostname=NAME)


@threaded
def test_arguments_that_do_not_fit_are_refused(ours, authority):
    serves = blocking.ssl_context(authority.server_options(NAME))
    one, other = socket.socketpair()
    with one, other:
        for call, words in (
            (lambda: ours.wrap_socket(one, server_side=True), "server_side=True"),
            (lambda: serves.wrap_socket(one), "server_side=False"),
            (
                lambda: serves.wrap_socket(one, server_side=True, server_hostname=NAME),
                "server_hostname",
            ),
            (lambda: ours.wrap_socket(one, server_hostname=NAME, session=1), "session"),
        ):
            with pytest.raises(ValueError, match=words):
                call()
        assert one.fileno() > 0
    with pytest.raises(TypeError, match="must be a socket"):
        ours.wrap_socket(3, server_hostname=NAME)
    with pytest.raises(TypeError, match="options"):
        blocking.ssl_context(5)
    with pytest.raises(ValueError, match="trusted_certificates"):
        blocking.ssl_context(TLSSocketOptions(trusted_certificates="missing.pem"))
    datagrams = socket.socket(type=socket.SOCK_DGRAM)
    with datagrams, pytest.raises(NotImplementedError, match="stream"):
        ours.wrap_socket(datagrams, server_hostname=NAME)
    assert blocking.ssl_context(SocketOptions()).verify_mode == ssl.CERT_REQUIRED
    assert blocking.ssl_context().check_hostname
    with pytest.raises(ValueError, match="server_side=True"):
        ours.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)
    with pytest.raises(ValueError, match="no name or address"):
        ours.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO())


def test_options_that_verify_nothing_show(authority):
    context = blocking.ssl_context(TLSSocketOptions(certificate_verifier=False))
    assert context.verify_mode == ssl.CERT_NONE
    assert not context.check_hostname
    with pytest.raises(ValueError, match="certificate_verifier"):
        context.verify_mode = ssl.CERT_REQUIRED
    asking = blocking.ssl_context(
        authority.server_options(NAME, trusted_certificates=authority.certificate_pem)
    )
    assert asking.verify_mode == ssl.CERT_OPTIONAL


@threaded
def test_time_limits_of_the_options_hold_where_the_socket_has_none(authority, theirs):
    second = timedelta(seconds=20)
    context = blocking.ssl_context(authority.client_options(read_timeout=second))
    one, other = socket.socketpair()
    with (
        other,
        context.wrap_socket(one, server_hostname=NAME, do_handshake_on_connect=False) as client,
    ):
        assert client.read_timeout == second
