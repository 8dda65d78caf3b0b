"""Sample by DDIM (arXiv 2010.02502) with eta 0 and the model's resolved parameters (`audit.models.schedulers`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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


class DdimSchedule:
    """The schedule of a network that predicts noise or velocity (`audit.models.schedule.Schedule`), sampled by DDIM.

    Args:
        config: Resolved parameters, as in `Model.scheduler_config`.
        steps: Number of denoising steps.

    Raises:
        UsageError | AuditError: As `ddim`.
    """

    def __init__(self, config: Mapping[str, Any], steps: int = SCREEN_STEPS) -> None:
        self._scheduler = ddim(config, steps)
        self.timesteps: Sequence[int] = self._scheduler.timesteps.tolist()
        self._predicts_noise = self._scheduler.config["prediction_type"] == "epsilon"

    @property
    def first_informative(self) -> int:
        """Return the first position at which the predicted noise depends on the caption.

        With zero terminal SNR (arXiv 2305.08891) the cumulative alpha of the last training timestep is 0. The input is
        then pure noise, and the predicted noise is the input itself, whatever the caption.
        """
        alphas_T = self._scheduler.alphas_cumprod[self.timesteps]
        return int((alphas_T > 0).int().argmax())

    def alpha(self, position: int) -> float:
        """Return the cumulative alpha."""
        return float(self._scheduler.alphas_cumprod[self.timesteps[position]])

    def noisy(self, noise_BCHW: Tensor, position: int) -> Tensor:
        """Return the noise: the input has variance 1 at every position."""
        return noise_BCHW

    def step(self, output_BCHW: Tensor, position: int, latents_BCHW: Tensor) -> Tensor:
        """Take a DDIM step (see `Schedule.step`)."""
        timestep = self.timesteps[position]
        latents: Tensor = self._scheduler.step(output_BCHW, timestep, latents_BCHW, return_dict=False)[0]
        return latents

    def to_epsilon(self, output_BCHW: Tensor, latents_BCHW: Tensor, position: int) -> Tensor:
        """Convert an output to predicted noise (v-prediction: arXiv 2202.00512, appendix D; see `Schedule`)."""
        if self._predicts_noise:
            return output_BCHW
        alpha = self.alpha(position)
        return alpha**0.5 * output_BCHW + (1 - alpha) ** 0.5 * latents_BCHW

    def to_original(self, output_BCHW: Tensor, latents_BCHW: Tensor, position: int) -> Tensor:
        """Convert an output to the predicted image (arXiv 2202.00512, appendix D; see `Schedule`).

        For v-prediction nothing is divided by the cumulative alpha, which may be almost zero.
        """
        alpha, output_BCHW, latents_BCHW = self.alpha(position), output_BCHW.double(), latents_BCHW.double()
        if self._predicts_noise:
            return (latents_BCHW - (1 - alpha) ** 0.5 * output_BCHW) / alpha**0.5
        return alpha**0.5 * latents_BCHW - (1 - alpha) ** 0.5 * output_BCHW

    def response(self, conditional_BCHW: Tensor, unconditional_BCHW: Tensor, position: int) -> Tensor:
        """Compute `eps(c) - eps(∅)` (see `Schedule`).

        For v-prediction this is `sqrt(alpha) (v(c) - v(∅))`: the input cancels before it can cause rounding errors.
        """
        difference_BCHW = conditional_BCHW - unconditional_BCHW
        return difference_BCHW if self._predicts_noise else math.sqrt(self.alpha(position)) * difference_BCHW


class NearestSchedule(DdimSchedule):
    """The timesteps of a network whose cumulative alphas are nearest to given ones, sampled by DDIM.

    Args:
        config: Resolved parameters, as in `Model.scheduler_config`.
        alphas: Cumulative alphas, increasing.
    """

    def __init__(self, config: Mapping[str, Any], alphas: Tensor) -> None:
        super().__init__(config)
        self.timesteps = (self._scheduler.alphas_cumprod - alphas[:, None]).abs().argmin(1).tolist()

    def step(self, output_BCHW: Tensor, position: int, latents_BCHW: Tensor) -> Tensor:
        """Take a DDIM step to the next position (arXiv 2010.02502, equation 12, with eta 0; see `Schedule.step`)."""
        last = position + 1 == len(self.timesteps)
        alpha = float(self._scheduler.final_alpha_cumprod) if last else self.alpha(position + 1)
        epsilon_BCHW = self.to_epsilon(output_BCHW, latents_BCHW, position)
        original_BCHW = self.to_original(output_BCHW, latents_BCHW, position).to(epsilon_BCHW.dtype)
        return alpha**0.5 * original_BCHW + (1 - alpha) ** 0.5 * epsilon_BCHW
