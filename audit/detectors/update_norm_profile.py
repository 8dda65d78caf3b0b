"""Score how far each step of a run moves the latents, compared with control captions (after Broken Memories)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from audit.detectors.detector import Columns, TrajectoryStep
from audit.detectors.noise_magnitude import magnitude

if TYPE_CHECKING:
    from torch import Tensor

# Shapes: B rows, N captions, T steps, P parts of the run.

PARTS = 10
FLOOR = 1e-3  # far below any update; a step that ends at the noise level where it began leaves rounding errors only


class UpdateNormProfile:
    """Compute the mean of `||x_(i+1) - x_i||` over each tenth of the steps: [B, 10].

    Part `p` consists of the steps from `floor(p T / 10)` to before `floor((p + 1) T / 10)`, at least one. A run of
    fewer than ten steps repeats steps, so that the number of values does not depend on the number of steps.
    """

    name: ClassVar[str] = "update_norm_profile"
    version: ClassVar[int] = 1
    columns: ClassVar[tuple[str, ...]] = ("update_norms",)
    scores: ClassVar[tuple[str, ...]] = ("update_norm_profile",)
    source: ClassVar[str] = "after Broken Memories, KDD 2026"
    cost: ClassVar[str] = "a generation"
    needs_attention: ClassVar[bool] = False
    needs_response: ClassVar[bool] = False
    needs_end: ClassVar[bool] = False

    def __init__(self, prompt_tokens_B: Tensor, steps: int) -> None:
        import torch

        device = prompt_tokens_B.device
        self._share_TP = torch.zeros(steps, PARTS, dtype=torch.float64)
        for part in range(PARTS):
            start = part * steps // PARTS
            stop = max(start + 1, (part + 1) * steps // PARTS)
            self._share_TP[start:stop, part] = 1 / (stop - start)
        self._share_TP = self._share_TP.to(device)
        self._norms_BP = torch.zeros(len(prompt_tokens_B), PARTS, dtype=torch.float64, device=device)

    def observe(self, step: int, seen: TrajectoryStep) -> None:
        """Record what one step showed."""
        assert seen.update_BCHW is not None
        self._norms_BP += magnitude(seen.update_BCHW)[:, None] * self._share_TP[step]

    def result(self) -> dict[str, Tensor]:
        """Return the detector's columns: name -> values [B] or [B, n]."""
        return {"update_norms": self._norms_BP}

    @staticmethod
    def features(name: str, columns: Columns) -> npt.NDArray[np.float64]:
        """Return the logarithms of the norms: [N, 10]."""
        return np.log(np.maximum(columns["update_norms"], FLOOR))
