"""`ssl_context`: our TLS for programs that take an `ssl.SSLContext`."""

# The stubs of the standard library have attributes where it has properties.
# mypy: disable-error-code="override"

from __future__ import annotations

import socket as _socket
import ssl
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, Self

from cryptography.hazmat.primitives.serialization import Encoding
from twisted.logger import Logger

from .._certificates.certificates import load_trusted
from .._tls.client import ClientContextFactory, check_client_record
from .._tls.context import CIPHERS_1_2
from .._tls.server import ServerContextFactory, server_records
from ..options import (
    ServerTLSSocketOptions,
    SocketOptions,
    TLSSocketOptions,
    require_no_proxy,
    require_record,
)
from ._socket import BlockingSocket
from ._ssl_object import ContextObject
from ._ssl_socket import ContextSocket, is_connected
from ._tls_socket import BlockingTLSSocket

__all__ = ["ssl_context"]

_log = Logger()

# What OpenSSL is not asked for, and what it is told; see `base_context`.
_HELD = (
    ssl.OP_NO_SSLv2
    | ssl.OP_NO_SSLv3
    | ssl.OP_NO_TLSv1
    | ssl.OP_NO_TLSv1_1
    | ssl.OP_NO_COMPRESSION
    | ssl.OP_NO_RENEGOTIATION
    | ssl.OP_CIPHER_SERVER_PREFERENCE
)


def ssl_context(
    options: SocketOptions | Iterable[ServerTLSSocketOptions] | None = None,
) -> ssl.SSLContext:
    """
    Return a context for programs that take one of the standard library's.

    Its sockets are instances of `BlockingTLSSocket` and of `ssl.SSLSocket`, with the methods of
    both. ``wrap_socket`` takes a socket of the standard library, or a `BlockingSocket`: connected,
    listening, or to be connected later. The timeout of that socket holds for the handshake and
    all that follows; `connection_timeout` and how a socket is made have no meaning here.

    What programs set must be what *options* say already, or, of the version, stricter; ALPN
    protocols, and a certificate where *options* have none, are theirs to set. Anything
    else is a `ValueError`. ``load_verify_locations``, ``load_default_certs`` and
    ``set_default_verify_paths`` have no effect, which is logged once: *options* say what is
    trusted. ``suppress_ragged_eofs`` of ``wrap_socket`` is the field of that name for one
    socket; where it is not given, the record's holds. ``wrap_bio`` is for asyncio and what stands
    on it.

    Args:
        options: A `TLSSocketOptions`, or a plain record, makes a client's context; one
            `ServerTLSSocketOptions`, or several, a server's. `None`: the defaults.

    Returns:
        The context, for any number of connections, in any thread.

    Raises:
        TypeError: *options* is no record.
        ValueError: A certificate or key cannot be used; or *options* have a `proxy`: give
            ``wrap_socket`` a socket that was connected through it.
    """
    if options is None:
        return OurContext((TLSSocketOptions(),))
    if isinstance(options, ServerTLSSocketOptions | Iterable):
        return OurContext(server_records(options))
    record = require_record(options, SocketOptions, None, "give a record for TLS")
    require_no_proxy(
        record,
        "the program connects its sockets itself; have wrap_socket take one of "
        "make_client_socket, which connects through it",
    )
    if not isinstance(record, TLSSocketOptions):
        record = TLSSocketOptions.from_options(record)
    return OurContext((record,))


def _refuse(name: str, value: object, advice: str) -> NoReturn:
    raise ValueError(f"{name}={value!r} differs from the options of this context: {advice}")


class OurContext(ssl.SSLContext):
    """
    The surface of a context: what it shows is ours, and what is set is checked.

    OpenSSL's own context beneath, which the base makes, connects to nobody: it trusts no
    certificate, and has none.
    """

    sslsocket_class = ContextSocket  # type: ignore[assignment]
    sslobject_class = ContextObject  # type: ignore[assignment]

    def __new__(cls, records: tuple[TLSSocketOptions, ...]) -> Self:
        """Make the context beneath, whose protocol programs may ask for."""
        serves = isinstance(records[0], ServerTLSSocketOptions)
        made = super().__new__(cls, ssl.PROTOCOL_TLS_SERVER if serves else ssl.PROTOCOL_TLS_CLIENT)
        # For `get_ciphers`.
        ssl.SSLContext.set_ciphers(made, CIPHERS_1_2.decode("ascii"))
        return made

    def __init__(self, records: tuple[TLSSocketOptions, ...]) -> None:
        super().__init__()
        self._serves = isinstance(records[0], ServerTLSSocketOptions)
        self._has_told = False
        self._use(records)

    def _use(self, records: tuple[TLSSocketOptions, ...]) -> None:
        """Use *records* from now on, if they can be used."""
        factories: dict[tuple[bool, bool], ServerContextFactory] = {}
        if not self._serves:
            check_client_record(records[0])
        elif any(record.certificates is not None for record in records):
            factories[records[0].handshake, records[0].suppress_ragged_eofs] = (
                ServerContextFactory(server_records(records))
            )
        # Of servers, whose files are read once.
        self._factories = factories
        self._records = records

    def _change(self, **changes: Any) -> None:
        self._use(tuple(record.replace(**changes) for record in self._records))

    @property
    def _record(self) -> TLSSocketOptions:
        return self._records[0]

    # Connections

    def wrap_socket(
        self,
        sock: _socket.socket | BlockingSocket,
        server_side: bool = False,
        do_handshake_on_connect: bool = True,
        suppress_ragged_eofs: bool | None = None,
        server_hostname: str | bytes | None = None,
        session: None = None,
    ) -> ContextSocket:
        """
        Speak TLS on *sock*, which is spent.

        Raises:
            TypeError: *sock* is no socket, or speaks TLS.
            ValueError: An argument does not fit this context, or there is no name to verify.
            SocketError: As `start_tls`; *sock* is closed then.
        """
        if not isinstance(sock, _socket.socket | BlockingSocket):
            raise TypeError(f"sock={sock!r} must be a socket")
        if isinstance(sock, ssl.SSLSocket | BlockingTLSSocket):
            raise TypeError(f"sock={sock!r} speaks TLS already")
        if sock.type != _socket.SOCK_STREAM:
            raise NotImplementedError("only stream sockets are supported: TLS needs a stream")
        given = self._checked_name(server_side, server_hostname, session)
        handshake = bool(do_handshake_on_connect) and self._record.handshake
        if handshake and sock.gettimeout() == 0 and is_connected(sock):
            raise ValueError(
                "do_handshake_on_connect=True: the handshake waits, which sock does not; "
                "call do_handshake"
            )
        name = given or getattr(sock, "node", None)
        ragged = suppress_ragged_eofs
        if ragged is None:
            ragged = self._record.suppress_ragged_eofs
        connects_later = not self._serves and not is_connected(sock)
        factory = self._factory(name, handshake and not connects_later, bool(ragged))
        made = ContextSocket.wrapping(sock, factory, self, given)
        made._handshakes = handshake
        return made

    def _checked_name(
        self, server_side: bool, server_hostname: str | bytes | None, session: object
    ) -> str | None:
        """Return the name that was given, if the arguments fit this context."""
        if bool(server_side) != self._serves:
            side = "a server's" if self._serves else "a client's"
            raise ValueError(f"server_side={server_side!r}: the options are {side}")
        if self._serves and server_hostname is not None:
            raise ValueError(f"server_hostname={server_hostname!r} is for clients")
        if session is not None:
            raise ValueError("session must be None: sessions are resumed without being asked for")
        if isinstance(server_hostname, bytes):
            server_hostname = server_hostname.decode("ascii")
        return server_hostname

    def _factory(
        self, name: str | None, handshake: bool, ragged: bool
    ) -> ClientContextFactory | ServerContextFactory:
        records = tuple(
            record
            if (record.handshake, record.suppress_ragged_eofs) == (handshake, ragged)
            else record.replace(handshake=handshake, suppress_ragged_eofs=ragged)
            for record in self._records
        )
        if not self._serves:
            return ClientContextFactory(records[0], name)
        factory = self._factories.get((handshake, ragged))
        if factory is None:
            factory = ServerContextFactory(server_records(records))
            self._factories[handshake, ragged] = factory
        return factory

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: None = None,
    ) -> ContextObject:
        """
        Speak TLS on two buffers, as asyncio does.

        Raises:
            ValueError: An argument does not fit this context, or there is no name to verify.
        """
        name = self._checked_name(server_side, server_hostname, session)
        factory = self._factory(name, self._record.handshake, self._record.suppress_ragged_eofs)
        return ContextObject(incoming, outgoing, factory, self, name)

    # What programs may set

    def set_alpn_protocols(self, alpn_protocols: Iterable[str]) -> None:
        """Offer these protocols, the preferred first."""
        self._change(alpn=tuple(alpn_protocols) or None)

    def load_cert_chain(
        self,
        certfile: Any,
        keyfile: Any = None,
        password: str | bytes | Callable[[], str | bytes] | None = None,
    ) -> None:
        """
        Show this certificate, where the options have none.

        Raises:
            ValueError: The options have one, or this one cannot be used.
        """
        if any(record.certificates is not None for record in self._records):
            _refuse("certfile", certfile, "they have a certificate")
        self._change(
            certificates=certfile,
            private_key=keyfile,
            private_key_password=password() if callable(password) else password,
        )

    @property
    def minimum_version(self) -> ssl.TLSVersion:
        """The oldest version; may be raised."""
        return ssl.TLSVersion(self._record.minimum_version)

    @minimum_version.setter
    def minimum_version(self, value: ssl.TLSVersion) -> None:
        newest = ssl.TLSVersion.TLSv1_3
        wanted = newest if value == ssl.TLSVersion.MAXIMUM_SUPPORTED else ssl.TLSVersion(value)
        if wanted < self.minimum_version:
            _refuse("minimum_version", value, "set minimum_version there")
        if wanted != self.minimum_version:
            self._change(minimum_version=wanted)

    @property
    def maximum_version(self) -> ssl.TLSVersion:
        """The newest version."""
        return ssl.TLSVersion(self._record.maximum_version or ssl.TLSVersion.MAXIMUM_SUPPORTED)

    @maximum_version.setter
    def maximum_version(self, value: ssl.TLSVersion) -> None:
        limited = self._record.maximum_version is not None
        same = {self.maximum_version} if limited else {
            ssl.TLSVersion.MAXIMUM_SUPPORTED, ssl.TLSVersion.TLSv1_3
        }  # fmt: skip
        if value not in same:
            _refuse("maximum_version", value, "set maximum_version there")

    # What is as the options say

    def _require(self, name: str, value: object, advice: str) -> None:
        """Refuse *value* unless *name* has it already."""
        if value != getattr(self, name):
            _refuse(name, value, advice)

    @property
    def protocol(self) -> ssl._SSLMethod:
        """Of clients, or of servers."""
        return ssl.PROTOCOL_TLS_SERVER if self._serves else ssl.PROTOCOL_TLS_CLIENT

    @property
    def check_hostname(self) -> bool:
        """Whether names are verified: on clients, unless the options verify nothing."""
        return not self._serves and self._record.certificate_verifier is not False

    @check_hostname.setter
    def check_hostname(self, value: bool) -> None:
        self._require("check_hostname", bool(value), "they say whom to verify, server_identity")

    @property
    def verify_mode(self) -> ssl.VerifyMode:
        """Whether certificates of peers are demanded; a server that takes them may demand them."""
        record = self._record
        if isinstance(record, ServerTLSSocketOptions):
            if record.client_certificate_required:
                return ssl.CERT_REQUIRED
            asks = record.trusted_certificates is not None
            return ssl.CERT_OPTIONAL if asks else ssl.CERT_NONE
        return ssl.CERT_NONE if record.certificate_verifier is False else ssl.CERT_REQUIRED

    @verify_mode.setter
    def verify_mode(self, value: ssl.VerifyMode) -> None:
        if value == ssl.CERT_REQUIRED and self.verify_mode == ssl.CERT_OPTIONAL:
            self._change(client_certificate_required=True)
            return
        field = "client_certificate_required" if self._serves else "certificate_verifier"
        self._require("verify_mode", value, f"set {field} there")

    @property
    def verify_flags(self) -> ssl.VerifyFlags:
        """How certificates are verified."""
        flags = ssl.VERIFY_X509_TRUSTED_FIRST | ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
        if self._record.revocation_lists:
            flags |= ssl.VERIFY_CRL_CHECK_CHAIN
        if self._record.certificate_profile == "strict":
            flags |= ssl.VERIFY_X509_STRICT
        return flags

    @verify_flags.setter
    def verify_flags(self, value: ssl.VerifyFlags) -> None:
        self._require("verify_flags", value, "set certificate_profile or revocation_lists there")

    @property
    def options(self) -> ssl.Options:
        """OpenSSL's options."""
        held = ssl.Options(super().options) | _HELD
        if self.minimum_version == ssl.TLSVersion.TLSv1_3:
            held |= ssl.OP_NO_TLSv1_2
        if self.maximum_version == ssl.TLSVersion.TLSv1_2:
            held |= ssl.OP_NO_TLSv1_3
        return held

    @options.setter
    def options(self, value: ssl.Options) -> None:
        self._require("options", value, "take minimum_version, suppress_ragged_eofs and the like")

    @property
    def hostname_checks_common_name(self) -> bool:
        """`False`: names are in the extension for them."""
        return False

    @hostname_checks_common_name.setter
    def hostname_checks_common_name(self, value: bool) -> None:
        self._require("hostname_checks_common_name", value, "common names are no host names")

    @property
    def post_handshake_auth(self) -> bool:
        """`False`: certificates are shown in the handshake."""
        return False

    @post_handshake_auth.setter
    def post_handshake_auth(self, value: bool) -> None:
        self._require("post_handshake_auth", value, "certificates are shown in the handshake")

    @property
    def keylog_filename(self) -> str | None:
        """Where secrets are logged."""
        path = self._record.keylog_file
        return None if path is None else str(path)

    @keylog_filename.setter
    def keylog_filename(self, value: Any) -> None:
        self._require("keylog_filename", value, "set keylog_file there")

    @property
    def num_tickets(self) -> int:
        """How many session tickets a server sends: OpenSSL's default."""
        return super().num_tickets

    @num_tickets.setter
    def num_tickets(self, value: int) -> None:
        self._require("num_tickets", value, "it is OpenSSL's default")

    @property
    def security_level(self) -> int:
        """OpenSSL's level."""
        return super().security_level

    @property
    def sni_callback(self) -> None:
        """`None`: several records are chosen by SNI."""

    @sni_callback.setter
    def sni_callback(self, value: object) -> None:
        self._require("sni_callback", value, "give several records, one for each name")

    def set_servername_callback(self, server_name_callback: object) -> None:
        """Refuse all but `None`."""
        self.sni_callback = server_name_callback

    def set_ciphers(self, cipherlist: str, /) -> None:
        """Refuse: the suites are ours."""
        _refuse("cipherlist", cipherlist, "they are secure, and no others")

    def set_ecdh_curve(self, name: str, /) -> None:
        """Refuse: the groups are OpenSSL's, with post-quantum ones."""
        _refuse("name", name, "the groups are OpenSSL's own")

    def load_dh_params(self, path: str, /) -> None:
        """Refuse: there is no such key exchange."""
        _refuse("path", path, "key exchange is by elliptic curves and ML-KEM alone")

    def set_npn_protocols(self, npn_protocols: Iterable[str]) -> None:
        """Refuse: NPN is no more."""
        _refuse("npn_protocols", npn_protocols, "use set_alpn_protocols")

    def set_psk_client_callback(self, callback: object) -> None:
        """Refuse all but `None`: peers have certificates."""
        if callback is not None:
            _refuse("callback", callback, "peers show certificates")

    def set_psk_server_callback(self, callback: object, identity_hint: str | None = None) -> None:
        """Refuse all but `None`: peers have certificates."""
        self.set_psk_client_callback(callback)

    # What has no effect

    def load_verify_locations(self, *_arguments: object, **_named: object) -> None:
        """Do nothing: the options say what is trusted."""
        if not self._has_told:
            self._has_told = True
            _log.info(
                "a program's authorities are not loaded: trusted_certificates of the options "
                "says what is trusted"
            )

    def load_default_certs(self, *_arguments: object, **_named: object) -> None:
        """Do nothing: the options say what is trusted."""
        self.load_verify_locations()

    def set_default_verify_paths(self) -> None:
        """Do nothing: the options say what is trusted."""
        self.load_verify_locations()

    # What can be asked

    def get_ca_certs(self, binary_form: bool = False) -> Any:
        """Return the trusted authorities, unless they are the platform's."""
        return self._trusted().get_ca_certs(binary_form)

    def cert_store_stats(self) -> dict[str, int]:
        """Return how many certificates are trusted, unless they are the platform's."""
        return self._trusted().cert_store_stats()

    def _trusted(self) -> ssl.SSLContext:
        shown = ssl.SSLContext(self.protocol)
        for each in load_trusted(self._record) or ():
            shown.load_verify_locations(cadata=each.public_bytes(Encoding.DER))
        return shown

    def get_ciphers(self) -> Any:
        """Return the cipher suites that are offered or taken."""
        return super().get_ciphers()

    def session_stats(self) -> dict[str, int]:
        """Return zeros: sessions are not in OpenSSL's cache."""
        return super().session_stats()
