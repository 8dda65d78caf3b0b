"""`attenuate`: lower the logits of text positions that stand out (after GUARD, ICML 2026)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from audit.attention.probe import down_and_mid_layers
from audit.attention.seam import Seam, Slot
from audit.errors import AuditError, UsageError
from audit.mitigation.families import supported
from audit.mitigation.methods.method import Effect, Forward, Method, Prompts

# Shapes: B rows of the UNet, C conditional ones of them, H heads, Q image queries, K text positions, D width of a head.


@dataclass(frozen=True)
class Attenuate(Method):
    """Multiply the logits of text positions that stand out, in down and mid layers (after GUARD, ICML 2026).

    In each head of each conditional row: S = q k / sqrt(d), M_k = max over q of S. M is standardised over the positions
    k >= 1, with the population's standard deviation. The logits of positions k >= 1 with a z-score above `tau` are
    multiplied by `alpha`.

    Attributes:
        alpha: Factor of the logits; 1 changes nothing.
        tau: The z-score above which a position stands out.
    """

    name: ClassVar[str] = "attenuate"
    needs_unet: ClassVar[str] = "changes the down and mid layers of a UNet"

    alpha: float = 0.3
    tau: float = 2.0

    def __post_init__(self) -> None:
        for name in ("alpha", "tau"):
            if not math.isfinite(getattr(self, name)):
                raise UsageError(f"{name} is {getattr(self, name)}", hint="Give a finite number.")

    def check(self, pipeline: Any) -> None:
        """Raise AuditError if the UNet has no cross-attention in its down blocks and its mid block."""
        super().check(pipeline)
        _, unet = supported(pipeline)
        if not down_and_mid_layers(unet):
            what = "the UNet has no cross-attention in its down blocks and its mid block"
            raise AuditError(what, where=type(pipeline).__name__, hint="Use another method.", kind="unsupported_model")

    def begin(self, prompts: Prompts) -> Effect:
        """Return the effect on one call.

        Args:
            prompts: The prompts of the call.
        """
        return _Attenuating(self)


class _Attenuating(Effect):
    def __init__(self, method: Attenuate) -> None:
        self._method = method

    def seam(self, forward: Forward, denoiser: Any, positions_V: Tensor) -> Seam | None:
        if not forward.on_N.any():
            return None
        return _Attenuation(down_and_mid_layers(denoiser), forward.on_N.to(denoiser.device), self._method)


class _Attenuation(Seam):
    """Multiplies, head by head, the keys of positions that stand out in the conditional rows, which are the last."""

    def __init__(self, layers: Sequence[Attention], on_C: Tensor, method: Attenuate) -> None:
        super().__init__(layers)
        self._on_C, self._alpha, self._tau = on_C, method.alpha, method.tau

    def attend(self, slot: Slot, query_BHQD: Tensor, key_BHKD: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        rows = slice(len(query_BHQD) - len(self._on_C), None)
        factor_CHK = self._factor(query_BHQD[rows], key_BHKD[rows], scale)
        changed_CHKD = key_BHKD[rows] * factor_CHK[..., None].to(key_BHKD.dtype)
        return torch.cat([key_BHKD[: rows.start], changed_CHKD])

    def _factor(self, query_CHQD: Tensor, key_CHKD: Tensor, scale: float) -> Tensor:
        """Return the factor of each logit: [C, H, K]."""
        highest_CHK = (query_CHQD @ key_CHKD.transpose(-1, -2)).amax(2) * scale
        wide = highest_CHK[..., 1:].to(torch.promote_types(highest_CHK.dtype, torch.float32))
        deviation_CHK = wide - wide.mean(-1, keepdim=True)
        spread_CH1 = deviation_CHK.square().mean(-1, keepdim=True).sqrt()
        stands_out_CHK = (deviation_CHK > self._tau * spread_CH1) & self._on_C[:, None, None]
        factor_CHK = torch.where(stands_out_CHK, torch.full_like(wide, self._alpha), 1.0)
        return torch.nn.functional.pad(factor_CHK, (1, 0), value=1.0)
