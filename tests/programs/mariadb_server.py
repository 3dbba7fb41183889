"""MariaDB: PyMySQL on a socket of ours through the relay, and with a context of ours."""

from __future__ import annotations

import getpass

import pymysql
from common import (
    FOLDER,
    OURS,
    SERVER_PEM,
    client_context,
    client_socket,
    free_port,
    front_of,
    in_thread,
    on_reactor,
    program,
    right,
    run,
    tool,
    way,
)


def ask(port):
    if way().endswith(OURS):
        connection = pymysql.connect(
            host="localhost", port=port, user="root", ssl=client_context()
        )
    else:
        connection = pymysql.connect(user="root", defer_connect=True)
        connection.connect(client_socket(port))
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT repeat('x', 300000), %s + 1", (54,))
        return cursor.fetchone()


async def main():
    port, folder = free_port(), FOLDER / "data"
    name = f"--user={getpass.getuser()}"
    run(
        tool("mariadb-install-db"), "--no-defaults", name, f"--datadir={folder}",
        "--auth-root-authentication-method=normal", "--skip-test-db",
    )  # fmt: skip
    server = (
        tool("mariadbd"), "--no-defaults", name, f"--datadir={folder}", f"--port={port}",
        "--bind-address=127.0.0.1", f"--socket={folder}/socket", "--skip-name-resolve=0",
    )  # fmt: skip
    if way().endswith(OURS):
        server = (*server, f"--ssl-cert={SERVER_PEM}", f"--ssl-key={SERVER_PEM}")
    with program(port, *server), front_of(port) as front:
        text, total = await in_thread(ask, front)
        right("an answer", holds=(len(text), total) == (300_000, 55))


on_reactor(main)
