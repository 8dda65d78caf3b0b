"""A stand-in for the adapters of peft."""

from __future__ import annotations

import torch
from torch import Tensor


class Adapted(torch.nn.Module):
    """What peft puts in the place of a linear layer."""

    def __init__(self, base: torch.nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.delta = torch.nn.Linear(base.in_features, base.out_features)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.base_layer(x) + self.delta(x)
        return output
