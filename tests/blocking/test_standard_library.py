"""The standard library's servers and clients, unmodified, over our listeners and sockets."""

from __future__ import annotations

import contextlib
import copy
import errno
import gc
import http.server
import os
import pickle
import smtplib
import socket
import socketserver
import ssl
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.threads import plain_pair, threaded, tls_pair
from twisted_netsock import blocking
from twisted_netsock.errors import SocketClosedError, SocketPortError
from twisted_netsock.testing import CertificateAuthority

pytestmark = pytest.mark.long

NAME = "localhost"
LIMIT = timedelta(seconds=30)


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"{self.path} for {self.client_address[0]}".encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    errors: list[BaseException]

    def handle_error(self, *_: object) -> None:
        self.errors.append(__import__("sys").exception())


@contextmanager
def serving(listener: Any) -> Iterator[str]:
    """Serve pages on *listener*, and give its place."""
    server = Server(("127.0.0.1", 0), Page, bind_and_activate=False)
    server.errors = []
    server.socket.close()
    server.socket = listener
    server.server_address = listener.getsockname()[:2]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert server.errors == []


@threaded
def test_http_server_serves_over_a_plain_listener():
    with serving(blocking.make_server_socket("127.0.0.1", 0)) as place:
        for number in range(5):
            with urllib.request.urlopen(f"http://{place}/{number}", timeout=30) as answer:
                assert answer.read() == f"/{number} for 127.0.0.1".encode()


@threaded
def test_http_server_serves_over_a_tls_listener(authority: CertificateAuthority):
    record = authority.server_options("127.0.0.1")
    context = ssl.create_default_context(cadata=authority.certificate_pem.decode())
    with serving(blocking.make_server_tls_socket("127.0.0.1", 0, record)) as place:
        for number in range(5):
            url = f"https://{place}/{number}"
            with urllib.request.urlopen(url, timeout=30, context=context) as answer:
                assert answer.read() == f"/{number} for 127.0.0.1".encode()


@threaded
def test_a_connection_that_is_accepted_may_be_taken_for_a_pair(authority):
    for pair in (plain_pair(), tls_pair(authority)):
        with pair as (one, other):
            connection, address = one
            assert connection is one
            assert address[:2] == other.getsockname()[:2]


# STARTTLS


def mail_server(context: ssl.SSLContext) -> tuple[int, threading.Thread]:
    """Serve SMTP to one client, with STARTTLS, and return the port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        with listener:
            connection, _ = listener.accept()
        connection.settimeout(30)
        connection.sendall(b"220 ready\r\n")
        while True:
            line = b""
            while not line.endswith(b"\n"):
                part = connection.recv(1)
                if not part:
                    connection.close()
                    return
                line += part
            command = line.strip().upper()
            if command.startswith(b"EHLO"):
                connection.sendall(b"250-here\r\n250 STARTTLS\r\n")
            elif command == b"STARTTLS":
                connection.sendall(b"220 go\r\n")
                connection = context.wrap_socket(connection, server_side=True)
            else:
                connection.sendall(b"221 done\r\n")

    thread = threading.Thread(target=run)
    thread.start()
    return listener.getsockname()[1], thread


def server_context(authority: CertificateAuthority, directory: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    path = directory / "server.pem"
    path.write_bytes(authority.issue(NAME).pem)
    context.load_cert_chain(path)
    return context


class OurContext:
    """What smtplib wants of a context, over our `start_tls`."""

    def __init__(self, authority: CertificateAuthority) -> None:
        self.options = authority.client_options(read_timeout=LIMIT)

    def wrap_socket(self, sock: Any, server_hostname: str | None = None) -> Any:
        return blocking.start_tls(sock, self.options, server_hostname)


class Client(smtplib.SMTP):
    """A client whose socket is ours."""

    def _get_socket(self, host: str, port: int, timeout: float) -> Any:
        return blocking.make_client_socket("127.0.0.1", port)


@pytest.mark.parametrize("whose", ["ours", "the standard library's"])
@threaded
def test_smtplib_starts_tls_while_its_file_is_open(whose, authority, tmp_path):
    port, server = mail_server(server_context(authority, tmp_path))
    theirs = ssl.create_default_context(cadata=authority.certificate_pem.decode())
    context: Any = OurContext(authority) if whose == "ours" else theirs
    client = Client(NAME, port)
    client.ehlo()
    client.starttls(context=context)
    assert client.ehlo()[0] == 250
    client.quit()
    server.join()


@pytest.mark.parametrize("mode", ["rb", "rwb"])
@threaded
def test_a_socket_whose_file_holds_unread_bytes_is_not_given_away(mode):
    with plain_pair() as (one, other):
        file = one.makefile(mode)
        other.sendall(b"a line\nanother\n")
        assert file.readline() == b"a line\n"
        for give in (
            one.detach,
            lambda: blocking.start_tls(one, blocking.TLSSocketOptions(), "x"),
        ):
            with pytest.raises(SocketPortError, match="unread"):
                give()
        assert file.readline() == b"another\n"
        other.sendall(b"more\n")
        assert file.readline() == b"more\n"


@threaded
def test_what_files_are_to_send_is_sent_before_the_socket_is_given_away():
    with plain_pair() as (one, other):
        file = one.makefile("wb")
        file.write(b"all of it")
        number = one.detach()
        assert other.recv(100) == b"all of it"
        with pytest.raises((SocketClosedError, ValueError)):
            file.write(b"x")
            file.flush()
        # From Python 3.13 on the collector would report what it holds.
        with contextlib.suppress(OSError, ValueError):
            file.close()
        os.close(number)


@threaded
def test_nothing_of_others_is_closed_after_detach_was_refused(tmp_path):
    """The standard library's ssl closes the number that it could not have."""
    with plain_pair() as (one, other):
        file = one.makefile("rb")
        other.sendall(b"a line\nanother\n")
        file.readline()
        number = one.fileno()
        with pytest.raises(SocketPortError):
            one.detach()
        os.close(number)
        path = tmp_path / "theirs"
        path.write_bytes(b"theirs")
        theirs = [os.open(path, os.O_RDONLY) for _ in range(3)]
        assert number in theirs
        file.close()
        one.close()
        gc.collect()
        for each in theirs:
            assert os.read(each, 10) == b"theirs"
            os.close(each)


@threaded
def test_a_refused_detach_leaks_nothing():
    with plain_pair() as (one, other):
        file = one.makefile("rb")
        other.sendall(b"a line\nanother\n")
        file.readline()
        number = one.fileno()
        with pytest.raises(SocketPortError):
            one.detach()
        file.close()
        one.close()
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(number)


# Methods as there


@threaded
def test_connect_ex_returns_the_number_of_the_error():
    with blocking.make_server_socket("127.0.0.1", 0) as server:
        here = server.getsockname()
        client = blocking.BlockingSocket.from_socket(socket.socket())
        with client:
            assert client.connect_ex(here) == 0
            assert client.getpeername() == here
    with blocking.BlockingSocket.from_socket(socket.socket()) as client:
        assert client.connect_ex(here) == errno.ECONNREFUSED
    assert client.connect_ex(here) == errno.EBADF


@threaded
def test_recvmsg_into_fills_one_buffer_after_the_other():
    with plain_pair() as (one, other):
        one.sendall(b"abcdefg")
        first, second, third = bytearray(3), bytearray(3), bytearray(3)
        count, *_ = other.recvmsg_into([first, memoryview(second), third])
        assert (count, first, second, third) == (7, b"abc", b"def", b"g\0\0")
        with pytest.raises(TypeError, match="writable"):
            other.recvmsg_into([b"constant"])


@threaded
def test_what_is_sent_with_flags_is_sent_whole():
    with plain_pair() as (one, other):
        other.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        one.sendall(b"urgent", socket.MSG_OOB)
        one.sendall(bytes(100_000), socket.MSG_NOSIGNAL)
        assert other.input_port.read(100_006) == b"urgent" + bytes(100_000)


@pytest.mark.parametrize("flags", [(), (0,), (socket.MSG_NOSIGNAL,)])
@threaded
def test_flags_may_come_before_the_address(flags):
    with blocking.BlockingSocket.from_socket(socket.socket(type=socket.SOCK_DGRAM)) as one:
        one.bind(("127.0.0.1", 0))
        assert one.sendto(b"here", *flags, one.getsockname()) == 4
        assert one.recv(10) == b"here"


@threaded
def test_inheritance_is_that_of_the_descriptor():
    with plain_pair() as (one, _):
        assert not one.get_inheritable()
        one.set_inheritable(True)
        assert os.get_inheritable(one.fileno())


@pytest.mark.parametrize("attempt", [copy.copy, copy.deepcopy, pickle.dumps])
@threaded
def test_a_socket_is_neither_copied_nor_pickled(attempt):
    refused = pytest.raises(TypeError, match="cannot copy or pickle a BlockingSocket")
    with plain_pair() as (one, _), refused:
        attempt(one)
