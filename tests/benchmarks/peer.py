"""The neutral peer of the benchmarks: a bare epoll loop that echoes."""

import select
import socket
import sys


def serve(port: int) -> None:
    """Echo whatever comes, on loopback, until the process is ended."""
    listener = socket.create_server(("127.0.0.1", port), backlog=512)
    listener.setblocking(False)
    epoll = select.epoll()
    epoll.register(listener, select.EPOLLIN)
    connections: dict[int, socket.socket] = {}
    while True:
        for number, _ in epoll.poll():
            if number == listener.fileno():
                connection, _ = listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connections[connection.fileno()] = connection
                epoll.register(connection, select.EPOLLIN)
                continue
            connection = connections[number]
            try:
                data = connection.recv(65536)
                if data:
                    connection.sendall(data)
                    continue
            except OSError:
                pass
            epoll.unregister(number)
            del connections[number]
            connection.close()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
