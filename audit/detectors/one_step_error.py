"""How far one step to sigma 0 moves the noise (Webster 2023, arXiv 2305.08694)."""

from __future__ import annotations

from torch import Tensor

from audit.detectors.detector import ScreenDetector, Seen

GUIDANCE = 7.5


def measure(seen: Seen) -> dict[str, Tensor]:
    """Mean squared difference of the initial noise and the sample after one step from t = T, guidance 7.5: [B].

    The sample is `(x_T - sqrt(1 - alpha) eps) / sqrt(alpha)`, `eps` the guided noise: the image that the model predicts
    without caption, less the guided response. Two-sided: on our toys the side differs from model to model.
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
