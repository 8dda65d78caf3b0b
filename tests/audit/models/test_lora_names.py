"""LoRA is added exactly in every family, by the names of diffusers, peft, kohya and the original code."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from diffusers import FluxPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file
from torch import Tensor, nn

import audit
from audit.errors import AuditError
from audit.models.lora_names import original_names
from tests.support.original_layout import original_name
from tests.support.paths import TOKENIZER
from tests.support.tiny_mmdit import tiny_flux, tiny_sd3
from tests.support.tiny_pixart import tiny_pixart
from tests.support.tiny_sana import tiny_sana
from tests.support.tiny_xl import tiny_xl

RANK, ALPHA = 2, 3.0
FAMILIES: dict[str, Callable[[Path, Path], Path]] = {
    "xl": tiny_xl,
    "sd3": tiny_sd3,
    "flux": tiny_flux,
    "pixart": lambda folder, _tokenizer: tiny_pixart(folder),
    "sana": lambda folder, _tokenizer: tiny_sana(folder),
}

Factors = dict[str, tuple[Tensor, Tensor]]  # (down, up) by the name of the layer, with its component


class Family(NamedTuple):
    """The folder of a tiny model of a family, and that model in float64 without LoRA."""

    folder: Path
    model: audit.Model


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Family]:
    """Return a function that makes a family by its name, once."""

    @cache
    def make(name: str) -> Family:
        folder = FAMILIES[name](tmp_path_factory.mktemp("lora") / "model", TOKENIZER)
        return Family(folder, audit.load_model(folder, dtype=torch.float64))

    return make


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, made: Callable[[str], Family]) -> Family:
    return made(request.param)


@pytest.fixture(scope="module")
def xl(made: Callable[[str], Family]) -> Family:
    return made("xl")


@pytest.fixture(scope="module")
def flux(made: Callable[[str], Family]) -> Family:
    return made("flux")


def layers(model: audit.Model) -> dict[str, nn.Module]:
    """Every linear layer and convolution that LoRA can be added to, with its component."""
    return {
        f"{component}.{name}": layer
        for component, network in model.networks.items()
        if component != "vae"
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }


def factors_of(model: audit.Model) -> Factors:
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, layer in layers(model).items():
        shape = layer.weight.shape
        down = torch.randn(RANK, *shape[1:], generator=generator)
        found[name] = down, torch.randn(shape[0], RANK, *[1] * (len(shape) - 2), generator=generator)
    return found


def check(family: Family, lora: Path, factors: Factors, scale: float) -> None:
    """Check that the weights with LoRA are W + scale * up @ down in float64, and that no other weight changed."""
    plain, adapted = layers(family.model), layers(audit.load_model(family.folder, dtype=torch.float64, lora=lora))
    for name, layer in plain.items():
        expected = layer.weight
        if name in factors:
            down, up = (each.double().flatten(1) for each in factors[name])
            expected = expected + scale * torch.einsum("or,ri->oi", up, down).reshape(expected.shape)
        torch.testing.assert_close(adapted[name].weight, expected, rtol=1e-12, atol=1e-12)
    assert factors.keys() <= plain.keys()


def test_diffusers_names_reach_every_layer_of_every_family(family: Family, tmp_path: Path) -> None:
    factors = factors_of(family.model)
    tensors = {}
    for name, (down, up) in factors.items():
        tensors |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    alphas = {f"{name.partition('.')[0]}.lora_alpha": ALPHA for name in factors}
    save_file(tensors, tmp_path / "lora.safetensors", {"lora_adapter_metadata": json.dumps(alphas)})
    check(family, tmp_path / "lora.safetensors", factors, ALPHA / RANK)


def test_an_adapter_of_peft_reaches_every_layer_of_the_denoiser(family: Family, tmp_path: Path) -> None:
    denoiser = family.model.DENOISER
    factors = {name: each for name, each in factors_of(family.model).items() if name.startswith(denoiser)}
    tensors = {}
    for name, (down, up) in factors.items():
        prefix = f"base_model.model.{name.removeprefix(f'{denoiser}.')}"
        tensors |= {f"{prefix}.lora_A.weight": down, f"{prefix}.lora_B.weight": up}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": ALPHA}))
    check(family, tmp_path, factors, ALPHA / RANK)


def kohya(prefix: str, name: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    key = f"{prefix}_{name}".replace(".", "_")
    return {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(ALPHA)}


@pytest.mark.parametrize("original", [True, False])
def test_kohya_names_of_xl_reach_every_layer(xl: Family, original: bool, tmp_path: Path) -> None:
    factors, tensors = factors_of(xl.model), {}
    for name, (down, up) in factors.items():
        component, _, layer = name.partition(".")
        if component == "unet":
            if original:
                layer = (
                    original_name(f"{layer}.", layers=1, plain=[1]).removeprefix("model.diffusion_model.").rstrip(".")
                )
            tensors |= kohya("lora_unet", layer, down, up)
        else:
            inside = f"text_model.{layer.removeprefix('text_model.')}" if "encoder." in layer else layer
            tensors |= kohya("lora_te1" if component == "text_encoder" else "lora_te2", inside, down, up)
    save_file(tensors, tmp_path / "lora.safetensors")
    check(xl, tmp_path / "lora.safetensors", factors, ALPHA / RANK)


def test_kohya_names_of_flux_are_split_over_the_layers_that_they_fuse(flux: Family, tmp_path: Path) -> None:
    own, text = layers(flux.model), factors_of(flux.model)
    factors = {name: each for name, each in text.items() if name.startswith("text_encoder.")}
    tensors: dict[str, Tensor] = {}
    for name, each in factors.items():
        tensors |= kohya("lora_te1_text_model", name.removeprefix("text_encoder."), *each)
    generator = torch.Generator().manual_seed(0)
    for name, parts in original_names(flux.model.transformer, []).items():
        weights = [own[f"transformer.{part}"].weight for part in parts]
        down = torch.randn(RANK, weights[0].shape[1], generator=generator)
        up = torch.randn(sum(map(len, weights)), RANK, generator=generator)
        tensors |= kohya("lora_unet", name, down, up)
        for part, rows in zip(parts, up.split([len(weight) for weight in weights]), strict=True):
            factors[f"transformer.{part}"] = down, rows
    left = own.keys() - factors.keys()
    assert {name for name in left if not name.startswith("text_encoder_2.")} == {
        "transformer.norm_out.linear",  # whose halves are swapped in the original code
        "transformer.proj_out",
    }
    save_file(tensors, tmp_path / "lora.safetensors")
    check(flux, tmp_path / "lora.safetensors", factors, ALPHA / RANK)


def named(converted: dict[str, Tensor]) -> set[str]:
    """The layers that diffusers' converters name."""
    found = set()
    for key in converted:
        name = key.replace(".processor.", ".")
        for end in ("_lora", ".lora", ".lora_linear_layer"):
            for factor in ("down", "up"):
                name = name.removesuffix(f"{end}.{factor}.weight")
        name = name.removesuffix(".lora_A.weight").removesuffix(".lora_B.weight")
        found.add(name.removeprefix("unet.").removeprefix("transformer.").replace("to_out", "to_out.0", 1))
    return {name.replace("to_out.0.0", "to_out.0") for name in found}


def test_original_names_of_xl_are_those_that_diffusers_converts(xl: Family) -> None:
    unet = xl.model.unet
    linear = [name for name, layer in unet.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    for name, (part,) in original_names(unet, linear).items():
        given = kohya("lora_unet", name, torch.zeros(1), torch.zeros(1))
        converted, _ = StableDiffusionXLPipeline.lora_state_dict(given, unet_config=unet.config)
        assert named(converted) == {part}, name


def test_original_names_of_flux_are_those_that_diffusers_converts(flux: Family) -> None:
    widths = {"linear1": 3072 * 7, "qkv": 3072 * 3}
    for name, parts in original_names(flux.model.transformer, []).items():
        rows = widths.get(name.rpartition(".")[2], 6)
        up = torch.arange(rows)[:, None].float()
        given = kohya("lora_unet", name, torch.ones(1, 1), up)
        given = {key: tensor for key, tensor in given.items() if not key.endswith(".alpha")}
        converted = FluxPipeline.lora_state_dict(given)
        assert named(converted) == set(parts), name
        order = [next(each for key, each in converted.items() if f"{part}.lora_B" in key) for part in parts]
        assert torch.equal(torch.cat(order), up)


@pytest.mark.parametrize(
    "key",
    [
        "lora_unet_final_layer_adaLN_modulation_1.lora_down.weight",
        "lora_unet_double_blocks_9_img_attn_qkv.lora_down.weight",
        "lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_down.weight",
        "lora_unet_double_blocks_0_img_attn_qkv.dora_scale",
        "lora_unet_double_blocks_0_img_attn_qkv.diff_b",
    ],
)
def test_what_matches_no_layer_of_flux_is_refused_by_name(flux: Family, key: str, tmp_path: Path) -> None:
    save_file({key: torch.zeros(2, 2)}, tmp_path / "lora.safetensors")
    with pytest.raises(AuditError, match=f"{key} belongs to no layer of this model"):
        audit.load_model(flux.folder, lora=tmp_path / "lora.safetensors")


def test_a_fused_layer_of_another_width_does_not_fit(flux: Family, tmp_path: Path) -> None:
    tensors = kohya("lora_unet", "double_blocks_0_img_attn_qkv", torch.zeros(2, 32), torch.zeros(95, 2))
    save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(AuditError, match="its weights do not fit the layer unet_double_blocks_0_img_attn_qkv"):
        audit.load_model(flux.folder, lora=tmp_path / "lora.safetensors")


def test_a_layer_that_is_given_twice_is_refused(flux: Family, tmp_path: Path) -> None:
    tensors = kohya("lora_unet", "double_blocks_0_img_attn_qkv", torch.zeros(2, 32), torch.zeros(96, 2))
    tensors |= kohya("lora_transformer", "transformer_blocks_0_attn_to_k", torch.zeros(2, 32), torch.zeros(32, 2))
    save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(AuditError, match="it adds to the layer .* under another name too"):
        audit.load_model(flux.folder, lora=tmp_path / "lora.safetensors")
