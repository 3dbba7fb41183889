"""Sockets and TLS on Twisted: option records, endpoints, and sockets as Deferreds."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .addresses import AddressInfo as AddressInfo
    from .addresses import SocketAddress as SocketAddress
    from .agents import agent_endpoint_factory as agent_endpoint_factory
    from .client_contexts import client_context_factory as client_context_factory
    from .client_endpoints import ClientEndpoint as ClientEndpoint
    from .client_endpoints import client_endpoint as client_endpoint
    from .errors import CertificateVerificationError as CertificateVerificationError
    from .errors import HostNotFoundError as HostNotFoundError
    from .errors import NetsockError as NetsockError
    from .errors import ProxyHeaderError as ProxyHeaderError
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
    from .makers import make_client_socket as make_client_socket
    from .makers import make_client_tls_socket as make_client_tls_socket
    from .makers import make_server_socket as make_server_socket
    from .makers import make_server_tls_socket as make_server_tls_socket
    from .makers import socket_options_to_client_socket as socket_options_to_client_socket
    from .option_types import VerifyResult as VerifyResult
    from .options import ServerTLSSocketOptions as ServerTLSSocketOptions
    from .options import SocketOptions as SocketOptions
    from .options import TLSSocketOptions as TLSSocketOptions
    from .options import is_server_tls_socket_options as is_server_tls_socket_options
    from .options import is_socket_options as is_socket_options
    from .options import is_tls_socket_options as is_tls_socket_options
    from .proxy_headers import ProxyHeader as ProxyHeader
    from .proxy_tlvs import ProxyTLS as ProxyTLS
    from .proxy_tlvs import ProxyTLV as ProxyTLV
    from .selecting import SocketSelector as SocketSelector
    from .selecting import wait_readable as wait_readable
    from .selecting import wait_writable as wait_writable
    from .server_contexts import server_context_factory as server_context_factory
    from .server_endpoints import ServerEndpoint as ServerEndpoint
    from .server_endpoints import server_endpoint as server_endpoint
    from .sockets import Socket as Socket
    from .tls_sockets import TLSSocket as TLSSocket
    from .upgrading import start_tls as start_tls

# Where each public name lives; loaded when it is first used, so that importing the
# package installs no reactor and loads no TLS library.
_HOMES = {
    "AddressInfo": "addresses",
    "CertificateVerificationError": "errors",
    "ClientEndpoint": "client_endpoints",
    "HostNotFoundError": "errors",
    "NetsockError": "errors",
    "ProxyHeader": "proxy_headers",
    "ProxyHeaderError": "errors",
    "ProxyTLS": "proxy_tlvs",
    "ProxyTLV": "proxy_tlvs",
    "ServerEndpoint": "server_endpoints",
    "ServerTLSSocketOptions": "options",
    "Socket": "sockets",
    "SocketAddress": "addresses",
    "SocketBindError": "errors",
    "SocketBusyError": "errors",
    "SocketClosedError": "errors",
    "SocketConnectionError": "errors",
    "SocketConnectionLostError": "errors",
    "SocketConnectionRefusedError": "errors",
    "SocketConnectionTimeoutError": "errors",
    "SocketError": "errors",
    "SocketIncompleteReadError": "errors",
    "SocketOptions": "options",
    "SocketPortError": "errors",
    "SocketReadTimeoutError": "errors",
    "SocketSelector": "selecting",
    "SocketWriteTimeoutError": "errors",
    "TLSError": "errors",
    "TLSHandshakeError": "errors",
    "TLSSocket": "tls_sockets",
    "TLSSocketOptions": "options",
    "TLSTruncatedError": "errors",
    "VerifyResult": "option_types",
    "agent_endpoint_factory": "agents",
    "client_context_factory": "client_contexts",
    "client_endpoint": "client_endpoints",
    "is_server_tls_socket_options": "options",
    "is_socket_options": "options",
    "is_tls_socket_options": "options",
    "make_client_socket": "makers",
    "make_client_tls_socket": "makers",
    "make_server_socket": "makers",
    "make_server_tls_socket": "makers",
    "server_context_factory": "server_contexts",
    "server_endpoint": "server_endpoints",
    "socket_options_to_client_socket": "makers",
    "start_tls": "upgrading",
    "wait_readable": "selecting",
    "wait_writable": "selecting",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605 - a list, which a test compares with the imports above


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
