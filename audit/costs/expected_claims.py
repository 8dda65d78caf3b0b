"""Say, before an audit begins, what it will be able to claim (docs/explanation/claims.md)."""

from __future__ import annotations

from audit.calibration.calibration import MIN_HALF
from audit.statistics.bounds import HIGH
from audit.statistics.claims import MILLION
from audit.statistics.finite import at_most, sample_needed
from audit.statistics.intervals import controls_needed

# Number of control captions that a calibration should have.
ENOUGH = 1000


def of_control_captions(controls: int, control_rate: float | None, captions: int) -> list[str]:
    """Describe what a number of control captions is sufficient for.

    Args:
        controls: Number of control captions.
        control_rate: Rate that the thresholds allow; None without training images.
        captions: Number of captions audited.

    Returns:
        Sentences for the user.
    """
    half = controls // 2
    found = []
    if half < MIN_HALF:
        found.append(f"{controls:,} control captions: too few to calibrate, each half needs {MIN_HALF}.")
    elif controls < ENOUGH:
        found.append(f"{controls:,} control captions: enough to calibrate, but {ENOUGH:,} or more are recommended.")
    else:
        found.append(f"{controls:,} control captions: enough to calibrate ({ENOUGH:,} or more).")
    if control_rate is not None:
        need = 2 * controls_needed(control_rate)  # one half sets the thresholds
        so = "enough" if controls >= need else "too few"
        found.append(f"confirm.control_rate {control_rate:g} needs {need:,} of them: {so}.")
    found.append(f"The smallest possible p_unseen is 1 in {half + 1:,}, because half of them are held out.")
    least = -(-10 * captions // (half + 1))
    found.append(
        f"At a false-discovery rate of 10 %, q_unseen can select {least:,} captions or more, but not fewer, because "
        "no p_unseen is smaller."
    )
    return found


def of_audit_sample(sample: int, captions: int, budget: int, control_rate: float | None) -> list[str]:
    """Describe what a random sample of the captions outside the budget can bound.

    Args:
        sample: Size of the sample.
        captions: Number of captions audited.
        budget: Number of captions of the budget.
        control_rate: Rate that the thresholds allow; None without training images.
    """
    rest = max(0, captions - budget)
    if not rest:
        return ["The budget holds all captions, so nothing is left to be sampled."]
    sample = min(sample, rest)
    if sample == 0:
        return ["No audit sample: nothing can be claimed about the captions that are not generated."]
    level = f"{100 * (1 - HIGH):g} %"
    none = at_most(0, sample, rest, HIGH)
    found = [
        f"Audit sample of {sample:,}: if none of them is flagged, at most {MILLION * none / rest:,.0f} per million of "
        f"the {rest:,} captions outside the budget are copies ({level})."
    ]
    if control_rate and (chance := round(sample * control_rate)):
        high = MILLION * at_most(chance, sample, rest, HIGH) / rest
        found.append(
            f"But confirm.control_rate {control_rate:g} lets chance flag about {chance:,} of them; then it is at most "
            f"{high:,.0f} per million."
        )
    need = sample_needed(none // 10, rest, HIGH)
    if sample < need < rest:
        found.append(
            f"For ten times less, at most {MILLION * (none // 10) / rest:,.0f} per million, it takes {need:,}."
        )
    return found
