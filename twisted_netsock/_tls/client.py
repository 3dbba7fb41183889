"""
The contextFactory object of TLS clients.

A `ClientContextFactory` makes ``SSL.Connection`` objects: on a descriptor for our
own sockets and transports, on memory buffers wherever Twisted takes an
``IOpenSSLClientConnectionCreator``.
"""

from __future__ import annotations

import os
import socket as _socket
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from threading import Lock
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.logger import Logger
from zope.interface import implementer

from .._certificates.certificates import (
    file_paths,
    file_signature,
    load_authorities,
    load_identity,
    load_revocation_lists,
    load_trusted,
    next_update,
)
from .._certificates.expiry import Validity, validity_of
from .._certificates.paths import PathFinder
from .._certificates.verification import Verification
from .._hostnames import is_host_name, is_ip_address, reference_identity
from ..options import ServerTLSSocketOptions, TLSSocketOptions, require_record
from .context import (
    ConnectionState,
    StatefulConnection,
    alpn_protocols,
    base_context,
    check_revocation,
    factory_protocols,
    reporting,
    require_handshake,
    trust,
    verify_callback,
)
from .openssl import set_verify
from .sessions import Resumption, SessionStore

__all__ = ["ClientContextFactory", "client_context_factory"]

_CLIENT_CONTEXTS_KEPT: Final = 64
"""
Records whose contexts are kept, with their sessions. To load the platform's authorities takes
5 ms, as long as nine handshakes.
"""

_log = Logger()


class _ClientContext:
    """
    A context, its sessions, and the signature of the files that it was read from.

    Attributes:
        context: Complete; never changed.
        identity: What it shows, if anything.
        trusted: What it trusts, unless that is the platform's.
        sessions: Those of its connections.
        paths: Finds paths to what it trusts.
        lists: The revocation lists.
        next_update: When the revocation lists of one issuer have expired.
        signature: That of the files that it was read from.
    """

    def __init__(self, options: TLSSocketOptions, *, verifies: bool) -> None:
        """
        Read it from the files as they are.

        Raises:
            ValueError: A file cannot be used.
        """
        self.sessions = SessionStore()
        paths = file_paths(options)
        # Before each file is read: a change in between then counts as one.
        signature = _environment(), *file_signature(paths)
        self.identity = load_identity(options)
        context = base_context(options, self.identity)
        trusted = load_trusted(options)
        self.trusted = trusted or ()
        if trusted is None:
            context.trust_platform()
        else:
            trust(context, trusted)
        places = context.platform_places
        self.paths = PathFinder(
            lambda: load_authorities(places) if trusted is None else trusted,
            # OpenSSL looks for revoked certificates on its own path, and on no other.
            searches=options.revocation_lists is None,
            strict=options.certificate_profile == "strict",
        )
        lists = self.lists = load_revocation_lists(options)
        self.next_update = next_update(lists)
        if lists:
            check_revocation(context, lists)
        if verifies:
            set_verify(context, SSL.VERIFY_PEER, verify_callback)
        self.context = context
        self.signature = *signature, *context.platform_signature
        self._paths = [*paths, *context.platform_places]

    def current_signature(self) -> tuple[object, ...]:
        """Return the present signature of the files."""
        return _environment(), *file_signature(self._paths)


def _environment() -> tuple[str | None, ...]:
    """Return the variables that name the platform's authorities."""
    return os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")


_kept: OrderedDict[tuple[TLSSocketOptions, bool], _ClientContext] = OrderedDict()
"""The contexts that were used last, the latest at the end."""
_keeping = Lock()


def _client_context(options: TLSSocketOptions, *, anew: bool = False) -> _ClientContext:
    """Return the context for *options*, a new one where its files have changed."""
    # The verifier belongs to the connection. It is no part of the key, because its __eq__ may
    # return anything.
    verifies = options.certificate_verifier is not False
    plain = options.certificate_verifier is None
    key = (options if plain else options.replace(certificate_verifier=None), verifies)
    with _keeping:
        kept = _kept.get(key)
    if anew or kept is None or kept.signature != kept.current_signature():
        kept = _ClientContext(options, verifies=verifies)
    with _keeping:
        _kept[key] = kept
        _kept.move_to_end(key)
        if len(_kept) > _CLIENT_CONTEXTS_KEPT:
            _kept.popitem(last=False)
    return kept


def check_client_record(options: TLSSocketOptions) -> None:
    """
    Read the files that *options* name, for the connections to come.

    Raises:
        ValueError: One cannot be used.
    """
    _client_context(options)


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
        self.swap(_client_context(options))
        if options.certificate_verifier is False:
            _log.warn(
                "connections to {node} are UNVERIFIED: anybody can pretend to be it", node=node
            )

    def build(self) -> _ClientContext:
        """
        Read the files as they are and return a context of them, for `swap`.

        Touches nothing else, so it may run in another thread.

        Raises:
            ValueError: A file cannot be used.
        """
        return _client_context(self.options, anew=True)

    def other_path(self, sent: Iterable[x509.Certificate]) -> tuple[x509.Certificate, ...] | None:
        """
        Return the path that is found where OpenSSL's has an error, or `None`.

        For callers with a callable verifier, for which none is searched.

        Args:
            sent: The certificates that the server has sent, its own first.
        """
        if self.options.revocation_lists is not None:
            return None
        return self._built.paths.find([each.public_bytes(Encoding.DER) for each in sent]).path

    def swap(self, built: _ClientContext) -> None:
        """Use *built*, from `build`, for the connections to come."""
        self._built = built

    @property
    def signature(self) -> tuple[object, ...]:
        """The signature of the files that the context in use was read from."""
        return self._built.signature

    def validity(self) -> Iterator[Validity]:
        """Yield from when to when the certificates in use are valid."""
        built = self._built
        return validity_of(self.options, built.identity, built.trusted, built.lists)

    def current_signature(self) -> tuple[object, ...]:
        """Return the present signature of the files."""
        return self._built.current_signature()

    def connection(
        self,
        sock: _socket.socket | None,
        protocols: Sequence[bytes] = (),
        place: str | int | None = None,
    ) -> StatefulConnection:
        """
        Return a new connection on *sock*, or on memory buffers if `None`.

        Args:
            sock: The caller's, to be kept open as long as the connection.
            protocols: Offered through ALPN, before those of the record.
            place: The service of the node, whose sessions may be resumed; `None`
                resumes none.
        """
        connection = StatefulConnection(self._built.context, sock)
        state = connection.state = ConnectionState(
            Verification(
                self._identity,
                self.options.certificate_verifier,
                self._built.paths,
                self._built.next_update,
            ),
            alpn_protocols(self.options),
            protocols,
        )
        if self._server_name is not None:
            connection.set_tlsext_host_name(self._server_name)
        if state.protocols:
            connection.set_alpn_protos(list(state.protocols))
        connection.set_connect_state()
        if place is not None and self.options.certificate_verifier is None:
            # Only without a callable verifier: a resumed handshake shows no certificates, so it
            # would not be called.
            key = (self._identity, self._server_name, place, state.protocols)
            state.resumption = Resumption(self._built.sessions, key)
            state.resumption.offer(connection)
            state.verification.may_be_skipped = state.resumption.offered
        return connection

    def clientConnectionForTLS(self, tlsProtocol: object) -> SSL.Connection:
        """Return a connection for Twisted's TLS protocol."""
        return reporting(self.connection(None, factory_protocols(tlsProtocol)))

    def __repr__(self) -> str:
        return f"<ClientContextFactory for {self.node!r}: {self.options!r}>"


def _client_identity(
    options: TLSSocketOptions, node: str | None
) -> tuple[str | None, bytes | None]:
    """Return the identity to verify and the server name to send."""
    named = options.sni[0] if options.sni else node
    if named is not None and not is_host_name(named):
        named = None
    identity = options.server_identity or named
    if identity is None and options.certificate_verifier is not False:
        raise ValueError(
            f"node={node!r} is no name or address that could be verified: "
            "give one, or sni or server_identity in the options"
        )
    sends = named is not None and options.sni != () and not is_ip_address(named)
    return identity, reference_identity(named).encode("ascii") if named and sends else None


def client_context_factory(options: TLSSocketOptions, node: str | None) -> ClientContextFactory:
    """
    Make the contextFactory object of a TLS client.

    Args:
        options: A `TLSSocketOptions`; the files it names are read now. How a connection is made,
            `proxy` included, is decided by what makes it.
        node: The name or address to verify, unless *options* has `server_identity` or `sni`.

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
