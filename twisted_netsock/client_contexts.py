"""
The contextFactory object of TLS clients.

A `ClientContextFactory` makes ``SSL.Connection`` objects: on a descriptor for our
own sockets and transports, on memory buffers wherever Twisted takes an
``IOpenSSLClientConnectionCreator``.
"""

from __future__ import annotations

import os
import socket as _socket
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.logger import Logger
from zope.interface import implementer

from .certificates import file_paths, file_signature, load_identity, load_trusted
from .contexts import (
    ConnectionState,
    StatefulConnection,
    alpn_protocols,
    base_context,
    factory_protocols,
    require_handshake,
    trust,
)
from .names import is_host_name, is_ip_address, reference_identity
from .options import ServerTLSSocketOptions, TLSSocketOptions, require_record
from .sessions import Resumption, SessionStore
from .verification import Verification, verify_callback

__all__ = ["ClientContextFactory", "client_context_factory"]

_CLIENT_CONTEXTS_KEPT: Final = 64

_log = Logger()


def _load_client_context(options: TLSSocketOptions, *, verifies: bool) -> SSL.Context:
    context = base_context(options, load_identity(options))
    trusted = load_trusted(options)
    if trusted is None:
        context.set_default_verify_paths()
    else:
        trust(context, trusted)
    if verifies:
        context.set_verify(SSL.VERIFY_PEER, verify_callback)
    return context


class _ClientContext(NamedTuple):
    """A context, its sessions, and what it was read from."""

    context: SSL.Context
    sessions: SessionStore
    signature: tuple[object, ...]


@lru_cache(maxsize=_CLIENT_CONTEXTS_KEPT)
def _cached_client_context(
    options: TLSSocketOptions, verifies: bool, signature: tuple[object, ...]
) -> _ClientContext:
    return _ClientContext(
        _load_client_context(options, verifies=verifies), SessionStore(), signature
    )


def _client_signature(options: TLSSocketOptions) -> tuple[object, ...]:
    """Return what changes when a file does that a client's context is read from."""
    if options.trusted_certificates is not None:
        return file_signature(file_paths(options))
    # Where OpenSSL finds those that the platform trusts, if not at its own place.
    platform = tuple(os.environ.get(name) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"))
    paths = (*file_paths(options), *(path for path in platform if path))
    return (*platform, *file_signature(paths))


def _client_context(options: TLSSocketOptions) -> _ClientContext:
    """Return the context for *options*: the same one while its files are unchanged."""
    # The verifier itself is the connection's business, and may claim to equal anything.
    verifies = options.certificate_verifier is not False
    plain = options.certificate_verifier is None
    cached = options if plain else options.replace(certificate_verifier=None)
    return _cached_client_context(cached, verifies, _client_signature(options))


@implementer(IOpenSSLClientConnectionCreator)
class ClientContextFactory:
    """
    Makes the TLS connections of a client, for one record and one node.

    Serves wherever Twisted takes such an object (``startTLS``,
    ``wrapClientTLS``). Made by `client_context_factory`.
    """

    def __init__(self, options: TLSSocketOptions, node: str | None) -> None:
        self.options = options
        self.node = node
        self._identity, self._server_name = _client_identity(options, node)
        self.swap(self.build())
        if options.certificate_verifier is False:
            _log.warn(
                "connections to {node} are UNVERIFIED: anybody can pretend to be it", node=node
            )

    def build(self) -> _ClientContext:
        """
        Return the context for the files as they are, for `swap`.

        Touches nothing else, so it may run in another thread.

        Raises:
            ValueError: A file cannot be used.
        """
        return _client_context(self.options)

    def swap(self, built: _ClientContext) -> None:
        """Use *built*, from `build`, for the connections to come."""
        self._built = built

    @property
    def signature(self) -> tuple[object, ...]:
        """What the files were like that the context in use was read from."""
        return self._built.signature

    def current_signature(self) -> tuple[object, ...]:
        """Return what the files are like now."""
        return _client_signature(self.options)

    def connection(
        self,
        sock: _socket.socket | None,
        protocols: Sequence[bytes] = (),
        place: str | int | None = None,
    ) -> StatefulConnection:
        """
        Return a new connection on *sock*, or on memory buffers if `None`.

        Args:
            sock: Stays its caller's, who keeps it open as long as the connection.
            protocols: Offered through ALPN, before those of the record.
            place: The service of the node, whose sessions may be resumed; `None`
                resumes none.
        """
        connection = StatefulConnection(self._built.context, sock)
        state = connection.state = ConnectionState(
            Verification(self._identity, self.options.certificate_verifier),
            alpn_protocols(self.options),
            protocols,
        )
        if self._server_name is not None:
            connection.set_tlsext_host_name(self._server_name)
        if state.protocols:
            connection.set_alpn_protos(list(state.protocols))
        connection.set_connect_state()
        if place is not None and self.options.certificate_verifier is None:
            # A callable is owed a call for each certificate, which resuming does not show.
            key = (self._identity, self._server_name, place, state.protocols)
            state.resumption = Resumption(self._built.sessions, key)
            state.resumption.offer(connection)
            state.verification.may_be_skipped = state.resumption.offered
        return connection

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        """Return a connection for Twisted's TLS protocol."""
        return self.connection(None, factory_protocols(tlsProtocol))

    def __repr__(self) -> str:
        return f"<ClientContextFactory for {self.node!r}: {self.options!r}>"


def _client_identity(
    options: TLSSocketOptions, node: str | None
) -> tuple[str | None, bytes | None]:
    """Return the identity to verify and the server name to send."""
    named = options.sni[0] if options.sni else node
    if named is None or not is_host_name(named):
        if options.certificate_verifier is not False:
            raise ValueError(
                f"node={named!r} is no name or address that could be verified: "
                "give one, or sni in the options"
            )
        return None, None
    sends = options.sni != () and not is_ip_address(named)
    return named, reference_identity(named).encode("ascii") if sends else None


def client_context_factory(options: TLSSocketOptions, node: str | None) -> ClientContextFactory:
    """
    Make the contextFactory object of a TLS client.

    Args:
        options: A `TLSSocketOptions`; the files it names are read now.
        node: The name or address to verify, unless *options* has `sni`.

    Returns:
        An ``IOpenSSLClientConnectionCreator``, for ``startTLS`` and
        ``wrapClientTLS``. Verification happens inside the handshake.

    Raises:
        TypeError: *options* is a server's record, or plain.
        ValueError: `handshake` is `False`, which only sockets can wait for; or
            a certificate, key or name cannot be used.
    """
    checked = require_record(
        options,
        TLSSocketOptions,
        ServerTLSSocketOptions,
        "for a server use server_context_factory",
    )
    require_handshake(checked)
    return ClientContextFactory(checked, node)
