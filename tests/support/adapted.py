"""Imitate a linear layer with a peft adapter."""

from __future__ import annotations

import torch
from torch import Tensor


class Adapted(torch.nn.Module):
    """A layer as peft substitutes it for a linear layer: the base layer plus a learned difference."""

    def __init__(self, base: torch.nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.delta = torch.nn.Linear(base.in_features, base.out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the base layer plus the difference."""
        output: Tensor = self.base_layer(x) + self.delta(x)
        return output
