"""Which side of a relay is plain text, and whether it can be reached from beyond this machine."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.endpoints import UNIXClientEndpoint, UNIXServerEndpoint

from ..._endpoints.client import ClientEndpoint
from ..._endpoints.server import ServerEndpoint
from ...errors import SocketBindError

__all__ = ["is_local", "is_loopback", "is_tls", "local_sockets"]

_TLS_PREFIXES: Final = ("netsock-tls", "ssl", "tls")


def is_tls(text: str) -> bool:
    """Tell whether an endpoint string is one of TLS."""
    return text.partition(":")[0] in _TLS_PREFIXES


def is_loopback(host: str) -> bool:
    """Return whether *host* is an address of loopback, or the name that stands for it."""
    # Only that one is in the table of every system. Names below it should never lead
    # elsewhere (RFC 6761, section 6.3), but the C library asks the DNS for them, and for
    # the name with a dot at its end.
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def is_local(endpoint: Any) -> bool:
    """Tell whether an endpoint is of loopback or a UNIX socket; whatever is unknown is not."""
    if isinstance(endpoint, ServerEndpoint | ClientEndpoint):
        if endpoint.options.ai_family == socket.AF_UNIX:
            return True
        return endpoint.node is not None and is_loopback(endpoint.node)
    if isinstance(endpoint, UNIXServerEndpoint | UNIXClientEndpoint):
        return True
    for attribute in ("_interface", "_host", "_hostText"):
        host = getattr(endpoint, attribute, None)
        if isinstance(host, bytes):
            host = host.decode("ascii", "replace")
        if isinstance(host, str):
            return is_loopback(host)
    return False


def local_sockets(
    sockets: Callable[[], list[socket.socket]], why: str
) -> Callable[[], list[socket.socket]]:
    """
    Return what does as *sockets*, and refuses those that can be reached from elsewhere.

    Args:
        sockets: Takes over sockets that were bound before the process.
        why: Is told in the error.
    """

    def checked() -> list[socket.socket]:
        found = sockets()
        for sock in found:
            if sock.family != socket.AF_UNIX and not is_loopback(sock.getsockname()[0]):
                place = str(sock.getsockname()[0])
                for each in found:
                    each.close()
                raise SocketBindError(place, None, strerror=why)
        return found

    return checked
