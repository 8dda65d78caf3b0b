"""What a checkpoint says is honoured as diffusers does, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

import audit
from audit.costs.meta_networks import outline_model
from audit.errors import AuditError, UsageError
from audit.models.architecture import PIPELINES, latent_size
from tests.support.checkpoints import set_config

INPUTS: list[tuple[dict[str, Any], str]] = [
    ({"time_cond_proj_dim": 32}, "time_cond_proj_dim .*consistency"),
    ({"in_channels": 8}, "8 input and 4 output channels .as InstructPix2Pix"),
    ({"in_channels": 9}, "9 input and 4 output channels .as inpainting"),
    ({"num_class_embeds": 10}, "class embeddings"),
    ({"class_embed_type": "timestep"}, "class_embed_type"),
    ({"addition_embed_type": "text", "addition_embed_type_num_heads": 8}, "addition_embed_type"),
    ({"encoder_hid_dim": 32}, "encoder_hid_dim"),
]


@pytest.mark.parametrize(("change", "what"), INPUTS)
def test_a_unet_with_other_inputs_is_refused_by_name_before_anything_is_read(
    folder: Path, change: dict[str, Any], what: str
) -> None:
    set_config(folder / "unet/config.json", **change)
    for load in (audit.load_model, outline_model):
        with pytest.raises(AuditError, match=what) as caught:
            load(folder)
        assert caught.value.kind == "unsupported_model"


@pytest.mark.parametrize(
    "kind",
    [
        "StableDiffusionInstructPix2PixPipeline",
        "StableDiffusionInpaintPipeline",
        "AltDiffusionPipeline",
    ],
)
def test_another_pipeline_is_refused_by_its_class(folder: Path, kind: str) -> None:
    set_config(folder / "model_index.json", _class_name=kind)
    with pytest.raises(AuditError, match=f"this is a {kind}"):
        audit.load_model(folder)


@pytest.mark.parametrize("kind", PIPELINES)
def test_pipelines_of_the_same_components_load(folder: Path, kind: str) -> None:
    set_config(folder / "model_index.json", _class_name=kind)
    audit.load_model(folder)


@pytest.mark.parametrize(
    ("file", "change", "what"),
    [
        ("vae/config.json", {"_class_name": "AutoencoderTiny"}, "the autoencoder is AutoencoderTiny"),
        ("vae/config.json", {"shift_factor": 0.1}, "the VAE has shift_factor"),
        ("vae/config.json", {"latents_mean": [0.1] * 4}, "the VAE has latents_mean"),
        ("unet/config.json", {"quantization_config": {"load_in_8bit": True}}, "quantized"),
        ("tokenizer/tokenizer_config.json", {"tokenizer_class": "T5Tokenizer"}, "the tokenizer is T5Tokenizer"),
    ],
)
def test_components_that_the_pipeline_would_not_run_so_are_refused(
    folder: Path, file: str, change: dict[str, Any], what: str
) -> None:
    set_config(folder / file, **change)
    with pytest.raises(AuditError, match=what):
        audit.load_model(folder)


def test_a_text_encoder_of_another_width_is_refused(folder: Path) -> None:
    set_config(folder / "unet/config.json", cross_attention_dim=48)
    with pytest.raises(AuditError, match="attends to hidden states of 48 values; the text encoder makes 32"):
        outline_model(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_act": "gelu"},
        {"layer_norm_eps": 1e-3},
        {"num_attention_heads": 8},
        {"eos_token_id": 2},
    ],
)
def test_options_of_the_text_encoder_are_honoured(folder: Path, small: audit.Model, change: dict[str, Any]) -> None:
    set_config(folder / "text_encoder/config.json", **change)
    ours = audit.load_model(folder).encode(["a dog"]).tensors["encoder_hidden_states"]
    with torch.inference_mode():
        theirs = StableDiffusionPipeline.from_pretrained(folder).encode_prompt(["a dog"], "cpu", 1, False)[0]
    assert torch.equal(ours, theirs)
    assert torch.equal(ours, small.encode(["a dog"]).tensors["encoder_hidden_states"]) == ("eos_token_id" in change)


def test_the_scaling_factor_of_the_vae_is_honoured(folder: Path) -> None:
    from audit.scoring.generation import decode

    set_config(folder / "vae/config.json", scaling_factor=0.5)
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    with torch.inference_mode():
        theirs = (pipeline.vae.decode(latents / 0.5).sample / 2 + 0.5).clamp(0, 1)
        ours = decode(audit.load_model(folder), latents)
    assert torch.equal(ours, theirs)


SIZES = [
    ("0.6.0", 32),
    ("0.8.1", 16),
    ("0.8.1", 64),
    ("0.8.1", 96),
    ("0.8.1", [32, 16]),
    ("0.9.0.dev0", 32),
    ("0.9.0", 32),
    ("0.42.1", 16),
    (None, 32),
]


@pytest.mark.parametrize(("version", "size"), SIZES)
def test_the_size_is_what_diffusers_makes_of_sample_size(
    folder: Path, loaded: StableDiffusionPipeline, version: str | None, size: Any
) -> None:
    set_config(folder / "unet/config.json", sample_size=size, _diffusers_version=version)
    if version is None:
        config = json.loads((folder / "unet/config.json").read_text())
        del config["_diffusers_version"]
        (folder / "unet/config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(folder / "unet")
    corrected = StableDiffusionPipeline(**loaded.components | {"unet": unet}, requires_safety_checker=False)
    size = corrected.unet.config.sample_size
    wanted = (size, size) if isinstance(size, int) else tuple(size)
    model = outline_model(folder)
    assert model.latent_shape[1:] == wanted
    assert model.resolution == (2 * wanted[0], 2 * wanted[1])


@pytest.mark.parametrize("size", [None, 0, [16], "16", True])
def test_a_sample_size_that_is_no_size_is_refused_with_the_key_that_gives_one(folder: Path, size: Any) -> None:
    set_config(folder / "unet/config.json", sample_size=size)
    with pytest.raises(AuditError, match="sample_size in unet/config.json is .*(?s:.)*model.resolution"):
        audit.load_model(folder)


def test_a_resolution_overrides_it_also_in_the_pipeline_of_the_model(folder: Path) -> None:
    set_config(folder / "unet/config.json", sample_size=None, _diffusers_version="0.6.0")
    model = audit.load_model(folder, resolution=(32, 48))
    assert model.latent_shape == (4, 16, 24)
    assert model.facts["resolution"] == "32 x 48"
    latents = model.pipeline()("a dog", num_inference_steps=1, output_type="latent").images
    assert latents.shape[1:] == (4, 16, 24)
    image = audit.generate(model, ["a dog"], steps=1, output="latents")
    assert len(image["latents"][0].as_py()) == 4 * 16 * 24


@pytest.mark.parametrize("resolution", [0, -8, 33, (32, 33)])
def test_a_resolution_is_a_multiple_of_what_a_latent_covers(resolution: Any) -> None:
    vae = {"block_out_channels": [8, 16]}
    with pytest.raises(UsageError, match="multiple of 2"):
        latent_size({"sample_size": 16}, vae, resolution, "here")


def test_a_folder_without_an_index_loads(folder: Path, small: audit.Model) -> None:
    (folder / "model_index.json").unlink()
    assert audit.load_model(folder).weights_sha256 == small.weights_sha256


def test_a_prediction_type_that_is_given_overrides_the_configuration(folder: Path) -> None:
    model = audit.load_model(folder, prediction_type="v_prediction")
    assert model.scheduler_config["prediction_type"] == "v_prediction"
    assert model.facts["prediction_type"] == "v_prediction (as given)"
