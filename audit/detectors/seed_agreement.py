"""Ours: whether a caption pulls the noise of several seeds the same way."""

from __future__ import annotations

from torch import Tensor

from audit.detectors.detector import ScreenDetector, Seen
from audit.detectors.noise_magnitude import magnitude


def measure(seen: Seen) -> dict[str, Tensor]:
    """The unit vector of `eps(c) - eps(null)` at t = T: [B, C x H x W]; zero where the caption does nothing.

    What a model has memorized it aims at from any noise. A calibration takes off the mean over null captions and scores
    the length of what is left of the mean over seeds: the mean cosine between seeds, but for a constant. It needs
    several seeds, and columns as wide as the latent: for captions that something else has selected.
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
