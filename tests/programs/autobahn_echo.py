"""A WebSocket of Autobahn on both sides echoes more than a buffer holds."""

from __future__ import annotations

from autobahn.twisted.websocket import (
    WebSocketClientFactory,
    WebSocketClientProtocol,
    WebSocketServerFactory,
    WebSocketServerProtocol,
)
from common import connect, listen, on_reactor, right
from twisted.internet.defer import Deferred

MESSAGE = b"x" * 300_000


class Server(WebSocketServerProtocol):
    def onMessage(self, payload, isBinary):
        self.sendMessage(payload, isBinary)


class Client(WebSocketClientProtocol):
    got = None

    def onOpen(self):
        self.sendMessage(MESSAGE, True)

    def onMessage(self, payload, isBinary):
        self.got = payload
        self.sendClose(1000)

    def onClose(self, wasClean, code, reason):
        self.factory.ended.callback((self.got, wasClean, reason))


async def main():
    servers = WebSocketServerFactory("ws://localhost")
    clients = WebSocketClientFactory("ws://localhost")
    servers.protocol, clients.protocol = Server, Client
    clients.ended = Deferred()
    await connect(clients, await listen(servers))
    got, clean, reason = await clients.ended
    right(f"an echo, then a close in order: {reason}", holds=got == MESSAGE and clean)


on_reactor(main)
