"""
The contextFactory object of TLS servers: one record, or several chosen by SNI.

A `ServerContextFactory` makes ``SSL.Connection`` objects: on a descriptor for our
own sockets and transports, on memory buffers wherever Twisted takes an
``IOpenSSLServerConnectionCreator``.
"""

from __future__ import annotations

import socket as _socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any, Final, cast

from cryptography import x509
from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.logger import Logger
from zope.interface import implementer

from .._certificates.certificates import (
    Identity,
    file_paths,
    file_signature,
    load_identity,
    load_revocation_lists,
    load_trusted,
)
from .._certificates.directory import directory_of, identities
from .._certificates.expiry import Validity, validity_of
from .._certificates.paths import PathFinder
from .._certificates.verification import Verification
from .._hostnames import server_name_pattern
from ..options import OF_SERVERS, ServerTLSSocketOptions, SocketOptions, require_record
from .context import (
    VERSIONS,
    ConnectionState,
    StatefulConnection,
    alpn_protocols,
    base_context,
    check_revocation,
    factory_protocols,
    name_authorities,
    reporting,
    require_handshake,
    trust,
    verify_callback,
)
from .openssl import set_servername_callback, set_verify

__all__ = ["ServerContextFactory", "quiet_context", "server_context_factory", "server_records"]

_PROTOCOL_VERSION: Final = 70
_INTERNAL_ERROR: Final = 80
_UNRECOGNIZED_NAME: Final = 112
"""Alerts (RFC 8446, section 6; RFC 6066, section 3)."""
_REJECTED: Final = 28
"""X509_V_ERR_CERT_REJECTED."""

_log = Logger()


class _VirtualHost:
    """One record of a server, its context, and the server names that it is for."""

    def __init__(
        self, options: ServerTLSSocketOptions, identity: Identity, *, resumable: bool
    ) -> None:
        self.options = options
        self.names = frozenset(server_name_pattern(name) for name in options.sni or ())
        self.alpn = alpn_protocols(options)
        self.floor = VERSIONS[options.minimum_version]
        self.identity = identity
        self.verify_mode = _server_verify_mode(options)
        self.paths: PathFinder | None = None
        self.trusted: tuple[x509.Certificate, ...] = ()
        self.lists: list[x509.CertificateRevocationList] = []
        context = base_context(options, identity)
        if not resumable:
            # With TLS 1.3 this makes tickets stateful, and without a session cache useless.
            context.set_options(SSL.OP_NO_TICKET)
        if self.verify_mode != SSL.VERIFY_NONE:
            trusted = self.trusted = load_trusted(options) or ()
            trust(context, trusted)
            # OpenSSL shows its own path of a client's certificates, and no others.
            self.paths = PathFinder(
                lambda: trusted,
                of_clients=True,
                searches=False,
                strict=options.certificate_profile == "strict",
            )
            lists = self.lists = load_revocation_lists(options)
            if lists:
                check_revocation(context, lists)
            name_authorities(context, trusted)
            set_verify(context, self.verify_mode, verify_callback)
        context.set_alpn_select_callback(_select_protocol)
        self.context = context

    def verification(self) -> Verification:
        """Return what is to be verified of a client that asks for this record."""
        return Verification(None, self.options.certificate_verifier, self.paths)


def _server_verify_mode(options: ServerTLSSocketOptions) -> int:
    if options.client_certificate_required:
        return SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT
    if options.trusted_certificates is None or options.certificate_verifier is False:
        return SSL.VERIFY_NONE
    return SSL.VERIFY_PEER


def _select_protocol(connection: SSL.Connection, offered: list[bytes]) -> Any:
    """Choose the server's first protocol that the client offers (RFC 7301, section 3.2)."""
    # Any: the constant's class is private to pyOpenSSL.
    state = cast("StatefulConnection", connection).state
    if not state.protocols:
        return SSL.NO_OVERLAPPING_PROTOCOLS
    for protocol in state.protocols:
        if protocol in offered:
            return protocol
    # pyOpenSSL answers an exception with the fatal alert no_application_protocol, and
    # raises it from the handshake under way.
    raise SSL.Error([("SSL routines", "", "no application protocol")])


def _refusing_context() -> SSL.Context:
    """Return a context without certificate: a handshake that is switched to it fails."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    return context


def _server_signature(records: tuple[ServerTLSSocketOptions, ...]) -> tuple[object, ...]:
    """Return the signature of the files that the contexts for *records* are read from."""
    return file_signature(path for record in records for path in file_paths(record))


def _identities(
    record: ServerTLSSocketOptions,
) -> list[tuple[ServerTLSSocketOptions, Identity]]:
    """Return *record* and what it names, or several, of a directory."""
    directory = directory_of(record)
    if directory is not None:
        return identities(record, directory)
    identity = load_identity(record)
    if identity is None:
        raise ValueError("certificates and private_key are needed on a TLS server")
    return [(record, identity)]


class _VirtualHosts:
    """The records of one server, built and validated together; never changed."""

    def __init__(self, records: tuple[ServerTLSSocketOptions, ...]) -> None:
        # Before the files are read: a change in between then counts as one.
        self.signature = _server_signature(records)
        loaded = [each for record in records for each in _identities(record)]
        records = tuple(record for record, _ in loaded)
        _check_records(records)
        asks = any(_server_verify_mode(record) != SSL.VERIFY_NONE for record in records)
        # OpenSSL resumes a session before the servername callback: a session of one name would
        # resume under another, or under a name that is to be refused.
        resumable = len(records) == 1 and not asks and not records[0].sni
        self.all = [_VirtualHost(*each, resumable=resumable) for each in loaded]
        self._by_name = {name: host for host in self.all for name in host.names}
        catch_all = [host for host in self.all if not host.names]
        self._default = catch_all[0] if catch_all else None
        self.first = self._default or self.all[0]
        self._refusing = _refusing_context()
        if len(records) > 1 or self._by_name:
            for host in self.all:
                set_servername_callback(host.context, self._choose, self._refuse)
        if len(records) > 1:
            # OpenSSL negotiates the version before the servername callback, so the first context
            # accepts the lowest minimum; `_switch` checks that of the chosen record.
            floor = min(host.floor for host in self.all)
            self.first.context.set_min_proto_version(floor)

    def _find(self, name: str | None) -> _VirtualHost | None:
        if name is None:
            return self.first
        wildcard = "*." + name.partition(".")[2]
        return self._by_name.get(name) or self._by_name.get(wildcard) or self._default

    def _choose(self, connection: SSL.Connection) -> int | None:
        """
        Switch *connection* to the record for the name it asks for, or return an alert.

        OpenSSL calls this for each ClientHello: again after a HelloRetryRequest (RFC 8446,
        section 4.1.2), where the name in the second one counts.
        """
        try:
            return self._switch(cast("StatefulConnection", connection))
        except BaseException:  # noqa: BLE001 - OpenSSL would go on with the first certificate
            with suppress(BaseException):
                # A log observer may raise as well.
                _log.failure("choosing a certificate by server name failed")
            return _INTERNAL_ERROR

    def _refuse(self, connection: SSL.Connection) -> None:
        connection.set_context(self._refusing)

    def _switch(self, connection: StatefulConnection) -> int | None:
        raw = connection.get_servername()
        # latin-1 decodes any bytes: a name that is not ASCII is an unknown one.
        name = None if raw is None else raw.decode("latin-1").lower().removesuffix(".")
        host = self._find(name)
        if host is None:
            return _UNRECOGNIZED_NAME
        if connection.get_protocol_version() < host.floor:
            return _PROTOCOL_VERSION
        if connection.get_context() is host.context:
            return None
        # SSL_set_SSL_CTX takes certificate, authorities and ALPN callback from the new context,
        # but not the verify mode: that stays the first context's, or that of the record which an
        # earlier ClientHello named.
        callback = verify_callback if host.verify_mode != SSL.VERIFY_NONE else _accept_none
        set_verify(connection, host.verify_mode, callback)
        state = connection.state
        state.verification = host.verification()
        state.set_protocols(host.alpn)
        connection.set_context(host.context)
        return None


def _accept_none(*_: object) -> int:
    """Refuse every certificate: none was requested."""
    return _REJECTED


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
            raise ValueError(f"sni={min(seen & names)!r} is in more than one record")
        seen |= names
        catch_all += not names
    if catch_all > 1:
        raise ValueError("two records without sni: each would answer every name")
    first, *others = records
    for other in others:
        for field in OF_SERVERS:
            if getattr(first, field) != getattr(other, field):
                raise ValueError(
                    f"{field} must be the same in all records of one server, "
                    f"not {getattr(first, field)!r} and {getattr(other, field)!r}"
                )


def server_records(
    options: SocketOptions | Iterable[SocketOptions],
) -> tuple[ServerTLSSocketOptions, ...]:
    """
    Return one record or several as a tuple: each must be a TLS server's.

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
        self.records = records
        self._hosts = _VirtualHosts(records)
        if any(
            record.certificate_verifier is False and record.trusted_certificates is not None
            for record in records
        ):
            _log.warn("certificates of clients are UNVERIFIED")

    @property
    def options(self) -> ServerTLSSocketOptions:
        """The record for clients that send no name; its timeouts hold for all."""
        return self._hosts.first.options

    @property
    def signature(self) -> tuple[object, ...]:
        """The signature of the files that the contexts in use were read from."""
        return self._hosts.signature

    def validity(self) -> Iterator[Validity]:
        """Yield from when to when the certificates in use are valid."""
        hosts = self._hosts.all
        each = [
            validity_of(host.options, host.identity, host.trusted, host.lists) for host in hosts
        ]
        # Several may trust the same.
        yield from dict.fromkeys(chain.from_iterable(each))

    def current_signature(self) -> tuple[object, ...]:
        """Return the present signature of the files."""
        return _server_signature(self.records)

    def build(self) -> _VirtualHosts:
        """
        Read all files again and return new contexts, for `swap`.

        Touches nothing else, so it may run in another thread.

        Raises:
            ValueError: A file cannot be used.
        """
        return _VirtualHosts(self.records)

    def swap(self, hosts: _VirtualHosts) -> None:
        """Use *hosts*, from `build`, for the connections to come."""
        self._hosts = hosts

    def connection(
        self, sock: _socket.socket | None, protocols: Sequence[bytes] = ()
    ) -> StatefulConnection:
        """
        Return a new connection on *sock*, or on memory buffers if `None`.

        Args:
            sock: The caller's, to be kept open as long as the connection.
            protocols: Spoken in preference to those of the records.
        """
        host = self._hosts.first
        connection = StatefulConnection(host.context, sock)
        connection.state = ConnectionState(host.verification(), host.alpn, protocols)
        connection.set_accept_state()
        return connection

    def serverConnectionForTLS(self, tlsProtocol: object) -> SSL.Connection:
        """Return a connection for Twisted's TLS protocol."""
        return reporting(self.connection(None, factory_protocols(tlsProtocol)))

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
        require_handshake(record)
    return ServerContextFactory(records)


_quiet_context: SSL.Context | None = None


def quiet_context() -> SSL.Context:
    """
    Return a context without callbacks, for server connections after their handshake.

    pyOpenSSL keeps an exception of the ALPN callback on the *context*; the next connection
    of that context to read would raise it, and lose its own data.
    """
    global _quiet_context  # noqa: PLW0603 - one is enough for the process
    if _quiet_context is None:
        _quiet_context = SSL.Context(SSL.TLS_METHOD)
    return _quiet_context
