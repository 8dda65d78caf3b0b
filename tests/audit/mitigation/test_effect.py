import numpy as np
import pyarrow as pa
import pytest

from audit import schema
from audit.mitigation.effect import diversity, summarize
from audit.statistics.intervals import clopper_pearson


def measured(*rows: tuple[str, bool, float, float | None, float]) -> pa.Table:
    names = ("caption_id", "is_copy", "similarity", "clip_score", "seconds")
    return pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows], schema=schema.MITIGATION)


def test_diversity_is_the_mean_over_pairs() -> None:
    vectors = np.random.default_rng(0).normal(size=(7, 5))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = [1 - vectors[i] @ vectors[j] for i in range(7) for j in range(i)]
    assert diversity(vectors) == pytest.approx(np.mean(pairs))


def test_images_that_are_all_the_same_have_none_and_one_image_has_no_diversity() -> None:
    assert diversity(np.tile([[0.6, 0.8]], (3, 1))) == pytest.approx(0, abs=1e-12)
    assert diversity(np.ones((1, 1))) is None
    assert diversity(np.ones((0, 4))) is None


def test_a_caption_counts_as_above_if_any_of_its_images_is() -> None:
    table = measured(
        ("a", False, 0.2, 0.1, 1.0),
        ("a", True, 0.9, 0.3, 2.0),
        ("b", False, 0.4, 0.2, 9.0),
        ("c", False, 0.1, 0.2, 1.0),
    )
    row = summarize(table, np.eye(4))
    assert set(row) | {"caption_set", "method", "settings"} == set(schema.MITIGATION_SUMMARY.names)
    assert (row["captions"], row["images"], row["captions_above"]) == (3, 4, 1)
    assert (row["share_above_low"], row["share_above_high"]) == clopper_pearson(1, 3)
    assert row["share_above"] == pytest.approx(1 / 3)
    assert row["median_similarity"] == pytest.approx(0.3)
    assert row["clip_score"] == pytest.approx(0.2)
    assert row["seconds_per_image"] == pytest.approx(1.5)  # the median: one slow batch does not move it
    assert row["diversity"] == pytest.approx(1)


def test_without_clip_scores_there_is_no_mean_of_them() -> None:
    assert summarize(measured(("a", False, 0.2, None, 1.0)), np.ones((1, 1)))["clip_score"] is None
