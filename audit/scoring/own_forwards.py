"""Run the forwards of a screen that only one detector needs (`audit.detectors.detector.OwnForwards`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from audit.models.model import Model
from audit.models.noise import second_latents
from audit.models.sampler import epsilon_factor, guide, response, to_epsilon
from audit.scoring.batching import Batch, Rows

# Shapes: B rows, K text positions, D text width; C, H and W of the latent.

# A backward pass keeps the activations of all layers: 3.5 GiB per row of SD 1 at 512 pixels in float32. So it takes an
# eighth of the batch at a time. If that does not fit, the batch is halved, and this part of it too.
PARTS = 8


@dataclass(frozen=True, eq=False)
class BatchForwards:
    """Runs forwards on one batch of a screen.

    Attributes:
        rows: The rows that the batch belongs to.
        batch: The batch.
        scheduler: The 50-step schedule.
        position: First position at which the predicted noise depends on the caption.
        outputs: Outputs of the UNet with the captions on the initial noise, by position: [B, C, H, W].
        unconditional: Outputs of the UNet with the empty prompt, by position: [S, C, H, W], one row per seed.
    """

    rows: Rows
    batch: Batch
    scheduler: DDIMScheduler
    position: int
    outputs: Mapping[int, Tensor]
    unconditional: Mapping[int, Tensor]

    @property
    def hidden_BKD(self) -> Tensor:
        """Hidden states of the captions."""
        return self.batch.hidden_BKD

    @property
    def empty_1KD(self) -> Tensor:
        """Hidden states of the empty prompt."""
        return self.rows.empty_1KD

    @property
    def _model(self) -> Model:
        return self.rows.model

    @property
    def _noise_BCHW(self) -> Tensor:
        return self.rows.noise_SCHW[self.batch.seed_B]

    @property
    def _unconditional_BCHW(self) -> Tensor:
        return self.unconditional[self.position][self.batch.seed_B]

    def _timestep(self, position: int) -> int:
        return int(self.scheduler.timesteps[position])

    def response(self, hidden_BKD: Tensor) -> Tensor:
        """Compute `eps(hidden) - eps(∅)` at position 0: [B, C, H, W]; zero for the empty prompt.

        Args:
            hidden_BKD: Hidden states to predict with, one for each row of the batch.
        """
        timestep = self._timestep(self.position)
        output_BCHW = self._model.predict(self._noise_BCHW, timestep, hidden_BKD)
        response_BCHW = response(self.scheduler, output_BCHW, self._unconditional_BCHW, timestep)
        return response_BCHW.masked_fill(self.batch.same_as_empty_B[:, None, None, None], 0)

    def after_guided_step(self, scale: float) -> Tensor:
        """Compute `eps(c)` one timestep after a guided DDIM step from position 0: [B, C, H, W].

        Args:
            scale: Guidance scale of the step.
        """
        guided_BCHW = guide(self._unconditional_BCHW, self.outputs[self.position], scale)
        timestep = self._timestep(self.position)
        latents_BCHW = self.scheduler.step(guided_BCHW, timestep, self._noise_BCHW, return_dict=False)[0]
        timestep = self._timestep(self.position + 1)
        output_BCHW = self._model.predict(latents_BCHW, timestep, self.hidden_BKD)
        return to_epsilon(self.scheduler, output_BCHW, latents_BCHW, timestep)

    def projected_condition_jacobian(self) -> Tensor:
        """Compute `J^T v` at position 0, with `J = d eps(c) / d hidden`, by one backward pass: [B, K, D]."""
        seeds, shape = self.rows.seeds, self._model.latent_shape
        probe_BCHW = second_latents(seeds, shape, self._model.device)[self.batch.seed_B]
        fewer = max(1, len(self.hidden_BKD) // PARTS)
        parts = zip(*(each.split(fewer) for each in (self._noise_BCHW, self.hidden_BKD, probe_BCHW)), strict=True)
        projected_BKD = torch.cat([self._pulled_back(*part) for part in parts])
        return epsilon_factor(self.scheduler, self._timestep(self.position)) * projected_BKD.float()

    def _pulled_back(self, noise_BCHW: Tensor, hidden_BKD: Tensor, probe_BCHW: Tensor) -> Tensor:
        """Compute the gradient of `<v, output>` with respect to the hidden states, for a few rows."""
        with torch.inference_mode(False), torch.enable_grad():
            # Tensors made in inference mode cannot be saved for a backward pass; their copies can.
            noise_BCHW, probe_BCHW = noise_BCHW.clone(), probe_BCHW.clone()
            hidden_BKD = hidden_BKD.clone().requires_grad_()
            output_BCHW = self._model.predict(noise_BCHW, self._timestep(self.position), hidden_BKD)
            (output_BCHW * probe_BCHW).sum().backward(inputs=[hidden_BKD])  # autograd.grad cannot be counted
        assert hidden_BKD.grad is not None
        return hidden_BKD.grad
