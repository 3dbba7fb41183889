"""
Redis through the relay: txredisapi by a string of ours, redis-py by a context of Python's.

With a context of ours, redis-py connects by itself.
"""

from __future__ import annotations

import redis
from common import (
    CA_PEM,
    OURS,
    SERVER_PEM,
    client_context,
    client_socket,
    connect,
    free_port,
    in_thread,
    on_reactor,
    program,
    relay,
    right,
    tool,
    way,
)
from twisted.internet import reactor
from twisted.internet.task import deferLater
from txredisapi import RedisFactory


def by_redis_py(port):
    more = {} if way() == "plain" else {"ssl": True, "ssl_ca_certs": str(CA_PEM)}
    with redis.Redis("localhost", port, **more) as client:
        client.set("key", "x" * 100_000)
        return client.get("key")


class Ours(redis.Connection):
    def _connect(self):
        return client_socket(self.port)


def by_our_sockets(port):
    pool = redis.ConnectionPool(Ours, port=port)
    try:
        return redis.Redis(connection_pool=pool).get("key")
    finally:
        # The relay would wait for its connections when it is to end.
        pool.disconnect()


class WithOurContext(redis.SSLConnection):
    """What the documentation shows."""

    def _wrap_socket_with_ssl(self, sock):
        return client_context().wrap_socket(sock, server_hostname=self.host)


def by_our_context(port):
    pool = redis.ConnectionPool(WithOurContext, host="localhost", port=port)
    try:
        client = redis.Redis(connection_pool=pool)
        client.set("key", "x" * 100_000)
        return client.get("key")
    finally:
        pool.disconnect()


async def main():
    database = free_port()
    if way().endswith(OURS):
        words = ("--port", 0, "--tls-port", database, "--save", "", "--bind", "127.0.0.1")
        files = ("--tls-cert-file", SERVER_PEM, "--tls-key-file", SERVER_PEM)
        more = ("--tls-ca-cert-file", CA_PEM, "--tls-auth-clients", "no")
        with program(database, tool("redis-server"), *words, *files, *more):
            answer = await in_thread(by_our_context, database)
            right("by redis-py", holds=answer == b"x" * 100_000)
        return
    server = (tool("redis-server"), "--port", database, "--save", "", "--bind", "127.0.0.1")
    with program(database, *server), relay(database) as port:
        right("by redis-py", holds=await in_thread(by_redis_py, port) == b"x" * 100_000)
        right("by ours", holds=await in_thread(by_our_sockets, port) == b"x" * 100_000)
        factory = RedisFactory("mine", None, 1, isLazy=True)
        factory.continueTrying = False
        client = await connect(factory, port)
        right("by txredisapi", holds=len(await client.get("key")) == 100_000)
        await client.quit()
        while client.connected:
            await deferLater(reactor, 0.01)


on_reactor(main)
