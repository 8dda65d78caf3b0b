from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.statistics.detection_rates import tpr_at

scores = st.lists(st.integers(-5, 5), min_size=1, max_size=30)


@given(scores, scores, st.floats(0, 1))
def test_no_allowed_threshold_finds_more(positive: list[int], negative: list[int], fpr: float) -> None:
    def rate(values: list[int], threshold: float) -> float:
        return float(np.mean([value > threshold for value in values]))

    thresholds = [-np.inf, *positive, *negative]
    best = max((rate(positive, t) for t in thresholds if rate(negative, t) <= fpr + 1e-9 / len(negative)), default=0)
    assert tpr_at(fpr, positive, negative) == pytest.approx(best)


def test_at_one_per_cent_of_a_hundred_one_negative_may_be_above() -> None:
    negative = list(range(100))
    assert tpr_at(0.01, [98.5, 99.5, 50, 97], negative) == 0.5
    assert tpr_at(0.0, [98.5, 99.5], negative) == 0.5
