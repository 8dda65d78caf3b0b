"""Find out which text positions carry what a model memorized: replace the embeddings of some by the empty prompt's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from audit.mitigation.methods.method import Effect, Forward, Method, Prompts
from audit.models.prompts import visible_positions

# Shapes: B rows of the UNet, N images, K text positions, D text width.

PARTS = ("bos", "words", "eos", "padding")


@dataclass(frozen=True)
class Replaced(Method):
    """Replace the embeddings of a part of the prompt by those of the empty prompt, for a measurement.

    Attributes:
        part: "bos", "words", "eos" or "padding".
    """

    name: ClassVar[str] = "replaced"

    part: str

    def begin(self, prompts: Prompts) -> Effect:
        """Encode the empty prompt, and return the effect on one call.

        Args:
            prompts: The prompts of the call.
        """
        counts_NW = prompts.counts_NW()
        first_NK, before_NK, prompt_NK = (
            visible_positions(counts, prompts.windows)
            for counts in (torch.ones_like(counts_NW), counts_NW - 1, counts_NW)
        )
        positions_NK = {
            "bos": first_NK,
            "words": before_NK & ~first_NK,
            "eos": prompt_NK & ~before_NK,
            "padding": ~prompt_NK,
        }[self.part]
        return _Replacing(prompts.empty_1KD(), positions_NK)


class _Replacing(Effect):
    def __init__(self, empty_1KD: Tensor, positions_NK: Tensor) -> None:
        self._empty_1KD, self._positions_NK = empty_1KD, positions_NK

    def text(self, forward: Forward, hidden_BKD: Tensor) -> tuple[Tensor, Tensor | None]:
        first = len(hidden_BKD) - len(self._positions_NK)
        changed_NKD = torch.where(self._positions_NK[..., None], self._empty_1KD, hidden_BKD[first:])
        return torch.cat([hidden_BKD[:first], changed_NKD]), None
