import re

from reports import figures
from reports.inline_svg import Strip, inline
from reports.record.histograms import Histogram
from tests.support.markup import Tags

SCORES = Histogram(
    edges=[0.0, 1.0, 2.0, 4.0], counts={"captions": [9, 3, 1], "control": [5, 1, 0], "confirmed": [0, 0, 1]}, cut=1.5
)


def test_an_inline_figure_has_no_style_and_ids_of_its_own() -> None:
    drawn = {name: inline(figures.histogram("scores", SCORES), name, "Scores & more") for name in ("one", "two")}
    ids = {name: set(re.findall(r' id="([^"]+)"', svg)) for name, svg in drawn.items()}
    assert ids["one"]
    assert not ids["one"] & ids["two"]
    for name, svg in drawn.items():
        assert "style" not in svg
        assert set(re.findall(r'(?:href="|url\()#([\w-]+)', svg)) == ids[name]
        [attributes] = [attributes for tag, attributes in Tags(svg).tags if tag == "svg"]
        assert attributes["aria-label"] == "Scores & more"


def test_its_colours_follow_the_page() -> None:
    svg = inline(figures.histogram("scores", SCORES), "scores")
    assert "currentColor" in svg
    assert "var(--data)" in svg
    assert figures.INK not in svg


def test_a_strip_marks_a_value_where_its_axis_has_it() -> None:
    strip = Strip("scores", SCORES)
    at = [float(re.findall(r'x1="([\d.]+)"', strip.marked(value, "here"))[0]) for value in (0.0, 2.0, 4.0)]
    width, _ = strip.size
    assert at[0] == round(0.03 * width, 1)
    assert at[2] == round(0.97 * width, 1)
    assert abs(at[1] - (at[0] + at[2]) / 2) < 0.1
    assert 'href="#strip-scores"' in strip.marked(1.0, "here")
    assert '<g id="strip-scores">' in strip.definition
