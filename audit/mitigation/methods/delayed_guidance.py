"""`delayed_guidance`: no guidance until the transition step (Jain et al., CVPR 2025)."""

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
class DelayedGuidance(Method):
    """Use the unconditional prediction alone until the transition step (Jain et al., CVPR 2025, section 4).

    With a static transition step, the conditional rows are not computed before it, so these forwards cost half.

    Attributes:
        until: The fraction of the steps that is not guided. None: until the first local minimum of
            ||eps(c) - eps(null)||, image by image (the dynamic transition step).
    """

    name: ClassVar[str] = "delayed_guidance"
    needs_guidance: ClassVar[bool] = True

    until: float | None = 0.2

    def __post_init__(self) -> None:
        if self.until is not None and not 0 <= self.until <= 1:
            raise UsageError(f"until is {self.until}", hint="Give a fraction of the steps from 0 to 1, or None.")

    def begin(self, prompts: Prompts) -> Effect:
        """Return the effect on one call.

        Args:
            prompts: The prompts of the call.
        """
        return _AtMinimum(prompts.images) if self.until is None else _AtFraction(self.until)


class _AtFraction(Effect):
    def __init__(self, until: float) -> None:
        self._until = until

    def _delayed(self, forward: Forward) -> bool:
        return forward.guided and forward.step < math.ceil(self._until * forward.steps - 1e-9)

    def unconditional_only(self, forward: Forward) -> bool:
        return self._delayed(forward) and bool(forward.on_N.all())

    def prediction(self, forward: Forward, predicted_BCHW: Tensor) -> Tensor:
        return unguided(predicted_BCHW, forward.on_N) if self._delayed(forward) else predicted_BCHW


class _AtMinimum(Effect):
    def __init__(self, images: int) -> None:
        self._before_N = torch.full((images,), torch.inf)
        self._guided_N = torch.zeros(images, dtype=torch.bool)

    def prediction(self, forward: Forward, predicted_BCHW: Tensor) -> Tensor:
        if not forward.guided or self._guided_N.all():
            return predicted_BCHW
        norm_N = guidance_norm(predicted_BCHW).cpu()
        self._guided_N |= norm_N > self._before_N
        self._before_N = norm_N
        return unguided(predicted_BCHW, forward.on_N & ~self._guided_N)


def guidance_norm(predicted_BCHW: Tensor) -> Tensor:
    """Compute ||eps(c) - eps(null)|| of both guidance branches: [N], in float32 or wider."""
    null_NCHW, conditional_NCHW = predicted_BCHW.chunk(2)
    wide = torch.promote_types(predicted_BCHW.dtype, torch.float32)
    return (conditional_NCHW - null_NCHW).to(wide).flatten(1).norm(dim=1)


def unguided(predicted_BCHW: Tensor, on_N: Tensor) -> Tensor:
    """Replace the conditional predictions of some images by their unconditional ones."""
    if not on_N.any():
        return predicted_BCHW
    null_NCHW, conditional_NCHW = predicted_BCHW.chunk(2)
    return torch.cat([null_NCHW, where_rows(on_N.to(null_NCHW.device), null_NCHW, conditional_NCHW)])
