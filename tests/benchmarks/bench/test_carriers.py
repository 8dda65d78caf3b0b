"""A part of the prompt is replaced by the same positions of the empty prompt."""

from __future__ import annotations

import pytest
import torch

import audit
from benchmarks.planted.bench.carriers import PARTS, Replaced
from tests.support.sampler import encoded
from tests.support.toy import MODEL

POSITIONS = {"bos": [0], "words": [1, 2], "eos": [3], "padding": list(range(4, 77))}  # of "a dog"


@pytest.fixture(scope="module")
def model() -> audit.Model:
    return audit.load_model(MODEL, resolution=16)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_replaced_and_nothing_else(model: audit.Model, part: str) -> None:
    pipe = model.pipeline()
    seen: list[torch.Tensor] = []
    handle = pipe.unet.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs["encoder_hidden_states"].clone()), with_kwargs=True
    )
    try:
        with audit.mitigated(pipe, Replaced(part)):
            pipe("a dog", num_inference_steps=1, guidance_scale=5.0, output_type="latent")
    finally:
        handle.remove()
    prompt_1KD, empty_1KD = encoded(pipe, "a dog"), encoded(pipe, "")
    expected_1KD = prompt_1KD.clone()
    expected_1KD[:, POSITIONS[part]] = empty_1KD[:, POSITIONS[part]]
    torch.testing.assert_close(seen[-1][1:], expected_1KD)
    torch.testing.assert_close(seen[-1][:1], empty_1KD)
