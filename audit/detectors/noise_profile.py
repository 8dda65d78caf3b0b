"""Score how far the caption moves the predicted noise at eight timesteps, compared with control captions (ours)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from audit.detectors.detector import ScreenDetector, Seen
from audit.detectors.noise_magnitude import magnitude

if TYPE_CHECKING:
    from torch import Tensor

POSITIONS = (0, 6, 12, 18, 24, 30, 36, 42)  # t = 981, 861, 741, 621, 501, 381, 261, 141 of SD's 50-step schedule
FLOOR = 1e-3  # relative to ||eps(∅)||: where a caption has no effect, the logarithm would measure rounding errors


def measure(seen: Seen) -> dict[str, Tensor]:
    """Compute `log max(||eps(c) - eps(∅)||, 1e-3 ||eps(∅)||)` on the same initial noise at eight timesteps: [B, 8]."""
    return {"noise_response": log_responses(seen, POSITIONS)}


def log_responses(seen: Seen, positions: Sequence[int]) -> Tensor:
    """Compute the same at the given positions of the 50-step schedule: [B, positions]."""
    import torch

    logs = [
        torch.log(torch.maximum(magnitude(seen.response_BCHW[at]), FLOOR * magnitude(seen.unconditional_BCHW[at])))
        for at in positions
    ]
    return torch.stack(logs, dim=1)


DETECTOR = ScreenDetector(
    name="noise_profile",
    version=1,
    columns=("noise_response",),
    measure=measure,
    features=lambda columns: columns["noise_response"],
    source="crossaudit",
    cost="8 (one of them is that of attention_profile), 8 without caption once a seed",
    response=POSITIONS,
    distance="either",
)
