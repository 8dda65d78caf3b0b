from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from audit.errors import AuditError
from audit.statistics.intervals import (
    clopper_pearson,
    conformal_p,
    controls_needed,
    q_values,
    upper_bound,
)


def test_clopper_pearson_is_exact_against_the_binomial_tails() -> None:
    low, high = clopper_pearson(3, 50)
    assert binom.sf(2, 50, low) == pytest.approx(0.025)
    assert binom.cdf(3, 50, high) == pytest.approx(0.025)


def test_the_interval_closes_at_none_and_all() -> None:
    assert clopper_pearson(0, 10)[0] == 0
    assert clopper_pearson(10, 10)[1] == 1


def test_nothing_in_n_leaves_the_rule_of_three() -> None:
    assert upper_bound(0, 1000) == pytest.approx(3 / 1000, rel=0.01)
    assert upper_bound(5, 5) == 1
    assert binom.cdf(2, 40, upper_bound(2, 40)) == pytest.approx(0.05)


@pytest.mark.parametrize(("k", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_an_error(k: int, n: int) -> None:
    with pytest.raises(AuditError, match="not a proportion"):
        clopper_pearson(k, n)


def test_conformal_p_counts_the_null_at_or_above() -> None:
    p = conformal_p([1.0, 2.0, 2.0, 3.0], [0.0, 2.0, 2.5, 9.0])
    np.testing.assert_allclose(p, [5 / 5, 4 / 5, 2 / 5, 1 / 5])


def test_conformal_p_is_uniform_for_a_control_caption() -> None:
    rng = np.random.default_rng(0)
    hits = [conformal_p(draw[1:], draw[:1])[0] <= 0.05 for draw in rng.normal(size=(4000, 100))]
    assert np.mean(hits) == pytest.approx(0.05, abs=0.01)


def test_q_values_are_benjamini_hochberg_in_the_given_order() -> None:
    np.testing.assert_allclose(q_values([0.04, 0.01, 0.03, 0.5]), [0.16 / 3, 0.04, 0.16 / 3, 0.5])
    assert len(q_values([])) == 0


@pytest.mark.parametrize(("rate", "needed"), [(0.01, 99), (0.05, 19), (0.1, 9), (0.5, 1), (0.3, 3)])
def test_a_rate_needs_as_many_control_captions_as_leave_one_beyond_it(rate: float, needed: int) -> None:
    assert controls_needed(rate) == needed
    assert (needed + 1) * rate >= 1 - 1e-9 > needed * rate
