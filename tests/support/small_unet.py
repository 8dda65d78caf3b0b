"""Make UNets with few layers, for tests that trace or compile them, or run them often."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

# Cross-attention layers: one on the way down, one in the middle, two on the way up.
LAYERS = 4


def small_unet(cross_attention_dim: int = 24, seed: int = 0) -> UNet2DConditionModel:
    """Return a UNet with random weights for latents of [4, 16, 16]."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=16,
        cross_attention_dim=cross_attention_dim,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(16, 32),
        attention_head_dim=4,
        norm_num_groups=8,
        layers_per_block=1,
    )


def flat_unet(cross_attention_dim: int = 24, on_the_way: str = "down", layers: int = 1) -> UNet2DConditionModel:
    """Return a UNet with one resolution and no middle block.

    It has `layers` cross-attention layers on the way "down", or one more on the way "up".
    """
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=16,
        cross_attention_dim=cross_attention_dim,
        down_block_types=("DownBlock2D" if on_the_way == "up" else "CrossAttnDownBlock2D",),
        mid_block_type=None,
        up_block_types=("UpBlock2D" if on_the_way == "down" else "CrossAttnUpBlock2D",),
        block_out_channels=(16,),
        attention_head_dim=4,
        norm_num_groups=8,
        layers_per_block=layers,
    )


def shallow_unet(cross_attention_dim: int = 24, on_the_way: str = "down") -> UNet2DConditionModel:
    """Return a `flat_unet` that compiles soon as a whole: its residual blocks are convolutions."""
    unet = flat_unet(cross_attention_dim, on_the_way)
    for block in (*unet.down_blocks, *unet.up_blocks):
        block.resnets = nn.ModuleList(
            [_Convolution(resnet.in_channels, resnet.out_channels) for resnet in block.resnets]
        )
    return unet


class _Convolution(nn.Module):
    """Replaces a residual block. It ignores the timestep."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, out, 1)

    def forward(self, hidden_BCHW: Tensor, _time_BD: Tensor) -> Tensor:
        found: Tensor = self.convolution(hidden_BCHW)
        return found
