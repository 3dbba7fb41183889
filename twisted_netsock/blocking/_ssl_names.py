"""What TLS connections tell by the names of the standard library's `ssl`."""

from __future__ import annotations

import contextlib
import ssl
from datetime import datetime
from typing import TYPE_CHECKING, Final, NoReturn

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from .._certificates.der import without_warnings
from .._io.poller import WANT_READ, Want
from .._tls.info import TLSInfo
from ..errors import TLSError

if TYPE_CHECKING:
    from .._tls.descriptor import TLSDescriptor

__all__ = ["StandardNames", "end_of", "would_block"]


def would_block(want: Want) -> OSError:
    """Return the error of a call that does not wait for *want*."""
    # No subclass that is a BlockingIOError too: redis-py looks for these very classes.
    if want is WANT_READ:
        return ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "nothing can be read yet")
    return ssl.SSLWantWriteError(ssl.SSL_ERROR_WANT_WRITE, "nothing can be sent yet")


def end_of(descriptor: TLSDescriptor) -> bytes | Want:
    """
    Wait for the peer's close_notify, which is ``b""``.

    Raises:
        TLSError: Data comes before it, which stays to be read.
        TLSTruncatedError: It does not come.
    """
    want = descriptor.try_readable()
    if want is not None:
        return want
    if descriptor.connection.pending():
        raise TLSError(reason="unwrap: the peer has sent data that is not read yet")
    return descriptor.try_recv(1)


class StandardNames(TLSInfo):
    """The methods of `ssl.SSLSocket` and `ssl.SSLObject` that tell what was negotiated."""

    def pending(self) -> int:
        """Return how many bytes can be read without the kernel."""
        return self._ask(lambda tls: tls.connection.pending(), 0)

    def getpeercert(self, binary_form: bool = False) -> dict[str, object] | bytes | None:
        """
        Return the peer's certificate: DER, or a dictionary, empty if nothing was verified.

        Raises:
            ValueError: The handshake is not done.
        """
        if self.tls_version is None:
            raise ValueError("handshake not done yet: there is no certificate")
        certificate = self.peer_certificate
        if certificate is None:
            return None
        if binary_form:
            return certificate.public_bytes(Encoding.DER)
        with without_warnings():
            needed = self._ask(lambda tls: tls.connection.state.verification.needed, False)
            return _as_dictionary(certificate) if needed else {}

    def get_verified_chain(self) -> list[bytes]:
        """Return the certificates from the peer's own to a trusted one, DER."""
        return [each.public_bytes(Encoding.DER) for each in self.verified_chain]

    def get_unverified_chain(self) -> list[bytes]:
        """Return the certificates that the peer sent, DER."""
        return [each.public_bytes(Encoding.DER) for each in self.peer_chain]

    def version(self) -> str | None:
        """Return the version of TLS; `None` before the handshake."""
        return self.tls_version

    def cipher(self) -> tuple[str, str, int] | None:  # type: ignore[override]
        """Return the name of the cipher suite, the version of TLS that it is of, and its bits."""

        def ask(tls: TLSDescriptor) -> tuple[str, str, int] | None:
            connection = tls.connection
            name = connection.get_cipher_name()
            if name is None:
                return None
            return name, connection.get_cipher_version() or "", connection.get_cipher_bits() or 0

        return self._ask(ask, None)

    def shared_ciphers(self) -> None:
        """Return `None`: pyOpenSSL does not tell."""

    def compression(self) -> None:
        """Return `None`: nothing is compressed."""

    def selected_alpn_protocol(self) -> str | None:
        """Return what ALPN has selected."""
        return self.selected_alpn

    def selected_npn_protocol(self) -> None:
        """Return `None`: NPN is no more."""

    def get_channel_binding(self, cb_type: str = "tls-unique") -> bytes | None:
        """
        Return the channel binding (RFC 5929), with TLS 1.2; `None` with TLS 1.3, which has none.

        Raises:
            ValueError: *cb_type* is not ``"tls-unique"``.
        """
        if cb_type != "tls-unique":
            raise ValueError(f"cb_type={cb_type!r} must be 'tls-unique'")
        if self.tls_version != "TLSv1.2":
            return None

        def ask(tls: TLSDescriptor) -> bytes | None:
            # The first Finished of the handshake.
            if tls.is_client == tls.connection.session_reused():
                return tls.connection.get_peer_finished()
            return tls.connection.get_finished()

        return self._ask(ask, None)

    @property
    def session(self) -> None:
        """Always `None`: clients keep and resume sessions by themselves."""

    @property
    def session_reused(self) -> bool:
        """Whether a session was resumed."""
        return self.resumed

    def verify_client_post_handshake(self) -> NoReturn:
        """Refuse: clients show their certificate in the handshake, or not at all."""
        raise TLSError(reason="there is no authentication after the handshake")


_MONTHS: Final = "JanFebMarAprMayJunJulAugSepOctNovDec"
_ALTERNATIVES: Final[tuple[tuple[type[x509.GeneralName], str], ...]] = (
    (x509.DNSName, "DNS"),
    (x509.IPAddress, "IP Address"),
    (x509.UniformResourceIdentifier, "URI"),
    (x509.RFC822Name, "email"),
)


def _as_dictionary(certificate: x509.Certificate) -> dict[str, object]:
    """Return what `ssl.SSLSocket.getpeercert` makes of a certificate."""
    serial = f"{certificate.serial_number:X}"
    made: dict[str, object] = {
        "subject": _names(certificate.subject),
        "issuer": _names(certificate.issuer),
        "version": certificate.version.value + 1,
        "serialNumber": f"0{serial}" if len(serial) % 2 else serial,
        "notBefore": _time(certificate.not_valid_before_utc),
        "notAfter": _time(certificate.not_valid_after_utc),
    }
    with contextlib.suppress(x509.ExtensionNotFound, ValueError):
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        made["subjectAltName"] = tuple(
            (label, str(name.value))
            for name in found.value
            for kind, label in _ALTERNATIVES
            if isinstance(name, kind)
        )
    return made


def _names(name: x509.Name) -> tuple[tuple[tuple[str, str], ...], ...]:
    return tuple(
        tuple((each.oid._name, str(each.value)) for each in relative) for relative in name.rdns
    )


def _time(moment: datetime) -> str:
    # strftime(3) would write the month in the language of the locale.
    month = _MONTHS[3 * moment.month - 3 : 3 * moment.month]
    return f"{month} {moment.day:2} {moment:%H:%M:%S %Y} GMT"
