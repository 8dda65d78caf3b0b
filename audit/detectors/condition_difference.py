"""Score how strongly the predicted noise depends on the prompt embedding, without a gradient (our own detector)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from audit.detectors.detector import ScreenDetector, Seen
from audit.detectors.noise_magnitude import magnitude

if TYPE_CHECKING:
    from torch import Tensor

STEP = 0.1  # h: by what fraction the prompt embedding moves towards that of the empty prompt


def measure(seen: Seen) -> dict[str, Tensor]:
    """Compute `||eps(e) - eps(e_0 + (1 - h)(e - e_0))|| / (h ||e - e_0||)` at t = T: [B], with `h = 0.1`.

    `e` is the prompt embedding and `e_0` that of the empty prompt, at all text positions. This is the length of the
    derivative of `eps` along `e - e_0`, by a finite difference. A larger value is more suspicious; it is 0 for a
    caption that has the tokens of the empty prompt.
    """
    assert seen.own is not None
    conditioning, null = seen.own.conditioning, seen.own.null
    nearer_BCHW = seen.own.response(conditioning.towards(null, STEP))
    change_B = magnitude(seen.response_BCHW[0].double() - nearer_BCHW.double())
    length_B = STEP * conditioning.distance(null)
    return {"condition_difference": change_B / length_B.where(length_B > 0, 1.0)}


DETECTOR = ScreenDetector(
    name="condition_difference",
    version=1,
    columns=("condition_difference",),
    measure=measure,
    features=lambda columns: columns["condition_difference"][:, None],
    source="crossaudit, after the condition Jacobian at t = T, 2026",
    cost="1 beside noise_magnitude",
    response=(0,),
    own_forwards=1,
    mixes=True,
)
