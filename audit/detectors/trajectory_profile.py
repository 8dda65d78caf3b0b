"""Score BOS attention of every layer in the late steps of a run, compared with control captions (our own detector)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from audit.detectors.attention_profile import bos_logits
from audit.detectors.detector import Columns, TrajectoryStep
from audit.detectors.entropy import entropy

if TYPE_CHECKING:
    from torch import Tensor


class TrajectoryProfile:
    """Compute the means of `H(a)` and `a_0` of each layer over the last fifth of the steps: [B, L] each.

    In models with a frozen text encoder, attention is informative in late steps (docs/explanation/method.md).
    """

    name: ClassVar[str] = "trajectory_profile"
    version: ClassVar[int] = 1
    columns: ClassVar[tuple[str, ...]] = ("late_entropy", "late_bos")
    scores: ClassVar[tuple[str, ...]] = ("trajectory_profile",)
    source: ClassVar[str] = "crossaudit"
    cost: ClassVar[str] = "a generation"
    needs_attention: ClassVar[bool] = True
    needs_response: ClassVar[bool] = False
    needs_end: ClassVar[bool] = False

    def __init__(self, prompt_tokens_B: Tensor, steps: int) -> None:
        import torch

        self._last = max(1, steps // 5)
        self._from = steps - self._last
        self._entropy_BL = self._bos_BL = torch.zeros((), dtype=torch.float64)

    def observe(self, step: int, seen: TrajectoryStep) -> None:
        """Record what one step showed."""
        assert seen.attn_BLK is not None
        if step >= self._from:
            self._entropy_BL = self._entropy_BL + entropy(seen.attn_BLK)
            self._bos_BL = self._bos_BL + seen.attn_BLK[..., 0].double()

    def result(self) -> dict[str, Tensor]:
        """Return the detector's columns: name -> values [B] or [B, n]."""
        return {"late_entropy": self._entropy_BL / self._last, "late_bos": self._bos_BL / self._last}

    @staticmethod
    def features(name: str, columns: Columns) -> npt.NDArray[np.float64]:
        """Return the features of `attention_profile` for the late steps: [N, L]."""
        return bos_logits(columns["late_bos"])
