"""Exact paired tests, against enumeration and against scipy's binomial test."""

from __future__ import annotations

import itertools
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from audit.statistics.paired import paired_test, sign_flip_p

differences = st.lists(st.integers(-4, 4), max_size=9).map(lambda values: np.array(values, np.int64))


@given(differences)
def test_the_p_values_are_those_of_all_sign_patterns(difference_C: np.ndarray) -> None:
    found = int(difference_C.sum())
    sums = [
        sum(sign * abs(int(value)) for sign, value in zip(signs, difference_C, strict=True))
        for signs in itertools.product((-1, 1), repeat=len(difference_C))
    ]
    more, either = sign_flip_p(difference_C)
    assert more == pytest.approx(np.mean([value >= found for value in sums]), abs=1e-12)
    assert either == pytest.approx(np.mean([abs(value) >= abs(found) for value in sums]), abs=1e-12)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 20))
def test_without_clusters_it_is_the_exact_test_of_mcnemar(appeared: int, went: int, alike: int) -> None:
    first = np.array([False] * appeared + [True] * went + [True] * alike, bool)
    second = np.array([True] * appeared + [False] * went + [True] * alike, bool)
    found = paired_test(first, second, np.arange(len(first)))
    assert (found.appeared, found.went, found.clusters) == (appeared, went, appeared + went)
    n = appeared + went
    more = binomtest(appeared, n, alternative="greater").pvalue if n else 1
    either = binomtest(appeared, n).pvalue if n else 1
    assert found.p_more == pytest.approx(more)
    assert found.clustered_p_more == pytest.approx(more, rel=1e-9)
    assert found.clustered_p_either == pytest.approx(either, rel=1e-9)


def test_twenty_captions_of_one_family_are_one_observation() -> None:
    first, second = np.zeros(20, bool), np.ones(20, bool)
    together, apart = (paired_test(first, second, clusters) for clusters in (np.zeros(20, int), np.arange(20)))
    assert together.p_more == apart.p_more == pytest.approx(2**-20)
    assert (together.clustered_p_more, together.worse) == (0.5, False)
    assert apart.worse
    assert together.smallest_p == 0.5


def test_a_family_that_loses_as_much_as_it_gains_says_nothing() -> None:
    first, second = np.array([True, False]), np.array([False, True])
    found = paired_test(first, second, np.zeros(2, int))
    assert (found.appeared, found.went, found.clusters, found.clustered_p_more) == (1, 1, 0, 1)


def test_five_families_are_the_fewest_that_can_show_a_difference() -> None:
    for clusters, worse in ((4, False), (5, True)):
        first, second = np.zeros(clusters, bool), np.ones(clusters, bool)
        assert paired_test(first, second, np.arange(clusters)).worse is worse


def test_small_p_values_of_many_changes_are_exact() -> None:
    difference = np.concatenate([np.ones(300, np.int64), -np.ones(40, np.int64), np.full(30, 7), np.full(4, -3)])
    patterns = Counter({0: 1})
    for size in np.abs(difference).tolist():
        patterns = sum((Counter({at + sign * size: n for at, n in patterns.items()}) for sign in (-1, 1)), Counter())
    found, total = int(difference.sum()), 2 ** len(difference)
    expected = Fraction(sum(n for at, n in patterns.items() if at >= found), total)
    more, either = sign_flip_p(difference)
    assert 0 < expected < 1e-12
    assert more == pytest.approx(float(expected), rel=1e-9, abs=0)
    assert either == pytest.approx(2 * float(expected), rel=1e-9, abs=0)
