"""Compute attention by hand, in the precision of the model, with changed logits of the text positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class ChangedAttention(torch.overrides.TorchFunctionMode):
    """Inside the `with` block, the given layers attend as mitigation defines it.

    Args:
        layers: The layers.
        keys: Where they have their text keys.
        visible_BK: Which text positions each row may attend to.
        scale_BK: Factor of each logit.
    """

    def __init__(self, layers: Any, keys: slice, visible_BK: Tensor, scale_BK: Tensor) -> None:
        super().__init__()
        self.calls = 0
        self._keys, self._visible_BK, self._scale_BK = keys, visible_BK, scale_BK
        self._running = False
        self._handles = [layer.register_forward_pre_hook(lambda *_: self._runs(True)) for layer in layers]
        self._handles += [layer.register_forward_hook(lambda *_: self._runs(False)) for layer in layers]

    def _runs(self, running: bool) -> None:
        self._running = running

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for handle in self._handles:
            handle.remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not functional.scaled_dot_product_attention or not self._running:
            return func(*args, **kwargs)
        self.calls += 1
        query, key, value = args[:3] if args else (kwargs["query"], kwargs["key"], kwargs["value"])
        logits = torch.einsum("bhqd,bhkd->bhqk", query, key) / query.shape[-1] ** 0.5
        mask = kwargs.get("attn_mask")
        logits = logits if mask is None else logits + mask  # those of PixArt are added
        logits[..., self._keys] *= self._scale_BK[:, None, None]
        logits[..., self._keys] = logits[..., self._keys].masked_fill(~self._visible_BK[:, None, None], -torch.inf)
        return torch.einsum("bhqk,bhkd->bhqd", logits.softmax(-1), value)
