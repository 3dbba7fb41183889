"""
Helpers for tests: of this package, and of applications built on it.

They use real sockets on loopback and certificates in memory; nothing is mocked
but the look-up of names. Only `clean_reactor` needs pytest.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .._certificates.throwaway_ca import CertificateAuthority as CertificateAuthority
    from .._certificates.throwaway_ca import IssuedCertificate as IssuedCertificate
    from ._endpoint_contract import ClientEndpointContract as ClientEndpointContract
    from ._endpoint_contract import ServerEndpointContract as ServerEndpointContract
    from ._helpers import ScriptedResolver as ScriptedResolver
    from ._helpers import connected_pair as connected_pair
    from ._leaks import leak_check as leak_check
    from ._listener_contract import ListenerContract as ListenerContract
    from ._plugin import clean_reactor as clean_reactor
    from ._socket_contract import SocketContract as SocketContract

# Loaded when it is first used: not every user of the contracts has pytest.
_HOMES = {
    "CertificateAuthority": ".._certificates.throwaway_ca",
    "ClientEndpointContract": "._endpoint_contract",
    "IssuedCertificate": ".._certificates.throwaway_ca",
    "ListenerContract": "._listener_contract",
    "ScriptedResolver": "._helpers",
    "ServerEndpointContract": "._endpoint_contract",
    "SocketContract": "._socket_contract",
    "clean_reactor": "._plugin",
    "connected_pair": "._helpers",
    "leak_check": "._leaks",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605 - a list, and type checkers read the imports above


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
