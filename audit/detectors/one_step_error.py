"""How far one step to sigma 0 moves the noise (Webster 2023, arXiv 2305.08694)."""

from __future__ import annotations

from torch import Tensor

from audit.detectors.detector import ScreenDetector, Seen
from audit.sampling import guide

GUIDANCE = 7.5


def measure(seen: Seen) -> dict[str, Tensor]:
    """Mean squared difference of the initial noise and the sample after one step from t = T, guidance 7.5: [B].

    The sample is `(x_T - sqrt(1 - alpha) eps) / sqrt(alpha)`, `eps` the guided noise. Two-sided: on our toys the side
    differs from model to model.
    """
    alpha, noise_BCHW, null_BCHW = seen.alpha[0], seen.noise_BCHW.double(), seen.null_BCHW[0].double()
    eps_BCHW = guide(null_BCHW, null_BCHW + seen.response_BCHW[0].double(), GUIDANCE)
    sample_BCHW = (noise_BCHW - (1 - alpha) ** 0.5 * eps_BCHW) / alpha**0.5
    return {"one_step_error": (sample_BCHW - noise_BCHW).square().mean((1, 2, 3))}


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
