"""A page of HTML for people: tables and bars, without scripts, in light and dark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from string import Template
from typing import Final

__all__ = ["bars", "page", "table"]

_PAGE: Final = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="refresh" content="$seconds">
<title>$title</title>
<style>
:root { color-scheme: light dark; --line: #8884; --bar: #48a; --good: #284; --bad: #c33; }
@media (prefers-color-scheme: dark) { :root { --bar: #7bd; --good: #6c8; --bad: #f77; } }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 1.5rem 0 .3rem; }
div.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .2rem 1rem .2rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: anywhere; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.good { color: var(--good); } .bad { color: var(--bad); font-weight: bold; }
svg { width: 100%; height: 4rem; fill: var(--bar); border-bottom: 1px solid var(--line); }
footer { margin-top: 2rem; font-size: .9rem; }
</style>
</head>
<body>
<h1>$title</h1>
$body
<footer>$footer</footer>
</body>
</html>
""")


def page(title: str, sections: Iterable[tuple[str, str]], footer: str, *, seconds: int) -> bytes:
    """
    Return a page.

    Args:
        title: Text.
        sections: A heading, text, and HTML below it.
        footer: HTML.
        seconds: After which browsers get it again.
    """
    body = "\n".join(f"<h2>{escape(heading)}</h2>\n{html}" for heading, html in sections)
    text = _PAGE.substitute(title=escape(title), body=body, footer=footer, seconds=seconds)
    return text.encode()


def table(headings: Sequence[str], rows: Iterable[Sequence[str | int | tuple[str, str]]]) -> str:
    """Return a table of text and numbers; a pair is a class and text."""
    head = "".join(f"<th>{escape(each)}</th>" for each in headings)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    if not body:
        return "<p>none</p>"
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _cell(value: str | int | tuple[str, str]) -> str:
    if isinstance(value, int):
        return f'<td class="number">{value:,}</td>'
    kind, text = value if isinstance(value, tuple) else ("", value)
    return f'<td class="{kind}">{escape(text)}</td>' if kind else f"<td>{escape(text)}</td>"


def bars(values: Sequence[int], what: str) -> str:
    """Return a bar for each of *values*, which *what* names."""
    most = max(values, default=0) or 1
    drawn = "".join(
        f'<rect x="{index}" y="{100 - 100 * value / most:.1f}" width=".8" '
        f'height="{100 * value / most:.1f}"><title>{value:,}</title></rect>'
        for index, value in enumerate(values)
    )
    return (
        f'<svg viewBox="0 0 {max(1, len(values))} 100" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(what)}">{drawn}</svg>'
    )
