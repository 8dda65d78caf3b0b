"""`dilute`: move the embeddings of the prompt towards those of the empty prompt (ours)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from audit.errors import UsageError
from audit.mitigation.methods.method import Effect, Forward, Method, Prompts, where_rows

# Shapes: B rows of the denoiser, N images, K text positions, D text width.


@dataclass(frozen=True)
class Dilute(Method):
    """Replace the embeddings e of a prompt by e0 + share (e - e0), e0 being those of the empty prompt (our method).

    A small change of the embedding ends a memorized image but keeps the subject. Meant for flagged prompts (`only=`).

    Attributes:
        share: What is left of the prompt, from 0 (the empty prompt) to 1 (no change).
    """

    name: ClassVar[str] = "dilute"

    share: float = 0.4

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UsageError(f"share is {self.share}", hint="Give a number from 0 to 1.")

    def begin(self, prompts: Prompts) -> Effect:
        """Encode the empty prompt, and return the effect on one call.

        Args:
            prompts: The prompts of the call.
        """
        return _Diluting(self.share, prompts.empty_1KD())


class _Diluting(Effect):
    def __init__(self, share: float, empty_1KD: Tensor) -> None:
        self._share, self._empty_1KD = share, empty_1KD

    def text(self, forward: Forward, hidden_BKD: Tensor) -> tuple[Tensor, Tensor | None]:
        if not forward.on_N.any():
            return hidden_BKD, None
        diluted_BKD = torch.lerp(self._empty_1KD.to(hidden_BKD), hidden_BKD, self._share)
        return where_rows(forward.conditional_B(hidden_BKD.device), diluted_BKD, hidden_BKD), None
