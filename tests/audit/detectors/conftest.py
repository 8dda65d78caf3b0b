"""One network read as both prediction types, and plain float64 forwards of diffusers beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor

import audit
from audit.models.noise import initial_latent

SHAPE = (4, 16, 16)


@dataclass
class Reference:
    """Forwards in float64, on the 50-step schedule.

    Attributes:
        pipeline: The toy model in float64.
        prediction: "epsilon" or "v_prediction".
        zero_snr: Whether the schedule has zero terminal SNR.
    """

    pipeline: StableDiffusionPipeline
    prediction: str
    zero_snr: bool

    def __post_init__(self) -> None:
        own = {"prediction_type": self.prediction}
        if self.zero_snr:
            own |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        self.scheduler = DDIMScheduler.from_config(self.pipeline.scheduler.config, **own)
        self.scheduler.set_timesteps(50)
        self.first = 1 if self.zero_snr else 0
        self.timesteps = self.scheduler.timesteps.tolist()[self.first :]

    def alpha(self, t: int) -> float:
        return float(self.scheduler.alphas_cumprod[t].double())

    def hidden(self, caption: str) -> Tensor:
        return self.pipeline.encode_prompt(caption, "cpu", 1, False)[0].detach()

    def noise(self, seed: int) -> Tensor:
        return initial_latent(seed, SHAPE).double()[None]

    def output(self, x: Tensor, t: int, hidden: Tensor) -> Tensor:
        found: Tensor = self.pipeline.unet(x, t, encoder_hidden_states=hidden).sample
        return found

    def eps(self, x: Tensor, t: int, hidden: Tensor) -> Tensor:
        """Predicted noise."""
        output = self.output(x, t, hidden)
        if self.prediction == "epsilon":
            return output
        return self.alpha(t) ** 0.5 * output + (1 - self.alpha(t)) ** 0.5 * x


CASES = [("epsilon", False), ("v_prediction", False), ("v_prediction", True)]


@pytest.fixture(params=CASES, ids=["epsilon", "v", "v-zero-snr"])
def case(
    request: pytest.FixtureRequest, small: audit.Model, exact: StableDiffusionPipeline
) -> tuple[audit.Model, Reference]:
    """A model, and its reference in float64."""
    reference = Reference(exact, *request.param)
    given = {key: reference.scheduler.config[key] for key in small.scheduler_config}
    return replace(small, scheduler_config=given), reference


@pytest.fixture
def check_rows(small: audit.Model) -> Callable[[str], None]:
    """A check that a scalar screen detector gives each row the same value in any batch and order."""

    def check(detector: str) -> None:
        captions = ["a dog", "", "a serene beach at sunrise, 35mm", "word " * 200, "a red boat"]
        call: dict[str, Any] = {"seeds": [3, 8], "detectors": [detector], "resolution": 16}
        together = audit.screen(small, captions, **call, batch_size=10)[detector].to_pylist()
        other = audit.screen(small, captions[::-1], **call, batch_size=3)[detector].to_pylist()
        backwards = [other[2 * (4 - caption) + seed] for caption in range(5) for seed in range(2)]
        torch.testing.assert_close(
            torch.tensor(together).double(), torch.tensor(backwards).double(), rtol=2e-5, atol=2e-5
        )
        assert len({round(value, 4) for value in together}) > 5

    return check
