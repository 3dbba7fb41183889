"""
`TLSInfo`: what TLS has negotiated, for descriptors, sockets on the reactor and in threads.

A transport gives its descriptor, as `tls`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, cast

from .._certificates.der import without_warnings
from .._certificates.verification import verified_chain
from .._hostnames import distinguished_name
from ..errors import SocketError
from ..options import SocketOptions, TLSSocketOptions

if TYPE_CHECKING:
    from cryptography import x509

    from .._io.descriptor import Descriptor
    from .descriptor import TLSDescriptor

__all__ = ["TLSInfo", "TLSSocketInfo"]

T = TypeVar("T")


class TLSInfo:
    """The parameters of a TLS connection, which never wait."""

    __slots__ = ()

    def _ask(self, ask: Callable[[TLSDescriptor], T], otherwise: T) -> T:
        """Return what *ask* finds on the descriptor, or *otherwise* where it cannot be asked."""
        raise NotImplementedError

    @property
    def peer_certificate(self) -> x509.Certificate | None:
        """The peer's certificate, or `None` (``tls-socket-peer-certificate``)."""
        return self._ask(_peer_certificate, None)

    @property
    def peer_chain(self) -> tuple[x509.Certificate, ...]:
        """The certificates that the peer sent, its own first."""
        return self._ask(_peer_chain, ())

    @property
    def verified_chain(self) -> tuple[x509.Certificate, ...]:
        """
        The certificates from the peer's own to a trusted one, as OpenSSL has put them together.

        Empty before the handshake, where nothing is verified, and where a
        session was resumed. A `certificate_verifier` may have accepted errors.
        """
        return self._ask(_verified_chain, ())

    @property
    def client_certificate_authorities(self) -> tuple[str, ...]:
        """
        The authorities that the server named when it asked for a client certificate.

        Their distinguished names, as RFC 4514 writes them; the server's words,
        so they may hold anything. Empty on servers, and where none was named.
        """
        return self._ask(_client_certificate_authorities, ())

    @property
    def selected_alpn(self) -> str | None:
        """The negotiated application protocol (``tls-socket-selected-alpn``), or `None`."""
        return self._ask(
            lambda tls: tls.connection.get_alpn_proto_negotiated().decode("ascii") or None, None
        )

    @property
    def tls_version(self) -> str | None:
        """``"TLSv1.2"`` or ``"TLSv1.3"``; `None` before the handshake."""
        return self._ask(_tls_version, None)

    @property
    def cipher(self) -> str | None:
        """OpenSSL's name of the cipher suite; `None` before the handshake."""
        return self._ask(lambda tls: tls.connection.get_cipher_name(), None)

    @property
    def group(self) -> str | None:
        """OpenSSL's name of the key exchange group, where OpenSSL knows it."""
        return self._ask(
            lambda tls: tls.connection.get_group_name() if tls.handshaken else None, None
        )

    @property
    def resumed(self) -> bool:
        """Whether this client resumed a session, and so verified no certificate anew."""
        return self._ask(
            lambda tls: tls.handshaken and tls.connection.state.verification.skipped, False
        )

    @property
    def server_name(self) -> str | None:
        """The name that the client asked for, or `None`."""
        return self._ask(_server_name, None)


def _peer_certificate(tls: TLSDescriptor) -> x509.Certificate | None:
    with without_warnings():
        return tls.connection.get_peer_certificate(as_cryptography=True)


def _peer_chain(tls: TLSDescriptor) -> tuple[x509.Certificate, ...]:
    with without_warnings():
        chain = tuple(tls.connection.get_peer_cert_chain(as_cryptography=True) or ())
    own = _peer_certificate(tls)
    # On servers OpenSSL leaves the client's own certificate out of the chain.
    return chain if own is None or own in chain[:1] else (own, *chain)


def _verified_chain(tls: TLSDescriptor) -> tuple[x509.Certificate, ...]:
    if not (tls.handshaken and tls.connection.state.verification.needed):
        return ()
    return verified_chain(tls.connection.state.verification, tls.connection)


def _client_certificate_authorities(tls: TLSDescriptor) -> tuple[str, ...]:
    if not tls.is_client:
        # There OpenSSL returns the names that the server itself sends.
        return ()
    names = tls.connection.get_client_ca_list()
    return tuple(distinguished_name(name.get_components()) for name in names)


def _tls_version(tls: TLSDescriptor) -> str | None:
    # Before the handshake OpenSSL names the version that it would offer.
    return tls.connection.get_protocol_version_name() if tls.handshaken else None


def _server_name(tls: TLSDescriptor) -> str | None:
    raw = tls.connection.get_servername()
    # The client's bytes, which need not be ASCII.
    return None if raw is None else raw.decode("ascii", "backslashreplace")


class TLSSocketInfo(TLSInfo):
    """What TLS sockets have in common, on the reactor and in threads."""

    _descriptor: Descriptor
    _options: SocketOptions

    def _tls(self) -> TLSDescriptor:
        # Of the descriptors only a TLSDescriptor is one: its module imports this one.
        if not isinstance(self._descriptor, TLSInfo):
            raise SocketError(self, strerror="This is a listening socket: it has no peer")
        return cast("TLSDescriptor", self._descriptor)

    def _ask(self, ask: Callable[[TLSDescriptor], T], otherwise: T) -> T:
        return ask(self._tls())

    @property
    def options(self) -> TLSSocketOptions:
        """The record that it was made with; of several, the first."""
        assert isinstance(self._options, TLSSocketOptions)
        return self._options

    def detach(self) -> int:
        """
        Refuse: the keys are this object's, and nothing else can speak TLS on the descriptor.

        Raises:
            SocketError: Always.
        """
        raise SocketError(self, strerror="A TLS socket cannot be detached")

    def _check_flags(self, flags: int, **_: bool) -> None:
        if flags:
            raise ValueError(f"flags={flags}: TLS has no flags")
