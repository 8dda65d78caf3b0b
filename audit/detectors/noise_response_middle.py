"""Score the mean response of the predicted noise at late-middle timesteps, one-sided (our own detector)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from audit.detectors.detector import ScreenDetector, Seen
from audit.detectors.noise_profile import log_responses

if TYPE_CHECKING:
    from torch import Tensor

POSITIONS = (12, 18, 24, 30)  # t = 741, 621, 501, 381 of SD's 50-step schedule; any of those of `noise_profile`


def measure(seen: Seen) -> dict[str, Tensor]:
    """Compute the values of `noise_profile` at late-middle timesteps only: [B, 4].

    The score is the mean of their robust z-scores against control captions (`audit.calibration.distance`). A larger
    value is more suspicious.
    """
    return {"noise_response_middle": log_responses(seen, POSITIONS)}


DETECTOR = ScreenDetector(
    name="noise_response_middle",
    version=1,
    columns=("noise_response_middle",),
    measure=measure,
    features=lambda columns: columns["noise_response_middle"],
    source="crossaudit",
    cost="4 (all of them are those of noise_profile), 4 without caption once a seed",
    response=POSITIONS,
)
