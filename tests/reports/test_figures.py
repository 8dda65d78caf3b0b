import base64

import numpy as np

from reports import figures


def test_a_figure_is_the_same_svg_for_the_same_numbers_and_names_what_it_shows() -> None:
    drawn = [figures.scores(np.linspace(0, 1, 5), np.array([9, 3, 0, 1]), np.zeros(4), 0.7) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert drawn[0].lstrip().startswith("<?xml")
    assert "<script" not in drawn[0]
    assert "captions of the data set" in drawn[0]
    assert "lowest selected score" in drawn[0]


def test_what_is_missing_is_not_drawn() -> None:
    alone = figures.scores(np.linspace(0, 1, 5), np.array([9, 3, 0, 1]), np.zeros(4), None)
    assert "selected" not in alone
    assert "control captions" not in alone
    similar = figures.similarities(np.array([0.2, 0.9]), np.array([]), None)
    assert "control captions" not in similar
    assert "threshold" not in similar


def test_control_captions_are_drawn_over_the_scores_scaled_to_their_number() -> None:
    edges, counts = np.linspace(0, 1, 5), np.array([90, 30, 0, 10])
    drawn = figures.scores(edges, counts, np.array([4, 1, 0, 0]), None)
    assert "5 control captions, scaled" in drawn
    assert figures.NULL in drawn
    assert drawn != figures.scores(edges, counts, np.array([0, 1, 0, 4]), None)


def test_copies_are_stacked_by_verdict() -> None:
    svg = figures.copies(["1", "2 up"], {"verbatim": [0, 3], "partial": [1, 0], "unconfirmed": [9, 9]})
    assert all(word in svg for word in ("verbatim", "partial", "unconfirmed"))


def test_a_data_uri_holds_the_svg() -> None:
    uri = figures.data_uri("<svg/>")
    assert base64.b64decode(uri.removeprefix("data:image/svg+xml;base64,")) == b"<svg/>"


def test_the_trade_off_has_a_mark_a_setting_labelled_with_its_number() -> None:
    share = {"share_above": 0.5, "share_above_low": 0.3, "share_above_high": 0.7}
    settings = [share | {"method": "none", "ordinary_clip": 0.31}]
    settings += [share | {"method": "rescale", "ordinary_clip": clip} for clip in (0.3, 0.2)]
    svg = figures.tradeoff(settings)
    assert all(text in svg for text in ("no mitigation", "rescale", "<!-- 2 -->", "<!-- 3 -->"))
    assert "padding" not in svg
