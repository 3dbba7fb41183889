"""PostgreSQL behind the relay: pg8000 on a socket of ours."""

from __future__ import annotations

import os
import shutil

import pg8000.dbapi
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

OTHER = {"user": "postgres"} if os.geteuid() == 0 else {}
"""The server refuses to be root."""


def ask(port):
    connection = pg8000.dbapi.connect("me", sock=client_socket(port), database="postgres")
    try:
        cursor = connection.cursor()
        cursor.execute("SELECT repeat('x', 300000), sum(n) FROM generate_series(1, %s) n", (10,))
        return cursor.fetchone()
    finally:
        connection.close()


async def main():
    port, folder = free_port(), FOLDER / "data"
    folder.mkdir()
    if OTHER:
        FOLDER.chmod(0o711)
        shutil.chown(folder, OTHER["user"])
    run(tool("initdb"), "-D", folder, "-U", "me", "-A", "trust", "-N", cwd=folder, **OTHER)
    settings = ("-h", "127.0.0.1", "-k", "", "-F")
    server = (tool("postgres"), "-D", folder, "-p", port, *settings)
    with program(port, *server, cwd=folder, **OTHER), relay(port) as front:
        text, total = await in_thread(ask, front)
        right("an answer", holds=(len(text), total) == (300_000, 55))


on_reactor(main)
