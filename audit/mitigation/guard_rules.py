"""Decide which samples of a training step look memorized: the rules of the guard (`audit.mitigation.training`).

A rule gives each sample a score, and the limit above which the sample is silenced. Attention depends on t, so a rule
keeps its statistics separately for each tenth of the timesteps.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import torch
from torch import Tensor, nn

from audit.calibration.distance import Distance, robust_scale
from audit.detectors.attention_profile import SMALLEST
from audit.detectors.entropy import entropy

# Shapes: B samples of a step, L layers, K text positions, F features, T tenths of the timesteps, W samples kept of one.

TENTHS = 10
REMEMBERED = 2000  # entropies per tenth over which the running quantile is taken
REFRESH = 10  # steps between updates of that quantile
CONTROL_REMEMBERED = 32  # control samples kept per tenth, from which distances are measured
CONTROL_WARMUP = 16  # a tenth is used once it has this many control samples
CONTROL_NEEDED = 160  # distances are fitted once all tenths in use have this many together


def mean_entropy(attn_BLK: Tensor) -> Tensor:
    """Compute `H(a)` of the attention averaged over all layers: [B], in nats."""
    return entropy(attn_BLK.mean(1))


class FixedEntropy:
    """Compares the entropy with one fixed limit (arXiv 2403.11052, section 5.2)."""

    def __init__(self, max_entropy: float) -> None:
        self._max_entropy = max_entropy

    def __call__(self, attn_BLK: Tensor, _tenth_B: Tensor) -> tuple[Tensor, Tensor]:
        """Compute scores and limits of attention [B, L, K]: [B] each."""
        entropy_B = mean_entropy(attn_BLK)
        return entropy_B, torch.full_like(entropy_B, self._max_entropy)


class EntropyQuantile:
    """Compares the entropy with the `max_quantile` of the previous 2,000 samples of the same tenth.

    The first `warmup` samples of a tenth have no limit. Nothing synchronises with the device.
    """

    def __init__(self, max_quantile: float, warmup: int) -> None:
        self._max_quantile, self._warmup = max_quantile, warmup
        self._entropies_TW = torch.full((TENTHS, REMEMBERED), torch.nan)
        self._counts_T = torch.zeros(TENTHS, dtype=torch.long)
        self._limit_T = torch.full((TENTHS,), torch.inf)
        self._steps = 0

    def __call__(self, attn_BLK: Tensor, tenth_B: Tensor) -> tuple[Tensor, Tensor]:
        """Compute scores and limits of attention [B, L, K]: [B] each. Remember the samples for later steps."""
        entropy_B = mean_entropy(attn_BLK)
        if self._steps == 0:
            device = entropy_B.device
            self._entropies_TW, self._counts_T = self._entropies_TW.to(device), self._counts_T.to(device)
        if self._steps % REFRESH == 0:
            limit_T = self._entropies_TW.nanquantile(self._max_quantile, dim=1)
            self._limit_T = torch.where(self._counts_T < self._warmup, torch.inf, limit_T)
        self._steps += 1
        one_hot_BT = nn.functional.one_hot(tenth_B, TENTHS)
        place_B = (one_hot_BT.cumsum(0) * one_hot_BT).sum(1) - 1 + self._counts_T[tenth_B]
        self._entropies_TW[tenth_B, place_B % REMEMBERED] = entropy_B.to(self._entropies_TW.dtype)
        self._counts_T += one_hot_BT.sum(0)
        return entropy_B, self._limit_T.to(entropy_B.dtype)[tenth_B]


class ControlDistance:
    """Compares the attention profile's distance from control captions with the `max_quantile` of their own distances.

    Features are scaled by the median and MAD of the latest control samples of the same tenth. All tenths share the
    covariance (fitted on one half of the samples) and the quantile (taken over the other half). No sample has a limit
    until there are enough control samples.
    """

    def __init__(self, max_quantile: float) -> None:
        self._max_quantile = max_quantile
        self._control = [deque[np.ndarray](maxlen=CONTROL_REMEMBERED) for _ in range(TENTHS)]
        self._fitted: list[Tensor] = []  # on the device: scaling per tenth, then the distance, then the limits

    def learn(self, attn_BLK: Tensor, tenth_B: Tensor) -> None:
        """Remember control samples, forget the oldest ones, and refit.

        Args:
            attn_BLK: Attention of the control samples.
            tenth_B: Tenth of the timesteps of each sample.
        """
        features_BF = _features(attn_BLK).double().cpu().numpy()
        for tenth, features_F in zip(tenth_B.tolist(), features_BF, strict=True):
            self._control[tenth].append(features_F)
        ready = [tenth for tenth in range(TENTHS) if len(self._control[tenth]) >= CONTROL_WARMUP]
        if sum(len(self._control[tenth]) for tenth in ready) < CONTROL_NEEDED:
            return
        centre_TF = np.zeros((TENTHS, features_BF.shape[1]))
        inverse_TF = np.zeros_like(centre_TF)
        scaled = []
        for tenth in ready:
            control_WF = np.stack(self._control[tenth])
            centre_TF[tenth], inverse_TF[tenth] = robust_scale(control_WF)
            scaled.append((control_WF - centre_TF[tenth]) * inverse_TF[tenth])
        control_NF = np.concatenate(scaled)
        distance = Distance.fit(control_NF[::2], one_sided=False)
        assert distance.precision is not None
        limit_T = np.full(TENTHS, np.inf)
        limit_T[ready] = np.quantile(distance(control_NF[1::2]), self._max_quantile, method="higher")
        fitted = (centre_TF, inverse_TF, distance.median, distance.inverse_scale, distance.precision, limit_T)
        self._fitted = [torch.from_numpy(array).to(attn_BLK.device) for array in fitted]

    def __call__(self, attn_BLK: Tensor, tenth_B: Tensor) -> tuple[Tensor, Tensor]:
        """Compute scores and limits of attention [B, L, K]: [B] each."""
        if not self._fitted:
            zero_B = attn_BLK.new_zeros(len(attn_BLK))
            return zero_B, torch.full_like(zero_B, torch.inf)
        centre_TF, inverse_TF, median_F, inverse_F, precision_FF, limit_T = self._fitted
        scaled_BF = (_features(attn_BLK) - centre_TF[tenth_B]) * inverse_TF[tenth_B]
        z_BF = (scaled_BF - median_F) * inverse_F
        return ((z_BF @ precision_FF) * z_BF).sum(1).clamp_min(0).sqrt(), limit_T[tenth_B]


def _features(attn_BLK: Tensor) -> Tensor:
    """Compute per layer the logit of `a_0` and the entropy of the attention left without BOS: [B, 2 L], float64.

    `H(a)` and `a_0` carry nearly the same information, and near-duplicate features drown out a distance. By the chain
    rule, `H(a) = H2(a_0) + (1 - a_0) H_rest` with `H2` the entropy of a coin; `H_rest` is what BOS does not tell.
    """
    bos_BL = attn_BLK[..., 0].double().clamp(SMALLEST, 1 - SMALLEST)
    coin_BL = torch.special.entr(bos_BL) + torch.special.entr(1 - bos_BL)
    return torch.cat([torch.logit(bos_BL), (entropy(attn_BLK) - coin_BL) / (1 - bos_BL)], dim=1)
