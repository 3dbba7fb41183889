"""Daphne serves an application of Channels: a page, and a WebSocket that echoes."""

from __future__ import annotations

import os

from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from common import (
    AUTHORITY,
    FOLDER,
    connect,
    free_port,
    on_reactor,
    program,
    right,
    server_string,
    tool,
    way,
)
from treq.client import HTTPClient
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.web.client import Agent

from twisted_netsock import agent_endpoint_factory

APPLICATION = """
import django
from django.conf import settings
settings.configure(SECRET_KEY="x", ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, DEBUG=False)
django.setup()
from channels.generic.websocket import WebsocketConsumer
from channels.routing import ProtocolTypeRouter
from django.core.asgi import get_asgi_application
from django.http import HttpResponse
from django.urls import path

def page(request):
    return HttpResponse(f"secure: {request.is_secure()}")

urlpatterns = [path("", page)]

class Echo(WebsocketConsumer):
    def receive(self, text_data=None, bytes_data=None):
        self.send(bytes_data=bytes_data)

application = ProtocolTypeRouter({"http": get_asgi_application(), "websocket": Echo.as_asgi()})
"""
MESSAGE = b"x" * 300_000


class Client(WebSocketClientProtocol):
    got = None

    def onOpen(self):
        self.sendMessage(MESSAGE, True)

    def onMessage(self, payload, isBinary):
        self.got = payload
        self.sendClose(1000)

    def onClose(self, wasClean, code, reason):
        self.factory.ended.callback((self.got, reason))


async def main():
    port = free_port()
    (FOLDER / "application.py").write_text(APPLICATION)
    environment = {**os.environ, "PYTHONPATH": str(FOLDER)}
    command = (tool("daphne"), "-e", server_string(port), "application:application")
    with program(port, *command, env=environment):
        factory = agent_endpoint_factory(reactor, AUTHORITY.client_options())
        scheme = "http" if way() == "plain" else "https"
        http = HTTPClient(Agent.usingEndpointFactory(reactor, factory))
        text = await (await http.get(f"{scheme}://localhost:{port}/")).text()
        right(text, holds=text == f"secure: {way() != 'plain'}")
        clients = WebSocketClientFactory(f"ws://localhost:{port}")
        clients.protocol = Client
        clients.ended = Deferred()
        await connect(clients, port)
        got, reason = await clients.ended
        right(f"an echo: {reason}", holds=got == MESSAGE)


on_reactor(main)
