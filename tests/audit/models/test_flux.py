"""FLUX.1 dev and schnell run as their own pipeline does."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from diffusers import FluxPipeline
from torch import Tensor

import audit
from audit.costs.flops import generation_cost, screen_cost
from audit.costs.meta_networks import outline_model
from audit.errors import AuditError
from tests.support.checkpoints import set_config
from tests.support.families import GUIDANCE, STEPS, Conformance, Predictions
from tests.support.paths import TOKENIZER
from tests.support.tiny_mmdit import tiny_flux


class Flux(Predictions):
    RESOLUTION = (16, 24)

    def latents(self, model: Any, caption: str, noise_1CHW: Tensor) -> Tensor:
        """Return the pipeline's final latents, which it takes and returns packed."""
        height, width = self.RESOLUTION
        packed = model.pipeline()(
            caption,
            latents=FluxPipeline._pack_latents(noise_1CHW, *noise_1CHW.shape),
            height=height,
            width=width,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            output_type="latent",
        ).images
        unpacked: Tensor = FluxPipeline._unpack_latents(packed, height, width, model.pixels_per_latent)
        return unpacked


class TestDev(Flux, Conformance):
    make = staticmethod(partial(tiny_flux, tokenizer=TOKENIZER))


class TestSchnell(Flux):
    make = staticmethod(partial(tiny_flux, tokenizer=TOKENIZER, guidance_embeds=False))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_flux(tmp_path_factory.mktemp("flux") / "model", TOKENIZER)


@pytest.fixture(scope="module")
def model(folder: Path) -> audit.Model:
    return audit.load_model(folder, resolution=16)


def test_the_shift_of_the_schedule_grows_with_the_resolution(model: Any) -> None:
    small, large = model.schedule(4).timesteps, model.at_resolution(128).schedule(4).timesteps
    assert small[0] == large[0] == 1000
    assert all(one < other for one, other in zip(small[1:], large[1:], strict=True))


def test_images_are_1024_pixels_wide_unless_the_run_says_otherwise(folder: Path) -> None:
    assert outline_model(folder).latent_shape == (4, 128, 128)
    assert outline_model(folder, resolution=(16, 32)).latent_shape == (4, 8, 16)


def test_the_guidance_scale_reaches_the_network(model: Any) -> None:
    first, other = (
        audit.generate(model, ["a red dog"], steps=1, guidance_scale=scale, output="latents")["latents"].to_pylist()
        for scale in (2.0, 7.0)
    )
    assert first != other


def test_words_are_those_of_t5(model: Any) -> None:
    assert model.word_tokenizer.decode(model.words("a red dog")) == "a red dog"


def test_a_plan_counts_both_text_encoders(folder: Path) -> None:
    outline = outline_model(folder, resolution=16)
    cost = screen_cost(outline, ["caption_response", "attention_profile"])
    assert cost.text > 0
    assert cost.row > 0
    assert generation_cost(outline, 3.5).size == (16, 16)


@pytest.mark.parametrize(
    ("file", "change", "what"),
    [
        ("transformer", {"joint_attention_dim": 48}, "takes hidden states of 48 values; the text encoders make 40"),
        ("transformer", {"pooled_projection_dim": 24}, "takes pooled vectors of 24 values"),
        ("transformer", {"in_channels": 32, "out_channels": 16}, "32 input and 16 output channels"),
        ("text_encoder_2", {"architectures": ["BertModel"]}, "text_encoder_2 is BertModel"),
    ],
)
def test_what_the_family_does_not_run_is_refused_before_weights_are_read(
    folder: Path, tmp_path: Path, file: str, change: dict[str, object], what: str
) -> None:
    own = Path(shutil.copytree(folder, tmp_path / "model"))
    set_config(own / file / "config.json", **change)
    for load in (audit.load_model, outline_model):
        with pytest.raises(AuditError, match=what):
            load(own, resolution=16)


def test_what_cannot_be_added_to_the_weights_is_refused_before_it_is_read(folder: Path) -> None:
    with pytest.raises(AuditError, match="Flux models are not supported with textual_inversion"):
        audit.load_model(folder, textual_inversion=["word.safetensors"])
