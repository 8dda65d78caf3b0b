"""The sharpness of Jeon et al. against finite differences in float64."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

import audit
from audit.models.noise import initial_latent
from benchmarks.planted.sharpness import sharpness
from tests.support.toy import MODEL

CAPTIONS = ["a serene beach at sunrise, 35mm", "a dog", ""]


@pytest.fixture(scope="module")
def model() -> audit.Model:
    return audit.load_model(MODEL)


@pytest.fixture(scope="module")
def exact() -> StableDiffusionPipeline:
    """The same model as diffusers runs it, in float64."""
    return StableDiffusionPipeline.from_pretrained(MODEL).to(torch.float64)


@pytest.fixture(scope="module")
def change(exact: StableDiffusionPipeline) -> float:
    """The length of the change of the output along the response, by finite differences."""
    noise = initial_latent(5, (4, 16, 16)).double()[None]
    hidden, empty = (exact.encode_prompt(text, "cpu", 1, False)[0] for text in (CAPTIONS[0], ""))

    def difference(x: Tensor) -> Tensor:
        outputs = [exact.unet(x, 981, encoder_hidden_states=each).sample for each in (hidden, empty)]
        return outputs[0] - outputs[1]

    with torch.no_grad():
        direction, h = difference(noise), 1e-3
        found = (difference(noise + h * direction) - difference(noise - h * direction)) / (2 * h)
    return float(found.norm())


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_it_is_the_change_of_the_response_along_the_response(
    model: audit.Model, change: float, prediction: str
) -> None:
    """For v-prediction, the response and so its change along itself have a factor of alpha."""
    own = replace(model, scheduler_config={**model.scheduler_config, "prediction_type": prediction})
    alpha = float((1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000).double() ** 2).cumprod(0)[981])
    expected = change * (alpha if prediction == "v_prediction" else 1)
    assert sharpness(own, CAPTIONS[:1], 5, 1) == pytest.approx([expected], rel=1e-3)


def test_it_is_the_same_in_any_batch_and_order_and_leaves_the_model_as_it_was(model: audit.Model) -> None:
    before = copy.deepcopy(model.unet.state_dict())
    together, apart = sharpness(model, CAPTIONS, 1, 3), sharpness(model, CAPTIONS[::-1], 1, 2)[::-1]
    assert together == pytest.approx(apart, rel=1e-3)
    assert together[2] == 0
    assert len(set(together)) == 3
    assert all(torch.equal(value, before[name]) for name, value in model.unet.state_dict().items())
