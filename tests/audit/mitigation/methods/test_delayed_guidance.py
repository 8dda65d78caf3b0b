from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import audit
from audit.errors import UsageError
from audit.mitigation.families import Encoded, StableDiffusion
from audit.mitigation.methods.method import Forward, Prompts
from tests.support.sampler import encoded, sampled

PROMPT, GUIDANCE = "a dog", 5.0


@pytest.mark.parametrize(
    ("until", "steps", "delayed"), [(0.0, 4, 0), (0.25, 4, 1), (0.26, 4, 2), (0.5, 4, 2), (0.3, 10, 3), (1.0, 4, 4)]
)
def test_it_is_the_definition_in_float64(
    pipe: Any, latents: Any, noise: Tensor, until: float, steps: int, delayed: int
) -> None:
    def guide(step: int, null: Tensor, conditional: Tensor) -> Tensor:
        return null if step < delayed else null + GUIDANCE * (conditional - null)

    with audit.mitigated(pipe, audit.DelayedGuidance(until)):
        ours = latents(pipe, PROMPT, num_inference_steps=steps)
    expected = sampled(pipe, encoded(pipe, PROMPT), noise, steps, GUIDANCE, guide)
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("prompt", ["a dog", "a serene beach at sunrise, 35mm, golden hour"])
def test_the_dynamic_transition_is_the_first_local_minimum(pipe: Any, latents: Any, noise: Tensor, prompt: str) -> None:
    found: list[float] = []
    guided: list[bool] = []

    def guide(_step: int, null: Tensor, conditional: Tensor) -> Tensor:
        found.append(float((conditional - null).square().sum().sqrt()))
        guided.append(any(found[i] < found[i + 1] for i in range(len(found) - 1)))
        return null + GUIDANCE * (conditional - null) if guided[-1] else null

    with audit.mitigated(pipe, audit.DelayedGuidance(None)):
        ours = latents(pipe, prompt, num_inference_steps=10)
    expected = sampled(pipe, encoded(pipe, prompt), noise, 10, GUIDANCE, guide)
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-9, rtol=0)
    assert not guided[0]


def test_each_image_is_guided_from_its_own_minimum_on(pipe: Any) -> None:
    norms = [[3.0, 1.0], [2.0, 2.0], [2.5, 1.5], [1.0, 3.0]]  # per step: of each of two images
    given, of_two = {"num_images_per_prompt": 1}, Encoded(torch.zeros(2, 77, 32))
    prompts = Prompts(pipe, StableDiffusion(), given, of_two, True, None, None, lambda: of_two)
    effect, on = audit.DelayedGuidance(None).begin(prompts), torch.tensor([True, True])
    found = []
    for step, of_step in enumerate(norms):
        conditional = torch.zeros(2, 1, 2, 2)
        conditional[:, 0, 0, 0] = torch.tensor(of_step)
        forward = Forward(step, 4, 1, torch.zeros(2, 1, 2, 2), True, GUIDANCE, on)
        changed = effect.prediction(forward, torch.cat([torch.zeros_like(conditional), conditional]))
        found.append(changed[2:].flatten(1).norm(dim=1).tolist())
    assert found == [[0.0, 0.0], [0.0, 2.0], [2.5, 1.5], [1.0, 3.0]]


def test_steps_that_are_not_guided_cost_half(pipe: Any, latents: Any) -> None:
    rows: list[int] = []
    handle = pipe.unet.conv_in.register_forward_hook(lambda _module, args, _out: rows.append(len(args[0])))
    with audit.mitigated(pipe, audit.DelayedGuidance(0.5)):
        latents(pipe, PROMPT, num_inference_steps=4)
    handle.remove()
    assert rows == [1, 1, 2, 2]


@pytest.mark.parametrize("until", [-0.1, 1.5, float("nan")])
def test_until_is_a_fraction(until: float) -> None:
    with pytest.raises(UsageError, match="until is"):
        audit.DelayedGuidance(until)
