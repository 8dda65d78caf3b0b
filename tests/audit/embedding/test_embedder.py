import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from audit.embedding.descriptor import CopyDescriptor, DescriptorConfig
from audit.embedding.embedder import BATCH_PIXELS, Embedder
from audit.embedding.loading import load_embedder
from audit.errors import AuditError

TINY_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 8},
    # open_clip's own tokenizer has so many entries.
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def noise_image(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def sscd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("sscd") / "sscd.safetensors"
    CopyDescriptor(DescriptorConfig(channels=(8, 16, 16, 16), width=12)).save(path)
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import open_clip

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY_CLIP, "preprocess_cfg": {}}))
    save_file(open_clip.model.CLIP(**TINY_CLIP).state_dict(), str(folder / "open_clip_model.safetensors"))
    return folder


@pytest.fixture(params=["sscd", "clip"])
def embedder(request: pytest.FixtureRequest) -> Embedder:
    return load_embedder(request.param, request.getfixturevalue(request.param))


def test_an_embedder_gives_one_unit_row_an_image_of_any_mode_and_size(embedder: Embedder) -> None:
    images = [noise_image(0), noise_image(1, (20, 90)), noise_image(2).convert("L"), noise_image(3).convert("RGBA")]
    images.append(noise_image(4).convert("P"))
    vectors = embedder.embed(images)
    assert vectors.shape == (5, embedder.width)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)


def test_a_vector_does_not_depend_on_its_neighbours_in_the_batch(embedder: Embedder) -> None:
    images = [noise_image(seed) for seed in range(70)]
    assert embedder.embed(images)[66] == pytest.approx(embedder.embed(images[66:67])[0], abs=1e-5)


def test_inputs_of_many_sizes_keep_their_places() -> None:
    """As those of SSCD with `short_288`."""
    sizes = [(3, 320, 320), (3, 320, 6400), (3, 16, 16)]
    inputs = [torch.rand(sizes[n % 3], generator=torch.Generator().manual_seed(n)) for n in range(15)]
    batches = []

    def encode(x_BCHW: torch.Tensor) -> torch.Tensor:
        batches.append(x_BCHW.shape)
        return x_BCHW.mean(dim=(2, 3))

    found = Embedder("e", 3, {}, lambda image: inputs[0], encode).vectors(inputs)
    wanted = torch.stack([x_CHW.mean(dim=(1, 2)) for x_CHW in inputs])
    assert found == pytest.approx(torch.nn.functional.normalize(wanted, dim=1).numpy(), abs=1e-6)
    assert max(shape.numel() for shape in batches) <= BATCH_PIXELS * 3


def test_no_image_gives_no_row(embedder: Embedder) -> None:
    assert embedder.embed([]).shape == (0, embedder.width)


def test_transparency_is_dropped_as_training_scripts_drop_it(embedder: Embedder) -> None:
    clear = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    assert embedder.embed([clear]) == pytest.approx(embedder.embed([Image.new("RGB", (64, 64), "red")]), abs=1e-5)


def test_the_fingerprint_covers_every_file_that_the_vectors_depend_on(sscd: Path, clip: Path) -> None:
    assert list(load_embedder("sscd", sscd).sha256) == ["sscd.safetensors"]
    sha256 = load_embedder("clip", clip).sha256
    assert list(sha256) == ["open_clip_config.json", "open_clip_model.safetensors"]
    assert all(len(value) == 64 for value in sha256.values())
    print_ = load_embedder("sscd", sscd).fingerprint
    assert print_ == load_embedder("sscd", sscd).sha256 | {"preprocessing": "2: square 64, bicubic"}


def test_the_descriptor_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = DescriptorConfig(image_size=48, channels=(8, 8, 16), width=6)
    descriptor = CopyDescriptor(config).eval()
    descriptor.save(tmp_path / "d.safetensors")
    loaded = CopyDescriptor.load(tmp_path / "d.safetensors")
    image = descriptor.preprocess(noise_image(0))[None]
    assert loaded.config == config
    assert image.shape == (1, 3, 48, 48)
    assert torch.equal(loaded(image), descriptor(image))


def test_the_default_descriptor_is_small_and_trains() -> None:
    descriptor = CopyDescriptor()
    assert sum(p.numel() for p in descriptor.parameters()) < 700_000
    descriptor(torch.rand(2, 3, 64, 64)).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in descriptor.parameters())


def test_a_missing_file_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match=r"embedder sscd: .*nothing.*\n.*confirm\.sscd\.weights"):
        load_embedder("sscd", tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("name", ["model.pt", "model.ckpt", "model.bin"])
def test_a_pickle_is_refused_and_never_opened(tmp_path: Path, name: str) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    (tmp_path / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(AuditError, match="may run code|not a file of torch.save"):
        load_embedder("sscd", tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\xff" * 64])
def test_a_file_that_holds_no_descriptor_is_an_audit_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(AuditError, match="x.safetensors: not the weights of a copy descriptor"):
        load_embedder("sscd", tmp_path / "x.safetensors")


def test_a_truncated_descriptor_is_an_audit_error(tmp_path: Path, sscd: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(sscd.read_bytes()[:-100])
    with pytest.raises(AuditError, match="do not fit"):
        load_embedder("sscd", tmp_path / "x.safetensors")


def test_a_clip_folder_names_the_file_that_it_lacks(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "open_clip_config.json").write_bytes((clip / "open_clip_config.json").read_bytes())
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(AuditError, match="there is no open_clip_model.safetensors"):
        load_embedder("clip", tmp_path)


def test_a_clip_that_would_need_a_model_hub_is_refused(tmp_path: Path, clip: Path) -> None:
    config = {"model_cfg": {**TINY_CLIP, "text_cfg": {"hf_model_name": "roberta-base"}}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    (tmp_path / "open_clip_model.safetensors").write_bytes((clip / "open_clip_model.safetensors").read_bytes())
    with pytest.raises(AuditError, match="roberta-base"):
        load_embedder("clip", tmp_path)


def test_texts_lie_in_the_space_of_the_images_of_a_clip(clip: Path) -> None:
    import open_clip
    from safetensors.torch import load_file

    embedder = load_embedder("clip", clip)
    texts = ["a dog", "a cat on a mat"]
    vectors = embedder.embed_texts(texts)
    assert vectors.shape == (2, embedder.width)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    network = open_clip.model.CLIP(**TINY_CLIP).eval()
    network.load_state_dict(load_file(clip / "open_clip_model.safetensors"))
    with torch.inference_mode():
        wanted = network.encode_text(open_clip.SimpleTokenizer(context_length=8)(texts), normalize=True)
    assert vectors == pytest.approx(wanted.numpy(), abs=1e-5)


def test_no_text_gives_no_row(clip: Path) -> None:
    assert load_embedder("clip", clip).embed_texts([]).shape == (0, 24)


def test_a_network_without_a_text_encoder_says_so(sscd: Path) -> None:
    with pytest.raises(AuditError, match="embedder sscd has no text encoder"):
        load_embedder("sscd", sscd).embed_texts(["a dog"])


def test_a_tokenizer_of_a_model_hub_is_not_fetched_and_the_images_work_all_the_same(tmp_path: Path, clip: Path) -> None:
    config = {**TINY_CLIP, "text_cfg": {**TINY_CLIP["text_cfg"], "hf_tokenizer_name": "roberta-base"}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    (tmp_path / "open_clip_model.safetensors").write_bytes((clip / "open_clip_model.safetensors").read_bytes())
    embedder = load_embedder("clip", tmp_path)
    assert embedder.embed([noise_image(0)]).shape == (1, 24)
    with pytest.raises(AuditError, match="no text encoder that works offline"):
        embedder.embed_texts(["a dog"])
