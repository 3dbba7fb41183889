"""The report of `netsock probe`: text for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

from .._common.outcomes import Outcome, explain
from .._common.text import Style, printable
from .certificate import CertificateFacts
from .run import AddressReport, Report

__all__ = ["as_json", "as_text"]

SCHEMA: Final = 1
"""Raised when a key of the JSON goes or changes its meaning; new ones may come without."""

_MOST_NAMES: Final = 12
_WORDS: Final = {
    Outcome.OK: ("verified", "green"),
    Outcome.EXPIRING: ("EXPIRING", "yellow"),
    Outcome.UNVERIFIED: ("UNVERIFIED", "red"),
    Outcome.TLS: ("TLS FAILED", "red"),
    Outcome.UNREACHABLE: ("UNREACHABLE", "red"),
    Outcome.NOT_FOUND: ("NOT FOUND", "red"),
    Outcome.FAILED: ("FAILED", "red"),
}
_STAGES: Final = {"connect": "connect", "starttls": "STARTTLS", "handshake": "handshake"}


# For people


def as_text(report: Report, style: Style, *, pem: bool = False) -> str:
    """Return *report* as lines for a terminal or a file; *pem* adds the chains as sent."""
    lines = [_heading(report, style)]
    shown: dict[tuple[str, ...], str] = {}
    for each in report.addresses:
        lines += ["", *_address(each, style, shown, pem=pem)]
    lines += ["", _summary(report, style)]
    return "\n".join(lines) + "\n"


def _heading(report: Report, style: Style) -> str:
    host, service = report.request.target
    parts = [style(printable(f"{host}, port {service}"), "bold")]
    if report.request.options.sni:
        parts.append(f"as {report.request.options.sni[0]}")
    count = len(report.addresses)
    if count:
        parts.append(f"{count} address{'es' if count > 1 else ''}")
    if report.look_up_seconds is not None:
        parts.append(f"looked up in {_milliseconds(report.look_up_seconds)}")
    return ", ".join(parts)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def _address(
    each: AddressReport,
    style: Style,
    shown: dict[tuple[str, ...], str],
    *,
    pem: bool,
) -> Iterator[str]:
    word, colour = _WORDS[each.outcome]
    left = [fact.days_left for fact in each.verified if fact.days_left is not None]
    remains = f", {_count(min(left))} left" if left and each.error is None else ""
    yield f"{style(str(each.address), 'bold')}  {style(word, colour, 'bold')}{remains}"
    times = [f"{_STAGES[stage]} {_milliseconds(took)}" for stage, took in each.seconds.items()]
    if times:
        yield _line("time", ", ".join(times), style)
    if each.error is not None:
        stage = _STAGES.get(each.stage, each.stage)
        yield _line("failed", f"{stage}: {printable(explain(each.error))}", style, "red")
    if each.no_route:
        yield _line("", "this machine has no way to such addresses", style)
    for problem in each.problems:
        what = f"{printable(problem.reason)} (code {problem.code}, depth {problem.depth})"
        yield _line("refused", f"{what}: {printable(problem.subject)}", style, "red")
    if each.handshaken:
        used = [each.version, each.cipher, each.group, f"ALPN {each.alpn or 'none'}"]
        yield _line("TLS", printable(", ".join(filter(None, used))), style)
    for expiring in each.expiring:
        yield _line("expires", _expiry(expiring), style, "yellow")
    yield from _client_certificate(each, style)
    key = tuple(fact.sha256 for fact in (*each.sent, *each.verified))
    if key and key in shown:
        yield _line("chain", f"as that of {shown[key]}", style)
        return
    shown[key] = str(each.address)
    yield from _chains(each, style, pem=pem)


def _line(label: str, text: str, style: Style, colour: str | None = None) -> str:
    return f"  {style(f'{label:<12}', 'dim')}{style(text, colour) if colour else text}"


def _count(days: int) -> str:
    return f"{days} day{'s' if days != 1 else ''}"


def _expiry(fact: CertificateFacts) -> str:
    return f"{printable(fact.subject)} on {fact.not_after[:10]}"


def _client_certificate(each: AddressReport, style: Style) -> Iterator[str]:
    for number, name in enumerate(each.authorities[:_MOST_NAMES]):
        yield _line("" if number else "client auth", printable(name), style)
    more = len(each.authorities) - _MOST_NAMES
    if more > 0:
        yield _line("", f"and {more} more", style)


def _chains(each: AddressReport, style: Style, *, pem: bool) -> Iterator[str]:
    if not each.sent:
        return
    leaf = each.sent[0]
    yield _line("certificate", printable(leaf.subject), style)
    names = [printable(name) for name in leaf.names[:_MOST_NAMES]]
    more = len(leaf.names) - len(names)
    yield _line("names", ", ".join(names) + (f" and {more} more" if more else ""), style)
    yield _line("key", f"{leaf.key}; signed with {printable(leaf.signature)}", style)
    yield _line("serial", leaf.serial, style)
    yield _line("SHA-256", leaf.sha256, style)
    yield _line("pin", f"sha256//{leaf.pin_sha256}", style)
    yield from _chain("sent", each.sent, style)
    if each.verified:
        yield from _chain("verified", each.verified, style)
    if pem:
        for fact in each.sent:
            yield from fact.pem.splitlines()


def _chain(label: str, chain: list[CertificateFacts], style: Style) -> Iterator[str]:
    for number, fact in enumerate(chain):
        yield _line("" if number else label, f"{number} {printable(fact.subject)}", style)
        validity = f"{fact.not_before[:10]} to {fact.not_after[:10]}"
        left = fact.days_left
        if left is not None:
            validity += f", {_count(left)} left" if left >= 0 else f", {style('expired', 'red')}"
        yield _line("", f"    by {printable(fact.issuer)}", style)
        yield _line("", f"    {validity}", style)


def _summary(report: Report, style: Style) -> str:
    outcome = report.outcome
    word, colour = _WORDS[outcome]
    if report.error is not None:
        return style(f"{word}: {printable(explain(report.error))}", colour, "bold")
    good = sum(each.outcome == Outcome.OK for each in report.addresses)
    why = printable("; ".join(sorted(set(_reasons(report, outcome)))))
    if outcome == Outcome.UNVERIFIED:
        return style(f"{word}: this may be anybody ({why or 'nothing was verified'})", colour)
    if outcome == Outcome.OK:
        return style(f"{word}: {good} of {len(report.addresses)}", colour)
    return style(f"{word}: {why}" if why else word, colour)


def _reasons(report: Report, outcome: Outcome) -> Iterator[str]:
    """Yield why the addresses with the worst outcome have it."""
    for each in report.addresses:
        if each.outcome != outcome:
            continue
        yield from (problem.reason for problem in each.problems)
        yield from map(_expiry, each.expiring)
        if each.error is not None and not each.problems:
            yield explain(each.error)


# For programs


def as_json(report: Report, *, pem: bool = False) -> str:
    """
    Return *report* as JSON, in ASCII without control characters but the line breaks.

    *pem* adds each certificate itself.
    """
    request = report.request
    sni = request.options.sni
    found = {
        "schema": SCHEMA,
        "host": request.target.host,
        "service": request.target.service,
        "verified_name": sni[0] if sni else request.target.host,
        "starttls": request.starttls,
        "outcome": report.outcome.name.lower(),
        "exit_status": int(report.outcome),
        "look_up_seconds": report.look_up_seconds,
        "error": _error(report.error),
        "addresses": [_address_json(each, pem=pem) for each in report.addresses],
    }
    text = json.dumps(found, indent=2, ensure_ascii=True)
    # The one control character that JSON lets through.
    return text.replace("\x7f", "\\u007f") + "\n"


def _error(error: Exception | None) -> dict[str, object] | None:
    if error is None:
        return None
    return {
        "type": type(error).__name__,
        "message": explain(error),
        "alert": getattr(error, "alert", None),
    }


def _address_json(each: AddressReport, *, pem: bool) -> dict[str, object]:
    return {
        "address": each.address.host,
        "port": each.address.port,
        "outcome": each.outcome.name.lower(),
        "reached": each.reached,
        "verified": each.is_verified,
        "counts": not each.no_route,
        "stage": each.stage if each.error is not None else None,
        "error": _error(each.error),
        "seconds": {name: each.seconds.get(name) for name in _STAGES},
        "tls": {
            "version": each.version,
            "cipher": each.cipher,
            "group": each.group,
            "alpn": each.alpn,
        }
        if each.handshaken
        else None,
        "problems": [problem._asdict() for problem in each.problems],
        "client_certificate_authorities": list(each.authorities),
        "chain_sent": [_certificate(fact, pem=pem) for fact in each.sent],
        "chain_verified": [_certificate(fact, pem=pem) for fact in each.verified],
        "expiring": [fact.sha256 for fact in each.expiring],
    }


def _certificate(fact: CertificateFacts, *, pem: bool) -> dict[str, object]:
    found = fact._asdict()
    if not pem:
        del found["pem"]
    return found
