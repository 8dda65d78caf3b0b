"""What comes before the first cross-attention is computed once for rows with the same latents, with the same result."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import audit
from audit.models.noise import initial_latents

CAPTIONS = [f"a picture of {number} ships" for number in range(4)]


@pytest.fixture(scope="module", params=["tiny-sd1", "tiny-sd2"])
def model(data: Path, request: pytest.FixtureRequest) -> audit.Model:
    return audit.load_model(data / request.param, dtype=torch.float64, resolution=16)


def repeating(model: audit.Model, seeds: int) -> Tensor:
    """Return a row of latents per caption; they repeat after `seeds` rows."""
    noise_SCHW = initial_latents(range(seeds), model.latent_shape, model.device)
    return noise_SCHW[torch.arange(len(CAPTIONS)) % seeds]


@torch.inference_mode()
@pytest.mark.parametrize("seeds", [1, pytest.param(2, marks=pytest.mark.soak), 3, 6])
def test_the_output_is_that_of_a_forward_that_shares_nothing(model: audit.Model, seeds: int) -> None:
    latents_BCHW, conditioning = repeating(model, seeds), model.encode(CAPTIONS)
    whole_BCHW = model.predict(latents_BCHW, 501, conditioning)
    with model.sharing_prefix(seeds, len(CAPTIONS)):
        shared_BCHW = model.predict(latents_BCHW, 501, conditioning)
    assert (whole_BCHW - shared_BCHW).norm() <= 1e-6 * whole_BCHW.norm()
    assert (model.predict(latents_BCHW, 501, conditioning) - whole_BCHW).abs().max() == 0  # nothing is left behind


@torch.inference_mode()
def test_the_first_residual_block_and_self_attention_see_each_of_the_latents_once(model: audit.Model) -> None:
    block = model.unet.down_blocks[0]
    seen: list[int] = []
    watched = (block.resnets[0], block.attentions[0].transformer_blocks[0].attn1, block.resnets[1])
    hooks = [module.register_forward_pre_hook(lambda _, args: seen.append(len(args[0]))) for module in watched]
    with model.sharing_prefix(2, len(CAPTIONS)):
        model.predict(repeating(model, 2), 501, model.encode(CAPTIONS))
    for hook in hooks:
        hook.remove()
    assert seen == [2, 2, 4]
