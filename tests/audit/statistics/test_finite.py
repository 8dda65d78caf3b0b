"""Bounds on a finite population hold at their level for every population, sample size and number of marked members."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from audit.errors import AuditError
from audit.statistics.finite import at_least, at_most, sample_needed, sequence


@pytest.mark.parametrize(("population", "n"), [(1, 1), (20, 0), (20, 5), (60, 17), (60, 60)])
def test_bounds_fail_at_most_as_often_as_stated(population: int, n: int) -> None:
    alpha, counts = 0.05, range(n + 1)
    high, low = ([bound(k, n, population, alpha) for k in counts] for bound in (at_most, at_least))
    for marked in range(population + 1):
        possible = stats.hypergeom.pmf(counts, population, marked, n)
        assert sum(p for p, bound in zip(possible, high, strict=True) if bound < marked) <= alpha + 1e-12
        assert sum(p for p, bound in zip(possible, low, strict=True) if bound > marked) <= alpha + 1e-12


@given(st.integers(1, 500), st.data())
def test_bounds_are_the_tightest_that_the_hypergeometric_tail_allows(population: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, population))
    k = data.draw(st.integers(0, n))
    high = at_most(k, n, population, 0.025)

    def tail(marked: int) -> float:
        ways = sum(math.comb(marked, i) * math.comb(population - marked, n - i) for i in range(k + 1))
        return ways / math.comb(population, n)

    assert tail(high) > 0.025 * (1 - 1e-9)
    assert k <= high <= population - n + k
    assert high == population - n + k or tail(high + 1) <= 0.025 * (1 + 1e-9)


def test_a_sample_of_everything_leaves_nothing_open() -> None:
    assert at_most(3, 10, 10, 0.01) == at_least(3, 10, 10, 0.01) == 3
    assert sequence(3, 10, 10, 0.01) == (3, 3)


def test_the_sample_needed_is_the_smallest_that_bounds() -> None:
    need = sample_needed(10, 2590, 0.025)
    assert at_most(0, need, 2590, 0.025) <= 10 < at_most(0, need - 1, 2590, 0.025)
    assert sample_needed(0, 100, 0.025) == 98  # of 100, one of the two left out may be marked


@given(st.integers(1, 200), st.data())
def test_a_sequence_keeps_the_counts_that_are_likely_compared_with_the_mixture(
    population: int, data: st.DataObject
) -> None:
    n = data.draw(st.integers(0, population))
    k = data.draw(st.integers(0, n))
    share, alpha = 0.1, 0.05
    every = np.arange(population + 1)
    prior = stats.betabinom.pmf(every, population, 1, 1 / share)
    likelihood = stats.hypergeom.pmf(k, population, every, n)
    kept = every[likelihood > alpha * (prior @ likelihood) * (1 + 1e-9)]
    low, high = sequence(k, n, population, alpha, share)
    assert low <= kept[0]
    assert kept[-1] <= high
    assert high - low <= kept[-1] - kept[0] + 2


def test_looking_after_every_draw_misses_as_rarely_as_stated() -> None:
    population, marked, alpha, audits = 300, 12, 0.1, 300
    rng, missed = np.random.default_rng(0), 0
    interval = cache(lambda k, n: sequence(k, n, population, alpha, 0.04))
    for _ in range(audits):
        found = np.cumsum(rng.permutation(population) < marked)
        intervals = (interval(int(found[n - 1]), n) for n in range(5, population + 1, 5))
        missed += any(not low <= marked <= high for low, high in intervals)
    assert missed <= stats.binom.ppf(0.999, audits, alpha)


@pytest.mark.parametrize(("k", "n", "population"), [(-1, 5, 9), (6, 5, 9), (1, 10, 9)])
def test_counts_that_contradict_each_other_are_refused(k: int, n: int, population: int) -> None:
    with pytest.raises(AuditError, match="is not possible"):
        at_most(k, n, population, 0.05)
