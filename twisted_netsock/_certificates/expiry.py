"""From when to when the certificates of an endpoint are valid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import attrs
from cryptography import x509

from ..options import TLSSocketOptions
from .certificates import Identity, next_update

__all__ = ["Validity", "validity_of"]


@attrs.frozen
class Validity:
    """
    Of what an option names, and a context in use was made of.

    Attributes:
        field: ``"certificates"``, ``"trusted_certificates"`` or ``"revocation_lists"``.
        source: The files, or how many there are where it came as bytes or objects.
        not_before: When all of a chain begins to be valid, or the first that is trusted.
        not_after: When the first of a chain expires; of what is trusted, the first of those
            that have not expired yet, or the last; when the lists of the first issuer have.
    """

    field: str
    source: str
    not_before: datetime
    not_after: datetime


def _source(given: Sequence[object]) -> str:
    files = [each for each in given if isinstance(each, str)]
    return ", ".join(files) if files else f"{len(given)} given as bytes or objects"


def validity_of(
    options: TLSSocketOptions,
    identity: Identity | None,
    trusted: Sequence[x509.Certificate],
    lists: Sequence[x509.CertificateRevocationList],
) -> Iterator[Validity]:
    """
    Yield the validity of what *options* name.

    Args:
        options: As they are.
        identity: What `certificates` was read as.
        trusted: What `trusted_certificates` was.
        lists: What `revocation_lists` was.
    """
    if identity is not None and options.certificates is not None:
        chain = (identity.certificate, *identity.intermediates)
        yield Validity(
            "certificates",
            _source(options.certificates),
            max(each.not_valid_before_utc for each in chain),
            min(each.not_valid_after_utc for each in chain),
        )
    if trusted and options.trusted_certificates is not None:
        now = datetime.now(UTC)
        ends = sorted(each.not_valid_after_utc for each in trusted)
        yield Validity(
            "trusted_certificates",
            _source(options.trusted_certificates),
            min(each.not_valid_before_utc for each in trusted),
            next((end for end in ends if end > now), ends[-1]),
        )
    due = next_update(lists)
    if options.revocation_lists is not None and due != float("inf"):
        yield Validity(
            "revocation_lists",
            _source(options.revocation_lists),
            max(each.last_update_utc for each in lists),
            datetime.fromtimestamp(due, UTC),
        )
