"""Redis through the relay: txredisapi by a string of ours, redis-py by a context of Python's."""

from __future__ import annotations

import redis
from common import (
    CA_PEM,
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


async def main():
    database = free_port()
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
