"""Stable Diffusion 3 and 3.5 run as their own pipeline does, with and without T5."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import audit
from audit.costs.flops import generation_cost, screen_cost
from audit.costs.meta_networks import outline_model
from audit.errors import AuditError, UsageError
from audit.models.noise import initial_latent
from tests.support.checkpoints import set_config
from tests.support.families import Conformance
from tests.support.paths import TOKENIZER
from tests.support.tiny_mmdit import tiny_sd3


class TestStableDiffusion3(Conformance):
    make = staticmethod(partial(tiny_sd3, tokenizer=TOKENIZER))


class TestMedium(Conformance):
    """With query and key norms, and blocks that also have image self-attention, as in 3.5 medium."""

    make = staticmethod(partial(tiny_sd3, tokenizer=TOKENIZER, qk_norm="rms_norm", dual_attention_layers=(0,)))


class TestWithoutT5(Conformance):
    make = staticmethod(partial(tiny_sd3, tokenizer=TOKENIZER, t5=False))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd3(tmp_path_factory.mktemp("sd3") / "model", TOKENIZER)


@pytest.fixture(scope="module")
def model(folder: Path) -> audit.Model:
    return audit.load_model(folder)


def test_the_words_of_both_tokenizers_come_before_end_and_padding(model: Any) -> None:
    tokens = model.tokenize(["a red dog", ""])
    order, clip_count = tokens.order_BK[0].tolist(), len(model.words("a red dog"))
    t5_words = int(tokens.mask_BK[0, 77:].sum()) - 1
    assert sorted(order) == list(range(77 + 256))
    assert order[: 1 + clip_count + t5_words] == [*range(1 + clip_count), *range(77, 77 + t5_words)]
    assert tokens.counts_B.tolist() == [2 + clip_count + t5_words, 2]
    assert tokens.end_B.tolist() == [1 + clip_count, 1]
    assert set(order[int(tokens.counts_B[0]) - 1 :][:2]) == {1 + clip_count, 77 + t5_words}


def test_t5_is_in_bfloat16_where_the_model_is(folder: Path) -> None:
    t5 = audit.load_model(folder, dtype=torch.bfloat16).networks["text_encoder_3"]
    assert {tensor.dtype for tensor in t5.parameters()} == {torch.bfloat16}


def test_t5_stays_in_float32_where_float16_overflows(folder: Path) -> None:
    half = audit.load_model(folder, dtype=torch.float16)
    state = half.text_encoder_3.state_dict()
    wide = {name for name, tensor in state.items() if tensor.dtype == torch.float32}
    assert wide == {name for name in state if name.endswith("wo.weight")} != set()
    assert half.encode(["a red dog"]).isfinite()


def test_a_plan_counts_the_transformer_and_three_text_encoders(folder: Path, model: Any) -> None:
    outline = outline_model(folder)
    cost = screen_cost(outline, ["caption_response", "attention_profile"])
    linear = sum(p.numel() for name, p in model.text_encoder_3.named_parameters() if ".q." in name or ".wo." in name)
    assert cost.text > 2 * 256 * linear
    assert generation_cost(outline, 5.0).size == (16, 16)


def test_a_resolution_beyond_the_position_embeddings_is_refused(folder: Path, model: Any) -> None:
    with pytest.raises(UsageError, match="latents of 34 x 34"):
        model.at_resolution(68)
    with pytest.raises(UsageError, match="latents of 34 x 34"):
        audit.load_model(folder, resolution=68)


@pytest.mark.parametrize(
    ("file", "change", "what"),
    [
        ("transformer", {"joint_attention_dim": 48}, "takes hidden states of 48 values; the text encoders make 40"),
        ("transformer", {"pooled_projection_dim": 24}, "takes pooled vectors of 24 values"),
        ("transformer", {"patch_size": 4}, "patches of 4"),
        ("transformer", {"_class_name": "FluxTransformer2DModel"}, "transformer is FluxTransformer2DModel"),
        ("vae", {"shift_factor": None}, "the VAE has no shift_factor"),
        ("scheduler", {"_class_name": "DDIMScheduler"}, "the scheduler is DDIMScheduler"),
        ("scheduler", {"stochastic_sampling": True}, "stochastic_sampling is True"),
        ("scheduler", {"num_train_timesteps": 500}, "num_train_timesteps is 500"),
    ],
)
def test_what_the_family_does_not_run_is_refused_before_weights_are_read(
    folder: Path, tmp_path: Path, file: str, change: dict[str, object], what: str
) -> None:
    own = Path(shutil.copytree(folder, tmp_path / "model"))
    set_config(own / file / ("scheduler_config.json" if file == "scheduler" else "config.json"), **change)
    for load in (audit.load_model, outline_model):
        with pytest.raises(AuditError, match=what):
            load(own)


def test_an_image_is_that_of_the_pipeline(model: Any) -> None:
    pipeline, noise_1CHW = model.pipeline(), initial_latent(0, model.latent_shape)[None]
    latents, images = (
        pipeline("a red dog", latents=noise_1CHW, num_inference_steps=2, output_type=kind).images
        for kind in ("latent", "pt")
    )
    with torch.inference_mode():
        torch.testing.assert_close((model.decode(latents) / 2 + 0.5).clamp(0, 1), images, atol=1e-5, rtol=0)
