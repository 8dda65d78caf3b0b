"""DDIM (arXiv 2010.02502), eta 0, from the model's own scheduler configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from audit.errors import AuditError, UsageError

# Shapes: B rows, C channels, H and W of the latent.

# Positions named by a detector belong to this schedule, however many steps a run takes (position 0: t = 981 for SD).
SCREEN_STEPS = 50
PREDICTIONS = ("epsilon", "v_prediction")


def ddim(config: Mapping[str, Any], steps: int = SCREEN_STEPS) -> DDIMScheduler:
    """A DDIM scheduler of `steps` steps. Raises AuditError for steps or a prediction type that it cannot run."""
    scheduler = DDIMScheduler.from_config(config)
    prediction, longest = scheduler.config["prediction_type"], scheduler.config["num_train_timesteps"]
    if prediction not in PREDICTIONS:
        what = f"the scheduler's prediction_type is {prediction!r}"
        raise AuditError(what, do=f"Supported: {', '.join(PREDICTIONS)}.", kind="unsupported_model")
    if not 1 <= steps <= longest:
        raise UsageError(f"steps is {steps}", do=f"Give a number from 1 to {longest}, usually 20 to 50.")
    scheduler.set_timesteps(steps)
    return scheduler


def to_epsilon(scheduler: DDIMScheduler, output_BCHW: Tensor, latents_BCHW: Tensor, timestep: int) -> Tensor:
    """The UNet's output as predicted noise: [B, C, H, W] (v-prediction: arXiv 2202.00512, appendix D)."""
    if scheduler.config["prediction_type"] == "epsilon":
        return output_BCHW
    alpha = float(scheduler.alphas_cumprod[timestep])
    return alpha**0.5 * output_BCHW + (1 - alpha) ** 0.5 * latents_BCHW


def guide(unconditional_BCHW: Tensor, conditional_BCHW: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598, equation 6): [B, C, H, W]."""
    return unconditional_BCHW + scale * (conditional_BCHW - unconditional_BCHW)
