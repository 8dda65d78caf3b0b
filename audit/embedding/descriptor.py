"""Define a small SSCD-style copy descriptor (Pizzi et al., CVPR 2022, arXiv 2202.10261).

Shapes: B images, C channels, H and W pixels, D descriptor width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from audit.embedding.descriptor_header import DescriptorConfig, read_config
from audit.errors import AuditError, first_line
from audit.images.decoding import rgb

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with GroupNorm and a shortcut (He et al., 2016)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(8, channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(8, channels_out)
        same = channels_in == channels_out and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Apply the block: [B, C, H, W] to the same with `channels_out` channels."""
        h_BCHW = F.relu(self.norm1(self.conv1(x_BCHW)))
        return F.relu(self.norm2(self.conv2(h_BCHW)) + self.shortcut(x_BCHW))


class CopyDescriptor(nn.Module):
    """Maps RGB images in [0, 1] to unit vectors whose inner product is the similarity of two images.

    The network is a residual trunk at an eighth of the image's size, generalised-mean pooling (Radenovic et al.,
    arXiv 1711.02512, eq. 3), a linear projection and L2 normalisation.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: DescriptorConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or DescriptorConfig()
        first = config.channels[0]
        # Stages 2 and 3 halve the size; the last stage keeps 8 x 8 positions of a 64-pixel image for the pooling.
        strides = [1, 2, 2] + [1] * (len(config.channels) - 3)
        stages = zip((first, *config.channels), config.channels, strides, strict=False)
        self.stem = nn.Conv2d(3, first, 3, 2, 1, bias=False)
        self.trunk = nn.Sequential(*(ResidualBlock(i, o, stride) for i, o, stride in stages))
        self.projection = nn.Linear(config.channels[-1], config.width)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Compute descriptors [B, D] with rows of norm 1 from images [B, 3, H, W] in [0, 1]."""
        x_BCHW = self.trunk(self.stem((images_BCHW - self.mean) / self.std))
        p = self.config.gem_power
        pooled_BC = x_BCHW.clamp(min=1e-6).pow(p).mean(dim=(2, 3)).pow(1 / p)
        return F.normalize(self.projection(pooled_BC), dim=1)

    def preprocess(self, image: Image.Image) -> Tensor:
        """Convert an image to RGB [3, S, S] in [0, 1], where S is the size that the descriptor was trained at."""
        return to_tensor(rgb(image), self.config.image_size)

    def save(self, path: str | Path, floors: Mapping[str, float] | None = None) -> None:
        """Write weights and configuration to one safetensors file; the configuration is in its header.

        Args:
            path: The file.
            floors: By kind (verbatim | region), the similarity at which two pictures look like copies to it.
        """
        state = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        metadata = {"config": json.dumps(asdict(self.config))}
        if floors:
            metadata["floors"] = json.dumps(dict(floors))
        save_file(state, str(path), metadata=metadata)

    @classmethod
    def load(cls, path: str | Path) -> CopyDescriptor:
        """Load a file that `save` wrote, in float32 and ready for use; raise AuditError for any other file."""
        config = read_config(Path(path))
        try:
            model = cls(config)
            model.load_state_dict(load_file(str(path)))
        except (RuntimeError, SafetensorError, TypeError, ValueError, IndexError) as error:
            what = f"the weights do not fit the copy descriptor: {first_line(error)}"
            raise AuditError(what, where=str(path)) from error
        return model.eval().requires_grad_(False)


def to_tensor(image: Image.Image, size: int) -> Tensor:
    """Convert an RGB image to [3, S, S] in [0, 1], resized (bicubic, antialiased) to a square of `size` pixels."""
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    pixels_HWC = np.array(image, dtype=np.float32) / 255
    return torch.from_numpy(pixels_HWC).permute(2, 0, 1).contiguous()
