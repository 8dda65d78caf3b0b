"""Ours: entropy and BOS attention of every layer, halfway down the schedule, against null captions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from audit.detectors.detector import ALL_LAYERS, Columns, ScreenDetector, Seen
from audit.entropy import entropy

POSITION = 18  # t = 621 of SD's 50-step schedule
SMALLEST = 1e-6  # of a probability; a float32 average knows no smaller difference from 0 or 1


def measure(seen: Seen) -> dict[str, Tensor]:
    """`H(a)` and `a_0` of each layer on the initial noise at t = 621: [B, L] each."""
    attn_BLK = seen.attn_BLK[POSITION]
    return {"layer_entropy": entropy(attn_BLK), "layer_bos": attn_BLK[..., 0].double()}


def profile(entropy_NL: Tensor, bos_NL: Tensor) -> Tensor:
    """Per layer the logit of `a_0` and the entropy of the attention left without BOS: [N, 2 L], float64.

    `H(a)` and `a_0` are nearly the same number, and near-duplicates drown a distance. By the chain rule
    `H(a) = H2(a_0) + (1 - a_0) H_rest`, with `H2` the entropy of a coin: `H_rest` is what BOS does not tell.
    """
    bos_NL = bos_NL.double().clamp(SMALLEST, 1 - SMALLEST)
    coin_NL = torch.special.entr(bos_NL) + torch.special.entr(1 - bos_NL)
    return torch.cat([torch.logit(bos_NL), (entropy_NL - coin_NL) / (1 - bos_NL)], dim=1)


def profile_of(columns: Columns, names: tuple[str, ...]) -> npt.NDArray[np.float64]:
    """`profile` of the columns of that name, entropy and BOS attention: [N, 2 L]."""
    entropy_NL, bos_NL = (torch.tensor(columns[name]) for name in names)
    return np.asarray(profile(entropy_NL, bos_NL), dtype=np.float64)


def features(columns: Columns) -> npt.NDArray[np.float64]:
    """[N, 2 L]."""
    return profile_of(columns, DETECTOR.columns)


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
