"""Record what each cross-attention layer attends to, without changing what it computes.

The layer's own (fused) processor runs as usual. The probe reads the queries and keys at the seam
(`audit.attention.seam`) and immediately reduces `softmax(q k)` to one number per text position, so no [B, H, Q, K]
tensor outlives its layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from audit.attention.seam import Seam, Slot

# Shapes: B rows, L layers, H heads, Q image queries, K text positions, D width of a head.

STRIDDEN = 64  # image queries; layers with fewer are read in full
TOGETHER = 256  # image queries whose logits over all keys of joint attention are held at a time


@dataclass(frozen=True)
class Places:
    """Where a layer has its image queries and its text keys; in cross-attention it has nothing else.

    Attributes:
        queries: The image queries.
        keys: The text keys.
        joint: Whether the keys include those of the image.
    """

    queries: slice
    keys: slice
    joint: bool


CROSS = Places(slice(None), slice(None), joint=False)


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
    with _no_autocast(query_BHQD.device.type):
        logits_BHQK = query_BHQD.float() @ (scale * key_BHKD.float()).transpose(-1, -2)
    if mask is not None and mask.dtype == torch.bool:
        logits_BHQK = logits_BHQK.masked_fill(~mask, -torch.inf)
    elif mask is not None:
        logits_BHQK = logits_BHQK + mask.float()
    return logits_BHQK.softmax(-1)


def _no_autocast(device: str) -> AbstractContextManager[object]:
    """Disable autocast, which would round products to its dtype. Some devices, such as `meta`, have none."""
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


class LayersSeen(Exception):  # noqa: N818  (not an error: the probe has seen all the layers it was asked for)
    """Ends a forward early."""


class AttentionProbe(Seam):
    """Records `a[b, layer, k]` of the given layers; call `take` after each forward.

    Args:
        layers: Layers to read.
        rows: Rows of the UNet's batch to read (the conditional half of a guided batch).
        stop: End the forward with `LayersSeen` after the last of the layers; a compiled forward runs to its end.
        stride: Read every `stride`-th query in layers with 64 or more image queries.
        places: Where the layers have their image queries and text keys.
        order_BK: Text position of each position of the canonical layout (`audit.models.conditioning.Tokens`).
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        rows: slice = slice(None),
        stop: bool = False,
        stride: int = 1,
        places: Places = CROSS,
        order_BK: Tensor | None = None,
    ) -> None:
        super().__init__(layers)
        self._rows, self._stop, self._stride = rows, stop, stride
        self._places, self._order_BK = places, order_BK

    def take(self) -> Tensor:
        """Return and forget the attention of the latest forward, `a[b, layer, k]`: [B, L, K], float32.

        The text positions are in the canonical layout. The attention to the image, if it is joint, counts as attention
        to position 0, so that each row over K sums to 1.

        Raises:
            AuditError: A layer was not seen, or was seen more than once.
        """
        attn_BLK = torch.stack([value for value in self.check() if value is not None], dim=1)
        if self._order_BK is not None:
            order_BLK = self._order_BK.to(attn_BLK.device)[:, None].expand(-1, attn_BLK.shape[1], -1)
            attn_BLK = attn_BLK.gather(2, order_BLK)
        if self._places.joint:
            attn_BLK[..., 0] += 1 - attn_BLK.sum(-1)
        return attn_BLK

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
        query_BHQD, mask = _at(self._places.queries, query_BHQD, mask)
        if query_BHQD.shape[2] >= STRIDDEN:
            query_BHQD, mask = _at(slice(None, None, self._stride), query_BHQD, mask)
        if not self._places.joint:
            return attention(query_BHQD, key_BHKD, scale, mask).mean((1, 2))
        parts = _text_attention(query_BHQD, key_BHKD, scale, mask, self._places)
        return torch.stack([attn_BHQK.sum((1, 2)) for attn_BHQK in parts]).sum(0) / query_BHQD[0, ..., 0].numel()


class MapProbe(Seam):
    """Records how much each image query attends to one text position per row, averaged over heads.

    Args:
        layers: Layers to read; all must have the same number of queries.
        position_B: Text position for each row that is read.
        rows: Rows of the UNet's batch to read.
        places: Where the layers have their image queries and text keys.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        position_B: Tensor,
        rows: slice = slice(None),
        places: Places = CROSS,
    ) -> None:
        super().__init__(layers)
        self._position_B, self._rows, self._places = position_B, rows, places

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
            query_BHQD, own_BHKD, mask = _of(self._rows, query_BHQD, key_BHKD, mask)
            query_BHQD, mask = _at(self._places.queries, query_BHQD, mask)
            parts = _text_attention(query_BHQD, own_BHKD, scale, mask, self._places)
            row_B = torch.arange(len(query_BHQD))
            slot.value = torch.cat([attn_BHQK.mean(1)[row_B, :, self._position_B] for attn_BHQK in parts], dim=1)
        return key_BHKD


def _of(rows: slice, query_BHQD: Tensor, key_BHKD: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Select rows of a batch; a mask with a single row applies to all rows."""
    own = mask if mask is None or len(mask) == 1 else mask[rows]
    return query_BHQD[rows], key_BHKD[rows], own


def _at(queries: slice, query_BHQD: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Select queries; a mask with a single query applies to all queries."""
    own = mask if mask is None or mask.shape[2] == 1 else mask[:, :, queries]
    return query_BHQD[:, :, queries], own


def _text_attention(
    query_BHQD: Tensor, key_BHKD: Tensor, scale: float, mask: Tensor | None, places: Places
) -> Iterator[Tensor]:
    """Compute the attention to the text keys: [B, H, Q, K]; if it is joint, of a part of the queries at a time."""
    count = query_BHQD.shape[2]
    for start in range(0, count, TOGETHER if places.joint else count):
        part_BHQD, part_mask = _at(slice(start, start + TOGETHER) if places.joint else slice(None), query_BHQD, mask)
        yield attention(part_BHQD, key_BHKD, scale, part_mask)[..., places.keys]
