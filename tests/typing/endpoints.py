"""What a user's program of endpoints looks like to type checkers that know no zope.interface."""

from __future__ import annotations

from typing import cast

from twisted.internet import reactor
from twisted.internet.interfaces import IStreamClientEndpoint, IStreamServerEndpoint
from twisted.internet.protocol import Factory, Protocol

import twisted_netsock
from twisted_netsock import TLSSocketOptions, client_endpoint, server_endpoint


def take(client: IStreamClientEndpoint, server: IStreamServerEndpoint) -> None:
    """Stand for what takes endpoints."""


def main() -> None:
    """Use endpoints, and hand them on."""
    client = client_endpoint(reactor, "example.com", 443, TLSSocketOptions())
    client.connect(Factory.forProtocol(Protocol)).addCallback(print)
    server = server_endpoint(reactor, "localhost", 8443)
    server.listen(Factory.forProtocol(Protocol)).addCallback(print)
    take(cast(IStreamClientEndpoint, client), cast(IStreamServerEndpoint, server))
    twisted_netsock.blocking.make_client_socket("localhost", 80).close()
