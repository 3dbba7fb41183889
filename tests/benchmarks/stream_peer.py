"""
The peer of the benchmarks of blocking sockets: plain or TLS, a thread for each connection.

The first byte that a client sends says what the peer does: ``e`` echoes, ``s`` sends without
end, ``r`` receives without end.
"""

import contextlib
import socket
import ssl
import sys
import threading

CHUNK = bytes(262144)


def handle(connection: socket.socket, context: ssl.SSLContext | None) -> None:
    """Do what the client asks for, until it goes."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with contextlib.suppress(OSError):
        if context is not None:
            connection = context.wrap_socket(connection, server_side=True)
        with connection:
            role = connection.recv(1)
            buffer = bytearray(262144)
            while role == b"s":
                connection.sendall(CHUNK)
            while count := connection.recv_into(buffer):
                if role == b"e":
                    connection.sendall(memoryview(buffer)[:count])


def serve(port: int, certificate: str | None = None) -> None:
    """Serve on loopback until the process is ended."""
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    listener = socket.create_server(("127.0.0.1", port), backlog=512)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=handle, args=(connection, context), daemon=True).start()


if __name__ == "__main__":
    serve(int(sys.argv[1]), *sys.argv[2:])
