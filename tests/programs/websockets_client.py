"""The asyncio client of websockets talks to Autobahn behind a string of ours."""

from __future__ import annotations

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from common import client_context, in_thread, listen, on_reactor, right, way
from websockets.sync.client import connect


class Server(WebSocketServerProtocol):
    def onMessage(self, payload, isBinary):
        self.sendMessage(payload, isBinary)


def talk(port):
    context = None if way() == "plain" else client_context()
    scheme = "ws" if context is None else "wss"
    with connect(f"{scheme}://localhost:{port}/", ssl=context) as socket:
        socket.send("hello")
        return socket.recv()


async def main():
    factory = WebSocketServerFactory("ws://localhost")
    factory.protocol = Server
    right("an echo", holds=await in_thread(talk, await listen(factory)) == "hello")


on_reactor(main)
