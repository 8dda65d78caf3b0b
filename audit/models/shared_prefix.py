"""Compute once what rows with the same latents share: the part of the UNet before its first cross-attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.unets.unet_2d_blocks import CrossAttnDownBlock2D
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from audit.attention.calls import unwatch_calls, watch_calls


@contextmanager
def shared_prefix(unet: UNet2DConditionModel, period: int, rows: int) -> Iterator[None]:
    """Compute the costly modules of the prefix once for rows whose latents repeat.

    Args:
        unet: The UNet. Inside the `with` block, all its forwards must be such.
        period: Row i has the latents of row i modulo this number. All rows have the same timestep.
        rows: Number of rows of a forward.
    """
    once, modules = _Once(period, rows), _prefix(unet) if period < rows else []
    for module in modules:
        watch_calls(module, once)
    try:
        yield
    finally:
        for module in modules:
            unwatch_calls(module, once)


@dataclass(frozen=True, eq=False)
class _Once:
    """Calls a module on the first `period` rows only, and repeats its output for the others."""

    period: int
    rows: int

    def before(self, target: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return tuple(given[: self.period] for given in args), kwargs

    def result(self, target: nn.Module, output: Tensor) -> Tensor:
        return output[torch.arange(self.rows, device=output.device) % self.period]

    def after(self, target: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], failed: bool) -> None:
        pass


def _prefix(unet: UNet2DConditionModel) -> list[nn.Module]:
    """List the costly modules before the first cross-attention; none if captions also enter by the time embedding."""
    first, config = unet.down_blocks[0], unet.config
    if config["addition_embed_type"] or config["class_embed_type"] or not isinstance(first, CrossAttnDownBlock2D):
        return []
    transformer: Any = first.attentions[0]
    self_attention = transformer.transformer_blocks[0].attn1
    return [first.resnets[0]] if self_attention.is_cross_attention else [first.resnets[0], self_attention]
