"""What the workers run: a WSGI application, whose page says what blocking calls have come to."""

from __future__ import annotations

import os
import socket
import threading
from datetime import timedelta

from twisted_netsock import SocketError, blocking
from twisted_netsock.testing import CertificateAuthority

TALKED = "hello SocketConnectionTimeoutError SocketReadTimeoutError hello"
"""What `talk` returns where everything works."""

authority = CertificateAuthority()
mute = socket.create_server(("127.0.0.1", 0))


def talk():
    """Speak TLS, run into time limits, and speak again; return what came of each."""
    port = mute.getsockname()[1]
    limited = authority.client_options(connection_timeout=timedelta(seconds=0.2))
    said = [hello()]
    one, other = blocking.open_socket_pair()
    one.settimeout(0.2)
    for call in (
        lambda: blocking.make_client_tls_socket("localhost", port, limited),
        lambda: one.recv(1),
    ):
        try:
            call()
        except SocketError as error:
            said.append(type(error).__name__)
    one.close()
    other.close()
    return " ".join([*said, hello()])


def hello():
    context = blocking.ssl_context(authority.client_options())
    with blocking.make_server_tls_socket("127.0.0.1", 0, authority.server_options()) as server:
        thread = threading.Thread(target=greet, args=(server,))
        thread.start()
        with (
            socket.create_connection(("127.0.0.1", server.getsockname().port), 20) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as sock,
        ):
            said = sock.recv(5).decode()
        thread.join()
        return said


def greet(server):
    with server.accept() as sock:
        sock.sendall(b"hello")


def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{talk()} {os.getpid()}".encode()]


if os.environ.get("USED"):
    # In the master, if that loads this.
    assert talk() == TALKED
