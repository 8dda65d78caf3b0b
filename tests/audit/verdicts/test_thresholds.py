import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit import schema
from audit.embedding.floors import PUBLISHED, Floor
from audit.verdicts.control_captions import Control, Tail
from audit.verdicts.copies import above_floor, beyond
from audit.verdicts.thresholds import (
    Threshold,
    choose_threshold,
    control_maxima,
    threshold_from_controls,
    threshold_of_json,
)

CONFIGURED = Floor(0.7, "configured")


def test_the_threshold_is_the_conformal_order_statistic_of_the_controls() -> None:
    maxima = np.random.default_rng(0).permutation(np.arange(1, 201) / 200)
    assert threshold_from_controls(maxima, 0.01) == 199 / 200
    assert threshold_from_controls(maxima, 0.05) == 191 / 200
    assert threshold_from_controls(maxima[:99], 0.01) == maxima[:99].max()


def test_too_few_controls_for_the_rate_give_their_highest() -> None:
    assert threshold_from_controls(np.linspace(0, 0.4, 98), 0.01) == 0.4


@given(st.integers(0, 2**32 - 1), st.integers(19, 60))
def test_a_new_control_caption_exceeds_the_threshold_at_most_at_the_rate(seed: int, m: int) -> None:
    scores = np.random.default_rng(seed).random(m + 1)
    # Every one of the m + 1 exchangeable captions in turn as the new one.
    exceeds = [scores[i] > (threshold_from_controls(np.delete(scores, i), 0.05) or 0.0) for i in range(m + 1)]
    assert np.mean(exceeds) <= 0.05


@pytest.mark.parametrize("kind", ["verbatim", "region"])
@given(st.lists(st.floats(-1, 1), max_size=250), st.floats(0, 1))
def test_no_threshold_is_below_its_floor(kind: str, maxima: list[float], floor: float) -> None:
    found = choose_threshold(kind, np.array(maxima), 0.01, floor)
    assert found.value is None or found.value >= floor


def test_the_source_says_what_sets_the_threshold() -> None:
    maxima = np.linspace(0, 0.6, 200)
    assert choose_threshold("verbatim", maxima, 0.01, 0.1).source == "controls"
    low = choose_threshold("verbatim", maxima / 2, 0.01)
    assert (low.value, low.source, low.controls, low.beyond) == (PUBLISHED, "floor", 200, 0)
    given = choose_threshold("verbatim", maxima, 0.01, CONFIGURED)
    assert (given.value, given.source, given.floor_source) == (0.7, "configured", "configured")


def test_without_a_control_that_has_a_region_there_is_no_threshold_of_regions() -> None:
    nothing = choose_threshold("region", np.full(200, np.nan), 0.01)
    assert (nothing.value, nothing.source, nothing.controls, nothing.without) == (None, "missing", 200, 200)
    assert choose_threshold("region", np.full(200, np.nan), 0.01, CONFIGURED).value == 0.7
    assert choose_threshold("verbatim", np.empty(0), 0.01).value == PUBLISHED  # the literature's rule needs no control
    matches = pa.Table.from_pylist([{"region_similarity": 0.99, "similarity": 0.99}], schema.MATCHES)
    assert not beyond(matches, "region", nothing).any()
    assert not above_floor(matches, "region", nothing).any()


def test_a_control_without_a_region_was_tried_but_sets_no_threshold() -> None:
    few = np.full(200, np.nan)
    few[:3] = (0.9, 0.8, 0.7)
    assert threshold_from_controls(few, 0.01) == 0.8  # the second highest of 200
    few[1:] = np.nan
    assert threshold_from_controls(few, 0.01) == 0.9  # and not of those that have none


def test_a_normalised_copy_is_beyond_the_threshold_and_plainly_beyond_the_floor() -> None:
    found = choose_threshold("verbatim", np.linspace(-1, 0, 200), 0.01, normalised=True)
    assert found.value is not None
    assert found.value < 0
    rows = [{"similarity": 0.1, "background": 0.3}, {"similarity": 0.1, "background": 0.5}]
    assert beyond(pa.Table.from_pylist(rows, schema.MATCHES), "verbatim", found).tolist() == [False, True]


def test_a_threshold_survives_json() -> None:
    control = Control("id", "a mermaid", 0.97, "image", 1, 2, 0.4, 1e-9, ("a variant",))
    whole = replace(choose_threshold("verbatim", np.linspace(0, 0.6, 200), 0.01), excluded=(control,), notes=("look",))
    for threshold in (whole, replace(whole, tail=Tail(0.4, 0.1, 199)), Threshold(None, "missing")):
        assert threshold_of_json(json.loads(json.dumps(asdict(threshold)))) == threshold


def test_the_maximum_of_a_control_is_over_seeds_and_ranks_by_one_embedder() -> None:
    def match(caption: str, similarity: float, region: float | None = None, **other: Any) -> dict[str, Any]:
        found = {"caption_id": caption, "purpose": "control", "embedder": "sscd", "similarity": similarity}
        return found | {"region_similarity": region} | other

    matches = pa.Table.from_pylist(
        [
            match("n1", 0.2, 0.3, seed=1, rank=1),
            match("n1", 0.1, 0.3, seed=1, rank=2),
            match("n1", 0.4, 0.1, seed=2, rank=1),
            match("n1", 0.9, embedder="clip"),
            match("n2", 0.5),
            match("real", 0.99, purpose="discover"),
        ],
        schema.MATCHES,
    )
    assert control_maxima(matches, "sscd", "verbatim").to_pylist() == [
        {"caption_id": "n1", "similarity": 0.4},
        {"caption_id": "n2", "similarity": 0.5},
    ]
    assert control_maxima(matches, "sscd", "region")["similarity"].to_pylist() == [0.3, None]
