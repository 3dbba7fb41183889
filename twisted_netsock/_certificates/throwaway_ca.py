"""
A throw-away certificate authority in memory, for demonstrations and tests.

Nothing is written to disk, and everything lives for some days only.
"""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from .._hostnames import is_ip_address, reference_identity
from .._public import public_in
from ..options import ServerTLSSocketOptions, TLSSocketOptions

__all__ = ["CertificateAuthority", "IssuedCertificate"]

_LIFETIME = timedelta(days=30)
"""Enough for a demonstration; a certificate that is forgotten somewhere expires."""
_NOT_A_SAN = b"\x30\x05\x82\x03\xff\xfe\xfd"
"""A subjectAltName whose DNS name is no ASCII, which RFC 5280 (4.2.1.6) demands."""


@public_in("twisted_netsock.testing")
class IssuedCertificate(NamedTuple):
    """
    A certificate with its key.

    Attributes:
        certificate: The certificate.
        private_key: Its key.
    """

    certificate: x509.Certificate
    private_key: ec.EllipticCurvePrivateKey

    @property
    def certificate_pem(self) -> bytes:
        """The certificate as PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def private_key_pem(self) -> bytes:
        """The key as PEM (PKCS#8), not encrypted."""
        return self.private_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    @property
    def pem(self) -> bytes:
        """Certificate and key in one PEM, as `certificates` of a record takes them."""
        return self.certificate_pem + self.private_key_pem

    def __repr__(self) -> str:
        return f"<IssuedCertificate {self.certificate.subject.rfc4514_string()}>"


def _general_name(name: str) -> x509.GeneralName:
    if is_ip_address(name):
        return x509.IPAddress(ipaddress.ip_address(name))
    if "@" in name:
        return x509.RFC822Name(name)
    if "://" in name:
        return x509.UniformResourceIdentifier(name)
    if name.startswith("*."):
        return x509.DNSName("*." + reference_identity(name[2:]))
    return x509.DNSName(reference_identity(name))


@public_in("twisted_netsock.testing")
class CertificateAuthority:
    """An authority that exists in memory only."""

    def __init__(self, name: str = "throw-away authority") -> None:
        """Make a new authority called *name*."""
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + _LIFETIME)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )

    @property
    def certificate_pem(self) -> bytes:
        """The authority's own certificate as PEM, for `trusted_certificates`."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self,
        *names: str,
        common_name: str | None = None,
        organizational_unit: str | None = None,
        expired: bool = False,
        not_yet_valid: bool = False,
        self_signed: bool = False,
        malformed_names: bool = False,
    ) -> IssuedCertificate:
        """
        Issue a certificate for servers and clients, faulty if asked.

        Args:
            names: Host names (``*.`` too), addresses, e-mail addresses or URIs;
                none gives a certificate without subjectAltName.
            common_name: The subject's; the first name if `None`.
            organizational_unit: The subject's.
            expired: Its time ended yesterday.
            not_yet_valid: Its time begins tomorrow.
            self_signed: Signed with its own key instead of the authority's.
            malformed_names: The subjectAltName cannot be parsed.

        Returns:
            The certificate with its key.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        begin, end = _validity(expired=expired, not_yet_valid=not_yet_valid)
        subject = _subject(common_name or (names[0] if names else "nobody"), organizational_unit)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if self_signed else self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage(
                    [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
                ),
                critical=False,
            )
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
        )
        signer = key if self_signed else self._key
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()),
            critical=False,
        )
        san = _alternative_names(names, malformed=malformed_names)
        if san is not None:
            builder = builder.add_extension(san, critical=False)
        return IssuedCertificate(builder.sign(signer, hashes.SHA256()), key)

    def server_options(self, *names: str, **fields: Any) -> ServerTLSSocketOptions:
        """Return a server's record with a new certificate for *names*, and with *fields*."""
        issued = self.issue(*(names or ("localhost", "127.0.0.1", "::1")))
        return ServerTLSSocketOptions(certificates=issued.pem, **fields)

    def client_options(self, **fields: Any) -> TLSSocketOptions:
        """Return a client's record that trusts this authority alone, with *fields*."""
        return TLSSocketOptions(trusted_certificates=self.certificate_pem, **fields)


def _alternative_names(names: tuple[str, ...], *, malformed: bool) -> x509.ExtensionType | None:
    """Return the subjectAltName, or `None` where there are no names."""
    if malformed:
        return x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, _NOT_A_SAN)
    if names:
        return x509.SubjectAlternativeName([_general_name(name) for name in names])
    return None


def _validity(*, expired: bool, not_yet_valid: bool) -> tuple[datetime, datetime]:
    """Return when a certificate begins and ends to hold."""
    now = datetime.now(UTC)
    if expired:
        return now - timedelta(days=3), now - timedelta(days=1)
    return now + timedelta(days=1 if not_yet_valid else -1), now + _LIFETIME


def _subject(common_name: str, unit: str | None) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])]
    if unit is not None:
        attributes.append(x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit))
    return x509.Name(attributes)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
