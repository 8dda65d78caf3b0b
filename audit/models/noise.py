"""Draw the initial noise, which is part of the contract: for one seed, it is the same for every caption."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from audit.models.transfers import to_device

# Shapes: S seeds, C channels, H and W of the latent.


def initial_latent(seed: int, shape: tuple[int, int, int]) -> Tensor:
    """Draw the initial latent of a seed: [C, H, W], float32, on the CPU (docs/explanation/method.md)."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


def initial_latents(seeds: Sequence[int], shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """Draw the initial latents of several seeds.

    Args:
        seeds: The seeds.
        shape: Shape of a latent, (C, H, W).
        device: Latents are drawn on the CPU and moved to this device.

    Returns:
        The latents: [S, C, H, W], float32, on `device`.
    """
    return to_device(torch.stack([initial_latent(seed, shape) for seed in seeds]), device)
