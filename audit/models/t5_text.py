"""Tokenize captions for T5's text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from audit.models.conditioning import Tokens

# Shapes: B captions, K text positions.


def t5_tokens(captions: Sequence[str], tokenizer: Any, longest: int) -> Tokens:
    """Tokenize captions, padded and truncated to `longest` tokens: words, END and padding.

    There is no BOS, so END is the sink of the canonical layout: [END, words, padding].

    Args:
        captions: The captions.
        tokenizer: A tokenizer of T5.
        longest: Number of text positions.
    """
    tokens = tokenizer(list(captions), padding="max_length", max_length=longest, truncation=True, return_tensors="pt")
    end_B = tokens.attention_mask.sum(1) - 1
    return Tokens(tokens.input_ids, tokens.attention_mask, end_B + 2, end_B, _end_first(end_B, longest))


def _end_first(end_B: Tensor, longest: int) -> Tensor:
    """Return the text positions in the order END, words, padding: [B, K]."""
    place_BK = torch.arange(longest).expand(len(end_B), -1)
    order_BK = torch.where(place_BK <= end_B[:, None], place_BK - 1, place_BK)
    return torch.cat([end_B[:, None], order_BK[:, 1:]], dim=1)


def t5_words(tokens: Tokens) -> list[int]:
    """Return the ids of the words of a single caption."""
    words: list[int] = tokens.ids_BK[0, : int(tokens.end_B)].tolist()
    return words
