from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import audit
from audit.models.noise import initial_latent, second_latents

CAPTION = "a serene beach at sunrise, 35mm"
SHAPE = (4, 16, 16)


def second_draw(seed: int) -> Tensor:
    """What the seed's generator gives after the initial noise."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPE, generator=generator) for _ in range(2)][1].double()[None]


def test_it_is_the_norm_of_the_projected_jacobian(case: tuple[audit.Model, Any]) -> None:
    model, reference = case
    t, x, v, e = reference.timesteps[0], reference.noise(5), second_draw(5), reference.hidden(CAPTION)
    given = e.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((reference.eps(x, t, given) * v).sum(), given)
    found = audit.screen(model, [CAPTION], [5], ["condition_jacobian"])["condition_jacobian"][0].as_py()
    assert found == pytest.approx(float(gradient.norm()), rel=1e-4)
    # The same without a gradient: the derivative of <v, eps> along the direction in which it is largest.
    u, h = gradient / gradient.norm(), 1e-4
    with torch.no_grad():
        change = ((reference.eps(x, t, e + h * u) - reference.eps(x, t, e - h * u)) * v).sum() / (2 * h)
    assert found == pytest.approx(float(change), rel=1e-4)


def test_the_projection_is_not_the_initial_noise() -> None:
    first, second = initial_latent(5, SHAPE), second_latents([5], SHAPE, torch.device("cpu"))[0]
    assert abs(torch.cosine_similarity(first.flatten(), second.flatten(), dim=0)) < 0.1
    torch.testing.assert_close(second.double(), second_draw(5)[0])


def test_it_is_the_same_in_any_batch_and_order(check_rows: Callable[[str], None]) -> None:
    check_rows("condition_jacobian")


def test_it_takes_one_forward_and_none_without_caption(sd1: audit.Model) -> None:
    sizes: list[int] = []
    graded: list[bool] = []

    def note(_: Any, inputs: Any, given: dict[str, Tensor]) -> None:
        sizes.append(len(inputs[0]))
        graded.append(given["encoder_hidden_states"].requires_grad)

    handle = sd1.unet.register_forward_pre_hook(note, with_kwargs=True)
    audit.screen(sd1, ["a dog"], detectors=["condition_jacobian"])
    audit.screen(sd1, ["a dog"], detectors=["condition_jacobian", "noise_magnitude"])
    handle.remove()
    assert sizes == [1, 1, 1, 1]
    assert graded == [True, False, False, True]
    assert all(parameter.grad is None for parameter in sd1.unet.parameters())
