"""Bounds on numbers of captions: monotone in the evidence, and valid where sampling may stop at any time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from audit.statistics.bounds import HIGH, LEVELS, LOW, Evidence, Tally, bounds
from audit.statistics.finite import at_most, sequence


def test_a_sample_that_may_stop_at_any_time_is_bounded_by_the_confidence_sequence() -> None:
    evidence = Evidence(1_100, Tally(100, 90, 0), Tally(200, 3, 1), 1000, 0, until=0.05, sample_limit=400)
    found = bounds(evidence)
    assert found.missed_high == sequence(4, 200, 1_000, LEVELS["sample_high"], 0.05)[1]
    assert found.missed_high > at_most(4, 200, 1_000, LEVELS["sample_high"])
    assert found.flagged_low == 90 + sequence(3, 200, 1_000, LEVELS["sample_low"], 0.05)[0]
    # The false positives of all 400 captions that could have been drawn are subtracted.
    fixed = bounds(Evidence(1_100, Tally(100, 90, 0), Tally(200, 30, 1), 1000, 3))
    assert fixed.missed_low is not None
    stopped = bounds(Evidence(1_100, Tally(100, 90, 0), Tally(200, 30, 1), 1000, 3, 0.05, 400))
    assert stopped.missed_low is not None
    assert stopped.missed_low < fixed.missed_low


@given(st.data())
def test_more_evidence_of_copies_never_lowers_a_bound(data: st.DataObject) -> None:
    budget, sampled, rest = 40, 30, 100
    flagged = data.draw(st.integers(0, budget - 1)), data.draw(st.integers(0, sampled - 1))
    controls = data.draw(st.integers(1, 300))
    found = [
        bounds(Evidence(budget + rest, Tally(budget, b, 0), Tally(sampled, s, 0), controls, 0))
        for b, s in (flagged, (flagged[0] + 1, flagged[1] + 1))
    ]
    for name in ("flagged_low", "flagged_high", "missed_high", "copies_low"):
        assert getattr(found[0], name) <= getattr(found[1], name)
    assert all(one.copies_low <= one.flagged_low <= one.flagged_high for one in found)
    assert 0 < LOW < HIGH
