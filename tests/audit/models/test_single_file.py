"""A single file in the original layout is the model of its diffusers folder, without network."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
from transformers.initialization import no_init_weights

import audit
from audit.costs.meta_networks import outline_model
from audit.errors import AuditError, UsageError
from audit.models.networks import empty_networks
from audit.models.noise import initial_latents
from audit.models.prediction_type import decide, noise_cosine, published_size
from audit.models.single_file import read_header, single_file_configs
from tests.support.checkpoints import same, set_config
from tests.support.original_layout import original_name, original_open_clip, original_vae_name, single_file
from tests.support.paths import TOKENIZER
from tests.support.tiny_xl import tiny_xl

EMPTY = torch.zeros(0)


@pytest.mark.parametrize("open_clip", [False, True])
def test_it_is_the_model_of_the_folder(small: audit.Model, data: Path, tmp_path: Path, open_clip: bool) -> None:
    file, config = single_file(data / "toy-model", tmp_path, open_clip)
    model = audit.load_model(file, config=config)
    assert same(model, small)
    ours, theirs = (audit.generate(loaded, ["a dog"], steps=2, output="latents") for loaded in (model, small))
    np.testing.assert_array_equal(ours["latents"].to_pylist(), theirs["latents"].to_pylist())


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_xl(tmp_path_factory.mktemp("xl") / "model", TOKENIZER, layers=10)


@pytest.fixture(scope="module")
def xl_model(xl: Path) -> audit.Model:
    return audit.load_model(xl)


def test_a_file_of_xl_is_the_model_of_the_folder(xl: Path, xl_model: audit.Model, tmp_path: Path) -> None:
    file, config = single_file(xl, tmp_path)
    model = audit.load_model(file, config=config)
    assert type(model) is type(xl_model)
    for name, network in model.networks.items():
        own, expected = network.state_dict(), xl_model.networks[name].state_dict()
        assert own.keys() == expected.keys()
        assert all(torch.equal(own[key], expected[key]) for key in own)
    ours, theirs = (audit.generate(each, ["a dog"], steps=2, output="latents") for each in (model, xl_model))
    np.testing.assert_array_equal(ours["latents"].to_pylist(), theirs["latents"].to_pylist())
    assert model.settings == xl_model.settings == outline_model(file, config=config).settings


def test_a_marked_file_of_xl_predicts_velocity_with_zero_terminal_snr(
    xl: Path, xl_model: audit.Model, tmp_path: Path
) -> None:
    file, config = single_file(xl, tmp_path, v_pred=EMPTY, ztsnr=EMPTY)
    with pytest.raises(AuditError, match="marked as v-prediction"):
        audit.load_model(file, config=config)
    with pytest.raises(AuditError, match="marked as trained with zero terminal SNR"):
        audit.load_model(file, config=config, prediction_type="v_prediction")
    velocity = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    set_config(config / "scheduler/scheduler_config.json", **velocity)
    model = audit.load_model(file, config=config)
    assert model.facts["prediction_type"] == "v_prediction (scheduler configuration)"
    assert model.facts["zero terminal SNR"] == "yes"
    assert decide(xl_model, {"v_pred": True, "ztsnr": True}, False, None, "here")[0] == model.scheduler_config


def test_what_a_network_of_xl_predicts_is_measured_with_its_sizes_and_pooled_text(xl_model: audit.Model) -> None:
    noise = initial_latents([0], (4, 32, 32), xl_model.device)
    told = xl_model.at_resolution(64).encode([""])
    with torch.inference_mode():
        output = xl_model.predict(noise, 999, told)
    expected = torch.nn.functional.cosine_similarity(output.flatten(), noise.flatten(), dim=0)
    assert noise_cosine(xl_model) == pytest.approx(float(expected), abs=1e-6)


def test_textual_inversion_cannot_be_added_to_xl(xl: Path, tmp_path: Path) -> None:
    file, config = single_file(xl, tmp_path)
    with pytest.raises(AuditError, match="StableDiffusionXL models are not supported with textual_inversion"):
        audit.load_model(file, config=config, textual_inversion=["some.safetensors"])


def test_what_is_no_part_of_the_model_is_left_out_and_anything_else_refused(data: Path, tmp_path: Path) -> None:
    beside = {
        "model_ema.decay": torch.ones(()),
        "alphas_cumprod": torch.ones(9),
        "sqrt_recip_alphas_cumprod": torch.ones(9),
        "cond_stage_model.logit_scale": torch.ones(()),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77.0),
        "first_stage_model.loss.logvar": torch.ones(()),
    }
    file, config = single_file(data / "toy-model", tmp_path, **beside)
    audit.load_model(file, config=config)
    for key, part in (
        ("control_model.input_hint_block.0.weight", "belong to no part of Stable Diffusion 1.x"),
        ("model.diffusion_model.label_emb.0.0.weight", "unet: 1 weights belong to no layer"),
        ("first_stage_model.encoder.extra.weight", "vae: 1 weights belong to no layer"),
        ("cond_stage_model.extra.weight", "text_encoder: 1 weights belong to no layer"),
    ):
        file, config = single_file(data / "toy-model", tmp_path, **{key: torch.ones(2)})
        with pytest.raises(AuditError, match=part):
            audit.load_model(file, config=config)


@pytest.mark.parametrize(
    ("prefix", "what"),
    [
        ("first_stage_model.", "there is no VAE in this file"),
        ("cond_stage_model.", "there is no text encoder in this file"),
        ("model.diffusion_model.", "there is no UNet in this file"),
        ("model.diffusion_model.out.2", "unet: 2 of its 208 weights are missing"),
        ("first_stage_model.decoder.mid.attn_1.q", "vae: .*missing"),
    ],
)
def test_what_is_missing_is_named(data: Path, tmp_path: Path, prefix: str, what: str) -> None:
    from safetensors.torch import load_file

    file, config = single_file(data / "toy-model", tmp_path)
    save_file({key: tensor for key, tensor in load_file(file).items() if not key.startswith(prefix)}, file)
    with pytest.raises(AuditError, match=what):
        audit.load_model(file, config=config)


@pytest.mark.parametrize(
    ("tensors", "what"),
    [
        ({"a": (1, 2), "b": (1, 2)}, "no UNet"),
        ({"conv_in.weight": (4,), "down_blocks.0.resnets.0.conv1.bias": (4,)}, "one component of a diffusers folder"),
        ({"lora_unet_conv_in.lora_down.weight": (4,), "lora_unet_conv_in.lora_up.weight": (4,)}, "set `lora` to"),
        ({"emb_params": (4, 768), "step": (1,)}, "model.textual_inversion"),
        ({"model.diffusion_model.joint_blocks.37.x_block.mlp.fc1.weight": (1,)}, "the family sd35_large"),
        ({"double_blocks.0.img_attn.norm.key_norm.scale": (1,)}, "the family flux-schnell"),
    ],
)
def test_another_file_is_told_what_it_is(tmp_path: Path, tensors: dict[str, tuple[int, ...]], what: str) -> None:
    save_file({key: torch.zeros(shape) for key, shape in tensors.items()}, tmp_path / "one.safetensors")
    with pytest.raises(AuditError, match=what):
        audit.load_model(tmp_path / "one.safetensors")


@pytest.mark.parametrize(
    ("key", "shape", "family"),
    [
        ("conditioner.embedders.0.model.transformer.resblocks.9.mlp.c_proj.bias", (1,), "xl_refiner"),
        ("model.diffusion_model.input_blocks.0.0.weight", (1, 9), "inpainting"),
        ("model.diffusion_model.input_blocks.0.0.weight", (1, 8), "instruct-pix2pix"),
    ],
)
def test_another_family_is_refused_by_name(tmp_path: Path, key: str, shape: tuple[int, ...], family: str) -> None:
    first = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1, 4)}
    save_file(first | {key: torch.zeros(shape)}, tmp_path / "one.safetensors")
    with pytest.raises(AuditError, match=f"this is a model of the family {family}, as ") as caught:
        audit.load_model(tmp_path / "one.safetensors")
    assert caught.value.kind == "unsupported_model"


def test_a_ckpt_is_refused_with_the_command_that_converts_it(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"")
    with pytest.raises(AuditError, match=r"from_single_file\(file\)\.save_pretrained\(folder\)"):
        audit.load_model(tmp_path / "model.ckpt")


def prediction_of(model: audit.Model) -> object:
    return model.scheduler_config["prediction_type"]


def test_a_marker_that_contradicts_the_configuration_is_refused_unless_somebody_says(
    data: Path, tmp_path: Path
) -> None:
    file, config = single_file(data / "toy-model", tmp_path, v_pred=EMPTY)
    with pytest.raises(AuditError, match="marked as v-prediction"):
        audit.load_model(file, config=config)
    model = audit.load_model(file, config=config, prediction_type="v_prediction")
    assert prediction_of(model) == "v_prediction"
    assert model.facts["prediction_type"] == "v_prediction (as given)"
    with pytest.raises(UsageError, match="prediction_type is 'sample'"):
        audit.load_model(file, config=config, prediction_type="sample")


def test_config_is_for_single_files(data: Path) -> None:
    with pytest.raises(UsageError, match="config is for a single file"):
        audit.load_model(data / "toy-model", config=data / "toy-model")


# The shapes of the published checkpoints, as diffusers makes them of the published configurations.
@cache
def published(kind: str) -> dict[str, Tensor]:
    """The tensors of a full-size SD 1.5, SD 2.1 or SD XL in the original layout, on the meta device."""
    blocks = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
    more: dict[str, Any] = {"cross_attention_dim": 768, "attention_head_dim": 8}
    plain = [0]
    if kind == "v2":
        more = {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
    if kind == "xl_base":
        blocks = ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2, ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"]
        more = {"cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20), "use_linear_projection": True}
        more |= {"block_out_channels": (320, 640, 1280), "transformer_layers_per_block": (1, 2, 10)}
        more |= {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}
        more |= {"projection_class_embeddings_input_dim": 2816}
        plain = [2]
    clip_l = dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12)
    clip_h = dict(hidden_size=1024, intermediate_size=4096, num_attention_heads=16, num_hidden_layers=24)
    clip_g = dict(hidden_size=1280, intermediate_size=5120, num_attention_heads=20, num_hidden_layers=32)
    with torch.device("meta"), no_init_weights():
        unet = UNet2DConditionModel(sample_size=64, down_block_types=blocks[0], up_block_types=blocks[1], **more)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            layers_per_block=2,
            latent_channels=4,
        )
        text = CLIPTextModel(CLIPTextConfig(**(clip_h if kind == "v2" else clip_l))).state_dict()
    text = {f"text_model.{name}": tensor for name, tensor in text.items()}
    tensors = {original_name(name, plain=plain): tensor for name, tensor in unet.state_dict().items()}
    for name, tensor in vae.state_dict().items():
        linear = "attentions" in name and name.endswith("weight") and tensor.ndim == 2
        tensors[vae_name(name)] = tensor[:, :, None, None] if linear else tensor
    if kind == "v1":
        return tensors | {f"cond_stage_model.transformer.{name}": tensor for name, tensor in text.items()}
    if kind == "v2":
        projection = {"cond_stage_model.model.text_projection": torch.empty(1024, 1024, device="meta")}
        return tensors | original_open_clip(text) | projection
    first = {f"conditioner.embedders.0.transformer.{name}": tensor for name, tensor in text.items()}
    with torch.device("meta"), no_init_weights():
        second = CLIPTextModelWithProjection(CLIPTextConfig(**clip_g, projection_dim=1280)).state_dict()
    return tensors | first | original_open_clip(second, "conditioner.embedders.1")


def vae_name(name: str) -> str:
    """The original name in an autoencoder of four blocks; `original_vae_name` has two."""
    parts = name.split(".")
    if parts[1] == "up_blocks":
        kind = "upsample" if parts[3] == "upsamplers" else "block"
        rest = parts[5:] if kind == "upsample" else parts[4:]
        found = ".".join(["decoder.up", str(3 - int(parts[2])), kind, *rest])
        return f"first_stage_model.{found.replace('conv_shortcut', 'nin_shortcut')}"
    return original_vae_name(name)


@pytest.mark.parametrize(
    ("kind", "counts"),  # parameters of the published networks
    [
        ("v1", {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}),
        ("v2", {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840}),
        (
            "xl_base",
            {"unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840},
        ),
    ],
)
def test_our_configurations_are_those_of_the_published_checkpoints(
    kind: str, counts: dict[str, int], tmp_path: Path
) -> None:
    from audit.models.single_file import LAYOUTS, converted, single_file_layout

    tensors = published(kind)
    layout = single_file_layout(tensors, tmp_path / "one.safetensors")
    assert layout is LAYOUTS[kind]
    configs, tokenizers = single_file_configs(layout, None)
    assert tokenizers.keys() == LAYOUTS[kind].family.TOKENIZERS.keys()
    networks = empty_networks(LAYOUTS[kind].family, configs, "here")
    for name, prefix in LAYOUTS[kind].prefixes.items():
        own = {key: tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        own = {key: torch.zeros(1).expand(tensor.shape) for key, tensor in own.items()}
        found = converted(name, own, prefix, networks[name], configs[name], "here")
        expected = {key.removeprefix("text_model."): each.shape for key, each in networks[name].state_dict().items()}
        assert {key.removeprefix("text_model."): tensor.shape for key, tensor in found.items()} == expected
    assert published_size(configs["unet"], "epsilon") == {"v1": 64, "v2": 64, "xl_base": 128}[kind]
    assert {name: sum(each.numel() for each in network.parameters()) for name, network in networks.items()} == counts


def test_the_plan_of_a_single_file_reads_its_header_alone(tmp_path: Path) -> None:
    file = tmp_path / "one.safetensors"
    sparse(file, published("v2"))
    assert sum(tensor.numel() for tensor in read_header(file).values()) > 10**9
    assert outline_model(file).resolution == (768, 768)
    assert outline_model(file, prediction_type="epsilon").resolution == (512, 512)
    assert outline_model(file, resolution=(512, 640)).latent_shape == (4, 64, 80)


def sparse(file: Path, tensors: dict[str, Tensor]) -> None:
    """A .safetensors file of zeros (float16) that takes no room on the disk."""
    header, at = {}, 0
    for key, tensor in tensors.items():
        size = 2 * tensor.numel()
        header[key] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + at)
