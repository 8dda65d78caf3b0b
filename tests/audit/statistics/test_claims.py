"""Claims name what they bound, count what is undetermined for the worse, and subtract what chance allows."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from audit.statistics.bounds import HIGH, LEVELS
from audit.statistics.claims import claims, percent, reviewed
from audit.statistics.finite import at_least, at_most
from audit.statistics.intervals import upper_bound


def audit(*groups: tuple[int, str, str | None], rest: dict[int, int] | None = None, **more: Any) -> dict[str, Any]:
    """Return the claims of an audit.

    Args:
        groups: (number of captions, verdict, selected_by). Captions have one row and are families of their own.
        rest: Row counts of the captions outside the budget (default: one row each).
        more: Further arguments of `claims`.
    """
    rows = [(verdict, by) for count, verdict, by in groups for _ in range(count)]
    ids = [str(i) for i in range(len(rows))]
    flagged = [verdict in ("verbatim", "partial") for verdict, _ in rows]
    verdicts = pa.table(
        {
            "caption_id": ids,
            "verdict": [verdict for verdict, _ in rows],
            "row_count": [1] * len(rows),
            "family": pa.array([id_ if of else None for id_, of in zip(ids, flagged, strict=True)], pa.string()),
            "fresh_copies": pa.array([3 if of else None for of in flagged], pa.int64()),
            "fresh_generations": pa.array([4 if of else None for of in flagged], pa.int64()),
        }
    )
    scores = pa.table({"caption_id": ids, "selected_by": pa.array([by for _, by in rows], pa.string())})
    outside = sum(by != "budget" for _, by in rows)
    return claims(verdicts, scores, len(rows), {1: outside} if rest is None else rest, **more)


def stated(result: dict[str, Any], estimand: str, end: str) -> Any:
    """Return the value of a claim, or None if it is not stated."""
    return {(claim["estimand"], claim["end"]): claim["value"] for claim in result["claims"]}.get((estimand, end))


FOUND = ((90, "verbatim", "budget"), (10, "unconfirmed", "budget"))


def test_the_budget_is_a_census_and_the_sample_bounds_the_rest() -> None:
    result = audit(*FOUND, (1, "partial", "sample"), (99, "unconfirmed", "sample"), (800, "not_selected", None))
    assert stated(result, "copies", "at_most") == 90 + at_most(1, 100, 900, HIGH)
    assert stated(result, "flagged", "at_least") == 90 + at_least(1, 100, 900, LEVELS["sample_low"])


def test_a_caption_without_a_verdict_counts_as_a_copy_in_upper_ends_only() -> None:
    sample = ((1, "partial", "sample"), (2, "unknown", "sample"), (1, "error", "sample"), (96, "unconfirmed", "sample"))
    result = audit(*FOUND, (5, "unknown", "budget"), *sample, (800, "not_selected", None))
    assert stated(result, "copies", "at_most") == 95 + at_most(4, 100, 900, HIGH)
    assert stated(result, "flagged", "at_least") == 90 + at_least(1, 100, 900, LEVELS["sample_low"])
    assert "8 captions have no verdict" in result["sentences"][0]


def test_lower_ends_subtract_as_many_false_positives_as_the_control_captions_allow() -> None:
    groups = (*FOUND, (100, "unconfirmed", "sample"), (800, "not_selected", None))
    rate = upper_bound(1, 200, 1 - LEVELS["false_positive_rate"])
    copies = stated(audit(*groups, controls=(200, 1)), "copies", "at_least")
    chance = stats.binom.ppf(1 - LEVELS["census_false_positives"], 100 - copies, rate)
    assert 90 - copies <= chance
    assert 0 < copies < 90
    unmeasured = audit(*groups)
    assert stated(unmeasured, "copies", "at_least") is None
    assert any("by chance was not measured" in sentence for sentence in unmeasured["sentences"])


def test_flags_at_the_rate_of_the_control_captions_are_no_copies() -> None:
    groups = ((5, "partial", "budget"), (495, "unconfirmed", "budget"), (10, "partial", "sample"))
    result = audit(*groups, (990, "unconfirmed", "sample"), (8_500, "not_selected", None), controls=(1000, 10))
    assert stated(result, "copies", "at_least") == 0
    assert stated(result, "recall", "at_least") is None
    assert "It is not shown that any of the 10,000 captions of the dataset" in result["sentences"][1]
    assert stated(result, "rows", "at_least") is None


def test_recall_compares_the_budget_with_the_most_that_the_sample_may_have_missed() -> None:
    groups = (*FOUND, (100, "unconfirmed", "sample"), (800, "not_selected", None))
    result = audit(*groups, controls=(1000, 0))
    low, missed = result["bounds"]["census_low"], at_most(0, 100, 900, HIGH)
    assert stated(result, "recall", "at_least") == low / (low + missed)


def test_rows_assume_that_the_captions_in_doubt_are_those_with_the_most_rows() -> None:
    groups = (*FOUND, (100, "unconfirmed", "sample"), (800, "not_selected", None))
    missed = at_most(0, 100, 900, HIGH)
    result = audit(*groups, rest={1: 890, 7: 10}, controls=(1000, 0))
    assert stated(result, "rows", "at_most") == 90 + 7 * 10 + (missed - 10)
    assert stated(result, "rows", "at_least") == result["bounds"]["census_low"]


def test_without_a_sample_nothing_is_said_about_the_rest() -> None:
    result = audit(*FOUND, (900, "not_selected", None), controls=(1000, 0))
    assert stated(result, "copies", "at_most") is None
    assert stated(result, "rows", "at_most") is None
    assert stated(result, "copies", "at_least") > 0
    assert "No random sample was drawn" in result["sentences"][0]


def test_if_all_captions_are_in_the_budget_the_upper_end_is_the_count() -> None:
    assert stated(audit(*FOUND), "copies", "at_most") == 90


def test_every_end_states_its_level_and_all_of_them_hold_together() -> None:
    result = audit(*FOUND, (100, "unconfirmed", "sample"), (800, "not_selected", None), controls=(1000, 0))
    assert result["joint_level"] == pytest.approx(0.95)
    assert pytest.approx(0.975) == 1 - HIGH
    for claim in result["claims"]:
        assert f"({100 * claim['level']:g} % confidence)" in claim["sentence"] or claim["estimand"] == "false_positives"
    assert result["sentences"][-1] == "All of these statements hold together with 95 % confidence."


def review_of(upheld: int, cases: int, false: int, decoys: int) -> tuple[pa.Table, pa.Table]:
    """Return the pairs and answers of two raters who agree on everything."""
    said = ["copy"] * upheld + ["no copy"] * (cases - upheld) + ["copy"] * false + ["no copy"] * (decoys - false)
    ids = [str(number) for number in range(cases + decoys)]
    kinds = ["case"] * cases + ["control"] * decoys
    pairs = pa.table({"pair": ids, "pair_type": kinds, "caption_id": ids})
    answers = [
        {"rater": name, "pair": id_, "answer": word} for name in "ab" for id_, word in zip(ids, said, strict=True)
    ]
    return pairs, pa.Table.from_pylist(answers)


def test_a_review_claims_what_the_error_of_the_reviewers_leaves() -> None:
    claim = reviewed(*review_of(40, 50, 1, 60))
    assert claim is not None
    assert (claim.of, claim.level) == (50, 0.99)
    rate = upper_bound(1, 60, 1 - 0.005)
    assert 40 - claim.value <= stats.binom.ppf(1 - 0.005, 50 - claim.value, rate) < 40 - (claim.value - 1)
    assert "Reviewers upheld 40 of the 50 flagged captions" in claim.sentence
    worse = reviewed(*review_of(40, 50, 10, 60))
    assert worse is not None
    assert worse.value < claim.value


def test_a_review_without_decoys_or_without_a_panel_claims_nothing() -> None:
    assert reviewed(*review_of(40, 50, 0, 0)) is None
    pairs, answers = review_of(40, 50, 0, 60)
    assert reviewed(pairs, answers.filter(pc.field("rater") == "a")) is None


@pytest.mark.parametrize(
    ("share", "down", "text"),
    [
        (0.022, True, "2.2 %"),
        (0.0229, True, "2.2 %"),
        (0.1926, False, "19.3 %"),
        (0.05, False, "5 %"),
        (0.000123, False, "0.013 %"),
        (0.000123, True, "0.012 %"),
        (0.0, False, "0 %"),
        (1.0, True, "100 %"),
    ],
)
def test_a_percentage_is_rounded_so_that_the_claim_stays_true(share: float, down: bool, text: str) -> None:
    assert percent(share, down) == text


@given(st.floats(1e-9, 1))
def test_a_percentage_has_two_digits_at_least(share: float) -> None:
    low, high = (float(percent(share, down).removesuffix(" %")) / 100 for down in (True, False))
    assert low <= share * (1 + 1e-6)
    assert high >= share * (1 - 1e-6)
    assert high - low <= 0.11 * share + 1e-12
