"""Every tensor of a network comes from the file, and every tensor of the file goes into the network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

import audit
from audit.errors import AuditError
from tests.support.checkpoints import PARTS, WEIGHTS, retensor, same

FIRST = {"unet": "conv_in.bias", "vae": "decoder.conv_in.bias", "text_encoder": "encoder.layers.0.layer_norm1.bias"}


def test_the_weights_are_those_that_diffusers_loads(data: Path, sd1: audit.Model) -> None:
    assert same(sd1, StableDiffusionPipeline.from_pretrained(data / "tiny-sd1"))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "net.", "_fsdp_wrapped_module."])
def test_foreign_names_are_refused_with_the_first_few_and_the_likely_cause(
    folder: Path, part: str, prefix: str
) -> None:
    retensor(folder, part, lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()})
    with pytest.raises(AuditError, match=f"{part}: .* are missing .*belong to no layer") as caught:
        audit.load_model(folder)
    assert f"({prefix}" in caught.value.what
    assert prefix.rstrip(".") in str(caught.value.hint)


def test_names_of_blocks_that_were_compiled_one_by_one_are_refused(folder: Path) -> None:
    block = "down_blocks.0.attentions.0.transformer_blocks.0."

    def compiled(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name.replace(block, f"{block}_orig_mod."): tensor for name, tensor in tensors.items()}

    retensor(folder, "unet", compiled)
    with pytest.raises(AuditError, match=r"unet: \d+ of its 684 weights are missing.*(?s:.)*torch.compile"):
        audit.load_model(folder)


@pytest.mark.parametrize("part", PARTS)
def test_weights_with_an_adapter_in_them_are_refused_with_how_to_merge(folder: Path, part: str) -> None:
    def adapted(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        layer = next(
            name.removesuffix(".weight") for name in tensors if name.endswith(("to_q.weight", "q_proj.weight"))
        )
        base = tensors.pop(f"{layer}.weight")
        return tensors | {f"{layer}.base_layer.weight": base, f"{layer}.lora_A.default.weight": base[:2]}

    retensor(folder, part, adapted)
    with pytest.raises(AuditError, match=f"{part}: the weights were saved with an adapter") as caught:
        audit.load_model(folder)
    assert "fuse_lora" in str(caught.value)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_tensor_that_is_not_finite_is_named(folder: Path, part: str, bad: float) -> None:
    def spoil(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        name = next(name for name in tensors if name.endswith(FIRST[part]))
        tensors[name].flatten()[1] = bad
        return tensors

    retensor(folder, part, spoil)
    with pytest.raises(AuditError, match=f"{part}: {FIRST[part]} has values that are NaN or infinite"):
        audit.load_model(folder)


@pytest.mark.parametrize("part", PARTS)
def test_a_tensor_of_another_shape_is_named_with_both(folder: Path, part: str) -> None:
    def cut(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: each[:-1] if name.endswith(FIRST[part]) else each for name, each in tensors.items()}

    retensor(folder, part, cut)
    with pytest.raises(AuditError, match=rf"{part}: {FIRST[part]} has the shape \[\d+\], but config.json says \[\d+\]"):
        audit.load_model(folder)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(part=st.sampled_from(PARTS), number=st.integers(0, 10_000), rename=st.booleans())
def test_no_tensor_can_be_missing_or_renamed(data: Path, part: str, number: int, rename: bool) -> None:
    from audit.models.networks import empty_networks, folder_configs
    from audit.models.sd import StableDiffusion
    from audit.models.weights import fill

    tensors = load_file(data / "tiny-sd1" / part / WEIGHTS[part])
    name = sorted(tensors)[number % len(tensors)]
    tensor = tensors.pop(name)
    if rename:
        tensors[f"{name}x"] = tensor
    network = empty_networks(StableDiffusion, folder_configs(StableDiffusion, data / "tiny-sd1"), "here")[part]
    with pytest.raises(AuditError, match=f"{part}: 1 of its {len(tensors) + (not rename)} weights are missing"):
        fill(network, tensors, part, "here", torch.float32)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantized_weights_are_refused_by_dtype(folder: Path, dtype: torch.dtype) -> None:
    retensor(folder, "unet", lambda tensors: tensors | {"conv_in.weight": tensors["conv_in.weight"].to(dtype)})
    with pytest.raises(AuditError, match="conv_in.weight is of dtype .*quantized"):
        audit.load_model(folder)


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


def test_published_checkpoints_of_before_load_as_they_did(folder: Path, sd1: audit.Model) -> None:
    extra = {
        "text_model.embeddings.position_ids": torch.arange(77)[None],
        "text_projection.weight": torch.eye(4),
        "logit_scale": torch.ones(()),
        "vision_model.embeddings.class_embedding": torch.ones(3),
    }
    retensor(folder, "text_encoder", lambda tensors: tensors | extra)
    retensor(folder, "vae", old_attention)
    model = audit.load_model(folder)
    assert same(model, sd1)
    assert same(model, StableDiffusionPipeline.from_pretrained(folder))


def test_names_without_the_prefix_of_transformers_4_load_too(folder: Path, sd1: audit.Model) -> None:
    retensor(
        folder, "text_encoder", lambda tensors: {name.removeprefix("text_model."): t for name, t in tensors.items()}
    )
    assert same(audit.load_model(folder), sd1)


def test_what_was_loaded_is_hashed_by_names_and_numbers_in_the_dtype_that_runs(folder: Path, sd1: audit.Model) -> None:
    retensor(folder, "unet", lambda tensors: dict(reversed(tensors.items())))
    again = audit.load_model(folder)
    assert again.loaded_sha256 == sd1.loaded_sha256

    def nudge(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors["conv_in.bias"][0] += 1e-3
        return tensors

    retensor(folder, "unet", nudge)
    changed = audit.load_model(folder).loaded_sha256
    assert {part for part in changed if changed[part] != sd1.loaded_sha256[part]} == {"unet (as loaded)"}
    half = audit.load_model(folder, dtype=torch.float16).loaded_sha256
    assert all(half[part] != changed[part] for part in changed)
