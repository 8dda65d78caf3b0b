"""Locate and score the copy by what the caption adds to the score at the end of a run (Kim and Lee, ICML 2026)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from audit.detectors.detector import Columns, TrajectoryStep

if TYPE_CHECKING:
    from torch import Tensor

# Shapes: B rows, Q pixels of the latent; C, H and W of the latent.


class ScoreDifference:
    """Compute `sum over channels of ((eps(c) - eps(∅)) / sigma_t)^2` at each pixel of the latents in the last step.

    `sigma_t = sqrt(1 - alpha_t)`. Columns:

    - `score_difference` [B]: the mean over pixels. A larger value is more suspicious.
    - `difference_region` [B, Q]: the map relative to its highest value, 0 to 1; all 0 if the caption has no effect.
    """

    name: ClassVar[str] = "score_difference"
    version: ClassVar[int] = 1
    columns: ClassVar[tuple[str, ...]] = ("score_difference", "difference_region")
    scores: ClassVar[tuple[str, ...]] = ("score_difference",)
    source: ClassVar[str] = "Kim and Lee, ICML 2026"
    cost: ClassVar[str] = "a generation"
    needs_attention: ClassVar[bool] = False
    needs_response: ClassVar[bool] = True
    needs_end: ClassVar[bool] = False

    def __init__(self, prompt_tokens_B: Tensor, steps: int) -> None:
        import torch

        self._last = steps - 1
        self._map_BQ = torch.zeros(len(prompt_tokens_B), 0, dtype=torch.float64)

    def observe(self, step: int, seen: TrajectoryStep) -> None:
        """Record what one step showed."""
        if step == self._last:
            assert seen.response_BCHW is not None
            assert seen.alpha is not None
            self._map_BQ = seen.response_BCHW.double().square().sum(1).flatten(1) / (1 - seen.alpha)

    def result(self) -> dict[str, Tensor]:
        """Return the detector's columns: name -> values [B] or [B, n]."""
        highest_B1 = self._map_BQ.amax(1, keepdim=True)
        region_BQ = self._map_BQ / highest_B1.where(highest_B1 != 0, 1.0)
        return {"score_difference": self._map_BQ.mean(1), "difference_region": region_BQ}

    @staticmethod
    def features(name: str, columns: Columns) -> npt.NDArray[np.float64]:
        """Return the features [N, F] of a score from columns averaged over seeds."""
        return columns[name][:, None]
