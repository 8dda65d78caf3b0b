"""Score how far the caption moves the predicted noise at one timestep of the middle (the default; our own detector)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from audit.detectors.detector import ScreenDetector, Seen
from audit.detectors.noise_profile import log_responses

if TYPE_CHECKING:
    from torch import Tensor

POSITION = 24  # t = 501 of SD's 50-step schedule; one of those of `noise_profile`


def measure(seen: Seen) -> dict[str, Tensor]:
    """Compute `log max(||eps(c) - eps(∅)||, 1e-3 ||eps(∅)||)` on the initial noise at t = 501: [B].

    A larger value is more suspicious.
    """
    return {"caption_response": log_responses(seen, [POSITION])[:, 0]}


DETECTOR = ScreenDetector(
    name="caption_response",
    version=1,
    columns=("caption_response",),
    measure=measure,
    features=lambda columns: columns["caption_response"][:, None],
    source="crossaudit",
    cost="1, 1 without caption once a seed",
    response=(POSITION,),
)
