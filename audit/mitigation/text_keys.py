"""Change the attention to text positions by their keys: multiply logits, and hide positions from every query."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from audit.attention.seam import Seam, Slot

# Shapes: B rows of the denoiser, H heads, Q queries, K keys, V text keys among them, D width of a head.


class ScaledKeys(Seam):
    """Multiplies the logits of text positions by multiplying their keys.

    In joint attention the queries of text positions meet the multiplied keys too.

    Args:
        layers: The layers.
        keys: Where they have their text keys.
        scale_BV: Factor of each text key; None to change nothing.
    """

    def __init__(self, layers: Sequence[nn.Module], keys: slice, scale_BV: Tensor | None) -> None:
        super().__init__(layers)
        self._keys, self._scale_BV = keys, scale_BV

    def attend(self, slot: Slot, query_BHQD: Tensor, key_BHKD: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        """Return the multiplied keys (see `Seam`)."""
        if self._scale_BV is None:
            return key_BHKD
        scale_BK = key_BHKD.new_ones(len(key_BHKD), key_BHKD.shape[2])
        scale_BK[:, self._keys] = self._scale_BV.to(scale_BK)
        return key_BHKD * scale_BK[:, None, :, None]


class HiddenKeys(Seam):
    """Hides text positions of joint attention, whose processors ignore the masks that a denoiser is given.

    Args:
        layers: The layers.
        keys: Where they have their text keys.
        visible_BV: Which text keys each row may attend to.
    """

    def __init__(self, layers: Sequence[nn.Module], keys: slice, visible_BV: Tensor) -> None:
        super().__init__(layers)
        self._keys, self._visible_BV = keys, visible_BV

    def mask(self, mask: Tensor | None, key_BHKD: Tensor) -> Tensor:
        """Return the mask that hides them too (see `Seam`)."""
        visible_BK = torch.ones(len(key_BHKD), key_BHKD.shape[2], dtype=torch.bool, device=key_BHKD.device)
        visible_BK[:, self._keys] = self._visible_BV.to(key_BHKD.device)
        visible_B11K = visible_BK[:, None, None]
        if mask is None:
            return visible_B11K
        return mask & visible_B11K if mask.dtype == torch.bool else mask.masked_fill(~visible_B11K, -torch.inf)

    def attend(self, slot: Slot, query_BHQD: Tensor, key_BHKD: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        """Leave the keys unchanged (see `Seam`)."""
        return key_BHKD
