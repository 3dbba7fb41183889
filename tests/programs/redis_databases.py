"""Redis through the relay: txredisapi by a string of ours, redis-py by a context of Python's."""

from __future__ import annotations

import sys

import redis
from common import (
    CA_PEM,
    connect,
    free_port,
    in_thread,
    on_reactor,
    program,
    right,
    server_string,
    tool,
    way,
)
from txredisapi import RedisFactory


def by_redis_py(port):
    more = {} if way() == "plain" else {"ssl": True, "ssl_ca_certs": str(CA_PEM)}
    with redis.Redis("localhost", port, **more) as client:
        client.set("key", "x" * 100_000)
        return client.get("key")


async def main():
    database, relay = free_port(), free_port()
    server = (tool("redis-server"), "--port", database, "--save", "", "--bind", "127.0.0.1")
    with (
        program(database, *server),
        program(
            relay, sys.executable, "-m", "twisted", "netsock", "relay",
            "--listen", server_string(relay), "--to", f"netsock:127.0.0.1:{database}",
        ),
    ):  # fmt: skip
        right("by redis-py", holds=await in_thread(by_redis_py, relay) == b"x" * 100_000)
        factory = RedisFactory("mine", None, 1, isLazy=True)
        factory.continueTrying = False
        client = await connect(factory, relay)
        right("by txredisapi", holds=len(await client.get("key")) == 100_000)
        await client.quit()


on_reactor(main)
