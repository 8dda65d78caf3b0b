"""open_clip models by name: a weights file, a published tag, and how their images are prepared."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision import transforms

from audit.embedding.clip import CONFIG, WEIGHTS, _preparation
from audit.embedding.embedder import Embedder
from audit.embedding.loading import load_embedder
from audit.errors import AuditError

TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
# As open_clip keeps its own tags, one with the images of SigLIP.
PLAIN = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7), "interpolation": "bicubic", "resize_mode": "shortest"}
SQUASHED = PLAIN | {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "resize_mode": "squash"}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> torch.nn.Module:
    folder = tmp_path_factory.mktemp("configs")
    for name in ("tiny-test", "tiny-test-quickgelu"):
        config = TINY | ({"quick_gelu": True} if name.endswith("quickgelu") else {})
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    return open_clip.model.CLIP(**TINY).eval()


@pytest.fixture(scope="module")
def weights(network: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(network.state_dict(), str(path))
    return path


@pytest.fixture
def tags(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"plain": PLAIN, "quick": PLAIN | {"quick_gelu": True}, "squashed": SQUASHED}
    hub = {"hf_hub": "nobody/nothing/"}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-test", {tag: hub | cfg for tag, cfg in known.items()})


def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def expected(network: torch.nn.Module, mean: tuple, std: tuple, squash: bool = False) -> np.ndarray:
    steps: list = [transforms.Resize((32, 32) if squash else 32, transforms.InterpolationMode.BICUBIC)]
    steps += [transforms.CenterCrop(32), transforms.ToTensor(), transforms.Normalize(mean, std)]
    with torch.inference_mode():
        return network.encode_image(transforms.Compose(steps)(picture())[None], normalize=True).numpy()


def embed(embedder: Embedder) -> np.ndarray:
    return embedder.embed([picture()])


def test_a_weights_file_needs_its_architecture(network: torch.nn.Module, weights: Path) -> None:
    embedder = load_embedder("clip", weights, model="tiny-test")
    wanted = expected(network, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    assert embed(embedder) == pytest.approx(wanted, abs=1e-5)
    assert embedder.embed_texts(["a dog"]).shape == (1, 24)
    assert list(embedder.fingerprint) == [weights.name, "preprocessing"]
    with pytest.raises(AuditError, match="do not fit the copy descriptor|not the weights of a copy descriptor"):
        load_embedder("clip", weights)


def test_a_folder_with_the_same_weights_gives_the_same_vectors(
    network: torch.nn.Module, weights: Path, tmp_path: Path
) -> None:
    (tmp_path / CONFIG).write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": {}}))
    (tmp_path / WEIGHTS).write_bytes(weights.read_bytes())
    by_name = load_embedder("clip", weights, model="tiny-test")
    assert embed(load_embedder("clip", tmp_path)) == pytest.approx(embed(by_name), abs=1e-6)


def test_weights_of_torch_save_are_read_without_running_their_code(network: torch.nn.Module, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save(network.state_dict(), tmp_path / "tiny.pt")
    wanted = expected(network, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    assert embed(load_embedder("clip", tmp_path / "tiny.pt", model="tiny-test")) == pytest.approx(wanted, abs=1e-5)
    torch.save(network.state_dict() | {"visual.proj": Trap()}, tmp_path / "trap.bin")
    with pytest.raises(AuditError, match="open_clip cannot load the model"):
        load_embedder("clip", tmp_path / "trap.bin", model="tiny-test")
    assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("tags")
def test_a_tag_says_how_the_images_of_a_weights_file_are_prepared(network: torch.nn.Module, weights: Path) -> None:
    plain, squashed = (load_embedder("clip", weights, model=f"tiny-test/{tag}") for tag in ("plain", "squashed"))
    assert embed(plain) == pytest.approx(expected(network, PLAIN["mean"], PLAIN["std"]), abs=1e-5)
    wanted = expected(network, SQUASHED["mean"], SQUASHED["std"], squash=True)
    assert embed(squashed) == pytest.approx(wanted, abs=1e-5)
    assert plain.fingerprint != squashed.fingerprint
    assert plain.sha256 == squashed.sha256


@pytest.mark.usefixtures("tags")
def test_where_tags_disagree_one_has_to_be_named(network: torch.nn.Module, weights: Path) -> None:
    with pytest.raises(AuditError, match="more than one way\n.*tiny-test/TAG, with TAG one of plain, quick, squashed"):
        load_embedder("clip", weights, model="tiny-test")


def test_the_tags_that_ship_with_open_clip_are_read_like_that() -> None:
    assert _preparation("ViT-B-16-SigLIP", "webli")["mean"] == (0.5, 0.5, 0.5)
    assert _preparation("ViT-B-32", None)["resize_mode"] == "shortest"
    with pytest.raises(AuditError, match="more than one way"):
        _preparation("ViT-L-14", None)


@pytest.mark.usefixtures("tags")
def test_another_activation_than_the_tag_was_trained_with_is_refused(network: torch.nn.Module, weights: Path) -> None:
    """open_clip only warns: https://github.com/mlfoundations/open_clip, section on QuickGELU."""
    with pytest.raises(AuditError, match="quick were trained with QuickGELU\nUse tiny-test-quickgelu/quick"):
        load_embedder("clip", weights, model="tiny-test/quick")
    with pytest.raises(AuditError, match="Use ViT-B-32-quickgelu/openai"):
        load_embedder("clip", "ViT-B-32/openai")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("VIT-B-32/openai", "knows no architecture 'VIT-B-32'"),
        ("embedders/clip", "knows no architecture 'embedders'\nGive a folder"),
        ("ViT-B-32/openia", "knows no tag 'openia' of ViT-B-32\nKnown: openai, "),
        ("roberta-ViT-B-32/laion2b_s12b_b32k", "needs files from a model hub"),
    ],
)
def test_a_name_that_open_clip_does_not_know_says_what_there_is(
    weights: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline(monkeypatch, tmp_path)
    with pytest.raises(AuditError, match=message):
        load_embedder("clip", weights)


def test_a_tag_offline_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offline(monkeypatch, tmp_path)
    with pytest.raises(AuditError, match="cannot be fetched.*\n.*confirm.clip.model: ViT-B-32/laion2b_s34b_b79k"):
        load_embedder("clip", "ViT-B-32/laion2b_s34b_b79k")


def offline(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
