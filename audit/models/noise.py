"""The initial noise: part of the contract, the same for every caption of a seed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Shapes: S seeds, C channels, H and W of the latent.


def initial_latent(seed: int, shape: tuple[int, int, int]) -> Tensor:
    """The initial latent of a seed: [C, H, W], float32, on the CPU (docs/design.md, section 3, "Noise")."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


def initial_latents(seeds: Sequence[int], shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """The initial latents of several seeds: [S, C, H, W], float32, drawn on the CPU and moved to the device."""
    return torch.stack([initial_latent(seed, shape) for seed in seeds]).to(device)
