"""Locate the copy in the image from the attention to EOS at the end of a run (Chen et al., ICLR 2025)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from audit.detectors.detector import Columns, TrajectoryStep

if TYPE_CHECKING:
    from torch import Tensor


class BrightEnding:
    """Compute a mask, not a score: attention to EOS in the last step.

    The column `region` [B, Q] is the mean over heads and over the down layers of the highest resolution, relative to
    its highest value: 0 to 1.
    """

    name: ClassVar[str] = "bright_ending"
    version: ClassVar[int] = 1
    columns: ClassVar[tuple[str, ...]] = ("region",)
    scores: ClassVar[tuple[str, ...]] = ()
    source: ClassVar[str] = "Chen et al., ICLR 2025"
    cost: ClassVar[str] = "a generation"
    needs_attention: ClassVar[bool] = False
    needs_response: ClassVar[bool] = False
    needs_end: ClassVar[bool] = True

    def __init__(self, prompt_tokens_B: Tensor, steps: int) -> None:
        import torch

        self._last = steps - 1
        self._region_BQ = torch.zeros(len(prompt_tokens_B), 0)

    def observe(self, step: int, seen: TrajectoryStep) -> None:
        """Record what one step showed."""
        if step == self._last:
            assert seen.end_BQ is not None
            self._region_BQ = seen.end_BQ / seen.end_BQ.amax(1, keepdim=True)

    def result(self) -> dict[str, Tensor]:
        """Return the detector's columns: name -> values [B] or [B, n]."""
        return {"region": self._region_BQ}

    @staticmethod
    def features(name: str, columns: Columns) -> npt.NDArray[np.float64]:
        """Return the features [N, F] of a score from columns averaged over seeds."""
        raise NotImplementedError  # no score
