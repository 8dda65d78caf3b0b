"""`rescale`: mask the tail of the prompt and rescale the first key (arXiv 2403.11052, section 5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from audit.attention.probe import cross_attention_layers
from audit.attention.seam import Seam, Slot
from audit.errors import AuditError, UsageError
from audit.mitigation.methods.method import Effect, Forward, Method, Prompts
from audit.models.prompts import Keep, visible_positions

# Shapes: B rows of the UNet, N images, W windows, K text positions, V of them visible, D width of a head or of the
# text, H heads, Q image queries.

KEEP = ("eos", "words", "all")


@dataclass(frozen=True)
class Rescale(Method):
    """Multiply the logit of BOS by a factor, and mask the positions behind the prompt (arXiv 2403.11052, section 5).

    To multiply a logit, its key is multiplied. To mask a tail of positions, the hidden states are sliced, or masked
    where prompts differ in length. Attention stays fused.

    Attributes:
        bos_scale: Factor of the logit of the first text position of each window, in the conditional branch only; 1
            changes nothing.
        keep: Text positions that cross-attention may see in both branches: "eos" up to EOS, "words" up to the last
            word, "all". A longer negative prompt counts for both branches.
    """

    name: ClassVar[str] = "rescale"

    bos_scale: float = 1.25
    keep: Keep = "eos"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.bos_scale) and self.bos_scale >= 0):
            raise UsageError(
                f"bos_scale is {self.bos_scale}", hint="Give a finite number, 0 or more; the paper's is 1.25."
            )
        if self.keep not in KEEP:
            raise UsageError(f"keep is {self.keep!r}", hint=f"Give one of: {', '.join(KEEP)}.")

    def check(self, pipeline: Any) -> None:
        """Raise AuditError if the tokenizer does not put BOS first."""
        tokenizer = pipeline.tokenizer
        if tokenizer.bos_token_id is None or tokenizer("").input_ids[:1] != [tokenizer.bos_token_id]:
            what = "the tokenizer does not put BOS first, but BOS is the position that is rescaled"
            raise AuditError(what, where=type(pipeline).__name__, kind="unsupported_model")

    def begin(self, prompts: Prompts) -> Effect:
        """Return the effect on one call.

        Args:
            prompts: The prompts of the call.

        Raises:
            UsageError: The number of tokens of a prompt is needed but unknown.
        """
        visible_NK = torch.ones(prompts.images, prompts.length, dtype=torch.bool)
        first_K = torch.arange(prompts.length) % prompts.window == 0
        assert prompts.windows  # checks that the position of each BOS is known
        if self.keep != "all":
            counts_NW = prompts.counts_NW(negative=True) - int(self.keep == "words")
            visible_NK = visible_positions(counts_NW, prompts.length, prompts.window)
        return _Rescaling(self, visible_NK, first_K)


class _Rescaling(Effect):
    def __init__(self, method: Rescale, visible_NK: Tensor, first_K: Tensor) -> None:
        self._method, self._visible_NK, self._first_K = method, visible_NK, first_K
        self._end = 0  # number of positions of this forward

    def text(self, forward: Forward, hidden_BKD: Tensor) -> tuple[Tensor, Tensor | None]:
        visible_NK = self._visible_NK | ~forward.on_N[:, None]
        self._end = int(visible_NK.any(0).nonzero().max()) + 1
        visible_BV = visible_NK[:, : self._end].repeat(1 + forward.guided, 1)
        if self._end < hidden_BKD.shape[1]:
            hidden_BKD = hidden_BKD[:, : self._end].contiguous()
        return hidden_BKD, None if bool(visible_BV.all()) else visible_BV.to(hidden_BKD.device)

    def seam(self, forward: Forward, unet: UNet2DConditionModel) -> Seam:
        if self._method.bos_scale == 1:
            return _KeyScale(cross_attention_layers(unet), None)
        rescaled_BV = forward.conditional_B(torch.device("cpu"))[:, None] & self._first_K[: self._end]
        scale_BV = torch.where(rescaled_BV, torch.tensor(self._method.bos_scale, dtype=torch.float64), 1.0)
        scale_B1V1 = scale_BV[:, None, :, None].to(unet.device, forward.latents_NCHW.dtype)
        return _KeyScale(cross_attention_layers(unet), scale_B1V1)


class _KeyScale(Seam):
    """Multiplies the logits of text positions by multiplying their keys."""

    def __init__(self, layers: Sequence[Attention], scale_B1V1: Tensor | None) -> None:
        super().__init__(layers)
        self._scale_B1V1 = scale_B1V1

    def attend(self, slot: Slot, query_BHQD: Tensor, key_BHVD: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        return key_BHVD if self._scale_B1V1 is None else key_BHVD * self._scale_B1V1.to(key_BHVD.dtype)
