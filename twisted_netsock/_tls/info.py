"""`TLSFacts`: what a TLS socket tells about its connection, on the reactor and in threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import SocketError
from ..options import SocketOptions, TLSSocketOptions
from .descriptor import TLSDescriptor

if TYPE_CHECKING:
    from cryptography import x509

__all__ = ["TLSFacts"]

T = TypeVar("T")


class TLSFacts:
    """What was negotiated, and what a TLS socket does not do."""

    _descriptor: Any
    _options: SocketOptions

    def detach(self) -> int:
        """
        Refuse: without this object nobody speaks TLS on the descriptor.

        Raises:
            SocketError: Always.
        """
        raise SocketError(self, strerror="A TLS socket cannot be detached")

    def _tls(self) -> TLSDescriptor:
        if not isinstance(self._descriptor, TLSDescriptor):
            raise SocketError(self, strerror="This is a listening socket: it has no peer")
        return self._descriptor

    def _check_flags(self, flags: int, **_: bool) -> None:
        if flags:
            raise ValueError(f"flags={flags}: TLS has no flags")

    def _told(self, ask: Callable[[TLSDescriptor], T], otherwise: T) -> T:
        """Ask for what the handshake settles; *otherwise* is for where that cannot be asked."""
        return ask(self._tls())

    @property
    def options(self) -> TLSSocketOptions:
        """The record that it was made with; of several, the first."""
        assert isinstance(self._options, TLSSocketOptions)
        return self._options

    @property
    def peer_certificate(self) -> x509.Certificate | None:
        """The peer's certificate, or `None` (``tls-socket-peer-certificate``)."""
        return self._told(lambda tls: tls.peer_certificate, None)

    @property
    def peer_chain(self) -> tuple[x509.Certificate, ...]:
        """The certificates that the peer sent, its own first."""
        return self._told(lambda tls: tls.peer_chain, ())

    @property
    def verified_chain(self) -> tuple[x509.Certificate, ...]:
        """
        The certificates from the peer's own to a trusted one, as OpenSSL has put them together.

        Empty before the handshake, where nothing is verified, and where a
        session was resumed. A `certificate_verifier` may have accepted errors.
        """
        return self._told(lambda tls: tls.verified_chain, ())

    @property
    def client_certificate_authorities(self) -> tuple[str, ...]:
        """
        The authorities that the server named when it asked for a client certificate.

        Their distinguished names, as RFC 4514 writes them; the server's words,
        so they may hold anything. Empty on servers, and where none was named.
        """
        return self._told(lambda tls: tls.client_certificate_authorities, ())

    @property
    def selected_alpn(self) -> str | None:
        """The negotiated application protocol (``tls-socket-selected-alpn``), or `None`."""
        return self._told(lambda tls: tls.selected_alpn, None)

    @property
    def tls_version(self) -> str | None:
        """``"TLSv1.2"`` or ``"TLSv1.3"``; `None` before the handshake."""
        return self._told(lambda tls: tls.tls_version, None)

    @property
    def cipher(self) -> str | None:
        """OpenSSL's name of the cipher suite; `None` before the handshake."""
        return self._told(lambda tls: tls.cipher, None)

    @property
    def group(self) -> str | None:
        """OpenSSL's name of the key exchange group, where it tells."""
        return self._told(lambda tls: tls.group, None)

    @property
    def resumed(self) -> bool:
        """Whether this client resumed a session, and so verified no certificate anew."""
        return self._told(lambda tls: tls.resumed, False)

    @property
    def server_name(self) -> str | None:
        """The name that the client asked for, or `None`."""
        return self._told(lambda tls: tls.server_name, None)
