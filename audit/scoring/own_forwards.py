"""Run the forwards of a screen that only one detector needs (`audit.detectors.detector.OwnForwards`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from audit.models.conditioning import Conditioning
from audit.models.model import Model
from audit.models.schedule import Schedule, guide
from audit.scoring.batching import Batch, Rows

# Shapes: B rows; C, H and W of the latent.


@dataclass(frozen=True, eq=False)
class BatchForwards:
    """Runs forwards on one batch of a screen.

    Attributes:
        rows: The rows that the batch belongs to.
        batch: The batch.
        schedule: The schedule of the screen.
        position: First position at which the predicted noise depends on the caption.
        outputs: Outputs of the denoiser with the captions on the initial noise, by position: [B, C, H, W].
        unconditional: Outputs of the denoiser without a caption, by position: [S, C, H, W], one row per seed.
    """

    rows: Rows
    batch: Batch
    schedule: Schedule
    position: int
    outputs: Mapping[int, Tensor]
    unconditional: Mapping[int, Tensor]

    @property
    def conditioning(self) -> Conditioning:
        """What the denoiser is given of the captions."""
        return self.batch.conditioning

    @property
    def null(self) -> Conditioning:
        """What the denoiser is given without a caption: one row."""
        return self.rows.null

    @property
    def _model(self) -> Model:
        return self.rows.model

    @property
    def _unconditional_BCHW(self) -> Tensor:
        return self.unconditional[self.position][self.batch.seed_B]

    @property
    def _input_BCHW(self) -> Tensor:
        return self.schedule.noisy(self.rows.noise_SCHW[self.batch.seed_B], self.position)

    def response(self, conditioning: Conditioning) -> Tensor:
        """Compute `eps(conditioning) - eps(∅)` at position 0: [B, C, H, W]; zero for the empty prompt.

        Args:
            conditioning: What the denoiser is given, one row for each of the batch.
        """
        output_BCHW = self._model.predict(self._input_BCHW, self.schedule.timesteps[self.position], conditioning)
        response_BCHW = self.schedule.response(output_BCHW, self._unconditional_BCHW, self.position)
        return response_BCHW.masked_fill(self.batch.same_as_empty_B[:, None, None, None], 0)

    def after_guided_step(self, scale: float) -> Tensor:
        """Compute `eps(c)` one timestep after a guided step from position 0: [B, C, H, W].

        Args:
            scale: Guidance scale of the step.
        """
        guided_BCHW = guide(self._unconditional_BCHW, self.outputs[self.position], scale)
        latents_BCHW = self.schedule.step(guided_BCHW, self.position, self._input_BCHW)
        after = self.position + 1
        output_BCHW = self._model.predict(latents_BCHW, self.schedule.timesteps[after], self.conditioning)
        return self.schedule.to_epsilon(output_BCHW, latents_BCHW, after)
