import numpy as np
import pyarrow as pa
import pytest

from audit.statistics.claims import claims
from audit.statistics.intervals import clopper_pearson


def audit(*groups: tuple[int, str, str | None]) -> dict:
    """Claims of an audit of so many captions with that verdict, selected so."""
    captions = [(verdict, by) for count, verdict, by in groups for _ in range(count)]
    ids = [str(i) for i in range(len(captions))]
    verdicts = pa.table({"caption_id": ids, "verdict": [verdict for verdict, _ in captions]})
    by = pa.array([by for _, by in captions], pa.string())
    return claims(verdicts, pa.table({"caption_id": ids, "selected_by": by}), len(ids))


def test_prevalence_is_the_clopper_pearson_interval_of_the_sample() -> None:
    result = audit(
        (2, "verbatim", "budget+sample"),
        (1, "partial", "sample"),
        (97, "unconfirmed", "sample"),
        (50, "verbatim", "budget"),
        (850, "not_selected", None),
    )
    low, high = clopper_pearson(3, 100)
    assert result["prevalence"] == {"k": 3, "n": 100, "undetermined": 0, "low": low, "high": high}
    assert (result["prevalence_verbatim"]["k"], result["captions"]) == (2, 1000)
    assert f"at most {1e6 * high:,.0f} per million" in result["sentences"][0]


def test_a_sampled_caption_without_a_verdict_counts_for_the_worse_at_both_ends() -> None:
    result = audit(
        (1, "verbatim", "sample"), (2, "unknown", "sample"), (1, "error", "sample"), (96, "unconfirmed", "sample")
    )
    assert result["prevalence"]["undetermined"] == 3
    assert result["prevalence"]["low"] == clopper_pearson(1, 100)[0]
    assert result["prevalence"]["high"] == clopper_pearson(4, 100)[1]
    assert any("no verdict could be reached" in sentence for sentence in result["sentences"])


def test_recall_bounds_what_the_selection_missed_by_the_sample_outside_of_it() -> None:
    result = audit(
        (90, "verbatim", "budget"),
        (10, "verbatim", "budget+sample"),
        (1, "verbatim", "sample"),
        (99, "unconfirmed", "sample"),
        (800, "not_selected", None),
    )
    low, high = clopper_pearson(1, 100)
    assert result["missed"]["captions"] == 900
    assert result["recall"]["low"] == pytest.approx(100 / (100 + 900 * high))
    assert result["recall"]["high"] == pytest.approx(100 / (100 + 900 * low))
    assert result["recall"]["estimate"] == pytest.approx(100 / 109)


def test_what_nobody_measured_is_not_claimed() -> None:
    unsampled = audit((5, "verbatim", "budget"), (95, "not_selected", None))
    assert unsampled["prevalence"] is unsampled["missed"] is unsampled["recall"] is None
    assert unsampled["sentences"] == [
        "No audit sample was drawn: nothing is claimed about the captions that were not generated."
    ]
    nothing_found = audit((10, "unconfirmed", "sample"), (10, "unconfirmed", "budget"))
    assert nothing_found["recall"] is None
    assert nothing_found["missed"]["k"] == 0


def test_the_stated_intervals_cover_the_truth() -> None:
    rng = np.random.default_rng(0)
    population, sampled = 2000, 100
    budget = np.arange(population) < 200
    truth = (np.arange(population) < 40) | (np.arange(population) >= population - 20)
    ids = [str(i) for i in range(population)]
    verdicts = pa.table({"caption_id": ids, "verdict": np.where(truth, "verbatim", "unconfirmed").tolist()})
    covered = {"prevalence": 0, "recall": 0}
    for _ in range(200):
        sample = np.isin(np.arange(population), rng.choice(population, sampled, replace=False))
        by = np.select([budget & sample, budget, sample], ["budget+sample", "budget", "sample"], "")
        scores = pa.table({"caption_id": ids, "selected_by": [word or None for word in by]})
        result = claims(verdicts, scores, population)
        recall, prevalence = result["recall"], result["prevalence"]
        covered["prevalence"] += prevalence["low"] <= 60 / population <= prevalence["high"]
        covered["recall"] += recall["low"] <= 40 / 60 <= recall["high"]
    assert min(covered.values()) >= 185  # of 200; 190 expected at least
