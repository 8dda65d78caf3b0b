"""A model that is made fast computes what it computed, and the keys and values of a text once."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers.models.activations import GEGLU
from torch import Tensor, nn

import audit
from benchmarks.planted.bench.model import ChannelsLastGroupNorm, Remembered, SplitGeglu, make_fast
from tests.support.paths import DATA


@pytest.fixture
def projection() -> nn.Linear:
    layer = nn.Linear(4, 3)
    layer.__class__ = Remembered
    return layer


def texts() -> Tensor:
    return torch.randn(2, 5, 4)


@torch.no_grad()
def test_the_same_tensor_is_projected_once(projection: nn.Linear) -> None:
    hidden_BKD = texts()
    first_BKE = projection(hidden_BKD)
    assert projection(hidden_BKD) is first_BKE
    assert torch.equal(first_BKE, nn.functional.linear(hidden_BKD, projection.weight, projection.bias))


@torch.no_grad()
def test_a_tensor_that_takes_the_place_of_a_freed_one_is_projected_anew(projection: nn.Linear) -> None:
    for _ in range(20):
        hidden_BKD = texts()
        assert torch.equal(projection(hidden_BKD), nn.functional.linear(hidden_BKD, projection.weight, projection.bias))
        del hidden_BKD


def test_gradients_reach_the_text_each_time(projection: nn.Linear) -> None:
    hidden_BKD = texts().requires_grad_()
    for _ in range(2):
        (gradient_BKD,) = torch.autograd.grad(projection(hidden_BKD).sum(), hidden_BKD)
        assert gradient_BKD.abs().sum() > 0


@pytest.mark.parametrize("shape", [(2, 12, 6, 4), (2, 12, 1, 1), (2, 12, 7)])
def test_group_normalisation_is_that_of_torch(shape: tuple[int, ...]) -> None:
    layer = nn.GroupNorm(3, 12).double()
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    fast, input_BCHW = copy.deepcopy(layer), 5 + torch.randn(shape, dtype=torch.float64)
    fast.__class__ = ChannelsLastGroupNorm
    torch.testing.assert_close(fast(input_BCHW), layer(input_BCHW))


def test_a_gated_unit_is_that_of_diffusers() -> None:
    layer = GEGLU(6, 8).double()
    fast, hidden_BSD = copy.deepcopy(layer), torch.randn(2, 5, 6, dtype=torch.float64)
    fast.__class__ = SplitGeglu
    torch.testing.assert_close(fast(hidden_BSD), layer(hidden_BSD))


@torch.inference_mode()
def test_a_unet_predicts_the_same_and_projects_each_text_once() -> None:
    plain, fast = (audit.load_model(DATA / "toy-model").networks["unet"] for _ in range(2))
    make_fast(fast)
    assert {ChannelsLastGroupNorm, Remembered, SplitGeglu} <= {type(layer) for layer in fast.modules()}
    hidden_BKD = torch.randn(2, 16, plain.config.cross_attention_dim)
    kept = set()
    for timestep in (900, 500):
        latents_BCHW = torch.randn(2, plain.config.in_channels, 8, 8)
        found = [unet(latents_BCHW, torch.tensor(timestep), hidden_BKD).sample for unet in (plain, fast)]
        torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)
        kept |= {id(layer._last[1]) for layer in fast.modules() if isinstance(layer, Remembered)}
    assert len(kept) == sum(isinstance(layer, Remembered) for layer in fast.modules())
