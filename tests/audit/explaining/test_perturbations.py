from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import audit
from audit.explaining.perturbations import VARIANTS, content_words, perturbation_margin, variants

WORDS = ["boat", "castle", "river", "violin"]
captions_of_words = st.lists(st.sampled_from(["a", "red", "house", "under", "snow"]), min_size=2, max_size=9).map(
    " ".join
)


@given(captions_of_words)
def test_variants_are_other_captions_of_about_the_same_length(caption: str) -> None:
    found = variants(caption, WORDS)
    assert found == variants(caption, WORDS)
    assert len(found) == len(set(found)) == VARIANTS
    assert caption not in found
    for text in found:
        assert len(text.split()) - len(caption.split()) in (0, 1)


def test_each_changes_one_thing() -> None:
    caption = "a red house under snow"
    swapped, inserted, shuffled, *_ = variants(caption, WORDS)
    assert len(set(swapped.split()) - set(caption.split())) == 1
    assert len(inserted.split()) == 6
    assert [word for word in inserted.split() if word not in WORDS] == caption.split()
    assert sorted(shuffled.split()) == sorted(caption.split())
    assert shuffled != caption


def test_a_caption_without_words_has_none_and_one_word_has_few() -> None:
    assert variants("", WORDS) == []
    assert variants("a dog", []) == []
    assert 0 < len(variants("dog", WORDS)) <= VARIANTS


def test_content_words_are_the_long_ones_once() -> None:
    assert content_words(["a red boat", "the boat house"]) == ["boat", "house"]


def test_the_margin_is_the_score_less_the_median_of_the_variants(small: audit.Model) -> None:
    control = [f"a {colour} {thing} {n}" for colour in ("red", "blue") for thing in ("cat", "boat") for n in range(20)]
    call: dict[str, Any] = {"detectors": ["noise_magnitude"], "resolution": 16}
    calibration = audit.calibrate(audit.screen(small, control, **call, batch_size=80), "noise_magnitude")
    table = perturbation_margin(small, calibration, ["a red house", "", "a red house"], WORDS)
    assert table["caption"].to_pylist() == ["a red house", ""]
    texts = ["a red house", *variants("a red house", WORDS)]
    score, *others = calibration.score(audit.screen(small, texts, **call))["score"].to_pylist()
    middle = sum(sorted(others)[3:5]) / 2
    assert table["perturbation_margin"].to_pylist() == [pytest.approx(score - middle, abs=1e-3), None]
