"""Compute attention explicitly, in the precision of the model, as a reference for the implementation in `audit`."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor


def projected(attn: Attention, hidden_states: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values, split by head: [B, H, positions, D] each.

    Args:
        attn: The attention layer.
        hidden_states: The input of the queries.
        text: The input of keys and values.
    """
    parts = (attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text))
    query, key, value = (part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in parts)
    return query, key, value


class Explicit:
    """A processor that builds the attention matrix and mitigates one guided caption (two rows) as defined.

    Attributes:
        visible: Number of text positions that are not masked; None for all.
        bos_scale: Factor of the logits of BOS in the conditional row.
        means: Probabilities of each cross-attention, in order, averaged over queries and heads: [B, K].
        maps: Probabilities of each cross-attention, in order, averaged over heads: [B, Q, K].
    """

    def __init__(self, visible: int | None = None, bos_scale: float = 1.0) -> None:
        self.visible, self.bos_scale = visible, bos_scale
        self.means: list[Tensor] = []
        self.maps: list[Tensor] = []

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = projected(attn, hidden_states, text)
        logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        if encoder_hidden_states is not None:
            logits[1:, :, :, 0] *= self.bos_scale
            logits[..., logits.shape[-1] if self.visible is None else self.visible :] = -torch.inf
        weights = logits.softmax(-1)
        if encoder_hidden_states is not None:
            self.means.append(weights.mean((1, 2)))
            self.maps.append(weights.mean(1))
        return attn.to_out[1](attn.to_out[0]((weights @ value).transpose(1, 2).flatten(2)))


class Defined:
    """A processor that builds the attention matrix and mitigates it row by row, as defined.

    For a batch with fewer rows, which is the conditional branch alone, the last rows of the tensors apply.

    Attributes:
        visible_BK: Which text positions each row may attend to.
        scale_BK: The factor of each logit.
    """

    def __init__(self, visible_BK: Tensor, scale_BK: Tensor) -> None:
        self.visible_BK, self.scale_BK = visible_BK, scale_BK

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = projected(attn, hidden_states, text)
        logits = torch.einsum("bhqd,bhkd->bhqk", query, key) / query.shape[-1] ** 0.5
        if encoder_hidden_states is not None:
            logits = logits * self.scale_BK[-len(text) :, None, None]
            logits = logits.masked_fill(~self.visible_BK[-len(text) :, None, None], -torch.inf)
        return attn.to_out[1](attn.to_out[0]((logits.softmax(-1) @ value).transpose(1, 2).flatten(2)))
