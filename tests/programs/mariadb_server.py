"""MariaDB behind the relay: PyMySQL on a socket of ours."""

from __future__ import annotations

import getpass

import pymysql
from common import (
    FOLDER,
    client_socket,
    free_port,
    in_thread,
    on_reactor,
    program,
    relay,
    right,
    run,
    tool,
)


def ask(port):
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
    with program(port, *server), relay(port) as front:
        text, total = await in_thread(ask, front)
        right("an answer", holds=(len(text), total) == (300_000, 55))


on_reactor(main)
