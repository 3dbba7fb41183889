"""Perspective Broker between two factories."""

from __future__ import annotations

from common import connect, listen, on_reactor, right
from twisted.spread.pb import PBClientFactory, PBServerFactory, Root


class Adder(Root):
    def remote_add(self, a, b):
        return a + b


async def main():
    clients = PBClientFactory()
    await connect(clients, await listen(PBServerFactory(Adder())))
    root = await clients.getRootObject()
    right("a sum", holds=await root.callRemote("add", 1, 2) == 3)
    clients.disconnect()


on_reactor(main)
