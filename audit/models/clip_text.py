"""Tokenize captions for CLIP's text encoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from audit.models.conditioning import Tokens


def clip_tokens(captions: Sequence[str], tokenizer: Any, longest: int) -> Tokens:
    """Tokenize captions, padded and truncated to `longest` tokens: BOS, words, END and padding.

    Args:
        captions: The captions.
        tokenizer: A tokenizer of CLIP.
        longest: Number of text positions.
    """
    tokens = tokenizer(list(captions), padding="max_length", max_length=longest, truncation=True, return_tensors="pt")
    counts_B = tokens.attention_mask.sum(1)
    return Tokens(tokens.input_ids, tokens.attention_mask, counts_B, counts_B - 1)


def clip_words(tokens: Tokens) -> list[int]:
    """Return the ids of the words of a single caption."""
    words: list[int] = tokens.ids_BK[0, 1 : int(tokens.counts_B) - 1].tolist()
    return words
