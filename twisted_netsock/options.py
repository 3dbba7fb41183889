"""
Option records: frozen values that say how a socket is made.

`SocketOptions` < `TLSSocketOptions` < `ServerTLSSocketOptions`, as in the
``(net socket)`` library. A record is checked when it is built, and the error
names the field, the value and what is allowed; the files it names are read when
a socket, an endpoint or a context is made of it.

This module does no I/O and loads no TLS library.
"""

from __future__ import annotations

import os
import ssl as _ssl
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import cache
from socket import (
    AF_UNIX,
    AF_UNSPEC,
    AI_PASSIVE,
    SOCK_STREAM,
    AddressFamily,
    SocketKind,
)
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Literal,
    NamedTuple,
    Self,
    TypeAlias,
    TypedDict,
    TypeVar,
    Unpack,
)

import attrs

from . import _validation as check
from ._hostnames import is_ip_address
from ._proxies import may_speak_tls, without_credentials
from ._public import public_in

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

__all__ = [
    "CertificateProfile",
    "CertificateSource",
    "CertificateVerifier",
    "KeySource",
    "LocalAddress",
    "Path",
    "RevocationListSource",
    "ServerTLSSocketOptionFields",
    "ServerTLSSocketOptions",
    "SocketOption",
    "SocketOptionFields",
    "SocketOptions",
    "TLSSocketOptionFields",
    "TLSSocketOptions",
    "Verifier",
    "VerifyResult",
    "Version",
    "is_server_tls_socket_options",
    "is_socket_options",
    "is_tls_socket_options",
]


@public_in("twisted_netsock")
class VerifyResult(NamedTuple):
    """
    OpenSSL's verdict on one certificate of a chain.

    Attributes:
        code: ``X509_V_OK`` (0) or the number of the error.
        text: The verdict in words.
    """

    code: int
    text: str


CertificateVerifier: TypeAlias = "Callable[[int, VerifyResult, x509.Certificate], bool | None]"
"""Called with depth, verdict and certificate; `None` keeps the verdict."""

Verifier: TypeAlias = "CertificateVerifier | Literal[False] | None"
Path: TypeAlias = "str | os.PathLike[str]"
CertificateSource: TypeAlias = "Path | bytes | bytearray | x509.Certificate"
"""A path, or content (PEM, DER or PKCS#12), or a certificate."""

RevocationListSource: TypeAlias = "Path | bytes | bytearray | x509.CertificateRevocationList"
"""A path, or content (PEM or DER), or a list."""

KeySource: TypeAlias = "Path | bytes | bytearray | PrivateKeyTypes"
"""A path, or content (PEM, DER or PKCS#12), or a private key."""

SocketOption: TypeAlias = "tuple[int, int, int | bytes]"
"""Level, name and value, as `socket.socket.setsockopt` takes them."""

LocalAddress: TypeAlias = "tuple[str, int]"
CertificateProfile: TypeAlias = 'Literal["default", "strict"]'
Version: TypeAlias = 'Literal["TLSv1.2", "TLSv1.3"] | _ssl.TLSVersion'


class SocketOptionFields(TypedDict, total=False):
    """What `SocketOptions` takes, for type checkers."""

    ai_family: int
    ai_socktype: int
    ai_flags: int
    ai_protocol: int
    non_blocking: bool
    connection_timeout: timedelta | int | None
    read_timeout: timedelta | None
    write_timeout: timedelta | None
    local_address: str | LocalAddress | None
    socket_options: SocketOption | Iterable[SocketOption]
    backlog: int
    reuse_port: bool
    v6_only: bool
    proxy_protocol: Literal["v1", "v2", "any"] | None
    proxy: str | None
    proxy_trusted_certificates: CertificateSource | Iterable[CertificateSource] | None


class TLSSocketOptionFields(SocketOptionFields, total=False):
    """What `TLSSocketOptions` takes, for type checkers."""

    handshake: bool
    private_key: KeySource | None
    private_key_password: str | bytes | None
    certificates: CertificateSource | Iterable[CertificateSource] | None
    certificate_verifier: Verifier
    trusted_certificates: CertificateSource | Iterable[CertificateSource] | None
    trusted_certificates_password: str | bytes | None
    certificate_profile: CertificateProfile
    server_identity: str | None
    revocation_lists: RevocationListSource | Iterable[RevocationListSource] | None
    sni: str | Iterable[str] | None
    alpn: str | Iterable[str] | None
    minimum_version: Version
    maximum_version: Version | None
    handshake_timeout: timedelta | None
    close_timeout: timedelta
    suppress_ragged_eofs: bool
    keylog_file: Path | None


class ServerTLSSocketOptionFields(TLSSocketOptionFields, total=False):
    """What `ServerTLSSocketOptions` takes, for type checkers."""

    client_certificate_required: bool


AnyOptions = TypeVar("AnyOptions", bound="SocketOptions")

_SOURCES: Final = (
    check.key_source,
    check.certificate_sources,
    check.revocation_list_sources,
)
"""Checks of what may be a path, whose file is read for a TLS context."""


def _field(
    default: object,
    converter: Callable[[object, str], object],
    kind: str | None,
    *,
    secret: bool = False,
    hashed: bool = True,
    of_sockets: bool = False,
    of_names: bool = False,
) -> Any:
    """
    Declare one option: its default, its check, and the kind of its text form.

    *kind* is what endpoint strings go by: `twisted_netsock._endpoints.string_keys` has a parser
    for each; `None` keeps the option out of them. *secret* keeps its value out of every
    text, *hashed* is `False` for values that need not be hashable, *of_sockets* is `True`
    for what says how a socket is made, and *of_names* for what may differ between the
    records of one server.
    """
    return attrs.field(
        default=default,
        converter=attrs.Converter(
            lambda value, field: converter(value, field.name), takes_field=True
        ),
        hash=hashed,
        metadata={
            "kind": kind,
            "secret": secret,
            "of_sockets": of_sockets,
            "of_names": of_names,
            "of_files": converter in _SOURCES,
        },
    )


def _record(cls: type[AnyOptions]) -> type[AnyOptions]:
    """
    Make *cls* a frozen attrs class.

    Behind a name of its own, because the constructor takes more than the fields
    hold: type checkers go by the signatures that the classes declare.
    """
    return attrs.frozen(kw_only=True, repr=False)(cls)


def record_fields(cls: type[SocketOptions]) -> tuple[attrs.Attribute[Any], ...]:
    """Return the fields of a class of records, in order."""
    # attrs makes the class what its own types call an AttrsInstance.
    made: Any = cls
    fields: tuple[attrs.Attribute[Any], ...] = attrs.fields(made)
    return fields


@cache
def _defaults_of(cls: Callable[[], SocketOptions]) -> dict[str, object]:
    record = cls()
    return {field.name: getattr(record, field.name) for field in record_fields(type(record))}


def _defaults(cls: Callable[[], SocketOptions]) -> dict[str, object]:
    """Return the default of each field of a class of records, as a record stores it."""
    return _defaults_of(cls)


@_record
class SocketOptions:
    """
    How a plain socket is made (``socket-options-builder``).

    Args:
        ai_family: ``AF_UNSPEC`` (IPv4 and IPv6), ``AF_INET``, ``AF_INET6`` or
            ``AF_UNIX``.
        ai_socktype: ``SOCK_STREAM``, ``SOCK_DGRAM`` or ``SOCK_RAW``.
        ai_flags: ``AI_…`` flags of the look-up.
        ai_protocol: A protocol number (262 is Multipath TCP), or 0.
        non_blocking: On the reactor a socket never blocks: only `True` is taken
            there. `twisted_netsock.blocking` takes both and always waits.
        connection_timeout: Time for look-up, every attempt and the TLS
            handshake together, on clients: a `timedelta`, an `int` of
            *microseconds* (at least 100,000), or `None` for no limit.
        read_timeout: How long a receive waits for its first byte, or `None` for
            no limit. On a server it holds for accepted sockets.
        write_timeout: How long a send waits until the kernel takes another
            byte, or `None` for no limit.
        local_address: What to bind before connecting: a numeric host, or one and a
            port; a path with ``AF_UNIX``.
        socket_options: Level, name and value of each option to set before
            connect or bind. ``TCP_NODELAY`` is on unless it is turned off here.
        backlog: How many connections the kernel queues for a server.
        reuse_port: Set ``SO_REUSEPORT``: several processes share a port.
        v6_only: Listen on IPv6 only where a server listens on every interface.
        proxy_protocol: ``"v1"`` or ``"v2"``, a version of the PROXY protocol, or
            `None`. A client sends such a header before anything else; a server
            requires one of every connection, of either version if this is ``"any"``.
        proxy: What a client connects through: ``"socks5://HOST:PORT"``,
            ``"http://HOST:PORT"`` or ``"https://HOST:PORT"`` (CONNECT, the latter over TLS),
            with ``USER:PASSWORD@`` before the host where needed, ``"environment"`` (the
            variables that curl reads), or `None`. The proxy looks the node up.
        proxy_trusted_certificates: The authorities to believe of an HTTPS proxy, as
            `trusted_certificates`; the platform's list if `None`.
    """

    ai_family: AddressFamily = _field(AF_UNSPEC, check.family, "family", of_sockets=True)
    ai_socktype: SocketKind = _field(SOCK_STREAM, check.socket_kind, "socktype", of_sockets=True)
    ai_flags: int = _field(0, check.non_negative, "flags", of_sockets=True)
    ai_protocol: int = _field(0, check.non_negative, "integer", of_sockets=True)
    non_blocking: bool = _field(True, check.boolean, "boolean")
    connection_timeout: timedelta | None = _field(None, check.connection_timeout, "duration")
    read_timeout: timedelta | None = _field(None, check.optional_duration, "duration")
    write_timeout: timedelta | None = _field(None, check.optional_duration, "duration")
    local_address: LocalAddress | None = _field(
        None, check.local_address, "local_address", of_sockets=True
    )
    socket_options: tuple[SocketOption, ...] = _field(
        (), check.socket_options, None, of_sockets=True
    )
    backlog: int = _field(128, check.non_negative, "integer", of_sockets=True)
    reuse_port: bool = _field(False, check.boolean, "boolean", of_sockets=True)
    v6_only: bool = _field(False, check.boolean, "boolean", of_sockets=True)
    proxy_protocol: str | None = _field(
        None, check.proxy_protocol, "proxy_protocol", of_sockets=True
    )
    proxy: str | None = _field(None, check.proxy, "proxy", of_sockets=True)
    proxy_trusted_certificates: tuple[CertificateSource, ...] | None = _field(
        None, check.certificate_sources, "paths", secret=True, of_sockets=True
    )

    if TYPE_CHECKING:

        def __init__(self, **fields: Unpack[SocketOptionFields]) -> None: ...

    def __attrs_post_init__(self) -> None:
        """Check what concerns more than one field."""
        if self.local_address is not None and self.ai_family != AF_UNIX:
            given = self.local_address
            if not is_ip_address(given[0]):
                raise ValueError(
                    f"local_address={given!r} must be a numeric host: nobody looks it up"
                )
        if self.proxy_protocol is not None and self.ai_socktype != SOCK_STREAM:
            raise ValueError(
                f"proxy_protocol={self.proxy_protocol!r} needs ai_socktype=SOCK_STREAM: "
                "only a stream begins with a header"
            )
        if self.proxy is not None and (
            self.ai_socktype != SOCK_STREAM or self.ai_family == AF_UNIX
        ):
            raise ValueError(
                "proxy needs ai_socktype=SOCK_STREAM, and another ai_family than AF_UNIX: "
                "it connects TCP streams"
            )
        if self.proxy_trusted_certificates is not None and not may_speak_tls(self.proxy):
            raise ValueError(
                "proxy_trusted_certificates needs proxy='https://HOST:PORT', or 'environment': "
                "no other proxy shows a certificate"
            )

    def replace(self, **changes: Unpack[SocketOptionFields]) -> Self:
        """
        Return a copy with *changes* made (the ``(from options)`` of the builders).

        Raises:
            TypeError: A field is unknown, or its value of the wrong type.
            ValueError: A value is not allowed.
        """
        record: Any = self
        replaced: Self = attrs.evolve(record, **changes)
        return replaced

    @classmethod
    def from_options(cls, options: SocketOptions, **changes: Unpack[SocketOptionFields]) -> Self:
        """
        Return a record of this class with the fields that *options* shares with it.

        Works up the tree (a plain record becomes a TLS one) and down (what
        only the richer record has is left out). A field that *options* has left
        at its default takes the default of this class.

        Raises:
            TypeError: *options* is no record, or a field of *changes* unknown.
            ValueError: A value is not allowed.
        """
        if not isinstance(options, SocketOptions):
            raise TypeError(f"options must be a SocketOptions record, not {options!r}")
        theirs = _defaults(type(options))
        ours = {field.name for field in record_fields(cls)}
        shared = {
            name: getattr(options, name)
            for name, default in theirs.items()
            if name in ours and getattr(options, name) != default
        }
        return cls(**{**shared, **changes})

    def __repr__(self) -> str:
        """Show what differs from the defaults, and nothing that is secret."""
        defaults = _defaults(type(self))
        shown = [
            shown_field(self, name)
            for name, default in defaults.items()
            if getattr(self, name) != default
        ]
        if getattr(self, "certificate_verifier", None) is False:
            shown.append("UNVERIFIED")
        return f"{type(self).__name__}({', '.join(shown)})"


@_record
class TLSSocketOptions(SocketOptions):
    """
    How a TLS socket is made (``tls-socket-options-builder``), beside `SocketOptions`.

    Args:
        handshake: Shake hands before the socket is handed over. With `False`
            `TLSSocket.handshake` is the caller's to call.
        private_key: A path, content as `bytes` (PEM, DER, PKCS#12) or a
            ``cryptography`` key. Needs *certificates*.
        private_key_password: What decrypts *private_key* or a PKCS#12.
        certificates: Our certificate and those that lead to its authority, leaf
            first: one or several paths, contents or ``cryptography``
            certificates. A source that holds a key as well brings it. On servers also a
            directory, each of whose certificates is shown for its own names.
        certificate_verifier: `None` verifies; `False` verifies nothing and
            says so; a callable is asked about each verdict and returns `None`
            to keep it, `False` to refuse, `True` to accept that one error.
        trusted_certificates: The authorities to believe; the platform's list if
            `None`.
        trusted_certificates_password: What decrypts those that are PKCS#12.
        certificate_profile: How chains are judged. ``"default"``: one is good if OpenSSL
            finds it so, or another path to a trusted certificate is good. ``"strict"``:
            only if it is as public authorities have to issue them.
        server_identity: What a client verifies instead of the node or *sni*: a name, an
            address, or a URI such as ``spiffe://example.com/web``, which the certificate must
            have in exactly these words.
        revocation_lists: Lists of revoked certificates (CRLs), PEM or DER: paths, content or
            ``cryptography`` lists. A valid one of each issuer in the peer's chain is needed.
        sni: The name to send and to verify instead of the node; ``()`` sends
            none and verifies the node.
        alpn: Application protocols to offer, the preferred first.
        minimum_version: The oldest TLS version to speak: TLS 1.2 or 1.3.
        maximum_version: The newest, or `None` for the newest there is.
        handshake_timeout: Time for the handshake, on servers together with the PROXY
            header before it, or `None` for no limit.
        close_timeout: Time for the peer's close_notify.
        suppress_ragged_eofs: Take an end without close_notify for the end of the stream, as
            Python's ``ssl`` does by default. Then nobody notices that an attacker has cut off what
            was sent (RFC 8446, section 6.1): for peers alone that never send close_notify, and
            protocols that say how long their messages are.
        keylog_file: A file to append session secrets to, for debugging; one that exists
            must be a regular file of this user, with mode 0600.
    """

    handshake: bool = _field(True, check.boolean, None)
    private_key: KeySource | None = _field(
        None, check.key_source, "path", secret=True, hashed=False, of_names=True
    )
    private_key_password: bytes | None = _field(
        None, check.password, None, secret=True, of_names=True
    )
    certificates: tuple[CertificateSource, ...] | None = _field(
        None, check.certificate_sources, "paths", secret=True, of_names=True
    )
    certificate_verifier: Verifier = _field(
        None, check.verifier, "verifier", hashed=False, of_names=True
    )
    trusted_certificates: tuple[CertificateSource, ...] | None = _field(
        None, check.certificate_sources, "paths", secret=True, of_names=True
    )
    trusted_certificates_password: bytes | None = _field(
        None, check.password, None, secret=True, of_names=True
    )
    certificate_profile: str = _field(
        "default", check.certificate_profile, "certificate_profile", of_names=True
    )
    server_identity: str | None = _field(None, check.server_identity, "text", of_names=True)
    revocation_lists: tuple[RevocationListSource, ...] | None = _field(
        None,
        check.revocation_list_sources,
        "paths",
        secret=True,
        # Lists of cryptography have no hash.
        hashed=False,
        of_names=True,
    )
    sni: tuple[str, ...] | None = _field(None, check.server_names, "names", of_names=True)
    alpn: tuple[str, ...] | None = _field(None, check.alpn_names, "protocols", of_names=True)
    minimum_version: _ssl.TLSVersion = _field(
        _ssl.TLSVersion.TLSv1_2, check.tls_version, "version", of_names=True
    )
    maximum_version: _ssl.TLSVersion | None = _field(None, check.optional_tls_version, "version")
    handshake_timeout: timedelta | None = _field(
        timedelta(seconds=30), check.optional_duration, "duration"
    )
    close_timeout: timedelta = _field(timedelta(seconds=5), check.duration, "duration")
    suppress_ragged_eofs: bool = _field(False, check.boolean, "boolean")
    keylog_file: str | None = _field(None, check.optional_path, "path")

    if TYPE_CHECKING:

        def __init__(self, **fields: Unpack[TLSSocketOptionFields]) -> None: ...

        # What they do is written once, in the base; here they take more.
        def replace(self, **changes: Unpack[TLSSocketOptionFields]) -> Self: ...  # noqa: D102

        @classmethod
        def from_options(  # noqa: D102
            cls, options: SocketOptions, **changes: Unpack[TLSSocketOptionFields]
        ) -> Self: ...

    def __attrs_post_init__(self) -> None:
        """Check what concerns more than one field."""
        super().__attrs_post_init__()
        if self.private_key is not None and self.certificates is None:
            raise ValueError("private_key needs certificates: it proves nothing without one")
        if self.trusted_certificates_password is not None and self.trusted_certificates is None:
            raise ValueError("trusted_certificates_password needs trusted_certificates")
        if self.maximum_version is not None and self.maximum_version < self.minimum_version:
            raise ValueError(
                f"maximum_version ({self.maximum_version.name}) must not be older than "
                f"minimum_version ({self.minimum_version.name})"
            )
        if self.certificate_profile == "strict" and self.certificate_verifier is False:
            raise ValueError(
                "certificate_profile='strict' with certificate_verifier=False would verify nothing"
            )
        if self.revocation_lists is not None and self.certificate_verifier is False:
            raise ValueError(
                "revocation_lists with certificate_verifier=False would verify nothing"
            )
        self._check_role()

    def _check_role(self) -> None:
        """Check what holds for one side of a connection only: here, the client's."""
        if self.server_identity is not None and self.certificate_verifier is False:
            raise ValueError(
                "server_identity with certificate_verifier=False would not be verified"
            )
        if self.sni is not None and len(self.sni) > 1:
            raise ValueError(f"sni={self.sni!r}: a client sends one name, not {len(self.sni)}")
        if self.sni and self.sni[0].startswith("*"):
            raise ValueError(f"sni={self.sni!r}: a client cannot ask for a wildcard")


@_record
class ServerTLSSocketOptions(TLSSocketOptions):
    """
    How a TLS server's socket is made (``server-tls-socket-options-builder``).

    Beside what `TLSSocketOptions` takes, where *sni* is the names that this
    record answers (``*.example.com`` too), `None` for all that no other record
    lists, and *trusted_certificates* has no default.

    Args:
        client_certificate_required: Refuse clients without a certificate that
            verifies against *trusted_certificates*.
    """

    client_certificate_required: bool = _field(False, check.boolean, "boolean", of_names=True)
    handshake_timeout: timedelta | None = _field(
        timedelta(seconds=10), check.optional_duration, "duration"
    )

    if TYPE_CHECKING:

        def __init__(self, **fields: Unpack[ServerTLSSocketOptionFields]) -> None: ...

        def replace(self, **changes: Unpack[ServerTLSSocketOptionFields]) -> Self: ...  # noqa: D102

        @classmethod
        def from_options(  # noqa: D102
            cls, options: SocketOptions, **changes: Unpack[ServerTLSSocketOptionFields]
        ) -> Self: ...

    def _check_role(self) -> None:
        if self.proxy is not None:
            raise ValueError("proxy is for clients: a server is not reached through one")
        if self.server_identity is not None:
            raise ValueError(
                f"server_identity={self.server_identity!r} is for clients: "
                "a server does not verify itself"
            )
        if self.sni == ():
            raise ValueError("sni=() must list at least one name on a server, or be None")
        if self.sni is not None and any(is_ip_address(name) for name in self.sni):
            raise ValueError(f"sni={self.sni!r}: clients never send an address as server name")
        if self.revocation_lists is not None and self.trusted_certificates is None:
            raise ValueError(
                "revocation_lists needs trusted_certificates on a server: without them no "
                "certificate of a client is verified"
            )
        if not self.client_certificate_required:
            return
        if self.certificate_verifier is False:
            raise ValueError(
                "client_certificate_required=True with certificate_verifier=False "
                "would accept anybody's certificate"
            )
        if self.trusted_certificates is None and self.certificate_verifier is None:
            raise ValueError(
                "client_certificate_required=True needs trusted_certificates (a server never "
                "trusts the platform's list for clients) or a certificate_verifier"
            )


OF_SOCKETS: Final = tuple(
    field.name for field in record_fields(SocketOptions) if field.metadata["of_sockets"]
)
"""Options that say how a socket is made: where it is not ours to make, they say nothing."""

OF_FILES: Final = tuple(
    field.name for field in record_fields(ServerTLSSocketOptions) if field.metadata["of_files"]
)
"""Options that may name files which a TLS context is read from: it changes as they do."""

OF_SERVERS: Final = tuple(
    field.name for field in record_fields(ServerTLSSocketOptions) if not field.metadata["of_names"]
)
"""
Options that all records of one server share: OpenSSL takes them from the first. The
others it carries over when the server-name callback switches contexts, or we do.
"""


def is_socket_options(o: object) -> bool:
    """Return whether *o* is an option record of any of the three classes (``socket-options?``)."""
    return isinstance(o, SocketOptions)


def is_tls_socket_options(o: object) -> bool:
    """Return whether *o* is a record for TLS, a server's too (``tls-socket-options?``)."""
    return isinstance(o, TLSSocketOptions)


def is_server_tls_socket_options(o: object) -> bool:
    """Return whether *o* is a record for a TLS server (``server-tls-socket-options?``)."""
    return isinstance(o, ServerTLSSocketOptions)


def require_record(
    options: object, expected: type[AnyOptions], refused: type[SocketOptions] | None, use: str
) -> AnyOptions:
    """
    Return *options* if it is an *expected* and no *refused* record.

    A TLS record must never end in plain text, nor a client's on a server.

    Raises:
        TypeError: It is another; *use* says which function takes it.
    """
    if isinstance(options, expected) and not (refused and isinstance(options, refused)):
        return options
    raise TypeError(f"options must be a {expected.__name__}, not {options!r}; {use}")


def shown_field(options: SocketOptions, name: str) -> str:
    """Return a field of *options* with its value, as it may be shown: without what is secret."""
    value = getattr(options, name)
    if name == "proxy" and value is not None:
        value = without_credentials(value)
    secret = getattr(record_fields(type(options)), name).metadata["secret"]
    return f"{name}={check.redacted(value) if secret else repr(value)}"


def require_no_proxy(options: SocketOptions, advice: str) -> None:
    """
    Refuse a record whose *proxy* would be passed by.

    Args:
        options: The record.
        advice: Who connects instead, and what does so through a proxy.

    Raises:
        ValueError: It has a *proxy*.
    """
    if options.proxy is not None:
        raise ValueError(f"{shown_field(options, 'proxy')} has no effect here: {advice}")


def require_client_flags(options: SocketOptions) -> None:
    """
    Refuse what only makes sense for a server.

    Raises:
        ValueError: ``AI_PASSIVE`` is among the flags, or *proxy_protocol* is ``"any"``.
    """
    if options.ai_flags and options.ai_flags & AI_PASSIVE:
        raise ValueError(f"ai_flags={options.ai_flags}: AI_PASSIVE is for servers")
    if options.proxy_protocol == "any":
        raise ValueError("proxy_protocol='any' is for servers: a client sends v1 or v2")


def require_reactor_mode(options: SocketOptions) -> None:
    """
    Refuse a record that asks for a blocking socket.

    Raises:
        ValueError: *non_blocking* is `False`.
    """
    if not options.non_blocking:
        raise ValueError(
            "non_blocking=False: a socket on the reactor never blocks; "
            "for calls that wait, use twisted_netsock.blocking"
        )


def require_stream(options: SocketOptions, what: str) -> None:
    """
    Refuse a record of datagrams or raw packets for *what*, which needs a stream.

    Raises:
        ValueError: *ai_socktype* is not ``SOCK_STREAM``.
    """
    if options.ai_socktype != SOCK_STREAM:
        raise ValueError(f"ai_socktype={options.ai_socktype!r}: {what} for SOCK_STREAM")
