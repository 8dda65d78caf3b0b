from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from audit.explaining.caption import Explanation
from audit.images.png import png
from reports.explanation import MOVES, render

PICTURE = png(np.zeros((8, 8, 3), np.uint8))
EXPLAINED = Explanation(
    caption="a red dog",
    tokens=["BOS", "a", "red", "dog", "EOS", "padding"],
    attention_PT=np.full((6, 4), 1 / 6),
    entropy_T=np.linspace(1.5, 1.0, 4),
    band_T2=np.array([[1.2, 1.6]] * 4),
    control_captions=64,
    image=PICTURE,
    region=PICTURE,
    detector="caption_response",
    score=7.25,
    p_unseen=0.002,
    moves=[(2, 3.5), (1, 0.1), (3, -0.2)],
)


def test_it_says_score_and_p_and_that_it_is_no_finding_yet() -> None:
    page = render(EXPLAINED)
    assert "Score 7.25" in page
    assert "p = 0.002" in page
    assert "This is not yet a finding" in page
    assert page.count("data:image/svg+xml") == 3
    assert page.count("data:image/png") == 3


def test_without_a_calibration_it_says_that_the_score_says_nothing_of_rarity() -> None:
    page = render(replace(EXPLAINED, p_unseen=None, detector="caption_response", band_T2=None, control_captions=0))
    assert "Without a calibration" in page
    assert "No control captions were given" in page


def test_a_hostile_caption_is_escaped_and_its_tokens_are_drawn() -> None:
    tokens = ["BOS", "<script>", "$x^2$", "\x07", "", "EOS", "🐕"]
    page = render(
        replace(
            EXPLAINED,
            caption="<script>alert(1)</script>\u202e",
            tokens=tokens,
            attention_PT=np.full((7, 4), 1 / 7),
            moves=[(place, 0.5) for place in range(1, 5)],
        )
    )
    assert "<script" not in page
    assert "⟨U+202E⟩" in page
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)


def test_the_empty_caption_has_no_chart_of_tokens_and_a_long_one_says_what_is_not_shown() -> None:
    assert "Which tokens carry" not in render(replace(EXPLAINED, moves=[]))
    tokens = ["BOS", *"abcdefghijklmnopqrstuvwxyz", "EOS"]
    long = replace(EXPLAINED, tokens=tokens, moves=[(place, 1.0) for place in range(1, 27)])
    long = replace(long, attention_PT=np.full((28, 4), 1 / 28))
    assert f"{26 - MOVES} more are not shown" in render(long)
