"""Score how much the predicted noise changes over the first guided step (DSM, 2026)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from audit.detectors.detector import ScreenDetector, Seen
from audit.detectors.noise_magnitude import magnitude

if TYPE_CHECKING:
    from torch import Tensor

GUIDANCE = 7.5


def measure(seen: Seen) -> dict[str, Tensor]:
    """Compute `||eps(x_1, t_1, c) - eps(x_T, t_0, c)||^2`: [B]. A larger value is more suspicious.

    `t_0` is T and `t_1` the next timestep of the 50-step schedule; `x_1` is the initial noise `x_T` after one DDIM step
    with guidance 7.5.
    """
    assert seen.own is not None
    first_BCHW = seen.unconditional_BCHW[0].double() + seen.response_BCHW[0].double()
    second_BCHW = seen.own.after_guided_step(GUIDANCE).double()
    return {"step_change": magnitude(second_BCHW - first_BCHW).square()}


DETECTOR = ScreenDetector(
    name="step_change",
    version=1,
    columns=("step_change",),
    measure=measure,
    features=lambda columns: columns["step_change"][:, None],
    source="DSM, 2026",
    cost="1 beside noise_magnitude",
    response=(0,),
    own_forwards=1,
)
