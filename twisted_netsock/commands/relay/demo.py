"""
The demonstration of ``twist netsock relay``: TLS in front of a web server.

Certificate and web server live in memory; nothing but loopback is listened on.
"""

from __future__ import annotations

import base64
from typing import Any, TextIO

from cryptography.hazmat.primitives import hashes, serialization
from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from ..._certificates.throwaway_ca import CertificateAuthority, IssuedCertificate
from ..._endpoints.client import client_endpoint
from ..._endpoints.server import server_endpoint
from ..._io.interfaces import Reactor
from ...options import ServerTLSSocketOptions
from .routes import as_routes
from .service import RelayService

__all__ = ["make_demonstration"]

_LOOPBACK = "127.0.0.1"
_PORT = 8443


class _Greeting(Resource):
    """Says where the request came through."""

    isLeaf = True

    def render_GET(self, request: Request) -> bytes:
        """Return a line of text."""
        request.setHeader(b"content-type", b"text/plain; charset=utf-8")
        return b"Hello from behind the relay. You asked for " + request.uri + b"\n"


class _Demonstration(Service):
    """Starts the web server, then the relay in front of it, then says what to type."""

    def __init__(self, reactor: Reactor, out: TextIO) -> None:
        self._reactor = reactor
        self._out = out
        self._relay: RelayService | None = None
        self._issued = CertificateAuthority().issue("localhost", _LOOPBACK, "::1")
        self._backend: Any = None

    def startService(self) -> None:
        """Listen for the web server first: the relay needs its port."""
        super().startService()
        site = Site(_Greeting())
        site.noisy = False
        backend = server_endpoint(self._reactor, _LOOPBACK, 0)
        starting: Deferred[Any] = backend.listen(site)
        starting.addCallback(self._start_relay)

    def _start_relay(self, port: Any) -> None:
        self._backend = port
        options = ServerTLSSocketOptions(certificates=self._issued.pem)
        number = port.getHost().port
        to: IStreamClientEndpoint = client_endpoint(self._reactor, _LOOPBACK, number)
        chosen = _free_port(_PORT)
        listen = server_endpoint(self._reactor, _LOOPBACK, chosen, options)
        backend = as_routes(to, f"netsock:{_LOOPBACK}:{number}")
        self._relay = RelayService(self._reactor, listen, backend, self._announce)
        self._relay.startService()

    def _announce(self, host: Any) -> None:
        self._out.write(_instructions(self._issued, host.port))
        self._out.flush()

    def stopService(self) -> object:
        """Stop the relay and the web server."""
        super().stopService()
        parts = [] if self._relay is None else [self._relay.stopService()]
        if self._backend is not None:
            parts.append(self._backend.stopListening())
        return DeferredList(parts)


def _free_port(preferred: int) -> int:
    """Return *preferred* if nobody listens there, else 0: let the kernel choose."""
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_LOOPBACK, preferred))
        except OSError:
            return 0
    return preferred


def _instructions(issued: IssuedCertificate, port: int) -> str:
    fingerprint = issued.certificate.fingerprint(hashes.SHA256()).hex(":").upper()
    public = issued.certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    digest = hashes.Hash(hashes.SHA256())
    digest.update(public)
    pin = base64.b64encode(digest.finalize()).decode()
    return (
        f"\nTLS on {_LOOPBACK} port {port}, relayed to a web server in this process.\n"
        f"Certificate, made in memory, SHA-256 fingerprint:\n  {fingerprint}\n"
        "\nTry, in another terminal (curl goes by the public key alone):\n"
        f"  curl --insecure --pinnedpubkey 'sha256//{pin}' https://{_LOOPBACK}:{port}/\n"
        f"  openssl s_client -connect {_LOOPBACK}:{port} -servername localhost </dev/null "
        "2>/dev/null | openssl x509 -noout -fingerprint -sha256\n"
        "\nCtrl-C ends it.\n\n"
    )


def make_demonstration(reactor: Reactor, out: TextIO) -> IService:
    """Return the demonstration's service, which says on *out* what to type to try it."""
    return _Demonstration(reactor, out)
