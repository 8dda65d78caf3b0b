import base64

from reports import figures
from reports.record.histograms import Histogram

EDGES = [0.0, 0.25, 0.5, 0.75, 1.0]


def scores(control: list[int], cut: float | None = 0.7) -> Histogram:
    counts = {"captions": [90, 30, 0, 10], "control": control, "confirmed": [0, 0, 0, 4]}
    return Histogram(edges=EDGES, counts=counts, cut=cut)


def test_a_figure_is_the_same_svg_for_the_same_numbers_and_names_what_it_shows() -> None:
    drawn = [figures.histogram("scores", scores([4, 1, 0, 0])) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert drawn[0].lstrip().startswith("<?xml")
    for label in ("130 audited captions", "4 of them confirmed", "5 control captions, scaled", "lowest score in the"):
        assert label in drawn[0]


def test_what_is_missing_is_not_drawn() -> None:
    alone = figures.histogram("scores", scores([0, 0, 0, 0], cut=None))
    assert "lowest score" not in alone
    assert "control captions" not in alone
    found = Histogram(edges=EDGES, counts={"generated": [1, 0, 0, 1], "control": [0, 0, 0, 0]}, cut=None)
    similar = figures.histogram("similarities", found)
    assert "control captions" not in similar
    assert "threshold" not in similar


def test_control_captions_are_drawn_over_the_scores() -> None:
    drawn = figures.histogram("scores", scores([4, 1, 0, 0]))
    assert figures.NULL in drawn
    assert drawn != figures.histogram("scores", scores([0, 1, 0, 4]))


def test_a_data_uri_holds_the_svg() -> None:
    uri = figures.data_uri("<svg/>")
    assert base64.b64decode(uri.removeprefix("data:image/svg+xml;base64,")) == b"<svg/>"


def test_the_trade_off_has_a_mark_a_setting_labelled_with_its_number() -> None:
    share = {"share_above": 0.5, "share_above_low": 0.3, "share_above_high": 0.7}
    settings = [share | {"method": "none", "ordinary_clip": 0.31}]
    settings += [share | {"method": "rescale", "ordinary_clip": clip} for clip in (0.3, 0.2)]
    svg = figures.tradeoff(settings)
    assert all(text in svg for text in ("no mitigation", "rescale", ">2</text>", ">3</text>"))
    assert "padding" not in svg
