"""
Directives that draw: ``layers``, from the page's table, ``life`` and ``flows``, from their lines.

The drawings are SVG within the page, made by the build from text alone: they follow the
colours and the fonts of the page, fit a telephone, and say to those who do not see
what their ``alt`` says.
"""

import re
from collections.abc import Iterable
from html import escape
from textwrap import wrap
from typing import Any, ClassVar, NamedTuple

WIDTH = 420
"""Of a drawing, in units that are pixels where there is room."""

MARGIN = 8
LINE = 17
LETTERS = {"note": 56, "short": 28, "step": 46, "branch": 41}
"""How many letters fit into a line across the drawing, a column, a box of a flow, a branch."""

FLOW = 360
"""The width of a flow: two have room beside each other on a wide screen, one on a telephone."""


class Layer(NamedTuple):
    """A row of the table of layers: what stands below is what it may use."""

    name: str
    note: str


class Stage(NamedTuple):
    """A line of a life: a stage, what limits it, and how it ends badly."""

    name: str
    limit: str
    failure: str


class Step(NamedTuple):
    """A box of a flow: a folder and what happens there; branches all leave the last other box."""

    name: str
    note: str
    branch: bool


class Flow(NamedTuple):
    """What moves, and through which steps."""

    title: str
    steps: list[Step]


def layers_of(source: str) -> list[Layer]:
    """Return the rows of the table whose first column is *Layer*, the lowest layer first."""
    table = re.search(r"^\| Layer .*\n\|[-| :]+\n((?:\|.*\n)+)", source, re.MULTILINE)
    if table is None:
        raise ValueError("there is no table whose first column is Layer")
    rows = (row.strip("|").split("|") for row in table[1].splitlines())
    return [Layer(row[0].strip(), row[2].replace("`", "").strip()) for row in rows]


def stages_of(lines: Iterable[str]) -> list[Stage]:
    """Return the stages that *lines* tell, each as ``name | limit | failure``."""
    return [Stage(*(part.strip() for part in line.split("|"))) for line in lines if line.strip()]


def flows_of(lines: Iterable[str]) -> list[Flow]:
    """
    Return the flows that *lines* describe, one a paragraph.

    The first line is the title, the others are ``folder | what happens there``. Those that
    begin with ``>`` are branches.
    """
    flows = []
    for paragraph in "\n".join(lines).strip().split("\n\n"):
        title, *rest = paragraph.splitlines()
        steps = []
        for line in rest:
            name, _, note = line.removeprefix("> ").partition("|")
            steps.append(Step(name.strip(), note.strip(), line.startswith("> ")))
        flows.append(Flow(title, steps))
    return flows


def _lines(words: str, place: str) -> list[str]:
    """Break *words* into lines, and no word into two: names of classes are long."""
    return wrap(words, LETTERS[place], break_long_words=False, break_on_hyphens=False)


def _text(x: float, y: float, kind: str, words: str, anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def _drawing(height: float, alt: str, parts: list[str], width: int = WIDTH) -> str:
    label = escape(alt)
    head = (
        f'<svg class="drawn" xmlns="http://www.w3.org/2000/svg" role="img" '
        f'aria-label="{label}" viewBox="0 0 {width} {height}">'
    )
    return "\n".join([head, f"<title>{label}</title>", *parts, "</svg>"])


def _arrow(x: float, top: float, bottom: float) -> str:
    """Draw an arrow downwards."""
    return f'<path class="way" d="M{x} {top} V{bottom} m-4 -6 l4 6 l4 -6"/>'


def draw_layers(layers: list[Layer], alt: str) -> str:
    """Draw *layers* on each other, the highest on top."""
    parts, y = [], MARGIN
    for layer in reversed(layers):
        notes = _lines(layer.note, "note")
        height = LINE * (1 + len(notes)) + 12
        parts.append(
            f'<rect class="box" x="{MARGIN}" y="{y}" width="{WIDTH - 2 * MARGIN}" '
            f'height="{height}" rx="5"/>'
        )
        parts.append(_text(MARGIN + 12, y + LINE + 2, "name", layer.name))
        parts += [
            _text(MARGIN + 12, y + LINE * (place + 2) + 2, "note", line)
            for place, line in enumerate(notes)
        ]
        y += height + 4
    return _drawing(y + MARGIN, alt, parts)


def draw_life(stages: list[Stage], alt: str) -> str:
    """Draw *stages* one below the other, and beside each how it ends badly."""
    parts, y, middle, column = [], MARGIN, 100, 218
    for number, stage in enumerate(stages):
        limits = _lines(stage.limit, "short")
        failures = _lines(stage.failure, "short")
        height = max(LINE * (1 + len(limits)), LINE * len(failures)) + 14
        parts.append(
            f'<rect class="box" x="{MARGIN}" y="{y}" width="{2 * (middle - MARGIN)}" '
            f'height="{height}" rx="5"/>'
        )
        parts.append(_text(middle, y + LINE + 2, "name", stage.name, "middle"))
        parts += [
            _text(middle, y + LINE * (place + 2) + 2, "note", line, "middle")
            for place, line in enumerate(limits)
        ]
        if failures:
            level = y + height / 2
            parts.append(
                f'<path class="way" stroke-dasharray="3 3" d="M{2 * middle - MARGIN} {level} '
                f'H{column - 4} m-6 -4 l6 4 l-6 4"/>'
            )
            first = level - LINE * (len(failures) - 1) / 2 + 4
            parts += [
                _text(column, first + LINE * place, "note", line)
                for place, line in enumerate(failures)
            ]
        y += height
        if number < len(stages) - 1:
            parts.append(_arrow(middle, y, y + 20))
            y += 20
    return _drawing(y + MARGIN, alt, parts)


def draw_flow(flow: Flow) -> str:
    """Draw the steps of *flow* one below the other; branches hang on a line at the left."""
    indent = 32
    parts = [_text(MARGIN, MARGIN + LINE, "name", flow.title)]
    y, bottom = MARGIN + LINE + 12, 0
    for number, step in enumerate(flow.steps):
        left = MARGIN + indent * step.branch
        notes = _lines(step.note, "branch" if step.branch else "step")
        height = LINE * (1 + len(notes)) + 12
        if step.branch:
            level = y + height / 2
            parts.append(
                f'<path class="way" d="M{MARGIN + indent / 2} {bottom} V{level} '
                f'H{left} m-6 -4 l6 4 l-6 4"/>'
            )
        elif number:
            parts.append(_arrow(FLOW / 2, bottom, y))
        parts.append(
            f'<rect class="box" x="{left}" y="{y}" width="{FLOW - MARGIN - left}" '
            f'height="{height}" rx="5"/>'
        )
        parts.append(_text(left + 12, y + LINE + 2, "name", step.name))
        parts += [
            _text(left + 12, y + LINE * (place + 2) + 2, "note", line)
            for place, line in enumerate(notes)
        ]
        if not step.branch:
            bottom = y + height
        branches = number + 1 < len(flow.steps) and flow.steps[number + 1].branch
        y += height + (8 if branches else 20)
    told = "; ".join(f"{step.name}: {step.note}" for step in flow.steps)
    return _drawing(y - 20 + MARGIN, f"{flow.title}. {told}.", parts, FLOW)


def draw_flows(flows: list[Flow]) -> str:
    """Draw *flows* side by side, or one below the other where there is no room."""
    return "\n".join(['<div class="flows">', *map(draw_flow, flows), "</div>"])


def setup(app: Any) -> dict[str, Any]:
    """Add the directives to Sphinx."""
    from docutils import nodes
    from docutils.parsers.rst import directives
    from sphinx.util.docutils import SphinxDirective

    class Drawing(SphinxDirective):
        has_content = True
        option_spec: ClassVar = {"alt": directives.unchanged_required}

        def run(self) -> list[nodes.Node]:
            return [nodes.raw("", self.draw(self.options.get("alt", "")), format="html")]

        def draw(self, alt: str) -> str:
            raise NotImplementedError

    class Layers(Drawing):
        def draw(self, alt: str) -> str:
            source = self.env.doc2path(self.env.docname)
            with open(source, encoding="utf-8") as file:
                return draw_layers(layers_of(file.read()), alt)

    class Life(Drawing):
        def draw(self, alt: str) -> str:
            return draw_life(stages_of(self.content), alt)

    class Flows(Drawing):
        def draw(self, alt: str) -> str:
            return draw_flows(flows_of(self.content))

    app.add_directive("flows", Flows)
    app.add_directive("layers", Layers)
    app.add_directive("life", Life)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
