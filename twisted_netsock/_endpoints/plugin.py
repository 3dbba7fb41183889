"""
The parser plugins of ``netsock:`` and ``netsock-tls:``.

Twisted imports every parser to look for a prefix, so this module is light: the
work is in `twisted_netsock._endpoints.strings`, imported when a string is ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.interfaces import (
    IStreamClientEndpointStringParserWithReactor,
    IStreamServerEndpointStringParser,
)
from twisted.plugin import IPlugin
from zope.interface import implementer

if TYPE_CHECKING:
    from .client import ClientEndpoint
    from .server import ServerEndpoint

__all__ = ["EndpointParser"]


@implementer(
    IPlugin, IStreamClientEndpointStringParserWithReactor, IStreamServerEndpointStringParser
)
class EndpointParser:
    """
    The parser plugin behind one prefix, for clients and servers.

    Attributes:
        prefix: ``netsock`` or ``netsock-tls``.
    """

    def __init__(self, prefix: str, *, tls: bool) -> None:
        self.prefix = prefix
        self._tls = tls

    # Positional alone, or the key "reactor=" of a string would be taken for it.
    def parseStreamClient(  # type: ignore[override]
        self, reactor: object, /, *args: str, **kwargs: str
    ) -> ClientEndpoint:
        """Return the client endpoint that a string describes."""
        from .strings import parse_client

        return parse_client(reactor, self._tls, args, kwargs)

    def parseStreamServer(  # type: ignore[override]
        self, reactor: object, /, *args: str, **kwargs: str
    ) -> ServerEndpoint:
        """Return the server endpoint that a string describes."""
        from .strings import parse_server

        return parse_server(reactor, self._tls, args, kwargs)
