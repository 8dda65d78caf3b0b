"""SANA runs as its own pipeline does, with the instruction that the pipeline puts before captions."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SanaPipeline
from torch import Tensor

import audit
from audit.costs.flops import screen_cost
from audit.costs.meta_networks import outline_model
from audit.errors import AuditError, UsageError
from audit.models.noise import initial_latent
from audit.models.sana import INSTRUCTION
from tests.support.checkpoints import set_config
from tests.support.families import GUIDANCE, STEPS, Conformance, Unrounded
from tests.support.tiny_sana import GEMMA_WIDTH, SIZE, tiny_gemma_tokenizer, tiny_sana

CAPTION = "a red dog on a table"


class TestSana(Conformance):
    """With query and key norms, position embeddings, patches, learned variances and a scale of the time."""

    RESOLUTION = (32, 64)
    make = staticmethod(
        partial(
            tiny_sana,
            qk_norm="rms_norm_across_heads",
            interpolation_scale=1.0,
            patch_size=2,
            out_channels=8,
            timestep_scale=0.5,
        )
    )

    def latents(self, model: Any, caption: str, noise_1CHW: Tensor) -> Tensor:
        """Return the final latents [1, C, H, W] of the pipeline, without its rounding of outputs to float32."""
        with Unrounded():
            found: Tensor = model.call_pipeline(model.pipeline(), [caption], noise_1CHW, STEPS, GUIDANCE)
        return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sana(tmp_path_factory.mktemp("sana") / "model")


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return audit.load_model(folder)


def test_captions_and_the_unconditional_branch_are_encoded_as_by_a_call_of_the_pipeline(
    folder: Path, model: Any
) -> None:
    pipeline, calls = SanaPipeline.from_pretrained(folder), []
    encode = pipeline.encode_prompt
    pipeline.encode_prompt = lambda *args, **kwargs: calls.append(encode(*args, **kwargs)) or calls[-1]
    captions = [f" {CAPTION.upper()} ", ""]
    noise_BCHW = initial_latent(0, model.latent_shape).expand(len(captions), -1, -1, -1)
    model.call_pipeline(pipeline, captions, noise_BCHW, 1, GUIDANCE)
    ((hidden_BKD, mask_BK, null_BKD, null_mask_BK),) = calls
    for own, hidden, mask in (
        (model.encode(captions), hidden_BKD, mask_BK),
        (model.null().expand(2), null_BKD, null_mask_BK),
    ):
        torch.testing.assert_close(own.tensors["encoder_hidden_states"], hidden * mask[..., None], atol=1e-5, rtol=0)
        assert torch.equal(own.tensors["encoder_attention_mask"], mask)
    assert hidden_BKD.shape[1] == 300


def test_the_instruction_is_not_among_the_words_and_the_last_word_stands_in_for_end(model: Any) -> None:
    tokens = model.tokenize([" A red DOG ", "zebra", "", "7"])
    assert model.word_texts(" A red DOG ") == ["a", "red", "dog"]
    assert tokens.ids_BK.shape[1] > 300 + len(INSTRUCTION.split())
    assert tokens.mask_BK.shape[1] == 300
    assert tokens.end_B.tolist() == [3, 1, 1, 2]
    # The space that ends the instruction is left where the caption's first token does not begin with it.
    assert [model.word_texts(caption) for caption in ("", "7")] == [[""], ["", "7"]]


def test_padding_has_no_attention(model: Any) -> None:
    conditioning = model.encode([CAPTION, ""])
    with torch.inference_mode(), model.probe(conditioning) as probe:
        model.predict(torch.randn(2, *model.latent_shape), 500, conditioning)
        attn_BLK = probe.take()
    assert not attn_BLK[0, :, 1 + len(model.words(CAPTION)) :].any()
    assert attn_BLK[0, :, : 1 + len(model.words(CAPTION))].all()


def test_a_caption_that_fills_all_positions_has_no_padding(model: Any) -> None:
    long = " ".join(["dog"] * 400)
    assert len(model.words(long)) == 299
    table = audit.generate(model, [long], steps=1, detectors=["entropy_trajectory", "bright_ending"])
    assert table["status"].to_pylist() == ["ok"]
    assert table["prompt_tokens"].to_pylist() == [301]


def test_a_plan_counts_the_instruction_too(folder: Path, model: Any) -> None:
    outline = outline_model(folder)
    linear = sum(each.numel() for each in model.text_encoder.layers.parameters() if each.ndim == 2)
    positions = model.tokenize([""]).ids_BK.shape[1]
    assert screen_cost(outline, ["caption_response"]).text > 2 * positions * linear


def test_of_a_multistep_scheduler_the_shift_counts(folder: Path, model: Any, tmp_path: Path) -> None:
    euler = tiny_sana(tmp_path / "model")
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(euler / "scheduler")
    assert model.scheduler_config == audit.load_model(euler).scheduler_config
    assert model.about["scheduler"]["class"] == "DPMSolverMultistepScheduler"
    assert "solver_order" in model.about["scheduler"]["without_effect"]
    assert "flow_shift" not in model.about["scheduler"]["without_effect"]


def test_a_tokenizer_that_puts_an_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match=r"makes \['<bos>', '<eos>'\] of the empty prompt, and not BOS alone"):
        outline_model(tiny_sana(tmp_path / "model", tiny_gemma_tokenizer(add_eos_token=True)))


@pytest.mark.parametrize(
    ("file", "change", "what"),
    [
        (
            "transformer",
            {"caption_channels": 48},
            f"takes hidden states of 48 values; the text encoders make {GEMMA_WIDTH}",
        ),
        ("transformer", {"out_channels": 6}, "4 input and 6 output channels"),
        ("transformer", {"guidance_embeds": True}, "as in SANA-Sprint"),
        ("transformer", {"_class_name": "PixArtTransformer2DModel"}, "transformer is PixArtTransformer2DModel"),
        ("vae", {"latent_channels": 8}, "the VAE has 8 latent channels and the denoiser 4"),
        ("text_encoder", {"architectures": ["Gemma3Model"]}, "text_encoder is Gemma3Model, not Gemma2Model"),
        ("scheduler", {"_class_name": "SCMScheduler"}, "the scheduler is SCMScheduler"),
        ("scheduler", {"use_flow_sigmas": False}, "use_flow_sigmas is False"),
        ("scheduler", {"prediction_type": "epsilon"}, "prediction_type is 'epsilon'"),
        ("scheduler", {"beta_schedule": "cubic"}, "its values are not valid"),
    ],
)
def test_what_the_family_does_not_run_is_refused(
    tmp_path: Path, folder: Path, file: str, change: dict[str, object], what: str
) -> None:
    copied = Path(shutil.copytree(folder, tmp_path / "model"))
    set_config(copied / file / ("scheduler_config.json" if file == "scheduler" else "config.json"), **change)
    with pytest.raises(AuditError, match=what):
        outline_model(copied)


def test_a_shift_that_depends_on_the_size_is_refused(tmp_path: Path, folder: Path) -> None:
    copied = Path(shutil.copytree(folder, tmp_path / "model"))
    FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).save_pretrained(copied / "scheduler")
    with pytest.raises(AuditError, match="use_dynamic_shifting is True"):
        outline_model(copied)


def test_a_size_that_the_pipeline_refuses_is_an_error(folder: Path, model: Any) -> None:
    with pytest.raises(UsageError, match="the resolution is 48 x 48"):
        outline_model(folder, resolution=48)
    with pytest.raises(UsageError, match="the resolution is 48 x 48"):
        model.at_resolution(48)


def test_an_image_is_that_of_the_pipeline(model: Any) -> None:
    pipeline, noise_1CHW = model.pipeline(), initial_latent(0, model.latent_shape)[None]
    latents, images = (
        pipeline(
            CAPTION, latents=noise_1CHW, height=SIZE, width=SIZE, num_inference_steps=2, output_type=kind, **model.CALL
        ).images
        for kind in ("latent", "pt")
    )
    with torch.inference_mode():
        torch.testing.assert_close((model.decode(latents) / 2 + 0.5).clamp(0, 1), images, atol=1e-5, rtol=0)
