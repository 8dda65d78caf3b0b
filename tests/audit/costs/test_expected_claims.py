"""What can be claimed is said beforehand, by the bounds that the claims themselves use."""

from __future__ import annotations

import pyarrow as pa

from audit.costs.expected_claims import of_audit_sample, of_control_captions
from audit.statistics.claims import claims


def test_the_bound_of_a_clean_sample_is_that_of_the_claims() -> None:
    ids = [str(number) for number in range(1000)]
    verdicts = pa.table({"caption_id": ids, "verdict": ["unconfirmed"] * 1000})
    made = claims(verdicts, pa.table({"caption_id": ids, "selected_by": ["sample"] * 1000}), 1000)
    assert "at most 3,682 per million captions" in made["sentences"][0]
    first, more = of_audit_sample(1000, 400_000_000)
    assert "at most 3,682 per million captions" in first
    assert more.endswith("at most 368 per million, it takes 10,017.")


def test_no_sample_larger_than_the_data_set_is_asked_for() -> None:
    assert len(of_audit_sample(1000, 5000)) == 1
    assert of_audit_sample(0, 10) == [
        "No audit sample: nothing can be claimed about the captions that are not generated."
    ]


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
    assert enough[-1].startswith("They are enough for q_unseen")
    assert not any("control_rate" in line for line in enough)


def test_what_q_unseen_lacks_makes_the_held_out_half_as_many_as_the_captions() -> None:
    lacking = of_control_captions(200, None, 1000)[-1]
    assert "1,798 more control captions" in lacking
    assert "They are enough" in of_control_captions(200 + 1798, None, 1000)[-1]
    assert "They are enough" not in of_control_captions(200 + 1796, None, 1000)[-1]
