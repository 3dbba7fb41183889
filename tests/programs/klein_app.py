"""An application of Klein, asked by treq with our endpoints and with our policy."""

from __future__ import annotations

from common import AUTHORITY, listen, on_reactor, right, way
from klein import Klein
from treq.client import HTTPClient
from twisted.internet import reactor
from twisted.web.client import Agent
from twisted.web.server import Site

from twisted_netsock import agent_endpoint_factory, https_policy

app = Klein()


@app.route("/hello/<name>")
def hello(request, name):
    return f"hello, {name}; secure: {request.isSecure()}"


async def main():
    port = await listen(Site(app.resource()))
    options = AUTHORITY.client_options()
    scheme = "http" if way() == "plain" else "https"
    for agent in (
        Agent.usingEndpointFactory(reactor, agent_endpoint_factory(reactor, options)),
        Agent(reactor, https_policy(options)),
    ):
        response = await HTTPClient(agent).get(f"{scheme}://localhost:{port}/hello/you")
        text = await response.text()
        right(text, holds=text == f"hello, you; secure: {way() != 'plain'}")


on_reactor(main)
