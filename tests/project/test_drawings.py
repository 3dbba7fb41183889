"""What the build of the documentation draws and breaks, from text alone."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.support.package_sources import PACKAGE

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[2]
DESIGN = ROOT / "docs" / "explanation" / "design.md"
SVG = "{http://www.w3.org/2000/svg}"
LETTER = 6.75
"""Units that a letter of a note takes on an average, in a wide font such as DejaVu Sans."""


@pytest.fixture
def diagrams(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    yield pytest.importorskip("diagrams")
    sys.modules.pop("diagrams")


@pytest.fixture
def breaks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    yield pytest.importorskip("breaks")
    sys.modules.pop("breaks")


def words_in(drawing):
    return [text.text for text in drawing.iter(f"{SVG}text")]


def test_every_layer_of_the_table_is_drawn_the_lowest_at_the_bottom(diagrams):
    layers = diagrams.layers_of(DESIGN.read_text())
    drawing = ET.fromstring(diagrams.draw_layers(layers, "layers & more"))
    assert drawing.get("aria-label") == drawing.find(f"{SVG}title").text == "layers & more"
    names = [text.text for text in drawing.iter(f"{SVG}text") if text.get("class") == "name"]
    assert names == [layer.name for layer in reversed(layers)]
    assert names[-1] == "values"
    words = " ".join(words_in(drawing))
    assert all(word in words for layer in layers for word in layer.note.split())


def test_a_life_shows_each_stage_with_what_limits_it_and_how_it_ends(diagrams):
    stages = diagrams.stages_of(["first | a limit | AnError", "", "second | none | <nothing>"])
    drawing = ET.fromstring(diagrams.draw_life(stages, "a life"))
    assert words_in(drawing) == ["first", "a limit", "AnError", "second", "none", "<nothing>"]


def test_no_word_is_drawn_beyond_the_edge(diagrams):
    page = (ROOT / "docs" / "explanation" / "time.md").read_text()
    lines = page.partition(":alt:")[2].partition("\n")[2].partition("```")[0].splitlines()
    drawing = ET.fromstring(diagrams.draw_life(diagrams.stages_of(lines), "a life"))
    width = float(drawing.get("viewBox").split()[2])
    for text in drawing.iter(f"{SVG}text"):
        if text.get("text-anchor") == "start":
            assert float(text.get("x")) + len(text.text) * LETTER <= width, text.text


def test_no_note_of_a_layer_is_drawn_beyond_its_box(diagrams):
    drawing = ET.fromstring(diagrams.draw_layers(diagrams.layers_of(DESIGN.read_text()), "layers"))
    edge = min(float(box.get("x")) + float(box.get("width")) for box in drawing.iter(f"{SVG}rect"))
    for text in drawing.iter(f"{SVG}text"):
        assert float(text.get("x")) + len(text.text) * LETTER <= edge, text.text


def test_the_flows_of_the_design_fit_their_boxes_and_name_folders_that_are_there(diagrams):
    page = DESIGN.read_text().partition("```{flows}")[2].partition("```")[0]
    flows = diagrams.flows_of(page.splitlines())
    assert [sum(step.branch for step in flow.steps) for flow in flows] == [4, 0]
    for flow in flows:
        drawing = ET.fromstring(diagrams.draw_flow(flow))
        boxes = list(drawing.iter(f"{SVG}rect"))
        assert len(boxes) == len(flow.steps)
        edge = float(boxes[0].get("x")) + float(boxes[0].get("width"))
        for text in drawing.iter(f"{SVG}text"):
            assert float(text.get("x")) + len(text.text) * LETTER <= edge, text.text
        for step in flow.steps:
            assert all(word in " ".join(words_in(drawing)) for word in step.note.split())
            for name in step.name.split(", "):
                path = PACKAGE / name
                there = path.is_dir() or path.with_suffix(".py").is_file()
                assert there or name in {"kernel", "string"}, name
    both = diagrams.draw_flows(flows)
    assert both.count("<svg") == 2


def test_a_page_without_layers_has_none_to_draw(diagrams):
    with pytest.raises(ValueError, match="no table"):
        diagrams.layers_of("# A page\n")


def test_code_breaks_in_tables_alone(breaks):
    code = '<span class="pre">{}</span>'
    paragraph = f"<p>{code.format('a_name')}</p>"
    name = code.format("make_socketPort(host)") + code.format("_private")
    html = f"{paragraph}<table><tr><td>a_word {name}</td></tr></table>"
    assert breaks.with_breaks(html) == html.replace(
        "make_socketPort(host)", "make_<wbr>socket<wbr>Port(<wbr>host)"
    )
