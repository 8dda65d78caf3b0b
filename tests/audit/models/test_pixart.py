"""PixArt runs as its own pipelines do, and what differs from Stable Diffusion is honoured."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PixArtAlphaPipeline
from torch import Tensor

import audit
from audit.costs.flops import screen_cost
from audit.costs.meta_networks import outline_model
from audit.errors import AuditError
from tests.support.checkpoints import set_config
from tests.support.families import GUIDANCE, STEPS, Conformance
from tests.support.tiny_mmdit import T5_WIDTH
from tests.support.tiny_pixart import tiny_pixart

CAPTION = "a red dog on a table"


@pytest.fixture(scope="module")
def sigma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pixart(tmp_path_factory.mktemp("sigma") / "model")


class PixArtConformance(Conformance):
    def latents(self, model: Any, caption: str, noise_1CHW: Tensor) -> Tensor:
        height, width = model.resolution
        latents: Tensor = model.pipeline()(
            caption,
            latents=noise_1CHW,
            height=height,
            width=width,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            output_type="latent",
            clean_caption=False,
            use_resolution_binning=False,
        ).images
        return latents


class TestPixArtSigma(PixArtConformance):
    make = staticmethod(tiny_pixart)


class TestPixArtAlpha(PixArtConformance):
    make = staticmethod(partial(tiny_pixart, pipeline=PixArtAlphaPipeline, out_channels=4))


class TestPixArtAlphaWithSizes(PixArtConformance):
    SIZES = {"sample_size": 128, "use_additional_conditions": True, "attention_head_dim": 12, "cross_attention_dim": 24}
    RESOLUTION = (16, 32)
    make = staticmethod(partial(tiny_pixart, pipeline=PixArtAlphaPipeline, **SIZES))


def test_padding_has_no_attention_and_end_is_the_sink(sigma: Path) -> None:
    model = audit.load_model(sigma)
    conditioning = model.encode([CAPTION, ""])
    with torch.inference_mode(), model.probe(conditioning) as probe:
        model.predict(torch.randn(2, *model.latent_shape), 500, conditioning)
        attn_BLK = probe.take()
    words = len(model.words(CAPTION))
    assert conditioning.tokens is not None
    assert conditioning.tokens.end_B.tolist() == [words, 0]
    assert not attn_BLK[0, :, 1 + words :].any()
    torch.testing.assert_close(attn_BLK[1, :, 0], torch.ones(len(model.layers)))


def test_captions_are_lowered_as_the_pipeline_does(sigma: Path) -> None:
    model = audit.load_model(sigma)
    assert model.words(" A red DOG ") == model.words("a red dog") != model.words("a dog")


def test_the_screen_steps_from_one_noise_level_to_the_next(sigma: Path) -> None:
    schedule = audit.load_model(sigma).screen_schedule()
    assert sorted(set(schedule.timesteps), reverse=True) == schedule.timesteps
    noise, image = torch.randn(2, 1, 4, 8, 8, dtype=torch.float64)
    for position in (0, 20, 48):
        before, after = (
            alpha**0.5 * image + (1 - alpha) ** 0.5 * noise for alpha in map(schedule.alpha, (position, position + 1))
        )
        torch.testing.assert_close(schedule.step(noise, position, before), after)


def test_the_plan_counts_t5(sigma: Path) -> None:
    model = audit.load_model(sigma)
    blocks = sum(each.numel() for each in model.text_encoder.encoder.block.parameters() if each.ndim == 2)
    assert screen_cost(outline_model(sigma), ["caption_response"]).text > 2 * 300 * blocks * 0.9


def test_a_folder_with_the_first_name_of_the_transformer_loads(sigma: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sigma, tmp_path / "model"))
    set_config(folder / "transformer/config.json", _class_name="Transformer2DModel")
    assert outline_model(folder).latent_shape == (4, 8, 8)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"caption_channels": 48}, f"takes hidden states of 48 values; the text encoders make {T5_WIDTH}"),
        ({"out_channels": 6}, "4 input and 6 output channels"),
        ({"use_additional_conditions": True}, "with which PixArtSigmaPipeline does not run"),
        ({"_class_name": "SanaTransformer2DModel"}, "transformer is SanaTransformer2DModel"),
    ],
)
def test_another_architecture_is_refused(tmp_path: Path, change: dict[str, object], what: str) -> None:
    folder = tiny_pixart(tmp_path / "model", attention_head_dim=12)
    set_config(folder / "transformer/config.json", **change)
    with pytest.raises(AuditError, match=what):
        outline_model(folder)
