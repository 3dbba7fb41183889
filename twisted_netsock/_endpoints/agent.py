"""
Endpoints and TLS for HTTP clients: `twisted.web.client.Agent`, and with it treq and Scrapy.

An agent asks for an endpoint for each URI; `agent_endpoint_factory` answers with endpoints of
this package. One that makes its connections itself asks for TLS for each host: `https_policy`.
"""

from __future__ import annotations

import socket as _socket
from typing import Final

from twisted.web.client import URI
from twisted.web.error import SchemeNotSupported
from twisted.web.iweb import IAgentEndpointFactory, IPolicyForHTTPS
from zope.interface import implementer

from .._tls.client import ClientContextFactory, client_context_factory
from ..options import (
    ServerTLSSocketOptions,
    SocketOptions,
    TLSSocketOptions,
    require_no_proxy,
    require_record,
)
from .client import ClientEndpoint, client_endpoint

__all__ = ["agent_endpoint_factory", "https_policy"]

_PLAIN_SCHEMES: Final = frozenset({b"http", b"ws"})
_TLS_SCHEMES: Final = frozenset({b"https", b"wss"})
"""Of WebSockets, too: they begin as a request of HTTP."""


def _text_of(host: bytes) -> str:
    """Return the host of a URI as text."""
    try:
        return host.decode("ascii")
    except UnicodeDecodeError:
        raise ValueError(
            f"the host {host!r} must be ASCII: write a name with other characters in its IDNA form"
        ) from None


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
        return client_endpoint(self._reactor, _text_of(uri.host), uri.port, options)

    def __repr__(self) -> str:
        return f"<endpoints for an agent: http {self._plain!r}, https {self._tls!r}>"


def _refuse_names(options: TLSSocketOptions) -> None:
    if options.sni is not None:
        raise ValueError(
            f"sni={options.sni!r} must be None: the name is that of each request's URI"
        )


def agent_endpoint_factory(
    reactor: object, options: SocketOptions | None = None
) -> IAgentEndpointFactory:
    """
    Make what gives a `twisted.web.client.Agent` its connections.

    For ``Agent.usingEndpointFactory``; the agent goes into a
    ``treq.client.HTTPClient`` as well. ``https`` connections are handed over
    after the verified handshake. With `proxy` both go through it, ``http`` by
    CONNECT as well.

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
    _refuse_names(tls)
    if "h2" in (tls.alpn or ()):
        raise ValueError(f"alpn={tls.alpn!r} must not have 'h2': the agent speaks HTTP/1.1 alone")
    # What else is wrong with the record is raised here, and not by the first request. (That
    # a server is not verified is logged when there is one.)
    client_endpoint(reactor, "localhost", "https", tls.replace(certificate_verifier=None))
    return _AgentEndpointFactory(reactor, SocketOptions.from_options(record), tls)


@implementer(IPolicyForHTTPS)
class _Policy:
    """Makes the contextFactory object for each host."""

    def __init__(self, options: TLSSocketOptions) -> None:
        self._options = options

    def creatorForNetloc(self, hostname: bytes, port: int) -> ClientContextFactory:
        """
        Return what makes the TLS connections to *hostname*, which is verified.

        Raises:
            ValueError: It cannot be verified, or a certificate that the record names cannot
                be used any more.
        """
        return client_context_factory(self._options, _text_of(hostname))

    def __repr__(self) -> str:
        return f"<HTTPS policy {self._options!r}>"


def https_policy(options: TLSSocketOptions | None = None) -> IPolicyForHTTPS:
    """
    Make the policy by which a client of Twisted's speaks TLS on connections of its own.

    For ``Agent(reactor, contextFactory=...)`` and what is built on it: Scrapy, CONNECT through
    a proxy, Synapse. An agent that may have its connections from here is better off with
    `agent_endpoint_factory`, whose timeouts hold for connections, too.

    Args:
        options: A record, whose files are read now, and again when they have changed; defaults
            if `None`. Only what concerns TLS is used. Protocols in *alpn* are offered behind
            those that the client names itself, so ``h2`` belongs there only if it speaks that.

    Returns:
        An ``IPolicyForHTTPS``. A connection whose certificate is refused is lost with a
        `CertificateVerificationError`, which is an ``OpenSSL.SSL.Error`` as well.

    Raises:
        TypeError: *options* is a server's record, or no TLS record.
        ValueError: *options* has an `sni`: each connection has the name of its URI;
            `handshake` is `False`; it has a `proxy`; or a certificate or key cannot be used.
    """
    record = require_record(
        TLSSocketOptions() if options is None else options,
        TLSSocketOptions,
        ServerTLSSocketOptions,
        "an HTTP client is a client",
    )
    _refuse_names(record)
    require_no_proxy(
        record,
        "an agent with a policy makes its connections itself; use agent_endpoint_factory, "
        "whose connections go through it",
    )
    # What else is wrong with the record is raised here, and not by the first request. (That
    # a server is not verified is logged when there is one.)
    client_context_factory(record.replace(certificate_verifier=None), "localhost")
    return _Policy(record)
