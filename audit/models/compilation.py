"""Compile the parts of a denoiser that consist of many small operations."""

from __future__ import annotations

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from audit.errors import UsageError

VARIANTS = 256  # of a block: widths, sizes of the latents, one row or several


def compile_blocks(denoiser: nn.Module, where: str = "", backend: str = "inductor") -> None:
    """Have `torch.compile` compile the residual blocks and the feed-forward layers of a denoiser when they first run.

    Attention, which probes and mitigation change, runs as it is, and a forward that reads attention may still end
    early. Compiled blocks round differently.

    Args:
        denoiser: The denoiser. It is changed.
        where: The model, for the error message.
        backend: As for `torch.compile`.

    Raises:
        UsageError: The denoiser has no such blocks.
    """
    blocks = [module for module in denoiser.modules() if isinstance(module, ResnetBlock2D | FeedForward)]
    if not blocks:
        raise UsageError("this model has no blocks to compile", where=where, hint="Leave compile (engine.compile) out.")
    # All blocks of a class share torch's limit on compiled variants. Beyond 8 variants, it would run the other blocks
    # uncompiled, without an error.
    torch._dynamo.config.recompile_limit = max(VARIANTS, torch._dynamo.config.recompile_limit)
    for block in blocks:
        block.compile(backend=backend)
