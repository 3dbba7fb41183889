"""
TLS option records to contextFactory objects.

A `ClientContextFactory` or `ServerContextFactory` makes ``SSL.Connection``
objects: on a descriptor for our own sockets and transports, on memory buffers
wherever Twisted takes an ``IOpenSSLClientConnectionCreator`` or
``IOpenSSLServerConnectionCreator``. A context is built whole and never changed
once it has made a connection.
"""

from __future__ import annotations

import os
import socket as _socket
import ssl as _ssl
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from cryptography import x509
from OpenSSL import SSL, crypto
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
    IProtocolNegotiationFactory,
)
from twisted.logger import Logger
from zope.interface import implementer

from .certificates import Identity, file_paths, file_signature, load_identity, load_trusted
from .names import is_host_name, is_ip_address, reference_identity, server_name_pattern
from .options import (
    ServerTLSSocketOptions,
    TLSSocketOptions,
    record_fields,
    require_record,
)
from .sessions import Resumption, SessionStore
from .verification import Verification, verify_callback

__all__ = [
    "ClientContextFactory",
    "ConnectionState",
    "ServerContextFactory",
    "client_context_factory",
    "server_context_factory",
]

_CIPHERS_1_2: Final = b"ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2: forward secrecy and AEAD only (RFC 9325, section 4.2)."""

_OPTIONS: Final = SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE
_VERSIONS: Final = {
    _ssl.TLSVersion.TLSv1_2: SSL.TLS1_2_VERSION,
    _ssl.TLSVersion.TLSv1_3: SSL.TLS1_3_VERSION,
}
_CLIENT_CONTEXTS_KEPT: Final = 64

_log = Logger()


class ConnectionState:
    """
    What our callbacks need to know of a connection.

    Attributes:
        verification: Judges the peer's certificate.
        protocols: What a server speaks, for ALPN, the preferred first.
        resumption: What sessions have to do with it, on a client that may resume one.
    """

    __slots__ = ("extra_protocols", "protocols", "resumption", "verification")

    def __init__(
        self,
        verification: Verification,
        protocols: Sequence[bytes],
        extra_protocols: Sequence[bytes] = (),
    ) -> None:
        self.verification = verification
        self.resumption: Resumption | None = None
        self.extra_protocols = tuple(extra_protocols)
        self.set_protocols(protocols)

    def set_protocols(self, protocols: Sequence[bytes]) -> None:
        """Speak the factory's protocols, then these, each once."""
        self.protocols = tuple(dict.fromkeys((*self.extra_protocols, *protocols)))


class StatefulConnection(SSL.Connection):
    """
    OpenSSL's connection, with what our callbacks need to know of it.

    Not as its app data, which Twisted sets to an object of its own.
    """

    state: ConnectionState


def _alpn(options: TLSSocketOptions) -> tuple[bytes, ...]:
    return tuple(name.encode("ascii") for name in options.alpn or ())


def _factory_protocols(tls_protocol: Any) -> tuple[bytes, ...]:
    """Return what the factory behind Twisted's TLS protocol negotiates, as HTTP/2 does."""
    factory = getattr(getattr(tls_protocol, "factory", None), "wrappedFactory", None)
    return negotiated_protocols(factory)


def negotiated_protocols(factory: object) -> tuple[bytes, ...]:
    """Return the ``acceptableProtocols`` of *factory*, if it negotiates any."""
    if not IProtocolNegotiationFactory.providedBy(factory):
        return ()
    return tuple(factory.acceptableProtocols())


def _base_context(options: TLSSocketOptions, identity: Identity | None) -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_options(_OPTIONS)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_cipher_list(_CIPHERS_1_2)
    context.set_min_proto_version(_VERSIONS[options.minimum_version])
    if options.maximum_version is not None:
        context.set_max_proto_version(_VERSIONS[options.maximum_version])
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    if identity is not None:
        try:
            context.use_certificate(identity.certificate)
            for certificate in identity.intermediates:
                context.add_extra_chain_cert(certificate)
            context.use_privatekey(identity.key)
            context.check_privatekey()
        except (SSL.Error, crypto.Error) as error:
            raise ValueError(f"certificates cannot be used for TLS: {_reasons(error)}") from None
    if options.keylog_file is not None:
        context.set_keylog_callback(_keylog_writer(options.keylog_file))
    return context


def _reasons(error: Exception) -> str:
    """Return OpenSSL's reasons, in its words."""
    return "; ".join(str(reason[-1]) for reason in error.args[0]) or "no reason given"


def _keylog_writer(path: str) -> Any:
    """Append what OpenSSL tells to *path*, in the format of ``SSLKEYLOGFILE``."""

    def write(_connection: object, line: bytes) -> None:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with os.fdopen(descriptor, "ab") as file:
                file.write(line + b"\n")
        except OSError:
            _log.failure("cannot write keylog_file {path}", path=path)

    return write


def _trust(context: SSL.Context, trusted: Iterable[x509.Certificate]) -> None:
    """Believe *trusted* and nobody else, authorities or not."""
    store = context.get_cert_store()
    assert store is not None
    for certificate in trusted:
        try:
            store.add_cert(crypto.X509.from_cryptography(certificate))
        except crypto.Error as error:
            raise ValueError(
                f"trusted_certificates holds one that cannot be used: {_reasons(error)}"
            ) from None
    # What is named explicitly is an anchor, also if it is an intermediate or a leaf.
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)


def _load_client_context(options: TLSSocketOptions, *, verifies: bool) -> SSL.Context:
    context = _base_context(options, load_identity(options))
    trusted = load_trusted(options)
    if trusted is None:
        context.set_default_verify_paths()
    else:
        _trust(context, trusted)
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
    platform = tuple(os.environ.get(name) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"))
    paths = (*file_paths(options), *(path for path in platform if path))
    return (*platform, *file_signature(paths))


def _client_context(options: TLSSocketOptions) -> _ClientContext:
    """Return the context for *options*: the same one while its files are unchanged."""
    # The verifier itself is the connection's business, and may claim to equal anything.
    verifies = options.certificate_verifier is not False
    cached = options.replace(certificate_verifier=None)
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
            _alpn(self.options),
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
        return self.connection(None, _factory_protocols(tlsProtocol))

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
    _require_handshake(checked)
    return ClientContextFactory(checked, node)


def _require_handshake(options: TLSSocketOptions) -> None:
    if not options.handshake:
        raise ValueError(
            "handshake=False is for sockets, whose handshake method the caller calls; "
            "here nobody would"
        )


class _Site:
    """One record of a server, its context, and the names it answers."""

    def __init__(self, options: ServerTLSSocketOptions, *, resumable: bool) -> None:
        self.options = options
        self.names = frozenset(server_name_pattern(name) for name in options.sni or ())
        self.alpn = _alpn(options)
        self.floor = _VERSIONS[options.minimum_version]
        identity = load_identity(options)
        if identity is None:
            raise ValueError("certificates and private_key are needed on a TLS server")
        self.identity = identity
        self.verify_mode = _server_verify_mode(options)
        context = _base_context(options, identity)
        if not resumable:
            context.set_options(SSL.OP_NO_TICKET)
        if self.verify_mode != SSL.VERIFY_NONE:
            trusted = load_trusted(options) or ()
            _trust(context, trusted)
            for certificate in trusted:
                # The names of the authorities that a client may choose from.
                context.add_client_ca(certificate)
            context.set_verify(self.verify_mode, verify_callback)
        context.set_alpn_select_callback(_select_protocol)
        self.context = context


def _server_verify_mode(options: ServerTLSSocketOptions) -> int:
    if options.client_certificate_required:
        return SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT
    if options.trusted_certificates is None or options.certificate_verifier is False:
        return SSL.VERIFY_NONE
    return SSL.VERIFY_PEER


def _select_protocol(connection: Any, offered: list[bytes]) -> Any:
    """Choose the server's first protocol that the client offers (RFC 7301, section 3.2)."""
    state: ConnectionState = connection.state
    if not state.protocols:
        return SSL.NO_OVERLAPPING_PROTOCOLS
    for protocol in state.protocols:
        if protocol in offered:
            return protocol
    # pyOpenSSL turns an exception into the fatal alert no_application_protocol, and
    # raises it from the handshake that is running.
    raise SSL.Error([("SSL routines", "", "no application protocol")])


def _refusing_context() -> SSL.Context:
    """Return a context without certificate: switched to it, a handshake fails quietly."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    return context


# Fields in which the records of one server may differ: OpenSSL carries them over when
# the server-name callback switches contexts, or we do; the others it takes from the first.
_PER_SITE: Final = frozenset(
    {
        "alpn",
        "certificate_verifier",
        "certificates",
        "client_certificate_required",
        "minimum_version",
        "private_key",
        "private_key_password",
        "sni",
        "trusted_certificates",
    }
)


def _server_signature(records: tuple[ServerTLSSocketOptions, ...]) -> tuple[object, ...]:
    """Return what changes when a file does that the contexts for *records* are read from."""
    return file_signature(tuple(path for record in records for path in file_paths(record)))


class _Sites:
    """The records of one server, built and validated together; never changed."""

    def __init__(self, records: tuple[ServerTLSSocketOptions, ...]) -> None:
        # Before they are read: what changes meanwhile shows as a change later.
        self.signature = _server_signature(records)
        asks = any(_server_verify_mode(record) != SSL.VERIFY_NONE for record in records)
        # Resuming comes before the choice by name, and skips it: a session of one name
        # would be good for another, or for a name that is to be refused.
        resumable = len(records) == 1 and not asks and not records[0].sni
        self._sites = [_Site(record, resumable=resumable) for record in records]
        self._by_name = {name: site for site in self._sites for name in site.names}
        catch_all = [site for site in self._sites if not site.names]
        self._default = catch_all[0] if catch_all else None
        self.first = self._default or self._sites[0]
        self._refusing = _refusing_context()
        if len(records) > 1 or self._by_name:
            for site in self._sites:
                site.context.set_tlsext_servername_callback(self._choose)
        if len(records) > 1:
            # Versions are negotiated before the name is known: with the lowest floor.
            floor = min(site.floor for site in self._sites)
            self.first.context.set_min_proto_version(floor)

    def _find(self, name: str | None) -> _Site | None:
        if name is None:
            return self.first
        wildcard = "*." + name.partition(".")[2]
        return self._by_name.get(name) or self._by_name.get(wildcard) or self._default

    def _choose(self, connection: Any) -> None:
        """Switch *connection* to the record for the name it asks for; never raises."""
        try:
            self._switch(connection)
        except BaseException:  # noqa: BLE001 - pyOpenSSL would go on with the first certificate
            _log.failure("choosing a certificate by server name failed")
            connection.set_context(self._refusing)

    def _switch(self, connection: StatefulConnection) -> None:
        raw = connection.get_servername()
        # A name that is no ASCII is nobody's: it finds what an unknown one does.
        name = None if raw is None else raw.decode("latin-1").lower().removesuffix(".")
        site = self._find(name)
        if site is None or connection.get_protocol_version() < site.floor:
            connection.set_context(self._refusing)
            return
        if site is self.first:
            return
        connection.set_context(site.context)
        callback = verify_callback if site.verify_mode != SSL.VERIFY_NONE else _accept_none
        connection.set_verify(site.verify_mode, callback)
        state = connection.state
        state.verification = Verification(None, site.options.certificate_verifier)
        state.set_protocols(site.alpn)


def _accept_none(*_: object) -> bool:
    """Refuse: nobody asked for a certificate here."""
    return False


def _check_records(records: tuple[ServerTLSSocketOptions, ...]) -> None:
    """
    Refuse records that one server cannot serve together.

    Raises:
        ValueError: Two answer the same name, or every name; or they differ in
            what OpenSSL takes from the first alone.
    """
    seen: set[str] = set()
    catch_all = 0
    for record in records:
        names = {server_name_pattern(name) for name in record.sni or ()}
        if seen & names:
            raise ValueError(f"sni={min(seen & names)!r} stands in more than one record")
        seen |= names
        catch_all += not names
    if catch_all > 1:
        raise ValueError("two records without sni: each would answer every name")
    first, *others = records
    for other in others:
        for field in (attribute.name for attribute in record_fields(type(first))):
            if field not in _PER_SITE and getattr(first, field) != getattr(other, field):
                raise ValueError(
                    f"{field} must be the same in all records of one server, "
                    f"not {getattr(first, field)!r} and {getattr(other, field)!r}"
                )


def server_records(
    options: ServerTLSSocketOptions | Iterable[ServerTLSSocketOptions],
) -> tuple[ServerTLSSocketOptions, ...]:
    """
    Return one record or several as a tuple.

    Raises:
        TypeError: One is no `ServerTLSSocketOptions`.
        ValueError: There is none.
    """
    records = tuple(options) if isinstance(options, Iterable) else (options,)
    if not records:
        raise ValueError("options must hold at least one record")
    use = "for a client use client_context_factory, make_client_tls_socket or client_endpoint"
    return tuple(require_record(record, ServerTLSSocketOptions, None, use) for record in records)


@implementer(IOpenSSLServerConnectionCreator)
class ServerContextFactory:
    """
    Makes the TLS connections of a server, for one record or several, chosen by SNI.

    Serves wherever Twisted takes such an object. Made by `server_context_factory`.
    """

    def __init__(self, records: tuple[ServerTLSSocketOptions, ...]) -> None:
        _check_records(records)
        self.records = records
        self._sites = _Sites(records)
        if any(
            record.certificate_verifier is False and record.trusted_certificates is not None
            for record in records
        ):
            _log.warn("certificates of clients are UNVERIFIED")

    @property
    def options(self) -> ServerTLSSocketOptions:
        """The record of a client that sends no name, whose time-outs hold for all."""
        return self._sites.first.options

    @property
    def signature(self) -> tuple[object, ...]:
        """What the files were like that the contexts in use were read from."""
        return self._sites.signature

    def current_signature(self) -> tuple[object, ...]:
        """Return what the files are like now."""
        return _server_signature(self.records)

    def build(self) -> _Sites:
        """
        Read all files again and return new contexts, for `swap`.

        Touches nothing else, so it may run in another thread.

        Raises:
            ValueError: A file cannot be used.
        """
        return _Sites(self.records)

    def swap(self, sites: _Sites) -> None:
        """Use *sites*, from `build`, for the connections to come."""
        self._sites = sites

    def connection(
        self, sock: _socket.socket | None, protocols: Sequence[bytes] = ()
    ) -> StatefulConnection:
        """
        Return a new connection on *sock*, or on memory buffers if `None`.

        Args:
            sock: Stays its caller's, who keeps it open as long as the connection.
            protocols: Spoken in preference to those of the records.
        """
        site = self._sites.first
        connection = StatefulConnection(site.context, sock)
        verification = Verification(None, site.options.certificate_verifier)
        connection.state = ConnectionState(verification, site.alpn, protocols)
        connection.set_accept_state()
        return connection

    def serverConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        """Return a connection for Twisted's TLS protocol."""
        return self.connection(None, _factory_protocols(tlsProtocol))

    def __repr__(self) -> str:
        return f"<ServerContextFactory {list(self.records)!r}>"


def server_context_factory(
    options: ServerTLSSocketOptions | Iterable[ServerTLSSocketOptions],
) -> ServerContextFactory:
    """
    Make the contextFactory object of a TLS server.

    Args:
        options: One `ServerTLSSocketOptions`, or several that are chosen by the
            name a client asks for (RFC 6066, section 3). The files they name are
            read now.

    Returns:
        An ``IOpenSSLServerConnectionCreator``.

    Raises:
        TypeError: A record is no server's.
        ValueError: There is no certificate or key, or it cannot be used; the
            records cannot be served together; or `handshake` is `False`.
    """
    records = server_records(options)
    for record in records:
        _require_handshake(record)
    return ServerContextFactory(records)


_quiet_context: SSL.Context | None = None


def quiet_context() -> SSL.Context:
    """
    Return a context without callbacks, for server connections after their handshake.

    An exception of the ALPN callback is kept on the *context*, where any
    connection that reads next would raise it and lose its own data.
    """
    global _quiet_context  # noqa: PLW0603 - one is enough for the process
    if _quiet_context is None:
        _quiet_context = SSL.Context(SSL.TLS_METHOD)
    return _quiet_context
