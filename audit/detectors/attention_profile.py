"""Score BOS attention of every layer halfway down the schedule, compared with control captions (our own detector)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.special import logit

from audit.detectors.detector import ALL_LAYERS, Columns, ScreenDetector, Seen
from audit.detectors.entropy import entropy

if TYPE_CHECKING:
    from torch import Tensor

POSITION = 18  # t = 621 of SD's 50-step schedule
SMALLEST = 1e-6  # probability; a float32 average cannot resolve smaller differences from 0 or 1


def measure(seen: Seen) -> dict[str, Tensor]:
    """Compute `H(a)` (for inspection) and `a_0` of each layer on the initial noise at t = 621: [B, L] each."""
    attn_BLK = seen.attn_BLK[POSITION]
    return {"layer_entropy": entropy(attn_BLK), "layer_bos": attn_BLK[..., 0].double()}


def bos_logits(bos_NL: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Compute the logit of `a_0` of each layer: [N, L].

    The entropy of the attention left without BOS could be a second feature per layer, but with it the distance detects
    less on every planted model (docs/evidence.md): useless features drown out useful ones.
    """
    return np.asarray(logit(np.clip(bos_NL, SMALLEST, 1 - SMALLEST)), dtype=np.float64)


def features(columns: Columns) -> npt.NDArray[np.float64]:
    """Return the features of the detector: [N, L]."""
    return bos_logits(columns["layer_bos"])


DETECTOR = ScreenDetector(
    name="attention_profile",
    version=1,
    columns=("layer_entropy", "layer_bos"),
    measure=measure,
    features=features,
    source="crossaudit",
    cost="1",
    attention={POSITION: ALL_LAYERS},
    distance="either",
)
