from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from audit.statistics.detection_rates import DRAWS, FEWEST_CLUSTERS, auroc, detection_rates, tpr_at

scores = st.lists(st.integers(-5, 5), min_size=1, max_size=30)


def reference_tpr(fpr: float, positive: np.ndarray, negative: np.ndarray) -> float:
    """Return the best TPR among all thresholds that keep the FPR."""
    thresholds = [-np.inf, *positive, *negative]
    allowed = [t for t in thresholds if (negative > t).mean() <= fpr + 1e-9 / len(negative)]
    return max((float((positive > t).mean()) for t in allowed), default=0.0)


@given(scores, scores, st.floats(0, 1))
def test_no_allowed_threshold_finds_more(positive: list[int], negative: list[int], fpr: float) -> None:
    expected = reference_tpr(fpr, np.array(positive), np.array(negative))
    assert tpr_at(fpr, positive, negative) == pytest.approx(expected)


def test_at_one_per_cent_of_a_hundred_one_negative_may_be_above() -> None:
    negative = list(range(100))
    assert tpr_at(0.01, [98.5, 99.5, 50, 97], negative) == 0.5
    assert tpr_at(0.0, [98.5, 99.5], negative) == 0.5


@given(scores, scores)
def test_the_auroc_is_that_of_scikit_learn(positive: list[int], negative: list[int]) -> None:
    truth = [1] * len(positive) + [0] * len(negative)
    assert auroc(positive, negative) == pytest.approx(roc_auc_score(truth, positive + negative))


def test_the_interval_is_that_of_resampled_clusters() -> None:
    rng = np.random.default_rng(3)
    positive, negative = rng.normal(1, 1, 60).round(1), rng.normal(0, 1, 600).round(1)
    of_positive, of_negative = rng.integers(0, 25, 60), rng.integers(0, 60, 600)
    found = detection_rates(positive, negative, of_positive, of_negative, seed=7)
    clusters = np.unique(np.concatenate([of_positive, of_negative]))
    draw, areas, rates = np.random.default_rng(7), [], []
    for _ in range(DRAWS):
        taken = clusters[draw.integers(0, len(clusters), len(clusters))]
        again = [
            np.concatenate([values[of == one] for one in taken])
            for values, of in ((positive, of_positive), (negative, of_negative))
        ]
        difference_PN = again[0][:, None] - again[1]
        areas.append(float((np.sign(difference_PN) + 1).mean() / 2))
        rates.append(tpr_at(0.01, *again))
    for estimate, drawn in ((found.auroc, areas), (found.tpr_at_1_percent, rates)):
        assert [estimate.low, estimate.high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]))
    assert found.auroc.value == pytest.approx(auroc(positive, negative))


def test_copies_of_captions_do_not_narrow_the_interval() -> None:
    rng = np.random.default_rng(0)
    positive, negative = rng.normal(1, 1, 40), rng.normal(0, 1, 500)
    clusters = np.arange(40), 40 + np.arange(500)
    one = detection_rates(positive, negative, *clusters)
    five = detection_rates(*(np.repeat(values, 5) for values in (positive, negative, *clusters)))
    assert (five.auroc.low, five.auroc.high) == pytest.approx((one.auroc.low, one.auroc.high))
    assert (five.positives, five.positive_clusters) == (200, 40)


def test_a_rate_needs_five_negatives_above_it() -> None:
    rng = np.random.default_rng(0)
    positive = rng.normal(1, 1, 50)
    for count, measured in ((499, False), (500, True)):
        found = detection_rates(positive, rng.normal(0, 1, count), np.arange(50), 50 + np.arange(count))
        assert (found.tpr_at_1_percent.value is not None) is measured
        assert found.tpr_at_01_percent.value is None
        assert found.tpr_at_01_percent.reason == f"{count} negatives are too few: this rate needs 5,000"
        assert found.auroc.value is not None


def test_an_interval_needs_enough_clusters_and_a_spread() -> None:
    few = detection_rates(np.arange(50), np.arange(40), np.arange(50) % (FEWEST_CLUSTERS - 1), 50 + np.arange(40))
    assert few.auroc.value is not None
    assert few.auroc.low is None
    assert "needs 10 clusters" in few.auroc.reason
    perfect = detection_rates(100 + np.arange(50), np.arange(40), np.arange(50), 50 + np.arange(40))
    assert (perfect.auroc.value, perfect.auroc.low) == (1, None)
    assert "every draw" in perfect.auroc.reason


def test_without_positives_nothing_is_measured() -> None:
    found = detection_rates([], [1.0, 2.0], [], [0, 1])
    assert (found.auroc.value, found.auroc.reason) == (None, "no positives or no negatives")
