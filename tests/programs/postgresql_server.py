"""PostgreSQL: pg8000 on a socket of ours through the relay, and with a context of ours."""

from __future__ import annotations

import os
import shutil

import pg8000.dbapi
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

OTHER = {"user": "postgres"} if os.geteuid() == 0 else {}
"""The server refuses to be root."""


def ask(port):
    if way().endswith(OURS):
        more = {"host": "localhost", "port": port, "ssl_context": client_context()}
    else:
        more = {"sock": client_socket(port)}
    connection = pg8000.dbapi.connect("me", database="postgres", **more)
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
    settings = ["-h", "127.0.0.1", "-k", "", "-F"]
    if way().endswith(OURS):
        pem = folder / "server.pem"
        shutil.copy(SERVER_PEM, pem)
        pem.chmod(0o600)
        if OTHER:
            shutil.chown(pem, OTHER["user"])
        settings += ["-c", "ssl=on", "-c", f"ssl_cert_file={pem}", "-c", f"ssl_key_file={pem}"]
    server = (tool("postgres"), "-D", folder, "-p", port, *settings)
    with program(port, *server, cwd=folder, **OTHER), front_of(port) as front:
        text, total = await in_thread(ask, front)
        right("an answer", holds=(len(text), total) == (300_000, 55))


on_reactor(main)
