"""The schedule of networks trained by flow matching (arXiv 2210.02747), sampled by Euler steps.

The input at noise level s is `x = (1 - s) x_0 + s eps`, and the network predicts the velocity `v = eps - x_0`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from audit.models.sampler import SCREEN_STEPS, ddim
from audit.models.schedulers import resolve

# Shapes: B rows; C, H and W of the latent.

LONGEST = 1000  # the network is given 1000 s as the time


class FlowSchedule:
    """The schedule of a network that predicts the velocity of a flow (`audit.models.schedule.Schedule`).

    Args:
        levels: Noise levels s, from 1 or below down to the 0 at which a run ends.
    """

    def __init__(self, levels: Sequence[float] | Tensor) -> None:
        self._levels = torch.as_tensor(levels)
        self.timesteps: list[float] = (self._levels[:-1] * LONGEST).tolist()

    @property
    def first_informative(self) -> int:
        """Return the first position below s = 1, where the predicted noise is the input, whatever the caption."""
        return int((self._levels < 1).int().argmax())

    def _level(self, position: int) -> float:
        return float(self._levels[position])

    def alpha(self, position: int) -> float:
        """Return the share of the signal in the power of the input: (1 - s)² / ((1 - s)² + s²)."""
        level = self._level(position)
        return (1 - level) ** 2 / ((1 - level) ** 2 + level**2)

    def noisy(self, noise_BCHW: Tensor, position: int) -> Tensor:
        """Scale noise to the variance of the input, (1 - s)² + s²."""
        level = self._level(position)
        return noise_BCHW * ((1 - level) ** 2 + level**2) ** 0.5

    def step(self, output_BCHW: Tensor, position: int, latents_BCHW: Tensor) -> Tensor:
        """Take an Euler step (see `Schedule.step`), as `FlowMatchEulerDiscreteScheduler` does."""
        return latents_BCHW + (self._levels[position + 1] - self._levels[position]) * output_BCHW

    def to_epsilon(self, output_BCHW: Tensor, latents_BCHW: Tensor, position: int) -> Tensor:
        """Convert an output to predicted noise: `x + (1 - s) v` (see `Schedule`)."""
        return latents_BCHW + (1 - self._level(position)) * output_BCHW

    def to_original(self, output_BCHW: Tensor, latents_BCHW: Tensor, position: int) -> Tensor:
        """Convert an output to the predicted image: `x - s v` (see `Schedule`)."""
        return latents_BCHW.double() - self._level(position) * output_BCHW.double()

    def response(self, conditional_BCHW: Tensor, unconditional_BCHW: Tensor, position: int) -> Tensor:
        """Compute `eps(c) - eps(∅)`, which is `(1 - s) (v(c) - v(∅))` (see `Schedule`)."""
        return (1 - self._level(position)) * (conditional_BCHW - unconditional_BCHW)


@cache
def screen_flow() -> FlowSchedule:
    """Return the schedule of a screen: each level has the SNR of the same position in Stable Diffusion's schedule."""
    alphas_T = screen_alphas().double()
    noise_T = (1 - alphas_T).sqrt()
    return FlowSchedule(torch.cat([noise_T / (alphas_T.sqrt() + noise_T), noise_T.new_zeros(1)]))


@cache
def screen_alphas() -> Tensor:
    """Return the cumulative alphas of the 50 steps of Stable Diffusion: they say at which SNRs a screen looks."""
    written = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler: DDIMScheduler = ddim(resolve(written, "PNDMScheduler"), SCREEN_STEPS)
    return scheduler.alphas_cumprod[scheduler.timesteps]
