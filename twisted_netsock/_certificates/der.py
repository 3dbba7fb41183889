"""
Values of DER (X.690), as far as certificates are made of them.

`cryptography` parses every extension of a certificate or none, and keys only of kinds that it
knows. What is wanted beside those that it cannot parse is read here, as it stands.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Final, NamedTuple

from cryptography import x509

from .._io.native import new_lock

__all__ = [
    "SEQUENCE",
    "Element",
    "content",
    "elements",
    "extension",
    "issuer_and_subject",
    "parse_certificate",
    "without_warnings",
]

SEQUENCE: Final = 0x30
_OCTETS: Final = 0x04
_EXTENSIONS: Final = 0xA3
"""The tag of a certificate's extensions (RFC 5280, section 4.1)."""
_VERSION: Final = 0xA0
"""The tag of a certificate's version, which those of the first version have not."""
_LONG_TAG: Final = 0x1F
"""These bits of a tag say that it goes on in the next byte (section 8.1.2.4)."""

_filters = new_lock()
"""Two threads that change the filters of warnings at once could leave them changed."""
# A child that another thread forks must not find it held by nobody.
os.register_at_fork(
    before=_filters.acquire, after_in_parent=_filters.release, after_in_child=_filters.release
)


@contextmanager
def without_warnings() -> Iterator[None]:
    """
    Ignore warnings meanwhile, so that the filters of the program decide nothing here.

    `cryptography` warns of what is odd about a certificate, a serial number of 0 for example,
    which several roots of the platform have; where warnings are errors, it would be refused.
    """
    with _filters, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def parse_certificate(encoded: bytes) -> x509.Certificate:
    """
    Return the certificate that is *encoded* in DER, and warn of nothing.

    Raises:
        ValueError: It cannot be parsed.
        cryptography.x509.InvalidVersion: Its version is none that there is.
    """
    with without_warnings():
        return x509.load_der_x509_certificate(encoded)


class Element(NamedTuple):
    """A value of DER: its tag, its content, and the whole of it."""

    tag: int
    content: bytes
    whole: bytes


def elements(data: bytes) -> Iterator[Element]:
    """Yield the values in *data*, one behind the other (section 8.1)."""
    at = 0
    while at < len(data):
        head = data[at : at + 2]
        if len(head) < 2 or head[0] & _LONG_TAG == _LONG_TAG:  # noqa: PLR2004 - tag and length
            raise ValueError("this is no DER that certificates are made of")
        start, length = at + 2, head[1]
        if length & 0x80:
            start += length & 0x7F
            length = int.from_bytes(data[at + 2 : start], "big")
        if start + length > len(data):
            raise ValueError("a value of the certificate is cut short")
        yield Element(head[0], data[start : start + length], data[at : start + length])
        at = start + length


def content(data: bytes, tag: int) -> bytes:
    """Return the content of the first value in *data*, which must have the *tag*."""
    for element in elements(data):
        if element.tag == tag:
            return element.content
        break
    raise ValueError(f"the certificate has no value of type {tag:#04x} where one belongs")


def issuer_and_subject(certificate: bytes) -> tuple[bytes, bytes]:
    """Return the names of a certificate in DER, as they stand in it (RFC 5280, section 4.1)."""
    signed = elements(content(content(certificate, SEQUENCE), SEQUENCE))
    if next(signed).tag == _VERSION:
        # The serial number; one of the first version begins with that.
        next(signed)
    _algorithm, issuer, _validity, subject = islice(signed, 4)
    return issuer.whole, subject.whole


def extension(certificate: bytes, identifier: bytes) -> bytes | None:
    """
    Return the value of an extension of a certificate in DER, or `None` if it has none.

    Args:
        certificate: The whole of it.
        identifier: The extension's object identifier, encoded.

    Raises:
        ValueError: It cannot be parsed, or there are two.
    """
    signed = content(content(certificate, SEQUENCE), SEQUENCE)
    found: bytes | None = None
    for part in elements(signed):
        if part.tag != _EXTENSIONS:
            continue
        for each in elements(content(part.content, SEQUENCE)):
            name, *_, value = elements(each.content)
            if name.whole != identifier:
                continue
            if found is not None or value.tag != _OCTETS:
                raise ValueError("an extension of the certificate is malformed, or there twice")
            found = value.content
    return found
