"""What option records take: the types of their values, and of their fields as keywords."""

from __future__ import annotations

import os
import ssl as _ssl
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, TypedDict

from ._public import public_in

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

__all__ = [
    "CertificateSource",
    "CertificateVerifier",
    "KeySource",
    "LocalAddress",
    "Path",
    "ServerTLSSocketOptionFields",
    "SocketOption",
    "SocketOptionFields",
    "TLSSocketOptionFields",
    "Verifier",
    "VerifyResult",
    "Version",
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

KeySource: TypeAlias = "Path | bytes | bytearray | PrivateKeyTypes"
"""A path, or content (PEM, DER or PKCS#12), or a private key."""

SocketOption: TypeAlias = "tuple[int, int, int | bytes]"
"""Level, name and value, as `socket.socket.setsockopt` takes them."""

LocalAddress: TypeAlias = "tuple[str, int]"
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


class TLSSocketOptionFields(SocketOptionFields, total=False):
    """What `TLSSocketOptions` takes, for type checkers."""

    handshake: bool
    private_key: KeySource | None
    private_key_password: str | bytes | None
    certificates: CertificateSource | Iterable[CertificateSource] | None
    certificate_verifier: Verifier
    trusted_certificates: CertificateSource | Iterable[CertificateSource] | None
    sni: str | Iterable[str] | None
    alpn: str | Iterable[str] | None
    minimum_version: Version
    maximum_version: Version | None
    handshake_timeout: timedelta | None
    close_timeout: timedelta
    keylog_file: Path | None


class ServerTLSSocketOptionFields(TLSSocketOptionFields, total=False):
    """What `ServerTLSSocketOptions` takes, for type checkers."""

    client_certificate_required: bool
