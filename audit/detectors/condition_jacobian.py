"""Score how strongly the predicted noise depends on the prompt embedding, by one backward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from audit.detectors.detector import ScreenDetector, Seen
from audit.detectors.noise_magnitude import magnitude

if TYPE_CHECKING:
    from torch import Tensor


def measure(seen: Seen) -> dict[str, Tensor]:
    """Estimate the Frobenius norm of `J = d eps(x_T, T, e) / d e` as `||J^T v||`: [B]; larger is more suspicious.

    `e` is the prompt embedding at all text positions. `v` is standard normal noise of the shape of `eps`, one draw per
    seed, independent of the initial noise (`audit.models.noise.second_latents`). The mean of `||J^T v||^2` over draws
    of `v` is `||J||_F^2` (Hutchinson, 1990).
    """
    assert seen.own is not None
    return {"condition_jacobian": magnitude(seen.own.projected_condition_jacobian())}


DETECTOR = ScreenDetector(
    name="condition_jacobian",
    version=1,
    columns=("condition_jacobian",),
    measure=measure,
    features=lambda columns: columns["condition_jacobian"][:, None],
    source="condition Jacobian at t = T, 2026",
    cost="1 and a backward pass",
    own_forwards=1,
)
