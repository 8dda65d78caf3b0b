from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import genpareto

from audit.calibration.distance import Distance, Survival

RNG = np.random.default_rng(0)
CONTROL_MF = RNG.normal(size=(500, 6)) @ RNG.normal(size=(6, 6)) + 3


def test_the_distance_of_gaussian_features_is_about_mahalanobis() -> None:
    distance = Distance.fit(CONTROL_MF, one_sided=False)
    assert distance(np.median(CONTROL_MF, axis=0)[None]) == pytest.approx(0)
    assert np.mean(distance(CONTROL_MF) ** 2) == pytest.approx(6, rel=0.2)


@given(st.integers(0, 5), st.sampled_from([100.0, 1e-3, -7.0]))
def test_the_unit_of_a_feature_does_not_matter(feature: int, factor: float) -> None:
    unit_F = np.ones(6)
    unit_F[feature] = factor
    found = Distance.fit(CONTROL_MF * unit_F, one_sided=False)(CONTROL_MF * unit_F)
    np.testing.assert_allclose(found, Distance.fit(CONTROL_MF, one_sided=False)(CONTROL_MF), rtol=1e-6)


def test_correlated_features_do_not_count_twice() -> None:
    """The same shift of all is common among captions of this null, one against the others is not."""
    common_M1 = RNG.normal(size=(2000, 1))
    control_MF = common_M1 + 0.1 * RNG.normal(size=(2000, 3))
    along, across = Distance.fit(control_MF, one_sided=False)(np.array([[2.0, 2.0, 2.0], [2.0, -2.0, 0.0]]))
    assert across > 5 * along


def test_a_constant_feature_says_nothing() -> None:
    constant_M1 = np.full((len(CONTROL_MF), 1), 4.0)
    distance = Distance.fit(np.hstack([CONTROL_MF, constant_M1]), one_sided=False)
    near, far = np.hstack([CONTROL_MF[:1], [[4.0]]]), np.hstack([CONTROL_MF[:1], [[9.0]]])
    assert distance(near) == distance(far)
    assert np.isfinite(distance(far)).all()


def test_of_one_sided_features_only_large_values_are_far() -> None:
    distance = Distance.fit(CONTROL_MF[:, :1], one_sided=True)
    low, middle, high = distance(np.quantile(CONTROL_MF[:, :1], [0.01, 0.5, 0.99], axis=0))
    assert low < middle < high


def test_one_sided_several_features_count_by_the_mean_of_their_z_scores() -> None:
    constant_M1 = np.full((len(CONTROL_MF), 1), 4.0)
    control_MF = np.hstack([CONTROL_MF[:, :2], constant_M1])
    found = Distance.fit(control_MF, one_sided=True)(control_MF[:5])
    for row, value in zip(control_MF[:5], found, strict=True):
        z = 0.0
        for feature in range(2):
            own = control_MF[:, feature]
            middle = np.median(own)
            z += (row[feature] - middle) / (1.4826 * np.median(np.abs(own - middle)))
        assert value == pytest.approx(z / 3)


@settings(max_examples=20)
@given(arrays(np.float64, st.integers(30, 300), elements=st.floats(0, 50, allow_subnormal=False)))
def test_minus_log_survival_is_continuous_increasing_and_strictly_so_beyond_the_null(control_M: np.ndarray) -> None:
    survival = Survival.fit(control_M)
    reach = max(float(np.ptp(control_M)), 1.0)
    grid = np.linspace(control_M.min() - reach, control_M.max() + 20 * reach, 5_001)
    value = survival.minus_log(grid)
    assert np.isfinite(value).all()
    assert (value >= 0).all()
    assert (np.diff(value) >= 0).all()
    beyond = grid > control_M.max()
    assert (np.diff(value[beyond]) > 0).all()
    step = np.nextafter(survival.threshold, np.inf) - survival.threshold
    around = survival.minus_log(np.array([survival.threshold, survival.threshold + step]))
    assert around[1] - around[0] < 1e-6


def test_it_is_minus_log_of_the_true_survival_of_an_exponential_null() -> None:
    survival = Survival.fit(RNG.exponential(size=20_000))
    at = np.array([0.5, 1.0, 3.0, 6.0])
    np.testing.assert_allclose(survival.minus_log(at), at, rtol=0.12)


def test_a_heavy_tail_is_not_taken_for_an_exponential_one() -> None:
    control_M = RNG.pareto(3, size=20_000)
    far = np.quantile(RNG.pareto(3, size=2_000_000), 1 - 1e-4)
    assert Survival.fit(control_M).minus_log(np.array([far]))[0] == pytest.approx(-np.log(1e-4), rel=0.15)


@pytest.mark.parametrize("shape", [0.1, 0.5, 1.5])
@pytest.mark.parametrize("scale", [1e-6, 1e3])
def test_the_tail_is_at_least_as_likely_as_that_of_scipy_and_nearly_the_same(shape: float, scale: float) -> None:
    survival = Survival.fit(genpareto.rvs(shape, scale=scale, size=4_000, random_state=np.random.default_rng(3)))
    excess = survival.distances[survival.distances > survival.threshold] - survival.threshold
    theirs, _, their_scale = genpareto.fit(excess, floc=0)
    likelihood = genpareto.logpdf(excess, survival.shape, scale=survival.scale).mean()
    assert likelihood >= genpareto.logpdf(excess, theirs, scale=their_scale).mean() - 1e-12
    assert (survival.shape, survival.scale) == (pytest.approx(theirs, abs=1e-3), pytest.approx(their_scale, rel=1e-3))


def test_a_bounded_tail_is_taken_for_an_exponential_one() -> None:
    control_M = np.sort(RNG.uniform(size=2_000))
    survival = Survival.fit(control_M)
    assert survival.shape == 0
    assert survival.scale == pytest.approx((control_M[-100:] - control_M[-101]).mean())
