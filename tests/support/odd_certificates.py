"""Certificates that no builder would make, byte by byte."""

from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID

KEY = ec.generate_private_key(ec.SECP256R1())


def encoded_certificate(*extensions: x509.ExtensionType) -> bytes:
    """Return a certificate for nobody, in DER, with *extensions*."""
    nobody = x509.Name([])
    builder = (
        x509.CertificateBuilder(nobody, nobody, KEY.public_key(), 1)
        .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2050, 1, 1, tzinfo=UTC))
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(KEY, SHA256()).public_bytes(Encoding.DER)


def named(*entries: bytes) -> bytes:
    """Return a certificate whose subjectAltName has *entries*, encoded, whatever they are."""
    names = b"".join(entries)
    size = len(names)
    head = bytes([0x30, size]) if size < 128 else b"\x30\x82" + size.to_bytes(2, "big")
    identifier = ExtensionOID.SUBJECT_ALTERNATIVE_NAME
    return encoded_certificate(x509.UnrecognizedExtension(identifier, head + names))
