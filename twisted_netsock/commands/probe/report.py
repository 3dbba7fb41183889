"""The report of `netsock probe`: text for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Final

from .._common.outcomes import Outcome, explain
from .._common.text import Style, printable
from .certificate import CertificateFacts
from .run import AddressReport, Report, worst

__all__ = ["as_json", "as_table", "as_text"]

SCHEMA: Final = 1
"""Raised when a key of the JSON goes or changes its meaning; new ones may come without."""

_MOST_NAMES: Final = 12
_FEW_NAMES: Final = 3
_WIDTH: Final = 80
_LABEL: Final = 14
_MORE: Final = len(" and 9999 more")
_WORDS: Final = {
    Outcome.OK: ("verified", "green"),
    Outcome.EXPIRING: ("EXPIRING", "yellow"),
    Outcome.CLASSICAL: ("CLASSICAL", "yellow"),
    Outcome.UNVERIFIED: ("UNVERIFIED", "red"),
    Outcome.TLS: ("TLS FAILED", "red"),
    Outcome.UNREACHABLE: ("UNREACHABLE", "red"),
    Outcome.NOT_FOUND: ("NOT FOUND", "red"),
    Outcome.FAILED: ("FAILED", "red"),
}
_STAGES: Final = {"connect": "connect", "starttls": "STARTTLS", "handshake": "handshake"}


# For people


def as_text(report: Report, style: Style, *, verbose: bool = False, pem: bool = False) -> str:
    """
    Return *report* as lines for a terminal or a file, the verdict last.

    Without *verbose* that of an address fits a terminal of 80 columns and 24 lines. *pem* adds
    the chains as sent.
    """
    lines = [_heading(report, style)]
    shown: dict[tuple[object, ...], str] = {}
    for each in report.addresses:
        chain = tuple(fact.sha256 for fact in (*each.sent, *each.verified))
        key = *_result(each), chain
        if key in shown and not verbose:
            lines.append(f"{_verdict(each, style)}, as {shown[key]}")
            continue
        lines += ["", *_address(each, style, shown.get(chain), verbose=verbose, pem=pem)]
        for described in (key, chain):
            shown.setdefault(described, str(each.address))
    lines += ["", _summary(report, style)]
    return "\n".join(lines) + "\n"


def _result(each: AddressReport) -> tuple[object, ...]:
    """Return what two addresses have in common, beside their chain, that need one description."""
    used = each.version, each.cipher, each.group, each.alpn
    return each.outcome, str(each.error), str(each.plain), tuple(each.problems), used


def as_table(reports: Sequence[Report], style: Style) -> str:
    """Return a line for each of several hosts, and a count."""
    rows = [("host", "verdict", "days", "version", "group", "what is wrong"), *map(_row, reports)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = []
    for number, row in enumerate(rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        colour = "bold" if not number else _WORDS[reports[number - 1].outcome][1]
        cells[1] = style(cells[1], colour)
        lines.append("  ".join((*cells, row[-1])).rstrip())
    good = sum(each.outcome == Outcome.OK for each in reports)
    word, colour = _WORDS[worst(each.outcome for each in reports)]
    lines += ["", style(f"{word}: {good} of {len(reports)} hosts are verified", colour)]
    return "\n".join(lines) + "\n"


def _row(report: Report) -> tuple[str, ...]:
    worst_first = sorted(report.addresses, key=lambda each: each.outcome != report.outcome)
    each = worst_first[0] if worst_first else None
    left = [found for address in report.addresses if (found := _days_left(address)) is not None]
    return (
        printable(str(report.request.target)),
        _WORDS[report.outcome][0],
        str(min(left)) if left else "",
        (each and each.version) or "",
        printable((each and each.group) or ""),
        printable(_why(report)),
    )


def _days_left(each: AddressReport) -> int | None:
    left = [fact.days_left for fact in each.verified if fact.days_left is not None]
    return min(left) if left and each.error is None else None


def _heading(report: Report, style: Style) -> str:
    host, service = report.request.target
    parts = [style(printable(f"{host}, port {service}"), "bold")]
    if report.request.options.sni:
        parts.append(f"as {report.request.options.sni[0]}")
    count = len(report.addresses)
    if count and report.proxy is None:
        parts.append(f"{count} address{'es' if count > 1 else ''}")
    if report.proxy is not None:
        parts.append(f"through {report.proxy}")
    if report.look_up_seconds is not None:
        parts.append(f"looked up in {_milliseconds(report.look_up_seconds)}")
    return ", ".join(parts)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def _verdict(each: AddressReport, style: Style) -> str:
    word, colour = _WORDS[each.outcome]
    left = _days_left(each)
    remains = "" if left is None else f", {_count(left)} left"
    return f"{style(str(each.address), 'bold')}  {style(word, colour, 'bold')}{remains}"


def _address(
    each: AddressReport, style: Style, like: str | None, *, verbose: bool, pem: bool
) -> Iterator[str]:
    """Describe an address, whose chain was described for that of *like* already."""
    yield _verdict(each, style)
    times = [f"{_STAGES[stage]} {_milliseconds(took)}" for stage, took in each.seconds.items()]
    if times:
        yield _line("time", ", ".join(times), style)
    if each.error is not None:
        stage = _STAGES.get(each.stage, each.stage)
        why = str(each.plain or explain(each.error))
        yield _line("failed", f"{stage}: {printable(why)}", style, "red")
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
    yield from _client_certificate(each, style, _MOST_NAMES if verbose else _FEW_NAMES)
    if like is not None and each.sent:
        yield _line("chain", f"as that of {like}", style)
        return
    yield from _certificates(each, style, verbose=verbose)
    if pem:
        for fact in each.sent:
            yield from fact.pem.splitlines()


def _line(label: str, text: str, style: Style, colour: str | None = None) -> str:
    return f"  {style(f'{label:<12}', 'dim')}{style(text, colour) if colour else text}"


def _count(days: int) -> str:
    return f"{days} day{'s' if days != 1 else ''}"


def _expiry(fact: CertificateFacts) -> str:
    return f"{printable(fact.subject)} on {_minute(fact.not_after)}"


def _minute(stamp: str) -> str:
    """Return a time of a certificate's without its seconds."""
    return f"{stamp[:10]} {stamp[11:16]} UTC" if stamp.endswith("Z") else stamp


def _client_certificate(each: AddressReport, style: Style, most: int) -> Iterator[str]:
    for number, name in enumerate(each.authorities[:most]):
        yield _line("" if number else "client auth", printable(name), style)
    more = len(each.authorities) - most
    if more > 0:
        yield _line("", f"and {more} more", style)


def _certificates(each: AddressReport, style: Style, *, verbose: bool) -> Iterator[str]:
    if not each.sent:
        return
    leaf = each.sent[0]
    clip = printable if verbose else _clip
    yield _line("certificate", clip(leaf.subject), style)
    yield _line("names", _names(leaf, verbose=verbose), style)
    if not verbose:
        yield _line("issuer", clip(leaf.issuer), style)
        yield _line("valid", _validity(leaf, style), style)
    yield _line("key", clip(f"{leaf.key}; signed with {leaf.signature}"), style)
    yield _line("SHA-256", leaf.sha256, style)
    yield _line("pin", f"sha256//{leaf.pin_sha256}", style)
    if not verbose:
        return
    yield _line("serial", leaf.serial, style)
    # Each once: those that were sent, and those that were found here to verify them.
    sent = {fact.sha256 for fact in each.sent}
    path = {fact.sha256 for fact in each.verified}
    found = [fact for fact in each.verified if fact.sha256 not in sent]
    for number, fact in enumerate([*each.sent, *found]):
        where = ""
        if fact.sha256 not in sent:
            where = " (not sent)"
        elif path and fact.sha256 not in path:
            where = " (not needed)"
        label = "" if number else "chain"
        yield _line(label, f"{number} {printable(fact.subject)}{where}", style)
        yield _line("", f"    by {printable(fact.issuer)}", style)
        yield _line("", f"    {_validity(fact, style)}", style)


def _clip(text: str) -> str:
    """Return *text* so that it fits a line behind its label."""
    return printable(text, _WIDTH - _LABEL)


def _names(leaf: CertificateFacts, *, verbose: bool) -> str:
    """Return the names of a certificate, as many as fit a line."""
    names = [printable(name) for name in leaf.names[:_MOST_NAMES]]
    while not verbose and len(names) > 1 and len(", ".join(names)) > _WIDTH - _LABEL - _MORE:
        names.pop()
    more = len(leaf.names) - len(names)
    text = ", ".join(names)
    return (text if verbose else _clip(text)) + (f" and {more} more" if more else "")


def _validity(fact: CertificateFacts, style: Style) -> str:
    validity = f"{_minute(fact.not_before)} to {_minute(fact.not_after)}"
    left = fact.days_left
    if left is None:
        return validity
    return (
        f"{validity}, {_count(left)} left"
        if left >= 0
        else f"{validity}, {style('expired', 'red')}"
    )


def _summary(report: Report, style: Style) -> str:
    outcome = report.outcome
    word, colour = _WORDS[outcome]
    if report.error is not None:
        return style(f"{word}: {printable(explain(report.error))}", colour, "bold")
    good = sum(each.outcome == Outcome.OK for each in report.addresses)
    why = printable(_why(report))
    if outcome == Outcome.UNVERIFIED:
        return style(f"{word}: this may be anybody ({why or 'nothing was verified'})", colour)
    if outcome == Outcome.OK:
        return style(f"{word}: {good} of {len(report.addresses)}", colour)
    return style(f"{word}: {why}" if why else word, colour)


def _why(report: Report) -> str:
    """Return why the addresses with the worst outcome have it."""
    if report.error is not None:
        return explain(report.error)
    return "; ".join(sorted(set(_reasons(report))))


def _reasons(report: Report) -> Iterator[str]:
    for each in report.addresses:
        if each.outcome != report.outcome or each.outcome == Outcome.OK:
            continue
        yield from (problem.reason for problem in each.problems)
        yield from map(_expiry, each.expiring)
        if each.outcome == Outcome.CLASSICAL:
            yield f"{each.group or 'the key exchange'} is not post-quantum"
        if each.error is not None and not each.problems:
            yield str(each.plain or explain(each.error))


# For programs


def as_json(report: Report, *, pem: bool = False, indent: int | None = 2) -> str:
    """
    Return *report* as JSON, in ASCII without control characters but the line breaks.

    *pem* adds each certificate itself; without *indent* it is one line.
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
    if report.proxy is not None:
        found["proxy"] = str(report.proxy)
    text = json.dumps(found, indent=indent, ensure_ascii=True)
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
        "plain": each.plain.name if each.plain else None,
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
