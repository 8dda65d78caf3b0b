"""Score how far a single step to sigma 0 moves the noise (Webster 2023, arXiv 2305.08694)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from audit.detectors.detector import ScreenDetector, Seen

if TYPE_CHECKING:
    from torch import Tensor

GUIDANCE = 7.5


def measure(seen: Seen) -> dict[str, Tensor]:
    """Compute the mean squared difference of the initial noise and the sample after one step from t = T: [B].

    The sample is `(x_T - sqrt(1 - alpha) eps) / sqrt(alpha)`, where `eps` is the noise with guidance 7.5. This equals
    the image that the model predicts without a caption, minus the guided response. The detector is two-sided, because
    the suspicious side differs between our toy models.
    """
    alpha = seen.alpha[0]
    moved_BCHW = GUIDANCE * (1 - alpha) ** 0.5 / alpha**0.5 * seen.response_BCHW[0].double()
    error_BCHW = seen.unconditional_original_BCHW[0] - moved_BCHW - seen.noise_BCHW.double()
    return {"one_step_error": error_BCHW.square().mean((1, 2, 3))}


DETECTOR = ScreenDetector(
    name="one_step_error",
    version=1,
    columns=("one_step_error",),
    measure=measure,
    features=lambda columns: columns["one_step_error"][:, None],
    source="Webster 2023, arXiv 2305.08694",
    cost="none beside noise_magnitude",
    response=(0,),
    distance="either",
)
