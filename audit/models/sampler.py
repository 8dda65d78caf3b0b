"""Sample by DDIM (arXiv 2010.02502) with eta 0 and the model's resolved parameters (`audit.models.schedulers`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from audit.errors import AuditError, UsageError
from audit.models.schedulers import PREDICTIONS

# Shapes: B rows; C, H and W of the latent.

# Positions named by detectors refer to this schedule, however many steps a run takes (position 0: t = 981 for SD).
SCREEN_STEPS = 50


def ddim(config: Mapping[str, Any], steps: int = SCREEN_STEPS) -> DDIMScheduler:
    """Make a DDIM scheduler with the given number of steps.

    Args:
        config: Resolved parameters, as in `Model.scheduler_config`.
        steps: Number of denoising steps.

    Raises:
        AuditError: The prediction type is not supported, or the schedule starts where epsilon prediction is undefined.
        UsageError: The number of steps does not fit the training timesteps.
    """
    scheduler = DDIMScheduler.from_config(config)
    prediction, longest = scheduler.config["prediction_type"], scheduler.config["num_train_timesteps"]
    if prediction not in PREDICTIONS:
        what = f"the scheduler's prediction_type is {prediction!r}"
        raise AuditError(what, hint=f"Supported: {', '.join(PREDICTIONS)}.", kind="unsupported_model")
    usual = f"Give a number from 1 to {longest - 1}, usually 20 to 50."
    if not 1 <= steps <= longest:
        raise UsageError(f"steps is {steps}", hint=usual)
    scheduler.set_timesteps(steps)
    first = int(scheduler.timesteps.max())
    if first >= longest:
        what = f"steps is {steps}, which starts at timestep {first} of {longest} (0 to {longest - 1})"
        raise UsageError(what, hint=usual)
    if prediction == "epsilon" and not bool((scheduler.alphas_cumprod[scheduler.timesteps] > 0).all()):
        raise AuditError(
            "the noise schedule has zero terminal SNR and the model predicts epsilon, which is undefined there",
            hint='Set prediction_type to "v_prediction" in scheduler_config.json if the model was trained that way, '
            'else timestep_spacing to "leading" or rescale_betas_zero_snr to false.',
            kind="unsupported_model",
        )
    return scheduler


def first_informative(scheduler: DDIMScheduler) -> int:
    """Return the first position of the schedule at which the predicted noise depends on the caption.

    With zero terminal SNR (arXiv 2305.08891) the cumulative alpha of the last training timestep is 0. The input is then
    pure noise, and the predicted noise is the input itself, whatever the caption.
    """
    alphas_T = scheduler.alphas_cumprod[scheduler.timesteps]
    return int((alphas_T > 0).int().argmax())


def to_epsilon(scheduler: DDIMScheduler, output_BCHW: Tensor, latents_BCHW: Tensor, timestep: int) -> Tensor:
    """Convert the UNet's output to predicted noise (v-prediction: arXiv 2202.00512, appendix D).

    Args:
        scheduler: Its prediction type and schedule are used.
        output_BCHW: Output of the UNet.
        latents_BCHW: Input of the UNet.
        timestep: Timestep of the forward.

    Returns:
        The predicted noise: [B, C, H, W].
    """
    if scheduler.config["prediction_type"] == "epsilon":
        return output_BCHW
    alpha = float(scheduler.alphas_cumprod[timestep])
    return alpha**0.5 * output_BCHW + (1 - alpha) ** 0.5 * latents_BCHW


def to_original(scheduler: DDIMScheduler, output_BCHW: Tensor, latents_BCHW: Tensor, timestep: int) -> Tensor:
    """Convert the UNet's output to the predicted image (arXiv 2202.00512, appendix D).

    For v-prediction nothing is divided by the cumulative alpha, which may be almost zero.

    Args:
        scheduler: Its prediction type and schedule are used.
        output_BCHW: Output of the UNet.
        latents_BCHW: Input of the UNet.
        timestep: Timestep of the forward.

    Returns:
        The predicted image: [B, C, H, W], float64.
    """
    alpha, output_BCHW, latents_BCHW = (
        float(scheduler.alphas_cumprod[timestep]),
        output_BCHW.double(),
        latents_BCHW.double(),
    )
    if scheduler.config["prediction_type"] == "epsilon":
        return (latents_BCHW - (1 - alpha) ** 0.5 * output_BCHW) / alpha**0.5
    return alpha**0.5 * latents_BCHW - (1 - alpha) ** 0.5 * output_BCHW


def response(scheduler: DDIMScheduler, conditional_BCHW: Tensor, unconditional_BCHW: Tensor, timestep: int) -> Tensor:
    """Compute `eps(c) - eps(∅)` from the UNet's two outputs on the same input.

    For v-prediction this is `sqrt(alpha) (v(c) - v(∅))`: the input cancels before it can cause rounding errors.

    Args:
        scheduler: Its prediction type and schedule are used.
        conditional_BCHW: Output of the UNet with the caption.
        unconditional_BCHW: Output of the UNet with the empty prompt.
        timestep: Timestep of both forwards.

    Returns:
        The difference of the predicted noise: [B, C, H, W].
    """
    difference_BCHW = conditional_BCHW - unconditional_BCHW
    if scheduler.config["prediction_type"] == "epsilon":
        return difference_BCHW
    return math.sqrt(float(scheduler.alphas_cumprod[timestep])) * difference_BCHW


def guide(unconditional_BCHW: Tensor, conditional_BCHW: Tensor, scale: float) -> Tensor:
    """Apply classifier-free guidance (arXiv 2207.12598, equation 6).

    Args:
        unconditional_BCHW: Output of the UNet with the empty prompt.
        conditional_BCHW: Output of the UNet with the caption.
        scale: Guidance scale.

    Returns:
        The guided output: [B, C, H, W].
    """
    return unconditional_BCHW + scale * (conditional_BCHW - unconditional_BCHW)
