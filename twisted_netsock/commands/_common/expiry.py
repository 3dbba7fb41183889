"""What the relay says of certificates that have expired, or soon will."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from ..._certificates.expiry import Validity
from ..._endpoints.client import ClientEndpoint
from ..._endpoints.server import ServerEndpoint

__all__ = ["expiry_problems", "expiry_values"]


def expiry_problems(
    endpoint: ClientEndpoint | ServerEndpoint, seconds: float
) -> Iterator[tuple[bool, str]]:
    """
    Yield what is wrong with the certificates of *endpoint*.

    Args:
        endpoint: One of ours.
        seconds: For how long they are to be valid still.

    Returns:
        Whether it is wrong now already, and the text: the option, the file and the date.
    """
    now = datetime.now(UTC)
    for each in endpoint.validity():
        begins, ends = f"{each.not_before:%Y-%m-%d}", f"{each.not_after:%Y-%m-%d}"
        what = f"{each.field}: {each.source}"
        left = (each.not_after - now).total_seconds()
        if left <= 0:
            yield True, f"{what} expired on {ends}"
        elif each.not_before > now:
            yield True, f"{what} is not valid before {begins}"
        elif left < seconds and each.field != "revocation_lists":
            # Of lists that is nothing to warn of: most are made anew each day or week.
            yield False, f"{what} expires on {ends}, in {_days(each, now)} days"


def _days(validity: Validity, now: datetime) -> int:
    return (validity.not_after - now).days


def expiry_values(
    endpoints: Iterable[ClientEndpoint | ServerEndpoint],
) -> list[dict[str, str | int]]:
    """Return the validity of what *endpoints* use, as values of JSON."""
    now = datetime.now(UTC)
    return [
        {
            "endpoint": endpoint.place,
            "field": each.field,
            "source": each.source,
            "not_before": each.not_before.isoformat(),
            "not_after": each.not_after.isoformat(),
            "days_left": _days(each, now),
        }
        for endpoint in endpoints
        for each in endpoint.validity()
    ]
