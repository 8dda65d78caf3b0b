"""The attention probe: what each cross-attention layer looks at, without touching what it computes.

The layer's own processor runs as always (fused); hooks read the queries and keys that it projects anyway, and
reduce `softmax(q k)` to one number a text position at once: no [B, H, Q, K] tensor outlives its layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

# Shapes: B rows, L layers, H heads, Q image queries, K text positions, D width of a head (HD: of all heads).

STRIDDEN = 64  # image queries: fewer are all read


def cross_attention_layers(unet: UNet2DConditionModel) -> list[Attention]:
    """The cross-attention layers in order of execution: down blocks, mid block, up blocks."""
    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    return [layer for block in blocks if block is not None for layer in _cross_attention_of(block)]


def finest_down_layers(unet: UNet2DConditionModel) -> list[Attention]:
    """The cross-attention layers of the first down block that has any: those of the highest resolution."""
    return next(filter(None, map(_cross_attention_of, unet.down_blocks)), [])


def _cross_attention_of(block: nn.Module) -> list[Attention]:
    return [module for module in block.modules() if isinstance(module, Attention) and module.is_cross_attention]


def attention(layer: Attention, query_BQHD: Tensor, key_BKHD: Tensor) -> Tensor:
    """`P`: softmax over text positions, in float32: [B, H, Q, K].

    `query_BQHD` and `key_BKHD` are what the layer's `to_q` and `to_k` give: [B, Q, heads x D] and [B, K, heads x D].
    """
    query_BHQD = query_BQHD.unflatten(-1, (layer.heads, -1)).transpose(1, 2)
    key_BHKD = key_BKHD.unflatten(-1, (layer.heads, -1)).transpose(1, 2)
    if layer.norm_q is not None:
        query_BHQD = layer.norm_q(query_BHQD)
    if layer.norm_k is not None:
        key_BHKD = layer.norm_k(key_BHKD)
    logits_BHQK = (query_BHQD.float() * layer.scale) @ key_BHKD.float().transpose(-1, -2)
    return logits_BHQK.softmax(-1)


class LayersSeen(Exception):  # noqa: N818  (not an error: the probe has seen all the layers that it was asked for)
    """Ends a forward early."""


class Probe:
    """Reads the queries and keys that the given layers project, while it is entered and `active`.

    rows: which rows of the UNet's batch to read (the conditional half of a guided batch).
    """

    def __init__(self, layers: Sequence[Attention], rows: slice = slice(None)) -> None:
        self.active = True
        self._layers, self._rows = layers, rows
        self._projected: dict[str, Tensor] = {}
        self._seen: list[Tensor] = []
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        for layer in self._layers:
            self._handles += [
                layer.to_q.register_forward_hook(self._watch(layer, "query")),
                layer.to_k.register_forward_hook(self._watch(layer, "key")),
            ]
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def forget(self) -> None:
        """What a forward that did not end has left."""
        self._projected.clear()
        self._seen.clear()

    def _watch(self, layer: Attention, name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            if not self.active:
                return
            self._projected[name] = output.detach()[self._rows]
            if len(self._projected) == 2:
                self._reduce(layer, self._projected.pop("query"), self._projected.pop("key"))

        return hook

    def _reduce(self, layer: Attention, query_BQHD: Tensor, key_BKHD: Tensor) -> None:
        raise NotImplementedError


class AttentionProbe(Probe):
    """Records `a[b, layer, k]` of the given layers; `take()` after each forward.

    stride: of layers with 64 image queries and more only every so-manieth is read. With `stop`, the forward ends with
    `LayersSeen` after the last of the layers.
    """

    def __init__(
        self, layers: Sequence[Attention], rows: slice = slice(None), stop: bool = False, stride: int = 1
    ) -> None:
        super().__init__(layers, rows)
        self._stop, self._stride = stop, stride

    def take(self) -> Tensor:
        """The attention of the forward just run, `a[b, layer, k]`: [B, L, K], float32; forgets it."""
        attn_BLK = torch.stack(self._seen, dim=1)
        self._seen.clear()
        return attn_BLK

    @torch.no_grad()
    def _reduce(self, layer: Attention, query_BQHD: Tensor, key_BKHD: Tensor) -> None:
        if query_BQHD.shape[1] >= STRIDDEN:
            query_BQHD = query_BQHD[:, :: self._stride]
        self._seen.append(attention(layer, query_BQHD, key_BKHD).mean((1, 2)))
        if self._stop and len(self._seen) == len(self._layers):
            raise LayersSeen


class MapProbe(Probe):
    """Records how much each image query attends to one text position a row, mean over heads; `take()` after a forward.

    position_B: the text positions. The layers have the same number of queries.
    """

    def __init__(self, layers: Sequence[Attention], position_B: Tensor, rows: slice = slice(None)) -> None:
        super().__init__(layers, rows)
        self._position_B = position_B

    def take(self) -> Tensor:
        """The map of the forward just run, mean over the layers: [B, Q], float32; forgets it."""
        map_BQ = torch.stack(self._seen).mean(0)
        self._seen.clear()
        return map_BQ

    @torch.no_grad()
    def _reduce(self, layer: Attention, query_BQHD: Tensor, key_BKHD: Tensor) -> None:
        attn_BQK = attention(layer, query_BQHD, key_BKHD).mean(1)
        self._seen.append(attn_BQK[torch.arange(len(attn_BQK)), :, self._position_B])
