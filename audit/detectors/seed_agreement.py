"""Score whether a caption pulls the noise of several seeds in the same direction (our own detector)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from audit.detectors.detector import ScreenDetector, Seen
from audit.detectors.noise_magnitude import magnitude

if TYPE_CHECKING:
    from torch import Tensor


def measure(seen: Seen) -> dict[str, Tensor]:
    """Compute the unit vector of `eps(c) - eps(∅)` at t = T: [B, C x H x W]; zero if the caption has no effect.

    A model heads for what it has memorized from any noise. A calibration subtracts the mean over control captions and
    scores the length of the mean over seeds that remains: the mean cosine between seeds, up to a constant. The detector
    needs several seeds and columns as wide as the latent, so use it on captions that another detector has selected.
    """
    response_BCHW = seen.response_BCHW[0].double()
    length_B = magnitude(response_BCHW)
    length_B = length_B.where(length_B > 0, 1.0)
    return {"direction": response_BCHW.flatten(1) / length_B[:, None]}


DETECTOR = ScreenDetector(
    name="seed_agreement",
    version=1,
    columns=("direction",),
    measure=measure,
    features=lambda columns: columns["direction"],
    source="crossaudit",
    cost="none beside noise_magnitude; several seeds",
    response=(0,),
    distance="agreement",
)
