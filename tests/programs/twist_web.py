"""``twistd web`` serves a folder; treq fetches a file of it."""

from __future__ import annotations

import sys

from common import AUTHORITY, FOLDER, free_port, on_reactor, program, right, server_string, way
from treq.client import HTTPClient
from twisted.internet import reactor
from twisted.web.client import Agent

from twisted_netsock import agent_endpoint_factory


async def main():
    port = free_port()
    pages = FOLDER / "pages"
    pages.mkdir()
    (pages / "page.txt").write_text("hello " * 100_000)
    command = (sys.executable, "-m", "twisted", "web", "--listen", server_string(port))
    with program(port, *command, "--path", pages):
        factory = agent_endpoint_factory(reactor, AUTHORITY.client_options())
        scheme = "http" if way() == "plain" else "https"
        http = HTTPClient(Agent.usingEndpointFactory(reactor, factory))
        text = await (await http.get(f"{scheme}://localhost:{port}/page.txt")).text()
        right(text[:80], holds=text == "hello " * 100_000)


on_reactor(main)
