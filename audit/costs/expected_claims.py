"""Say, before an audit begins, what it will be able to claim (docs/explanation/claims.md)."""

from __future__ import annotations

from audit.calibration.calibration import MIN_HALF
from audit.statistics.claims import MILLION
from audit.statistics.intervals import clopper_pearson, controls_needed, sample_needed

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
    if half + 1 < captions:
        found.append(
            f"q_unseen needs as many held-out control captions as captions: {2 * (captions - 1) - controls:,} more "
            "control captions; without them it is null, and the screen ranks captions but flags none."
        )
    else:
        found.append("They are enough for q_unseen: false-discovery rates of the screen.")
    return found


def of_audit_sample(sample: int, captions: int) -> list[str]:
    """Describe what a random sample of the captions can bound, if nothing in the sample reproduces a training image.

    Args:
        sample: Size of the sample.
        captions: Number of captions audited.
    """
    if sample == 0:
        return ["No audit sample: nothing can be claimed about the captions that are not generated."]
    high = clopper_pearson(0, sample)[1]
    found = [
        f"Audit sample of {sample:,}: if none of them reproduces, at most {MILLION * high:,.0f} per million captions "
        "do (95 %)."
    ]
    need = sample_needed(high / 10)
    if need <= captions:
        found.append(f"For ten times less, at most {MILLION * high / 10:,.0f} per million, it takes {need:,}.")
    return found
