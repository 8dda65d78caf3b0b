"""Score the entropy of one early layer at the first step (arXiv 2403.11052, section 4.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from audit.detectors.detector import ScreenDetector, Seen
from audit.detectors.entropy import entropy

if TYPE_CHECKING:
    from torch import Tensor

LAYER = 3  # the 4th cross-attention layer: `down_blocks.1.attentions.1` in SD


def measure(seen: Seen) -> dict[str, Tensor]:
    """Compute `H(a)` of layer 3 at t = T: [B], in nats. A larger value is more suspicious."""
    return {"entropy_single_step": entropy(seen.attn_BLK[0][:, LAYER])}


DETECTOR = ScreenDetector(
    name="entropy_single_step",
    version=1,
    columns=("entropy_single_step",),
    measure=measure,
    features=lambda columns: columns["entropy_single_step"][:, None],
    source="Ren et al., ECCV 2024 (arXiv 2403.11052), section 4.2",
    cost="1, up to the 4th cross-attention layer",
    attention={0: LAYER + 1},
)
