"""SSCD from its published files: state dicts shaped and named as those are, with random weights."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision import transforms

from audit.embedding.loading import load_embedder
from audit.embedding.sscd import LONGEST, prepare
from audit.errors import AuditError

BLOCKS = ((3, 64), (4, 128), (6, 256), (3, 512))


def published(seed: int = 0, width: int = 512) -> dict[str, Tensor]:
    """A state dict as `Model("TV_RESNET50", 512, 3.0)` of facebookresearch/sscd-copy-detection has it."""
    torch.manual_seed(seed)
    state: dict[str, Tensor] = {}

    def conv(name: str, out: int, into: int, size: int) -> None:
        state[f"{name}.weight"] = torch.randn(out, into, size, size) * (2 / (into * size * size)) ** 0.5

    def norm(name: str, channels: int) -> None:
        state[f"{name}.weight"] = 0.5 + 0.2 * torch.rand(channels)
        state[f"{name}.bias"] = 0.2 * torch.randn(channels)
        state[f"{name}.running_mean"] = 0.2 * torch.randn(channels)
        state[f"{name}.running_var"] = 0.8 + 0.4 * torch.rand(channels)
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    conv("backbone.conv1", 64, 3, 7)
    norm("backbone.bn1", 64)
    channels = 64
    for stage, (count, inner) in enumerate(BLOCKS, 1):
        for block in range(count):
            at = f"backbone.layer{stage}.{block}"
            for number, (out, into, size) in enumerate(
                ((inner, channels, 1), (inner, inner, 3), (4 * inner, inner, 1)), 1
            ):
                conv(f"{at}.conv{number}", out, into, size)
                norm(f"{at}.bn{number}", out)
            if block == 0:
                conv(f"{at}.downsample.0", 4 * inner, channels, 1)
                norm(f"{at}.downsample.1", 4 * inner)
            channels = 4 * inner
    state["backbone.fc.weight"] = torch.randn(width, 2048) / 45
    state["backbone.fc.bias"] = 0.1 * torch.randn(width)
    return state


def descriptor(state: dict[str, Tensor], images_BCHW: Tensor) -> Tensor:
    """ResNet-50 (He et al., 2016, with the stride in the 3 x 3 convolution), GeM of p = 3, L2 norm; in float64."""
    of = {name: tensor.double() for name, tensor in state.items()}

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = of[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def norm(x: Tensor, name: str) -> Tensor:
        weight, bias, mean, var = (
            of[f"{name}.{part}"][:, None, None] for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    x = F.relu(norm(conv(images_BCHW.double(), "backbone.conv1", 2), "backbone.bn1"))
    x = F.max_pool2d(x, 3, 2, 1)
    for stage, (count, _) in enumerate(BLOCKS, 1):
        for block in range(count):
            at, stride = f"backbone.layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            h = F.relu(norm(conv(x, f"{at}.conv1"), f"{at}.bn1"))
            h = F.relu(norm(conv(h, f"{at}.conv2", stride), f"{at}.bn2"))
            h = norm(conv(h, f"{at}.conv3"), f"{at}.bn3")
            if block == 0:
                x = norm(conv(x, f"{at}.downsample.0", stride), f"{at}.downsample.1")
            x = F.relu(x + h)
    pooled = (x.clamp(min=1e-6) ** 3).mean(dim=(2, 3)) ** (1 / 3)
    vector = pooled @ of["backbone.fc.weight"].T + of["backbone.fc.bias"]
    return vector / vector.norm(dim=1, keepdim=True)


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


NORMALIZE = transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
# As the README of the SSCD project gives them.
RECOMMENDED = {
    "short_288": transforms.Compose([transforms.Resize(288), transforms.ToTensor(), NORMALIZE]),
    "square_320": transforms.Compose([transforms.Resize([320, 320]), transforms.ToTensor(), NORMALIZE]),
}


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return published()


@pytest.fixture(scope="module")
def blank(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same names, shapes and types, of zeros that take no room in a file."""
    return {name: tensor.new_zeros(()).expand(tensor.shape) for name, tensor in state.items()}


@pytest.fixture(scope="module")
def weights(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sscd") / "sscd_disc_mixup.torchvision.pt"
    torch.save(state, path)
    return path


@pytest.mark.parametrize("resize", RECOMMENDED)
@pytest.mark.parametrize("size", [(40, 30), (500, 301), (288, 288), (7, 9)])
def test_an_image_is_prepared_as_the_project_recommends(resize: str, size: tuple[int, int]) -> None:
    image = picture(1, size)
    found, wanted = prepare(image, resize), RECOMMENDED[resize](image)
    assert found.shape == wanted.shape
    assert torch.allclose(found, wanted, atol=1e-5)


def test_a_very_long_image_is_squeezed_and_stays_small() -> None:
    assert prepare(picture(1, (1, 5000)), "short_288").shape == (3, LONGEST * 288, 288)


@pytest.mark.slow
def test_vectors_are_those_of_an_independent_forward_in_float64(weights: Path, state: dict[str, Tensor]) -> None:
    embedder, images = load_embedder("sscd", weights, resize="short_288"), [picture(n, (64, 60)) for n in range(2)]
    assert embedder.width == 512
    found = embedder.embed(images)
    assert np.abs(found[0] - found[1]).max() > 1e-3
    wanted = descriptor(state, RECOMMENDED["short_288"](images[0])[None])[0].numpy()
    assert found[0] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.slow
def test_what_tells_embedders_apart_is_the_weights_and_how_images_are_prepared(
    blank: dict[str, Tensor], tmp_path: Path
) -> None:
    one, other = (tmp_path / folder / "sscd_disc_mixup.torchvision.pt" for folder in ("one", "other"))
    for path, bias in ((one, 1.0), (other, 2.0)):
        path.parent.mkdir()
        torch.save(blank | {"backbone.fc.bias": torch.full((512,), bias)}, path)
    prints = [load_embedder("sscd", one, resize=resize).fingerprint for resize in RECOMMENDED]
    prints.append(load_embedder("sscd", other).fingerprint)
    assert [list(item) for item in prints] == [[one.name, "preprocessing"]] * 3
    assert len({str(item) for item in prints}) == 3


def test_the_cache_holds_the_published_weights_by_name(
    blank: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "sscd_disc_mixup.torchvision.pt"
    monkeypatch.setenv("CROSSAUDIT_CACHE", str(tmp_path))
    with pytest.raises(AuditError, match="crossaudit download-weights sscd_disc_mixup.*\n?.*dl.fbaipublicfiles.com"):
        load_embedder("sscd", "sscd_disc_mixup")
    torch.save(blank | {"backbone.fc.bias": torch.ones(512)}, weights)
    assert load_embedder("sscd", "sscd_disc_mixup").sha256 == load_embedder("sscd", weights).sha256


def refused(path: Path, **options: bool) -> str:
    with pytest.raises(AuditError) as caught:
        load_embedder("sscd", path, **options)  # type: ignore[arg-type]
    assert len(str(caught.value).splitlines()) <= 2
    return str(caught.value)


def test_weights_of_another_network_say_what_was_expected(tmp_path: Path, blank: dict[str, Tensor]) -> None:
    path = tmp_path / "x.torchvision.pt"
    torch.save({name.removeprefix("backbone."): tensor for name, tensor in blank.items()}, path)
    assert "is missing" in refused(path) or "is unknown" in refused(path)
    torch.save(blank | {"backbone.fc.weight": torch.zeros(1024, 2048)}, path)
    assert "backbone.fc.weight is torch.float32 [1024, 2048], not torch.float32 [512, 2048]" in refused(path)
    torch.save(blank | {"backbone.fc.bias": torch.zeros(512).half()}, path)
    assert "backbone.fc.bias is torch.float16 [512]" in refused(path)
    torch.save(blank | {"backbone.fc.bias": "a bias"}, path)
    assert "backbone.fc.bias is str" in refused(path)
    torch.save([1, 2], path)
    assert "it holds a list, not a state dict" in refused(path)
    assert "sscd_disc_mixup.torchvision.pt" in refused(path)


def test_a_file_that_unpacks_to_more_than_sscd_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(6):
            archive.writestr(f"x/data/{number}", bytes(1 << 25), compresslevel=1)
        archive.writestr("x/data.pkl", b"not even looked at")
    assert path.stat().st_size < 1 << 20
    assert "unpacks to 201,326,610 bytes" in refused(path)


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    torch.save({"backbone.fc.bias": Trap(tmp_path / "ran")}, tmp_path / "x.pt")
    assert "not the weights of SSCD" in refused(tmp_path / "x.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"<html>", b"PK\x03\x04" + bytes(100)])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    assert "not a file of torch.save" in refused(tmp_path / "x.pt")


class Large(torch.nn.Module):
    """Stands for sscd_disc_large: 1,024 dimensions, and normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 1024, 32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.conv(x).mean(dim=(2, 3)), dim=1)


@pytest.mark.filterwarnings("ignore:.*looks like a TorchScript archive")
def test_torchscript_is_run_only_if_one_says_so(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, path = Large().eval(), tmp_path / "sscd_disc_large.torchscript.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(network).save(str(path))
    assert "confirm.sscd.torchscript: true" in refused(path)
    image = picture(3, (100, 60))
    embedder = load_embedder("sscd", path, torchscript=True)
    wanted = network(RECOMMENDED["square_320"](image)[None]).detach().numpy()
    assert embedder.width == 1024
    assert embedder.embed([image]) == pytest.approx(wanted, abs=1e-5)
    # Under another name it is no state dict.
    path.rename(tmp_path / "x.pt")
    assert "not the weights of SSCD" in refused(tmp_path / "x.pt", torchscript=True)
    (tmp_path / "y.torchscript.pt").write_bytes((tmp_path / "x.pt").read_bytes()[:-300])
    assert "not a file of torch.save" in refused(tmp_path / "y.torchscript.pt", torchscript=True)
