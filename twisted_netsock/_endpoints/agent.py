"""
Endpoints for HTTP clients: `twisted.web.client.Agent`, and with it treq.

An agent asks for an endpoint for each URI; `agent_endpoint_factory` answers with
endpoints of this package.
"""

from __future__ import annotations

import socket as _socket
from typing import Final

from twisted.web.client import URI
from twisted.web.error import SchemeNotSupported
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from ..options import (
    ServerTLSSocketOptions,
    SocketOptions,
    TLSSocketOptions,
    require_record,
)
from .client import ClientEndpoint, client_endpoint

__all__ = ["agent_endpoint_factory"]

_PLAIN_SCHEMES: Final = frozenset({b"http", b"ws"})
_TLS_SCHEMES: Final = frozenset({b"https", b"wss"})
"""Of WebSockets, too: they begin as a request of HTTP."""


@implementer(IAgentEndpointFactory)
class _AgentEndpointFactory:
    """Makes an endpoint for each URI, plain or TLS by its scheme."""

    def __init__(self, reactor: object, plain: SocketOptions, tls: TLSSocketOptions) -> None:
        self._reactor = reactor
        self._plain = plain
        self._tls = tls

    def endpointForURI(self, uri: URI) -> ClientEndpoint:
        """
        Return the endpoint that a request for *uri* goes to.

        Raises:
            SchemeNotSupported: It is neither ``http`` nor ``https`` (nor ``ws``
                nor ``wss``, which begin as those).
            ValueError: The host or port cannot be connected to, or a certificate
                that the record names cannot be used any more.
        """
        if uri.scheme in _PLAIN_SCHEMES:
            options = self._plain
        elif uri.scheme in _TLS_SCHEMES:
            options = self._tls
        else:
            raise SchemeNotSupported(f"Unsupported scheme: {uri.scheme!r}")
        try:
            host = uri.host.decode("ascii")
        except UnicodeDecodeError:
            raise ValueError(
                f"the host {uri.host!r} must be ASCII: write a name with other characters "
                "in its IDNA form"
            ) from None
        return client_endpoint(self._reactor, host, uri.port, options)

    def __repr__(self) -> str:
        return f"<endpoints for an agent: http {self._plain!r}, https {self._tls!r}>"


def agent_endpoint_factory(
    reactor: object, options: SocketOptions | None = None
) -> IAgentEndpointFactory:
    """
    Make what gives a `twisted.web.client.Agent` its connections.

    For ``Agent.usingEndpointFactory``; the agent goes into a
    ``treq.client.HTTPClient`` as well. ``https`` connections are handed over
    after the verified handshake. Proxies are left to the agent: this connects
    to the host of each URI.

    Args:
        reactor: Provides ``IReactorFDSet``.
        options: For ``https`` a `TLSSocketOptions` as it is, a plain record with
            the defaults of TLS; for ``http`` what a plain record holds of it. Its
            files are read now, and again when they have changed. Defaults if
            `None`.

    Returns:
        An ``IAgentEndpointFactory``, for any number of agents.

    Raises:
        TypeError: *options* is a server's record, or no record; or *reactor*
            cannot wait for sockets.
        ValueError: *options* has an `sni`: each connection has the name of its
            URI; its *alpn* has ``h2``, which the agent does not speak; it has
            *ai_family* ``AF_UNIX``; or it is nothing for a `client_endpoint`.
    """
    record = require_record(
        SocketOptions() if options is None else options,
        SocketOptions,
        ServerTLSSocketOptions,
        "an agent is a client",
    )
    if record.ai_family == _socket.AF_UNIX:
        raise ValueError("ai_family=AF_UNIX: the host of a URI is no path")
    tls = record if isinstance(record, TLSSocketOptions) else TLSSocketOptions.from_options(record)
    if tls.sni is not None:
        raise ValueError(f"sni={tls.sni!r} must be None: the name is that of each request's URI")
    if "h2" in (tls.alpn or ()):
        raise ValueError(f"alpn={tls.alpn!r} must not have 'h2': the agent speaks HTTP/1.1 alone")
    # What else is wrong with the record is raised here, and not by the first request. (That
    # a server is not verified is logged when there is one.)
    client_endpoint(reactor, "localhost", "https", tls.replace(certificate_verifier=None))
    return _AgentEndpointFactory(reactor, SocketOptions.from_options(record), tls)
