"""`rescale`: mask the tail of the prompt and rescale the first key (arXiv 2403.11052, section 5)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from audit.attention.seam import Seam
from audit.errors import AuditError, UsageError
from audit.mitigation.families import Family, supported
from audit.mitigation.methods.method import Effect, Forward, Method, Prompts
from audit.mitigation.text_keys import ScaledKeys
from audit.models.prompts import Keep, has_bos, has_end, visible_positions

# Shapes: B rows of the denoiser, N images, W windows, K text positions, V of them that it is given, D text width.

KEEP = ("eos", "words", "all")


@dataclass(frozen=True)
class Rescale(Method):
    """Multiply the logit of BOS by a factor, and mask the positions behind the prompt (arXiv 2403.11052, section 5).

    To multiply a logit, its key is multiplied. Positions that no prompt of a batch may see are left out, others are
    masked. Attention stays fused. In joint attention, both hold for the queries of the text too.

    Attributes:
        bos_scale: Factor of the logit of BOS, the first text position of each window of CLIP, in the conditional branch
            only; 1 changes nothing. T5 has no BOS.
        keep: Text positions that attention may see in both branches: "eos" up to EOS, "words" up to the last word,
            "all". A longer negative prompt counts for both branches. The first position is always kept.
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
        """Raise AuditError if the tokenizer does not put BOS first, or if there is nothing to mask."""
        super().check(pipeline)
        family, _ = supported(pipeline)
        what, tokenizer = None, family.tokenizer(pipeline)
        if self.bos_scale != 1 and not has_bos(tokenizer):
            what = "the tokenizer does not put BOS first, but BOS is the position that is rescaled"
            hint = "The first position is a word, so that only masking has a meaning: give bos_scale=1."
        elif self.keep == "words" and not has_end(tokenizer):
            what = "the tokenizer puts no END behind the prompt, but END is what keep=words hides"
            hint = "Give keep=all, with a bos_scale other than 1."
        elif family.hides_padding and self.keep == "eos":
            what = "the pipeline hides padding itself, so that keep=eos changes nothing"
            hint = "Give keep=words, which hides END too, or keep=all if the prompt has no END."
        if what is not None:
            raise AuditError(what, where=type(pipeline).__name__, hint=hint, kind="unsupported_model")

    def begin(self, prompts: Prompts) -> Effect:
        """Return the effect on one call.

        Args:
            prompts: The prompts of the call.

        Raises:
            UsageError: The number of tokens of a prompt is needed but unknown.
        """
        windows = prompts.windows
        visible_NK = torch.ones(prompts.images, prompts.length, dtype=torch.bool)
        bos_K = torch.cat([(torch.arange(window.length) == 0) & window.has_bos for window in windows])
        if self.keep != "all":
            counts_NW = prompts.counts_NW(negative=True) - int(self.keep == "words")
            visible_NK = visible_positions(counts_NW, windows)
            visible_NK[:, 0] = True
        return _Rescaling(self, prompts.family, visible_NK, bos_K)


class _Rescaling(Effect):
    def __init__(self, method: Rescale, family: Family, visible_NK: Tensor, bos_K: Tensor) -> None:
        self._method, self._family, self._visible_NK, self._bos_K = method, family, visible_NK, bos_K

    def text(self, forward: Forward, hidden_BKD: Tensor) -> tuple[Tensor, Tensor | None]:
        visible_NK = self._visible_NK | ~forward.on_N[:, None]
        return hidden_BKD, visible_NK.repeat(1 + forward.guided, 1)

    def seam(self, forward: Forward, denoiser: Any, positions_V: Tensor) -> Seam:
        layers, keys = self._family.layers(denoiser), self._family.text_keys(len(positions_V))
        if self._method.bos_scale == 1:
            return ScaledKeys(layers, keys, None)
        rescaled_BV = forward.conditional_B(torch.device("cpu"))[:, None] & self._bos_K[positions_V]
        scale_BV = torch.where(rescaled_BV, torch.tensor(self._method.bos_scale, dtype=torch.float64), 1.0)
        return ScaledKeys(layers, keys, scale_BV.to(denoiser.device, forward.latents_NCHW.dtype))
