"""Two Tubs of Foolscap, which start TLS of their own on our plain transports."""

from __future__ import annotations

from common import on_reactor, right
from foolscap.api import Referenceable, Tub
from foolscap.ipb import IConnectionHintHandler
from twisted.internet.endpoints import clientFromString
from zope.interface import implementer


@implementer(IConnectionHintHandler)
class Hints:
    """Connects by a string of ours."""

    def hint_to_endpoint(self, hint, reactor, update_status):
        _, host, port = hint.split(":")
        return clientFromString(reactor, f"netsock:{host}:{port}"), host


class Adder(Referenceable):
    def remote_add(self, a, b):
        return a + b


async def main():
    server, client = Tub(), Tub()
    try:
        for tub in (server, client):
            tub.startService()
        port = server.listenOn("netsock:0:node=127.0.0.1")
        server.setLocation(f"tcp:127.0.0.1:{port.getPortnum()}")
        place = server.registerReference(Adder(), "adder")
        client.removeAllConnectionHintHandlers()
        client.addConnectionHintHandler("tcp", Hints())
        remote = await client.getReference(place)
        right("a sum", holds=await remote.callRemote("add", a=1, b=2) == 3)
    finally:
        await client.stopService()
        await server.stopService()


on_reactor(main)
