"""Load SSCD as published (Pizzi et al., CVPR 2022, arXiv 2202.10261): ResNet-50 weights, or TorchScript if allowed.

Shapes: B images, C channels, H and W pixels, D descriptor width.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from audit.embedding.descriptor import IMAGENET_MEAN, IMAGENET_STD
from audit.embedding.embedder import Embedder, embedder_of
from audit.errors import AuditError, first_line
from audit.images.decoding import rgb

WIDTH = 512
# Largest TorchScript file to open, about five times the size of `sscd_disc_large`.
MOST_BYTES = 1 << 30
# When the short side is resized to 288, a picture longer than this multiple of its short side is squeezed to it.
LONGEST = 10


class GeneralizedMean(nn.Module):
    """Generalised-mean pooling over positions, [B, C, H, W] to [B, C] (Radenovic et al., arXiv 1711.02512, eq. 3)."""

    def __init__(self, power: float = 3.0) -> None:
        super().__init__()
        self.power = power

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Pool over positions: [B, C, H, W] to [B, C]."""
        return x_BCHW.clamp(min=1e-6).pow(self.power).mean(dim=(2, 3)).pow(1 / self.power)


class Sscd(nn.Module):
    """Maps normalised RGB images [B, 3, H, W] to descriptors [B, D] with rows of norm 1.

    Parameters are named as in the published `.torchvision.pt` files.
    """

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        from torchvision.models import resnet50

        self.backbone = resnet50(num_classes=width)
        self.backbone.avgpool = GeneralizedMean()

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Compute descriptors [B, D] of images [B, 3, H, W]."""
        return F.normalize(self.backbone(images_BCHW), dim=1)


def load_sscd(name: str, path: Path, device: str, resize: str, torchscript: bool) -> Embedder:
    """Load SSCD from a `.torchvision.pt` file or, if `torchscript` is true, from a `.torchscript.pt` file.

    Args:
        name: Name of the embedder in the audit.
        path: The weights file.
        device: Device to run on.
        resize: How to resize images, a key of SIZES.
        torchscript: Whether TorchScript may be run.

    Returns:
        The embedder, on `device`.

    Raises:
        AuditError: The file is not SSCD, is TorchScript although that is not allowed, or does not work on an image.
    """
    if path.name.endswith(".torchscript.pt"):
        network = _torchscript(path, device, torchscript)
    else:
        network = _state_dict(path).to(device)
    preprocess = partial(prepare, resize=resize)
    try:
        return embedder_of(name, {path.name: path}, f"{resize}, bilinear", preprocess, network, device)
    except (RuntimeError, IndexError, AttributeError) as error:
        raise AuditError(f"the network does not work on an image: {first_line(error)}", where=str(path)) from error


def prepare(image: Image.Image, resize: str) -> Tensor:
    """Resize an image as SSCD recommends and normalise it with ImageNet's mean and standard deviation: [3, H, W]."""
    picture = rgb(image)
    picture = picture.resize(SIZES[resize](picture), Image.Resampling.BILINEAR)
    pixels_HWC = np.asarray(picture, dtype=np.float32) / 255
    pixels_HWC = (pixels_HWC - np.array(IMAGENET_MEAN, np.float32)) / np.array(IMAGENET_STD, np.float32)
    return torch.from_numpy(pixels_HWC).permute(2, 0, 1).contiguous()


def _short_288(image: Image.Image) -> tuple[int, int]:
    short = min(image.size)
    width, height = (min(288 * side // short, 288 * LONGEST) for side in image.size)
    return width, height


SIZES: dict[str, Callable[[Image.Image], tuple[int, int]]] = {
    "square_320": lambda image: (320, 320),
    "short_288": _short_288,
}


def _state_dict(path: Path) -> Sscd:
    with torch.device("meta"):
        network = Sscd()
    wanted = network.state_dict()
    refuse_large(path, 2 * sum(tensor.nbytes for tensor in wanted.values()))
    what, hint = (
        "not the weights of SSCD",
        "Give sscd_disc_mixup.torchvision.pt: ResNet-50 of torchvision, 512 dimensions.",
    )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        wrong = _difference(state, wanted)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise AuditError(f"{what}: {first_line(error)}", where=str(path), hint=hint) from error
    if wrong:
        raise AuditError(f"{what}: {wrong}", where=str(path), hint=hint)
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


def _difference(state: object, wanted: dict[str, Tensor]) -> str | None:
    """Describe how a state dict differs from that of the network; None if it does not."""
    if not isinstance(state, dict):
        return f"it holds a {type(state).__name__}, not a state dict"
    for name in wanted.keys() | state.keys():
        if name not in state or name not in wanted:
            return f"{name} is {'missing' if name in wanted else 'unknown'}"
        have, want = state[name], wanted[name]
        if not isinstance(have, Tensor) or have.shape != want.shape or have.dtype != want.dtype:
            shape = f"{have.dtype} {list(have.shape)}" if isinstance(have, Tensor) else type(have).__name__
            return f"{name} is {shape}, not {want.dtype} {list(want.shape)}"
    return None


def _torchscript(path: Path, device: str, allowed: bool) -> nn.Module:
    if not allowed:
        raise AuditError(
            "TorchScript is a program and is only run if you allow it",
            where=str(path),
            hint="Set confirm.sscd.torchscript: true if you trust the source of the file.",
        )
    refuse_large(path, MOST_BYTES)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            network = torch.jit.load(str(path), map_location=device)
    except (RuntimeError, AttributeError, ValueError) as error:  # gone in Python 3.14
        raise AuditError(f"torch cannot load this TorchScript: {first_line(error)}", where=str(path)) from error
    return network.eval()


def refuse_large(path: Path, most: int) -> None:
    """Raise AuditError unless the file is an archive of torch.save or TorchScript of at most `most` bytes unpacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(item.file_size for item in archive.infolist())
    except (OSError, zipfile.BadZipFile) as error:
        raise AuditError("not a file of torch.save: not a zip archive, or incomplete", where=str(path)) from error
    if size > most:
        raise AuditError(f"unpacks to {size:,} bytes; at most {most:,} are expected", where=str(path))
