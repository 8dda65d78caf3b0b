"""Score how far the caption moves the predicted noise (Wen et al., ICLR 2024, equation 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from audit.detectors.detector import ScreenDetector, Seen

if TYPE_CHECKING:
    from torch import Tensor


def magnitude(noise_BCHW: Tensor) -> Tensor:
    """Compute the Euclidean norm of each row: [B], summed in float64."""
    return noise_BCHW.double().flatten(1).norm(dim=1)


def measure(seen: Seen) -> dict[str, Tensor]:
    """Compute `||eps(c) - eps(∅)||` at t = T: [B]. A larger value is more suspicious."""
    return {"noise_magnitude": magnitude(seen.response_BCHW[0])}


DETECTOR = ScreenDetector(
    name="noise_magnitude",
    version=1,
    columns=("noise_magnitude",),
    measure=measure,
    features=lambda columns: columns["noise_magnitude"][:, None],
    source="Wen et al., ICLR 2024, equation 4",
    cost="1, 1 without caption once a seed",
    response=(0,),
)
