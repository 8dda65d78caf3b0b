"""Score the attention profile of the first four layers, at a fraction of a forward's cost (our own detector)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from audit.detectors.attention_profile import POSITION, bos_logits
from audit.detectors.detector import Columns, ScreenDetector, Seen
from audit.detectors.entropy import entropy

if TYPE_CHECKING:
    from torch import Tensor

LAYERS = 4


def measure(seen: Seen) -> dict[str, Tensor]:
    """Compute `H(a)` and `a_0` of layers 0 to 3 on the initial noise at t = 621: [B, 4] each."""
    attn_BLK = seen.attn_BLK[POSITION][:, :LAYERS]
    return {"early_entropy": entropy(attn_BLK), "early_bos": attn_BLK[..., 0].double()}


def features(columns: Columns) -> npt.NDArray[np.float64]:
    """Return the features of `attention_profile` for the first four layers: [N, 4]."""
    return bos_logits(columns["early_bos"])


DETECTOR = ScreenDetector(
    name="attention_profile_early",
    version=1,
    columns=("early_entropy", "early_bos"),
    measure=measure,
    features=features,
    source="crossaudit",
    cost="1, up to the 4th cross-attention layer",
    attention={POSITION: LAYERS},
    distance="either",
)
