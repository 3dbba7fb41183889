"""redis-py over TLS and psql, each through the relay, whose connections go through a proxy."""

from __future__ import annotations

import os
import shutil

import redis
from common import (
    CA_PEM,
    FOLDER,
    SERVER_PEM,
    free_port,
    in_thread,
    on_reactor,
    program,
    relay,
    right,
    run,
    tool,
)
from proxies import proxy
from twisted.internet.endpoints import quoteStringArgument

OTHER = {"user": "postgres"} if os.geteuid() == 0 else {}
"""The server refuses to be root."""


def keys(url):
    """Return the keys of a string for a proxy, whose password is in a file."""
    scheme, _, rest = url.partition("://")
    credentials, _, place = rest.rpartition("@")
    user, _, password = credentials.partition(":")
    if not user:
        return f"proxy={quoteStringArgument(url)}"
    path = FOLDER / "password"
    path.write_text(password)
    shown = quoteStringArgument(f"{scheme}://{user}@{place}")
    return f"proxy={shown}:proxyPasswordFile={path}"


def by_redis(port):
    with redis.Redis("localhost", port, ssl=True, ssl_ca_certs=str(CA_PEM)) as client:
        client.set("key", "x" * 100_000)
        return client.get("key")


async def through_redis(url):
    port = free_port()
    tls = ("--tls-cert-file", SERVER_PEM, "--tls-key-file", SERVER_PEM, "--tls-auth-clients", "no")
    server = (tool("redis-server"), "--port", 0, "--tls-port", port, "--save", "", *tls)
    to = f"netsock-tls:localhost:{port}:trustedCertificates={CA_PEM}:{keys(url)}"
    with program(port, *server, "--bind", "127.0.0.1"), relay(to) as front:
        right("by redis-py", holds=await in_thread(by_redis, front) == b"x" * 100_000)


async def through_postgresql(url):
    port, folder = free_port(), FOLDER / "data"
    folder.mkdir()
    if OTHER:
        FOLDER.chmod(0o711)
        shutil.chown(folder, OTHER["user"])
    run(tool("initdb"), "-D", folder, "-U", "me", "-A", "trust", "-N", cwd=folder, **OTHER)
    server = (tool("postgres"), "-D", folder, "-p", port, "-h", "127.0.0.1", "-k", "", "-F")
    asked = "SELECT repeat('x', 300000)"
    with (
        program(port, *server, cwd=folder, **OTHER),
        relay(f"netsock:localhost:{port}:{keys(url)}", plain=True) as front,
    ):
        place = f"host=localhost port={front} user=me dbname=postgres"
        said = await in_thread(run, tool("psql"), "-XAt", "-c", asked, place)
        right("by psql", holds=said == "x" * 300_000 + "\n")


async def main():
    with proxy() as url:
        await through_redis(url)
        await through_postgresql(url)


on_reactor(main)
