"""
Sockets and TLS on Twisted: option records, endpoints, and sockets as Deferreds.

Public modules beside these names, loaded when they are first used:

* `twisted_netsock.blocking`: the same sockets for threads, with blocking calls
* `twisted_netsock.chibi`: the procedures of Scheme's ``(chibi net)``
* `twisted_netsock.testing`: authorities, resolvers and contracts for tests
* `twisted_netsock.options`, `.addresses`, `.errors`: option records and the types of their
  fields, addresses, exceptions
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import addresses as addresses
    from . import blocking as blocking
    from . import chibi as chibi
    from . import errors as errors
    from . import options as options
    from . import testing as testing
    from ._endpoints.agent import agent_endpoint_factory as agent_endpoint_factory
    from ._endpoints.agent import https_policy as https_policy
    from ._endpoints.client import ClientEndpoint as ClientEndpoint
    from ._endpoints.client import client_endpoint as client_endpoint
    from ._endpoints.server import ServerEndpoint as ServerEndpoint
    from ._endpoints.server import server_endpoint as server_endpoint
    from ._proxy_protocol.header import ProxyHeader as ProxyHeader
    from ._proxy_protocol.tlv import ProxyTLS as ProxyTLS
    from ._proxy_protocol.tlv import ProxyTLV as ProxyTLV
    from ._sockets.make import make_client_socket as make_client_socket
    from ._sockets.make import make_client_tls_socket as make_client_tls_socket
    from ._sockets.make import make_server_socket as make_server_socket
    from ._sockets.make import make_server_tls_socket as make_server_tls_socket
    from ._sockets.make import socket_options_to_client_socket as socket_options_to_client_socket
    from ._sockets.ports import InputPort as InputPort
    from ._sockets.ports import OutputPort as OutputPort
    from ._sockets.selector import SocketSelector as SocketSelector
    from ._sockets.selector import wait_readable as wait_readable
    from ._sockets.selector import wait_writable as wait_writable
    from ._sockets.socket import Socket as Socket
    from ._sockets.start_tls import start_tls as start_tls
    from ._sockets.tls_socket import TLSSocket as TLSSocket
    from ._tls.client import client_context_factory as client_context_factory
    from ._tls.server import server_context_factory as server_context_factory
    from .addresses import AddressInfo as AddressInfo
    from .addresses import SocketAddress as SocketAddress
    from .errors import CertificateVerificationError as CertificateVerificationError
    from .errors import HostNotFoundError as HostNotFoundError
    from .errors import NetsockError as NetsockError
    from .errors import ProxyAuthenticationError as ProxyAuthenticationError
    from .errors import ProxyError as ProxyError
    from .errors import ProxyHeaderError as ProxyHeaderError
    from .errors import ProxyProtocolError as ProxyProtocolError
    from .errors import ProxyRefusedError as ProxyRefusedError
    from .errors import ProxyTargetError as ProxyTargetError
    from .errors import ProxyUnreachableError as ProxyUnreachableError
    from .errors import SocketBindError as SocketBindError
    from .errors import SocketBusyError as SocketBusyError
    from .errors import SocketClosedError as SocketClosedError
    from .errors import SocketConnectionError as SocketConnectionError
    from .errors import SocketConnectionLostError as SocketConnectionLostError
    from .errors import SocketConnectionRefusedError as SocketConnectionRefusedError
    from .errors import SocketConnectionTimeoutError as SocketConnectionTimeoutError
    from .errors import SocketError as SocketError
    from .errors import SocketIncompleteReadError as SocketIncompleteReadError
    from .errors import SocketPortError as SocketPortError
    from .errors import SocketReadTimeoutError as SocketReadTimeoutError
    from .errors import SocketWriteTimeoutError as SocketWriteTimeoutError
    from .errors import TLSError as TLSError
    from .errors import TLSHandshakeError as TLSHandshakeError
    from .errors import TLSTruncatedError as TLSTruncatedError
    from .options import ServerTLSSocketOptions as ServerTLSSocketOptions
    from .options import SocketOptions as SocketOptions
    from .options import TLSSocketOptions as TLSSocketOptions
    from .options import VerifyResult as VerifyResult
    from .options import is_server_tls_socket_options as is_server_tls_socket_options
    from .options import is_socket_options as is_socket_options
    from .options import is_tls_socket_options as is_tls_socket_options

# Where each public name lives; loaded when it is first used, so that importing the
# package installs no reactor and loads no TLS library.
_PUBLIC = {
    "_endpoints.agent": ["agent_endpoint_factory", "https_policy"],
    "_endpoints.client": ["ClientEndpoint", "client_endpoint"],
    "_endpoints.server": ["ServerEndpoint", "server_endpoint"],
    "_proxy_protocol.header": ["ProxyHeader"],
    "_proxy_protocol.tlv": ["ProxyTLS", "ProxyTLV"],
    "_sockets.make": [
        "make_client_socket",
        "make_client_tls_socket",
        "make_server_socket",
        "make_server_tls_socket",
        "socket_options_to_client_socket",
    ],
    "_sockets.ports": ["InputPort", "OutputPort"],
    "_sockets.selector": ["SocketSelector", "wait_readable", "wait_writable"],
    "_sockets.socket": ["Socket"],
    "_sockets.start_tls": ["start_tls"],
    "_sockets.tls_socket": ["TLSSocket"],
    "_tls.client": ["client_context_factory"],
    "_tls.server": ["server_context_factory"],
    "addresses": ["AddressInfo", "SocketAddress"],
    "errors": [
        "CertificateVerificationError",
        "HostNotFoundError",
        "NetsockError",
        "ProxyAuthenticationError",
        "ProxyError",
        "ProxyHeaderError",
        "ProxyProtocolError",
        "ProxyRefusedError",
        "ProxyTargetError",
        "ProxyUnreachableError",
        "SocketBindError",
        "SocketBusyError",
        "SocketClosedError",
        "SocketConnectionError",
        "SocketConnectionLostError",
        "SocketConnectionRefusedError",
        "SocketConnectionTimeoutError",
        "SocketError",
        "SocketIncompleteReadError",
        "SocketPortError",
        "SocketReadTimeoutError",
        "SocketWriteTimeoutError",
        "TLSError",
        "TLSHandshakeError",
        "TLSTruncatedError",
    ],
    "options": [
        "ServerTLSSocketOptions",
        "SocketOptions",
        "TLSSocketOptions",
        "VerifyResult",
        "is_server_tls_socket_options",
        "is_socket_options",
        "is_tls_socket_options",
    ],
}
_HOMES = {name: module for module, names in _PUBLIC.items() for name in names}
_MODULES = ["addresses", "blocking", "chibi", "errors", "options", "testing"]

__version__: str
__all__ = sorted(_HOMES)  # noqa: PLE0605 - a list, which a test compares with the imports above


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name == "__version__":
        return import_module("._version", __name__).__version__
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, *_MODULES, "__version__"]
