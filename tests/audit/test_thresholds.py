from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit import schema
from audit.errors import AuditError
from audit.thresholds import Threshold, choose_threshold, null_maxima, threshold_from_null


def test_the_threshold_is_the_conformal_order_statistic_of_the_null() -> None:
    maxima = np.random.default_rng(0).permutation(np.arange(1, 201) / 200)
    assert threshold_from_null(maxima, 0.01) == 199 / 200
    assert threshold_from_null(maxima, 0.05) == 191 / 200
    assert threshold_from_null(maxima[:99], 0.01) == maxima[:99].max()


def test_too_few_null_captions_for_the_rate_is_an_error() -> None:
    with pytest.raises(AuditError, match="98 null captions.*\n.*at least 99"):
        threshold_from_null(np.zeros(98), 0.01)


@given(st.integers(0, 2**32 - 1), st.integers(19, 60))
def test_a_new_null_caption_exceeds_the_threshold_at_most_at_the_rate(seed: int, m: int) -> None:
    scores = np.random.default_rng(seed).random(m + 1)
    # Every one of the m + 1 exchangeable captions in turn as the new one.
    exceeds = [scores[i] > threshold_from_null(np.delete(scores, i), 0.05) for i in range(m + 1)]
    assert np.mean(exceeds) <= 0.05


def test_a_configured_threshold_is_a_floor_and_constants_stand_in_for_a_null() -> None:
    null = np.linspace(0, 0.5, 200)
    assert choose_threshold("verbatim", null, 0.01).source == "null"
    assert choose_threshold("verbatim", null, 0.01, floor=0.1).source == "null"
    assert choose_threshold("verbatim", null, 0.01, floor=0.7) == Threshold(0.7, "configured", 200)
    assert choose_threshold("verbatim", null[:0], 0.01) == Threshold(0.75, "published")
    assert choose_threshold("region", null[:0], 0.01) == Threshold(0.5, "published")
    assert choose_threshold("region", null[:0], 0.01, floor=0.4) == Threshold(0.4, "configured")


def test_the_null_of_a_caption_is_its_maximum_over_seeds_and_ranks_by_one_embedder() -> None:
    def match(caption: str, similarity: float, region: float | None = None, **other: Any) -> dict[str, Any]:
        found = {"caption_id": caption, "purpose": "null", "embedder": "sscd", "similarity": similarity}
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
    assert sorted(null_maxima(matches, "sscd", "similarity")) == [0.4, 0.5]
    assert sorted(null_maxima(matches, "sscd", "region_similarity")) == [-1.0, 0.3]


@pytest.mark.parametrize(("maxima", "floor"), [(np.linspace(0, 1, 200), 0.75), (np.empty(0), None)])
def test_thresholds_of_plain_similarities_are_no_thresholds_of_normalised_ones(
    maxima: np.ndarray, floor: float | None
) -> None:
    with pytest.raises(AuditError, match="one of plain similarities"):
        choose_threshold("verbatim", maxima, 0.01, floor, normalised=True)
    assert choose_threshold("verbatim", np.linspace(-1, 0, 200), 0.01, normalised=True).value < 0
