"""`weak_guidance`: a lower guidance scale (ours, for flagged prompts)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from audit.errors import UsageError
from audit.mitigation.methods.method import Effect, Forward, Method, Prompts, where_rows

# Shapes: B rows of the denoiser, N images; C, H and W of the latent.


@dataclass(frozen=True)
class WeakGuidance(Method):
    """Guide with another scale: eps(null) + scale (eps(c) - eps(null)). Meant for flagged prompts (`only=`); ours.

    Attributes:
        scale: The guidance scale. 1 is the conditional prediction, 0 the unconditional one, and a negative number
            guides away from the prompt (Jain et al., CVPR 2025, call it opposite guidance).
    """

    name: ClassVar[str] = "weak_guidance"
    needs_guidance: ClassVar[bool] = True

    scale: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise UsageError(f"scale is {self.scale}", hint="Give a finite number, usually from 0 to 2.")

    def begin(self, prompts: Prompts) -> Effect:
        """Return the effect on one call.

        Args:
            prompts: The prompts of the call.
        """
        return _Weaker(self.scale)


class _Weaker(Effect):
    def __init__(self, scale: float) -> None:
        self._scale = scale

    def prediction(self, forward: Forward, predicted_BCHW: Tensor) -> Tensor:
        if not forward.guided or not forward.on_N.any():
            return predicted_BCHW
        null_NCHW, conditional_NCHW = predicted_BCHW.chunk(2)
        weak_NCHW = torch.lerp(null_NCHW, conditional_NCHW, self._scale / forward.guidance_scale)
        return torch.cat([null_NCHW, where_rows(forward.on_N.to(null_NCHW.device), weak_NCHW, conditional_NCHW)])
