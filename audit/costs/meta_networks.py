"""Make networks without weights on torch's `meta` device, from their configuration, to estimate what they cost."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from audit.errors import AuditError, first_line
from audit.models.hub import from_hub
from audit.models.hub_ids import is_hub_id
from audit.models.loading import assembled, no_progress_bars
from audit.models.model import Model
from audit.models.networks import empty_networks, folder_configs, folder_tokenizers
from audit.models.prediction_type import published_size
from audit.models.registry import family_of
from audit.models.single_file import read_header, single_file_configs, single_file_layout

# Shapes: B images, C channels, H and W pixels, E embedding width.

META = torch.device("meta")


@dataclass(frozen=True)
class EmbedderOutline:
    """An image embedder without weights.

    Attributes:
        encode: Maps [B, C, H, W] to [B, width].
        shape: Shape of an input, (C, H, W).
        width: Length of a vector.
    """

    encode: Callable[[Tensor], Tensor]
    shape: tuple[int, int, int]
    width: int


def outline_model(
    path: str | Path,
    config: str | Path | None = None,
    resolution: int | tuple[int, int] | None = None,
    prediction_type: str | None = None,
) -> Model:
    """Make a model without weights from its configuration and tokenizer, or from the header of a single file.

    Args:
        path: As for `load_model`.
        config: As for `load_model`.
        resolution: As for `load_model`.
        prediction_type: As for `load_model`.

    Returns:
        The model, on the `meta` device.

    Raises:
        AuditError: As `load_model`, except that weights may be missing.
    """
    place = Path(path)
    if place.is_file():
        layout = single_file_layout(read_header(place), place)
        family = layout.family
        configs, tokenizers = single_file_configs(layout, None if config is None else Path(config))
        if config is None:
            configs["unet"]["sample_size"] = published_size(configs["unet"], prediction_type)
    else:
        folder = place if place.is_dir() else from_hub(path, weights=False)
        family = family_of(folder)
        configs, tokenizers = folder_configs(family, folder), folder_tokenizers(family, folder)
    with no_progress_bars():
        parts = empty_networks(family, configs, str(path)) | tokenizers
    family.check(parts, str(path))
    return assembled(
        family,
        parts | {"scheduler_config": configs["scheduler"], "settings": configs["settings"]},
        {},
        META,
        torch.float32,
        resolution,
        where=str(path),
    )


def outline_embedder(
    weights: str | Path, *, resize: str = "square_320", torchscript: bool = False, model: str | None = None
) -> EmbedderOutline:
    """Make the embedder that `load_embedder` would load, without weights. Published weights need not be on disk.

    Args:
        weights: As for `load_embedder`.
        resize: As for `load_embedder`.
        torchscript: As for `load_embedder`.
        model: As for `load_embedder`.

    Returns:
        The embedder, on the `meta` device.
    """
    path = Path(weights)
    if model is not None or path.is_dir() or (not path.exists() and is_hub_id(str(weights))):
        return _clip(f"local-dir:{path}" if path.is_dir() else (model or str(weights)).partition("/")[0])
    if path.suffix == ".safetensors":
        from audit.embedding.descriptor import CopyDescriptor
        from audit.embedding.descriptor_header import read_config

        config = read_config(path)
        with META:
            descriptor = CopyDescriptor(config)
        return _embedder(descriptor.eval(), config.image_size, config.image_size)
    from PIL import Image

    from audit.embedding.sscd import SIZES

    width, height = SIZES[resize](Image.new("RGB", (512, 512)))
    return _embedder(_sscd(path.name), height, width)


def _sscd(name: str) -> nn.Module:
    """Make SSCD. It has two architectures; for TorchScript, only the file name tells which one it is."""
    from torchvision.models.resnet import Bottleneck, ResNet

    from audit.embedding.sscd import Sscd

    with META:
        network = Sscd()
        if "large" in name:  # ResNeXt-101 32x4d, 1024 dimensions
            network.backbone = ResNet(Bottleneck, [3, 4, 23, 3], num_classes=1024, groups=32, width_per_group=4)
    return network.eval()


def _clip(name: str) -> EmbedderOutline:
    from audit.embedding.clip import open_clip_library

    library = open_clip_library()
    level = logging.root.level
    try:
        logging.root.setLevel(logging.ERROR)  # open_clip warns about a network without weights
        with META:
            network = library.create_model(name, load_weights=False, device=META).eval()
    except Exception as error:  # open_clip raises whatever its many model classes raise
        what = f"open_clip cannot make the model: {first_line(error)}"
        raise AuditError(what, where=name.removeprefix("local-dir:")) from error
    finally:
        logging.root.setLevel(level)
    size = network.visual.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return _embedder(network.encode_image, height, width)


def _embedder(encode: Callable[[Tensor], Tensor], height: int, width: int) -> EmbedderOutline:
    shape = 3, height, width
    with torch.inference_mode():
        found_1E = encode(torch.empty(1, *shape, device=META))
    return EmbedderOutline(encode, shape, int(found_1E.shape[1]))
