"""What can be claimed is said beforehand, by the bounds that the claims themselves use."""

from __future__ import annotations

from audit.costs.expected_claims import of_audit_sample, of_control_captions
from audit.statistics.bounds import HIGH
from audit.statistics.claims import MILLION
from audit.statistics.finite import at_most


def test_the_bound_of_a_clean_sample_is_that_of_the_claims() -> None:
    first, chance, more = of_audit_sample(1000, 400_001_000, 1000, 0.01)
    clean = MILLION * at_most(0, 1000, 400_000_000, HIGH) / 400_000_000
    assert f"at most {clean:,.0f} per million of the 400,000,000 captions outside the budget" in first
    assert "97.5 %" in first
    assert f"it is at most {MILLION * at_most(10, 1000, 400_000_000, HIGH) / 400_000_000:,.0f} per million" in chance
    assert more.endswith("at most 368 per million, it takes 10,017.")


def test_no_sample_larger_than_the_rest_is_asked_for() -> None:
    assert len(of_audit_sample(1099, 1200, 100, None)) == 1
    assert of_audit_sample(0, 10, 5, None) == [
        "No audit sample: nothing can be claimed about the captions that are not generated."
    ]
    assert of_audit_sample(5, 10, 10, None) == ["The budget holds all captions, so nothing is left to be sampled."]


def test_control_captions_are_held_against_what_each_use_needs() -> None:
    few = " ".join(of_control_captions(50, 0.01, 10_000))
    assert "too few to calibrate, each half needs 30" in few
    assert "confirm.control_rate 0.01 needs 198 of them: too few" in few
    some = " ".join(of_control_captions(220, 0.01, 10_000))
    assert "1,000 or more are recommended" in some
    assert "needs 198 of them: enough" in some
    assert "1 in 111" in some
    enough = of_control_captions(2000, None, 400)
    assert enough[0] == "2,000 control captions: enough to calibrate (1,000 or more)."
    assert not any("control_rate" in line for line in enough)


def test_the_fewest_captions_that_q_unseen_can_select_are_stated() -> None:
    # k captions at the smallest p-value, 1/100, have q = 10,000 / (100 k), which is 0.1 for k = 1,000.
    assert "can select 1,000 captions or more" in of_control_captions(198, None, 10_000)[-1]
