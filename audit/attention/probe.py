"""Record what each cross-attention layer attends to, without changing what it computes.

The layer's own (fused) processor runs as usual. The probe reads the queries and keys at the seam
(`audit.attention.seam`) and immediately reduces `softmax(q k)` to one number per text position, so no [B, H, Q, K]
tensor outlives its layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from audit.attention.seam import Seam, Slot

# Shapes: B rows, L layers, H heads, Q image queries, K text positions, D width of a head.

STRIDDEN = 64  # image queries; layers with fewer are read in full


def cross_attention_layers(unet: UNet2DConditionModel) -> list[Attention]:
    """List the cross-attention layers in order of execution: down blocks, mid block, up blocks."""
    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    return [layer for block in blocks if block is not None for layer in _cross_attention_of(block)]


def finest_down_layers(unet: UNet2DConditionModel) -> list[Attention]:
    """List the cross-attention layers of the first down block that has any, i.e. those of the highest resolution."""
    return next(filter(None, map(_cross_attention_of, unet.down_blocks)), [])


def down_and_mid_layers(unet: UNet2DConditionModel) -> list[Attention]:
    """List the cross-attention layers of the down blocks and of the mid block, in order of execution."""
    blocks = [*unet.down_blocks, unet.mid_block]
    return [layer for block in blocks if block is not None for layer in _cross_attention_of(block)]


def _cross_attention_of(block: nn.Module) -> list[Attention]:
    return [module for module in block.modules() if isinstance(module, Attention) and module.is_cross_attention]


def attention(query_BHQD: Tensor, key_BHKD: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """Compute the softmax over text positions: [B, H, Q, K], in float32 whatever the dtype of the model.

    Args:
        query_BHQD: Queries, as the layer attends with them.
        key_BHKD: Keys.
        scale: Factor of the logits.
        mask: Boolean (True: visible) or added to the logits, broadcastable to [B, H, Q, K].

    Returns:
        The attention: [B, H, Q, K], float32; each row over K sums to 1.
    """
    logits_BHQK = (query_BHQD.float() * scale) @ key_BHKD.float().transpose(-1, -2)
    if mask is not None and mask.dtype == torch.bool:
        logits_BHQK = logits_BHQK.masked_fill(~mask, -torch.inf)
    elif mask is not None:
        logits_BHQK = logits_BHQK + mask.float()
    return logits_BHQK.softmax(-1)


class LayersSeen(Exception):  # noqa: N818  (not an error: the probe has seen all the layers it was asked for)
    """Ends a forward early."""


class AttentionProbe(Seam):
    """Records `a[b, layer, k]` of the given layers; call `take` after each forward.

    Args:
        layers: Layers to read.
        rows: Rows of the UNet's batch to read (the conditional half of a guided batch).
        stop: End the forward with `LayersSeen` after the last of the layers; a compiled forward runs to its end.
        stride: Read every `stride`-th query in layers with 64 or more image queries.
    """

    def __init__(
        self, layers: Sequence[Attention], rows: slice = slice(None), stop: bool = False, stride: int = 1
    ) -> None:
        super().__init__(layers)
        self._rows, self._stop, self._stride = rows, stop, stride

    def take(self) -> Tensor:
        """Return and forget the attention of the latest forward, `a[b, layer, k]`: [B, L, K], float32.

        Raises:
            AuditError: A layer was not seen, or was seen more than once.
        """
        return torch.stack([value for value in self.check() if value is not None], dim=1)

    def attend(self, slot: Slot, query_BHQD: Tensor, key_BHKD: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        """Record the attention of a layer, and leave its keys unchanged.

        Args:
            slot: Storage of the layer; `slot.value` receives the averaged attention.
            query_BHQD: Queries.
            key_BHKD: Keys.
            mask: Boolean (True: visible) or added to the logits, broadcastable to [B, H, Q, K].
            scale: Factor of the logits.

        Returns:
            `key_BHKD`.

        Raises:
            LayersSeen: This was the last layer, and the probe stops the forward there.
        """
        with torch.no_grad():
            slot.value = self._reduce(query_BHQD, key_BHKD, mask, scale)
        if self._stop and not torch.compiler.is_compiling() and slot is self._slots[-1]:
            raise LayersSeen
        return key_BHKD

    def _reduce(self, query_BHQD: Tensor, key_BHKD: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        query_BHQD, key_BHKD, mask = _of(self._rows, query_BHQD, key_BHKD, mask)
        if query_BHQD.shape[2] >= STRIDDEN:
            query_BHQD = query_BHQD[:, :, :: self._stride]
            mask = mask if mask is None or mask.shape[2] == 1 else mask[:, :, :: self._stride]
        return attention(query_BHQD, key_BHKD, scale, mask).mean((1, 2))


class MapProbe(Seam):
    """Records how much each image query attends to one text position per row, averaged over heads.

    Args:
        layers: Layers to read; all must have the same number of queries.
        position_B: Text position for each row that is read.
        rows: Rows of the UNet's batch to read.
    """

    def __init__(self, layers: Sequence[Attention], position_B: Tensor, rows: slice = slice(None)) -> None:
        super().__init__(layers)
        self._position_B, self._rows = position_B, rows

    def take(self) -> Tensor:
        """Return and forget the map of the latest forward, averaged over the layers: [B, Q], float32.

        Raises:
            AuditError: A layer was not seen, or was seen more than once.
        """
        return torch.stack([value for value in self.check() if value is not None]).mean(0)

    def attend(self, slot: Slot, query_BHQD: Tensor, key_BHKD: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        """Record the map of a layer, and leave its keys unchanged.

        Args:
            slot: Storage of the layer; `slot.value` receives the attention to one text position per row, [B, Q].
            query_BHQD: Queries.
            key_BHKD: Keys.
            mask: Boolean (True: visible) or added to the logits, broadcastable to [B, H, Q, K].
            scale: Factor of the logits.

        Returns:
            `key_BHKD`.
        """
        with torch.no_grad():
            rows = _of(self._rows, query_BHQD, key_BHKD, mask)
            attn_BQK = attention(rows[0], rows[1], scale, rows[2]).mean(1)
            slot.value = attn_BQK[torch.arange(len(attn_BQK)), :, self._position_B]
        return key_BHKD


def _of(rows: slice, query_BHQD: Tensor, key_BHKD: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Select rows of a batch; a mask with a single row applies to all rows."""
    own = mask if mask is None or len(mask) == 1 else mask[rows]
    return query_BHQD[rows], key_BHKD[rows], own
