"""Agreement and errors of raters, and what their majority decides."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from audit.schema import REVIEW_PAIRS, REVIEWS
from audit.statistics.intervals import clopper_pearson, upper_bound
from audit.statistics.raters import Rate, agreements, cohen_kappa, decisions, raters, upheld

WORDS = ["copied", "not copied", "unsure"]
TYPES = {"a": "case", "b": "case", "c": "case", "x": "control", "y": "mismatch", "z": "altered"}


def pairs() -> pa.Table:
    rows = [
        {"pair": name, "pair_type": kind, "caption_id": f"id-{name}", "image_id": "i"} for name, kind in TYPES.items()
    ]
    return pa.Table.from_pylist([{**dict.fromkeys(REVIEW_PAIRS.names), **row} for row in rows], schema=REVIEW_PAIRS)


def reviews(**answers: dict[str, str]) -> pa.Table:
    """The table of some raters' answers: the first letters of the answers by pair."""
    words = {"c": "copy", "p": "part", "n": "no copy", "u": "unsure"}
    rows = [
        {"rater": rater, "pair": pair, "pair_type": TYPES[pair], "answer": words[answer]}
        for rater, given in answers.items()
        for pair, answer in given.items()
    ]
    return pa.Table.from_pylist([{**dict.fromkeys(REVIEWS.names), **row} for row in rows], schema=REVIEWS)


def of(letters: str) -> dict[str, str]:
    return dict(zip(TYPES, letters, strict=True))


@given(st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(WORDS)), min_size=2, max_size=60))
def test_kappa_is_that_of_scikit_learn(judged: list[tuple[str, str]]) -> None:
    first, second = (list(side) for side in zip(*judged, strict=True))
    found = cohen_kappa(first, second)
    if len({*first, *second}) == 1:
        assert found.value is None
        return
    assert found.value == pytest.approx(cohen_kappa_score(first, second), abs=1e-12)
    assert found.low is not None
    assert found.high is not None
    assert -1 <= found.low <= found.value + 1e-12
    assert found.value - 1e-12 <= found.high <= 1


def test_the_standard_error_is_that_of_the_delta_method() -> None:
    """Fleiss, Cohen and Everitt's formula against a numerical gradient of kappa over the cells of the table."""
    count_CC = np.array([[40.0, 9, 3], [12, 50, 6], [2, 7, 21]])
    n = count_CC.sum()

    def kappa(p_CC: np.ndarray) -> float:
        # Homogeneous of degree 0, so that the gradient needs no constraint.
        p_CC = p_CC / p_CC.sum()
        chance = p_CC.sum(axis=1) @ p_CC.sum(axis=0)
        return float((np.trace(p_CC) - chance) / (1 - chance))

    p_CC, step = count_CC / n, 1e-6
    gradient_CC = np.zeros_like(p_CC)
    for cell in np.ndindex(p_CC.shape):
        change_CC = np.zeros_like(p_CC)
        change_CC[cell] = step
        gradient_CC[cell] = (kappa(p_CC + change_CC) - kappa(p_CC - change_CC)) / (2 * step)
    variance = ((p_CC * gradient_CC**2).sum() - (p_CC * gradient_CC).sum() ** 2) / n
    first = [WORDS[row] for row, column in np.ndindex(3, 3) for _ in range(int(count_CC[row, column]))]
    second = [WORDS[column] for row, column in np.ndindex(3, 3) for _ in range(int(count_CC[row, column]))]
    found = cohen_kappa(first, second)
    assert found.value == pytest.approx(kappa(p_CC))
    assert found.high is not None
    assert found.low is not None
    assert found.high - found.value == pytest.approx(1.959964 * np.sqrt(variance), rel=1e-5)
    assert found.value - found.low >= 1.959964 * np.sqrt(variance) * (1 - 1e-5)


@pytest.mark.parametrize(("share", "error", "n"), [(0.5, 0.0, 40), (0.5, 0.02, 60), (0.2, 0.1, 100), (0.4, 0.3, 80)])
def test_the_interval_of_kappa_covers(share: float, error: float, n: int) -> None:
    """Two raters who err alike and apart: kappa of the population lies in the interval as often as promised."""
    rng = np.random.default_rng(7)
    p_11 = share * (1 - error) ** 2 + (1 - share) * error**2
    p_1 = share * (1 - error) + (1 - share) * error
    chance = p_1**2 + (1 - p_1) ** 2
    kappa = (1 - 2 * (p_1 - p_11) - chance) / (1 - chance)
    draws, held = 400, 0
    for _ in range(draws):
        truth = rng.random(n) < share
        first, second = ((truth ^ (rng.random(n) < error)).astype(str).tolist() for _ in range(2))
        found = cohen_kappa(first, second)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= kappa <= found.high
    assert held / draws >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / draws)


def test_raters_who_never_disagree_on_few_pairs_have_a_wide_interval() -> None:
    found = cohen_kappa(["a", "b"] * 5, ["a", "b"] * 5)
    assert found.value == 1
    assert found.high == 1
    assert found.low == pytest.approx(1 - clopper_pearson(0, 10)[1] / 0.5)


def test_errors_are_those_on_decoys_with_exact_intervals() -> None:
    anna, ben = raters(pairs(), reviews(ben=of("cccpnu"), anna=of("nnnnnc")))
    assert (anna.name, ben.name) == ("anna", "ben")
    assert anna.false_positive == Rate.of(0, 2)
    assert ben.false_positive == Rate(1, 2, *clopper_pearson(1, 2))
    assert (anna.false_negative.k, ben.false_negative.k) == (0, 1)  # a copy that a rater is unsure of is missed
    assert (ben.judged, ben.cases, ben.finished) == (6, 3, True)
    assert Rate.of(0, 0) == Rate(0, 0, None, None)


def test_more_than_half_of_the_raters_decide_and_all_else_is_undecided() -> None:
    two = reviews(anna=of("cpcnnc"), ben=of("pnunnc"))
    assert outcomes(two) == ["upheld", "undecided", "undecided", "overturned", "overturned", "upheld"]
    three = reviews(anna=of("cpcnnc"), ben=of("pnunnc"), eve=of("nncunu"))
    assert outcomes(three) == ["upheld", "overturned", "upheld", "overturned", "overturned", "upheld"]


def outcomes(table: pa.Table) -> list[str]:
    return decisions(pairs(), table)["outcome"].to_pylist()


def test_one_rater_or_one_who_has_not_finished_decides_nothing() -> None:
    for table in (reviews(anna=of("cccnnc")), reviews(anna=of("cccnnc"), ben={"a": "c", "b": "c"}), reviews()):
        assert set(outcomes(table)) == {"undecided"}
        found = upheld(pairs(), table)
        assert (found.caption_ids, found.false_positive) == (frozenset(), (0, 0))
        assert found.false_positive_bound() == 1


def test_a_rater_who_has_not_finished_does_not_spoil_the_decision_of_the_others() -> None:
    table = reviews(anna=of("ccnnnc"), ben=of("ccnnnc"), eve={"a": "n"})
    assert outcomes(table)[:3] == ["upheld", "upheld", "overturned"]


def test_the_error_of_the_decision_is_that_on_decoys_decided_by_the_same_rule() -> None:
    found = upheld(pairs(), reviews(anna=of("ccncpn"), ben=of("cnncnn")))
    assert found.caption_ids == {"id-a"}
    assert found.false_positive == (1, 2)  # both see a copy in the control decoy, only one in the mismatch
    assert found.false_negative == (1, 1)
    assert found.false_positive_bound(0.9) == upper_bound(1, 2, 0.9)


def test_raters_are_compared_on_the_pairs_that_both_judged() -> None:
    [found] = agreements(reviews(anna=of("cpnnuc"), ben={"a": "p", "b": "n", "x": "n", "y": "u"}, eve={}))
    assert (found.raters, found.pairs, found.agreed) == (("anna", "ben"), 4, 3)
    assert (found.cases, found.cases_agreed) == (2, 1)
    one, other = ["y", "y", "n", "u"], ["y", "n", "n", "u"]
    assert found.kappa.value == pytest.approx(cohen_kappa_score(one, other))
