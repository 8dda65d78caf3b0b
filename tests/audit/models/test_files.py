"""Which files hold the weights: plain, variants, shards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

import audit
from audit.errors import AuditError
from audit.models.files import weights_files
from tests.support.checkpoints import WEIGHTS, same


def as_variant(folder: Path, name: str, dtype: torch.dtype, keep: bool = False) -> None:
    """Give each component weights of a variant, and no others."""
    for part, file in WEIGHTS.items():
        plain = folder / part / file
        tensors = {key: tensor.to(dtype) for key, tensor in load_file(plain).items()}
        save_file(tensors, plain.with_suffix(f".{name}.safetensors"), {"format": "pt"})
        if not keep:
            plain.unlink()


def test_a_folder_with_the_fp16_variant_alone_loads_it_as_float32(folder: Path) -> None:
    as_variant(folder, "fp16", torch.float16)
    model = audit.load_model(folder)
    assert model.unet.dtype == torch.float32
    theirs = StableDiffusionPipeline.from_pretrained(folder, variant="fp16", torch_dtype=torch.float32)
    assert same(model, theirs)


def test_the_plain_weights_go_before_a_variant_that_nobody_asked_for(folder: Path, small: audit.Model) -> None:
    as_variant(folder, "fp16", torch.float16, keep=True)
    assert same(audit.load_model(folder), small)
    asked = audit.load_model(folder, variant="fp16")
    assert same(asked, StableDiffusionPipeline.from_pretrained(folder, variant="fp16", torch_dtype=torch.float32))
    assert not same(asked, small)


def test_of_two_variants_one_has_to_be_named(folder: Path) -> None:
    as_variant(folder, "fp16", torch.float16, keep=True)
    as_variant(folder, "non_ema", torch.float32)
    with pytest.raises(AuditError, match="it holds the variants fp16, non_ema") as caught:
        audit.load_model(folder)
    assert "model.variant" in str(caught.value)
    audit.load_model(folder, variant="non_ema")
    with pytest.raises(AuditError, match="no variant bf16"):
        audit.load_model(folder, variant="bf16")


def test_a_variant_that_no_component_has_is_refused(folder: Path) -> None:
    with pytest.raises(AuditError, match="no weights of the variant fp16"):
        audit.load_model(folder, variant="fp16")


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_load_as_one_file_does(folder: Path, small: audit.Model, variant: str | None) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    pipeline.unet.save_pretrained(folder / "unet", max_shard_size="200KB", variant=variant)
    assert len(weights_files(folder / "unet")) > 1
    assert same(audit.load_model(folder), small)


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    index = folder / "unet/diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.bias": "diffusion_pytorch_model-00001-of-00002.safetensors"}}))
    with pytest.raises(AuditError, match="it names diffusion_pytorch_model-00001-of-00002.safetensors, which is not"):
        audit.load_model(folder)
    index.write_text(json.dumps({"weight_map": {"conv_in.bias": "../vae/diffusion_pytorch_model.safetensors"}}))
    with pytest.raises(AuditError, match="which is not in this folder"):
        audit.load_model(folder)


def test_a_model_of_the_hub_in_the_cache_needs_no_network(
    folder: Path, small: audit.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0" * 40
    cached = tmp_path / "hub/models--organisation--tiny"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text(commit)
    (cached / "snapshots").mkdir()
    folder.rename(cached / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for module in ("huggingface_hub.constants", "diffusers.pipelines.pipeline_utils"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert same(audit.load_model("organisation/tiny"), small)
