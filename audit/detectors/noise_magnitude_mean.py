"""Score the noise magnitude, averaged over all steps of a run (Wen et al., ICLR 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from audit.detectors.detector import Columns, TrajectoryStep
from audit.detectors.noise_magnitude import magnitude

if TYPE_CHECKING:
    from torch import Tensor


class NoiseMagnitudeMean:
    """Compute the mean over steps of `||eps(c) - eps(∅)||` at the run's own latents: [B]; larger is more suspicious."""

    name: ClassVar[str] = "noise_magnitude_mean"
    version: ClassVar[int] = 1
    columns: ClassVar[tuple[str, ...]] = ("noise_magnitude_mean",)
    scores: ClassVar[tuple[str, ...]] = ("noise_magnitude_mean",)
    source: ClassVar[str] = "Wen et al., ICLR 2024"
    cost: ClassVar[str] = "a generation"
    needs_attention: ClassVar[bool] = False
    needs_response: ClassVar[bool] = True
    needs_end: ClassVar[bool] = False

    def __init__(self, prompt_tokens_B: Tensor, steps: int) -> None:
        import torch

        self._steps = steps
        self._sum_B = torch.zeros(len(prompt_tokens_B), dtype=torch.float64, device=prompt_tokens_B.device)

    def observe(self, step: int, seen: TrajectoryStep) -> None:
        """Record what one step showed."""
        assert seen.response_BCHW is not None
        self._sum_B += magnitude(seen.response_BCHW)

    def result(self) -> dict[str, Tensor]:
        """Return the detector's columns: name -> values [B] or [B, n]."""
        return {"noise_magnitude_mean": self._sum_B / self._steps}

    @staticmethod
    def features(name: str, columns: Columns) -> npt.NDArray[np.float64]:
        """Return the features [N, F] of a score from columns averaged over seeds."""
        return columns[name][:, None]
