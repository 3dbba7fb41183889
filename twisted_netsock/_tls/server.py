"""
The contextFactory object of TLS servers: one record, or several chosen by SNI.

A `ServerContextFactory` makes ``SSL.Connection`` objects: on a descriptor for our
own sockets and transports, on memory buffers wherever Twisted takes an
``IOpenSSLServerConnectionCreator``.
"""

from __future__ import annotations

import socket as _socket
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.logger import Logger
from zope.interface import implementer

from .._hostnames import server_name_pattern
from ..options import OF_SERVERS, ServerTLSSocketOptions, SocketOptions, require_record
from .certificates import file_paths, file_signature, load_identity, load_trusted
from .context import (
    VERSIONS,
    ConnectionState,
    StatefulConnection,
    alpn_protocols,
    base_context,
    factory_protocols,
    require_handshake,
    trust,
)
from .verification import Verification, verify_callback

__all__ = ["ServerContextFactory", "quiet_context", "server_context_factory", "server_records"]

_log = Logger()


class _Site:
    """One record of a server, its context, and the names it answers."""

    def __init__(self, options: ServerTLSSocketOptions, *, resumable: bool) -> None:
        self.options = options
        self.names = frozenset(server_name_pattern(name) for name in options.sni or ())
        self.alpn = alpn_protocols(options)
        self.floor = VERSIONS[options.minimum_version]
        identity = load_identity(options)
        if identity is None:
            raise ValueError("certificates and private_key are needed on a TLS server")
        self.identity = identity
        self.verify_mode = _server_verify_mode(options)
        context = base_context(options, identity)
        if not resumable:
            context.set_options(SSL.OP_NO_TICKET)
        if self.verify_mode != SSL.VERIFY_NONE:
            trusted = load_trusted(options) or ()
            trust(context, trusted)
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


def _server_signature(records: tuple[ServerTLSSocketOptions, ...]) -> tuple[object, ...]:
    """Return what changes when a file does that the contexts for *records* are read from."""
    return file_signature(path for record in records for path in file_paths(record))


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
        """
        Switch *connection* to the record for the name it asks for, or refuse it.

        OpenSSL calls this for each ClientHello: once more after a HelloRetryRequest
        (RFC 8446, section 4.1.2), and the name in the second one is the one that counts.
        """
        try:
            self._switch(connection)
        except BaseException:  # noqa: BLE001 - pyOpenSSL would go on with the first certificate
            # Refused before it is logged, because an observer of the log may raise as well;
            # nothing else than the standard error would hear of that here.
            connection.set_context(self._refusing)
            with suppress(BaseException):
                _log.failure("choosing a certificate by server name failed")

    def _switch(self, connection: StatefulConnection) -> None:
        raw = connection.get_servername()
        # A name that is no ASCII is nobody's: it finds what an unknown one does.
        name = None if raw is None else raw.decode("latin-1").lower().removesuffix(".")
        site = self._find(name)
        if site is None or connection.get_protocol_version() < site.floor:
            connection.set_context(self._refusing)
            return
        if connection.get_context() is site.context:
            return
        # Certificate, authorities and the choice of ALPN are the context's; the verify mode
        # is not, and stays that of the context which the connection was made with, or of
        # the record that an earlier ClientHello asked for.
        callback = verify_callback if site.verify_mode != SSL.VERIFY_NONE else _accept_none
        connection.set_verify(site.verify_mode, callback)
        state = connection.state
        state.verification = Verification(None, site.options.certificate_verifier)
        state.set_protocols(site.alpn)
        connection.set_context(site.context)


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
        return self.connection(None, factory_protocols(tlsProtocol))

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

    An exception of the ALPN callback is kept on the *context*, where any
    connection that reads next would raise it and lose its own data.
    """
    global _quiet_context  # noqa: PLW0603 - one is enough for the process
    if _quiet_context is None:
        _quiet_context = SSL.Context(SSL.TLS_METHOD)
    return _quiet_context
