"""Decide during a guided run whether its prompt is memorized, from what the run computes anyway (our method).

At each of the first steps the run computes eps(c) and eps(null). Their distance, divided by its median over control
captions at the same step and averaged over the steps so far, is compared with that of the control captions' own runs.
An image is flagged at the first step at which fewer of them than a level are as high. The level is as high as it can be
if at most `max_p` of the control captions are flagged at any of the steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from audit.errors import UsageError
from audit.mitigation.methods.bands import RunBands
from audit.mitigation.methods.delayed_guidance import guidance_norm

# Shapes: N images, R runs of control captions, F steps at which images are flagged; B rows of the UNet.

FLAG_STEPS = 3


class RunFlag:
    """Thresholds of the mean relative guidance norm at the first steps.

    Args:
        bands: Runs of control captions.
        max_p: The fraction of control captions that may be flagged.
        steps: Number of steps at which images are flagged.

    Raises:
        UsageError: The arguments are invalid, or there are fewer control captions than 1 / `max_p`.
    """

    def __init__(self, bands: RunBands, max_p: float, steps: int = FLAG_STEPS) -> None:
        runs = len(bands.guidance)
        flagged = int(max_p * runs + 1e-9)
        if flagged < 1:
            what = f"max_p is {max_p}, but the bands have only {runs} runs of control captions"
            raise UsageError(what, hint=f"Fit bands with at least {int(np.ceil(1 / max_p)):,} control captions.")
        self.bands = bands
        guidance_RF = np.array(bands.guidance)[:, :steps]
        self.median_F = np.median(guidance_RF, axis=0)
        mean_RF = running_mean(guidance_RF / self.median_F)
        sorted_RF = np.sort(mean_RF, axis=0)
        higher_RF = np.stack([_as_high(column, own) for column, own in zip(sorted_RF.T, mean_RF.T, strict=True)], 1)
        rarest_R = np.sort(higher_RF.min(axis=1))
        # The number of control captions as high, below which an image is flagged.
        self.level = int(rarest_R[flagged]) if flagged < runs else runs + 1
        # A value is flagged if it is higher than the threshold: then fewer than `level` control values are as high.
        self.threshold_F = sorted_RF[runs - self.level] if self.level <= runs else np.full(len(self.median_F), -np.inf)

    def begin(self, pipeline: Any, images: int) -> RunFlagging:
        """Return the decisions of one call, in which no image is flagged yet.

        Args:
            pipeline: The pipeline that is called.
            images: Number of images of the call.
        """
        return RunFlagging(self, pipeline, images)


class RunFlagging:
    """The decisions of one call."""

    def __init__(self, flag: RunFlag, pipeline: Any, images: int) -> None:
        self._flag, self._pipeline, self._sum_N = flag, pipeline, np.zeros(images)

    def new(self, step: int, latent_shape: tuple[int, ...], predicted_BCHW: Tensor) -> Tensor | None:
        """Tell which images are above the threshold of this step: [N] bool, on the CPU; None after the last one.

        Args:
            step: The step that was computed.
            latent_shape: (C, H, W) of the latents.
            predicted_BCHW: The UNet's output for both guidance branches.
        """
        if step == 0:
            self._flag.bands.check_call(self._pipeline, latent_shape)
        if step >= len(self._flag.threshold_F):
            return None
        self._sum_N += guidance_norm(predicted_BCHW).cpu().double().numpy() / self._flag.median_F[step]
        return torch.from_numpy(self._sum_N / (step + 1) > self._flag.threshold_F[step])


def running_mean(values_RF: np.ndarray) -> np.ndarray:
    """Average each row over its first 1, 2, ... F values: [R, F]."""
    means_RF: np.ndarray = np.cumsum(values_RF, axis=1) / np.arange(1, values_RF.shape[1] + 1)
    return means_RF


def _as_high(sorted_R: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Count the control values that are at least as high as each value."""
    return len(sorted_R) - np.searchsorted(sorted_R, values, side="left")
