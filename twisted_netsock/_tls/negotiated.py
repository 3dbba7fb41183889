"""`Negotiated`: what a handshake has negotiated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._hostnames import distinguished_name

if TYPE_CHECKING:
    from cryptography import x509

    from .context import StatefulConnection

__all__ = ["Negotiated"]


class Negotiated:
    """What can be asked about a connection of TLS, without waiting."""

    __slots__ = ()

    connection: StatefulConnection
    handshaken: bool
    is_client: bool

    @property
    def resumed(self) -> bool:
        """Whether this client's handshake resumed a session."""
        return self.handshaken and self.connection.state.verification.skipped

    @property
    def peer_certificate(self) -> x509.Certificate | None:
        """The peer's certificate, or `None`."""
        return self.connection.get_peer_certificate(as_cryptography=True)

    @property
    def peer_chain(self) -> tuple[x509.Certificate, ...]:
        """The certificates that the peer sent, its own first."""
        chain = tuple(self.connection.get_peer_cert_chain(as_cryptography=True) or ())
        own = self.peer_certificate
        # On servers OpenSSL leaves the client's own certificate out.
        return chain if own is None or own in chain[:1] else (own, *chain)

    @property
    def verified_chain(self) -> tuple[x509.Certificate, ...]:
        """The certificates from the peer's own to the trusted one, where they were verified."""
        if not (self.handshaken and self.connection.state.verification.needed):
            return ()
        return tuple(self.connection.get_verified_chain(as_cryptography=True) or ())

    @property
    def client_certificate_authorities(self) -> tuple[str, ...]:
        """The authorities that a server named when it asked for a client certificate."""
        if not self.is_client:
            return ()
        names = self.connection.get_client_ca_list()
        return tuple(distinguished_name(name.get_components()) for name in names)

    @property
    def group(self) -> str | None:
        """OpenSSL's name of the key exchange group, where it tells."""
        return self.connection.get_group_name() if self.handshaken else None

    @property
    def selected_alpn(self) -> str | None:
        """The negotiated application protocol, or `None`."""
        return self.connection.get_alpn_proto_negotiated().decode("ascii") or None

    @property
    def tls_version(self) -> str | None:
        """``"TLSv1.2"`` or ``"TLSv1.3"``, or `None` before the handshake."""
        return self.connection.get_protocol_version_name() if self.handshaken else None

    @property
    def cipher(self) -> str | None:
        """OpenSSL's name of the cipher suite, or `None` before the handshake."""
        return self.connection.get_cipher_name()

    @property
    def server_name(self) -> str | None:
        """The name that the client asked for, or `None`."""
        raw = self.connection.get_servername()
        return None if raw is None else raw.decode("ascii", "backslashreplace")
