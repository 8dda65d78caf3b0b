"""Networks without weights: made of configurations alone, of the shapes that the loaded ones have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import audit
from audit.costs.meta_networks import outline_embedder, outline_model
from audit.embedding.descriptor import CopyDescriptor, DescriptorConfig
from audit.embedding.loading import load_embedder
from audit.errors import AuditError
from tests.support.paths import BUNDLE, TINY_MODELS


def without_weights(source: Path, folder: Path) -> Path:
    return Path(shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors")))


@pytest.mark.parametrize("name", TINY_MODELS)
def test_an_outline_has_the_shapes_of_the_model_and_needs_no_weights(
    name: str, data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model: audit.Model = request.getfixturevalue(name.removeprefix("tiny-"))
    outline = outline_model(without_weights(data / name, tmp_path / name))
    for part in ("unet", "text_encoder", "vae"):
        loaded, drawn = getattr(model, part).state_dict(), getattr(outline, part).state_dict()
        assert {key: value.shape for key, value in drawn.items()} == {key: v.shape for key, v in loaded.items()}
        assert all(value.is_meta for value in drawn.values())
    assert outline.latent_shape == model.latent_shape
    assert outline.scheduler_config == model.scheduler_config
    assert torch.equal(outline.tokenize(["a red dog"]).ids_BK, model.tokenize(["a red dog"]).ids_BK)


def test_what_is_no_supported_model_is_refused_as_load_model_does(data: Path, tmp_path: Path) -> None:
    folder = without_weights(data / "tiny-sd1", tmp_path / "model")
    (folder / "unet/config.json").write_text(json.dumps({"_class_name": "FluxTransformer2DModel"}))
    for path in (folder, tmp_path, tmp_path / "nothing"):
        with pytest.raises(AuditError) as outlined:
            outline_model(path)
        with pytest.raises(AuditError) as loaded:
            audit.load_model(path)
        assert str(outlined.value) == str(loaded.value)


def test_a_damaged_configuration_is_an_error_that_names_the_file(data: Path, tmp_path: Path) -> None:
    folder = without_weights(data / "tiny-sd1", tmp_path / "model")
    (folder / "vae/config.json").write_text("{")
    with pytest.raises(AuditError, match="vae/config.json: not readable as JSON"):
        outline_model(folder)


def test_an_embedder_is_drawn_as_wide_as_it_loads(tmp_path: Path) -> None:
    CopyDescriptor(DescriptorConfig(image_size=32, channels=(8, 16), width=24)).save(tmp_path / "small.safetensors")
    for weights in (tmp_path / "small.safetensors", BUNDLE / "embedders/clip"):
        outline, loaded = outline_embedder(weights), load_embedder("sscd", weights)
        assert outline.width == loaded.width
        assert outline.shape == tuple(loaded.preprocess(Image.new("RGB", (48, 40), "grey")).shape)


def test_what_is_published_is_known_without_a_file() -> None:
    mixup, large = outline_embedder("sscd_disc_mixup"), outline_embedder("sscd_disc_large")
    assert (mixup.width, mixup.shape) == (512, (3, 320, 320))
    assert (large.width, large.shape) == (1024, (3, 320, 320))
    assert outline_embedder("sscd_disc_mixup", resize="short_288").shape == (3, 288, 288)
    clip = outline_embedder("ViT-B-32/laion2b_s34b_b79k")
    assert (clip.width, clip.shape) == (512, (3, 224, 224))
    with pytest.raises(AuditError, match="open_clip cannot make the model"):
        outline_embedder("ViT-Q-1/none")
