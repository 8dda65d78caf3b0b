"""Every tensor of a network comes from the file, and every tensor of the file goes into the network."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

import audit
from audit.errors import AuditError
from audit.models.networks import empty_networks, folder_configs
from audit.models.sd import StableDiffusion
from audit.models.weights import fill
from tests.support.checkpoints import PARTS, WEIGHTS, retensor, same

Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]
Refused = Callable[[str, Change], AuditError]
FIRST = {"unet": "conv_in.bias", "vae": "decoder.conv_in.bias", "text_encoder": "encoder.layers.0.layer_norm1.bias"}


def test_the_weights_are_those_that_diffusers_loads(data: Path, small: audit.Model) -> None:
    assert same(small, StableDiffusionPipeline.from_pretrained(data / "toy-model"))


@pytest.fixture(scope="module")
def networks(data: Path) -> dict[str, nn.Module]:
    """The networks of the model without weights. One that refuses weights has none afterwards either."""
    return empty_networks(StableDiffusion, folder_configs(StableDiffusion, data / "toy-model"), "here")


@pytest.fixture(scope="module")
def refused(data: Path, networks: dict[str, nn.Module]) -> Refused:
    """Return a function that changes the weights of a part and returns the error of loading them."""

    def load(part: str, change: Change) -> AuditError:
        tensors = change(load_file(data / "toy-model" / part / WEIGHTS[part]))
        with pytest.raises(AuditError) as caught:
            fill(networks[part], tensors, part, "here", torch.float32)
        return caught.value

    return load


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "net.", "_fsdp_wrapped_module."])
def test_foreign_names_are_refused_with_the_first_few_and_the_likely_cause(
    refused: Refused, part: str, prefix: str
) -> None:
    error = refused(part, lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()})
    assert re.search(f"{part}: .* are missing .*belong to no layer", error.what)
    assert f"({prefix}" in error.what
    assert prefix.rstrip(".") in str(error.hint)


def test_names_of_blocks_that_were_compiled_one_by_one_are_refused(
    refused: Refused,
) -> None:
    block = "down_blocks.0.attentions.0.transformer_blocks.0."

    def compiled(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name.replace(block, f"{block}_orig_mod."): tensor for name, tensor in tensors.items()}

    error = refused("unet", compiled)
    assert re.search(r"unet: \d+ of its 208 weights are missing", error.what)
    assert "torch.compile" in str(error.hint)


@pytest.mark.parametrize("part", PARTS)
def test_weights_with_an_adapter_in_them_are_refused_with_how_to_merge(refused: Refused, part: str) -> None:
    def adapted(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        layer = next(
            name.removesuffix(".weight") for name in tensors if name.endswith(("to_q.weight", "q_proj.weight"))
        )
        base = tensors.pop(f"{layer}.weight")
        return tensors | {f"{layer}.base_layer.weight": base, f"{layer}.lora_A.default.weight": base[:2]}

    error = refused(part, adapted)
    assert f"{part}: the weights were saved with an adapter" in error.what
    assert "fuse_lora" in str(error.hint)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_tensor_that_is_not_finite_is_named(refused: Refused, part: str, bad: float) -> None:
    def spoil(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        name = next(name for name in tensors if name.endswith(FIRST[part]))
        tensors[name].flatten()[1] = bad
        return tensors

    assert f"{part}: {FIRST[part]} has values that are NaN or infinite" in refused(part, spoil).what


@pytest.mark.parametrize("part", PARTS)
def test_a_tensor_of_another_shape_in_the_folder_is_named_with_both(folder: Path, part: str) -> None:
    def cut(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: each[:-1] if name.endswith(FIRST[part]) else each for name, each in tensors.items()}

    retensor(folder, part, cut)
    with pytest.raises(AuditError, match=rf"{part}: {FIRST[part]} has the shape \[\d+\], but config.json says \[\d+\]"):
        audit.load_model(folder)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(part=st.sampled_from(PARTS), number=st.integers(0, 10_000), rename=st.booleans())
def test_no_tensor_can_be_missing_or_renamed(refused: Refused, part: str, number: int, rename: bool) -> None:
    left = 0

    def without(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        nonlocal left
        name = sorted(tensors)[number % len(tensors)]
        tensor = tensors.pop(name)
        left = len(tensors)
        return tensors | ({f"{name}x": tensor} if rename else {})

    error = refused(part, without)
    assert f"{part}: 1 of its {left + 1} weights are missing" in error.what
    assert ("1 weights belong to no layer" in error.what) == rename


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantized_weights_are_refused_by_dtype(refused: Refused, dtype: torch.dtype) -> None:
    error = refused("unet", lambda tensors: tensors | {"conv_in.weight": tensors["conv_in.weight"].to(dtype)})
    assert re.search("conv_in.weight is of dtype .*quantized", error.what)


def test_values_that_the_dtype_cannot_hold_are_told_from_broken_ones(folder: Path) -> None:
    retensor(folder, "unet", lambda tensors: tensors | {"conv_in.bias": tensors["conv_in.bias"] + 1e6})
    with pytest.raises(AuditError, match="conv_in.bias has values that float16 cannot hold"):
        audit.load_model(folder, dtype=torch.float16)
    audit.load_model(folder, dtype=torch.bfloat16)


def old_attention(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    new = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    found = {}
    for name, tensor in tensors.items():
        for ours, theirs in new.items():
            name = name.replace(ours, theirs)
        found[name] = tensor
    return found


def test_published_checkpoints_of_before_load_as_they_did(folder: Path, small: audit.Model) -> None:
    extra = {
        "text_model.embeddings.position_ids": torch.arange(77)[None],
        "text_projection.weight": torch.eye(4),
        "logit_scale": torch.ones(()),
        "vision_model.embeddings.class_embedding": torch.ones(3),
    }
    retensor(folder, "text_encoder", lambda tensors: tensors | extra)
    retensor(folder, "vae", old_attention)
    model = audit.load_model(folder)
    assert same(model, small)
    assert same(model, StableDiffusionPipeline.from_pretrained(folder))


def test_names_without_the_prefix_of_transformers_4_load_too(folder: Path, small: audit.Model) -> None:
    retensor(
        folder, "text_encoder", lambda tensors: {name.removeprefix("text_model."): t for name, t in tensors.items()}
    )
    assert same(audit.load_model(folder), small)


def test_what_was_loaded_is_hashed_by_names_and_numbers_in_the_dtype_that_runs(
    folder: Path, small: audit.Model
) -> None:
    retensor(folder, "unet", lambda tensors: dict(reversed(tensors.items())))
    again = audit.load_model(folder)
    assert again.loaded_sha256 == small.loaded_sha256

    def nudge(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors["conv_in.bias"][0] += 1e-3
        return tensors

    retensor(folder, "unet", nudge)
    changed = audit.load_model(folder).loaded_sha256
    assert {part for part in changed if changed[part] != small.loaded_sha256[part]} == {"unet (as loaded)"}
    half = audit.load_model(folder, dtype=torch.float16).loaded_sha256
    assert all(half[part] != changed[part] for part in changed)
