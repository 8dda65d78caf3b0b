"""Run the forwards of a screen that only one detector needs (`audit.detectors.detector.OwnForwards`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from audit.models.model import Model
from audit.models.sampler import guide, response, to_epsilon
from audit.scoring.batching import Batch, Rows

# Shapes: B rows, K text positions, D text width; C, H and W of the latent.


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
